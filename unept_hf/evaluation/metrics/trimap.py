# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Confusion matrices near the boundaries of the reference: the trimap of Kohli et al. (IJCV 2009), as in DeepLab."""

from collections.abc import Sequence

import numpy as np

from .boundary_f1.boundary_f1 import distance_to, label_boundary
from .mean_iou.mean_iou import confusion_matrix


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
    centres): the boundary pixels on both sides with w = 1, and about w pixels on each side in general.

    Args:
        prediction, reference, num_labels, ignore_index: see `confusion_matrix`.
        widths: widths of the bands in pixels, ascending.

    Returns:
        int64 `(len(widths), num_labels, num_labels)`, rows for references. All zero without a boundary.

    Raises:
        ValueError: see `confusion_matrix`; and for widths that are not positive and ascending.
    """
    if list(widths) != sorted(widths) or min(widths) <= 0:
        raise ValueError(f"widths have to be positive and ascending, got {tuple(widths)}.")
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    counted = reference != ignore_index
    distance = distance_to(label_boundary(reference, counted))
    rings = np.searchsorted(widths, distance, side="right")
    matrices = [
        confusion_matrix(prediction[ring], reference[ring], num_labels, ignore_index)
        for ring in (rings == index for index in range(len(widths)))
    ]
    return np.cumsum(matrices, axis=0)
