# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Layout, classes and sizes of a directory of images and masks of which nothing is known but where it is."""

import csv
import json
import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from ..files import atomic_file
from ..model.image_reading import open_image, reading
from .class_lists import class_list_from_data, load_class_list
from .folder_layouts import FilePairs, ade20k_files, camvid_files, cityscapes_files, image_folder_files


__all__ = ["FoundDataset", "find_dataset"]

# Folders of images and of masks, and what masks append to the names of their images. image_folder_files also looks for
# splits below and above the folders.
_IMAGE_FOLDERS = [
    ("images", "masks", None),
    ("images", "labels", None),
    ("images", "annotations", None),
    ("image", "mask", None),
    ("image", "label", None),
    ("imgs", "masks", None),
    ("img", "ann", None),
    ("img_dir", "ann_dir", None),
    ("JPEGImages", "SegmentationClass", None),
    ("{split}", "{split}annot", None),
    ("{split}", "{split}_labels", "_L"),
    ("{split}", "{split}_labels", None),
    ("{split}", "{split}_masks", None),
]
_CLASS_LISTS = ("classes.json", "class_list.json", "id2label.json")
_CLASS_NAMES = ("classes.txt", "class_names.txt", "labels.txt")
_CLASS_TABLES = ("_classes.csv", "train/_classes.csv")
_MOST_MASKS = 1000
_MOST_SIZES = 200
_MOST_COLORS = 64
_MOST_VALUES_WITH_GAPS = 32


