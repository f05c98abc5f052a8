# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Label maps of images of any size: whole or in sliding windows, at several scales, flipped, with refined boundaries.

The semantics are those of the original's test code (mmsegmentation's slide inference and multi-scale test). The memory
is bounded all the same: logits are kept at the model's resolution, and only for the windows that the rows at work can
see; scores of all classes exist for a band of rows at a time.
"""

import contextlib
import itertools
import math
import numbers
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import ModelOutput

from ..model.boundary import DIRECTIONS, follow_direction
from ..model.image_preprocessing import resized_size
from ..model.image_reading import WHITE_NORMALIZED, clip_to_pixels, image_to_tensor, open_image, with_file
from ..model.post_processing_unept import output_field


# Scores of one band of rows. The working memory is a few times that.
BAND_BYTES = 64 * 2**20

# A progress bar appears from this number of windows on, unless it is asked for or forbidden.
LONG_IMAGE_WINDOWS = 64

FLIPS = {"horizontal": 1, "vertical": 0}  # the dimension of (height, width) that turns round


@dataclass
class SegmentationResult(ModelOutput):
    """
    What [`segment`] returns, on the CPU.

    Args:
        label_map (`torch.LongTensor` of shape `(height, width)`):
            Class of each pixel.
        scores (`torch.FloatTensor` of shape `(num_labels, height, width)`, *optional*, with `return_scores=True`):
            Probability of each class, averaged over the views.
        boundary_probability (`torch.FloatTensor` of shape `(height, width)`, *optional*, with
            `return_boundaries=True`): Probability of being at a boundary.
        direction_map (`torch.LongTensor` of shape `(height, width)`, *optional*, with `return_boundaries=True`):
            Direction 0..7 that leads away from the nearest boundary; the steps are in `model.boundary.DIRECTIONS`.
    """

    label_map: Tensor | None = None
    scores: Tensor | None = None
    boundary_probability: Tensor | None = None
    direction_map: Tensor | None = None


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side: every `stride`, with the last one moved back inside."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - window), 0) for index in range(count)]


def source_cells(covered: float, cells: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """
    Bilinear interpolation (`align_corners=False`) along one side, as tables.

    Args:
        covered: how many cells the image covers.
        cells: how many cells there are.
        size: number of pixels of the result.
        device: where the tables are wanted.

    Returns:
        For each pixel the cell before and the cell after its centre, int64 `(size,)`, and the weight of the latter,
        float32 `(size,)`.
    """
    position = ((torch.arange(size, dtype=torch.float64) + 0.5) * (covered / size) - 0.5).clamp(0, cells - 1)
    before, after = position.floor().long(), position.ceil().long()
    return before.to(device), after.to(device), (position - before).float().to(device)


def interpolate_rows(cells: Tensor, tables: tuple[Tensor, Tensor, Tensor], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the result of an interpolation of `(rows, columns, channels)` along the rows."""
    before, after, weight = (table[start:stop] for table in tables)
    return torch.lerp(cells.index_select(0, before), cells.index_select(0, after), weight[:, None, None])


def interpolate_columns(cells: Tensor, covered: float, size: int) -> Tensor:
    """`(rows, columns, channels)` to `size` columns, bilinear with `align_corners=False`."""
    # Rows keep their number, so that a band of them gives the very same bits as all of them would. Channels come last,
    # which PyTorch resizes several times faster than planes.
    batch = cells.permute(2, 0, 1)[None]
    resized = torch.ops.aten.upsample_bilinear2d(batch, [cells.shape[0], size], False, 1.0, size / covered)
    return resized[0].permute(1, 2, 0)


