# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Multi-scale deformable attention: plain PyTorch, and the choice of a kernel that computes the same faster.

A query looks at a few points of each level of a feature pyramid. Sampling locations are (x, y) in units of the level's
width and height: 0 and 1 are the outer edges of the first and last cell. Values are read bilinearly, and are zero
outside of the level.

The backend is chosen by device and dtype; `UNEPT_ATTENTION_BACKEND` and [`attention_backend`] choose it by name:
"torch" is plain PyTorch, "cpu" the C++ kernel, "triton" the GPU kernel. Without the package unept_hf, as a file that
came with a model's weights, this module computes in plain PyTorch.

Source: Zhu et al., "Deformable DETR", equation 3.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


__all__ = [
    "attention_backend",
    "deformable_attention",
    "keep_backend",
    "multi_scale_deformable_attention",
    "sampling_locations_and_weights",
]

_KERNELS: dict[str, ModuleType] = {}
try:
    from unept_hf.kernels import cpu, operators, triton

    _KERNELS |= {"cpu": cpu, "triton": triton}
except ImportError:  # a copy that came with a model's weights
    pass
_AUTOMATIC = {"cpu": "cpu", "cuda": "triton"}
# Asked once, because the graph compiler of older versions cannot look through the question.
_AUTOCAST_DEVICES = {name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name)}
_default_backend = os.environ.get("UNEPT_ATTENTION_BACKEND", "auto")
_said: set[str] = set()


class _Choice(threading.local):
    """
    The backend of each thread. Not a `ContextVar` and not an attribute of the class, which the graph compiler of older
    versions cannot read, or takes for the value of all threads.
    """

    def __init__(self):
        self.backend = _default_backend


_choice = _Choice()


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """
    Uses one backend for the calls within, in this thread.

    Args:
        name: "auto", "torch", "cpu" or "triton". A named backend that cannot run raises a `RuntimeError` that says
            why; "auto" takes the kernel of the tensors' device, and plain PyTorch where that cannot run. Programs of
            `torch.export` hold plain PyTorch with "auto", and the operator of a kernel that is named.
    """
    before, _choice.backend = _choice.backend, name
    try:
        yield
    finally:
        _choice.backend = before


