# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Boundaries of a label map: where they are, which way leads away from them, and how both refine a prediction.

Source: UN-EPT, section 3.3; the directions are those of SegFix (Yuan et al., ECCV 2020).
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn import functional as F


__all__ = [
    "DIRECTIONS",
    "angle_to_direction_map",
    "boundary_distance_and_angle",
    "boundary_targets",
    "distance_to_boundary_map",
    "follow_direction",
    "refine_label_map",
]

try:  # Only training on bare labels needs it, so inference works without it.
    import edt
except ImportError:
    edt = None

# (row, column) step of direction 0..7. Direction d covers the angles within 22.5 degrees of 45 * d - 180.
DIRECTIONS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))

# 5x5 derivative along rows; its transpose is the one along columns.
GRADIENT_KERNEL = (
    (-0.25, -0.4, -0.5, -0.4, -0.25),
    (-0.2, -0.5, -1.0, -0.5, -0.2),
    (0.0, 0.0, 0.0, 0.0, 0.0),
    (0.2, 0.5, 1.0, 0.5, 0.2),
    (0.25, 0.4, 0.5, 0.4, 0.25),
)


def boundary_distance_and_angle(
    label_map: np.ndarray, ignore_index: int = 255, min_class_pixels: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Distance to the nearest pixel with another label, and the angle that leads away from it.

    Args:
        label_map: `(height, width)`, any integer dtype.
        ignore_index: label of unlabeled pixels. They are a boundary for their neighbors.
        min_class_pixels: classes with fewer pixels are treated as unlabeled.

    Returns:
        Distance in pixels, float32 `(height, width)`: 0 for unlabeled pixels, infinite where there is no other label.
        The border of the image is not a boundary. And the angle in degrees within [-180, 180], float32
        `(height, width)`: that of (rows, columns) of the distance's 5x5 gradient within the class; 0 on unlabeled
        pixels, NaN where the direction is undefined (no other label, or a gradient of exactly zero).

    Raises:
        ImportError: when the package `edt` is missing.
    """
    if edt is None:
        raise ImportError("Boundary targets need the package edt: pip install edt.")
    # Bytes are compared and moved in a fraction of the time.
    if label_map.size > 0 and label_map.min() >= 0 and label_map.max() <= 255:
        label_map = label_map.astype(np.uint8)
    # edt takes 0 for background, so classes count from 1 and unlabeled pixels are 0.
    labeled = label_map != ignore_index
    if min_class_pixels > 0:
        classes, counts = np.unique(label_map, return_counts=True)
        labeled &= np.isin(label_map, classes[counts >= min_class_pixels])
    ids = (label_map.astype(np.uint16 if label_map.dtype == np.uint8 else np.int64) + 1) * labeled
    ids = ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.uint32)
    distance = edt.edt(ids, black_border=False, parallel=1)

    if np.isinf(distance).any():  # A single class, so it is infinite everywhere.
        return distance, np.full_like(distance, np.nan)
    row_gradient, column_gradient = _gradient_within_class(ids, distance)
    angle = np.arctan2(row_gradient, column_gradient) * (np.float32(180) / np.float32(np.pi))
    angle[(row_gradient == 0) & (column_gradient == 0)] = np.nan
    angle[ids == 0] = 0
    return distance, angle


def _gradient_within_class(ids: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """
    Derivatives of the distance by `GRADIENT_KERNEL`, which sees 0 for pixels of another class than its center and for
    pixels outside of the image.

    Args:
        ids: class of each pixel, `(height, width)`, any integer dtype.
        distance: float32 `(height, width)`, finite.

    Returns:
        The derivatives along rows and along columns, float32 `(2, height, width)`.
    """
    height, width = distance.shape
    kernel = np.array(GRADIENT_KERNEL, dtype=np.float32)
    kernels = np.stack((kernel, kernel.T)).reshape(2, 25)
    # (5, 5, height, width): the neighborhood of each pixel.
    seen_ids, seen_distance = (
        sliding_window_view(np.pad(array, 2), (5, 5)).transpose(2, 3, 0, 1) for array in (ids, distance)
    )
    gradient = np.empty((2, height, width), dtype=np.float32)
    rows = min(max(5120 // width, 1), height)  # at once: as much as the cache of a core holds
    is_own, own_distance = np.empty((5, 5, rows, width), dtype=bool), np.empty((5, 5, rows, width), dtype=np.float32)
    for start in range(0, height, rows):
        block = slice(start, min(start + rows, height))
        is_own, own_distance = (array[:, :, : block.stop - start] for array in (is_own, own_distance))
        np.equal(seen_ids[:, :, block], ids[block], out=is_own)
        np.multiply(seen_distance[:, :, block], is_own, out=own_distance)
        gradient[:, block] = (kernels @ own_distance.reshape(25, -1)).reshape(2, -1, width)
    return gradient


def distance_to_boundary_map(distance: Tensor, max_distance: int = 5) -> Tensor:
    """
    1 for boundary pixels and 0 for the others, int64, in the shape of `distance` (pixels, any real dtype). A pixel
    belongs to the boundary when its distance, cut to whole pixels, is at most `max_distance`.
    """
    return (distance < max_distance + 1).long()


def angle_to_direction_map(angle: Tensor) -> Tensor:
    """
    Direction 0..7 (see `DIRECTIONS`), int64, in the shape of `angle` (degrees, any real dtype). The bins are 45
    degrees wide, open below and closed above. Angles above 157.5, a padding value of 255 among them, give 0.
    """
    direction = (angle.to(torch.float64) - (22.5 - 180)).div_(45).ceil_().clamp_(0, 8)
    return direction.to(torch.uint8).bitwise_and_(7).long()


@torch.compiler.disable
def boundary_targets(
    labels: Tensor,
    ignore_index: int = 255,
    max_distance: int = 5,
    ignore_unlabelled: bool = True,
    min_class_pixels: int = 0,
    has_padding: bool = True,
) -> tuple[Tensor, Tensor]:
    """
    Targets of the boundary head and of the direction head. Runs on the CPU, whatever the device of the labels.

    Args:
        labels: `(height, width)` or `(batch, height, width)`, int64.
        ignore_index: label of unlabeled pixels, and target of pixels that no loss counts.
        max_distance: distance in whole pixels up to which a pixel belongs to the boundary.
        ignore_unlabelled: whether unlabeled pixels get `ignore_index`. Otherwise they are boundary pixels of
            direction 4, and padding is not a boundary and of direction 0, as in the original code.
        min_class_pixels: classes with fewer pixels are treated as unlabeled.
        has_padding: whether rows at the bottom and columns at the right in which nothing is labeled are padding, and
            make no boundary.

    Returns:
        Boundary labels (0 or 1) and direction labels (0..7), both int64 in the shape and on the device of `labels`.
        Pixels without a direction (a single class in the image, a gradient of zero) have direction `ignore_index`.
    """
    if labels.dim() == 3:
        targets = [
            boundary_targets(image, ignore_index, max_distance, ignore_unlabelled, min_class_pixels, has_padding)
            for image in labels
        ]
        if not targets:
            return labels.clone(), labels.clone()
        return torch.stack([boundary for boundary, _ in targets]), torch.stack([direction for _, direction in targets])

    label_map = labels.cpu().numpy()
    labeled = label_map != ignore_index
    height, width = label_map.shape
    if has_padding:
        height = int(labeled.any(1).nonzero()[0].max(initial=-1)) + 1
        width = int(labeled.any(0).nonzero()[0].max(initial=-1)) + 1
    padding = (0, label_map.shape[1] - width, 0, label_map.shape[0] - height)
    target_of_padding = ignore_index if ignore_unlabelled else 0
    if height == 0:
        nothing = torch.full(labels.shape, target_of_padding, device=labels.device)
        return nothing, nothing.clone()

    distance, angle = boundary_distance_and_angle(label_map[:height, :width], ignore_index, min_class_pixels)
    boundary = distance_to_boundary_map(torch.from_numpy(distance), max_distance)
    direction = angle_to_direction_map(torch.from_numpy(angle))
    has_no_direction = torch.from_numpy(angle).isnan()
    if ignore_unlabelled:
        unlabeled = torch.from_numpy(~labeled[:height, :width])
        boundary.masked_fill_(unlabeled, ignore_index)
        has_no_direction |= unlabeled
    direction.masked_fill_(has_no_direction, ignore_index)
    boundary, direction = (F.pad(target, padding, value=target_of_padding) for target in (boundary, direction))
    return boundary.to(labels.device), direction.to(labels.device)


def follow_direction(boundary: Tensor, direction: Tensor, steps: int = 1, inside_only: bool = False) -> Tensor:
    """
    The pixel that each pixel takes its label from.

    Args:
        boundary: `(..., height, width)`, bool: which pixels move.
        direction: `(..., height, width)`, int64, 0..7.
        steps: how often to move, each time along the direction found at the pixel reached, until it is not a boundary
            pixel. Moves stop at the border of the image.
        inside_only: whether a pixel stays where it is if its walk ends at a boundary pixel.

    Returns:
        `(..., height * width)`, int64: index into the pixels of the image, row by row.
    """
    height, width = boundary.shape[-2:]
    offsets = torch.tensor(DIRECTIONS, device=boundary.device)[direction] * boundary[..., None]
    row_offset, column_offset = offsets.flatten(-3, -2).unbind(-1)
    start = source = torch.arange(height * width, device=boundary.device).expand(row_offset.shape)
    for _ in range(steps):
        rows = (source // width + row_offset.gather(-1, source)).clamp(0, height - 1)
        columns = (source % width + column_offset.gather(-1, source)).clamp(0, width - 1)
        source = rows * width + columns
    if inside_only:
        source = torch.where(boundary.flatten(-2).gather(-1, source), start, source)
    return source


def refine_label_map(
    label_map: Tensor,
    boundary_probability: Tensor,
    direction: Tensor,
    threshold: float = 0.5,
    steps: int = 1,
    inside_only: bool = False,
) -> Tensor:
    """
    Boundary pixels take the label found along their direction.

    Args:
        label_map: `(height, width)`, int64.
        boundary_probability: `(height, width)`, floating point.
        direction: `(height, width)`, int64, 0..7.
        threshold: probability above which a pixel is a boundary pixel.
        steps: how many pixels to walk at most, from 1.
        inside_only: whether a pixel keeps its label if its walk ends at a boundary pixel.

    Returns:
        `(height, width)`, int64.
    """
    source = follow_direction(boundary_probability > threshold, direction, steps, inside_only)
    return label_map.flatten()[source].view_as(label_map)
