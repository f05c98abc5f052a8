# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Views of an image, the windows that cover them, and the batches of windows that a model gets.

The semantics are those of the original's test code (mmsegmentation's slide inference and multi-scale test). Logits are
kept at the model's resolution, and only for the windows that the rows at work can see.
"""

import contextlib
import itertools
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from ..model.image_preprocessing import resized_size
from ..model.image_reading import WHITE_NORMALIZED, clip_to_pixels, image_to_tensor, open_image, with_file
from ..model.post_processing_unept import output_field
from .options import FLIPS, PredictionOptions


__all__ = ["View", "Views", "WindowRunner", "make_views", "window_starts"]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side: every `stride`, with the last window moved back inside."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - window), 0) for index in range(count)]


def _source_cells(covered: float, cells: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """For each of `size` pixels, the cell before and the cell after its center, and the weight of the cell after."""
    position = ((torch.arange(size, dtype=torch.float64) + 0.5) * (covered / size) - 0.5).clamp(0, cells - 1)
    before, after = position.floor().long(), position.ceil().long()
    return before.to(device), after.to(device), (position - before).float().to(device)


def _interpolate_rows(cells: Tensor, tables: tuple[Tensor, ...], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the result of an interpolation of `(rows, columns, channels)` along the rows."""
    before, after, weight = (table[start:stop] for table in tables)
    return torch.lerp(cells.index_select(0, before), cells.index_select(0, after), weight[:, None, None])


def _interpolate_columns(cells: Tensor, covered: float, size: int) -> Tensor:
    """`(rows, columns, channels)` to `size` columns, bilinear with `align_corners=False`."""
    # Rows keep their number, so that a band of them gives the very same bits as all rows would. Channels come last,
    # which PyTorch resizes several times faster than planes.
    batch = cells.permute(2, 0, 1)[None]
    resized = torch.ops.aten.upsample_bilinear2d(batch, [cells.shape[0], size], False, 1.0, size / covered)
    return resized[0].permute(1, 2, 0)


@dataclass(eq=False)
class View:
    """
    One resized and perhaps flipped copy of an image, with the windows that cover it.

    Args:
        pixels: `(channels, height, width)`, as the image processor takes them before it rescales and normalizes.
        target_size: (height, width) of the label map.
        window_size: (height, width) that the model is given. Smaller images are padded at the bottom and right.
        stride: (rows, columns) from window to window; `None` for one window over the whole image, whose logits are
            resized straight to the target.
        flip: `None`, `"horizontal"` or `"vertical"`: how `pixels` were flipped.
    """

    pixels: Tensor
    target_size: tuple[int, int]
    window_size: tuple[int, int]
    stride: tuple[int, int] | None = None
    flip: str | None = None

    def __post_init__(self) -> None:
        self.is_whole = self.stride is None
        height, width = self.pixels.shape[-2:]
        # One window covers a whole image.
        strides = self.stride or self.window_size
        self.tops, self.lefts = map(window_starts, (height, width), self.window_size, strides)
        # Taken from its end. The label map is made from its top, which is the bottom of an upside-down view.
        rows = range(len(self.tops))
        rows = rows if self.flip == "vertical" else rows[::-1]
        self.pending = list(itertools.product(rows, range(len(self.lefts))[::-1]))
        self.logits: dict[tuple[int, int], Tensor] = {}
        # Of the logits that the target is resized from: logits of the whole image, or averaged logits at pixels.
        self.grid_size = (height, width)
        self.covered: tuple[float, float] = (height, width)
        # What follows is known from the first logits on.
        self.tables: tuple[Tensor, ...] = ()
        self.window_tables: tuple[Tensor, ...] = ()
        self.counts: list[Tensor] = []

    def crop(self, window: tuple[int, int]) -> Tensor:
        """The pixels under a window, as far as there are any."""
        top, left = self.tops[window[0]], self.lefts[window[1]]
        return self.pixels[:, top : top + self.window_size[0], left : left + self.window_size[1]]

    def store(self, window: tuple[int, int], logits: Tensor) -> None:
        """Takes the logits `(channels, rows, columns)` of a window."""
        logits = logits.permute(1, 2, 0).contiguous()
        self.logits[window] = logits
        if self.tables:
            return
        rows, columns, _ = logits.shape
        if self.is_whole:
            height, width = self.pixels.shape[-2:]
            self.covered = height * rows / self.window_size[0], width * columns / self.window_size[1]
            self.grid_size = math.ceil(self.covered[0]), math.ceil(self.covered[1])
        else:
            self.window_tables = _source_cells(rows, rows, self.window_size[0], logits.device)
            for length, starts, size in zip(self.grid_size, (self.tops, self.lefts), self.window_size):
                count = torch.zeros(length, device=logits.device)
                for start in starts:
                    count[start : start + size] += 1
                self.counts.append(count)
        self.tables = _source_cells(self.covered[0], self.grid_size[0], self.target_size[0], logits.device)

    def band(self, start: int, stop: int, runner: "WindowRunner") -> Tensor:
        """
        Logits of rows `start` to `stop` of the target, float32 `(stop - start, width, channels)`, with the flip
        undone. Rows must be asked for from the top down.
        """
        if not self.tables:
            runner.run(self)
        if self.flip == "vertical":
            start, stop = self.target_size[0] - stop, self.target_size[0] - start
        before, after, weight = self.tables
        first, last = int(before[start]), int(after[stop - 1])
        if self.is_whole:
            band = self.logits[0, 0][first : last + 1, : self.grid_size[1]].float()
        else:
            band = self._average(first, last + 1, runner)
        if (self.covered[0], self.grid_size[0]) != (self.target_size[0],) * 2:
            band = _interpolate_rows(band, (before - first, after - first, weight), start, stop)
        if (self.covered[1], self.grid_size[1]) != (self.target_size[1],) * 2:
            band = _interpolate_columns(band, self.covered[1], self.target_size[1])
        return band if self.flip is None else band.flip(FLIPS[self.flip])

    def _average(self, start: int, stop: int, runner: "WindowRunner") -> Tensor:
        """Mean over the windows of the logits of rows `start` to `stop` of the view."""
        height, width = self.window_size
        rows = [row for row, top in enumerate(self.tops) if top < stop and top + height > start]
        # Bands come in the order of the windows, and do not see those again that they have left behind.
        sign = -1 if self.flip == "vertical" else 1
        first, last = min(sign * row for row in rows), max(sign * row for row in rows)
        self.logits = {window: logits for window, logits in self.logits.items() if sign * window[0] >= first}
        while self.pending and sign * self.pending[-1][0] <= last:
            runner.run(self)
        channels = self.logits[rows[0], 0].shape[2]
        total = torch.zeros(stop - start, self.grid_size[1], channels, device=self.tables[0].device)
        for row in rows:
            top = self.tops[row]
            upper, lower = max(start, top), min(stop, top + height)
            for column, left in enumerate(self.lefts):
                cells = self.logits[row, column]
                piece = _interpolate_rows(cells.float(), self.window_tables, upper - top, lower - top)
                piece = _interpolate_columns(piece, piece.shape[1], width)[:, : self.grid_size[1] - left]
                total[upper - start : lower - start, left : left + width] += piece
        if len(self.tops) == len(self.lefts) == 1:
            return total
        return total.div_(self.counts[0][start:stop, None, None] * self.counts[1][:, None])


