# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Figures of what an evaluation measured: which classes are taken for which, and how far to trust a confidence."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figures import NotebookFigure, shortened


__all__ = ["draw_calibration", "draw_confusion_matrix"]

_WRITTEN_CLASSES = 30  # up to which the cells have room for their numbers


def draw_confusion_matrix(matrix, labels: Sequence[str], title: str = "") -> NotebookFigure:
    """
    Which share of the pixels of a class is taken for which class.

    Args:
        matrix: `(num_labels, num_labels)`, numbers of pixels by reference (rows) and prediction (columns).
        labels: names of the classes.
        title: text above the matrix.

    Returns:
        A figure in which each row adds up to 100 percent. The row of a class without reference pixels is gray. Up to
        30 classes, the cells have their percentages, as far as these are not 0.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    count = len(labels)
    is_small = count <= _WRITTEN_CLASSES
    names = [shortened(name) for name in labels]
    side = max(4, (0.42 if is_small else 0.16) * count)  # inches of the matrix
    figure = NotebookFigure(figsize=(side + 2.2, side + 1.9), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("0.8")
    # The square root tells shares of 1 and of 5 percent apart.
    image = axis.imshow(shares**0.5, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = 9 if is_small else 7
    axis.set_xticks(range(count), names, fontsize=size, parse_math=False, rotation=90)
    axis.set_yticks(range(count), names, fontsize=size, parse_math=False)
    axis.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    axis.tick_params(labeltop=not is_small, labelright=not is_small)  # the way to the other side is long
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, fontsize=10, parse_math=False)
    if is_small:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.0005:
                text = f"{100 * share:.0f}" if share >= 0.0095 else f"{100 * share:.1f}"
                color = "white" if share > 0.4 else "black"
                axis.text(column, row, text, fontsize=8, ha="center", va="center", color=color)
    bar = figure.colorbar(image, ax=axis, shrink=0.5)
    shown = [0, 1, 5, 20, 50, 100]
    bar.set_ticks([(share / 100) ** 0.5 for share in shown], labels=[f"{share}%" for share in shown])
    bar.set_label("share of the pixels of the true class")
    return figure


def draw_calibration(results: Mapping[str, Mapping]) -> NotebookFigure:
    """
    How many pixels of each confidence are right, and how many pixels have that confidence (a reliability diagram).
    The curve leaves out bins with less than a ten thousandth of the pixels.

    Args:
        results: name to the values of `scores_from_calibration`; all have the same number of bins.
    """
    figure = NotebookFigure(figsize=(6, 7), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect calibration")
    for index, (name, one) in enumerate(results.items()):
        calibration = one["calibration"]
        confidence, accuracy, pixels = (
            np.array(calibration[key], dtype=np.float64) for key in ("confidence", "accuracy", "pixels")
        )
        bins, share = len(pixels), pixels / max(pixels.sum(), 1)
        left = (np.arange(bins) + index / len(results)) / bins
        width = 1 / bins / len(results)
        label = f"{name}: calibration error {100 * one['expected_calibration_error']:.1f}%"
        upper.plot(confidence[share >= 1e-4], accuracy[share >= 1e-4], marker="o", label=label)
        lower.bar(left, share, width, align="edge", edgecolor="white", linewidth=0.5)
    upper.set(ylabel="share of right pixels", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="share of pixels", ylim=(0, None))
    upper.legend(loc="upper left", fontsize=9)
    upper.grid(color="0.9")
    return figure
