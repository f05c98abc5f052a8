# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options that name a data set."""

from dataclasses import dataclass, field

from ..arguments import option


__all__ = ["DatasetArguments"]


@dataclass(kw_only=True)
class DatasetArguments:
    """Which data set: the options of `load_segmentation_dataset`, for training and evaluation alike."""

    dataset_name: str = field(
        metadata={
            "help": "ade20k, camvid, cityscapes, pascal_context_59 or pascal_context_60 (with --data_dir), "
            "image_folders, synthetic, synthetic_harbour, or a data set on the Hub or on disk."
        }
    )
    dataset_config_name: str | None = option(None, "Configuration of a data set on the Hub.")
    data_dir: str | None = option(None, "Directory of the official release, or of your images.")
    image_dir: str | None = option(None, "For image_folders: directory of the images.")
    label_dir: str | None = option(None, "For image_folders: directory of the masks.")
    label_suffix: str | None = option(None, "For image_folders: _L if the mask of NAME.png is NAME_L.png.")
    image_column: str = option("image", "Column of the images.")
    label_column: str = option("label", "Column of the masks.")
    class_list: str | None = option(None, "Name or JSON file of the classes.")
    streaming: bool = option(False, "Read the data set while it is used; store nothing.")
    skip_unreadable: bool = option(False, "Leave unreadable examples out, with a warning.")
    num_synthetic_scenes: int = option(200, "For synthetic: number of scenes.")
    synthetic_scene_size: int = option(256, "For synthetic: height and width of the scenes in pixels.")