class Views(list[View]):
    """
    The views of an image. `segment` and `segment_batch` take them for the image, once, so that another thread can
    make them ahead.
    """


class WindowRunner:
    """
    Runs the model on the windows of `views`, `options.batch_size` at a time. The processor rescales and normalizes
    them. With boundaries, boundary and direction logits are stacked below the logits of the classes; without classes,
    they are alone, and only the spatial branch of UN-EPT runs.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        options: PredictionOptions,
        with_boundaries: bool = False,
        with_classes: bool = True,
    ):
        self.model, self.processor, self.options = model, processor, options
        self.with_boundaries, self.with_classes = with_boundaries, with_classes
        self.views: list[View] = []
        self.progress: Any = None  # a bar that counts windows
        self.num_labels = 0  # known from the first logits on

    def run(self, view: View) -> None:
        """Computes the next windows of a view, and fills the batch up with windows of the views that follow."""
        later = self.views[self.views.index(view) + 1 :] if view in self.views else []
        batch: list[tuple[View, tuple[int, int]]] = []
        for other in [view, *later]:
            while other.pending and len(batch) < self.options.batch_size and other.window_size == view.window_size:
                batch.append((other, other.pending.pop()))
        pixel_values = self._prepare([view.crop(window) for view, window in batch], view.window_size)
        # Libraries for the CPU round the last bit differently in batches of different sizes, and gain nothing by them.
        # One by one, the results do not depend on the batch size.
        is_cpu = next(self.model.parameters()).device.type == "cpu"
        parts = (self._forward(part) for part in pixel_values.split(1 if is_cpu else len(batch)))
        for (other, window), logits in zip(batch, itertools.chain.from_iterable(parts)):
            other.store(window, logits)
        if self.progress is not None:
            self.progress.update(len(batch))

    def _prepare(self, crops: list[Tensor], window_size: tuple[int, int]) -> Tensor:
        """`pixel_values` `(batch_size, channels, *window_size)` of crops, padded with 0 at the bottom and right."""
        kwargs: dict[str, Any] = {
            name: False for name in ("do_resize", "do_pad", "do_center_crop") if getattr(self.processor, name, 0)
        }
        if hasattr(self.processor, "size_divisor"):
            kwargs["size_divisor"] = 1
        height, width = window_size
        pixel_values = []
        for crop in crops:
            options = {}
            # `_read_image` has seen the whole image, while a dark window may look as if it were in another range.
            if crop.is_floating_point() and getattr(self.processor, "do_rescale", False):
                crop, options = crop * self.processor.rescale_factor, {"do_rescale": False}
            inputs = self.processor(images=[crop], input_data_format="channels_first", **kwargs, **options)
            one = torch.as_tensor(inputs["pixel_values"][0])
            pixel_values.append(F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])))
        return torch.stack(pixel_values)

    def _forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(batch_size, channels, rows, columns)` of the classes, and of boundaries where wanted."""
        parameter, dtype = next(self.model.parameters()), self.options.autocast_dtype
        with contextlib.nullcontext() if dtype is None else torch.autocast(parameter.device.type, dtype=dtype):
            forward: Any = self.model if self.with_classes else self.model.predict_boundaries
            outputs = forward(pixel_values=pixel_values.to(parameter.device, parameter.dtype))
        names = ["logits"] if self.with_classes else []
        names += ["boundary_logits", "direction_logits"] if self.with_boundaries else []
        maps = [output_field(outputs, name) for name in names]
        for name, one in zip(names, maps):
            if one is None or one.dim() != 4:
                raise ValueError(
                    f"{type(self.model).__name__} returns no {name} of (batch_size, channels, height, width). Pass a "
                    "model for semantic segmentation, such as AutoModelForSemanticSegmentation loads; refining or "
                    "returning boundaries needs a UN-EPT with use_boundary_heads=True."
                )
        self.num_labels = maps[0].shape[1] if self.with_classes else 0
        return torch.cat([one.to(maps[0].dtype) for one in maps], dim=1) if self.with_boundaries else maps[0]


