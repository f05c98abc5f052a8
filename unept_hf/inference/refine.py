# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Boundary refinement of label maps that any other model has predicted."""

import os
from typing import Any, TypeVar

import numpy as np
import PIL.Image
from torch import Tensor, nn

from .options import PredictionOptions
from .segment import segment_batch


__all__ = ["refine"]

LabelMap = TypeVar("LabelMap", np.ndarray, PIL.Image.Image, Tensor)


def refine(
    model: nn.Module,
    processor: Any,
    image: "PIL.Image.Image | np.ndarray | Tensor | str | os.PathLike",
    label_map: LabelMap,
    options: PredictionOptions | None = None,
    *,
    progress: bool | None = None,
    **overrides: Any,
) -> LabelMap:
    """
    The label map of any other model with the boundaries that UN-EPT sees in the image.

    The boundary heads say which pixels are at a boundary, and which way leads into the object. These pixels take the
    label found along their direction, as with `segment(..., refine_boundaries=True)`. Only the spatial branch and the
    heads of UN-EPT run. The classes of the two models do not matter. The memory is bounded as in `segment`.

    Source: UN-EPT, section 3.3; the idea to refine any model is that of SegFix (Yuan et al., ECCV 2020).

    Args:
        model: `UneptForSemanticSegmentation` with boundary heads. Runs on the device of its weights, in evaluation
            mode.
        processor: its image processor.
        image: as in `segment`.
        label_map: the class of each pixel of the image, whole numbers of any dtype, `(height, width)`: an array, a
            tensor, or a PIL image with one channel. Unlabeled pixels move like all others.
        options: how to predict boundaries and directions; `None` stands for the defaults of `PredictionOptions`.
        progress: whether to show a progress bar. `None` shows one on terminals for images of many windows.
        overrides: fields of `PredictionOptions` that replace the values in `options`, such as `boundary_steps=3`.

    Returns:
        A new label map of the kind that was given: an array of its dtype, a tensor of its dtype and on its device, or
        a PIL image with its palette.

    Raises:
        TypeError: for inputs that are not images.
        OSError: for image files that are missing or damaged.
        ValueError: for a model without boundary heads, for a label map of another size than the image or with
            fractions, and for images and options that cannot be used.
    """
    overrides["refine_boundaries"] = True
    result = segment_batch(model, processor, [image], options, label_maps=[label_map], progress=progress, **overrides)
    refined = result[0].label_map
    if isinstance(label_map, Tensor):
        return refined.to(label_map).view_as(label_map)
    given = np.asarray(label_map)
    array = refined.numpy().astype(given.dtype).reshape(given.shape)
    if not isinstance(label_map, PIL.Image.Image):
        return array
    picture = PIL.Image.fromarray(array)
    if palette := label_map.getpalette():
        picture.putpalette(palette)
    return picture
