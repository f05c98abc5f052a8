# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Deformable attention as operators of torch, so that compiled and exported graphs can hold it: schemas, and the rules
for fake tensors, autograd and autocast.

`torch.ops.unept_hf.deformable_attention` takes reference points, offsets and logits, and
`torch.ops.unept_hf.multi_scale_deformable_attention` takes locations and weights. Each has a backward operator.
Spatial shapes are flat: height and width of each level, one after the other.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


__all__ = ["register"]

_library = torch.library.Library("unept_hf", "FRAGMENT")


def register(plain: Callable[..., Tensor], choose: Callable[..., ModuleType | None]) -> None:
    """
    Registers the operators, once in a process.

    Args:
        plain: computes either form in plain PyTorch, where no kernel runs.
        choose: returns the kernel for some tensors, or `None`.

    Both take the arguments of a kernel's `forward`, see `unept_hf.kernels`.
    """
    if hasattr(torch.ops.unept_hf, "deformable_attention"):
        return
    fused = "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits"
    _register("deformable_attention", fused, plain, choose)
    _register("multi_scale_deformable_attention", "Tensor sampling_locations, Tensor attention_weights", plain, choose)


def _register(
    name: str, arguments: str, plain: Callable[..., Tensor], choose: Callable[..., ModuleType | None]
) -> None:
    with_reference_points = "reference_points" in arguments
    inputs_schema = f"Tensor value, SymInt[] spatial_shapes, {arguments}"
    backward_name = f"{name}_backward"
    _library.define(f"{name}({inputs_schema}) -> Tensor")
    _library.define(f"{backward_name}(Tensor grad_output, {inputs_schema}) -> (Tensor, Tensor, Tensor)")

    def kernel_arguments(value, sizes, *others):
        spatial_shapes = list(zip(sizes[::2], sizes[1::2]))
        return value, spatial_shapes, *(others if with_reference_points else (None, *others))

    def forward(*inputs):
        inputs = kernel_arguments(*inputs)
        kernel = choose(*inputs)
        return plain(*inputs) if kernel is None else kernel.forward(*inputs)

    def backward(grad_output, *inputs):
        inputs = kernel_arguments(*inputs)
        kernel = choose(*inputs)
        if kernel is None:
            raise RuntimeError(
                f"No kernel runs for {inputs[0].dtype} on {inputs[0].device}, and the backward operator only runs "
                "kernels: differentiate the forward operator, for which autograd takes the plain form otherwise."
            )
        return kernel.backward(grad_output, *inputs)

    def fake(value, sizes, *others):
        batch, queries = others[-2].shape[:2]
        return value.new_empty(batch, queries, value.shape[2] * value.shape[3])

    def fake_backward(grad_output, value, sizes, *others):
        tensors = (value, *others[-2:])
        return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)

    def setup_context(ctx, inputs, output):
        ctx.sizes = inputs[1]
        ctx.save_for_backward(inputs[0], *inputs[2:])

    def differentiate(ctx, grad_output):
        value, *others = ctx.saved_tensors
        inputs = kernel_arguments(value, ctx.sizes, *others)
        if choose(*inputs) is None:
            gradients = _plain_backward(plain, grad_output, *inputs)
        else:
            gradients = getattr(torch.ops.unept_hf, backward_name)(grad_output, value, ctx.sizes, *others)
        grad_value, grad_positions, grad_scores = gradients
        if not with_reference_points:
            return grad_value, None, grad_positions, grad_scores
        grad_reference = None
        if ctx.needs_input_grad[2]:
            grad_reference = _reference_gradient(inputs[1], others[0], grad_positions)
        return grad_value, None, grad_reference, grad_positions, grad_scores

    def autocast(device, keys):
        def call(value, *others):
            # The other tensors stay as they are: autocast is for the largest one.
            if value.dtype == torch.float32 and value.device.type == device:
                value = value.to(torch.get_autocast_dtype(device))
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return getattr(torch.ops.unept_hf, name)(value, *others)

        return call

    _library.impl(name, forward, "CompositeExplicitAutograd")
    _library.impl(backward_name, backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"unept_hf::{name}", fake, lib=_library)
    torch.library.register_fake(f"unept_hf::{backward_name}", fake_backward, lib=_library)
    torch.library.register_autograd(f"unept_hf::{name}", differentiate, setup_context=setup_context, lib=_library)
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        _library.impl(name, autocast(device, keys), key)


def _plain_backward(plain, grad_output, value, spatial_shapes, reference_points, positions, scores):
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (value, positions, scores)]
        output = plain(leaves[0], spatial_shapes, reference_points, *leaves[1:])
        return torch.autograd.grad(output, leaves, grad_output)


def _reference_gradient(spatial_shapes, reference_points, grad_offsets):
    """A reference point moves all offsets of its query and level, in fractions of the level."""
    gradient = grad_offsets.to(reference_points.dtype).sum((2, 4))
    levels = [
        torch.stack((gradient[:, :, level, 0] * width, gradient[:, :, level, 1] * height), dim=-1)
        for level, (height, width) in enumerate(spatial_shapes)
    ]
    if not levels:
        return torch.zeros_like(reference_points)
    return torch.stack(levels, dim=2).sum_to_size(reference_points.shape)