class View:
    """
    One resized and perhaps flipped copy of an image, with the windows that cover it.

    Args:
        pixels: `(channels, height, width)`, as the image processor takes them before it rescales and normalises.
        target_size: (height, width) of the label map.
        window_size: (height, width) that the model is given. Smaller images are padded at the bottom and right.
        stride: (rows, columns) from window to window; `None` for one window over the whole image, whose logits are
            resized straight to the target.
        flip: `None`, `"horizontal"` or `"vertical"`: how `pixels` were flipped.
    """

    def __init__(
        self,
        pixels: Tensor,
        target_size: tuple[int, int],
        window_size: tuple[int, int],
        stride: tuple[int, int] | None = None,
        flip: str | None = None,
    ):
        self.pixels = pixels
        self.target_size = target_size
        self.window_size = window_size
        self.flip = flip
        self.is_whole = stride is None
        size = tuple(pixels.shape[-2:])
        if self.is_whole:
            self.tops, self.lefts = [0], [0]
        else:
            self.tops, self.lefts = (window_starts(*sides) for sides in zip(size, window_size, stride))
        rows = range(len(self.tops))
        # The label map is made from its top, which is the bottom of an upside-down view.
        self.pending = [
            (row, column)
            for row in (reversed(rows) if flip == "vertical" else rows)
            for column in range(len(self.lefts))
        ][::-1]
        self.logits: dict[tuple[int, int], Tensor] = {}
        # Of the logits that the target is resized from: those of the whole image, or averaged ones at pixels.
        self.grid_size, self.covered = size, size
        self.tables = self.window_tables = self.counts = None

    def crop(self, window: tuple[int, int]) -> Tensor:
        """The pixels under a window, as far as there are any."""
        top, left = self.tops[window[0]], self.lefts[window[1]]
        return self.pixels[:, top : top + self.window_size[0], left : left + self.window_size[1]]

    def store(self, window: tuple[int, int], logits: Tensor) -> None:
        """Takes the logits `(channels, rows, columns)` of a window."""
        logits = logits.permute(1, 2, 0).contiguous()
        self.logits[window] = logits
        if self.tables is not None:
            return
        cells, device = logits.shape[:2], logits.device
        if self.is_whole:
            self.covered = tuple(
                side * count / padded for side, count, padded in zip(self.pixels.shape[-2:], cells, self.window_size)
            )
            self.grid_size = tuple(math.ceil(count) for count in self.covered)
        else:
            self.window_tables = source_cells(cells[0], cells[0], self.window_size[0], device)
            self.counts = []
            for length, starts, window in zip(self.grid_size, (self.tops, self.lefts), self.window_size):
                count = torch.zeros(length, device=device)
                for start in starts:
                    count[start : start + window] += 1
                self.counts.append(count)
        self.tables = source_cells(self.covered[0], self.grid_size[0], self.target_size[0], device)

    def band(self, start: int, stop: int, runner: "WindowRunner") -> Tensor:
        """
        Logits of rows `start` to `stop` of the target, float32 `(stop - start, width, channels)`, with the flip
        undone. Rows have to be asked for from the top down.
        """
        if self.tables is None:
            runner.run(self)
        if self.flip == "vertical":
            start, stop = self.target_size[0] - stop, self.target_size[0] - start
        first, last = int(self.tables[0][start]), int(self.tables[1][stop - 1])
        if self.is_whole:
            band = self.logits[0, 0][first : last + 1, : self.grid_size[1]].float()
        else:
            band = self._average(first, last + 1, runner)
        if (self.covered[0], self.grid_size[0]) != (self.target_size[0],) * 2:
            before, after, weight = self.tables
            band = interpolate_rows(band, (before - first, after - first, weight), start, stop)
        if (self.covered[1], self.grid_size[1]) != (self.target_size[1],) * 2:
            band = interpolate_columns(band, self.covered[1], self.target_size[1])
        return band if self.flip is None else band.flip(FLIPS[self.flip])

    def _average(self, start: int, stop: int, runner: "WindowRunner") -> Tensor:
        """Mean over the windows of the logits of rows `start` to `stop` of the view."""
        height, width = self.window_size
        rows = [row for row, top in enumerate(self.tops) if top < stop and top + height > start]
        # Windows that the band has left behind are not seen again.
        for window in [window for window in self.logits if self._is_past(window[0], rows)]:
            del self.logits[window]
        while self.pending and not self._is_ahead(self.pending[-1][0], rows):
            runner.run(self)
        total = None
        for row in rows:
            top = self.tops[row]
            upper, lower = max(start, top), min(stop, top + height)
            for column, left in enumerate(self.lefts):
                cells = self.logits[row, column]
                piece = interpolate_rows(cells.float(), self.window_tables, upper - top, lower - top)
                piece = interpolate_columns(piece, piece.shape[1], width)[:, : self.grid_size[1] - left]
                if total is None:
                    total = piece.new_zeros(stop - start, self.grid_size[1], piece.shape[2])
                total[upper - start : lower - start, left : left + width] += piece
        if len(self.tops) == len(self.lefts) == 1:
            return total
        return total.div_(self.counts[0][start:stop, None, None] * self.counts[1][:, None])

    def _is_past(self, row: int, rows: list[int]) -> bool:
        return row > rows[-1] if self.flip == "vertical" else row < rows[0]

    def _is_ahead(self, row: int, rows: list[int]) -> bool:
        return row < rows[0] if self.flip == "vertical" else row > rows[-1]


