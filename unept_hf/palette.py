# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Colors for classes that have none, told apart by people with any kind of color vision."""

import functools

import numpy as np


__all__ = ["COLOR_BLINDNESS", "OKABE_ITO", "default_palette"]


# Okabe and Ito's colors without black, which overlays hide.
OKABE_ITO = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
)

_MOST_COLORS = 1000  # so many classes have colors of their own

# Linear RGB to the cone responses of OKLab, and their cube roots to lightness, green-red and blue-yellow.
# Source: Ottosson, "A perceptual color space for image processing", 2020.
_OKLAB_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_OKLAB_AXES = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)

# Linear RGB to what people without red, green and blue cones see of it. Source: Machado et al., "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1.
COLOR_BLINDNESS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)


def _oklab(colors: np.ndarray) -> np.ndarray:
    """Colors `(n, 3)` of 0..255 as the four kinds of vision see them, float64 `(n, 4, 3)`."""
    colors = colors / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.stack([linear, *(linear @ np.array(matrix).T for matrix in COLOR_BLINDNESS)], axis=1).clip(0, 1)
    return np.cbrt(seen @ np.array(_OKLAB_CONES).T) @ np.array(_OKLAB_AXES).T


@functools.lru_cache
def _color_sequence(length: int) -> tuple[tuple[int, int, int], ...]:
    steps = np.arange(8, 256, 16)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _oklab(candidates)
    # The rest would be taken for shadows or for light.
    visible = (seen[:, 0, 0] > 0.35) & (seen[:, 0, 0] < 0.93)
    candidates, seen = candidates[visible], seen[visible]
    colors = list(OKABE_ITO[:length])
    gap = np.full(len(candidates), np.inf)

    def take(color):
        # How far a candidate is from all that is taken, for the vision that tells it least.
        distance = np.linalg.norm(seen - _oklab(np.array([color])), axis=-1).min(1)
        np.minimum(gap, distance.round(9), out=gap)

    for color in colors:
        take(color)
    while len(colors) < length:
        colors.append(tuple(candidates[gap.argmax()].tolist()))
        take(colors[-1])
    return tuple(colors)


def default_palette(num_labels: int) -> np.ndarray:
    """
    Colors for classes that have none, as different as possible for all kinds of color vision.

    The first seven are the colors of Okabe and Ito. Each further color is the farthest from all before it, for the
    kind of color vision (normal, without red, green or blue cones) that sees it nearest. A longer palette begins with
    a shorter one. No vision tells some dozens of colors apart for certain, so the overlays also name classes.

    Args:
        num_labels: Number of classes. After 1,000, colors repeat.

    Returns:
        uint8 `(num_labels, 3)`, RGB.
    """
    colors = np.array(_color_sequence(min(num_labels, _MOST_COLORS)), dtype=np.uint8)
    return np.resize(colors, (num_labels, 3))
