# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The loss of UN-EPT: cross entropies of the logits, the boundaries, the directions and the refined logits.

Source: Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", section 3.4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .boundary import refine_logits
from .configuration_unept import UneptConfig


__all__ = ["balanced_cross_entropy", "segmentation_cross_entropy", "segmentation_loss"]


def _mean_over_processes(counts: Tensor) -> Tensor:
    """
    The mean of each count over the processes that train together. A loss divided by it instead of by the process's own
    count has, after data parallelism has averaged the gradients, the gradients of one process with the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    counts = counts.float()
    torch.distributed.all_reduce(counts)
    return counts / torch.distributed.get_world_size()


def segmentation_cross_entropy(logits: Tensor, labels: Tensor, config: UneptConfig, training: bool = False) -> Tensor:
    """
    Cross entropy: a mean over the labeled pixels, or over all pixels (`config.loss_reduction`).

    Raises:
        ValueError: for a label outside of the classes, on the CPU. Other devices check labels too, but without waiting
            for the result, so that the error comes later and from the device.
    """
    ignore_index = config.semantic_loss_ignore_index
    try:
        loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    except IndexError as error:
        raise ValueError(
            f"{error} labels must lie in 0..{logits.shape[1] - 1} or be {ignore_index} (semantic_loss_ignore_index): "
            "check num_labels, and whether the annotations need do_reduce_labels=True."
        ) from error
    if config.loss_reduction == "all":
        return loss / max(labels.numel(), 1)
    count = (labels != ignore_index).sum()
    count = _mean_over_processes(count) if training else count
    return loss / torch.where(count > 0, count, 1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, training: bool = False) -> Tensor:
    """Mean cross entropy, weighted by one minus the frequency of the label in the batch. Zero if no pixel counts."""
    counts = torch.stack([(labels == label).sum() for label in range(logits.shape[1])])
    counts = _mean_over_processes(counts) if training else counts
    total = counts.sum()
    weights = (1 - counts / torch.where(total > 0, total, 1)).to(logits.dtype)
    loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum")
    return loss / (weights * counts).sum().clamp(min=torch.finfo(logits.dtype).eps)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    config: UneptConfig,
    boundary_logits: Tensor | None = None,
    direction_logits: Tensor | None = None,
    boundary_map: Tensor | None = None,
    direction_map: Tensor | None = None,
    training: bool = False,
) -> dict[str, Tensor]:
    """
    The unweighted terms of the loss. Each is finite and differentiable, also when no pixel counts.

    Args:
        logits: `(batch, num_labels, h, w)`.
        labels: `(batch, height, width)`, int64.
        config: has the ignored label and the conventions.
        boundary_logits: `(batch, 2, h, w)`; without them the segmentation term is the only one.
        direction_logits: `(batch, 8, h, w)`.
        boundary_map: `(batch, height, width)`, int64, 0 or 1 or ignored.
        direction_map: `(batch, height, width)`, int64, 0..7 or ignored.
        training: whether pixels are counted over all processes of `torch.distributed`, each of which has a share of
            the batch and must call this.

    Returns:
        `segmentation` and, with boundary logits, `boundary`, `direction` and `refined_segmentation`; float32 `()`.
    """
    ignore_index = config.semantic_loss_ignore_index

    def upsample(tensor, align_corners):
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return F.interpolate(tensor, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)

    logits = upsample(logits, align_corners=False)
    losses = {"segmentation": segmentation_cross_entropy(logits, labels, config, training)}
    if boundary_logits is None:
        return losses
    assert direction_logits is not None
    assert boundary_map is not None and direction_map is not None, "boundary_map and direction_map go together"
    boundary_logits = upsample(boundary_logits, align_corners=config.boundary_align_corners)
    direction_logits = upsample(direction_logits, align_corners=config.boundary_align_corners)
    losses["boundary"] = balanced_cross_entropy(boundary_logits, boundary_map, ignore_index, training)

    boundary_probability = boundary_logits.detach().softmax(dim=1)[:, 1]
    if config.direction_loss_region == "predicted":
        region = boundary_probability > config.boundary_threshold
    else:
        region = boundary_map == 1
    losses["direction"] = balanced_cross_entropy(
        direction_logits, torch.where(region, direction_map, ignore_index), ignore_index, training
    )

    score = boundary_probability if config.refinement_score == "probability" else boundary_logits[:, 1]
    # `max` is about ten times as fast as `argmax` on a CPU.
    refined_logits = refine_logits(logits, score > config.boundary_threshold, direction_logits.max(dim=1).indices)
    losses["refined_segmentation"] = segmentation_cross_entropy(refined_logits, labels, config, training)
    return losses
