# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The bands of rows that bound the memory of large label maps, and boundary refinement in them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.boundary import follow_direction


__all__ = ["bands", "refine_in_bands"]

BAND_BYTES = 64 * 2**20  # of one band of rows; the working memory is a few times as much


def bands(height: int, bytes_per_row: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of bands that take about 64 MiB each."""
    rows = max(1, BAND_BYTES // bytes_per_row)
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def refine_in_bands(
    label_map: Tensor,
    boundary: Tensor,
    direction: Tensor,
    steps: int = 1,
    inside_only: bool = False,
    *others: Tensor | None,
) -> list[Any]:
    """
    `unept_hf.model.boundary.refine_label_map` for large images: band by band, with few bytes for each pixel.

    Args:
        label_map: `(height, width)`, any dtype.
        boundary: `(height, width)`, bool: which pixels move.
        direction: `(height, width)`, any integer dtype, 0..7.
        steps: largest number of pixels to walk.
        inside_only: whether a pixel keeps its label if its walk ends at a boundary pixel.
        others: `(..., height, width)`, any dtype, such as the scores of all classes, which move along; or `None`.

    Returns:
        The refined label map and the others, in their shapes and dtypes.
    """
    height, width = label_map.shape
    maps = (label_map, *others)
    refined = [None if one is None else torch.empty_like(one) for one in maps]
    # follow_direction takes about a hundred bytes for each pixel.
    for start, stop in bands(height, 100 * width):
        # No walk leaves the rows within `steps`, so only walks at the border of the image stop at one.
        upper, lower = max(0, start - steps), min(height, stop + steps)
        source = follow_direction(boundary[upper:lower], direction[upper:lower].long(), steps, inside_only)
        source = source[(start - upper) * width : (stop - upper) * width]
        for one, moved in zip(maps, refined):
            if one is not None and moved is not None:
                rows = one[..., upper:lower, :].flatten(-2)[..., source]
                moved[..., start:stop, :] = rows.unflatten(-1, (stop - start, width))
    return refined
