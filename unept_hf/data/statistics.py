# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What the files of a data set hold: classes, sizes, and the examples that cannot be used."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
import numpy as np
from tqdm.auto import tqdm

from .class_lists import ClassList
from .label_maps import decode_example, decode_mask


__all__ = ["ExampleContent", "class_pixels", "class_weights", "pixels_of_masks", "read_contents"]

Result = TypeVar("Result")

_ROWS_AT_ONCE = 64  # rows from the Hub hold whole files


@dataclass
class ExampleContent:
    """
    What one example holds.

    Attributes:
        name: Its name in the data set.
        size: Height and width in pixels, or `None` where the example cannot be used.
        pixels: Number of pixels of each class, int64 `(classes,)`.
        unlabeled: Number of pixels without a class.
        problem: Why the example cannot be used, if it cannot; mostly an `ExampleError`.
    """

    name: str
    size: tuple[int, int] | None
    pixels: np.ndarray
    unlabeled: int = 0
    problem: ValueError | None = None


def class_pixels(label_map: np.ndarray, class_list: ClassList) -> np.ndarray:
    """Number of pixels of each class in a label map of `decode_label_map`, int64 `(classes,)`."""
    if label_map.dtype == np.uint8:
        return np.bincount(label_map.reshape(-1), minlength=256)[: len(class_list)]
    return np.bincount(label_map[label_map != class_list.ignore_index], minlength=len(class_list))


def read_contents(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    class_list: ClassList,
    max_images: int | None = None,
    progress: bool = True,
    description: str = "Reading images and masks",
) -> Iterator[tuple[dict[str, Any], ExampleContent]]:
    """
    Reads the images and masks of a data set, several at a time, in their order.

    Args:
        dataset: As `load_segmentation_dataset` returns it.
        class_list: Its classes.
        max_images: Read only so many, at equal distances over the data set; of a stream, the first.
        progress: Whether to show a progress bar, where the output is a terminal.
        description: Text of the progress bar.

    Yields:
        The row, and what it holds.
    """
    rows: Iterable[dict[str, Any]] = itertools.islice(dataset, max_images)
    total = max_images
    if isinstance(dataset, datasets.Dataset):
        total = min(len(dataset), max_images or len(dataset))
        places = np.linspace(0, len(dataset) - 1, total).round().astype(int)
        rows = (dataset[int(place)] for place in places)
    yield from _in_threads(functools.partial(_read, class_list=class_list), rows, total, progress, description)


def pixels_of_masks(dataset: datasets.Dataset, class_list: ClassList, progress: bool = True) -> np.ndarray:
    """
    How many pixels of each class each mask of a data set has. Reads all masks, several at a time, and no images.

    Returns:
        int64 `(examples, classes)`.

    Raises:
        ExampleError: for a mask that cannot be used.
    """
    masks = dataset.select_columns(["label", "name"])
    pixels = functools.partial(_pixels_of_mask, class_list=class_list)
    found = list(_in_threads(pixels, masks, len(masks), progress, "Counting classes"))
    return np.array(found, dtype=np.int64).reshape(len(masks), len(class_list))


def class_weights(pixels: np.ndarray, rule: str) -> list[float]:
    """
    Weights that raise rare classes in the loss.

    Args:
        pixels: as `pixels_of_masks` returns them.
        rule: "median_frequency": `median(f) / f[c]`, with the share `f[c]` of a class in the images that show it
            (Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
            Convolutional Architecture", section 6.3.2); or "inverse_log": `1 / ln(1.02 + p[c])`, with its share `p[c]`
            of all labeled pixels (Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic
            Segmentation", section 5.2).

    Returns:
        One weight for each class. A class without pixels has weight 0 by the first rule.
    """
    of_class = pixels.sum(0)
    if rule == "inverse_log":
        return [float(weight) for weight in 1 / np.log(1.02 + of_class / max(of_class.sum(), 1))]
    in_images = ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0)
    frequency = of_class / np.maximum(in_images, 1)
    median = np.median(frequency[of_class > 0]) if of_class.any() else 0.0
    return [float(weight) for weight in np.divide(median, frequency, out=np.zeros(len(frequency)), where=of_class > 0)]


def _in_threads(
    function: Callable[[dict[str, Any]], Result],
    rows: Iterable[dict[str, Any]],
    total: int | None,
    progress: bool,
    description: str,
) -> Iterator[Result]:
    rows = iter(rows)
    bar = tqdm(total=total, desc=description, unit="image", disable=None if progress else True)
    # Decoders of images release Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            for result in pool.map(function, some):
                bar.update()
                yield result


def _read(row: dict[str, Any], class_list: ClassList) -> tuple[dict[str, Any], ExampleContent]:
    try:
        _, label_map = decode_example(row, class_list)
    except ValueError as error:
        return row, ExampleContent(row["name"], None, np.zeros(len(class_list), np.int64), problem=error)
    pixels = class_pixels(label_map, class_list)
    height, width = label_map.shape
    return row, ExampleContent(row["name"], (height, width), pixels, label_map.size - int(pixels.sum()))


def _pixels_of_mask(row: dict[str, Any], class_list: ClassList) -> np.ndarray:
    return class_pixels(decode_mask(row, class_list)[0], class_list)