def keep_backend(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the backend of this thread and moment, whichever thread calls it later."""
    backend = _choice.backend

    def call(*args, **kwargs):
        with attention_backend(backend):
            return function(*args, **kwargs)

    return function if torch.compiler.is_compiling() else call


def _why_not(name: str, *arguments) -> str | None:
    if name not in ("cpu", "triton"):
        return "it is none of auto, torch, cpu, triton"
    if not _KERNELS:
        return "the package unept-hf is not installed (pip install unept-hf)"
    return _KERNELS[name].why_not(*arguments)


def _kernel_of_operator(*arguments) -> ModuleType | None:
    """The kernel with which an operator computes, or `None` for plain PyTorch."""
    name = _AUTOMATIC.get(arguments[0].device.type) if _choice.backend in ("auto", "torch") else _choice.backend
    return _KERNELS[name] if name is not None and _why_not(name, *arguments) is None else None


def _choose_kernel(*arguments) -> ModuleType | None:
    """The kernel for these tensors, or `None` for plain PyTorch."""
    value, backend = arguments[0], _choice.backend
    # Other formats know no operator of ours, and most exporters begin with torch.export, so that it stays there only
    # when asked for by name. A decomposition would serve them too, but with CI=1 in the environment, Inductor refuses
    # to call operators that have one.
    exporting = torch.compiler.is_exporting() and backend == "auto"
    if backend == "torch" or exporting or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return None
    name = _AUTOMATIC.get(value.device.type) if backend == "auto" else backend
    if name is None:
        return None
    reason = _why_not(name, *arguments)
    if reason is None:
        return _KERNELS[name]
    if backend != "auto":
        raise RuntimeError(f"The attention backend {name!r} cannot run: {reason}.")
    # No kernel computes in float64, so there is nothing to say about it.
    if reason not in _said and value.dtype != torch.float64 and not torch.compiler.is_compiling():
        _said.add(reason)
        warnings.warn(
            f"Deformable attention runs in plain PyTorch, many times slower than with the {name} kernel: {reason}.",
            stacklevel=5,
        )
    return None


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
        Sampling locations `(batch, queries, heads, L, points, 2)` and attention weights `(batch, queries, heads, L,
        points)`, which sum to 1 over levels and points together. Both are in the dtype of the reference points, at
        least float32, because half precision cannot tell neighboring cells apart.
    """
    batch, queries, heads, levels, points, _ = sampling_offsets.shape
    dtype = torch.promote_types(reference_points.dtype, torch.float32)
    reference_points = reference_points.to(dtype)
    reference_points = reference_points.expand(batch, queries, levels, 2)[:, :, None, :, None, :]
    levels_of_locations = [
        torch.stack(
            (
                reference_points[:, :, :, level, :, 0] + sampling_offsets[:, :, :, level, :, 0].to(dtype) / width,
                reference_points[:, :, :, level, :, 1] + sampling_offsets[:, :, :, level, :, 1].to(dtype) / height,
            ),
            dim=-1,
        )
        for level, (height, width) in enumerate(spatial_shapes)
    ]
    locations = torch.stack(levels_of_locations, dim=3) if levels_of_locations else sampling_offsets.to(dtype)
    weights = attention_logits.flatten(3).to(dtype).softmax(-1).view(batch, queries, heads, levels, points)
    return locations, weights


def _plain_attention(value, spatial_shapes, reference_points, positions, scores):
    """Either form in plain PyTorch: the oracle of the kernels."""
    batch, _, heads, head_dim = value.shape
    queries = positions.shape[1]
    if not torch.jit.is_tracing() and (value.numel() == 0 or positions.numel() == 0):
        # The sampler takes nothing empty. The sums of no numbers are there for the gradients, which are zero too.
        tensors = [tensor for tensor in (value, reference_points, positions, scores) if tensor is not None]
        nothing = sum(tensor.flatten()[:0].sum().to(value.dtype) for tensor in tensors)
        return nothing.expand(batch, queries, heads * head_dim).contiguous()
    if reference_points is not None:
        positions, scores = sampling_locations_and_weights(spatial_shapes, reference_points, positions, scores)
    dtype = torch.promote_types(torch.promote_types(value.dtype, positions.dtype), torch.float32)
    # Cells that are a level or more away count as zero anyway. Finite numbers keep the sampler defined.
    positions = positions.nan_to_num(nan=-2.0).clamp(-2.0, 3.0)

    output = value.new_zeros((), dtype=dtype)
    for level, level_value in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        if not torch.jit.is_tracing() and height * width == 0:
            continue  # the sampler takes nothing empty
        # (batch * heads, head_dim, height, width) and (batch * heads, queries, points, 2)
        level_value = level_value.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        grid = 2 * positions[:, :, :, level].transpose(1, 2).flatten(0, 1).to(dtype) - 1
        samples = F.grid_sample(level_value, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = scores[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None].to(dtype)
        output = output + (samples * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous().to(value.dtype)


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
        sampling_locations: `(batch, queries, heads, L, points, 2)`, (x, y) as fractions of the level, best in float32
            also when the value is in half precision. Samples that are NaN, infinite or outside count as zero.
        attention_weights: `(batch, queries, heads, L, points)`.

    Returns:
        `(batch, queries, heads * head_dim)` in the dtype of `value`.

    Raises:
        ValueError: when shapes or devices do not fit together.
        RuntimeError: when a backend that was asked for by name cannot run.
    """
    return _attend(value, spatial_shapes, None, sampling_locations, attention_weights)


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """
    Deformable attention from the outputs of the projections: softmax, locations, sampling and weighted sum in one.

    Args:
        value: `(batch, sum of height * width, heads, head_dim)`, levels one after the other, each row by row.
        spatial_shapes: (height, width) of each of the L levels.
        reference_points: `(batch or 1, queries, L or 1, 2)`, (x, y) as fractions of the level, float32 or float64.
        sampling_offsets: `(batch, queries, heads, L, points, 2)`, (x, y) in cells of the level.
        attention_logits: `(batch, queries, heads, L, points)`.

    Returns:
        `(batch, queries, heads * head_dim)` in the dtype of `value`.

    Raises:
        ValueError: when shapes or devices do not fit together.
        RuntimeError: when a backend that was asked for by name cannot run.
    """
    return _attend(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)


def _attend(value, spatial_shapes, reference_points, positions, scores) -> Tensor:
    spatial_shapes = [(height, width) for height, width in spatial_shapes]
    if not torch.jit.is_tracing():  # which makes a constant of each comparison, with a warning
        _check(value, spatial_shapes, reference_points, positions, scores)
    # Locations, weights and logits stay as they are: autocast is for the largest tensor.
    device = value.device.type
    if device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device) and value.dtype == torch.float32:
        value = value.to(torch.get_autocast_dtype(device))
    if reference_points is not None:
        reference_points = reference_points.to(torch.promote_types(reference_points.dtype, torch.float32))
    if _choose_kernel(value, spatial_shapes, reference_points, positions, scores) is None:
        return _plain_attention(value, spatial_shapes, reference_points, positions, scores)
    sizes = [size for shape in spatial_shapes for size in shape]
    if reference_points is None:
        return torch.ops.unept_hf.multi_scale_deformable_attention(value, sizes, positions, scores)
    return torch.ops.unept_hf.deformable_attention(value, sizes, reference_points, positions, scores)


def _check(value, spatial_shapes, reference_points, positions, scores) -> None:
    """The kernels read memory by these shapes, so shapes must be right."""
    levels, cells = len(spatial_shapes), sum(height * width for height, width in spatial_shapes)
    names = ["value", "sampling_locations", "attention_weights"]
    if reference_points is not None:
        names = ["value", "sampling_offsets", "attention_logits", "reference_points"]
    tensors = dict(zip(names, (value, positions, scores, reference_points)))
    fits = value.dim() == 4 and positions.dim() == 6 and value.shape[1] == cells
    fits = fits and positions.shape[:-1] == scores.shape and positions.shape[-1] == 2
    fits = fits and (value.shape[0], value.shape[2], levels) == (positions.shape[0], *positions.shape[2:4])
    if reference_points is not None:
        shape = reference_points.shape
        fits = fits and len(shape) == 4 and shape[0] in (1, positions.shape[0]) and shape[1] == positions.shape[1]
        fits = fits and shape[2] in (1, levels) and shape[3] == 2
    if not fits or any(tensor.device != value.device for tensor in tensors.values()):
        got = ", ".join(f"{name} {tuple(tensor.shape)} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(
            "Deformable attention needs, on one device, a value of (batch, cells, heads, head_dim), positions of "
            "(batch, queries, heads, levels, points, 2), scores of the same shape without the last dimension, and "
            "reference points of (batch or 1, queries, levels or 1, 2), with the cells of all spatial_shapes; got "
            f"{got}, spatial_shapes {spatial_shapes} with {cells} cells."
        )


if _KERNELS:
    operators.register(_plain_attention, _kernel_of_operator)
