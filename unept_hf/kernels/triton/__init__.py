# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
GPU backend: one Triton source for NVIDIA and AMD.

float32, float16 and bfloat16 are stored, in any mix, and float32 is computed. Nothing but the inputs is kept for the
backward. With `TRITON_INTERPRET=1` at import it computes on the CPU, slowly, for tests.
"""

import torch
from torch import Tensor


__all__ = ["backward", "constants", "forward", "why_not"]

_missing: str | None = None
try:
    import triton

    from .deformable_attention import backward_kernel, forward_kernel
except ImportError as error:
    triton, _missing = None, f"Triton cannot be imported ({error}): install the package triton"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_WARP_SIZE = 64 if torch.version.hip else 32
_DEVICE = "cpu" if triton is not None and triton.knobs.runtime.interpret else "cuda"


def why_not(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> str | None:
    """Why the kernel cannot take these tensors, or `None` when it can."""
    if _missing is not None:
        return _missing
    if value.device.type != _DEVICE:
        return f"the tensors are on {value.device}, and Triton works on {_DEVICE}"
    for name, tensor in (("value", value), ("positions", positions), ("scores", scores)):
        if tensor.dtype not in _DTYPES:
            return f"{name} {'are' if name.endswith('s') else 'is'} {tensor.dtype}, not float32, float16 or bfloat16"
    if reference_points is not None and reference_points.dtype != torch.float32:
        return f"reference_points are {reference_points.dtype}, not float32"
    return None


def constants(
    value: Tensor,
    positions: Tensor,
    backward: bool = False,
    configuration: tuple[int, int] | None = None,
    warp_size: int = _WARP_SIZE,
) -> dict[str, int]:
    """
    Constants for which a kernel is compiled, beside the dtypes. Reads shapes and the value's dtype only.

    Args:
        configuration: (queries of a program, its warps). By default 128 threads, and as many queries as make one
            16-byte access of each thread to each corner of a tile: loads of the value in the forward, float32
            additions in the backward. The default is reasoned, not measured; benchmarks/triton_tuning.py measures.
    """
    heads, levels, points = positions.shape[2:5]
    block_points = min(8, triton.next_power_of_2(points))
    block_dim = triton.next_power_of_2(value.shape[3])
    if configuration is None:
        tile = block_points * block_dim * (4 if backward else value.itemsize)
        configuration = (min(32, max(1, 128 * 16 // tile)), 128 // warp_size)
        if _DEVICE == "cpu":
            # One program runs after the other: better a few large ones.
            configuration = (32, 1)
    return {
        "HEADS": heads,
        "HEAD_DIM": value.shape[3],
        "LEVELS": levels,
        "POINTS": points,
        "BLOCK_QUERIES": configuration[0],
        "BLOCK_POINTS": block_points,
        "BLOCK_DIM": block_dim,
        "BLOCK_SAMPLES": triton.next_power_of_2(levels * points),
        "num_warps": configuration[1],
    }


def _launch(kernel, tensors, spatial_shapes, reference_points, configuration):
    value, positions = tensors["value"], tensors["positions"]
    batch, queries, heads, levels = positions.shape[:4]
    strides = (0, 0, 0)
    if reference_points is not None:
        reference_points = reference_points.contiguous().expand(batch, queries, levels, 2)
        strides = reference_points.stride()[:3]
    chosen = constants(value, positions, "grad_output" in tensors, configuration)
    # Triton launches on the current device.
    with torch.cuda.device_of(value):
        kernel[(batch * heads * triton.cdiv(queries, chosen["BLOCK_QUERIES"]),)](
            **tensors,
            reference_points=reference_points,
            sizes=tuple(float(size) for shape in spatial_shapes for size in shape),
            queries=queries,
            cells=value.shape[1],
            reference_batch=strides[0],
            reference_query=strides[1],
            reference_level=strides[2],
            **chosen,
            enable_fp_fusion=True,
        )


def forward(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    configuration: tuple[int, int] | None = None,
) -> Tensor:
    """Output `(batch, queries, heads * head_dim)` in the dtype of the value. Arguments: see `unept_hf.kernels`."""
    batch, queries, heads = positions.shape[:3]
    shape = (batch, queries, heads * value.shape[3])
    if value.numel() == 0 or positions.numel() == 0:
        return value.new_zeros(shape)
    tensors = {"value": value, "positions": positions, "scores": scores}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    output = value.new_empty(shape)
    _launch(forward_kernel, {**tensors, "output": output}, spatial_shapes, reference_points, configuration)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    configuration: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Gradients of value, positions and scores in their dtypes. Arguments: see `unept_hf.kernels`.

    The value's gradient is a sum of float32 atomic additions, whose order is not fixed. With
    `torch.use_deterministic_algorithms(True)` it is a sum of 64-bit integers instead, which no order changes; a
    gradient that is not finite then makes all of it NaN or infinite.
    """
    if value.numel() == 0 or positions.numel() == 0:
        return torch.zeros_like(value), torch.zeros_like(positions), torch.zeros_like(scores)
    tensors = {"grad_output": grad_output, "value": value, "positions": positions, "scores": scores}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    unit = None
    if torch.are_deterministic_algorithms_enabled():
        unit = _fixed_point_unit(grad_output, reference_points, scores)
    grad_value = torch.zeros(value.shape, dtype=torch.float32 if unit is None else torch.int64, device=value.device)
    gradients = {
        "grad_value": grad_value,
        "grad_positions": torch.empty_like(tensors["positions"]),
        "grad_scores": torch.empty_like(tensors["scores"]),
    }
    _launch(backward_kernel, {**tensors, **gradients, "unit": unit}, spatial_shapes, reference_points, configuration)
    if unit is not None:
        grad_value = grad_value.double() / unit
    return grad_value.to(value.dtype), gradients["grad_positions"], gradients["grad_scores"]


def _fixed_point_unit(grad_output, reference_points, scores):
    """The power of two that stands for 1, so that no sum of a cell can exceed 63 bits."""
    # A query adds at most 1 to a cell in the fused form, where weights sum to 1; in the other, at most the largest
    # weight for each of the points of the cell's level.
    bound = grad_output.abs().amax().double() * scores.shape[1]
    if reference_points is None:
        bound = bound * scores.abs().amax().double() * scores.shape[4]
    else:
        # The softmax of logits without a finite maximum is NaN, which no integer can represent.
        bound = bound + 0 * scores.flatten(3).amax(-1).double().sum()
    return torch.exp2(61 - bound.log2().ceil()).clamp(max=2.0**126).float()
