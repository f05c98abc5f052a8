# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The loss of UN-EPT: cross entropies of the logits, the boundaries, the directions and the refined logits.

Source: Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", section 3.4.
"""

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .boundary import follow_direction
from .configuration_unept import UneptConfig


__all__ = ["balanced_cross_entropy", "cross_entropy_sums", "segmentation_loss"]

# Of upsampled logits at once: few enough for the cache of a CPU. Other devices take 16 times as many, to be kept busy.
_BAND_BYTES = 2**23
# A band of fewer rows would depend on about as many rows of the logits, for which the columns are interpolated too.
_MIN_BAND_ROWS = 16

# Of this copy of the file: one from the Hub has operators of its own beside those of the package.
_NAMESPACE = re.sub(r"\W", "_", __name__)


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


def _interpolation_weights(cells: int, pixels: int, like: Tensor) -> Tensor:
    """`(cells, pixels)`: the share of each cell in each pixel of a line that is resized linearly."""
    identity = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], size=pixels, mode="linear", align_corners=False)[0]


def _bands(
    logits: Tensor, labels: Tensor, source: Tensor | None, ignore_index: int
) -> Iterator[tuple[slice, Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor]]]]:
    """
    The upsampled logits in bands of rows, and what each cross entropy reads from a band. Arguments are those of
    `cross_entropy_sums`.

    Yields:
        - the rows of `logits` that the band depends on;
        - their shares in the rows of the band, `(rows of logits, rows)`;
        - upsampled logits `(batch, num_labels, rows, width)`;
        - for each cross entropy three tensors `(batch, pixels)`: the pixel of the band that a pixel takes its logits
          from; the same as an index into `(num_labels, rows, width)` at the label; and whether it counts. A pixel that
          is not labeled or takes its logits from another band does not.
    """
    batch, num_labels, cell_rows, cell_columns = logits.shape
    height, width = labels.shape[1:]
    row_weights = _interpolation_weights(cell_rows, height, logits)
    column_weights = _interpolation_weights(cell_columns, width, logits)
    positions = torch.arange(height * width, device=labels.device).expand(batch, -1)
    labels = labels.flatten(1)

    row_bytes = batch * num_labels * width * logits.element_size()
    band_bytes = _BAND_BYTES if logits.device.type == "cpu" else 16 * _BAND_BYTES
    step = max(_MIN_BAND_ROWS, band_bytes // max(row_bytes, 1))
    for start in range(0, height, step):
        stop = min(start + step, height)
        # One more than needed on each side, because the weights are rounded.
        top = max(0, math.floor((start + 0.5) * cell_rows / height - 0.5) - 1)
        bottom = min(cell_rows, math.floor((stop - 0.5) * cell_rows / height - 0.5) + 3)
        cells = slice(top, bottom)
        band_weights = row_weights[cells, start:stop]
        scores = band_weights.T @ (logits[:, :, cells] @ column_weights)

        targets = []
        size = (stop - start) * width
        for pixels, margin in ((positions, 0), (source, 1)):
            if pixels is not None:
                taking = slice(max(start - margin, 0) * width, min(stop + margin, height) * width)
                pixel, label = pixels[:, taking] - start * width, labels[:, taking]
                counts = (label != ignore_index) & (pixel >= 0) & (pixel < size)
                pixel = pixel.clamp(0, size - 1)
                targets.append((pixel, torch.where(counts, label * size + pixel, pixel), counts))
        yield cells, band_weights, scores, targets


@torch.library.custom_op(f"{_NAMESPACE}::cross_entropy_sums", mutates_args=())
def cross_entropy_sums(logits: Tensor, labels: Tensor, source: Tensor | None, ignore_index: int) -> Tensor:
    """
    Sums of the cross entropy of upsampled logits, and of that of the refined ones.

    With `x` the logits upsampled to the size of the labels (bilinear, `align_corners=False`), `y` the labels and `q`
    the source, the sums over the labeled pixels `p` are

        sum_p (log sum_c exp x[c, p] - x[y[p], p])    and    sum_p (log sum_c exp x[c, q[p]] - x[y[p], q[p]])

    Both read one logarithm of the softmax, a band of rows at a time. The backward computes the bands again, so nothing
    of size `num_labels * height * width` is ever held, and has no second derivative.

    Args:
        logits: `(batch, num_labels, h, w)`, float32 or float64.
        labels: `(batch, height, width)`, int64.
        source: `(batch, height * width)`, int64: the pixel that each pixel takes its refined logits from, in its own
            row or the one before or after. Without it the first sum is the only one.
        ignore_index: label of the pixels that do not count.

    Returns:
        `(2,)`, or `(1,)` without a source, in the dtype of the logits.

    Raises:
        ValueError: for a label outside of the classes, on the CPU. Other devices check labels too, but without waiting
            for the result, so that the error comes later and from the device.
    """
    num_labels = logits.shape[1]
    if labels.device.type == "cpu":
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
        if len(wrong) > 0:
            raise ValueError(
                f"Target {wrong[0].item()} is out of bounds: labels must lie in 0..{num_labels - 1} or be "
                f"{ignore_index} (semantic_loss_ignore_index): check num_labels, and whether the annotations need "
                "do_reduce_labels=True."
            )
    sums = logits.new_zeros(1 if source is None else 2)
    with torch.autocast(logits.device.type, enabled=False):
        for _, _, scores, targets in _bands(logits, labels, source, ignore_index):
            log_probabilities = scores.log_softmax(1).flatten(1)
            for total, (_, index, counts) in zip(sums, targets):
                total -= torch.where(counts, log_probabilities.gather(1, index), 0).sum()
    return sums


@torch.library.custom_op(f"{_NAMESPACE}::cross_entropy_sums_backward", mutates_args=())
def _cross_entropy_sums_backward(
    grad_sums: Tensor, logits: Tensor, labels: Tensor, source: Tensor | None, ignore_index: int
) -> Tensor:
    grad_logits = torch.zeros_like(logits)
    column_weights = _interpolation_weights(logits.shape[3], labels.shape[2], logits)
    with torch.autocast(logits.device.type, enabled=False):
        for cells, band_weights, scores, targets in _bands(logits, labels, source, ignore_index):
            factors = scores.new_zeros(scores.shape[0], 1, *scores.shape[2:])
            grad_scores = scores.softmax(1)
            for grad, (pixel, _, counts) in zip(grad_sums, targets):
                factors.flatten(1).scatter_add_(1, pixel, torch.where(counts, grad, 0))
            grad_scores *= factors
            # Pixels that take their logits from one pixel add the same number to it, so that their order does not
            # matter where it is not fixed.
            for grad, (_, index, counts) in zip(grad_sums, targets):
                grad_scores.flatten(1).scatter_add_(1, index, torch.where(counts, -grad, 0))
            grad_logits[:, :, cells] += band_weights @ grad_scores @ column_weights.T
    return grad_logits


@cross_entropy_sums.register_fake
def _(logits, labels, source, ignore_index):
    return logits.new_empty(1 if source is None else 2)


@_cross_entropy_sums_backward.register_fake
def _(grad_sums, logits, labels, source, ignore_index):
    return torch.empty_like(logits)


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.ignore_index = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_sums):
    return _cross_entropy_sums_backward(grad_sums, *ctx.saved_tensors, ctx.ignore_index), None, None, None


cross_entropy_sums.register_autograd(_differentiate, setup_context=_save_inputs)


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

    def at_least_float32(tensor):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def segmentation_terms(source):
        sums = cross_entropy_sums(at_least_float32(logits), labels, source, ignore_index)
        if config.loss_reduction == "all":
            return sums / max(labels.numel(), 1)
        count = (labels != ignore_index).sum()
        count = _mean_over_processes(count) if training else count
        return sums / torch.where(count > 0, count, 1)

    if boundary_logits is None:
        return {"segmentation": segmentation_terms(None)[0]}
    assert direction_logits is not None
    assert boundary_map is not None and direction_map is not None, "boundary_map and direction_map go together"
    boundary_logits, direction_logits = (
        F.interpolate(
            at_least_float32(tensor),
            size=labels.shape[-2:],
            mode="bilinear",
            align_corners=config.boundary_align_corners,
        )
        for tensor in (boundary_logits, direction_logits)
    )
    boundary = balanced_cross_entropy(boundary_logits, boundary_map, ignore_index, training)

    boundary_probability = boundary_logits.detach().softmax(dim=1)[:, 1]
    if config.direction_loss_region == "predicted":
        region = boundary_probability > config.boundary_threshold
    else:
        region = boundary_map == 1
    direction = balanced_cross_entropy(
        direction_logits, torch.where(region, direction_map, ignore_index), ignore_index, training
    )

    score = boundary_probability if config.refinement_score == "probability" else boundary_logits[:, 1]
    # `max` is about ten times as fast as `argmax` on a CPU.
    source = follow_direction(score > config.boundary_threshold, direction_logits.max(dim=1).indices)
    segmentation, refined_segmentation = segmentation_terms(source)
    return {
        "segmentation": segmentation,
        "boundary": boundary,
        "direction": direction,
        "refined_segmentation": refined_segmentation,
    }
