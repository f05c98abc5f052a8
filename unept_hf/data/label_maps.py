# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a segmentation data set, decoded to an image and a label map by the rules of a class list."""

import io
import math
import os
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps

from ..model.image_reading import image_to_tensor
from .class_lists import ClassList


__all__ = ["ExampleError", "decode_example", "decode_label_map", "decode_mask", "doubt_about_masks"]

_NO_CLASS = np.iinfo(np.int64).min
_JPEG = ("JPEG", "MPO")
# Pillow's names of formats that change the values of pixels, some of them only by default.
_LOSSY = (*_JPEG, "AVIF", "JPEG2000", "WEBP")


class ExampleError(ValueError):
    """An example that cannot be used. `kind` says why in a few words, the same for all examples with that fault."""

    def __init__(self, message: str, kind: str = "not usable"):
        super().__init__(message)
        self.kind = kind


def decode_label_map(mask: "PIL.Image.Image | np.ndarray", class_list: ClassList, name: str = "") -> np.ndarray:
    """
    Class ids from the pixels of an annotation.

    The class list says how they are stored: by a `label_id_to_train_id` table (Cityscapes), from 1 on with 0 for
    unlabeled (`reduce_labels`; ADE20K), or unchanged; and what the colors of a color mask mean (`mask_colors`).

    Args:
        mask: A PIL image with one channel (palettes are left as indices), or an array `(height, width)` of whole
            numbers. LA, RGB or RGBA, without transparency, is a color mask if all its colors are in the class list,
            and else gray, if all its pixels are.
        class_list: The classes and their rule.
        name: What messages call the mask, such as its file.

    Returns:
        `(height, width)` of 0..n-1 and `class_list.ignore_index`: uint8 if that holds them, else int32.

    Raises:
        ExampleError: a `ValueError`, for values and colors that stand for no class, numbers with fractions,
            transparent pixels, and a mask of another shape or mode. The message names the mask, what was found (of
            colors the first pixel too, and the nearest color of the class list) and the remedy.
    """
    where = f"mask '{name}'" if name else "mask"
    file_format = getattr(mask, "format", None)
    cause = ""
    if file_format in _LOSSY:
        cause = f" It is a {file_format} file, a format that can change the values of pixels: export the masks as PNG."
    pixels = _pixels(mask, class_list, where)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating) and np.array_equal(pixels, np.round(pixels)):
        pixels = pixels.astype(np.int64)
    fits_in_bytes = len(class_list) <= 256 and 0 <= class_list.ignore_index <= 255
    dtype = np.dtype(np.uint8 if fits_in_bytes else np.int32)
    problem, kind = None, "values outside of the class list"
    if pixels.ndim == 3:
        kind = "colors outside of the class list"
        classes = _classes_of_colors(pixels, class_list)
        if (classes == _NO_CLASS).any():
            problem = _explain_colors(pixels, classes == _NO_CLASS, class_list)
    elif not np.issubdtype(pixels.dtype, np.integer):
        problem = f"holds {pixels.dtype} values that are not whole numbers: class ids must be whole numbers."
    else:
        # Looking up all bytes in a table is much cheaper than finding out which of them occur.
        is_bytes = pixels.dtype == np.uint8
        values = np.arange(256) if is_bytes else np.unique(pixels).astype(np.int64)
        positions = pixels if is_bytes else np.searchsorted(values, pixels)
        classes_of_values = _classes_of(values, class_list)
        has_no_class = classes_of_values == _NO_CLASS
        if has_no_class[positions].any():
            bad = [int(value) for value in values[has_no_class] if (pixels == value).any()]
            problem = _explain_values(bad, class_list)
            if _classes_of_palette(mask, class_list) is not None:
                cause += " It has a palette of colors of the class list: if the colors are right, save it as RGB."
        classes = classes_of_values.astype(dtype)[positions]
    if problem is not None:
        raise ExampleError(f"{where} {problem}{cause}", kind)
    return classes.astype(dtype, copy=False)


