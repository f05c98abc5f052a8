# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The kernel as a torch operator, so that compiled graphs can hold it."""

import torch
from torch import Tensor

from . import triton_kernel
from ._ops import add_op_namespace_prefix


def _pairs(sizes):
    return list(zip(sizes[::2], sizes[1::2]))


@torch.library.custom_op(add_op_namespace_prefix("multi_scale_deformable_attention"), mutates_args=())
def multi_scale_deformable_attention(
    value: Tensor, sizes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """
    Weighted sum of values sampled at given locations.

    Args:
        value: `(batch, sum of height * width, heads, head_dim)`, float32, float16 or bfloat16.
        sizes: Height and width of each level, one after the other.
        sampling_locations: `(batch, queries, heads, levels, points, 2)`, (x, y) as fractions of the level.
        attention_weights: `(batch, queries, heads, levels, points)`.

    Returns:
        `(batch, queries, heads * head_dim)` in the dtype of `value`.

    Raises:
        RuntimeError: when the kernel cannot take these tensors.
    """
    arguments = (value, _pairs(sizes), None, sampling_locations, attention_weights)
    reason = triton_kernel.why_not(*arguments)
    if reason is not None:
        raise RuntimeError(f"Deformable attention cannot run: {reason}.")
    return triton_kernel.forward(*arguments)


@multi_scale_deformable_attention.register_fake
def _(value, sizes, sampling_locations, attention_weights):
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op(add_op_namespace_prefix("multi_scale_deformable_attention_backward"), mutates_args=())
def _backward(
    grad_output: Tensor, value: Tensor, sizes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return triton_kernel.backward(grad_output, value, _pairs(sizes), None, sampling_locations, attention_weights)


@_backward.register_fake
def _(grad_output, value, sizes, sampling_locations, attention_weights):
    tensors = (value, sampling_locations, attention_weights)
    return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)


def _setup_context(ctx, inputs, output):
    value, ctx.sizes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _differentiate(ctx, grad_output):
    value, sampling_locations, attention_weights = ctx.saved_tensors
    gradients = _backward(grad_output, value, ctx.sizes, sampling_locations, attention_weights)
    return gradients[0], None, *gradients[1:]


multi_scale_deformable_attention.register_autograd(_differentiate, setup_context=_setup_context)
