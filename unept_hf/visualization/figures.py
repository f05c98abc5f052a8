# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Figures of what a model sees: classes over the image, errors, boundaries, refinement, and sampling points. The pictures
and numbers that need no matplotlib come from `overlay` and `sampling_points`, and can be imported from here as well.

All functions take images and label maps as PIL images, arrays or tensors, and images as paths or addresses as well.
Figures are matplotlib's, made without pyplot: `figure.savefig(...)` writes them, notebooks show them, and
`figure_to_image` makes PIL images of them. Names of classes are plain text, never mathtext.
"""

import io
import math
from collections.abc import Mapping

import edt
import numpy as np
import PIL.Image
import torch
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle, Wedge
from torch.nn import functional as F

from ..model.boundary import DIRECTIONS
from ..model.image_preprocessing import resize_label_map
from ..palette import OKABE_ITO
from .overlay import (
    as_array,
    class_areas,
    class_palette,
    color_label_map,
    overlay,
    percent,
    read_image,
    read_label_map,
    shown_size,
)
from .sampling_points import SamplingPoints, sampling_points


__all__ = [
    "DIRECTION_COLORS",
    "NotebookFigure",
    "SamplingPoints",
    "class_areas",
    "color_label_map",
    "draw_boundaries",
    "draw_comparison",
    "draw_crops",
    "draw_overlay",
    "draw_refinement",
    "draw_samples",
    "draw_sampling_points",
    "figure_to_image",
    "overlay",
    "sampling_points",
    "shortened",
]

# One for each direction. Around the circle, yellow turns to blue over light colors and back over dark ones, so that
# nobody needs to tell red from green.
DIRECTION_COLORS = (
    (178, 141, 0), (155, 209, 119), (90, 237, 212), (71, 207, 255),
    (114, 140, 229), (132, 78, 157), (142, 50, 85), (164, 75, 23),
)  # fmt: skip


class NotebookFigure(Figure):
    """A figure that notebooks show without pyplot and without any setup."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def figure_to_image(figure: Figure, dpi: float | None = None) -> PIL.Image.Image:
    """The RGB image of a figure, at `dpi` dots per inch, or at the figure's own resolution."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi)
    return PIL.Image.open(buffer).convert("RGB")


def _hex(color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (smoothly) or a map (by its nearest pixels), resized to (height, width)."""
    if array.ndim == 2:
        return resize_label_map(torch.from_numpy(array), size).numpy()
    if array.shape[:2] == size:
        return array
    return np.asarray(PIL.Image.fromarray(array).resize(size[::-1], PIL.Image.Resampling.BOX))


