# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
F-score of the boundaries of each class, within tolerances in pixels.

`evaluate.load` copies this file on its own, so it imports nothing of the package.
"""

from collections.abc import Sequence

import datasets
import edt
import evaluate
import numpy as np


_DESCRIPTION = """
Boundary F-score (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; in the form
of Perazzi et al., DAVIS, CVPR 2016, and Takikawa et al., Gated-SCNN, ICCV 2019): for each image and class, precision
is the part of the predicted boundary within a tolerance of the true one, recall the part of the true boundary within
the tolerance of the predicted one, and F their harmonic mean. F is averaged over the images in which the class has a
boundary in the reference or in the prediction, and then over the classes.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: predicted label maps, `(height, width)` of integers each: a list of arrays or tensors of any sizes, or
        one array of three dimensions.
    references: true label maps, in the same form.
    num_labels (`int`), ignore_index (`int`, 255), tolerances (`(1, 3, 5)`): number of classes; reference of pixels
        that do not count; distances in pixels. Give them to `evaluate.load`, or to the `compute` that gets the label
        maps itself.

Returns:
    boundary_f1_3px (`float`): mean over the classes that have a boundary, for the tolerance 3 and likewise for others.
    per_category_boundary_f1_3px (`ndarray` of `(num_labels,)`): NaN for classes without boundary.
"""


def label_boundary(label_map: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """
    Pixels with a neighbour (up, down, left or right) of another label.

    Args:
        label_map: `(height, width)` of integers.
        counted: `(height, width)`, bool. Other pixels neither have nor make a boundary, and neither does the border
            of the image.

    Returns:
        `(height, width)`, bool.
    """
    boundary = np.zeros(label_map.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (label_map[one] != label_map[other]) & counted[one] & counted[other]
        boundary[one] |= differs
        boundary[other] |= differs
    return boundary


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pixel to the nearest one in `mask`, float32 `(height, width)`; infinite if none."""
    return edt.edt((~mask).astype(np.uint8), black_border=False, parallel=1)


def boundary_f_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    tolerances: Sequence[float] = (1, 3, 5),
) -> np.ndarray:
    """
    F-score of each class in one image.

    Args:
        prediction: `(height, width)` of integers, 0..num_labels - 1 where the reference is not ignored.
        reference: `(height, width)` of integers, 0..num_labels - 1 or `ignore_index`.
        num_labels: number of classes.
        ignore_index: reference of pixels that do not count: they neither have nor make a boundary, in either map.
        tolerances: distances in pixels (Euclidean, between centres of pixels) within which boundaries agree.

    Returns:
        float64 `(len(tolerances), num_labels)`: NaN where neither map has a boundary of the class; 0 where one has.

    Raises:
        ValueError: for label maps of different shapes, or a tolerance below 0.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.ndim != 2 or prediction.shape != reference.shape:
        raise ValueError(
            f"A prediction has shape {prediction.shape} and its reference {reference.shape}: both have to be (height, "
            "width) and of the same size."
        )
    if min(tolerances) < 0:
        raise ValueError(f"tolerances have to be at least 0 pixels, got {tuple(tolerances)}.")
    scores = np.full((len(tolerances), num_labels), np.nan)
    counted = reference != ignore_index
    maps = [(label_map, label_boundary(label_map, counted)) for label_map in (prediction, reference)]
    points = []
    for label_map, boundary in maps:
        rows, columns = np.nonzero(boundary)
        labels = label_map[rows, columns]
        order = np.argsort(labels, kind="stable")
        points.append({label: (rows[part], columns[part]) for label, part in _group(labels[order], order)})
    for label in points[0].keys() | points[1].keys():
        if not 0 <= label < num_labels:
            raise ValueError(f"A label map holds the class {label}, but there are {num_labels}: check num_labels.")
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
            distances.append(distance_to(mask)[own[0] - corner[0], own[1] - corner[1]])
        for index, tolerance in enumerate(tolerances):
            precision, recall = ((distance <= tolerance).mean() for distance in distances)
            scores[index, label] = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0
    return scores


def _group(labels: np.ndarray, order: np.ndarray):
    """Each of the sorted labels, with the part of `order` that has it."""
    values, starts = np.unique(labels, return_index=True)
    return zip(values.tolist(), np.split(order, starts[1:])) if values.size else ()


def scores_from_sums(sums: np.ndarray, counts: np.ndarray, tolerances: Sequence[float]) -> dict:
    """
    The metrics of F-scores summed over images.

    Args:
        sums: `(len(tolerances), num_labels)`: sums over the images of F-scores that are not NaN.
        counts: `(len(tolerances), num_labels)`: how many those are.
        tolerances: what they were computed for, in pixels.

    Returns:
        `boundary_f1_{tolerance}px` and `per_category_boundary_f1_{tolerance}px` for each tolerance.
    """
    with np.errstate(invalid="ignore"):
        scores = np.asarray(sums) / np.asarray(counts)
    results = {}
    for tolerance, one in zip(tolerances, scores):
        valid = one[~np.isnan(one)]
        results[f"boundary_f1_{tolerance:g}px"] = float(valid.mean()) if valid.size else float("nan")
        results[f"per_category_boundary_f1_{tolerance:g}px"] = one
    return results


class BoundaryF1(evaluate.Metric):
    """Boundary F-score as a module of `evaluate`."""

    def __init__(self, *args, num_labels: int | None = None, ignore_index: int = 255, tolerances=(1, 3, 5), **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process > 1:
            raise ValueError(
                "This metric does not exchange files between processes: load it with num_process=1 in each and sum "
                "their sums and counts."
            )
        self.num_labels, self.ignore_index, self.tolerances = num_labels, ignore_index, tuple(tolerances)
        self.sums = self.counts = None

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds one image."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None):
        """Adds images."""
        if self.num_labels is None:
            raise ValueError("The number of classes is unknown: pass num_labels to evaluate.load or to compute.")
        if len(predictions) != len(references):
            raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")
        scores = [
            boundary_f_scores(prediction, reference, self.num_labels, self.ignore_index, self.tolerances)
            for prediction, reference in zip(predictions, references)
        ]
        shape = (len(scores), len(self.tolerances), self.num_labels)
        sums = np.nansum(np.reshape(scores, shape), axis=0)
        counts = (~np.isnan(np.reshape(scores, shape))).sum(axis=0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.counts = counts if self.counts is None else self.counts + counts

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Adds the label maps that it is given, returns the metrics of all since the last call, and starts anew."""
        unknown = kwargs.keys() - {"num_labels", "ignore_index", "tolerances"}
        if unknown:
            raise TypeError(f"compute does not know {', '.join(sorted(unknown))}.")
        changed = {name: value for name, value in kwargs.items() if value != getattr(self, name)}
        if changed and self.sums is not None:
            raise ValueError(f"Images were added without {changed}: pass it to evaluate.load.")
        before = {name: getattr(self, name) for name in changed}
        try:
            vars(self).update(changed)
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if self.sums is None:
                raise ValueError("There are no images: call add_batch first, or pass predictions and references.")
            return scores_from_sums(self.sums, self.counts, self.tolerances)
        finally:
            vars(self).update(before)
            self.sums = self.counts = None
