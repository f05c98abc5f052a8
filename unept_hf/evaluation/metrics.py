# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Metrics of semantic segmentation, as functions of arrays.

- Mean IoU and pixel accuracy, from a confusion matrix that grows by no image; as in `evaluate`'s `mean_iou` and in
  mmsegmentation.
- Boundary F-score (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; in the
  form of Perazzi et al., DAVIS, CVPR 2016, and Takikawa et al., Gated-SCNN, ICCV 2019): for each image and class,
  precision is the part of the predicted boundary within a tolerance of the true boundary, recall the part of the true
  boundary within the tolerance of the predicted boundary, and F their harmonic mean.
- Confusion matrices near the boundaries of the reference: the trimap of Kohli et al. (IJCV 2009), as in DeepLab.
- Calibration: how much the confidence of pixels differs from their accuracy (Guo et al., "On Calibration of Modern
  Neural Networks", ICML 2017).
"""

from collections.abc import Sequence

import edt
import numpy as np


__all__ = [
    "CALIBRATION_BINS",
    "boundary_f_scores",
    "calibration_counts",
    "confusion_matrix",
    "scores_from_calibration",
    "scores_from_confusion_matrix",
    "scores_from_sums",
    "trimap_confusion_matrices",
]

CALIBRATION_BINS = 15  # as in the paper


def confusion_matrix(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    reduce_labels: bool = False,
) -> np.ndarray:
    """
    Counts of the pixels of one image by reference (rows) and prediction (columns).

    Args:
        prediction: `(height, width)` of integers, 0..num_labels - 1 where the reference is not ignored.
        reference: `(height, width)` of integers, 0..num_labels - 1 or `ignore_index`.
        num_labels: number of classes.
        ignore_index: reference of pixels that do not count.
        reduce_labels: whether references count from 1 on, with 0 for pixels that do not count.

    Returns:
        int64 `(num_labels, num_labels)`.

    Raises:
        ValueError: for values outside of the classes.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    counted = reference != ignore_index
    if reduce_labels:
        counted &= reference != 0
    # Fractions are an error, not rounded.
    prediction = prediction[counted].astype(np.int64, casting="same_kind")
    reference = reference[counted].astype(np.int64, casting="same_kind") - reduce_labels
    _check_labels("prediction", prediction, num_labels)
    _check_labels("reference", reference, num_labels)
    pairs = np.bincount(reference * num_labels + prediction, minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels)


def _check_labels(name: str, labels: np.ndarray, num_labels: int) -> None:
    wrong = labels[(labels < 0) | (labels >= num_labels)]
    if wrong.size:
        raise ValueError(
            f"A {name} holds the class {wrong[0]}, but there are {num_labels} (0..{num_labels - 1}, and ignore_index "
            "in references): check num_labels, ignore_index and reduce_labels."
        )


def scores_from_confusion_matrix(matrix: np.ndarray, only_referenced: bool = False) -> dict:
    """
    The metrics of a confusion matrix `(num_labels, num_labels)` of references (rows) and predictions (columns).

    Args:
        matrix: counts of pixels.
        only_referenced: whether the IoU of a class without reference pixels is always NaN. Otherwise it is 0 if the
            class is predicted anywhere, as in mmsegmentation and `evaluate`.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats), `per_category_iou` and `per_category_accuracy`
        (`(num_labels,)`). What would divide by zero is NaN, and means leave it out.
    """
    correct, reference, prediction = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou = correct / (reference + prediction - correct)
        if only_referenced:
            iou[reference == 0] = np.nan
        accuracy = correct / reference
        overall_accuracy = float(correct.sum() / reference.sum())
    return {
        "mean_iou": _nan_mean(iou),
        "mean_accuracy": _nan_mean(accuracy),
        "overall_accuracy": overall_accuracy,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _nan_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _label_boundary(label_map: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """
    Whether a pixel has a neighbor (up, down, left or right) of another label. Pixels that are not `counted` neither
    have nor make a boundary, and neither does the border of the image.
    """
    boundary = np.zeros(label_map.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (label_map[one] != label_map[other]) & counted[one] & counted[other]
        boundary[one] |= differs
        boundary[other] |= differs
    return boundary


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance to the nearest pixel in `mask`, float32 `(height, width)`; infinite if there is none."""
    return edt.edt((~mask).astype(np.uint8), black_border=False, parallel=1)


def boundary_f_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    tolerances: Sequence[float] = (1, 3, 5),
) -> np.ndarray:
    """
    F-score of the boundary of each class in one image.

    Args:
        prediction, reference, num_labels: see `confusion_matrix`.
        ignore_index: reference of pixels that do not count: they neither have nor make a boundary, in either map.
        tolerances: distances in pixels (Euclidean, between centers of pixels) within which boundaries agree.

    Returns:
        float64 `(len(tolerances), num_labels)`: NaN where neither map has a boundary of the class; 0 where one has.

    Raises:
        ValueError: for values outside of the classes at a boundary.
    """
    scores = np.full((len(tolerances), num_labels), np.nan)
    counted = np.asarray(reference) != ignore_index
    points = []
    for name, label_map in (("prediction", np.asarray(prediction)), ("reference", np.asarray(reference))):
        rows, columns = np.nonzero(_label_boundary(label_map, counted))
        labels = label_map[rows, columns]
        _check_labels(name, labels, num_labels)
        order = np.argsort(labels, kind="stable")
        values, starts = np.unique(labels[order], return_index=True)
        parts = np.split(order, starts[1:])
        points.append({label: (rows[part], columns[part]) for label, part in zip(values.tolist(), parts)})
    for label in points[0].keys() | points[1].keys():
        if label not in points[0] or label not in points[1]:
            scores[:, label] = 0
            continue
        predicted, true = points[0][label], points[1][label]
        # Nothing beyond these rows and columns matters.
        corner = [min(one.min(), other.min()) for one, other in zip(predicted, true)]
        shape = [max(one.max(), other.max()) + 1 - first for one, other, first in zip(predicted, true, corner)]
        distances = []
        for own, others in ((predicted, true), (true, predicted)):
            mask = np.zeros(shape, bool)
            mask[others[0] - corner[0], others[1] - corner[1]] = True
            distances.append(_distance_to(mask)[own[0] - corner[0], own[1] - corner[1]])
        for index, tolerance in enumerate(tolerances):
            precision, recall = ((distance <= tolerance).mean() for distance in distances)
            scores[index, label] = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0
    return scores


def scores_from_sums(sums: np.ndarray, counts: np.ndarray, tolerances: Sequence[float]) -> dict:
    """
    The metrics `boundary_f1_{tolerance}px` and `per_category_boundary_f1_{tolerance}px` for each tolerance, from the
    sums over images of the F-scores that are not NaN, `(len(tolerances), num_labels)`, and the numbers of scores in
    them.
    """
    with np.errstate(invalid="ignore"):
        scores = np.asarray(sums) / np.asarray(counts)
    results = {}
    for tolerance, one in zip(tolerances, scores):
        results[f"boundary_f1_{tolerance:g}px"] = _nan_mean(one)
        results[f"per_category_boundary_f1_{tolerance:g}px"] = one
    return results


def trimap_confusion_matrices(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    widths: Sequence[float] = (1, 3, 5, 10, 20),
) -> np.ndarray:
    """
    Confusion matrices of the pixels in bands around the boundary of the reference.

    A band of width w has the pixels at a distance below w from a boundary pixel of the reference (Euclidean, between
    centers): the boundary pixels on both sides with w = 1, and about w pixels on each side in general.

    Args:
        prediction, reference, num_labels, ignore_index: see `confusion_matrix`.
        widths: widths of the bands in pixels, positive and ascending.

    Returns:
        int64 `(len(widths), num_labels, num_labels)`, rows for references. All zero without a boundary.

    Raises:
        ValueError: see `confusion_matrix`.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    distance = _distance_to(_label_boundary(reference, reference != ignore_index))
    rings = np.searchsorted(widths, distance, side="right")
    matrices = [
        confusion_matrix(prediction[ring], reference[ring], num_labels, ignore_index)
        for ring in (rings == index for index in range(len(widths)))
    ]
    return np.cumsum(matrices, axis=0)


def calibration_counts(
    prediction: np.ndarray,
    reference: np.ndarray,
    confidence: np.ndarray,
    ignore_index: int = 255,
    bins: int = CALIBRATION_BINS,
) -> np.ndarray:
    """
    What the calibration of one image is computed from. Counts of several images are added up.

    Args:
        prediction, reference, ignore_index: see `confusion_matrix`.
        confidence: `(height, width)`, 0..1, the probability of the predicted class.
        bins: number of equal intervals of the confidence; bin m (from 1) holds confidences in ((m - 1)/bins, m/bins].

    Returns:
        float64 `(3, bins)`: number of pixels, sum of their confidences, and number of correct pixels.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    counted = reference != ignore_index
    confidence = np.asarray(confidence)[counted].astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    correct = (prediction == reference)[counted]
    return np.stack([np.bincount(index, weights, bins) for weights in (None, confidence, correct)]).astype(np.float64)


def scores_from_calibration(counts: np.ndarray) -> dict:
    """
    The expected calibration error (ECE) of Guo et al. (ICML 2017), equation 3,

        ECE = sum over bins m of |B_m| / n * |acc(B_m) - conf(B_m)|

    with the share of correct pixels acc and the mean confidence conf of the pixels B_m in bin m, and n pixels in all.

    Args:
        counts: `(3, bins)`, sums of `calibration_counts`.

    Returns:
        `expected_calibration_error` (a float from 0 to 1; NaN without pixels) and `calibration`, a dictionary of lists
        with one value for each bin: `pixels`, `confidence` and `accuracy`, which are NaN in an empty bin.
    """
    pixels, confidence, correct = np.asarray(counts, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        error = float(np.abs(correct - confidence).sum() / pixels.sum())
        means = {"confidence": (confidence / pixels).tolist(), "accuracy": (correct / pixels).tolist()}
    calibration = {"pixels": pixels.astype(np.int64).tolist(), **means}
    return {"expected_calibration_error": error, "calibration": calibration}
