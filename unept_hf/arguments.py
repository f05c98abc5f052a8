# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Options that commands and examples have in common, as dataclasses for transformers' `HfArgumentParser`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(kw_only=True)
class HubArguments:
    """How to get a model from the Hub."""

    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Access token of the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code that comes with the model. Read it before."}
    )


@dataclass(kw_only=True)
class ModelArguments(HubArguments):
    """Which model to use."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the model and its image processor."})


@dataclass
class DataArguments:
    """Which data to evaluate on: see load_segmentation_dataset."""

    dataset_name: str = field(
        metadata={
            "help": "ade20k, camvid, cityscapes, pascal_context_59 or pascal_context_60 (with --data_dir), "
            "image_folders, synthetic, synthetic_harbour, or a data set of the Hub or on disk."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set of the Hub."})
    split: str | None = field(
        default=None, metadata={"help": "Split of the data set. validation if not given; train with --eval_fraction."}
    )
    eval_fraction: float = field(
        default=0.0,
        metadata={"help": "Take this share of the split, the one that a training with this option and seed left out."},
    )
    seed: int = field(default=0, metadata={"help": "With --eval_fraction: the seed of that training."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the official release."})
    image_dir: str | None = field(default=None, metadata={"help": "For image_folders: the folder of the images."})
    label_dir: str | None = field(default=None, metadata={"help": "For image_folders: the folder of the masks."})
    label_suffix: str | None = field(
        default=None, metadata={"help": "For image_folders: _L if the mask of NAME.png is NAME_L.png."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the masks."})
    class_list: str | None = field(default=None, metadata={"help": "Name or JSON file of the classes."})
    streaming: bool = field(default=False, metadata={"help": "Whether to stream the data set."})
    skip_unreadable: bool = field(default=False, metadata={"help": "Whether to leave out what can not be read."})
    max_images: int | None = field(default=None, metadata={"help": "How many images to take. All if not given."})
    num_synthetic_scenes: int = field(default=200, metadata={"help": "For synthetic: number of scenes."})
    synthetic_scene_size: int = field(
        default=256, metadata={"help": "For synthetic: height and width of the scenes in pixels."}
    )

    def __post_init__(self):
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction has to lie in [0, 1), got {self.eval_fraction}.")
        if self.eval_fraction and self.streaming:
            raise ValueError("eval_fraction can not split a stream: drop streaming, or name a split.")
        if self.split is None:
            self.split = "train" if self.eval_fraction else "validation"


@dataclass
class PredictionArguments:
    """How to predict: see unept_hf.inference.segment.segment."""

    mode: str = field(
        default="whole", metadata={"help": "Whole images or sliding windows.", "choices": ["whole", "slide"]}
    )
    crop_size: int = field(default=480, metadata={"help": "Side of the windows in pixels."})
    stride: int = field(default=160, metadata={"help": "Pixels from window to window."})
    scales: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Factors on the size of the images."})
    flip: bool = field(default=False, metadata={"help": "Whether to add mirrored views."})
    do_resize: bool | None = field(
        default=None, metadata={"help": "Whether the image processor resizes first. Its own setting if not given."}
    )
    boundary_threshold: float = field(default=0.5, metadata={"help": "Probability that makes a boundary pixel."})
    boundary_steps: int = field(default=1, metadata={"help": "How many pixels the refinement walks at most."})
    batch_size: int = field(default=4, metadata={"help": "Number of windows that a model gets at once."})
    autocast: str | None = field(
        default=None,
        metadata={"help": "Dtype to compute in, if not that of the weights.", "choices": ["bfloat16", "float16"]},
    )


@dataclass
class EvaluationArguments(PredictionArguments):
    """How to predict, and what to write."""

    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for the results."})
    refine_boundaries: str = field(
        default="no",
        metadata={"help": "Without boundary refinement, with it, or both.", "choices": ["no", "yes", "both"]},
    )
    boundary_metrics: bool = field(
        default=True, metadata={"help": "Whether to compute boundary F1 and the trimap curve."}
    )
    num_samples: int = field(default=4, metadata={"help": "How many predictions the picture shows."})


@dataclass
class SegmentationArguments(PredictionArguments):
    """How to predict, and what to write of each image."""

    output_dir: str = field(default="segmented", metadata={"help": "Folder for the results."})
    save: list[str] = field(
        default_factory=lambda: ["label_maps", "overlays", "areas"],
        metadata={
            "help": "What to write, each into a folder of that name: label maps (PNG, one class number for each "
            "pixel), pictures of the classes over the image, areas of the classes (JSON), pictures of the "
            "boundaries, pictures of what the refinement changes.",
            "choices": ["label_maps", "overlays", "areas", "boundaries", "refinement"],
        },
    )
    existing: str = field(
        default="error",
        metadata={
            "help": "What to do about results that are there already: stop before anything is done, skip the images "
            "that have all of theirs, or overwrite them.",
            "choices": ["error", "skip", "overwrite"],
        },
    )
    refine_boundaries: bool = field(default=False, metadata={"help": "Whether to refine boundaries."})
    class_list: str | None = field(
        default=None,
        metadata={"help": "Name or JSON file of the classes, for their colours. Colour-blind-safe ones if not given."},
    )
    opacity: float = field(default=0.6, metadata={"help": "Of the colours in overlays, 0 to 1."})
    picture_size: int = field(default=1024, metadata={"help": "Pixels of the longer side in pictures."})

    def __post_init__(self):
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity has to lie within 0 and 1, got {self.opacity}.")
        if self.picture_size < 1:
            raise ValueError(f"picture_size has to be at least 1 pixel, got {self.picture_size}.")


def read_options(path: str | os.PathLike) -> dict[str, Any]:
    """
    Options from a YAML or JSON file of names and values. A file of YAML that holds nothing has none.

    Raises:
        ValueError: for a file that can not be read, or holds anything else.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} can not be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} has to hold names of options and their values.")
    return values


def merge_options(options: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All names of both, with the values of `overrides` where both have one; mappings among these are merged too."""
    merged = dict(options)
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge_options(merged[name], value) if both else value
    return merged


def words_of_options(options: Mapping[str, Any]) -> list[str]:
    """Options as one would type them. Those without a value, and empty lists, are left out."""

    def word(value):
        # To YAML, yes and no are booleans; here they are choices of an option, and good for boolean ones too.
        if isinstance(value, bool):
            return "yes" if value else "no"
        return json.dumps(value) if isinstance(value, dict) else str(value)

    words = []
    for name, value in options.items():
        if value is not None and value != []:
            words += [f"--{name}", *map(word, value if isinstance(value, list) else [value])]
    return words


__all__ = [
    "DataArguments",
    "EvaluationArguments",
    "HubArguments",
    "ModelArguments",
    "PredictionArguments",
    "SegmentationArguments",
    "merge_options",
    "read_options",
    "words_of_options",
]
