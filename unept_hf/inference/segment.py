# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Label maps of images of any size: whole or in sliding windows, at several scales, flipped, with refined boundaries.

The memory is bounded: scores of all classes exist for a band of rows at a time, and of the logits only what `windows`
keeps.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.modeling_outputs import ModelOutput

from ..model.boundary import DIRECTIONS
from ..model.image_reading import label_map_to_tensor, with_file
from .bands import bands, refine_in_bands
from .options import FLIPS, PredictionOptions
from .windows import View, WindowRunner, make_views


__all__ = [
    "SegmentationResult",
    "check_boundary_heads",
    "evaluation_mode",
    "segment",
    "segment_batch",
    "segment_views",
]

# A progress bar appears from this number of windows on, unless the caller decides.
LONG_IMAGE_WINDOWS = 64


@dataclass
class SegmentationResult(ModelOutput):
    """
    What `segment` returns, on the CPU.

    Args:
        label_map (`torch.LongTensor` of shape `(height, width)`):
            Class of each pixel.
        scores (`torch.FloatTensor` of shape `(num_labels, height, width)`, *optional*, with `return_scores=True`):
            Probability of each class, averaged over the views.
        boundary_probability (`torch.FloatTensor` of shape `(height, width)`, *optional*, with
            `return_boundaries=True`): Probability of being at a boundary.
        direction_map (`torch.LongTensor` of shape `(height, width)`, *optional*, with `return_boundaries=True`):
            Direction 0..7 that leads away from the nearest boundary; the steps are in `model.boundary.DIRECTIONS`.
        direction_probability (`torch.FloatTensor` of shape `(height, width)`, *optional*, with
            `return_boundaries=True`): Probability of that direction among the 8, averaged over the views.
        confidence (`torch.FloatTensor` of shape `(height, width)`, *optional*, with `return_confidence=True`):
            Probability of the class in `label_map`, averaged over the views. With refined boundaries, that of the
            pixel from which the label was taken.
        reference_probability (`torch.FloatTensor` of shape `(height, width)`, *optional*, with `references`):
            Probability of the true class without refinement, averaged over the views; NaN where there is none.
    """

    label_map: Tensor
    scores: Tensor | None = None
    boundary_probability: Tensor | None = None
    direction_map: Tensor | None = None
    direction_probability: Tensor | None = None
    confidence: Tensor | None = None
    reference_probability: Tensor | None = None

    def refined(
        self, threshold: float = 0.5, steps: int = 1, direction_threshold: float = 0.0, inside_only: bool = False
    ) -> "SegmentationResult":
        """
        The result with refined boundaries, which needs a result of `return_boundaries=True`.

        Args:
            threshold: probability above which a pixel is at a boundary.
            steps: largest number of pixels to walk, at least 1.
            direction_threshold: probability of its direction below which a pixel counts as inside of an object.
            inside_only: whether a pixel keeps its label if its walk ends at a boundary pixel.

        Returns:
            A result in which the pixels at a boundary have the label, the scores and the confidence found along their
            direction, away from the boundary. The other fields stay as they are.
        """
        assert self.boundary_probability is not None and self.direction_map is not None, "pass return_boundaries=True"
        boundary = self.boundary_probability > threshold
        if direction_threshold > 0:
            assert self.direction_probability is not None, "pass return_boundaries=True"
            boundary &= self.direction_probability >= direction_threshold
        label_map, scores, confidence = refine_in_bands(
            self.label_map, boundary, self.direction_map, steps, inside_only, self.scores, self.confidence
        )
        return replace(self, label_map=label_map, scores=scores, confidence=confidence)


# How many evaluate each module at present, and whether it was in training mode before the first of them.
_evaluated: dict[nn.Module, tuple[int, bool]] = {}
_evaluated_lock = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    Puts a model into evaluation mode without gradients, and each of its modules back into its own mode after: when
    the last user, in whatever thread, is done.
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


def _mirrored_directions(flip: str, device: torch.device) -> Tensor:
    """For each direction, the channel that stands for it in a flipped view."""
    signs = [-1 if dimension == FLIPS[flip] else 1 for dimension in (0, 1)]
    mirrored = [DIRECTIONS.index((signs[0] * row, signs[1] * column)) for row, column in DIRECTIONS]
    return torch.tensor(mirrored, device=device)


def check_boundary_heads(model: nn.Module) -> None:
    """
    Checks that a model can refine label maps.

    Raises:
        ValueError: if it has no boundary heads.
    """
    if getattr(model, "direction_head", None) is None:
        raise ValueError(
            f"{type(model).__name__} has no boundary heads, which refine label maps: pass a UN-EPT with "
            "use_boundary_heads=True."
        )