def make_views(processor: Any, image: Any, options: PredictionOptions, target_size: tuple[int, int] | None) -> Views:
    """The views of one image, scale by scale."""
    if isinstance(image, Views):
        return image
    pixels = _read_image(processor, image)
    height, width = pixels.shape[-2:]
    do_resize = getattr(processor, "do_resize", False) if options.do_resize is None else options.do_resize
    is_whole = options.mode == "whole"
    # Windows have the size that the model is given, so the image may have any.
    size_divisor = (getattr(processor, "size_divisor", None) or 1) if is_whole else 1
    views = Views()
    for scale in options.scales:
        new_height, new_width = height, width
        if do_resize:
            wanted = {name: max(1, int(value * scale)) for name, value in dict(processor.size).items() if value}
            resized = resized_size(height, width, SizeDict(**wanted), size_divisor)
            new_height, new_width = (max(1, round(side / size_divisor)) * size_divisor for side in resized)
        elif scale != 1:
            new_height, new_width = (max(1, int(side * scale + 0.5)) for side in (height, width))
        view = _resize(processor, pixels, (new_height, new_width))
        window_size = options.crop_size[0], options.crop_size[1]
        if is_whole:
            window_size = new_height + -new_height % size_divisor, new_width + -new_width % size_divisor
        views += [
            View(
                view if flip is None else view.flip(1 + FLIPS[flip]),
                target_size or (height, width),
                window_size,
                None if is_whole else (options.stride[0], options.stride[1]),
                flip,
            )
            for flip in options.flips
        ]
    return views


def _read_image(processor: Any, image: Any) -> Tensor:
    """Pixels `(channels, height, width)`, uint8 or float32, of an image, an array, a tensor, a path or an address."""
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    do_convert_rgb = getattr(processor, "do_convert_rgb", None)
    pixels = image_to_tensor(image, True if do_convert_rgb is None else do_convert_rgb)
    do_rescale = getattr(processor, "do_rescale", False)
    rescale_factor = getattr(processor, "rescale_factor", None) or 1 / 255
    name = with_file("image", image)
    pixels = clip_to_pixels(pixels, do_rescale, rescale_factor, getattr(processor, "do_normalize", False), name)
    # Of 255 such numbers would be black, and numbers below 1 / 255 would be black of 1 too.
    if do_rescale and pixels.is_floating_point() and 1 / 255 <= pixels.max() <= WHITE_NORMALIZED:
        low, high = (float(limit) for limit in pixels.aminmax())
        raise ValueError(
            f"{name} holds floating point numbers in [{low:g}, {high:g}], but the image processor rescales from "
            "[0, 255]: bring it to that range, or pass a processor with do_rescale=False, and with do_normalize=False "
            "if the image is normalized already."
        )
    return pixels


def _resize(processor: Any, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels `(channels, height, width)`, resized as the image processor does it."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    resized = processor.resize(
        pixels.numpy(force=True) if isinstance(processor, PilBackend) else pixels,
        SizeDict(height=size[0], width=size[1]),
        resample=processor.resample,
    )
    return torch.as_tensor(resized)
