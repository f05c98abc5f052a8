# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The colors of classes, alone or over the image, and the area that each class covers."""

from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageColor
from torch import Tensor

from ..model.image_reading import image_to_tensor, label_map_to_tensor
from ..palette import default_palette


__all__ = [
    "as_array",
    "class_areas",
    "class_palette",
    "color_label_map",
    "label_map_to_image",
    "overlay",
    "percent",
    "read_image",
    "read_label_map",
    "shown_size",
]


def as_array(values) -> np.ndarray:
    """An array from an array, a PIL image, or a tensor on any device."""
    return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)


def read_image(image) -> np.ndarray:
    """The pixels of an image, or of the path or address of one: uint8 `(height, width, 3)`."""
    # Either side of an array with one row could be the channels.
    is_channels_last = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (1, 3, 4)
    pixels = image_to_tensor(image, input_data_format="channels_last" if is_channels_last else None)
    if pixels.is_floating_point():
        pixels = (pixels * (255 if pixels.max() <= 1 else 1)).round().clamp(0, 255).byte()
    return pixels.permute(1, 2, 0).numpy(force=True)


def read_label_map(label_map, size: tuple[int, int] | None = None, name: str = "label_map") -> np.ndarray:
    """A label map as int64 `(height, width)`. Its size must be `size`, if given."""
    labels = as_array(label_map)
    # Unlabeled pixels may have a negative number.
    ignore_index = int(np.nanmin(labels, initial=0)) or -1
    return label_map_to_tensor(labels, size or labels.shape, ignore_index, name).numpy()


def shown_size(size: tuple[int, int], max_size: int, min_size: int = 1) -> tuple[int, int]:
    """The size of an image in a picture: its own, scaled to a longer side from `min_size` to `max_size`."""
    scale = min(max(1, min_size // max(size)), max_size / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def class_palette(palette, id2label: Mapping[int, str] | None, *label_maps: np.ndarray) -> np.ndarray:
    """`palette` as RGB, or the default colors of all classes that have a name, or else of all that occur."""
    if palette is not None:
        colors = [PIL.ImageColor.getrgb(color) if isinstance(color, str) else color for color in palette]
        return np.asarray(colors, dtype=np.uint8)
    # Annotations may mark unlabeled pixels by any number, which needs no colors.
    return default_palette(len(id2label) if id2label else 1 + max(0, *(int(labels.max()) for labels in label_maps)))


def color_label_map(label_map, palette=None, unlabeled: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """
    The color of each label.

    Args:
        label_map: integers `(height, width)`, as PIL image, array or tensor.
        palette: a color of each class, `(num_labels, 3)` in 0..255 or "#rrggbb" as in `config.class_colors`;
            `default_palette` unless given.
        unlabeled: the color of labels that the palette does not have.

    Returns:
        uint8 `(height, width, 3)`, RGB.

    Raises:
        ValueError: for a label map with fractions.
    """
    labels = read_label_map(label_map)
    palette = class_palette(palette, None, labels)
    known = (labels >= 0) & (labels < len(palette))
    colors = np.concatenate([palette, np.array([unlabeled], dtype=np.uint8)])
    return colors[np.where(known, labels, len(palette))]


def label_map_to_image(label_map, num_labels: int, palette: np.ndarray | None = None) -> PIL.Image.Image:
    """
    A label map as an image to save as PNG, whose pixels hold the labels.

    Args:
        label_map: integers `(height, width)` below `num_labels`.
        num_labels: up to 256, the image has 8 bits, and above 16.
        palette: uint8 `(num_labels, 3)`. An image of 8 bits with a palette (mode "P" instead of "L") still holds the
            labels, and viewers show the colors.
    """
    labels = read_label_map(label_map)
    if num_labels > 256:
        return PIL.Image.fromarray(labels.astype(np.uint16))
    image = PIL.Image.fromarray(labels.astype(np.uint8))
    if palette is not None:
        # All 256, because PNG has fewer bits for fewer colors, and labels may be above these.
        colors = np.full((256, 3), 255, dtype=np.uint8)
        colors[: len(palette)] = palette[:256]
        image.putpalette(colors.tobytes())
    return image


def class_areas(label_map, id2label: Mapping[int, str] | None = None, ignore_index: int | None = None) -> list[dict]:
    """
    How much of an image each class covers.

    Args:
        label_map: integers `(height, width)`, as PIL image, array or tensor.
        id2label: names of the classes.
        ignore_index: label of unlabeled pixels, which do not count.

    Returns:
        For each class that occurs, the largest first: `id`, `label` (its name; "no class (255)" for numbers that
        `id2label` does not have), `pixels`, and `fraction` of the pixels that count.

    Raises:
        ValueError: for a label map with fractions.
    """
    ids, counts = np.unique(read_label_map(label_map), return_counts=True)
    areas = [(int(count), int(index)) for index, count in zip(ids, counts) if index != ignore_index]
    total = sum(count for count, _ in areas)
    names, unnamed = (id2label, "no class ({})") if id2label else ({}, "class {}")
    return [
        {
            "id": index,
            "label": str(names.get(index, unnamed.format(index))),
            "pixels": count,
            "fraction": count / total,
        }
        for count, index in sorted(areas, key=lambda area: (-area[0], area[1]))
    ]


def percent(share: float, decimals: int = 1) -> str:
    """A share in 0..1 as text, such as "12.3%". A share that would round to nothing is "< 0.1%"."""
    least = 10.0 ** -(decimals + 2)
    return f"< {least:.{decimals}%}" if 0 < share < least else f"{share:.{decimals}%}"


def overlay(image, label_map, palette=None, opacity: float = 0.6, outlines: bool = True) -> PIL.Image.Image:
    """
    The image in gray with the colors of its classes over it, pixel by pixel.

    Args:
        image: PIL image, array or tensor of `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`, or the path or address of an image file.
        label_map: integers `(height, width)`. Where a label has no color, the image keeps its own.
        palette: as in `color_label_map`.
        opacity: 0 shows only the gray image, 1 only the colors.
        outlines: whether to draw a white line of one pixel between the classes.

    Returns:
        An RGB image of the size of `image`.

    Raises:
        OSError: for an image that cannot be read.
        ValueError: when label map and image differ in size.
    """
    pixels = read_image(image)
    labels = read_label_map(label_map, pixels.shape[:2])
    palette = class_palette(palette, None, labels)
    gray = PIL.Image.fromarray(pixels).convert("L").convert("RGB")
    blended = np.array(PIL.Image.blend(gray, PIL.Image.fromarray(color_label_map(labels, palette)), opacity))
    unknown = (labels < 0) | (labels >= len(palette))
    blended[unknown] = pixels[unknown]
    if outlines:
        blended[:, :-1][labels[:, :-1] != labels[:, 1:]] = 255
        blended[:-1][labels[:-1] != labels[1:]] = 255
    return PIL.Image.fromarray(blended)
