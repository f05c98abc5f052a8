# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
From the outputs of UN-EPT to one label map for each image, at any size.

Needs nothing but torch and transformers' output class, so both image processors share it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .boundary import follow_direction


__all__ = ["output_field", "post_process_semantic_segmentation"]

# Resized scores that are held at once while looking for the best class: all 150 classes of ADE20K at 1024x2048 would
# take 1.2 GB.
_CHUNK_BYTES = 64 * 2**20


def _resize_logits(logits: Tensor, covered: tuple[float, float], size: tuple[int, int] | None) -> Tensor:
    """The covered rows and columns of logits `(channels, height, width)`, resized to `size` in at least float32."""
    rows, columns = covered
    logits = logits[:, : math.ceil(rows), : math.ceil(columns)]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    if size is None:
        return logits
    if rows == logits.shape[1] and columns == logits.shape[2]:
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    # The operator behind `interpolate` takes the size and the scales apart from each other, which an image that ends
    # within a cell needs: the size comes from the target, the scale from the part of the cells that it covers.
    return torch.ops.aten.upsample_bilinear2d(logits[None], size, False, size[0] / rows, size[1] / columns)[0]


def _best_channel(logits: Tensor, covered: tuple[float, float], size: tuple[int, int] | None) -> Tensor:
    """The argmax over the channels of `_resize_logits`, which never holds its whole result."""
    channels = logits.shape[0]
    height, width = size if size is not None else logits.shape[1:]
    # PyTorch may resize three channels by other code, and round the last bit differently. To get exactly the argmax of
    # all classes, chunks have the same size, which is a power of two, and the last one overlaps the one before.
    step = min(channels, 2 ** int(math.log2(max(1, _CHUNK_BYTES // (4 * height * width)))))
    best_score, best = _resize_logits(logits[:step], covered, size).max(dim=0)
    for start in range(step, channels, step):
        start = min(start, channels - step)
        score, channel = _resize_logits(logits[start : start + step], covered, size).max(dim=0)
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best = torch.where(better, channel + start, best)
    return best


def output_field(outputs, name: str):
    """Field `name` of a `ModelOutput`, a dictionary or any other object; `None` if there is none."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _check_sizes(target_sizes, logits_sizes, logits: Tensor) -> list[tuple]:
    """Of each image the size of its label map, and the rows and columns of logits that it covers, perhaps in part."""
    batch_size, _, height, width = logits.shape
    targets = [None] * batch_size if target_sizes is None else [tuple(map(int, size)) for size in target_sizes]
    covered = [(height, width)] * batch_size if logits_sizes is None else torch.as_tensor(logits_sizes).tolist()
    if not len(targets) == len(covered) == batch_size:
        raise ValueError(
            f"There are {len(targets)} target_sizes and {len(covered)} logits_sizes for the logits of {batch_size} "
            "images: pass one (height, width) for each image."
        )
    for rows, columns in covered:
        if not (0 < rows <= height and 0 < columns <= width):
            raise ValueError(
                f"logits_sizes {(rows, columns)} does not fit logits of size {(height, width)}: the image_sizes given "
                "to the model must be the (height, width) of the images within the padded batch, as the image "
                "processor returns them, not of the original images."
            )
    return list(zip(targets, covered))


@torch.no_grad()
def post_process_semantic_segmentation(
    outputs,
    target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
    return_segmentation_scores: bool = False,
    refine_boundaries: bool = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    boundary_direction_threshold: float = 0.0,
    boundary_inside_only: bool = False,
) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
    """
    Label maps from the outputs of [`UneptForSemanticSegmentation`].

    Logits are resized straight to the target size (bilinear, `align_corners=False`, in at least float32). Unless the
    scores are asked for, they are never held for all classes at once, which bounds the memory for large images.

    Args:
        outputs: A `ModelOutput`, dictionary or other object with
            - `logits`: `(batch_size, num_labels, height, width)`;
            - optionally `logits_sizes`: `(batch_size, 2)`, rows and columns of the logits that each image of a padded
              batch covers. Then the padding is left out. Otherwise the logits stand for the image alone;
            - `boundary_logits` `(batch_size, 2, height, width)` and `direction_logits`
              `(batch_size, 8, height, width)`, to refine boundaries.
        target_sizes: (height, width) of each label map in pixels: a list of pairs or a tensor `(batch_size, 2)`.
            `None` gives label maps of the logits' resolution.
        return_segmentation_scores: Whether to return the scores of all classes too.
        refine_boundaries: Whether pixels at a boundary take the label (and the scores) found along their direction,
            away from the boundary.
        boundary_threshold: Probability above which a pixel is at a boundary.
        boundary_steps: How many pixels of the target to walk at most.
        boundary_direction_threshold: Probability of its direction below which a pixel counts as inside of an object.
        boundary_inside_only: Whether a pixel keeps its label if its walk ends at a boundary pixel.

    Returns:
        A list of `batch_size` label maps `(height, width)`, int64, on the device of the logits. Ties between classes
        go to the lowest one. With `return_segmentation_scores=True` a list of
        [`SemanticSegmentationPostProcessorOutput`] with `segmentation` (the label map) and `segmentation_scores`
        `(num_labels, height, width)`: its resized logits, without gradient.

    Raises:
        ValueError: if `target_sizes` or `logits_sizes` do not fit the logits, or the outputs lack the logits for
            `refine_boundaries`.
    """
    logits, boundary_logits, direction_logits = (
        output_field(outputs, name) for name in ("logits", "boundary_logits", "direction_logits")
    )
    if refine_boundaries and (boundary_logits is None or direction_logits is None):
        raise ValueError(
            "refine_boundaries=True needs outputs with boundary_logits and direction_logits. Use a model with "
            "boundary heads, or refine_boundaries=False."
        )
    results: list = []
    for index, (size, cells) in enumerate(_check_sizes(target_sizes, output_field(outputs, "logits_sizes"), logits)):
        scores = _resize_logits(logits[index], cells, size) if return_segmentation_scores else None
        labels = _best_channel(logits[index], cells, size) if scores is None else scores.max(dim=0).indices
        if refine_boundaries:
            boundary = _resize_logits(boundary_logits[index], cells, size).softmax(dim=0)[1] > boundary_threshold
            if boundary_direction_threshold > 0:
                probabilities = _resize_logits(direction_logits[index], cells, size).softmax(dim=0)
                boundary &= probabilities.amax(dim=0) >= boundary_direction_threshold
            direction = _best_channel(direction_logits[index], cells, size)
            source = follow_direction(boundary, direction, boundary_steps, boundary_inside_only).view_as(labels)
            labels = labels.flatten()[source]
            scores = scores.flatten(1)[:, source] if scores is not None else None
        if scores is None:
            results.append(labels)
        else:
            data = {"segmentation": labels, "segmentation_scores": scores}
            results.append(SemanticSegmentationPostProcessorOutput(data=data))
    return results
