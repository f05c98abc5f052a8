# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pictures of what a model sees: classes over the image, errors, boundaries, refinement, and where attention looks.

All functions take images and label maps as PIL images, arrays or tensors. Figures are matplotlib's, made without
pyplot: `figure.savefig(...)` writes them, notebooks show them, and [`figure_to_image`] makes PIL images of them.
"""

import io
import math
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import edt
import numpy as np
import PIL.Image
import torch
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle, Wedge
from torch import Tensor, nn
from torch.nn import functional as F

from ..inference.segment import evaluation_mode
from ..model.boundary import DIRECTIONS
from ..model.image_preprocessing import resize_label_map
from ..model.image_reading import image_to_tensor, label_map_to_tensor
from ..palette import OKABE_ITO, default_palette


# One for each direction. Around the circle, yellow goes over light colours to blue and back over dark ones, which does
# without the difference of red and green.
DIRECTION_COLORS = (
    (178, 141, 0), (155, 209, 119), (90, 237, 212), (71, 207, 255),
    (114, 140, 229), (132, 78, 157), (142, 50, 85), (164, 75, 23),
)  # fmt: skip

UNLABELLED_COLOR = (255, 255, 255)
LEVEL_MARKERS = "o^sDvP*X"


class NotebookFigure(Figure):
    """A figure that notebooks show without pyplot and without any set-up."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def figure_to_image(figure: Figure, dpi: float | None = None) -> PIL.Image.Image:
    """The RGB image of a figure; `dpi` are the dots per inch, those of the figure unless given."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi)
    return PIL.Image.open(buffer).convert("RGB")


def _read_image(image) -> np.ndarray:
    """uint8 `(height, width, 3)` of an image, or of the path of one."""
    if isinstance(image, (str, os.PathLike)):
        image = PIL.Image.open(os.path.expanduser(image))
    # Of an array of one row, either side could be the channels.
    is_channels_last = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (1, 3, 4)
    pixels = image_to_tensor(image, input_data_format="channels_last" if is_channels_last else None)
    if pixels.is_floating_point():
        pixels = (pixels * (255 if pixels.max() <= 1 else 1)).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).numpy(force=True)


def _array(values) -> np.ndarray:
    """An array of an array, a PIL image, or a tensor on any device."""
    return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)


def _whole_numbers(label_map) -> np.ndarray:
    """int64 of a label map of any size."""
    array = _array(label_map)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool or (array == np.round(array)).all()):
        raise ValueError(f"label_map has to hold whole numbers, got {array.dtype} with fractions or NaN.")
    return array.astype(np.int64)


def _read_label_map(label_map, size: tuple[int, int], name: str = "label_map") -> np.ndarray:
    """int64 `(height, width)` of a label map that has to be of `size`."""
    label_map = _array(label_map)
    # Unlabelled pixels may be marked by a negative number too.
    ignore_index = min(int(label_map.min(initial=0)), -1)
    return label_map_to_tensor(label_map, size, ignore_index, name).numpy()


def _palette(palette, id2label: Mapping[int, str] | None, *label_maps: np.ndarray) -> np.ndarray:
    """The colours given, or ours for all classes that are named or occur."""
    if palette is None:
        # Annotations may mark pixels without a class by any number, which asks for no colours.
        found = len(id2label) if id2label else 1 + max(0, *(int(label_map.max()) for label_map in label_maps))
        return default_palette(found)
    palette = np.asarray(palette)
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.min() < 0 or palette.max() > 255:
        raise ValueError(f"palette has to be (num_labels, 3) with numbers in 0..255, got {palette.shape}.")
    return palette.astype(np.uint8)


def color_label_map(label_map, palette=None, unlabelled: tuple[int, int, int] = UNLABELLED_COLOR) -> np.ndarray:
    """
    The colour of each label.

    Args:
        label_map: integers `(height, width)`, as PIL image, array or tensor.
        palette: `(num_labels, 3)`, 0..255; [`default_palette`] unless given.
        unlabelled: the colour of labels that have none in the palette; white unless given.

    Returns:
        uint8 `(height, width, 3)`, RGB.

    Raises:
        ValueError: for a palette out of range, or a label map with fractions.
    """
    # Bytes would not hold the number that stands for no colour.
    label_map = _whole_numbers(label_map)
    palette = _palette(palette, None, label_map)
    known = (label_map >= 0) & (label_map < len(palette))
    colors = np.concatenate([palette, np.array([unlabelled], dtype=np.uint8)])
    return colors[np.where(known, label_map, len(palette))]


def _shown_size(size: tuple[int, int], max_size: int, min_size: int = 1) -> tuple[int, int]:
    """(height, width) that a figure shows of an image: its own, with a longer side from `min_size` to `max_size`."""
    scale = min(max(1, min_size // max(size)), max_size / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, smoothly, or a label map, by taking pixels of it, of another size (height, width)."""
    if array.ndim == 2:
        return resize_label_map(torch.from_numpy(array), size).numpy()
    if array.shape[:2] == size:
        return array
    return np.asarray(PIL.Image.fromarray(array).resize(size[::-1], PIL.Image.Resampling.BOX))