def decode_example(example: dict[str, Any], class_list: ClassList) -> tuple[PIL.Image.Image, np.ndarray]:
    """
    Image and label map of one row of a data set.

    Args:
        example: Has `image` and `label`: PIL images, or what `datasets` stores, `{"path", "bytes"}`; and optionally
            `name`, which messages then use.
        class_list: The classes and their rule. See `decode_label_map`.

    Returns:
        The image (PIL, mode "RGB", EXIF orientation applied, 16 bit scaled to 8, transparency laid over white), and
        its label map as `decode_label_map` returns it.

    Raises:
        ExampleError: a `ValueError`, for files that cannot be read, images of floating point pixels, masks as in
            `decode_label_map`, and an image and a mask of different sizes. The message names the file.
    """
    name = example.get("name") or ""
    image, image_name = _open(example["image"], "image", name)
    if image.mode != "RGB" or image.has_transparency_data:
        pixels = image_to_tensor(image, name=f"image '{image_name}'")
        if pixels.is_floating_point():
            raise ExampleError(
                f"image '{image_name}' has floating point pixels (mode '{image.mode}') in an unknown range: save it "
                "with 8 or 16 bit integers.",
                "image with floating point pixels",
            )
        image = PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    label_map, mask_name = decode_mask(example, class_list)
    if label_map.shape != (image.height, image.width):
        turned = label_map.shape == (image.width, image.height)
        raise ExampleError(
            f"mask '{mask_name}' has size {label_map.shape} (height, width) but image '{image_name}' has "
            f"{(image.height, image.width)}: each pixel of the image needs one label. "
            + (
                "One of them may have an EXIF orientation that the other lacks: turn and save it again."
                if turned
                else "Resize the mask (nearest) to its image, or pair it with the right one."
            ),
            "mask of another size than its image",
        )
    return image, label_map


def decode_mask(example: dict[str, Any], class_list: ClassList) -> tuple[np.ndarray, str]:
    """
    The label map of one row of a data set, without its image, and what messages call the mask.

    Args:
        example: As for `decode_example`; only its `label` and `name` are read.
        class_list: The classes and their rule.

    Raises:
        ExampleError: as `decode_example`.
    """
    mask, name = _open(example["label"], "mask", example.get("name") or "")
    return decode_label_map(mask, class_list, name), name


def doubt_about_masks(examples: Iterable[dict[str, Any]], class_list: ClassList) -> str | None:
    """
    What is odd about the masks of all these examples: they are JPEG files, they have palettes with the colors of other
    classes, they are black and white and the class list ignores the white, or the class list ignores all of their
    pixels.

    Reads no more masks than needed: of good masks one.

    Args:
        examples: Rows as for `decode_example`; only their `label` and `name` are read.
        class_list: The classes and their rule.

    Returns:
        A sentence that names a mask and the remedy, or `None` where nothing is odd, or where a mask cannot be read.
    """
    first, count = "", 0
    is_black_and_white, has_white, is_ignored = True, False, True
    for example in examples:
        try:
            mask, name = _open(example["label"], "mask", example.get("name") or "")
            label_map = decode_label_map(mask, class_list, name)
        except ValueError:
            return None
        if getattr(mask, "format", None) in _JPEG:
            return (
                f"The masks that were read ({count + 1}, such as '{name}') are JPEG files, a format that changes "
                "the values of pixels, so some may stand for a wrong class. Export the masks as PNG."
            )
        of_palette = _classes_of_palette(mask, class_list)
        if of_palette is not None and (of_palette != label_map).any():
            return (
                f"The masks that were read ({count + 1}, such as '{name}') have a palette, whose numbers count and "
                f"whose colors do not, but by the colors of class list '{class_list.name}' they would show other "
                "classes. If the colors are right, save the masks as RGB."
            )
        pixels = _pixels(mask, class_list, name)
        is_white = pixels == 255
        has_white = has_white or bool(is_white.any())
        is_black_and_white = is_black_and_white and pixels.ndim == 2 and bool((is_white | (pixels == 0)).all())
        is_ignored = is_ignored and bool((label_map == class_list.ignore_index).all())
        if not (is_black_and_white or is_ignored):
            return None
        first, count = first or name, count + 1

    # Masks of 0 alone may show a single class. White that stands for no class is an error where it is read.
    is_white_ignored = has_white and _classes_of(np.array([255]), class_list)[0] == class_list.ignore_index
    if is_black_and_white and is_white_ignored and len(class_list) > 1:
        return (
            f"The masks that were read ({count}, such as '{first}') hold only 0 and 255, but class list "
            f"'{class_list.name}' has {len(class_list)} classes, and 255 is ignored there. If it marks a class, say "
            f'which in the file of the class list, beside "classes", such as {_table_with(255)}, or store the id of '
            "the class instead."
        )
    if is_ignored and count:
        return (
            f"The masks that were read ({count}, such as '{first}') hold only pixels that class list "
            f"'{class_list.name}' ignores. Check that these are the right masks, and ignore_index, reduce_labels and "
            "label_id_to_train_id in the class list."
        )
    return None


