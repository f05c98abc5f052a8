# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of semantic segmentation. `evaluate.load` takes the folders `mean_iou` and `boundary_f1` in here."""

from .boundary_f1.boundary_f1 import boundary_f_scores
from .mean_iou.mean_iou import confusion_matrix, scores_from_confusion_matrix
from .trimap import trimap_confusion_matrices


__all__ = ["boundary_f_scores", "confusion_matrix", "scores_from_confusion_matrix", "trimap_confusion_matrices"]