@dataclass
class FoundDataset:
    """
    What a directory holds.

    Attributes:
        options: The arguments of `load_segmentation_dataset` for it, without a class list of its own.
        class_list: The content of a file for `load_class_list`; `None` where `options` names the class list.
        num_images: Pairs of image and mask to train on.
        num_evaluation_images: Pairs of the split "validation", 0 if there is no such split.
        size: Median height and width of the images in pixels.
        findings: One sentence for each, and why.
    """

    options: dict[str, Any]
    class_list: dict[str, Any] | None
    num_images: int
    num_evaluation_images: int
    size: tuple[int, int]
    findings: list[str]

    def save_class_list(self, directory: str | os.PathLike) -> dict[str, Any]:
        """The options with a class list, which is written to `classes.json` in a directory if no file has it."""
        if self.class_list is None:
            return self.options
        with atomic_file(Path(directory).expanduser() / "classes.json") as file:
            file.write_text(json.dumps(self.class_list, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return {**self.options, "class_list": str(Path(directory).expanduser() / "classes.json")}


def find_dataset(
    data_dir: str | os.PathLike, progress: bool = True, skip_unreadable: bool = False, **given: str | None
) -> FoundDataset:
    """
    Looks for the layout of a known data set or for folders of images and masks; for a file of classes, or else for
    the values and colors in the masks; and for the sizes of images.

    Args:
        data_dir: The directory.
        progress: Whether to show progress bars on a terminal.
        skip_unreadable: Whether to pass over files that cannot be read.
        given: What is known already: `image_dir` and `label_dir`, `label_suffix`, `class_list`.

    Raises:
        ValueError: when no layout fits; when the masks have more colors or values than could be classes.
        OSError: for files that cannot be read.
    """
    data_dir = Path(data_dir).expanduser()
    if not data_dir.is_dir():
        raise ValueError(f"There is no directory {data_dir}: data_dir must be the directory of images and masks.")
    given = {name: value for name, value in given.items() if value is not None}
    if "class_list" in given:
        load_class_list(str(given["class_list"]))  # its messages, before anything is written
    known = None if given.keys() - {"class_list"} else _known_dataset(data_dir)
    if known is not None:
        name, pairs, read_files = known
        options = {"dataset_name": name, "data_dir": str(data_dir)}
        findings = [f"{data_dir} has the layout of {name}, whose classes are known."]
        evaluation = _pairs_or_none(read_files, data_dir, "validation")
    else:
        folders: dict[str, Any] = {key: value for key, value in given.items() if key != "class_list"}
        layouts: list[dict[str, Any]] = [folders] if folders else [_as_options(*layout) for layout in _IMAGE_FOLDERS]
        if folders:
            image_folder_files(data_dir, "train", **folders)  # its messages
        found = [
            (pairs, one) for one in layouts if (pairs := _pairs_or_none(image_folder_files, data_dir, "train", one))
        ]
        if not found:
            raise ValueError(
                f"No images with masks were found in {data_dir}. Known layouts are "
                f"{', '.join(f'{images} with {masks}' for images, masks, suffix in _IMAGE_FOLDERS if not suffix)} "
                "(with or without folders train and validation in them), and those of ADE20K, CamVid and Cityscapes. "
                "Rename the folders, or set image_dir, label_dir and label_suffix."
            )
        pairs, folders = max(found, key=lambda one: len(one[0].names))
        options = {"dataset_name": "image_folders", "data_dir": str(data_dir), **folders}
        findings = [f"Images are in {_parent(pairs.images)}, their masks in {_parent(pairs.masks)}."]
        evaluation = _pairs_or_none(image_folder_files, data_dir, "validation", folders)
    class_list = None
    if "class_list" in given:
        options["class_list"] = given["class_list"]
    elif known is None:
        masks = pairs.masks + (evaluation.masks if evaluation else [])
        file_or_content, why = _find_classes(data_dir, masks, progress, skip_unreadable)
        if isinstance(file_or_content, Path):
            options["class_list"] = str(file_or_content)
        else:
            class_list = file_or_content
        findings.append(why)
    num_evaluation_images = len(evaluation.names) if evaluation else 0
    size = _median_size(pairs, progress, skip_unreadable)
    findings.append(
        f"{len(pairs.names)} images to train on and {num_evaluation_images or 'none'} to evaluate on, of about "
        f"{size[1]} x {size[0]} pixels."
    )
    return FoundDataset(options, class_list, len(pairs.names), num_evaluation_images, size, findings)


def _as_options(image_dir: str, label_dir: str, label_suffix: str | None) -> dict[str, str]:
    options = {"image_dir": image_dir, "label_dir": label_dir}
    return options | ({"label_suffix": label_suffix} if label_suffix else {})


def _pairs_or_none(read_files, data_dir: Path, split: str, options: dict[str, Any] | None = None) -> FilePairs | None:
    try:
        pairs = read_files(data_dir, split, **(options or {}))
    except ValueError:
        return None
    return pairs if pairs.names else None


def _known_dataset(data_dir: Path):
    """Name, pairs to train on, and reader of the known data set whose layout a directory has."""
    for name, read_files in (("cityscapes", cityscapes_files), ("ade20k", ade20k_files), ("camvid", camvid_files)):
        pairs = _pairs_or_none(read_files, data_dir, "train")
        # Other data sets have CamVid's folders too, so the names of its videos decide.
        if pairs and (name != "camvid" or re.match(r"0001TP|0006R0|0016E5|Seq05VD", pairs.names[0])):
            return name, pairs, read_files
    return None


def _parent(files: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(file) for file in files])


def _find_classes(
    data_dir: Path, masks: list[str], progress: bool, skip_unreadable: bool
) -> tuple[Path | dict[str, Any], str]:
    """The file of a class list, or its content, and where it is from."""
    for name in _CLASS_LISTS:
        if (file := data_dir / name).is_file():
            return file, f"The {len(load_class_list(file))} classes are those of {file}."
    for name in _CLASS_NAMES:
        if (file := data_dir / name).is_file():
            try:
                names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                class_list_from_data(names)
            except ValueError as error:
                raise ValueError(f"{file} must have the name of one class in each line, in UTF-8: {error}") from error
            return {"classes": names}, f"The {len(names)} classes are the lines of {file}: check their order."
    for name in _CLASS_TABLES:
        if (file := data_dir / name).is_file():
            return _classes_of_table(file), f"The classes are the rows of {file}."
    return _classes_of_masks(masks, progress, skip_unreadable)


def _classes_of_table(file: Path) -> dict[str, Any]:
    """The classes of Roboflow's table of pixel values and names."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    names = {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdigit()}
    if not names:
        raise ValueError(f"{file} has no rows of a pixel value and the name of a class: correct or remove it.")
    return _content(dict(sorted(names.items())))


def _content(names: dict[int, str]) -> dict[str, Any]:
    """The content of a class list for masks with these values, of which 255 is ignored unless it has a name."""
    if list(names) == list(range(len(names))):
        return {"classes": list(names.values())}
    table = {str(value): index for index, value in enumerate(names)}
    return {"classes": list(names.values()), "label_id_to_train_id": {"255": 255, **table}}


def _classes_of_masks(masks: list[str], progress: bool, skip_unreadable: bool) -> tuple[dict[str, Any], str]:
    """One class for each value or color in the masks, of which many are read."""
    places = np.linspace(0, len(masks) - 1, min(len(masks), _MOST_MASKS)).round().astype(int)
    values: set[int] = set()
    colors: set[tuple[int, int, int]] = set()
    bar = tqdm(places, desc="Looking for classes in masks", unit="mask", disable=None if progress else True)
    for place in bar:
        file = masks[place]
        try:
            mask = open_image(file)
            with reading(file):
                if len(mask.getbands()) == 1:
                    values.update(np.unique(np.asarray(mask).astype(np.int64)).tolist())
                    continue
                pixels = np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0)
        except OSError:
            if not skip_unreadable:
                raise
            continue
        colors.update(map(tuple, pixels.tolist()))
        if len(colors) > _MOST_COLORS:
            raise ValueError(
                f"The masks have more than {_MOST_COLORS} colors, up to {file}: they are images, or were stored with "
                "losses (JPEG). Export them as PNG, or name the classes and their colors in a class list (class_list)."
            )
    read = f"{len(places)} masks" if len(places) < len(masks) else "all masks"
    if colors:
        # Gray masks with three equal channels.
        if all(red == green == blue for red, green, blue in colors):
            values |= {red for red, _, _ in colors}
        else:
            classes = [
                {"id": index, "name": "color #{:02x}{:02x}{:02x}".format(*color), "color": list(color)}
                for index, color in enumerate(sorted(colors))
            ]
            why = f"Nothing names the classes, so each of the {len(colors)} colors in {read} is one."
            return {"classes": classes}, why
    if values == {0, 255}:
        content = {"classes": ["background", "foreground"], "label_id_to_train_id": {"0": 0, "255": 1}}
        return content, f"{read.capitalize()} are black and white: 0 is the background, 255 the foreground."
    ids = sorted(values - {255})
    if not ids or ids[0] < 0:
        raise ValueError(f"The masks have no class ids from 0 on, but {sorted(values)[:5]}: give a class_list.")
    has_gaps = ids != list(range(len(ids)))
    if has_gaps and len(ids) > _MOST_VALUES_WITH_GAPS:
        raise ValueError(
            f"The masks have {len(ids)} different values with gaps, such as {', '.join(map(str, ids[:8]))}: they may "
            "have been resized smoothly, or stored with losses (JPEG). Export them again as PNG, or give a class_list."
        )
    why = f"Nothing names the classes, so the {len(ids)} values in {read} are their names; 255 is ignored."
    if has_gaps and 255 in values:
        why += " Check this: the values have gaps, so 255 may be a class."
    return _content({value: f"class {value}" for value in ids}), why


def _median_size(pairs: FilePairs, progress: bool, skip_unreadable: bool) -> tuple[int, int]:
    places = np.linspace(0, len(pairs.images) - 1, min(len(pairs.images), _MOST_SIZES)).round().astype(int)
    sizes = []
    for place in tqdm(places, desc="Looking at sizes", unit="image", disable=None if progress else True):
        file = pairs.images[place]
        try:
            with reading(file), PIL.Image.open(file) as image:
                sizes.append((image.height, image.width))
        except OSError:
            if not skip_unreadable:
                raise
    if not sizes:
        raise ValueError(f"None of the images in {_parent(pairs.images)} can be read.")
    height, width = (round(statistics.median(sides)) for sides in zip(*sizes))
    return height, width