def _pixels(mask: "PIL.Image.Image | np.ndarray", class_list: ClassList, where: str) -> np.ndarray:
    """The pixels of a mask, without an alpha channel: `(height, width)`, or `(height, width, 3)` of colors."""
    pixels = np.asarray(mask)
    found, is_known = f"shape {pixels.shape}", True
    if isinstance(mask, PIL.Image.Image):
        found, is_known = f"mode {mask.mode}", len(mask.getbands()) == 1 or mask.mode in ("LA", "RGB", "RGBA")
    problem = ""
    if is_known and pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if transparent := np.count_nonzero(pixels[..., -1] != 255):
            problem = f"{transparent} transparent pixels, whose class is not clear. Save it without an alpha channel."
        pixels = pixels[..., :-1]
    if (
        pixels.ndim == 3
        and pixels.shape[2] in (1, 3)
        and all(np.array_equal(pixels[..., 0], pixels[..., channel]) for channel in range(1, pixels.shape[2]))
    ):
        # Gray may be a color of the class list, such as black for unlabeled pixels.
        is_color = pixels.shape[2] == 3 and (_classes_of_colors(pixels, class_list) != _NO_CLASS).all()
        pixels = pixels if is_color else pixels[..., 0]
    if not is_known or pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        problem = f"{found}: it needs one channel of class ids, (height, width)."
    if problem:
        raise ExampleError(f"{where} has {problem}", "mask without one channel of class ids")
    return pixels


def _open(value: Any, kind: str, name: str) -> tuple["PIL.Image.Image", str]:
    """The decoded image, and its name for messages: its file where there is one, else the name of its row."""
    if isinstance(value, PIL.Image.Image):
        image = PIL.ImageOps.exif_transpose(value)
        image.format = value.format
        return image, getattr(value, "filename", None) or name
    source = value if isinstance(value, dict) else {}
    path, content = source.get("path"), source.get("bytes")
    # The path beside bytes is the path of the file on the machine where the data set was made.
    called = (path or name) if content is None or not name else name
    try:
        # Also reads remote files, and applies the EXIF orientation.
        image = datasets.Image().decode_example({"path": path, "bytes": content})
    except Exception as error:  # Pillow's decoders raise almost anything for broken files
        raise ExampleError(
            f"Cannot read {kind} '{called}' ({type(error).__name__}: {error}): it must be a complete image file, "
            "such as JPEG or PNG. Restore or remove it, or use skip_unreadable to leave such examples out.",
            f"{kind} that cannot be read",
        ) from error
    if kind == "mask" and image.mode in ("LA", "RGB", "RGBA") and _has_16_bits(source):
        raise ExampleError(
            f"mask '{called}' has 16 bits in each of several channels, of which Pillow reads the upper 8: save it "
            "with one channel of class ids.",
            "mask without one channel of class ids",
        )
    return image, called


def _has_16_bits(value: dict[str, Any]) -> bool:
    """Whether an image that is read with 8 bits a channel has 16 in its file, if it is at hand."""
    source = value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])
    if isinstance(source, str) and not os.path.isfile(source):
        return False
    with PIL.Image.open(source) as image:
        return ";16" in str(image.tile)


def _classes_of_colors(pixels: np.ndarray, class_list: ClassList) -> np.ndarray:
    """Class id, `ignore_index` or `_NO_CLASS` of each color, int64 `(height, width)`."""
    if pixels.dtype != np.uint8 or not class_list.mask_colors:
        return np.full(pixels.shape[:2], _NO_CLASS)
    colors = np.array(sorted(class_list.mask_colors.items(), key=lambda item: item[0]), dtype=object)
    known = _as_numbers(np.array([*colors[:, 0]], dtype=np.uint8))
    numbers = _as_numbers(pixels)
    positions = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where(known[positions] == numbers, colors[:, 1].astype(np.int64)[positions], _NO_CLASS)


def _classes_of_palette(mask: "PIL.Image.Image | np.ndarray", class_list: ClassList) -> np.ndarray | None:
    """What the colors of a mask with a palette mean, if all of them are colors of the class list."""
    if not isinstance(mask, PIL.Image.Image) or mask.mode != "P" or not class_list.mask_colors:
        return None
    classes = _classes_of_colors(np.asarray(mask.convert("RGB")), class_list)
    return None if (classes == _NO_CLASS).any() else classes


