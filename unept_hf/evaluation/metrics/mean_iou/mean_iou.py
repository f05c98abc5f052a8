# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Mean intersection over union and pixel accuracy, from a confusion matrix that grows by no image.

`evaluate.load` copies this file on its own, so it imports nothing of the package.
"""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Intersection over union of each class over a whole data set, their mean, and pixel accuracies, as in `evaluate`'s
`mean_iou` and in mmsegmentation's `mIoU`. Each batch is added to one confusion matrix, so the memory does not depend
on the number of images.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: predicted label maps, `(height, width)` of integers each: a list of arrays or tensors of any sizes, or
        one array of three dimensions. Every value in 0..num_labels - 1 where the reference is not ignored.
    references: true label maps, in the same form. Every value in 0..num_labels - 1 or `ignore_index`; with
        `reduce_labels` in 0..num_labels or `ignore_index`.
    num_labels (`int`), ignore_index (`int`, 255), reduce_labels (`bool`, `False`): number of classes; label of pixels
        that do not count; whether references count classes from 1 on, with 0 for none. Give them to `evaluate.load`,
        or to the `compute` that gets the label maps itself.
    nan_to_num (`float`, *optional*): for `compute` alone, what stands for the NaN of classes that do not occur.

Returns:
    mean_iou, mean_accuracy (`float`): means over the classes that occur, in the references or (for `mean_iou`) in the
        predictions.
    overall_accuracy (`float`): part of the counted pixels that is right.
    per_category_iou, per_category_accuracy (`ndarray` of `(num_labels,)`): NaN for classes that do not occur.

Example:

    >>> metric = evaluate.load("unept_hf/metrics/mean_iou", num_labels=2)
    >>> metric.add_batch(predictions=[np.array([[0, 1]])], references=[np.array([[0, 0]])])
    >>> metric.compute()["mean_iou"]
    0.25
"""


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
        ValueError: for label maps of different shapes, without integers, or with values outside of the classes.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(
            f"A prediction has shape {prediction.shape} and its reference {reference.shape}: bring the prediction to "
            "the size of the reference."
        )
    for name, label_map in (("prediction", prediction), ("reference", reference)):
        if not np.issubdtype(label_map.dtype, np.integer):
            raise ValueError(f"A {name} is of dtype {label_map.dtype}: label maps have to hold integers.")
    counted = reference != ignore_index
    if reduce_labels:
        counted &= reference != 0
    prediction, reference = prediction[counted].astype(np.int64), reference[counted].astype(np.int64) - reduce_labels
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_labels):
            value = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(
                f"A {name} holds the class {value}, but there are {num_labels} (0..{num_labels - 1}, and ignore_index="
                f"{ignore_index} in references): check num_labels, ignore_index and reduce_labels."
            )
    pairs = np.bincount(reference * num_labels + prediction, minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels)


def scores_from_confusion_matrix(matrix: np.ndarray) -> dict[str, "float | np.ndarray"]:
    """
    The metrics of a confusion matrix `(num_labels, num_labels)` of references (rows) and predictions (columns).

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` and `per_category_accuracy`. What would
        divide by zero is NaN, and means leave it out.
    """
    correct, reference, prediction = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou = correct / (reference + prediction - correct)
        accuracy = correct / reference
        overall_accuracy = float(correct.sum() / reference.sum())
    return {
        "mean_iou": nan_mean(iou),
        "mean_accuracy": nan_mean(accuracy),
        "overall_accuracy": overall_accuracy,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def nan_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


class MeanIoU(evaluate.Metric):
    """Mean IoU and pixel accuracy as a module of `evaluate`."""

    def __init__(self, *args, num_labels: int | None = None, ignore_index: int = 255, reduce_labels=False, **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process > 1:
            raise ValueError(
                "This metric does not exchange files between processes: load it with num_process=1 in each and sum "
                "their confusion_matrix."
            )
        self.num_labels, self.ignore_index, self.reduce_labels = num_labels, ignore_index, reduce_labels
        self.confusion_matrix = None

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
        total = np.zeros((self.num_labels,) * 2, np.int64) if self.confusion_matrix is None else self.confusion_matrix
        for prediction, reference in zip(predictions, references):
            total = total + confusion_matrix(
                prediction, reference, self.num_labels, self.ignore_index, self.reduce_labels
            )
        self.confusion_matrix = total

    def compute(self, *, predictions=None, references=None, nan_to_num=None, **kwargs):
        """Adds the label maps that it is given, returns the metrics of all since the last call, and starts anew."""
        unknown = kwargs.keys() - {"num_labels", "ignore_index", "reduce_labels"}
        if unknown:
            raise TypeError(f"compute does not know {', '.join(sorted(unknown))}.")
        changed = {name: value for name, value in kwargs.items() if value != getattr(self, name)}
        if changed and self.confusion_matrix is not None:
            raise ValueError(f"Images were added without {changed}: pass it to evaluate.load.")
        before = {name: getattr(self, name) for name in changed}
        try:
            vars(self).update(changed)
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if self.confusion_matrix is None:
                raise ValueError("There are no images: call add_batch first, or pass predictions and references.")
            results = scores_from_confusion_matrix(self.confusion_matrix)
        finally:
            vars(self).update(before)
            self.confusion_matrix = None
        if nan_to_num is not None:
            results = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in results.items()}
        return results
