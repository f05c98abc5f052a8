# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The loss of UN-EPT: cross entropies of the logits, the boundaries, the directions and the refined logits.

Class weights, label smoothing, hard example mining and the losses of overlap are options that are not in the paper.

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


__all__ = ["balanced_cross_entropy", "dice_loss", "lovasz_loss", "pixel_cross_entropy", "segmentation_loss"]

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
) -> Iterator[tuple[slice, Tensor, Tensor, list[tuple[slice, Tensor, Tensor, Tensor]]]]:
    """
    The upsampled logits in bands of rows, and what each cross entropy reads from a band. Arguments are those of
    `pixel_cross_entropy`.

    Yields:
        - the rows of `logits` that the band depends on;
        - their shares in the rows of the band, `(rows of logits, rows)`;
        - upsampled logits `(batch, num_labels, rows, width)`;
        - for each cross entropy four things: the pixels of the image that may take their logits from the band, as a
          slice; and three tensors `(batch, pixels)`: the pixel of the band that each takes its logits from; the same
          as an index into `(num_labels, rows, width)` at the label; and whether it counts. A pixel that is not
          labeled or takes its logits from another band does not.
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
                targets.append((taking, pixel, torch.where(counts, label * size + pixel, pixel), counts))
        yield cells, band_weights, scores, targets


@torch.library.custom_op(f"{_NAMESPACE}::pixel_cross_entropy", mutates_args=())
def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    source: Tensor | None,
    ignore_index: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """
    The cross entropy of upsampled logits at each pixel, and that of the refined ones.

    With `x` the logits upsampled to the size of the labels (bilinear, `align_corners=False`), `y` the labels, `q` the
    source, `w` the weights of the `C` classes and `s` the label smoothing, the losses of a labeled pixel `p` are
    `l(p, p)` and `l(q[p], p)` of

        l(r, p) = -(1 - s) w[y[p]] log_softmax(x[:, r])[y[p]] - s / C sum_c w[c] log_softmax(x[:, r])[c]

    as in `torch.nn.functional.cross_entropy`. Both read one softmax, a band of rows at a time. The backward computes
    the bands again, so nothing of size `num_labels * height * width` is ever held, and has no second derivative.

    Args:
        logits: `(batch, num_labels, h, w)`, float32 or float64.
        labels: `(batch, height, width)`, int64.
        source: `(batch, height * width)`, int64: the pixel that each pixel takes its refined logits from, in its own
            row or the one before or after. Without it the first cross entropy is the only one.
        ignore_index: label of the pixels that do not count. Their losses are 0.
        class_weights: `(num_labels,)`, in the dtype of the logits; 1 by default.
        label_smoothing: within [0, 1].

    Returns:
        `(2, batch, height, width)`, or `(1, batch, height, width)` without a source, in the dtype of the logits.

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
    losses = logits.new_zeros(1 if source is None else 2, *labels.shape)
    hard, soft = _target_weights(logits, labels, ignore_index, class_weights, label_smoothing)
    with torch.autocast(logits.device.type, enabled=False):
        for _, _, scores, targets in _bands(logits, labels, source, ignore_index):
            log_probabilities = scores.log_softmax(1)
            # What the smoothing adds is the same for all labels.
            smooth = torch.einsum("bchw,c->bhw", log_probabilities, soft).flatten(1) if label_smoothing else None
            log_probabilities = log_probabilities.flatten(1)
            for loss, (taking, pixel, index, counts) in zip(losses.flatten(2), targets):
                value = log_probabilities.gather(1, index) * hard[:, taking]
                if smooth is not None:
                    value += smooth.gather(1, pixel)
                loss[:, taking] -= torch.where(counts, value, 0)
    return losses


