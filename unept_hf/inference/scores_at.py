# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The scores of all classes at one pixel, which take no memory for all the others."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .options import PredictionOptions
from .segment import evaluation_mode
from .windows import WindowRunner, make_views


__all__ = ["scores_at"]


def scores_at(
    model: nn.Module,
    processor: Any,
    image: Any,
    point: tuple[int, int],
    options: PredictionOptions | None = None,
    **overrides: Any,
) -> Tensor:
    """
    The probability of each class at a pixel, before boundary refinement.

    Args:
        model, processor, image, options, overrides: as in `segment`.
        point: (x, y) of the pixel in the image.

    Returns:
        float32 `(num_labels,)` on the CPU: what `segment` returns as `scores[:, y, x]` with `return_scores=True`.

    Raises:
        ValueError: for a point outside the image, and as `segment` does.
    """
    options = replace(options or PredictionOptions(), **overrides)
    options.check_model(model)
    views = make_views(processor, image, options, None)
    (height, width), (x, y) = views[0].target_size, point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"The point {point} lies outside the image of {width} x {height} pixels.")
    runner = WindowRunner(model, processor, options)
    with evaluation_mode(model):
        rows = [view.band(y, y + 1, runner)[0] for view in views]
    return torch.stack([row[x].softmax(-1) for row in rows]).mean(0).cpu()