def _faded(pixels: np.ndarray) -> np.ndarray:
    """The image in light gray, so that colours over it stand out."""
    gray = np.asarray(PIL.Image.fromarray(pixels).convert("L"))
    return np.repeat((110 + gray * 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _show(axis, pixels: np.ndarray, title: str = "") -> None:
    axis.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 400 else "antialiased")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def _panels(size: tuple[int, int], columns: int, rows: int = 1, extra: float = 0) -> tuple[NotebookFigure, np.ndarray]:
    """A figure of equal panels for images of `size` and `extra` inches below, and its axes `(rows, columns)`."""
    height, width = size
    panel_width = min(4.2, 13 / columns)
    panel_height = panel_width * min(2.5, max(0.3, height / width)) + 0.3
    figure_size = (panel_width * columns, panel_height * rows + extra)
    figure = NotebookFigure(figsize=figure_size, dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def class_areas(label_map, id2label: Mapping[int, str] | None = None, ignore_index: int | None = None) -> list[dict]:
    """
    How much of an image each class covers.

    Args:
        label_map: integers `(height, width)`.
        id2label: names of the classes.
        ignore_index: label of pixels that have no class, and do not count.

    Returns:
        For each class that occurs, the largest first: `id`, `label` (its name; "no class (255)" for numbers that
        `id2label` does not have), `pixels`, and `fraction` of the pixels that count.

    Raises:
        ValueError: for a label map with fractions.
    """
    ids, counts = np.unique(_whole_numbers(label_map), return_counts=True)
    areas = [(int(count), int(index)) for index, count in zip(ids, counts) if index != ignore_index]
    total = sum(count for count, _ in areas)
    names, unnamed = (id2label, "no class ({})") if id2label else ({}, "class {}")
    return [
        {"id": index, "label": names.get(index, unnamed.format(index)), "pixels": count, "fraction": count / total}
        for count, index in sorted(areas, key=lambda area: (-area[0], area[1]))
    ]


def overlay(image, label_map, palette=None, opacity: float = 0.6, outlines: bool = True) -> PIL.Image.Image:
    """
    The image in gray with the colours of its classes over it, pixel by pixel.

    Args:
        image: PIL image, array or tensor of `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`, or a path.
        label_map: integers `(height, width)`. Where a label has no colour, the image keeps its own.
        palette: `(num_labels, 3)`, 0..255; [`default_palette`] unless given.
        opacity: 0 shows the gray image alone, 1 the colours.
        outlines: whether to draw a white line of one pixel between the classes.

    Returns:
        An RGB image of the size of `image`.

    Raises:
        ValueError: when label map and image differ in size, or for an opacity or a palette out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity has to lie within 0 and 1, got {opacity}.")
    pixels = _read_image(image)
    labels = _read_label_map(label_map, pixels.shape[:2])
    palette = _palette(palette, None, labels)
    gray = PIL.Image.fromarray(pixels).convert("L").convert("RGB")
    blended = np.array(PIL.Image.blend(gray, PIL.Image.fromarray(color_label_map(labels, palette)), opacity))
    unknown = (labels < 0) | (labels >= len(palette))
    blended[unknown] = pixels[unknown]
    if outlines:
        blended[:, :-1][labels[:, :-1] != labels[:, 1:]] = 255
        blended[:-1][labels[:-1] != labels[1:]] = 255
    return PIL.Image.fromarray(blended)


def _shortened(name: str) -> str:
    # ADE20K names a class by all its synonyms.
    name = name.split(",")[0].split(";")[0].strip() or name
    return name if len(name) <= 24 else name[:23] + "…"


def _legend(figure, areas: list[dict], palette: np.ndarray, most: int, **kwargs) -> None:
    """The classes of `areas`, with their share where there is one, and what the others have together."""
    handles = []
    for area in areas[:most]:
        known = 0 <= area["id"] < len(palette)
        color = np.array(palette[area["id"]] if known else UNLABELLED_COLOR) / 255
        label = f"{_shortened(area['label'])}  {area['fraction']:.1%}"
        hatch = None if known else "////"
        handles.append(Patch(facecolor=color, edgecolor="0.4", linewidth=0.5, hatch=hatch, label=label))
    if len(areas) > most:
        rest = sum(area["fraction"] for area in areas[most:])
        label = f"{len(areas) - most} more  {rest:.1%}"
        handles.append(Patch(facecolor="none", edgecolor="none", label=label))
    figure.legend(handles=handles, frameon=False, fontsize=9, **kwargs)


def _name_regions(axis, labels: np.ndarray, areas: list[dict], points_per_pixel: float) -> None:
    """Writes the names of classes into the middle of their widest regions, where they fit."""
    # Distance to the nearest other class, for all classes at once; 0 is edt's background.
    distance = edt.edt((labels - labels.min() + 1).astype(np.uint32), black_border=True, parallel=1)
    for area in areas:
        depth = np.where(labels == area["id"], distance, 0)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        name = _shortened(area["label"])
        room = depth[row, column] * points_per_pixel
        if room > 7 and room > 1.3 * len(name):
            text = axis.text(column, row, name, fontsize=8, ha="center", va="center", color="black")
            text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])


def draw_overlay(
    image,
    label_map,
    id2label: Mapping[int, str] | None = None,
    palette=None,
    opacity: float = 0.6,
    title: str = "",
    name_regions: bool = True,
    max_size: int = 1024,
) -> NotebookFigure:
    """
    The image with its classes over it, and a legend of the classes that occur and the area that each covers.

    Args:
        image, label_map, palette, opacity: see [`overlay`].
        id2label: names of the classes.
        title: what to write above.
        name_regions: whether to write the names into the regions too, where they fit.
        max_size: pixels of the longer side that are shown. The areas are those of the whole label map.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: see [`overlay`].
    """
    pixels = _read_image(image)
    labels = _read_label_map(label_map, pixels.shape[:2])
    palette = _palette(palette, id2label, labels)
    areas = class_areas(labels, id2label)
    # Small images are enlarged, so that the lines between classes stay thin.
    size = _shown_size(labels.shape, max_size, min_size=512)
    pixels, labels = _resized(pixels, size), _resized(labels, size)

    height, width = size
    scale = min(7.5 / width, 6.5 / height)  # inches for each pixel
    rows = max(12, int(height * scale * 72 / 14.5))
    columns = 1 if len(areas) <= rows else 2
    figure_size = (max(width * scale, 2) + 2.3 * columns + 0.2, max(height * scale, rows * 14.5 / 72) + 0.3)
    figure = NotebookFigure(figsize=figure_size, dpi=120, layout="constrained")
    axis = figure.subplots()
    _show(axis, np.asarray(overlay(pixels, labels, palette, opacity)), title)
    if name_regions:
        _name_regions(axis, labels, areas, scale * 72)
    _legend(figure, areas, palette, rows * columns - 1, loc="outside right upper", ncols=columns)
    return figure


def draw_comparison(
    image,
    reference,
    label_map,
    id2label: Mapping[int, str] | None = None,
    palette=None,
    ignore_index: int = 255,
    max_size: int = 1024,
) -> NotebookFigure:
    """
    Image, ground truth, prediction, and a map of the errors, side by side.

    Args:
        image, label_map, palette: see [`overlay`].
        reference: the true labels, integers `(height, width)`.
        id2label: names of the classes.
        ignore_index: label of pixels of the reference that do not count; white in it and in the error map.
        max_size: pixels of the longer side that are shown. The shares are those of the whole label map.

    Returns:
        A matplotlib figure. Its legend has the classes that occur, by their area in the reference.

    Raises:
        ValueError: see [`overlay`].
    """
    pixels = _read_image(image)
    labels = _read_label_map(label_map, pixels.shape[:2])
    truth = _read_label_map(reference, labels.shape, "reference")
    counted = truth != ignore_index
    wrong = counted & (labels != truth)
    total = int(counted.sum())
    palette = _palette(palette, id2label, labels, np.where(counted, truth, 0))
    areas = class_areas(truth, id2label, ignore_index)
    known = {area["id"] for area in areas}
    areas += [area | {"fraction": 0.0} for area in class_areas(labels, id2label) if area["id"] not in known]

    size = _shown_size(labels.shape, max_size)
    small = _resized(pixels, size)
    errors = _faded(small)
    errors[~_resized(counted, size)] = 255
    errors[_resized(wrong, size)] = OKABE_ITO[4]
    most, columns = 24, 6
    figure, axes = _panels(size, 4, extra=0.25 * math.ceil(min(len(areas), most) / columns) + 0.1)
    _show(axes[0, 0], small, "image")
    _show(axes[0, 1], color_label_map(_resized(np.where(counted, truth, -1), size), palette), "ground truth")
    _show(axes[0, 2], color_label_map(_resized(labels, size), palette), "prediction")
    share = wrong.sum() / max(total, 1)
    _show(axes[0, 3], errors, f"wrong: {share:.1%} of {total:,} labelled pixels")
    _legend(figure, areas, palette, most, loc="outside lower center", ncols=min(columns, max(len(areas), 1)))
    return figure


def _draw_wheel(axis) -> None:
    for (row, column), color in zip(DIRECTIONS, DIRECTION_COLORS):
        angle = math.degrees(math.atan2(-row, column))
        axis.add_patch(
            Wedge((0, 0), 1, angle - 22.5, angle + 22.5, facecolor=np.array(color) / 255, edgecolor="white")
        )
        length = math.hypot(row, column)
        tip = (0.85 * column / length, -0.85 * row / length)
        axis.annotate("", tip, (0.3 * tip[0], 0.3 * tip[1]), arrowprops={"arrowstyle": "->", "color": "black"})
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axis.set_axis_off()


def draw_boundaries(
    image, boundary_probability, direction_map, threshold: float = 0.5, max_size: int = 1024
) -> NotebookFigure:
    """
    Where a model sees boundaries, and which way it finds leads away from them.

    Args:
        image: see [`overlay`].
        boundary_probability: `(height, width)`, in 0..1, as [`unept_hf.inference.segment.segment`] returns it.
        direction_map: `(height, width)`, 0..7, likewise. Other values, as in targets, mean that there is none.
        threshold: probability above which a pixel is at a boundary and its direction is shown.
        max_size: pixels of the longer side that are shown.

    Returns:
        A matplotlib figure: image, probability, and the direction as a colour, which the wheel explains.

    Raises:
        ValueError: when image and maps differ in size.
    """
    pixels = _read_image(image)
    direction = _read_label_map(direction_map, pixels.shape[:2], "direction_map")
    probability = _array(boundary_probability).astype(np.float32)
    if probability.shape != direction.shape:
        raise ValueError(f"boundary_probability is {probability.shape} but the image {direction.shape} pixels.")
    size = _shown_size(direction.shape, max_size)
    small, direction, probability = (_resized(array, size) for array in (pixels, direction, probability))
    is_boundary = (probability > threshold) & (direction >= 0) & (direction < len(DIRECTIONS))
    colors = _faded(small)
    colors[is_boundary] = np.array(DIRECTION_COLORS, dtype=np.uint8)[direction[is_boundary]]

    height, width = size
    panel = 4.2 * min(2.5, max(0.3, height / width))
    figure = NotebookFigure(figsize=(14.4, max(panel, 1.6) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[4.2, 4.2, 0.12, 4.2, 1.2])
    _show(axes[0], small, "image")
    heat = axes[1].imshow(probability, cmap="cividis", vmin=0, vmax=1)
    axes[1].set_title("probability of a boundary", fontsize=10)
    axes[1].set_axis_off()
    figure.colorbar(heat, cax=axes[2]).ax.axhline(threshold, color="white")
    _show(axes[3], colors, f"direction, where above {threshold:g}")
    _draw_wheel(axes[4])
    axes[4].set_title("away from\nthe boundary", fontsize=9)
    return figure


def _busiest_window(mask: np.ndarray) -> tuple[slice, slice]:
    """The window of a quarter of each side, but of at least 32 pixels, that has most of the mask."""
    sides = tuple(min(side, max(32, side // 4)) for side in mask.shape)
    density = F.avg_pool2d(torch.from_numpy(mask).float()[None], sides, stride=1)[0]
    top, left = np.unravel_index(int(density.argmax()), tuple(density.shape))
    return slice(int(top), int(top) + sides[0]), slice(int(left), int(left) + sides[1])


def draw_refinement(
    image,
    label_map,
    refined_label_map,
    id2label: Mapping[int, str] | None = None,
    palette=None,
    reference=None,
    ignore_index: int = 255,
    max_size: int = 1024,
) -> NotebookFigure:
    """
    Label maps without and with boundary refinement, what it changed, and the part with most changes, enlarged.

    Args:
        image, label_map, palette: see [`overlay`].
        refined_label_map: integers `(height, width)`, with refinement.
        id2label: names of the classes.
        reference: the true labels `(height, width)`, which tell changes for the better from those for the worse.
        ignore_index: label of pixels of the reference that do not count.
        max_size: pixels of the longer side that are shown. The shares are those of the whole label map.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: see [`overlay`].
    """
    pixels = _read_image(image)
    before = _read_label_map(label_map, pixels.shape[:2])
    after = _read_label_map(refined_label_map, before.shape, "refined_label_map")
    changed = before != after
    palette = _palette(palette, id2label, before, after)
    kinds = {"changed": (changed, OKABE_ITO[4])}
    if reference is not None:
        truth = _read_label_map(reference, before.shape, "reference")
        counted = changed & (truth != ignore_index)
        better, worse = counted & (after == truth), counted & (before == truth)
        kinds = {
            "now right": (better, OKABE_ITO[6]),
            "now wrong": (worse, OKABE_ITO[4]),
            "other change": (changed & ~better & ~worse, OKABE_ITO[5]),
        }

    size = _shown_size(before.shape, max_size)
    figure, axes = _panels(size, 4, rows=2, extra=0.3)
    window = _busiest_window(changed)
    for row, crop in zip(axes, ((slice(None), slice(None)), window)):
        part = _shown_size(changed[crop].shape, max_size)
        small = _resized(np.ascontiguousarray(pixels[crop]), part)
        marked = _faded(small)
        for mask, color in kinds.values():
            marked[_resized(mask[crop], part)] = color
        _show(row[0], small, "image")
        _show(row[1], color_label_map(_resized(before[crop], part), palette), "without refinement")
        _show(row[2], color_label_map(_resized(after[crop], part), palette), "with refinement")
        _show(row[3], marked, f"changed: {changed[crop].mean():.2%} of the pixels")
    scale = size[0] / changed.shape[0]
    top, left = window[0].start * scale, window[1].start * scale
    sides = [(side.stop - side.start) * scale for side in window]
    for axis in axes[0]:
        axis.add_patch(Rectangle((left, top), sides[1], sides[0], fill=False, edgecolor="black", linewidth=1.5))
        axis.add_patch(Rectangle((left, top), sides[1], sides[0], fill=False, edgecolor="white", linewidth=0.7))
    handles = [
        Patch(facecolor=np.array(color) / 255, label=f"{name}  {mask.mean():.2%}")
        for name, (mask, color) in kinds.items()
    ]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower right", ncols=len(handles))
    return figure


@dataclass
class SamplingPoints:
    """
    Where one query of a deformable attention looks, in pixels of the image: (0, 0) is the centre of its first pixel.

    Args:
        locations (`np.ndarray` of shape `(heads, levels, points, 2)`): (x, y) of each sample.
        weights (`np.ndarray` of shape `(heads, levels, points)`): how much each counts; 1 in sum for each head.
        query (`tuple[float, float]`): (x, y) of the centre of the query's cell.
        layer (`str`): name of the layer.
        strides (`tuple[float, ...]`): for each level, pixels of the image for one cell.
    """

    locations: np.ndarray
    weights: np.ndarray
    query: tuple[float, float]
    layer: str
    strides: tuple[float, ...]


def _deformable_layers(config) -> list[tuple[str, bool]]:
    """Name of each entry of `attentions`, and whether its queries are the tokens of the pyramid."""
    layers = [(f"encoder layer {index + 1}, self-attention", True) for index in range(config.encoder_layers)]
    for index in range(config.decoder_layers):
        if config.decoder_self_attention == "deformable":
            layers.append((f"decoder layer {index + 1}, self-attention", False))
        layers.append((f"decoder layer {index + 1}, cross-attention", False))
    return layers


def sampling_points(
    model: nn.Module, processor, image, point: tuple[float, float], layer: int = -1, level: int = 0
) -> SamplingPoints:
    """
    Where the deformable attention of one pixel looks. The model sees the whole image at once, as the processor makes
    it, and its weights for all pixels are held for a moment: 1 to 2 GB for 2,000 x 1,000 pixels.

    Args:
        model: [`UneptForSemanticSegmentation`] or [`UneptModel`].
        processor: its image processor.
        image: see [`overlay`].
        point: (x, y) of the pixel in the image.
        layer: which deformable attention: encoder layers come first, then those of the decoder, in order. -1 is the
            last, from which the classes are predicted.
        level: in the encoder, where queries are cells of the pyramid, the level whose cell is taken.

    Returns:
        [`SamplingPoints`].

    Raises:
        ValueError: for a point outside of the image, a layer or level that does not exist, or another model.
    """
    pixels = _read_image(image)
    height, width = pixels.shape[:2]
    if not (0 <= point[0] <= width - 1 and 0 <= point[1] <= height - 1):
        raise ValueError(f"point {tuple(point)} is not (x, y) within an image of width {width} and height {height}.")
    base = getattr(model, "base_model", None)
    if not hasattr(base, "input_projections"):
        raise ValueError(f"{type(model).__name__} is not a UN-EPT model, so its sampling points are not known.")
    layers = _deformable_layers(model.config)
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer {layer} does not exist: the model has 0..{len(layers) - 1}, or from the end -1.")
    if not 0 <= level < model.config.num_feature_levels:
        raise ValueError(f"level {level} does not exist: the model has 0..{model.config.num_feature_levels - 1}.")
    name, is_encoder = layers[layer]

    inputs = processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
    pixel_values = inputs["pixel_values"].to(base.device, base.dtype)
    shapes, thread = [], threading.get_ident()

    def keep_shape(module, args, output):
        if threading.get_ident() == thread:  # others may use the model at the same time
            shapes.append(output.shape[-2:])

    with ExitStack() as stack, evaluation_mode(model):
        for projection in base.input_projections:
            stack.callback(projection.register_forward_hook(keep_shape).remove)
        outputs = base(pixel_values, output_attentions=True)
    # The part of the padded input that the image covers, as (x, y).
    padded = np.array(pixel_values.shape[:1:-1], dtype=np.float64)
    covered = np.array(inputs["image_sizes"][0].tolist()[::-1]) / padded
    size = np.array([width, height])
    fraction = (np.array(point) + 0.5) / size * covered
    grid = shapes[level] if is_encoder else outputs.query_shape
    row, column = int(fraction[1] * grid[0]), int(fraction[0] * grid[1])
    index = sum(math.prod(shape) for shape in shapes[:level]) if is_encoder else 0
    index += row * grid[1] + column

    def to_pixels(positions):
        return positions / covered * size - 0.5

    weights = outputs.attentions[layer][0, index].double().numpy(force=True)
    locations = outputs.sampling_locations[layer][0, index].double().numpy(force=True)
    levels = shapes if locations.shape[1] == len(shapes) else [outputs.query_shape]
    return SamplingPoints(
        locations=to_pixels(locations),
        weights=weights,
        query=tuple(to_pixels(np.array([(column + 0.5) / grid[1], (row + 0.5) / grid[0]])).tolist()),
        layer=name,
        strides=tuple(float(width / covered[0] / shape[1]) for shape in levels),
    )


def draw_sampling_points(image, points: SamplingPoints, max_size: int = 1024) -> NotebookFigure:
    """
    Sampling points over the image: all heads together, and each head by itself.

    The area of a point is its weight, its colour and shape the level that it reads. Points beyond the frame lie
    outside of the image, where they count as zero.

    Args:
        image: see [`overlay`].
        points: what [`sampling_points`] returns.
        max_size: pixels of the longer side that are shown.

    Returns:
        A matplotlib figure.
    """
    pixels = _read_image(image)
    height, width = pixels.shape[:2]
    size = _shown_size((height, width), max_size)
    faded = _faded(_resized(pixels, size))
    heads, levels, per_level, _ = points.locations.shape
    columns = min(3, 1 + heads)
    figure, axes = _panels(size, columns, math.ceil((1 + heads) / columns), extra=0.6)
    axes = axes.ravel()
    outside = (points.locations < -0.5).any(-1) | (points.locations > np.array([width, height]) - 0.5).any(-1)

    colors = np.array([OKABE_ITO[index] for index in (6, 1, 2, 3, 4, 0, 5)]) / 255
    titles = ["all heads", *(f"head {head + 1}" for head in range(heads))]
    groups = [slice(None), *(slice(head, head + 1) for head in range(heads))]
    margin = 0.06 * max(height, width)
    for axis, title, group in zip(axes, titles, groups):
        axis.imshow(faded, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        count = points.weights[group].shape[0]
        for level in range(levels):
            x, y = points.locations[group, level].reshape(-1, 2).T
            # A point of average weight covers 22 square points, all of a head's together always the same.
            area = 22 * points.weights[group, level].ravel() * levels * per_level / math.sqrt(count)
            axis.scatter(
                x, y, area, marker=LEVEL_MARKERS[level % len(LEVEL_MARKERS)], alpha=0.75,
                color=colors[level % len(colors)], edgecolor="white", linewidth=0.4,
            )  # fmt: skip
        axis.plot(*points.query, marker="+", markersize=12, color="black", markeredgewidth=1.5)
        axis.set(xlim=(-0.5 - margin, width - 0.5 + margin), ylim=(height - 0.5 + margin, -0.5 - margin))
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    for axis in axes[1 + heads :]:
        axis.set_axis_off()
    share = points.weights.sum((0, 2)) / heads
    handles = []
    for level in range(levels):
        label = f"level {level + 1} (a cell is {points.strides[level]:.3g} pixels): {share[level]:.0%} of the weight"
        marker, color = LEVEL_MARKERS[level % len(LEVEL_MARKERS)], colors[level % len(colors)]
        handles.append(Line2D([], [], linestyle="", marker=marker, markersize=7, color=color, label=label))
    handles.append(Line2D([], [], linestyle="", marker="+", markersize=10, color="black", label="the query"))
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=len(handles))
    weight_outside = float((points.weights * outside).sum() / heads)
    figure.suptitle(f"{points.layer}: {weight_outside:.0%} of the weight lies outside of the image", fontsize=11)
    return figure


__all__ = [
    "SamplingPoints",
    "class_areas",
    "color_label_map",
    "default_palette",
    "draw_boundaries",
    "draw_comparison",
    "draw_overlay",
    "draw_refinement",
    "draw_sampling_points",
    "figure_to_image",
    "overlay",
    "sampling_points",
]
