# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Multi-scale deformable attention in plain PyTorch.

A query looks at a few points of each level of a feature pyramid. Sampling locations are (x, y) in units of the level's
width and height: 0 and 1 are the outer edges of the first and last cell. Values are read bilinearly, and are zero
outside of the level.

Source: Zhu et al., "Deformable DETR", equation 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sampling_locations_and_weights(
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> tuple[Tensor, Tensor]:
    """
    Where the queries look, and how much each sample counts.

    Args:
        spatial_shapes: (height, width) of each of the L levels.
        reference_points: `(batch or 1, queries, L or 1, 2)`, (x, y) as fractions of the level, float32 or float64.
        sampling_offsets: `(batch, queries, heads, L, points, 2)`, (x, y) in cells of the level.
        attention_logits: `(batch, queries, heads, L, points)`.

    Returns:
        Sampling locations `(batch, queries, heads, L, points, 2)` in the dtype of the reference points, because half
        precision can not tell neighbouring cells apart, and attention weights `(batch, queries, heads, L, points)` in
        at least float32, which sum to 1 over levels and points together.
    """
    batch, queries, heads, levels, points, _ = sampling_offsets.shape
    dtype = reference_points.dtype
    reference_points = reference_points.expand(batch, queries, levels, 2)[:, :, None, :, None, :]
    locations = torch.stack(
        [
            torch.stack(
                (
                    reference_points[:, :, :, level, :, 0] + sampling_offsets[:, :, :, level, :, 0].to(dtype) / width,
                    reference_points[:, :, :, level, :, 1] + sampling_offsets[:, :, :, level, :, 1].to(dtype) / height,
                ),
                dim=-1,
            )
            for level, (height, width) in enumerate(spatial_shapes)
        ],
        dim=3,
    )
    weights = attention_logits.flatten(3).to(dtype).softmax(-1).view(batch, queries, heads, levels, points)
    return locations, weights


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """
    Weighted sum of values sampled at given locations.

    Args:
        value: `(batch, sum of height * width, heads, head_dim)`, levels one after the other, each row by row.
        spatial_shapes: (height, width) of each of the L levels.
        sampling_locations: `(batch, queries, heads, L, points, 2)`, (x, y) as fractions of the level. Samples that are
            NaN, infinite or outside count as zero.
        attention_weights: `(batch, queries, heads, L, points)`.

    Returns:
        `(batch, queries, heads * head_dim)` in the dtype of `value`.

    Raises:
        ValueError: when the shapes do not fit together.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, head_dim = value.shape
    queries = sampling_locations.shape[1]
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # Cells that are a level or more away count as zero anyway. Finite numbers keep the sampler defined.
    sampling_locations = sampling_locations.nan_to_num(nan=-2.0).clamp(-2.0, 3.0)

    output = value.new_zeros((), dtype=dtype)
    for level, level_value in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        # (batch * heads, head_dim, height, width) and (batch * heads, queries, points, 2)
        level_value = level_value.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        grid = 2 * sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1).to(dtype) - 1
        samples = F.grid_sample(level_value, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None].to(dtype)
        output = output + (samples * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous().to(value.dtype)


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """
    Deformable attention from what the projections give: softmax, locations, sampling and weighted sum in one.

    Args:
        value: `(batch, sum of height * width, heads, head_dim)`, levels one after the other, each row by row.
        spatial_shapes: (height, width) of each of the L levels.
        reference_points: `(batch or 1, queries, L or 1, 2)`, (x, y) as fractions of the level, float32 or float64.
        sampling_offsets: `(batch, queries, heads, L, points, 2)`, (x, y) in cells of the level.
        attention_logits: `(batch, queries, heads, L, points)`.

    Returns:
        `(batch, queries, heads * head_dim)` in the dtype of `value`.

    Raises:
        ValueError: when the shapes do not fit together.
    """
    locations, weights = sampling_locations_and_weights(
        spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
    return multi_scale_deformable_attention(value, spatial_shapes, locations, weights)


def _check_shapes(value, spatial_shapes, sampling_locations, attention_weights):
    if value.dim() != 4:
        raise ValueError(f"value has to be (batch, cells, heads, head_dim), got {tuple(value.shape)}.")
    cells = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != cells:
        raise ValueError(f"value has {value.shape[1]} cells, but spatial_shapes {list(spatial_shapes)} has {cells}.")
    if sampling_locations.dim() != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(
            "sampling_locations has to be (batch, queries, heads, levels, points, 2), got "
            f"{tuple(sampling_locations.shape)}."
        )
    if sampling_locations.shape[:-1] != attention_weights.shape:
        raise ValueError(
            f"attention_weights {tuple(attention_weights.shape)} has to match sampling_locations "
            f"{tuple(sampling_locations.shape)} but for its last dimension."
        )
    expected = (value.shape[0], value.shape[2], len(spatial_shapes))
    got = (sampling_locations.shape[0], *sampling_locations.shape[2:4])
    if got != expected:
        raise ValueError(f"(batch, heads, levels) is {expected} in value and spatial_shapes, {got} in the samples.")
    if not value.is_floating_point():
        raise ValueError(f"value has to be of a floating point dtype, got {value.dtype}.")


__all__ = ["deformable_attention", "multi_scale_deformable_attention", "sampling_locations_and_weights"]
