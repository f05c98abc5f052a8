# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets of images and masks: the well-known data sets, the Hub, local files and synthetic scenes."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import logging

from ..synthetic.scenes import SYNTHETIC_THEMES, synthetic_scenes
from .class_lists import ClassList, class_list_from_data, load_class_list, shorten
from .folder_layouts import (
    FilePairs,
    ade20k_files,
    camvid_files,
    cityscapes_files,
    image_folder_files,
    pascal_context_files,
    split_parts,
    split_spellings,
)
from .label_maps import decode_example, doubt_about_masks


__all__ = ["hold_out", "load_segmentation_dataset"]

logger = logging.get_logger(__name__)

# Files are opened by decode_example, which can say which one is broken.
_FEATURES = datasets.Features(
    {"image": datasets.Image(decode=False), "label": datasets.Image(decode=False), "name": datasets.Value("string")}
)
_OFFICIAL_LAYOUTS = {
    "ade20k": ade20k_files,
    "camvid": camvid_files,
    "cityscapes": cityscapes_files,
    "pascal_context_59": pascal_context_files,
    "pascal_context_60": pascal_context_files,
}
_MASKS_READ = 8


def load_segmentation_dataset(
    dataset_name: str,
    split: str = "train",
    data_dir: str | None = None,
    image_dir: str | None = None,
    label_dir: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    class_list: str | None = None,
    streaming: bool = False,
    skip_unreadable: bool = False,
    dataset_config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    num_proc: int | None = None,
    num_synthetic_scenes: int = 200,
    synthetic_scene_size: int = 256,
    label_suffix: str | None = None,
    skip_unpaired: bool | None = None,
    model_classes: ClassList | None = None,
) -> tuple["datasets.Dataset | datasets.IterableDataset", ClassList]:
    """
    One split of a data set for semantic segmentation, and its classes.

    Args:
        dataset_name: "ade20k", "camvid", "cityscapes", "pascal_context_59" or "pascal_context_60" with `data_dir`, the
            folder of the official release (see `folder_layouts`); "image_folders" with `data_dir`, or `image_dir` and
            `label_dir`; "synthetic" or "synthetic_harbour"; or anything else that `datasets` loads: a repository of
            the Hub, a local folder of data files, or one that `save_to_disk` wrote.
        split: Such as "train" or "validation", "training" and "val" mean the same; or several, joined by "+":
            "train+validation".
        data_dir: See `dataset_name`. For a data set of the Hub, the folder in it to load.
        image_dir: For "image_folders": folder of the images, within `data_dir` if that is given. `{split}` in it
            is replaced by the split.
        label_dir: For "image_folders": folder of the masks, likewise, such as "{split}annot".
        image_column: Column of the images in a data set of the Hub.
        label_column: Column of the masks in a data set of the Hub.
        class_list: Name or JSON file of the classes, see `load_class_list`. Needed for "image_folders" and for data
            sets without a file `id2label.json` and without class names in their features. It also says how masks
            store classes: `class_list="ade20k"` for a copy of ADE20K on the Hub.
        streaming: Whether to return an `IterableDataset`, which downloads nothing beforehand.
        skip_unreadable: Whether to leave out, with a warning, examples that would otherwise be an error: files without
            counterpart, unreadable files, and masks with values that stand for no class. All files are read once for
            this at the start (`num_proc` at a time), or while streaming.
        dataset_config_name: Configuration of a data set of the Hub.
        revision: Branch, tag or commit of a data set of the Hub.
        cache_dir: Where data sets of the Hub are stored.
        token: Access token of the Hub.
        num_proc: Number of processes that prepare data of the Hub and look for unreadable files.
        num_synthetic_scenes: How many scenes a synthetic data set has.
        synthetic_scene_size: Height and width of a synthetic scene in pixels.
        label_suffix: For "image_folders": the end of the name of a mask after the name of its image, such as "_L".
        skip_unpaired: Whether to leave out, with a warning, files without counterpart; as `skip_unreadable` unless
            given.
        model_classes: The classes of a model, for a data set that needs `class_list` when none is given.

    A few masks are read, except in streams of the Hub: `doubt_about_masks` says what is worth a warning.

    Returns:
        The data set with columns `image` and `label` (`datasets.Image(decode=False)`, as in the files; `label` holds
        the raw values of the annotation) and `name` (unique within the split, except in streams of the Hub with
        several workers; in folders of joined splits, it begins with the split), and the class list. `decode_example`
        opens a row.

    Raises:
        ValueError: for options that do not fit together, missing folders, unpaired files, unknown splits and columns,
            and missing or broken class lists. The message names the file and what was expected.
    """
    is_synthetic, is_official = dataset_name in SYNTHETIC_THEMES, dataset_name in _OFFICIAL_LAYOUTS
    is_folder = is_official or dataset_name == "image_folders"
    parts = split_parts(split)
    theme_split = next((name for name in split_spellings(split) if name in ("train", "validation")), split)
    problems = {
        f"image_dir, label_dir and label_suffix are for dataset_name='image_folders', not for '{dataset_name}'.": (
            dataset_name != "image_folders" and not (image_dir is label_dir is label_suffix is None)
        ),
        "dataset_name='image_folders' needs data_dir (a folder with sub-folders images and masks), or image_dir and "
        "label_dir.": dataset_name == "image_folders" and data_dir is None and None in (image_dir, label_dir),
        "dataset_name='image_folders' needs class_list: the name of a class list, or a JSON file such as "
        '["background", "cat"].': dataset_name == "image_folders" and class_list is model_classes is None,
        f"dataset_name='{dataset_name}' needs data_dir, the folder of the official release. For a copy on the Hub, "
        f"give its name as dataset_name and class_list='{dataset_name}'.": is_official and data_dir is None,
        f"split must be train or validation for '{dataset_name}', got '{split}'.": (
            is_synthetic and theme_split not in ("train", "validation")
        ),
        f"num_synthetic_scenes must be at least 1, got {num_synthetic_scenes}.": is_synthetic
        and num_synthetic_scenes < 1,
        f"synthetic_scene_size must be 32 to {2**15} pixels, got {synthetic_scene_size}.": (
            is_synthetic and not 32 <= synthetic_scene_size <= 2**15
        ),
        f"image_column and label_column are both '{image_column}': they must differ.": image_column == label_column,
    }
    if any(problems.values()):
        raise ValueError(" ".join(problem for problem, is_found in problems.items() if is_found))

    if is_folder:
        if dataset_name == "image_folders" and class_list is None and model_classes is not None:
            classes = _taken_from_the_model(model_classes)
        else:
            classes = load_class_list(class_list or dataset_name)
        loaded = []
        for part in parts:
            if dataset_name == "image_folders":
                files = image_folder_files(data_dir, part, image_dir, label_dir, label_suffix)
            else:
                files = _OFFICIAL_LAYOUTS[dataset_name](str(data_dir), part)
            if len(parts) > 1:  # two splits can have files of one name
                files = files._replace(names=[f"{part}/{name}" for name in files.names])
            loaded.append(_from_files(files, skip_unreadable if skip_unpaired is None else skip_unpaired))
        data = datasets.concatenate_datasets(loaded)
    elif is_synthetic:
        classes = load_class_list(dataset_name)
        size = (synthetic_scene_size, synthetic_scene_size)
        data = synthetic_scenes(num_synthetic_scenes, size=size, split=theme_split, theme=dataset_name)
        data = _with_our_columns(data, "image", "label", theme_split)
    else:
        dataset_name = os.path.expanduser(dataset_name)
        source = {
            "revision": revision,
            "cache_dir": cache_dir and os.path.expanduser(cache_dir),
            "token": token,
            "data_dir": data_dir and os.path.expanduser(data_dir),
        }
        data = _load(dataset_name, dataset_config_name, parts, streaming, num_proc, source)
        # A stream of files may have no schema.
        columns, features = list(data.features or next(iter(data))), data.features
        _check_columns(dataset_name, columns, features, image_column=image_column, label_column=label_column)
        classes = _find_class_list(class_list, dataset_name, features, revision, token, model_classes)
        names = "+".join(part.partition("[")[0] for part in parts)
        data = _with_our_columns(data, image_column, label_column, names)

    if isinstance(data, datasets.Dataset):
        places = np.linspace(0, len(data) - 1, min(len(data), _MASKS_READ)).round().astype(int)
        masks = data.select_columns(["label", "name"])
        doubt = doubt_about_masks((masks[int(place)] for place in places), classes)
        if doubt is not None:
            logger.warning(doubt if is_folder else f"Column '{label_column}' of '{dataset_name}': {doubt}")
    if streaming and isinstance(data, datasets.Dataset):
        data = data.to_iterable_dataset(num_shards=min(len(data), 64))
    if skip_unreadable:
        data = _only_readable(data, classes, num_proc)
    return data, classes


def hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    A training set and an evaluation set, from a data set that has one split for both.

    Args:
        dataset: As `load_segmentation_dataset` returns it.
        fraction: Share to evaluate on, between 0 and 1.
        seed: The same seed gives the same parts, in training and in evaluation.

    Raises:
        ValueError: when one of the parts would be empty.
    """
    parts = dataset.train_test_split(fraction, seed=seed)
    return parts["train"], parts["test"]


def _from_files(files: FilePairs, skip_unpaired: bool) -> datasets.Dataset:
    problem = "There is no image with a mask."
    if files.unpaired:
        problem = f"{len(files.unpaired)} file(s) have no counterpart: {shorten(files.unpaired)}."
    if not files.names or (files.unpaired and not skip_unpaired):
        raise ValueError(
            f"{problem} Expected {files.expectation}. Complete or remove the files, or use skip_unreadable to leave "
            "files without a counterpart out."
        )
    if files.unpaired:
        logger.warning(f"{problem} They are left out.")
    columns = {"image": files.images, "label": files.masks, "name": files.names}
    return datasets.Dataset.from_dict(columns, features=_FEATURES)


def _load(dataset_name, dataset_config_name, parts, streaming, num_proc, source):
    """The splits of a data set that the library `datasets` can load, under its own spelling."""
    if Path(dataset_name, "dataset_dict.json").is_file() or Path(dataset_name, "state.json").is_file():
        saved = datasets.load_from_disk(dataset_name)
        if isinstance(saved, datasets.Dataset):
            saved = {str(saved.split or "train"): saved}
        return datasets.concatenate_datasets(
            [saved[_find_split(dataset_name, part, list(saved), sliceable=False)] for part in parts]
        )

    try:
        known = datasets.get_dataset_split_names(dataset_name, dataset_config_name, **source)
    except (FileNotFoundError, ConnectionError) as error:
        ours = (*_OFFICIAL_LAYOUTS, *SYNTHETIC_THEMES)
        raise ValueError(
            f"dataset_name='{dataset_name}' is neither {', '.join(map(repr, ours))} nor 'image_folders', nor "
            f"can it be loaded from the Hub or from a local folder: {error}"
        ) from error
    return datasets.load_dataset(
        dataset_name,
        dataset_config_name,
        split="+".join(_find_split(dataset_name, part, known, sliceable=not streaming) for part in parts),
        streaming=streaming,
        num_proc=None if streaming else num_proc,
        **source,
    )


def _find_split(dataset_name: str, split: str, known: list[str], sliceable: bool) -> str:
    """The split as the data set spells it, with a slice such as "[:100]" where slices are possible."""
    name, bracket, slice_ = split.partition("[")
    found = next((spelling for spelling in split_spellings(name) if spelling in known), None)
    if found is None or (bracket and not sliceable):
        raise ValueError(
            f"'{dataset_name}' has no split '{name}'. Choose one of {', '.join(known)}."
            if found is None
            else f"split='{split}': slices need a data set that is neither saved to disk nor streamed."
        )
    return found + bracket + slice_


def _check_columns(dataset_name: str, columns: list[str], features: datasets.Features | None, **options: str) -> None:
    problems = []
    for option, column in options.items():
        feature = (features or {}).get(column)  # None also in a stream without a schema
        # Strings and binaries are paths and encoded files, which the library can take for images.
        is_image = isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("string", "binary")
        if column not in columns:
            problems.append(f"Column '{column}' does not exist: set {option} to another column.")
        elif feature is not None and not is_image:
            problems.append(f"Column '{column}' holds {feature}, not images: set {option} to another column.")
    if problems:
        raise ValueError(f"{' '.join(problems)} The columns of '{dataset_name}' are {', '.join(columns)}.")


def _with_our_columns(data, image_column: str, label_column: str, split: str):
    if data.features is not None:
        for column in (image_column, label_column):
            data = data.cast_column(column, datasets.Image(decode=False))
    data = data.select_columns([image_column, label_column])
    renamed = {image_column: "image", label_column: "label"}
    data = data.rename_columns({old: new for old, new in renamed.items() if old != new})
    if isinstance(data, datasets.IterableDataset):
        return data.map(_with_name, with_indices=True, fn_kwargs={"split": split}, features=_FEATURES)
    return data.add_column("name", [f"{split}-{index:06d}" for index in range(len(data))])


def _with_name(row: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    return {**row, "name": f"{split}-{index:06d}"}


def _taken_from_the_model(classes: ClassList) -> ClassList:
    logger.warning(
        f"The {len(classes)} classes are those of the model: masks must hold the ids 0 to {len(classes) - 1}, and "
        f"{classes.ignore_index} for ignored pixels. Pass class_list if they store the classes in another way."
    )
    return classes


def _find_class_list(class_list, dataset_name, features, revision, token, model_classes) -> ClassList:
    """
    The class list that was asked for, else `id2label.json` of the data set, else the names in its features, else the
    classes of a model.
    """
    if class_list is not None:
        return load_class_list(class_list)
    path: Path | str | None = Path(dataset_name, "id2label.json")
    if not os.path.isdir(dataset_name):
        try:
            path = huggingface_hub.hf_hub_download(
                dataset_name, "id2label.json", repo_type="dataset", revision=revision, token=token
            )
        except EntryNotFoundError:
            path = None
    if path is not None and os.path.isfile(path):
        return dataclasses.replace(load_class_list(Path(path)), name=dataset_name)
    named = {column: names for column, feature in (features or {}).items() if (names := _class_names(feature))}
    if len(named) == 1:
        column, names = named.popitem()
        logger.warning(f"The classes of '{dataset_name}' are taken from its column '{column}'.")
        return class_list_from_data(names, dataset_name)
    if model_classes is not None:
        return _taken_from_the_model(model_classes)
    raise ValueError(
        f"'{dataset_name}' does not name its classes: set class_list to the name of a class list, or "
        'to a JSON file such as ["background", "cat"].'
    )


def _class_names(feature: Any) -> list[str] | None:
    """The names in a list of class labels, in any nesting."""
    inner = getattr(feature, "feature", None)
    while (nested := getattr(inner, "feature", None)) is not None:
        inner = nested
    return inner.names if isinstance(inner, datasets.ClassLabel) else None


def _only_readable(data, class_list: ClassList, num_proc: int | None):
    is_stream = isinstance(data, datasets.IterableDataset)
    options = {} if is_stream else {"num_proc": num_proc, "desc": "Reading all images and masks"}
    kept = data.filter(_is_readable, fn_kwargs={"class_list": class_list, "report": is_stream}, **options)
    if is_stream:
        return kept
    if len(kept) == 0:
        decode_example(data[0], class_list)
    if len(kept) < len(data):
        names = set(kept["name"])
        skipped = [name for name in data["name"] if name not in names]
        logger.warning(f"{len(skipped)} of {len(data)} examples are unusable and left out: {shorten(skipped)}.")
    return kept


def _is_readable(example: dict[str, Any], class_list: ClassList, report: bool) -> bool:
    try:
        decode_example(example, class_list)
    except ValueError as error:
        if report:
            logger.warning(f"Left out: {error}")
        return False
    return True