def _faded(pixels: np.ndarray) -> np.ndarray:
    """The image in light gray, so that colors over it stand out."""
    gray = np.asarray(PIL.Image.fromarray(pixels).convert("L"))
    return np.repeat((110 + gray * 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _show(axis, pixels: np.ndarray, title: str = "") -> None:
    axis.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 400 else "antialiased")
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_axis_off()


def _panels(size: tuple[int, int], columns: int, rows: int = 1, extra: float = 0) -> tuple[NotebookFigure, np.ndarray]:
    """A figure of equal panels for images of `size` and `extra` inches below, and its axes `(rows, columns)`."""
    height, width = size
    panel_width = min(4.2, 13 / columns)
    panel_height = panel_width * min(2.5, max(0.3, height / width)) + 0.3
    figure_size = (panel_width * columns, panel_height * rows + extra)
    figure = NotebookFigure(figsize=figure_size, dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def shortened(name: str, length: int = 24) -> str:
    """The name of a class in at most so many characters."""
    # ADE20K names a class by all its synonyms.
    name = name.split(",")[0].split(";")[0].strip() or name
    return name if len(name) <= length else name[: length - 1] + "…"


def _legend(figure, areas: list[dict], palette: np.ndarray, most: int, **kwargs) -> None:
    """The first classes of `areas` with their share, and the share of all others together."""
    handles = []
    for area in areas[:most]:
        known = 0 <= area["id"] < len(palette)
        color, hatch = (_hex(palette[area["id"]]), None) if known else ("white", "////")
        label = f"{shortened(area['label'])}  {percent(area['fraction'])}"
        handles.append(Patch(facecolor=color, edgecolor="0.4", linewidth=0.5, hatch=hatch, label=label))
    if len(areas) > most:
        rest = sum(area["fraction"] for area in areas[most:])
        label = f"{len(areas) - most} more  {percent(rest)}"
        handles.append(Patch(facecolor="none", edgecolor="none", label=label))
    for text in figure.legend(handles=handles, frameon=False, fontsize=9, **kwargs).get_texts():
        text.set_parse_math(False)


def _name_regions(axis, labels: np.ndarray, areas: list[dict], points_per_pixel: float) -> None:
    """Writes the name of each class into the middle of its widest region, where it fits."""
    # Distance to the nearest other class, for all classes at once; 0 is edt's background.
    distance = edt.edt((labels - labels.min() + 1).astype(np.uint32), black_border=True, parallel=1)
    for area in areas:
        depth = np.where(labels == area["id"], distance, 0)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        name = shortened(area["label"])
        room = depth[row, column] * points_per_pixel
        if room > 7 and room > 1.3 * len(name):
            outline = [patheffects.withStroke(linewidth=2, foreground="white")]
            axis.text(column, row, name, fontsize=8, ha="center", va="center", path_effects=outline, parse_math=False)


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
        image, label_map, palette, opacity: as in `overlay`.
        id2label: names of the classes.
        title: text above the image.
        name_regions: whether to write the names into the regions too, where they fit.
        max_size: pixels of the longer side in the figure. The areas are those of the whole label map.

    Raises:
        OSError, ValueError: as `overlay` does.
    """
    pixels = read_image(image)
    labels = read_label_map(label_map, pixels.shape[:2])
    palette = class_palette(palette, id2label, labels)
    areas = class_areas(labels, id2label)
    # Small images are enlarged, so that the lines between classes stay thin.
    size = shown_size(labels.shape, max_size, min_size=512)
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
        image, label_map, palette: as in `overlay`.
        reference: the true labels, integers `(height, width)`.
        id2label: names of the classes.
        ignore_index: label of unlabeled pixels of the reference, which do not count and are white.
        max_size: pixels of the longer side in the figure. The shares are those of the whole label map.

    Returns:
        A figure whose legend has the classes that occur, by their area in the reference.

    Raises:
        OSError, ValueError: as `overlay` does.
    """
    pixels = read_image(image)
    labels = read_label_map(label_map, pixels.shape[:2])
    truth = read_label_map(reference, labels.shape, "reference")
    counted = truth != ignore_index
    wrong = counted & (labels != truth)
    total = int(counted.sum())
    palette = class_palette(palette, id2label, labels, np.where(counted, truth, 0))
    areas = class_areas(truth, id2label, ignore_index)
    known = {area["id"] for area in areas}
    areas += [area | {"fraction": 0.0} for area in class_areas(labels, id2label) if area["id"] not in known]

    size = shown_size(labels.shape, max_size)
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
    _show(axes[0, 3], errors, f"wrong: {percent(share)} of {total:,} labeled pixels")
    _legend(figure, areas, palette, most, loc="outside lower center", ncols=min(columns, max(len(areas), 1)))
    return figure


def _draw_wheel(axis) -> None:
    for (row, column), color in zip(DIRECTIONS, DIRECTION_COLORS):
        angle = math.degrees(math.atan2(-row, column))
        axis.add_patch(Wedge((0, 0), 1, angle - 22.5, angle + 22.5, facecolor=_hex(color), edgecolor="white"))
        length = math.hypot(row, column)
        tip = (0.85 * column / length, -0.85 * row / length)
        axis.annotate("", tip, (0.3 * tip[0], 0.3 * tip[1]), arrowprops={"arrowstyle": "->", "color": "black"})
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axis.set_axis_off()


def draw_boundaries(
    image, boundary_probability, direction_map, threshold: float = 0.5, max_size: int = 1024
) -> NotebookFigure:
    """
    Where a model sees boundaries, and which directions lead away from them.

    Args:
        image: as in `overlay`.
        boundary_probability: `(height, width)`, in 0..1, as `segment` returns it.
        direction_map: `(height, width)`, 0..7, as `segment` returns it. Other values mean no direction.
        threshold: probability above which a pixel is at a boundary and its direction is shown.
        max_size: pixels of the longer side in the figure.

    Returns:
        A figure of the image, the probability, and the direction as a color, which a wheel explains.

    Raises:
        OSError, ValueError: as `overlay` does.
    """
    pixels = read_image(image)
    direction = read_label_map(direction_map, pixels.shape[:2], "direction_map")
    probability = as_array(boundary_probability).astype(np.float32)
    is_boundary = (probability > threshold) & (direction >= 0) & (direction < len(DIRECTIONS))
    size = shown_size(pixels.shape[:2], max_size)
    small, direction = _resized(pixels, size), _resized(direction, size)
    probability, is_boundary = _resized(probability, size), _resized(is_boundary, size)
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
    height, width = (min(side, max(32, side // 4)) for side in mask.shape)
    density = F.avg_pool2d(torch.from_numpy(mask).float()[None], (height, width), stride=1)[0]
    top, left = divmod(int(density.argmax()), density.shape[1])
    return slice(top, top + height), slice(left, left + width)


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
        image, label_map, palette: as in `overlay`.
        refined_label_map: integers `(height, width)`, with refinement.
        id2label: names of the classes.
        reference: the true labels `(height, width)`, which tell better from worse changes.
        ignore_index: label of unlabeled pixels of the reference, which do not count.
        max_size: pixels of the longer side in the figure. The shares are those of the whole label map.

    Raises:
        OSError, ValueError: as `overlay` does.
    """
    pixels = read_image(image)
    before = read_label_map(label_map, pixels.shape[:2])
    after = read_label_map(refined_label_map, before.shape, "refined_label_map")
    changed = before != after
    palette = class_palette(palette, id2label, before, after)
    kinds = {"changed": (changed, OKABE_ITO[4])}
    if reference is not None:
        truth = read_label_map(reference, before.shape, "reference")
        counted = changed & (truth != ignore_index)
        better, worse = counted & (after == truth), counted & (before == truth)
        kinds = {
            "now right": (better, OKABE_ITO[6]),
            "now wrong": (worse, OKABE_ITO[4]),
            "other change": (changed & ~better & ~worse, OKABE_ITO[5]),
        }

    size = shown_size(before.shape, max_size)
    figure, axes = _panels(size, 4, rows=2, extra=0.3)
    window = _busiest_window(changed)
    for row, crop in zip(axes, ((slice(None), slice(None)), window)):
        part = shown_size(changed[crop].shape, max_size)
        small = _resized(np.ascontiguousarray(pixels[crop]), part)
        marked = _faded(small)
        for mask, color in kinds.values():
            marked[_resized(mask[crop], part)] = color
        _show(row[0], small, "image")
        _show(row[1], color_label_map(_resized(before[crop], part), palette), "without refinement")
        _show(row[2], color_label_map(_resized(after[crop], part), palette), "with refinement")
        _show(row[3], marked, f"changed: {percent(changed[crop].mean(), 2)} of the pixels")
    scale = size[0] / changed.shape[0]
    top, left = window[0].start * scale, window[1].start * scale
    sides = [(side.stop - side.start) * scale for side in window]
    for axis in axes[0]:
        for line, thickness in (("black", 1.5), ("white", 0.7)):
            axis.add_patch(Rectangle((left, top), sides[1], sides[0], fill=False, edgecolor=line, linewidth=thickness))
    handles = [
        Patch(facecolor=_hex(color), label=f"{kind}  {percent(one.mean(), 2)}") for kind, (one, color) in kinds.items()
    ]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower right", ncols=len(handles))
    return figure


def draw_samples(
    samples: list[dict], palette=None, id2label: Mapping[int, str] | None = None, ignore_index: int = 255
) -> NotebookFigure:
    """
    A row of image, ground truth, predictions and errors for each sample of an evaluation, and a legend.

    Args:
        samples: as `evaluate_model` returns them, at least one.
        palette: as in `overlay`. Pixels without a label are black.
        id2label: names of the classes.
        ignore_index: label of unlabeled pixels of the references, which do not count.

    Returns:
        A figure whose legend has the classes that occur, by their area in the references that it shows.
    """
    titles = {"image": "image", "reference": "ground truth", "prediction": "prediction", "refined": "refined"}
    names = [name for name in titles if name in samples[0]]
    columns = len(names) + 1
    truth = np.concatenate([sample["reference"] for sample in samples], axis=None)[None]
    found = np.concatenate([sample[name] for sample in samples for name in names[2:]], axis=None)[None]
    palette = class_palette(palette, id2label, found, np.where(truth == ignore_index, 0, truth))
    areas = class_areas(truth, id2label, ignore_index)
    known = {area["id"] for area in areas}
    areas += [area | {"fraction": 0.0} for area in class_areas(found, id2label) if area["id"] not in known]

    # Each row is as high as its images, so that there are no gaps between them.
    width, most, entries = 13 / columns, 24, 6
    shapes = [sample["reference"].shape for sample in samples]
    heights = [width * min(2.5, max(0.3, height / length)) + 0.25 for height, length in shapes]
    legend_height = 0.25 * math.ceil(min(len(areas), most + 1) / entries) + 0.1
    figure = NotebookFigure(figsize=(13, sum(heights) + legend_height), dpi=110, layout="constrained")
    axes = figure.subplots(len(samples), columns, squeeze=False, height_ratios=heights)
    for row, sample in zip(axes, samples):
        pixels, reference = np.asarray(sample["image"].convert("RGB")), sample["reference"]
        name = sample["name"] if len(sample["name"]) <= 36 else f"…{sample['name'][-35:]}"
        _show(row[0], pixels, f"image {name}".rstrip())
        for axis, name in zip(row[1:], names[1:]):
            _show(axis, color_label_map(sample[name], palette, unlabeled=(0, 0, 0)), titles[name])
        errors = _faded(pixels)
        errors[sample["prediction"] != reference] = OKABE_ITO[4]
        errors[reference == ignore_index] = 0
        _show(row[-1], errors, f"wrong: {sample['wrong']:.1%}")
    _legend(figure, areas, palette, most, loc="outside lower center", ncols=min(entries, max(len(areas), 1)))
    return figure


def draw_crops(
    images: np.ndarray, label_maps: np.ndarray, id2label: Mapping[int, str] | None = None, palette=None
) -> NotebookFigure:
    """
    Crops of a training step beside their masks, and a legend of the classes in them.

    Args:
        images: `(crops, height, width, 3)`, uint8, of which up to 8 are shown.
        label_maps: `(crops, height, width)`; unlabeled pixels stay as in the image.
        id2label: names of the classes.
        palette: as in `overlay`.
    """
    images, label_maps = images[:8], label_maps[:8]
    palette = class_palette(palette, id2label, label_maps[0])
    columns = min(len(images), 4)
    rows = math.ceil(len(images) / columns)
    figure, axes = _panels(label_maps.shape[1:], 2 * columns, rows, extra=0.8)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (image, label_map) in enumerate(zip(images, label_maps)):
        row, column = divmod(place, columns)
        _show(axes[row, 2 * column], image)
        _show(axes[row, 2 * column + 1], np.asarray(overlay(image, label_map, palette)))
    areas = class_areas(label_maps.reshape(1, -1), id2label)
    _legend(figure, areas, palette, 17, loc="outside lower center", ncols=6)
    return figure


def draw_sampling_points(image, points: SamplingPoints, max_size: int = 1024) -> NotebookFigure:
    """
    Sampling points over the image: all heads together, and each head by itself.

    The area of a point shows its weight, its color and shape the level that it reads. Points beyond the frame lie
    outside of the image, where they count as zero.

    Args:
        image: as in `overlay`.
        points: as `sampling_points` returns them.
        max_size: pixels of the longer side in the figure.
    """
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    size = shown_size((height, width), max_size)
    faded = _faded(_resized(pixels, size))
    heads, levels, per_level, _ = points.locations.shape
    columns = min(3, 1 + heads)
    figure, axes = _panels(size, columns, math.ceil((1 + heads) / columns), extra=0.6)
    axes = axes.ravel()
    outside = (points.locations < -0.5).any(-1) | (points.locations > np.array([width, height]) - 0.5).any(-1)

    colors = [_hex(OKABE_ITO[index]) for index in (6, 1, 2, 3, 4, 0, 5)]
    styles = [("o^sDvP*X"[level % 8], colors[level % 7]) for level in range(levels)]
    titles = ["all heads", *(f"head {head + 1}" for head in range(heads))]
    groups = [slice(None), *(slice(head, head + 1) for head in range(heads))]
    margin = 0.06 * max(height, width)
    for axis, title, group in zip(axes, titles, groups):
        axis.imshow(faded, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        count = points.weights[group].shape[0]
        for level, (marker, color) in enumerate(styles):
            x, y = points.locations[group, level].reshape(-1, 2).T
            # A point of average weight covers 22 square points; all points of a head cover the same area in all.
            area = 22 * points.weights[group, level].ravel() * levels * per_level / math.sqrt(count)
            axis.scatter(x, y, area, marker=marker, color=color, alpha=0.75, edgecolor="white", linewidth=0.4)
        axis.plot(*points.query, marker="+", markersize=12, color="black", markeredgewidth=1.5)
        axis.set(xlim=(-0.5 - margin, width - 0.5 + margin), ylim=(height - 0.5 + margin, -0.5 - margin))
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    for axis in axes[1 + heads :]:
        axis.set_axis_off()
    share = points.weights.sum((0, 2)) / heads
    handles = []
    for level, (marker, color) in enumerate(styles):
        label = f"level {level + 1} (a cell is {points.strides[level]:.3g} pixels): {share[level]:.0%} of the weight"
        handles.append(Line2D([], [], linestyle="", marker=marker, markersize=7, color=color, label=label))
    handles.append(Line2D([], [], linestyle="", marker="+", markersize=10, color="black", label="the query"))
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=len(handles))
    weight_outside = float((points.weights * outside).sum() / heads)
    figure.suptitle(f"{points.layer}: {weight_outside:.0%} of the weight lies outside of the image", fontsize=11)
    return figure
