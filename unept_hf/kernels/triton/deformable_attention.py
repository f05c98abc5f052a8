# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The Triton kernels of deformable attention.

A program takes `BLOCK_QUERIES` queries of one head, level by level, `BLOCK_POINTS` points at a time. The points of a
query lie side by side in memory, and so do the channels of a cell: in a tile of (queries, points, channels) each
sample is a row. With 32 channels in half precision that row is 64 bytes, two sectors, which four threads fetch with
one 16-byte load each; a warp fetches a corner of eight points at once, whose positions are one sector. Sums over
points stay spread over the tile, and are added up once, at the end.

All loops are unrolled, so that loads need not wait for the arithmetic of the tile before. The backward reads each
corner once, and holds two numbers for each sample until the sum that the gradient of the softmax needs is known.

Heights and widths come as floats (exact up to 2**24), because Triton compiles anew for each pattern of integers that
are 1 or multiples of 16, also within a tuple. As it is, one compilation serves all image sizes.
"""

import triton
import triton.language as tl


@triton.jit
def _find_queries(queries, HEADS: tl.constexpr, BLOCK_QUERIES: tl.constexpr):
    """Image, head, queries, and rows of (batch, queries, heads) of this program. Heads are the fastest, because their
    positions and scores are adjacent."""
    program = tl.program_id(0)
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    head = program % HEADS
    batch = (program // HEADS // blocks).to(tl.int64)
    query = program // HEADS % blocks * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    return batch, head, query, (batch * queries + query) * HEADS + head


@triton.jit
def _softmax(scores, row, known, SAMPLES: tl.constexpr, BLOCK_SAMPLES: tl.constexpr):
    """Maximum of each query's logits, and one over the sum of the exponentials, both (queries, 1)."""
    sample = tl.arange(0, BLOCK_SAMPLES)
    mask = known[:, None] & (sample < SAMPLES)[None, :]
    logits = tl.load(scores + row[:, None] * SAMPLES + sample[None, :], mask=mask, other=float("-inf")).to(tl.float32)
    # Rows after the last query have no logits.
    maximum = tl.where(known, tl.max(logits, axis=1), 0.0)[:, None]
    total = tl.where(known, tl.sum(tl.exp(logits - maximum), axis=1), 1.0)[:, None]
    return maximum, 1 / total


@triton.jit
def _locate(positions, sample, mask, reference_points, known, height, width):
    """Where samples lie, in cells, with 0 in the middle of the first cell, and which of them touch the level."""
    pairs = 2 * sample[:, :, None] + tl.arange(0, 2)[None, None, :]
    x, y = tl.split(tl.load(positions + pairs, mask=mask[:, :, None], other=0.0).to(tl.float32))
    if reference_points is not None:
        x += tl.load(reference_points, mask=known, other=0.0)[:, None] * width - 0.5
        y += tl.load(reference_points + 1, mask=known, other=0.0)[:, None] * height - 0.5
    else:
        x = x * width - 0.5
        y = y * height - 0.5
    # Not so for NaN. The remaining numbers can become integers.
    touches = mask & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    return tl.where(touches, x, 0.0), tl.where(touches, y, 0.0), touches


