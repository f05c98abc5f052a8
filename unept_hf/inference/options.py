# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of a prediction, which Python calls, commands and the demo page share."""

import itertools
import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..arguments import option


__all__ = ["FLIPS", "PredictionOptions"]

FLIPS = {"horizontal": 1, "vertical": 0}  # name of a flip -> the dimension of (height, width) that it reverses


@dataclass
class PredictionOptions:
    """
    How to predict a label map. The defaults are those of the paper at a single scale.

    Args:
        mode: `"whole"`: the model sees a view at once, and its logits are resized to the target. `"slide"`: it sees
            windows of `crop_size` every `stride` pixels, with the last window of a row or column moved back inside.
        crop_size: (height, width) of the windows in pixels, or one number for both; multiples of the model's stride.
        stride: (rows, columns) between windows in pixels, or one number for both; at most `crop_size`.
        scales: factors on the processor's `size`, or on the size of the image with `do_resize=False`; one view each.
        flip: whether to add flipped views: `True` or `"horizontal"`, `"vertical"`, or a list of both.
        do_resize: whether the image processor resizes the image first; `None` stands for its own setting. `False`
            keeps the full resolution of large images in mode `"slide"`.
        refine_boundaries: whether pixels at a boundary take the label found along their direction, away from the
            boundary. Needs a model with boundary heads.
        boundary_threshold: probability above which a pixel is at a boundary.
        boundary_steps: largest number of pixels of the target that the refinement walks.
        boundary_direction_threshold: probability of its direction below which a pixel counts as inside of an object,
            so that it keeps its label. The most probable of 8 directions has at least 1/8.
        boundary_inside_only: whether a pixel keeps its label if its walk ends at a boundary pixel.
        batch_size: how many windows the model gets at once. On the CPU it gets one after the other all the same, so
            that the result is the same to the last bit; on a GPU, ties up to rounding may fall differently.
        autocast: dtype to compute in, `"bfloat16"` or `"float16"` (or the torch dtype); `None` stands for the dtype of
            the weights.

    Raises:
        ValueError: for a value that cannot be used.
    """

    mode: str = option("whole", "Whole images or sliding windows.", choices=["whole", "slide"])
    crop_size: list[int] = option([480], "Size of the windows in pixels: one number, or height and width.")
    stride: list[int] = option([160], "Pixels between windows: one number, or rows and columns.")
    scales: list[float] = option([1.0], "Factors on the size of the images; one view each.")
    flip: bool | str = option(False, "Add mirrored views.")
    do_resize: bool | None = option(None, "Whether the image processor resizes first; its own setting by default.")
    refine_boundaries: bool = option(False, "Refine the boundaries.")
    boundary_threshold: float = option(0.5, "Probability above which a pixel is at a boundary.")
    boundary_steps: int = option(1, "Largest number of pixels that the refinement walks.")
    boundary_direction_threshold: float = option(
        0.0, "Probability of its direction below which a pixel at a boundary keeps its label."
    )
    boundary_inside_only: bool = option(False, "Keep the label of a pixel whose walk ends at a boundary pixel.")
    batch_size: int = option(4, "Number of windows that the model gets at once.")
    autocast: Literal["bfloat16", "float16"] | None = option(
        None, "Dtype to compute in; the dtype of the weights by default."
    )

    def __post_init__(self):
        self.crop_size, self.stride = _pair(self.crop_size), _pair(self.stride)
        self.scales = [self.scales] if isinstance(self.scales, numbers.Real) else [float(one) for one in self.scales]
        if isinstance(self.autocast, torch.dtype):
            self.autocast = str(self.autocast).removeprefix("torch.")
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems) + ".")

    def _problems(self) -> Iterator[str]:
        if self.mode not in ("whole", "slide"):
            yield f"mode must be 'whole' or 'slide', got {self.mode!r}"
        windows = self.crop_size, self.stride
        for name, sides in zip(("crop_size", "stride"), windows):
            if len(sides) != 2 or not all(map(_is_count, sides)):
                yield f"{name} must be one or two numbers of pixels, each at least 1, got {sides}"
        are_counts = all(map(_is_count, itertools.chain(*windows)))
        if self.mode == "slide" and are_counts and any(step > side for side, step in zip(*windows)):
            yield f"stride {self.stride} leaves gaps between windows of crop_size {self.crop_size}"
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            yield f"scales must be positive numbers, got {self.scales}"
        if not all(flip in FLIPS for flip in self.flips[1:]):
            yield f"flip must be a boolean or made of {', '.join(FLIPS)}, got {self.flip!r}"
        for name in ("boundary_threshold", "boundary_direction_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} must be a probability in [0, 1], got {getattr(self, name)}"
        for name in ("boundary_steps", "batch_size"):
            if not _is_count(getattr(self, name)):
                yield f"{name} must be an integer of at least 1, got {getattr(self, name)!r}"
        if self.autocast not in (None, "bfloat16", "float16"):
            yield f"autocast must be 'bfloat16' or 'float16', got {self.autocast!r}"

    @property
    def flips(self) -> list[str | None]:
        """The flip of each view of one scale; `None` for the upright view."""
        if isinstance(self.flip, bool):
            return [None, "horizontal"] if self.flip else [None]
        return [None, self.flip] if isinstance(self.flip, str) else [None, *self.flip]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return None if self.autocast is None else getattr(torch, self.autocast)

    @property
    def refinement(self) -> dict[str, Any]:
        """The arguments of `SegmentationResult.refined`."""
        return {
            "threshold": self.boundary_threshold,
            "steps": self.boundary_steps,
            "direction_threshold": self.boundary_direction_threshold,
            "inside_only": self.boundary_inside_only,
        }

    def check_model(self, model: nn.Module) -> None:
        """
        Checks that windows of `crop_size` fit a model.

        Raises:
            ValueError: if a side is not a multiple of the model's stride.
        """
        divisor = getattr(getattr(model, "base_model", model), "size_divisor", 1)
        if self.mode == "slide" and any(side % divisor for side in self.crop_size):
            raise ValueError(f"crop_size {self.crop_size} must be made of multiples of {divisor}, the model's stride.")


def _pair(value) -> list[int]:
    sides = list(value) if isinstance(value, (tuple, list)) else [value]
    return sides * 2 if len(sides) == 1 else sides


def _is_count(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
