# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks from annotated regions, in folders that `image_folders` reads."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ..files import atomic_directory, atomic_file
from .annotations import IGNORED_LABEL, READERS, AnnotatedImage, Annotations
from .class_lists import ClassList, class_list_from_data, load_class_list, shorten


__all__ = ["convert_masks"]

logger = logging.get_logger(__name__)

_BACKGROUNDS = ("background", "_background_")  # the latter is Labelme's
_ROBOFLOW_FILE = "_annotations.coco.json"
_EXIF_ORIENTATION = 0x0112


def convert_masks(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    format: str,
    image_dir: str | os.PathLike | None = None,
    split: str = "train",
    class_list: str | None = None,
    unlabeled: str = "background",
    ignored_labels: Sequence[str] = (),
    skip_missing: bool = False,
    progress: bool = True,
) -> dict[str, int]:
    """
    Paints annotated regions as masks: `output_dir/SPLIT/images`, `output_dir/SPLIT/masks` and
    `output_dir/classes.json`, which `load_segmentation_dataset("image_folders", data_dir=output_dir, ...)` reads. All
    of it is written, or nothing.

    Args:
        source: The annotations: a JSON file of COCO, `annotations.xml` of CVAT, a folder of Labelme's JSON files, or
            the folder of an export of Roboflow, whose sub-folders are the splits.
        output_dir: The folder to write. It may have other splits, whose `classes.json` then says which id a label has.
        format: "coco", "cvat", "labelme" or "roboflow".
        image_dir: Where the images are, if not beside the annotations. Not for "roboflow".
        split: What to call the split. Not for "roboflow".
        class_list: Name or JSON file of the classes, in whose order labels get ids; by default that of the
            annotations.
        unlabeled: "background", for pixels outside of all regions to be a class of that name, or "ignore".
        ignored_labels: Labels whose regions are ignored, as those named `__ignore__`.
        skip_missing: Whether to leave images out that do not exist, with a warning.
        progress: Whether to show a progress bar, where the output is a terminal.

    Returns:
        The number of images of each split.

    Masks are PNG files with palettes, or of 16 bits with more than 255 classes. Images are linked where the file
    system can (hard links), and copied elsewhere.

    Raises:
        ImportError: without pycocotools.
        FileExistsError: for a split that exists.
        ValueError: for annotations that cannot be read, images that are missing, have another size than the
            annotations state or lie outside of their folder, and labels that the class list does not have. The message
            names the file.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise ImportError('Converting annotations needs pycocotools: pip install "unept-hf[annotations]"')
    if unlabeled not in ("background", "ignore"):
        raise ValueError(f"unlabeled must be background or ignore, got {unlabeled!r}.")
    if not re.fullmatch(r"\w[\w-]*", split):
        raise ValueError(f"split must be a word such as train, got {split!r}.")
    source, output_dir = Path(source).expanduser(), Path(output_dir).expanduser()
    splits = _read(source, format, None if image_dir is None else Path(image_dir).expanduser(), split)
    for name in splits:
        splits[name].images = _existing_images(splits[name].images, source, skip_missing)
        if splits[name].skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in splits[name].skipped.items())
            logger.warning(f"{name}: shapes without an area are left out: {kinds}.")

    known = output_dir / "classes.json"
    labels = list(dict.fromkeys(label for one in splits.values() for label in one.labels))
    ignored = {IGNORED_LABEL, *ignored_labels}
    where = "the annotations"
    if class_list is not None or known.exists():
        given = load_class_list(class_list if class_list is not None else known)
        where = f"class list '{class_list if class_list is not None else known}'"
        classes = _class_list(list(given.label2id), given.palette)
    else:
        classes = _class_list(_labels_with_background([label for label in labels if label not in ignored], unlabeled))
    if known.exists() and not _is_same(load_class_list(known), classes):
        raise ValueError(
            f"{known} has other classes, or stores them in another way, than {where}: write into another folder."
        )
    ids = {**classes.label2id, **dict.fromkeys(ignored, classes.ignore_index)}
    background = next((label for label in classes.label2id if label.lower() in _BACKGROUNDS), None)
    if background is not None:  # however it is spelled
        ids |= {label: ids[background] for label in labels if label.lower() in _BACKGROUNDS and label not in ids}
    if unknown := [label for label in labels if label not in ids]:
        raise ValueError(
            f"{source} has labels that {where} does not have: {shorten(unknown)}. Add them there, or name them in "
            "ignored_labels."
        )
    if unlabeled == "background" and background is None:
        raise ValueError(
            f"{where} has no class background for the pixels outside of all regions: add one, or set unlabeled=ignore."
        )
    outside = classes.ignore_index if background is None or unlabeled == "ignore" else ids[background]

    for path in (output_dir, *output_dir.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; name a directory for the masks.")
    for name in splits:
        if (output_dir / name).is_dir() and any((output_dir / name).iterdir()):
            raise FileExistsError(
                f"{output_dir / name} is not empty: name another directory or split, or delete it first."
            )
    if unseen := [label for label in ignored_labels if label not in labels]:
        logger.warning(f"No region has the labels {shorten(unseen)} that are to be ignored: check their spelling.")
    is_new = not output_dir.exists()
    try:
        with contextlib.ExitStack() as stack:
            folders = {name: stack.enter_context(atomic_directory(output_dir / name)) for name in splits}
            if not known.exists():
                stack.enter_context(atomic_file(known)).write_text(_class_list_text(classes), encoding="utf-8")
            total = sum(len(one.images) for one in splits.values())
            bar = stack.enter_context(
                tqdm(total=total, desc="Painting masks", unit="image", disable=None if progress else True)
            )
            for name, one in splits.items():
                for image in one.images:
                    _write(image, folders[name], classes, ids, outside)
                    bar.update()
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                output_dir.rmdir()
        raise
    return {name: len(one.images) for name, one in splits.items()}


def _read(source: Path, format: str, image_dir: Path | None, split: str) -> dict[str, Annotations]:
    if format not in READERS:
        raise ValueError(f"format must be {', '.join(READERS)}, got {format!r}.")
    if format != "roboflow":
        is_right = source.is_dir() if format == "labelme" else source.is_file()
        if not is_right:
            what = "a folder of JSON files" if format == "labelme" else "the file of the annotations"
            raise ValueError(f"There is no {source}: for {format}, name {what}.")
        return {split: READERS[format](source, image_dir)}
    files = sorted(source.glob(f"*/{_ROBOFLOW_FILE}"))
    if not files:
        raise ValueError(
            f"{source} has no sub-folder with {_ROBOFLOW_FILE}: export the data set from Roboflow as 'COCO "
            "Segmentation', and name the folder with train and valid."
        )
    return {file.parent.name: READERS[format](file, None) for file in files}


def _existing_images(images: list[AnnotatedImage], source: Path, skip_missing: bool) -> list[AnnotatedImage]:
    found = [image for image in images if image.file.is_file()]
    missing = [str(image.file) for image in images if not image.file.is_file()]
    if missing and not skip_missing:
        raise ValueError(
            f"{len(missing)} of {len(images)} images of {source} are missing: {shorten(missing)}. Name their folder "
            "with image_dir, or leave them out with skip_missing."
        )
    if missing:
        logger.warning(f"{len(missing)} of {len(images)} images are missing and left out: {shorten(missing)}.")
    if not found:
        raise ValueError(f"{source} has no images.")
    places: dict[PurePosixPath, AnnotatedImage] = {}
    for image in found:
        other = places.setdefault(image.place.with_suffix(""), image)
        if other is not image:
            raise ValueError(
                f"'{other.place}' and '{image.place}' of {source} would have the same mask: rename one of them, or "
                "drop its second annotation."
            )
    return found


def _labels_with_background(labels: list[str], unlabeled: str) -> list[str]:
    """The labels, after the background if there is one."""
    backgrounds = [label for label in labels if label.lower() in _BACKGROUNDS]
    if backgrounds or unlabeled == "background":
        return ["background", *(label for label in labels if label not in backgrounds)]
    if not labels:
        raise ValueError("The annotations have no labels.")
    return labels


def _class_list(names: list[str], palette: list[list[int]] | None = None) -> ClassList:
    """Classes as the masks store them."""
    colors = [{}] * len(names) if palette is None else [{"color": color} for color in palette]
    classes = [{"id": index, "name": name, **color} for index, (name, color) in enumerate(zip(names, colors))]
    return class_list_from_data({"classes": classes, "ignore_index": 255 if len(names) <= 255 else 65535})


def _is_same(present: ClassList, classes: ClassList) -> bool:
    is_plain = not present.reduce_labels and "label_id_to_train_id" not in present.extras
    return is_plain and (present.id2label, present.ignore_index) == (classes.id2label, classes.ignore_index)


def _class_list_text(classes: ClassList) -> str:
    entries = [
        {"id": index, "name": name, "color": classes.palette[index]} for index, name in classes.id2label.items()
    ]
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'{{"ignore_index": {classes.ignore_index}, "classes": [\n{lines}\n]}}\n'


def _write(image: AnnotatedImage, folder: Path, classes: ClassList, ids: dict[str, int], outside: int) -> None:
    """Writes the mask of an image, and puts the image beside it."""
    height, width = _size(image)
    is_small = classes.ignore_index == 255
    label_map = np.full((height, width), outside, np.uint8 if is_small else np.uint16)
    for label, region in image.regions(height, width):
        label_map[region] = ids[label]
    mask = PIL.Image.fromarray(label_map)
    if is_small:
        palette = np.full((256, 3), 255, np.uint8)  # white where ignored
        palette[: len(classes)] = classes.palette
        mask.putpalette(palette.tobytes())
    picture, painted = folder / "images" / image.place, folder / "masks" / image.place.with_suffix(".png")
    for path in (picture, painted):
        path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(painted)
    try:
        os.link(image.file.resolve(), picture)
    except OSError:  # another file system, or one without links
        shutil.copyfile(image.file, picture)


def _size(image: AnnotatedImage) -> tuple[int, int]:
    """Height and width of an image as viewers turn it, which the annotations must state."""
    try:
        with PIL.Image.open(image.file) as opened:
            size: Any = (opened.height, opened.width)
            if opened.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8):
                size = size[::-1]
    except Exception as error:  # Pillow raises almost anything for broken files
        raise ValueError(f"Cannot read image '{image.file}' ({type(error).__name__}: {error}).") from error
    if image.size not in (None, size):
        raise ValueError(
            f"Image '{image.file}' has {size} pixels (height, width), but its annotation says {image.size}: it is "
            "another version of the image, or turned by its EXIF orientation."
        )
    return size