@triton.jit
def _corner(x, y, touches, height, width, DX: tl.constexpr, DY: tl.constexpr):
    """Number of a corner's cell, whether it exists, and its closeness to the sample along each axis (0 to 1)."""
    corner_x = tl.floor(x) + DX
    corner_y = tl.floor(y) + DY
    exists = touches & (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
    cell = corner_y.to(tl.int32) * tl.cast(width, tl.int32) + corner_x.to(tl.int32)
    return cell, exists, 1 - tl.abs(x - corner_x), 1 - tl.abs(y - corner_y)


@triton.jit(do_not_specialize=["queries", "cells", "reference_batch", "reference_query", "reference_level"])
def forward_kernel(
    value, reference_points, positions, scores, output, sizes,
    queries, cells, reference_batch, reference_query, reference_level,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_POINTS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    batch, head, query, row = _find_queries(queries, HEADS, BLOCK_QUERIES)
    known = query < queries
    channel = tl.arange(0, BLOCK_DIM)
    FUSED: tl.constexpr = reference_points is not None
    # A score that stands for no weight.
    NOTHING: tl.constexpr = float("-inf") if FUSED else 0.0
    if FUSED:
        reference_points += batch * reference_batch + query.to(tl.int64) * reference_query
        maximum, scale = _softmax(scores, row, known, LEVELS * POINTS, BLOCK_SAMPLES)

    total = tl.zeros((BLOCK_QUERIES, BLOCK_POINTS, BLOCK_DIM), tl.float32)
    level_value = value + (batch * cells * HEADS + head) * HEAD_DIM
    for level in tl.static_range(LEVELS):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for first in tl.static_range(0, POINTS, BLOCK_POINTS):
            point = first + tl.arange(0, BLOCK_POINTS)[None, :]
            mask = known[:, None] & (point < POINTS)
            sample = (row[:, None] * LEVELS + level) * POINTS + point
            x, y, touches = _locate(positions, sample, mask, reference_points, known, height, width)
            weight = tl.load(scores + sample, mask=mask, other=NOTHING).to(tl.float32)
            if FUSED:
                weight = tl.exp(weight - maximum) * scale
            for corner in tl.static_range(4):
                cell, exists, near_x, near_y = _corner(x, y, touches, height, width, corner % 2, corner // 2)
                pointers = level_value + (cell.to(tl.int64) * (HEADS * HEAD_DIM))[:, :, None] + channel[None, None, :]
                inside = exists[:, :, None] & (channel < HEAD_DIM)[None, None, :]
                values = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
                total += (weight * near_x * near_y)[:, :, None] * values
        level_value += tl.cast(height, tl.int64) * tl.cast(width, tl.int64) * (HEADS * HEAD_DIM)
        if FUSED:
            reference_points += reference_level

    pointers = output + row[:, None] * HEAD_DIM + channel[None, :]
    tl.store(pointers, tl.sum(total, axis=1), mask=known[:, None] & (channel < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=["queries", "cells", "reference_batch", "reference_query", "reference_level"])
def backward_kernel(
    grad_output, value, reference_points, positions, scores, grad_value, grad_positions, grad_scores, unit, sizes,
    queries, cells, reference_batch, reference_query, reference_level,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_POINTS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    """
    Adds to `grad_value`, in float32, or with `EXACT` in integers of which `unit` make one, in any order the same.
    """
    batch, head, query, row = _find_queries(queries, HEADS, BLOCK_QUERIES)
    known = query < queries
    channel = tl.arange(0, BLOCK_DIM)
    # A thread loads four channels, as many as it adds in float32, so both have one layout and nothing moves between.
    four = tl.max_contiguous(channel, 4)
    gradient_mask = known[:, None] & (channel < HEAD_DIM)[None, :]
    gradient = tl.load(grad_output + row[:, None] * HEAD_DIM + channel[None, :], mask=gradient_mask, other=0.0)
    gradient = gradient.to(tl.float32)[:, None, :]
    FUSED: tl.constexpr = reference_points is not None
    # A score that stands for no weight.
    NOTHING: tl.constexpr = float("-inf") if FUSED else 0.0
    if FUSED:
        reference_points += batch * reference_batch + query.to(tl.int64) * reference_query
        maximum, scale = _softmax(scores, row, known, LEVELS * POINTS, BLOCK_SAMPLES)
    EXACT: tl.constexpr = unit is not None
    added = gradient * tl.load(unit) if EXACT else gradient

    weighted_sum = tl.zeros((BLOCK_QUERIES, BLOCK_POINTS), tl.float32)
    weights, weight_gradients = (), ()
    level_start = (batch * cells * HEADS + head) * HEAD_DIM
    for level in tl.static_range(LEVELS):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for first in tl.static_range(0, POINTS, BLOCK_POINTS):
            point = first + tl.arange(0, BLOCK_POINTS)[None, :]
            mask = known[:, None] & (point < POINTS)
            sample = (row[:, None] * LEVELS + level) * POINTS + point
            x, y, touches = _locate(positions, sample, mask, reference_points, known, height, width)
            weight = tl.load(scores + sample, mask=mask, other=NOTHING).to(tl.float32)
            if FUSED:
                weight = tl.exp(weight - maximum) * scale
            grad_x = tl.zeros_like(weight)
            grad_y = tl.zeros_like(weight)
            grad_weight = tl.zeros_like(weight)
            for corner in tl.static_range(4):
                cell, exists, near_x, near_y = _corner(x, y, touches, height, width, corner % 2, corner // 2)
                offsets = level_start + (cell.to(tl.int64) * (HEADS * HEAD_DIM))[:, :, None] + four[None, None, :]
                inside = exists[:, :, None] & (channel < HEAD_DIM)[None, None, :]
                values = tl.load(value + offsets, mask=inside, other=0.0).to(tl.float32)
                product = tl.sum(values * gradient, axis=2)
                grad_weight += near_x * near_y * product
                grad_x += (2 * (corner % 2) - 1) * near_y * product
                grad_y += (2 * (corner // 2) - 1) * near_x * product
                addend = (weight * near_x * near_y)[:, :, None] * added
                if EXACT:
                    addend = addend.to(tl.int64)
                tl.atomic_add(grad_value + offsets, addend, mask=inside, sem="relaxed")
            if not FUSED:
                grad_x *= width
                grad_y *= height
            pairs = 2 * sample[:, :, None] + tl.arange(0, 2)[None, None, :]
            tl.store(grad_positions + pairs, tl.join(weight * grad_x, weight * grad_y), mask=mask[:, :, None])
            if FUSED:
                weighted_sum += weight * grad_weight
                weights += (weight,)  # type: ignore[assignment]
                weight_gradients += (grad_weight,)  # type: ignore[assignment]
            else:
                tl.store(grad_scores + sample, grad_weight, mask=mask)
        level_start += tl.cast(height, tl.int64) * tl.cast(width, tl.int64) * (HEADS * HEAD_DIM)
        if FUSED:
            reference_points += reference_level

    if FUSED:
        mean = tl.sum(weighted_sum, axis=1)[:, None]
        tiles: tl.constexpr = (POINTS + BLOCK_POINTS - 1) // BLOCK_POINTS
        for tile in tl.static_range(LEVELS * tiles):
            point = tile % tiles * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)[None, :]
            sample = (row[:, None] * LEVELS + tile // tiles) * POINTS + point
            grad_logit = weights[tile] * (weight_gradients[tile] - mean)
            tl.store(grad_scores + sample, grad_logit, mask=known[:, None] & (point < POINTS))
