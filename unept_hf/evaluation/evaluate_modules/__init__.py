# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Modules of the library `evaluate`, which `evaluate.load` takes from the folders `mean_iou` and `boundary_f1`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from ..metrics import boundary_f_scores, confusion_matrix, scores_from_confusion_matrix, scores_from_sums


__all__ = ["BoundaryF1", "MeanIoU"]

_ARGUMENTS = """
Args:
    predictions: predicted label maps, `(height, width)` of integers each: a list of arrays or tensors of any sizes, or
        one array of three dimensions. Every value in 0..num_labels - 1 where the reference is not ignored.
    references: true label maps, in the same form. Every value in 0..num_labels - 1 or `ignore_index`.
    num_labels (`int`), ignore_index (`int`, 255): number of classes; label of pixels that do not count. They and the
        options below are given to `evaluate.load`, or to the `compute` that gets the label maps itself."""


class _SummedMetric(evaluate.Metric):
    """Adds up counts as images come, where `evaluate.Metric` would store the images."""

    inputs: str
    defaults: dict[str, Any]
    counts: Any = 0  # an array from the first image on

    def __init__(self, *args, num_process: int = 1, **kwargs):
        if num_process > 1:
            raise ValueError(
                "This metric does not exchange files between processes: load it with num_process=1 in each process, "
                "and sum their counts."
            )
        given = {name: kwargs.pop(name) for name in ("num_labels", *self.defaults) if name in kwargs}
        self.options = self.defaults | given
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description=_ARGUMENTS + self.inputs,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds one image."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None):
        """Adds images: all, or none where one cannot be counted."""
        counts = [self._count(*pair, **self.options) for pair in zip(predictions, references, strict=True)]
        self.counts = sum(counts, start=self.counts)

    def compute(self, *, predictions=None, references=None, **options):
        """Adds the label maps that it is given, returns the metrics of all since the last call, and starts anew."""
        own = self.options
        if np.ndim(self.counts) and own | options != own:
            raise ValueError(f"Images were added without {options}: pass it to evaluate.load.")
        try:
            self.options = own | options
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if not np.ndim(self.counts):
                raise ValueError("There are no images: call add_batch first, or pass predictions and references.")
            return self._scores()
        finally:
            self.options, self.counts = own, 0


class MeanIoU(_SummedMetric):
    """
    Intersection over union of each class over a whole data set, their mean, and pixel accuracies, as in `evaluate`'s
    `mean_iou` and in mmsegmentation's `mIoU`. Each batch is added to one confusion matrix, so the memory does not
    depend on the number of images.
    """

    inputs = """
    reduce_labels (`bool`, `False`): whether references count classes from 1 on, with 0 for none.
    nan_to_num (`float`, *optional*): for `compute` alone, what stands for the NaN of classes that do not occur.

Returns:
    mean_iou, mean_accuracy (`float`): means over the classes that occur, in the references or (for `mean_iou`) in the
        predictions.
    overall_accuracy (`float`): part of the counted pixels that is right.
    per_category_iou, per_category_accuracy (`ndarray` of `(num_labels,)`): NaN for classes that do not occur.
"""

    defaults = {"ignore_index": 255, "reduce_labels": False}
    _count = staticmethod(confusion_matrix)

    def _scores(self) -> dict:
        return scores_from_confusion_matrix(self.counts)

    def compute(self, *, nan_to_num=None, **kwargs):
        """As for any of these metrics, with `nan_to_num` for the classes that do not occur."""
        results = super().compute(**kwargs)
        if nan_to_num is not None:
            results = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in results.items()}
        return results


class BoundaryF1(_SummedMetric):
    """
    Boundary F-score (Csurka et al., BMVC 2013; by class as in Gated-SCNN, ICCV 2019): for each image and class, the
    harmonic mean of the part of the predicted boundary within a tolerance of the true boundary, and of the part of the
    true boundary within the tolerance of the predicted boundary. F is averaged over the images in which the class has
    a boundary in the reference or in the prediction, and then over the classes.
    """

    inputs = """
    tolerances (`(1, 3, 5)`): distances in pixels.

Returns:
    boundary_f1_3px (`float`): mean over the classes that have a boundary, for the tolerance 3 and likewise for others.
    per_category_boundary_f1_3px (`ndarray` of `(num_labels,)`): NaN for classes without boundary.
"""

    defaults = {"ignore_index": 255, "tolerances": (1, 3, 5)}

    @staticmethod
    def _count(*args, **kwargs) -> np.ndarray:
        scores = boundary_f_scores(*args, **kwargs)
        return np.stack([np.nan_to_num(scores), ~np.isnan(scores)])

    def _scores(self) -> dict:
        sums, counts = self.counts
        return scores_from_sums(sums, counts, self.options["tolerances"])