def _as_numbers(colors: np.ndarray) -> np.ndarray:
    """One number for each RGB color, in the order of the colors."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _classes_of(values: np.ndarray, class_list: ClassList) -> np.ndarray:
    """Class id, `ignore_index` or `_NO_CLASS` of each raw value (both int64)."""
    count, ignore_index = len(class_list), class_list.ignore_index
    table = class_list.extras.get("label_id_to_train_id")
    if table is not None:
        train_ids = {int(label_id): int(train_id) for label_id, train_id in table.items()}
        is_class = {label_id: 0 <= train_id < count for label_id, train_id in train_ids.items()}
        return np.array(
            [
                (train_ids[value] if is_class[value] else ignore_index) if value in train_ids else _NO_CLASS
                for value in values.tolist()
            ]
        )
    first = 1 if class_list.reduce_labels else 0
    classes = np.where((values >= first) & (values < first + count), values - first, _NO_CLASS)
    classes[values == ignore_index] = ignore_index
    if class_list.reduce_labels:
        classes[values == 0] = ignore_index
    return classes


def _table_with(value: int) -> str:
    return f'"label_id_to_train_id": {{"0": 0, "{value}": 1}}'


def _explain_colors(pixels: np.ndarray, is_unknown: np.ndarray, class_list: ClassList) -> str:
    if not class_list.mask_colors:
        return (
            f"has colors, but class list '{class_list.name}' does not say what they mean: give each class there its "
            '"color", or store class ids in one channel.'
        )
    if pixels.dtype != np.uint8:
        return f"has {pixels.dtype} colors: they must be uint8, 0..255."
    row, column = (int(place) for place in np.argwhere(is_unknown)[0])
    color = pixels[row, column].tolist()
    more = np.count_nonzero(is_unknown) - 1
    nearest = min(class_list.mask_colors, key=lambda known: math.dist(known, color))
    owner = class_list.id2label.get(class_list.mask_colors[nearest])
    return (
        f"has the color {_color_name(color)} at row {row}, column {column}"
        + (f" (and {more} more such pixels)" if more else "")
        + f", which class list '{class_list.name}' gives to no class, or to several. The nearest color that it knows "
        f"is {_color_name(nearest)}, "
        + (f"of class '{owner}'" if owner is not None else "of pixels to ignore")
        + '. Correct the mask, or say in the file of the class list, beside "classes", what the color means: '
        f'"mask_colors": [{{"color": {color}, "id": 0}}], with null for pixels to ignore.'
    )


def _color_name(color: Iterable[int]) -> str:
    return "#{:02x}{:02x}{:02x} ({}, {}, {})".format(*color, *color)


def _explain_values(bad: list[int], class_list: ClassList) -> str:
    found = ", ".join(map(str, bad[:10])) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
    count, name, ignore_index = len(class_list), class_list.name, class_list.ignore_index
    table = class_list.extras.get("label_id_to_train_id")
    if table is not None:
        runs: list[list[int]] = []
        for label_id in sorted(map(int, table)):
            if runs and runs[-1][1] == label_id - 1:
                runs[-1][1] = label_id
            else:
                runs.append([label_id, label_id])
        allowed = "the label ids " + ", ".join(f"{low}..{high}" if low < high else f"{low}" for low, high in runs)
        remedy = (
            f"Correct the mask, or add the values to label_id_to_train_id, with {ignore_index} for pixels to ignore. "
            "If the masks hold train ids (0.. and 255) already, use a class list file without label_id_to_train_id"
        )
    else:
        remedy = (
            'Correct the mask, add the missing classes to the class list, or set in its file, beside "classes", '
            f'"ignore_index": {bad[-1]} if that marks pixels to ignore, or a table such as {_table_with(bad[-1])} if '
            "it stands for another class"
        )
        if class_list.reduce_labels:
            allowed = f"0 (unlabeled), 1..{count} and {ignore_index} (ignored)"
            remedy += ". reduce_labels there says that classes are stored from 1 on"
        else:
            allowed = f"0..{count - 1} and {ignore_index} (ignored)"
            remedy += ', or "reduce_labels": true if the masks store classes from 1 on'
    return f"holds the value(s) {found}, but class list '{name}' allows {allowed}. {remedy}."