def _read_label_map(label_map: Any, size: tuple[int, int]) -> Tensor:
    """A label map of any model for an image of `size`, int64 `(height, width)`."""
    labels = label_map.numpy(force=True) if isinstance(label_map, Tensor) else np.asarray(label_map)
    # Unlabeled pixels may have a negative number.
    ignore_index = int(np.nanmin(labels, initial=0))
    return label_map_to_tensor(labels, size, ignore_index, with_file("label_map", label_map))


def segment_views(
    views: Sequence[View],
    runner: WindowRunner,
    return_scores: bool = False,
    return_boundaries: bool = False,
    return_confidence: bool = False,
    label_map: Any = None,
    reference: Any = None,
) -> SegmentationResult:
    """
    The result of one image from its views, which have the same `target_size`. `label_map`, if given, takes the place
    of the classes, which a runner without classes does not predict. `reference`: see `segment_batch`.
    """
    options, with_boundaries = runner.options, runner.with_boundaries
    height, width = views[0].target_size
    if runner.with_classes and not runner.num_labels:
        runner.run(views[0])
    labels = runner.num_labels
    channels = labels + (2 + len(DIRECTIONS) if with_boundaries else 0)
    widest = max(view.grid_size[1] * math.ceil(view.grid_size[0] / height) for view in views)

    needs_probabilities = return_scores or len(views) > 1
    predicted = torch.empty(height, width, dtype=torch.uint8 if labels <= 256 else torch.int32)
    result = SegmentationResult(predicted if runner.with_classes else _read_label_map(label_map, (height, width)))
    if return_scores:
        result.scores = torch.empty(labels, height, width)
    if return_confidence and runner.with_classes:
        result.confidence = torch.empty(height, width)
    if reference is not None and runner.with_classes:
        result.reference_probability = torch.empty(height, width)
    if with_boundaries:
        result.boundary_probability = torch.empty(height, width)
        result.direction_map = torch.empty(height, width, dtype=torch.uint8)
        result.direction_probability = torch.empty(height, width)
    for start, stop in bands(height, 4 * channels * max(width, widest)):
        sums: list[Tensor] = []
        for view in views:
            band = view.band(start, stop, runner)
            groups = [band]
            if with_boundaries:
                groups = list(band.split([labels, 2, len(DIRECTIONS)], dim=-1))
                if view.flip is not None:
                    groups[2] = groups[2][..., _mirrored_directions(view.flip, band.device)]
                groups[1] = groups[1].softmax(-1)
            if needs_probabilities:
                groups[0] = groups[0].softmax(-1)
                groups[2:] = [group.softmax(-1) for group in groups[2:]]
            sums = [total + group for total, group in zip(sums, groups)] if sums else groups
        if runner.with_classes:
            result.label_map[start:stop] = sums[0].argmax(-1)
        if result.scores is not None:
            result.scores[:, start:stop] = (sums[0] / len(views)).permute(2, 0, 1)
        if result.confidence is not None or result.reference_probability is not None:
            probabilities = sums[0] / len(views) if needs_probabilities else sums[0].softmax(-1)
            if result.confidence is not None:
                result.confidence[start:stop] = probabilities.amax(-1)
            if result.reference_probability is not None:
                true = torch.as_tensor(np.asarray(reference[start:stop], np.int64), device=probabilities.device)
                is_class = (true >= 0) & (true < labels)
                found = probabilities.gather(-1, torch.where(is_class, true, 0)[..., None])[..., 0]
                result.reference_probability[start:stop] = torch.where(is_class, found, torch.nan)
        if result.boundary_probability is not None and result.direction_map is not None:
            result.boundary_probability[start:stop] = sums[1][..., 1] / len(views)
            result.direction_map[start:stop] = sums[2].argmax(-1)
        if result.direction_probability is not None:
            probabilities = sums[2] / len(views) if needs_probabilities else sums[2].softmax(-1)
            result.direction_probability[start:stop] = probabilities.amax(-1)
    for view in views:
        view.logits.clear()

    if options.refine_boundaries:
        result = result.refined(**options.refinement)
    return SegmentationResult(
        label_map=result.label_map.long(),
        scores=result.scores,
        boundary_probability=result.boundary_probability if return_boundaries else None,
        direction_map=result.direction_map.long() if return_boundaries and result.direction_map is not None else None,
        direction_probability=result.direction_probability if return_boundaries else None,
        confidence=result.confidence,
        reference_probability=result.reference_probability,
    )