class WindowRunner:
    """
    Runs the model on the windows of views, `batch_size` at a time.

    Args:
        model: a semantic segmentation model.
        processor: its image processor, which rescales and normalises the windows.
        batch_size: how many windows the model gets at once.
        with_boundaries: whether boundary and direction logits are stacked below those of the classes.
        autocast: dtype to compute in, where it is not that of the weights.
        progress: progress bar, counting windows.
    """

    def __init__(self, model, processor, batch_size, with_boundaries=False, autocast=None, progress=None):
        self.model, self.processor = model, processor
        self.batch_size = batch_size
        self.with_boundaries = with_boundaries
        self.autocast = autocast
        self.progress = progress
        self.views: list[View] = []
        self.num_labels = None

    def run(self, view: View) -> None:
        """Computes the next windows of a view, and fills the batch up with windows of the views that follow."""
        later = self.views[self.views.index(view) + 1 :] if view in self.views else []
        batch = []
        for other in [view, *later]:
            while other.pending and len(batch) < self.batch_size and other.window_size == view.window_size:
                batch.append((other, other.pending.pop()))
        pixel_values = self.prepare([view.crop(window) for view, window in batch], view.window_size)
        # Libraries for the CPU round the last bit differently in batches of different sizes, and gain nothing by them.
        # One by one, the results do not depend on the batch size.
        is_cpu = next(self.model.parameters()).device.type == "cpu"
        parts = (self.forward(part) for part in pixel_values.split(1 if is_cpu else len(batch)))
        for (other, window), logits in zip(batch, itertools.chain.from_iterable(parts)):
            other.store(window, logits)
        if self.progress is not None:
            self.progress.update(len(batch))

    def prepare(self, crops: list[Tensor], window_size: tuple[int, int]) -> Tensor:
        """`pixel_values` `(batch_size, channels, *window_size)` of crops, padded with 0 at the bottom and right."""
        kwargs = {
            name: False for name in ("do_resize", "do_pad", "do_center_crop") if getattr(self.processor, name, 0)
        }
        if hasattr(self.processor, "size_divisor"):
            kwargs["size_divisor"] = 1
        height, width = window_size
        pixel_values = []
        for crop in crops:
            options = {}
            # `read_image` has seen the whole image, while a dark window may look as if it were in another range.
            if crop.is_floating_point() and getattr(self.processor, "do_rescale", False):
                crop, options = crop * self.processor.rescale_factor, {"do_rescale": False}
            inputs = self.processor(images=[crop], input_data_format="channels_first", **kwargs, **options)
            one = torch.as_tensor(inputs["pixel_values"][0])
            pixel_values.append(F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])))
        return torch.stack(pixel_values)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(batch_size, channels, rows, columns)` of the classes, and of boundaries where wanted."""
        parameter = next(self.model.parameters())
        context = contextlib.nullcontext()
        if self.autocast is not None:
            context = torch.autocast(parameter.device.type, dtype=self.autocast)
        with context:
            outputs = self.model(pixel_values=pixel_values.to(parameter.device, parameter.dtype))
        logits = output_field(outputs, "logits")
        if logits is None or logits.dim() != 4:
            raise ValueError(
                f"{type(self.model).__name__} returns no logits of (batch_size, num_labels, height, width): pass a "
                "model for semantic segmentation, such as AutoModelForSemanticSegmentation loads."
            )
        self.num_labels = logits.shape[1]
        if not self.with_boundaries:
            return logits
        maps = [output_field(outputs, f"{name}_logits") for name in ("boundary", "direction")]
        if any(one is None for one in maps):
            raise ValueError(
                f"{type(self.model).__name__} has no boundary heads, so it can neither refine nor return boundaries: "
                "use a UN-EPT with use_boundary_heads=True, or refine_boundaries=False and return_boundaries=False."
            )
        return torch.cat([logits, *(one.to(logits.dtype) for one in maps)], dim=1)


# How many evaluate each module at present, and whether it was in training mode before the first of them.
_evaluated: dict[nn.Module, tuple[int, bool]] = {}
_evaluated_lock = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    Puts a model into evaluation mode without gradients, and each of its modules back into its own mode after: when
    the last of those who use it so, in whatever threads, is done.
    """
    modules = list(model.modules())
    with _evaluated_lock:
        for module in modules:
            users, training = _evaluated.get(module, (0, module.training))
            _evaluated[module] = users + 1, training
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with _evaluated_lock:
            for module in modules:
                users, training = _evaluated.pop(module)
                if users > 1:
                    _evaluated[module] = users - 1, training
                elif training:
                    module.training = True


def mirrored_directions(flip: str | None, device: torch.device) -> Tensor | None:
    """For each direction, the channel that stands for it in a flipped view; `None` without a flip."""
    if flip is None:
        return None
    signs = [-1 if dimension == FLIPS[flip] else 1 for dimension in (0, 1)]
    mirrored = [DIRECTIONS.index((signs[0] * row, signs[1] * column)) for row, column in DIRECTIONS]
    return torch.tensor(mirrored, device=device)


def segment_views(
    views: Sequence[View],
    runner: WindowRunner,
    refine_boundaries: bool = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    return_scores: bool = False,
    return_boundaries: bool = False,
) -> SegmentationResult:
    """The result of one image from its views, which have the same `target_size`. See [`segment`]."""
    height, width = views[0].target_size
    if runner.num_labels is None:  # known from the first logits on
        runner.run(views[0])
    labels = runner.num_labels
    channels = labels + (2 + len(DIRECTIONS) if runner.with_boundaries else 0)
    widest = max(view.grid_size[1] * math.ceil(view.grid_size[0] / height) for view in views)
    band_rows = max(1, BAND_BYTES // (4 * channels * max(width, widest)))

    needs_probabilities = return_scores or len(views) > 1
    label_map = torch.empty(height, width, dtype=torch.uint8 if labels <= 256 else torch.int32)
    scores = torch.empty(labels, height, width) if return_scores else None
    probability = torch.empty(height, width) if return_boundaries else None
    boundary = torch.empty(height, width, dtype=torch.bool) if refine_boundaries else None
    direction = torch.empty(height, width, dtype=torch.uint8) if runner.with_boundaries else None
    for start in range(0, height, band_rows):
        stop = min(start + band_rows, height)
        sums = [0, 0, 0]
        for view in views:
            band = view.band(start, stop, runner)
            groups = [band]
            if runner.with_boundaries:
                groups = list(band.split([labels, 2, len(DIRECTIONS)], dim=-1))
                if view.flip is not None:
                    groups[2] = groups[2][..., mirrored_directions(view.flip, band.device)]
                groups[1] = groups[1].softmax(-1)
            if needs_probabilities:
                groups[0] = groups[0].softmax(-1)
                groups[2:] = [group.softmax(-1) for group in groups[2:]]
            sums = [total + group for total, group in zip(sums, groups)]
        label_map[start:stop] = sums[0].argmax(-1)
        if return_scores:
            scores[:, start:stop] = (sums[0] / len(views)).permute(2, 0, 1)
        if runner.with_boundaries:
            one = sums[1][..., 1] / len(views)
            direction[start:stop] = sums[2].argmax(-1)
            if return_boundaries:
                probability[start:stop] = one
            if refine_boundaries:
                boundary[start:stop] = one > boundary_threshold
    for view in views:
        view.logits.clear()

    if refine_boundaries:
        label_map, scores = refine(label_map, boundary, direction, boundary_steps, scores)
    return SegmentationResult(
        label_map=label_map.long(),
        scores=scores,
        boundary_probability=probability,
        direction_map=direction.long() if return_boundaries else None,
    )


def refine(
    label_map: Tensor, boundary: Tensor, direction: Tensor, steps: int = 1, scores: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """
    `unept_hf.model.boundary.refine_label_map` for large images: band by band, with few bytes for each pixel.

    Args:
        label_map: `(height, width)`, any dtype.
        boundary: `(height, width)`, bool: which pixels move.
        direction: `(height, width)`, any integer dtype, 0..7.
        steps: how many pixels to walk at most.
        scores: `(classes, height, width)`, which move along.

    Returns:
        The refined label map and scores, in their shapes and dtypes.

    Raises:
        ValueError: for `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"boundary_steps has to be at least 1, got {steps}.")
    height, width = label_map.shape
    refined, refined_scores = torch.empty_like(label_map), torch.empty_like(scores) if scores is not None else None
    # follow_direction takes about a hundred bytes for each pixel.
    band_rows = max(1, BAND_BYTES // (100 * width))
    for start in range(0, height, band_rows):
        stop = min(start + band_rows, height)
        # No walk leaves the rows within `steps`, so only those at the border of the image stop at one.
        upper, lower = max(0, start - steps), min(height, stop + steps)
        source = follow_direction(boundary[upper:lower], direction[upper:lower].long(), steps)
        source = source[(start - upper) * width : (stop - upper) * width]
        refined[start:stop] = label_map[upper:lower].flatten()[source].view(stop - start, width)
        if scores is not None:
            moved = scores[:, upper:lower].flatten(1)[:, source]
            refined_scores[:, start:stop] = moved.view(-1, stop - start, width)
    return refined, refined_scores


def read_image(processor, image) -> Tensor:
    """Pixels `(channels, height, width)`, uint8 or float32, of an image, an array, a tensor, a path or an address."""
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    do_convert_rgb = getattr(processor, "do_convert_rgb", None)
    pixels = image_to_tensor(image, True if do_convert_rgb is None else do_convert_rgb)
    do_rescale = getattr(processor, "do_rescale", False)
    rescale_factor = getattr(processor, "rescale_factor", None) or 1 / 255
    name = with_file("image", image)
    pixels = clip_to_pixels(pixels, do_rescale, rescale_factor, getattr(processor, "do_normalize", False), name)
    # Of 255 such numbers would be black, and those below 1 / 255 would be black of 1 too.
    if do_rescale and pixels.is_floating_point() and 1 / 255 <= pixels.max() <= WHITE_NORMALIZED:
        low, high = (float(limit) for limit in pixels.aminmax())
        raise ValueError(
            f"{name} holds floating point numbers in [{low:g}, {high:g}], but the image processor rescales from "
            "[0, 255]: bring it to that range, or pass a processor with do_rescale=False, and with do_normalize=False "
            "if the image is normalized already."
        )
    return pixels


def view_size(processor, size: tuple[int, int], scale: float, do_resize: bool, size_divisor: int) -> tuple[int, int]:
    """(height, width) in pixels that an image of `size` has in the view at `scale`."""
    if not do_resize:
        return size if scale == 1 else tuple(max(1, int(side * scale + 0.5)) for side in size)
    wanted = {name: max(1, int(value * scale)) for name, value in dict(processor.size).items() if value}
    if not ({"height", "width"} <= wanted.keys() or "shortest_edge" in wanted):
        raise ValueError(
            f"The image processor has size={dict(processor.size)}: a size of height and width, or of a shortest_edge, "
            "is needed, or do_resize=False."
        )
    height, width = resized_size(*size, SizeDict(**wanted), size_divisor)
    return tuple(max(1, round(side / size_divisor)) * size_divisor for side in (height, width))


def resize(processor, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels `(channels, height, width)`, resized as the image processor does it."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    is_pil = isinstance(processor, PilBackend)
    resized = processor.resize(
        pixels.numpy(force=True) if is_pil else pixels,
        SizeDict(height=size[0], width=size[1]),
        resample=processor.resample,
    )
    return torch.as_tensor(resized)


def make_views(
    processor,
    image,
    mode: str,
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    scales: Sequence[float],
    flips: Sequence[str | None],
    do_resize: bool,
    target_size: tuple[int, int] | None,
) -> list[View]:
    """The views of one image, scale by scale."""
    pixels = read_image(processor, image)
    size = tuple(pixels.shape[-2:])
    # Windows have the size that the model is given, so the image may have any.
    size_divisor = getattr(processor, "size_divisor", None) or 1
    views = []
    for scale in scales:
        new_size = view_size(processor, size, scale, do_resize, size_divisor if mode == "whole" else 1)
        resized = resize(processor, pixels, new_size)
        window_size = crop_size
        if mode == "whole":
            window_size = tuple(math.ceil(side / size_divisor) * size_divisor for side in new_size)
        for flip in flips:
            views.append(
                View(
                    resized if flip is None else resized.flip(1 + FLIPS[flip]),
                    target_size or size,
                    window_size,
                    stride if mode == "slide" else None,
                    flip,
                )
            )
    return views


def check_pair(name: str, value) -> tuple[int, int]:
    """A number or a pair of at least 1 as (height, width)."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(map(is_count, pair)):
        raise ValueError(f"{name} has to be a whole number of pixels from 1, or two of them, got {value!r}.")
    return int(pair[0]), int(pair[1])


def is_count(value) -> bool:
    """Whether a value is a whole number from 1."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def check_flips(flip: "bool | str | Sequence[str]") -> list[str | None]:
    """Which flips to add to the upright view."""
    if isinstance(flip, bool):
        flip = ["horizontal"] if flip else []
    names = list(flip) if isinstance(flip, (tuple, list)) else [flip]
    if not all(name in FLIPS for name in names):
        raise ValueError(f"flip has to be a boolean or made of {', '.join(FLIPS)}, got {flip!r}.")
    return [None, *names]


def check_options(
    model: nn.Module,
    mode: str = "whole",
    crop_size: int | tuple[int, int] = 480,
    stride: int | tuple[int, int] = 160,
    scales: Sequence[float] = (1.0,),
    flip: "bool | str | Sequence[str]" = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    batch_size: int = 4,
    autocast: torch.dtype | str | None = None,
) -> tuple[tuple[int, int], tuple[int, int], list[float], list[str | None], torch.dtype | None]:
    """
    Checks arguments of [`segment`], which describes them, before any image is read.

    Returns:
        `crop_size` and `stride` as pairs, `scales` as a list, the views to take by their flip, and `autocast` as a
        dtype.

    Raises:
        ValueError: for an argument that can not be used.
    """
    if mode not in ("whole", "slide"):
        raise ValueError(f"mode has to be 'whole' or 'slide', got {mode!r}.")
    crop_size, stride = check_pair("crop_size", crop_size), check_pair("stride", stride)
    if mode == "slide":
        if stride[0] > crop_size[0] or stride[1] > crop_size[1]:
            raise ValueError(f"stride {stride} leaves gaps between windows of crop_size {crop_size}: lower it.")
        divisor = getattr(getattr(model, "base_model", model), "size_divisor", 1)
        if crop_size[0] % divisor or crop_size[1] % divisor:
            raise ValueError(f"crop_size {crop_size} has to be made of multiples of {divisor}, the model's stride.")
    scales = [scales] if isinstance(scales, numbers.Real) else list(scales)
    if not scales or not all(isinstance(scale, numbers.Real) and 0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales has to hold at least one positive number, and nothing else, got {scales}.")
    if not (isinstance(boundary_threshold, numbers.Real) and 0 <= boundary_threshold <= 1):
        raise ValueError(f"boundary_threshold is a probability, from 0 to 1, got {boundary_threshold!r}.")
    for name, value in (("boundary_steps", boundary_steps), ("batch_size", batch_size)):
        if not is_count(value):
            raise ValueError(f"{name} has to be a whole number from 1, got {value!r}.")
    dtype = getattr(torch, autocast, None) if isinstance(autocast, str) else autocast
    if dtype not in (None, torch.bfloat16, torch.float16) or (dtype is None and autocast is not None):
        raise ValueError(f"autocast has to be torch.bfloat16 or torch.float16, or the name of one, got {autocast!r}.")
    return crop_size, stride, [float(scale) for scale in scales], check_flips(flip), dtype


def segment_batch(
    model: nn.Module,
    processor,
    images: Sequence,
    mode: str = "whole",
    crop_size: int | tuple[int, int] = 480,
    stride: int | tuple[int, int] = 160,
    scales: Sequence[float] = (1.0,),
    flip: "bool | str | Sequence[str]" = False,
    refine_boundaries: bool = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    batch_size: int = 4,
    return_scores: bool = False,
    return_boundaries: bool = False,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    do_resize: bool | None = None,
    autocast: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> list[SegmentationResult]:
    """
    [`segment`] for several images, whose windows share batches where they have the same size.

    Args:
        images: as `image` there.
        target_sizes: as `target_size` there, one for each image.
        model, processor, mode, crop_size, stride, scales, flip, refine_boundaries, boundary_threshold,
        boundary_steps, batch_size, return_scores, return_boundaries, do_resize, autocast, progress: see [`segment`].

    Returns:
        One [`SegmentationResult`] for each image, each the same as from [`segment`].

    Raises:
        ValueError: see [`segment`].
    """
    crop_size, stride, scales, flips, autocast_dtype = check_options(
        model, mode, crop_size, stride, scales, flip, boundary_threshold, boundary_steps, batch_size, autocast
    )
    if do_resize is None:
        do_resize = bool(getattr(processor, "do_resize", False))
    if target_sizes is None:
        target_sizes = [None] * len(images)
    elif len(target_sizes) != len(images):
        raise ValueError(f"There are {len(target_sizes)} target_sizes for {len(images)} images: pass one for each.")
    target_sizes = [size if size is None else check_pair("target_size", size) for size in target_sizes]

    runner = WindowRunner(model, processor, batch_size, refine_boundaries or return_boundaries, autocast_dtype)
    views = [
        make_views(processor, image, mode, crop_size, stride, scales, flips, do_resize, target_size)
        for image, target_size in zip(images, target_sizes)
    ]
    runner.views = [view for group in views for view in group]
    windows = sum(len(view.pending) for view in runner.views)
    is_short = windows < LONG_IMAGE_WINDOWS
    disable = not progress if progress is not None else is_short or None  # None: only on a terminal
    results = []
    with evaluation_mode(model), tqdm(total=windows, desc="Segmenting", unit="window", disable=disable) as bar:
        runner.progress = bar
        for group in views:
            results.append(
                segment_views(
                    group,
                    runner,
                    refine_boundaries,
                    boundary_threshold,
                    boundary_steps,
                    return_scores,
                    return_boundaries,
                )
            )
    return results


def segment(
    model: nn.Module,
    processor,
    image: "PIL.Image.Image | np.ndarray | Tensor | str | os.PathLike",
    mode: str = "whole",
    crop_size: int | tuple[int, int] = 480,
    stride: int | tuple[int, int] = 160,
    scales: Sequence[float] = (1.0,),
    flip: "bool | str | Sequence[str]" = False,
    refine_boundaries: bool = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    batch_size: int = 4,
    return_scores: bool = False,
    return_boundaries: bool = False,
    target_size: tuple[int, int] | None = None,
    do_resize: bool | None = None,
    autocast: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> SegmentationResult:
    """
    The label map of an image.

    The image processor resizes the image (as in the paper: to a shorter side of 512, with a longer one of at most
    2048) and normalises it; `scales` and `flip` add views of it. In mode "whole" the model sees a view at once, and
    its logits are resized to the target. In mode "slide" it sees windows of `crop_size` every `stride` pixels, with
    the last of a row or column moved back inside, and views smaller than the window padded with 0 at the bottom and
    right; logits are brought to the size of the window, averaged over the windows of a pixel, and resized to the
    target. All of it is bilinear with `align_corners=False`. Probabilities are averaged over the views.

    The largest pieces of working memory are the logits of the windows that a row of pixels can see, about
    `4 * num_labels * width * crop_size³ / (stride * query_stride)²` bytes for each view in mode "slide", the scores
    of all classes for a band of rows (a few times 64 MiB), and what the model needs for `batch_size` windows.

    Args:
        model: [`UneptForSemanticSegmentation`], or any semantic segmentation model of transformers. Runs on the
            device of its weights, in evaluation mode.
        processor: its image processor.
        image: PIL image, array or tensor of `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`, or the path or address of a file. Any size.
        mode: `"whole"` or `"slide"`.
        crop_size: (height, width) of the windows in pixels, or one number for both; multiples of the model's stride.
        stride: (rows, columns) from window to window in pixels, or one number for both.
        scales: factors on the processor's `size`, or on the size of the image with `do_resize=False`.
        flip: whether to add flipped views: `True` stands for `"horizontal"`; `"vertical"`, or a list of both.
        refine_boundaries: whether pixels at a boundary take the label (and the scores) found along their direction,
            away from the boundary. Needs a model with boundary heads.
        boundary_threshold: probability above which a pixel is at a boundary.
        boundary_steps: how many pixels of the target to walk at most.
        batch_size: how many windows the model gets at once. On the CPU it gets one after the other all the same, so
            that the result is the same to the last bit; on a GPU, ties up to rounding may fall differently.
        return_scores: whether to return the probabilities of all classes: `4 * num_labels` bytes for each pixel.
        return_boundaries: whether to return boundary probability and direction.
        target_size: (height, width) of the label map. `None` stands for that of the image.
        do_resize: whether the processor resizes the image first. `None` stands for the processor's own `do_resize`.
            `False` keeps the full resolution of large images in mode "slide".
        autocast: dtype to compute in, such as `torch.bfloat16` or its name. `None` stands for that of the weights.
        progress: whether to show a progress bar. `None` shows one on terminals for images of many windows.

    Returns:
        [`SegmentationResult`]. Ties between classes go to the lowest one.

    Raises:
        TypeError: for inputs that are not images.
        OSError: for files that are missing or damaged.
        ValueError: for images and arguments that can not be used, and for models without logits, or without boundary
            heads where these are needed. The message says what to do.
    """
    return segment_batch(
        model,
        processor,
        [image],
        mode=mode,
        crop_size=crop_size,
        stride=stride,
        scales=scales,
        flip=flip,
        refine_boundaries=refine_boundaries,
        boundary_threshold=boundary_threshold,
        boundary_steps=boundary_steps,
        batch_size=batch_size,
        return_scores=return_scores,
        return_boundaries=return_boundaries,
        target_sizes=None if target_size is None else [target_size],
        do_resize=do_resize,
        autocast=autocast,
        progress=progress,
    )[0]


__all__ = ["SegmentationResult", "evaluation_mode", "refine", "segment", "segment_batch"]