def _target_weights(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """
    Factors of the log probability at the label of each pixel, `(batch, height * width)`, and of those of all classes,
    `(num_labels,)`.
    """
    num_labels = logits.shape[1]
    if class_weights is None:
        class_weights = logits.new_ones(num_labels)
    hard = (1 - label_smoothing) * class_weights
    return hard[torch.where(labels == ignore_index, 0, labels)].flatten(
        1
    ), label_smoothing / num_labels * class_weights


@torch.library.custom_op(f"{_NAMESPACE}::pixel_cross_entropy_backward", mutates_args=())
def _pixel_cross_entropy_backward(
    grad_losses: Tensor,
    logits: Tensor,
    labels: Tensor,
    source: Tensor | None,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    grad_logits = torch.zeros_like(logits)
    column_weights = _interpolation_weights(logits.shape[3], labels.shape[2], logits)
    hard, soft = _target_weights(logits, labels, ignore_index, class_weights, label_smoothing)
    with torch.autocast(logits.device.type, enabled=False):
        for cells, band_weights, scores, targets in _bands(logits, labels, source, ignore_index):
            # Sums of the gradients of all pixels that take their logits from a pixel of the band.
            factors, grad_smooth = scores.new_zeros(2, scores.shape[0], 1, *scores.shape[2:])
            grad_scores = scores.softmax(1)
            grads = []
            for grad, (taking, pixel, index, counts) in zip(grad_losses.flatten(2), targets):
                grad = torch.where(counts, grad[:, taking], 0)
                grad_smooth.flatten(1).scatter_add_(1, pixel, grad)
                grad = grad * hard[:, taking]
                factors.flatten(1).scatter_add_(1, pixel, grad)
                grads.append((index, -grad))
            if label_smoothing:
                grad_scores *= factors + soft.sum() * grad_smooth
                grad_scores -= soft[:, None, None] * grad_smooth
            else:
                grad_scores *= factors
            # Without class weights, pixels that take their logits from one pixel add the same number to it, so that
            # their order does not matter where it is not fixed.
            for index, grad in grads:
                grad_scores.flatten(1).scatter_add_(1, index, grad)
            grad_logits[:, :, cells] += band_weights @ grad_scores @ column_weights.T
    return grad_logits


@pixel_cross_entropy.register_fake
def _(logits, labels, source, ignore_index, class_weights=None, label_smoothing=0.0):
    return logits.new_empty(1 if source is None else 2, *labels.shape)


@_pixel_cross_entropy_backward.register_fake
def _(grad_losses, logits, labels, source, class_weights, ignore_index, label_smoothing):
    return torch.empty_like(logits)


def _save_inputs(ctx, inputs, output):
    logits, labels, source, ctx.ignore_index, class_weights, ctx.label_smoothing = inputs
    ctx.save_for_backward(logits, labels, source, class_weights)


def _differentiate(ctx, grad_losses):
    grad_logits = _pixel_cross_entropy_backward(grad_losses, *ctx.saved_tensors, ctx.ignore_index, ctx.label_smoothing)
    return grad_logits, None, None, None, None, None


pixel_cross_entropy.register_autograd(_differentiate, setup_context=_save_inputs)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, training: bool = False) -> Tensor:
    """Mean cross entropy, weighted by one minus the frequency of the label in the batch. Zero if no pixel counts."""
    counts = torch.stack([(labels == label).sum() for label in range(logits.shape[1])])
    counts = _mean_over_processes(counts) if training else counts
    total = counts.sum()
    weights = (1 - counts / torch.where(total > 0, total, 1)).to(logits.dtype)
    loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum")
    return loss / (weights * counts).sum().clamp(min=torch.finfo(logits.dtype).eps)


def dice_loss(probabilities: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """
    One minus the soft Dice coefficient of each class over the batch, `2 sum_p p y / sum_p (p + y)`. A mean over the
    classes, in which a class without labeled pixels has loss 0.

    Args:
        probabilities: `(batch, num_labels, height, width)`.
        labels: `(batch, height, width)`, int64.
        ignore_index: label of the pixels that do not count.

    Source: Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation",
    section 3, without squares.
    """
    probabilities, targets = _labeled_pixels(probabilities, labels, ignore_index)
    pixels = targets.sum(0)
    coefficient = 2 * (probabilities * targets).sum(0) / (probabilities.sum(0) + pixels).clamp(min=1e-7)
    return ((1 - coefficient) * (pixels > 0)).mean()


def lovasz_loss(probabilities: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """
    The Lovász extension of one minus the IoU over the batch, a mean over the classes that have labeled pixels. 0 if
    there are none. Arguments are those of `dice_loss`.

    Source: Berman et al., "The Lovász-Softmax loss: A tractable surrogate for the optimization of the
    intersection-over-union measure in neural networks", algorithm 1.
    """
    probabilities, targets = _labeled_pixels(probabilities, labels, ignore_index)
    present = targets.sum(0) > 0
    errors, order = (targets - probabilities).abs().sort(dim=0, descending=True)
    targets = targets.gather(0, order)
    pixels = targets.sum(0)
    # One minus the IoU if the pixels up to each one are wrong, and what each pixel adds to it.
    jaccard = 1 - (pixels - targets.cumsum(0)) / (pixels + (1 - targets).cumsum(0)).clamp(min=1)
    steps = torch.cat([jaccard[:1], jaccard.diff(dim=0)])
    return ((errors * steps).sum(0) * present).sum() / present.sum().clamp(min=1)


def _labeled_pixels(probabilities: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot targets of the pixels that count, both `(pixels, num_labels)`."""
    labeled = labels != ignore_index
    probabilities = probabilities.movedim(1, -1)[labeled]
    return probabilities, F.one_hot(labels[labeled], probabilities.shape[1]).to(probabilities.dtype)


def _hard_pixels(losses: Tensor, weights: Tensor, probability: float, min_pixels: int) -> Tensor:
    """
    Which pixels of `(batch, height, width)` count in online hard example mining: those whose label has a lower
    probability, and in any case so many of the hardest for each image.
    """
    hardness = losses / weights.clamp(min=torch.finfo(weights.dtype).tiny)  # before the class weights
    least = min(min_pixels * len(hardness), hardness.numel())
    threshold = hardness.new_tensor(-math.log(probability))
    if least > 0:
        threshold = torch.minimum(threshold, hardness.flatten().kthvalue(hardness.numel() - least + 1).values)
    return hardness >= threshold


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
        config: has the ignored label, the options of the cross entropy and the conventions.
        boundary_logits: `(batch, 2, h, w)`; without them there are no terms of boundaries.
        direction_logits: `(batch, 8, h, w)`.
        boundary_map: `(batch, height, width)`, int64, 0 or 1 or ignored.
        direction_map: `(batch, height, width)`, int64, 0..7 or ignored.
        training: whether pixels are counted over all processes of `torch.distributed`, each of which has a share of
            the batch and must call this. With `config.balance_boundaries_per_process`, this holds for the
            segmentation terms only.

    Returns:
        `segmentation`; `dice` and `lovasz` where they have a weight; and with boundary logits `boundary`, `direction`
        and `refined_segmentation`. Each is float32 `()`.
    """
    ignore_index = config.semantic_loss_ignore_index

    def at_least_float32(tensor):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    logits = at_least_float32(logits)

    def segmentation_terms(source):
        class_weights = logits.new_tensor(config.class_weights) if config.class_weights else None
        losses = pixel_cross_entropy(logits, labels, source, ignore_index, class_weights, config.label_smoothing)
        weights = (labels != ignore_index).to(logits.dtype)
        if class_weights is not None:
            weights = weights * class_weights[torch.where(labels == ignore_index, 0, labels)]
        terms = []
        for loss in losses:
            counted = weights
            if config.ohem_threshold is not None:
                hard = _hard_pixels(loss.detach(), weights, config.ohem_threshold, config.ohem_min_pixels)
                loss, counted = loss * hard, weights * hard
            if config.loss_reduction == "all":
                terms.append(loss.sum() / max(labels.numel(), 1))
            else:
                count = counted.sum()
                count = _mean_over_processes(count) if training else count
                terms.append(loss.sum() / torch.where(count > 0, count, 1))
        return terms

    overlap_losses = {"dice": dice_loss, "lovasz": lovasz_loss}
    overlap_losses = {name: loss for name, loss in overlap_losses.items() if getattr(config, f"{name}_loss_weight")}
    overlap_terms = {}
    if overlap_losses:
        upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        probabilities = upsampled.softmax(1)
        overlap_terms = {name: loss(probabilities, labels, ignore_index) for name, loss in overlap_losses.items()}

    if boundary_logits is None:
        return {"segmentation": segmentation_terms(None)[0], **overlap_terms}
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
    balance_globally = training and not config.balance_boundaries_per_process
    boundary = balanced_cross_entropy(boundary_logits, boundary_map, ignore_index, balance_globally)

    boundary_probability = boundary_logits.detach().softmax(dim=1)[:, 1]
    if config.direction_loss_region == "predicted":
        region = boundary_probability > config.boundary_threshold
    else:
        region = boundary_map == 1
    direction = balanced_cross_entropy(
        direction_logits, torch.where(region, direction_map, ignore_index), ignore_index, balance_globally
    )

    score = boundary_probability if config.refinement_score == "probability" else boundary_logits[:, 1]
    # `max` is about ten times as fast as `argmax` on a CPU.
    source = follow_direction(score > config.boundary_threshold, direction_logits.max(dim=1).indices)
    segmentation, refined_segmentation = segmentation_terms(source)
    return {
        "segmentation": segmentation,
        **overlap_terms,
        "boundary": boundary,
        "direction": direction,
        "refined_segmentation": refined_segmentation,
    }