def segment_batch(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    options: PredictionOptions | None = None,
    *,
    return_scores: bool = False,
    return_boundaries: bool = False,
    return_confidence: bool = False,
    target_sizes: Sequence[tuple[int, int] | None] | None = None,
    label_maps: Sequence[Any] | None = None,
    references: Sequence[Any] | None = None,
    progress: bool | None = None,
    **overrides: Any,
) -> list[SegmentationResult]:
    """
    `segment` for several images, whose windows share batches where they have the same size.

    Args:
        images: as `image` there.
        target_sizes: as `target_size` there, one for each image.
        label_maps: of any other model, one for each image, as `label_map` in `unept_hf.refine`. They take the place
            of the label maps of `model`, whose classes, scores and confidence are not computed.
        references: the true labels of each image, integers of its target size, for `reference_probability`.
        model, processor, options, return_scores, return_boundaries, return_confidence, progress, overrides: see
            `segment`.

    Returns:
        One `SegmentationResult` for each image, each the same as from `segment`.

    Raises:
        ValueError: see `segment`; for label maps that are not of the size of their image.
    """
    options = replace(options or PredictionOptions(), **overrides)
    options.check_model(model)
    if label_maps is not None:
        check_boundary_heads(model)
    target_sizes = [None] * len(images) if target_sizes is None else target_sizes
    with_classes = label_maps is None
    with_boundaries = options.refine_boundaries or return_boundaries or not with_classes
    runner = WindowRunner(model, processor, options, with_boundaries, with_classes)
    views = [
        make_views(processor, image, options, target_size)
        for image, target_size in zip(images, target_sizes, strict=True)
    ]
    runner.views = [view for group in views for view in group]
    windows = sum(len(view.pending) for view in runner.views)
    is_short = windows < LONG_IMAGE_WINDOWS
    disable = not progress if progress is not None else is_short or None  # None: only on a terminal
    with evaluation_mode(model), tqdm(total=windows, desc="Segmenting", unit="window", disable=disable) as bar:
        runner.progress = bar
        return [
            segment_views(group, runner, return_scores, return_boundaries, return_confidence, label_map, reference)
            for group, label_map, reference in zip(
                views, label_maps or [None] * len(images), references or [None] * len(images), strict=True
            )
        ]


def segment(
    model: nn.Module,
    processor: Any,
    image: "PIL.Image.Image | np.ndarray | Tensor | str | os.PathLike",
    options: PredictionOptions | None = None,
    *,
    return_scores: bool = False,
    return_boundaries: bool = False,
    return_confidence: bool = False,
    target_size: tuple[int, int] | None = None,
    progress: bool | None = None,
    **overrides: Any,
) -> SegmentationResult:
    """
    The label map of an image.

    The image processor resizes the image (as in the paper: to a shorter side of 512, with a longer side of at most
    2048) and normalizes it; `scales` and `flip` add views of it. In mode "whole" the model sees a view at once, and
    its logits are resized to the target. In mode "slide" it sees windows of `crop_size` every `stride` pixels, with
    the last of a row or column moved back inside, and views smaller than the window padded with 0 at the bottom and
    right; logits are brought to the size of the window, averaged over the windows of a pixel, and resized to the
    target. All of it is bilinear with `align_corners=False`. Probabilities are averaged over the views.

    The largest pieces of working memory are the logits of the windows that a row of pixels can see, about
    `4 * num_labels * width * crop_size³ / (stride * query_stride)²` bytes for each view in mode "slide", the scores
    of all classes for a band of rows (a few times 64 MiB), and what the model needs for `batch_size` windows.

    Args:
        model: `UneptForSemanticSegmentation`, or any semantic segmentation model of transformers. Runs on the device
            of its weights, in evaluation mode.
        processor: its image processor.
        image: PIL image, array or tensor of `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`, or the path or address of a file. Any size.
        options: how to predict; `None` stands for the defaults of `PredictionOptions`.
        return_scores: whether to return the probabilities of all classes: `4 * num_labels` bytes for each pixel.
        return_boundaries: whether to return boundary probability and direction.
        return_confidence: whether to return the probability of the class of each pixel: 4 bytes for each pixel.
        target_size: (height, width) of the label map. `None` stands for the size of the image.
        progress: whether to show a progress bar. `None` shows one on terminals for images of many windows.
        overrides: fields of `PredictionOptions` that replace the values in `options`, such as `mode="slide"`.

    Returns:
        `SegmentationResult`. Ties between classes go to the lowest class.

    Raises:
        TypeError: for inputs that are not images.
        OSError: for files that are missing or damaged.
        ValueError: for images and options that cannot be used, and for models without logits, or without boundary
            heads where these are needed. The message says what to do.
    """
    return segment_batch(
        model,
        processor,
        [image],
        options,
        return_scores=return_scores,
        return_boundaries=return_boundaries,
        return_confidence=return_confidence,
        target_sizes=[target_size],
        progress=progress,
        **overrides,
    )[0]
