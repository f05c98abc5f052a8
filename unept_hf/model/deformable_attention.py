# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Multi-scale deformable attention: plain PyTorch, and the choice of a kernel that computes the same faster.

A query looks at a few points of each level of a feature pyramid. Sampling locations are (x, y) in units of the level's
width and height: 0 and 1 are the outer edges of the first and last cell. Values are read bilinearly, and are zero
outside of the level.

The backend is chosen by device and dtype; `UNEPT_ATTENTION_BACKEND` and [`attention_backend`] choose it by name:
"torch" is plain PyTorch, "cpu" the C++ kernel, "triton" the GPU kernel. Without the package unept_hf, as a file that
came with a model's weights, this computes in plain PyTorch.

Source: Zhu et al., "Deformable DETR", equation 3.
"""

import importlib
import os
import pkgutil
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F


try:
    from unept_hf.kernels import cpu as _cpu_kernel
except ImportError:
    _cpu_kernel = None
try:
    from unept_hf.kernels import triton as _triton_kernel
except ImportError:
    _triton_kernel = None

_KERNELS = {"cpu": _cpu_kernel, "triton": _triton_kernel}
_AUTOMATIC = {"cpu": "cpu"}
if _triton_kernel is not None:
    _AUTOMATIC["cuda"] = "triton"
# Asked once, because the graph compiler of older versions can not look through the question.
_AUTOCAST_DEVICES = {name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name)}
_default_backend = os.environ.get("UNEPT_ATTENTION_BACKEND", "auto")
_said: set[str] = set()


class _Choice(threading.local):
    """The backend of each thread. Not a `ContextVar`, which the graph compiler of older versions can not read."""

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


def _why_not(name, *arguments) -> str | None:
    if name not in _KERNELS:
        return f"it is none of auto, torch, {', '.join(_KERNELS)}"
    if _KERNELS[name] is None:
        return f"there is no unept_hf.kernels.{name} in this installation"
    return _KERNELS[name].why_not(*arguments)


def _choose_kernel(*arguments):
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
        raise RuntimeError(f"The attention backend {name!r} can not run: {reason}.")
    # No kernel computes in float64, so there is nothing to say about it.
    if reason not in _said and value.dtype != torch.float64 and not torch.compiler.is_compiling():
        _said.add(reason)
        warnings.warn(
            f"Deformable attention runs in plain PyTorch, many times slower than with the {name} kernel: {reason}.",
            stacklevel=4,
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
        least float32, because half precision can not tell neighbouring cells apart.
    """
    batch, queries, heads, levels, points, _ = sampling_offsets.shape
    dtype = torch.promote_types(reference_points.dtype, torch.float32)
    reference_points = reference_points.to(dtype)
    reference_points = reference_points.expand(batch, queries, levels, 2)[:, :, None, :, None, :]
    locations = [
        torch.stack(
            (
                reference_points[:, :, :, level, :, 0] + sampling_offsets[:, :, :, level, :, 0].to(dtype) / width,
                reference_points[:, :, :, level, :, 1] + sampling_offsets[:, :, :, level, :, 1].to(dtype) / height,
            ),
            dim=-1,
        )
        for level, (height, width) in enumerate(spatial_shapes)
    ]
    locations = torch.stack(locations, dim=3) if locations else sampling_offsets.to(dtype)
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
        ValueError: when shapes, dtypes or devices do not fit together.
        RuntimeError: when a backend that was asked for by name can not run.
    """
    names = ("sampling_locations", "attention_weights")
    spatial_shapes = [(height, width) for height, width in spatial_shapes]
    _check(value, spatial_shapes, None, sampling_locations, attention_weights, names)
    value = _autocast(value)
    if _choose_kernel(value, spatial_shapes, None, sampling_locations, attention_weights) is None:
        return _plain_attention(value, spatial_shapes, None, sampling_locations, attention_weights)
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.unept_hf.multi_scale_deformable_attention(value, sizes, sampling_locations, attention_weights)


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
        ValueError: when shapes, dtypes or devices do not fit together.
        RuntimeError: when a backend that was asked for by name can not run.
    """
    names = ("sampling_offsets", "attention_logits")
    spatial_shapes = [(height, width) for height, width in spatial_shapes]
    _check(value, spatial_shapes, reference_points, sampling_offsets, attention_logits, names)
    value = _autocast(value)
    reference_points = reference_points.to(torch.promote_types(reference_points.dtype, torch.float32))
    if _choose_kernel(value, spatial_shapes, reference_points, sampling_offsets, attention_logits) is None:
        return _plain_attention(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.unept_hf.deformable_attention(value, sizes, reference_points, sampling_offsets, attention_logits)


def _check(value, spatial_shapes, reference_points, positions, scores, names):
    # What a trace compares becomes a constant, with a warning for each.
    if torch.jit.is_tracing():
        return
    tensors = {"value": value, names[0]: positions, names[1]: scores}
    if reference_points is not None:
        tensors["reference_points"] = reference_points
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has to be of a floating point dtype, got {tensor.dtype}.")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}.")
    if value.dim() != 4:
        raise ValueError(f"value has to be (batch, cells, heads, head_dim), got {tuple(value.shape)}.")
    cells = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != cells:
        raise ValueError(f"value has {value.shape[1]} cells, but spatial_shapes {spatial_shapes} has {cells}.")
    if positions.dim() != 6 or positions.shape[-1] != 2:
        raise ValueError(
            f"{names[0]} has to be (batch, queries, heads, levels, points, 2), got {tuple(positions.shape)}."
        )
    if positions.shape[:-1] != scores.shape:
        raise ValueError(
            f"{names[1]} {tuple(scores.shape)} has to match {names[0]} {tuple(positions.shape)} but for its last "
            "dimension."
        )
    expected = (value.shape[0], value.shape[2], len(spatial_shapes))
    got = (positions.shape[0], *positions.shape[2:4])
    if got != expected:
        raise ValueError(f"(batch, heads, levels) is {expected} in value and spatial_shapes, but {got} in {names[0]}.")
    if reference_points is not None:
        shape, wanted = tuple(reference_points.shape), (positions.shape[0], positions.shape[1], len(spatial_shapes), 2)
        fits = len(shape) == 4 and shape[1] == wanted[1] and shape[3] == 2
        if not (fits and shape[0] in (1, wanted[0]) and shape[2] in (1, wanted[2])):
            raise ValueError(f"reference_points has to be {wanted}, 1 for batch or levels will do, got {shape}.")


def _autocast(value):
    # Locations, weights and logits stay as they are: autocast is for what there is much of.
    device = value.device.type
    if device not in _AUTOCAST_DEVICES:
        return value
    if torch.is_autocast_enabled(device) and value.dtype == torch.float32:
        value = value.to(torch.get_autocast_dtype(device))
    return value


class SharedContext:
    """
    A state of the whole process that several threads want at once: the first user enters it, the last leaves it.

    Args:
        make: returns the context manager that enters and leaves the state.
    """

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make, self._users, self._lock = make, 0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._context = self._make()
                self._context.__enter__()
            self._users += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._context.__exit__(None, None, None)


def accelerate_transformers() -> ExitStack:
    """
    Makes the deformable models of transformers use [`multi_scale_deformable_attention`], for all of the process.

    Takes Deformable DETR, RT-DETR, RT-DETR v2, Grounding DINO, Mask2Former, OneFormer and all others that have one of
    the three forms of the operator that transformers knows. Outputs differ by rounding only. Samplers that take the
    nearest cell, or different numbers of points on different levels, keep their own code.

    D-FINE and DEIMv2 look the operator up when a model is built, so call this first.

    Returns:
        What undoes it: `close()` does, and so does the end of a `with` block. Of several calls, also in several
        threads, the last to be undone puts transformers' own code back.

    Example:
        ```python
        with accelerate_transformers():
            outputs = AutoModelForObjectDetection.from_pretrained("SenseTime/deformable-detr")(**inputs)
        ```
    """
    undo = ExitStack()
    undo.enter_context(_acceleration)
    return undo


@contextmanager
def _replaced_operators() -> Iterator[None]:
    with ExitStack() as undo:
        _replace_operators(undo)
        yield


_acceleration = SharedContext(_replaced_operators)


def _replace_operators(undo: ExitStack) -> None:
    def replace(owner, name, function):
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, function)

    for module in _deformable_modules():
        if hasattr(module, "MultiScaleDeformableAttention"):
            replace(module.MultiScaleDeformableAttention, "forward", _module_forward)
        if hasattr(module, "multi_scale_deformable_attention"):
            replace(module, "multi_scale_deformable_attention", _function_forward)
        if hasattr(module, "multi_scale_deformable_attention_v2"):
            original = module.multi_scale_deformable_attention_v2
            replace(module, "multi_scale_deformable_attention_v2", _function_v2_forward(original))


_DEFINITION = re.compile(r"^class MultiScaleDeformableAttention\(|^def multi_scale_deformable_attention", re.M)


def _deformable_modules() -> Iterator:
    models = importlib.import_module("transformers.models")
    for info in pkgutil.iter_modules(models.__path__):
        path = Path(info.module_finder.path, info.name, f"modeling_{info.name}.py")
        # Most of transformers' hundreds of models need not be imported for this.
        if path.exists() and _DEFINITION.search(path.read_text("utf-8")):
            yield importlib.import_module(f"{models.__name__}.{info.name}.{path.stem}")


def _module_forward(
    self,
    value,
    value_spatial_shapes,
    value_spatial_shapes_list,
    level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    return multi_scale_deformable_attention(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _function_forward(value, value_spatial_shapes, sampling_locations, attention_weights):
    if isinstance(value_spatial_shapes, Tensor):
        value_spatial_shapes = value_spatial_shapes.tolist()
    return multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def _function_v2_forward(original):
    def forward(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"):
        if method != "default" or len(set(num_points_list)) != 1:
            return original(
                value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method
            )
        split = (len(num_points_list), num_points_list[0])
        return _function_forward(
            value, value_spatial_shapes, sampling_locations.unflatten(3, split), attention_weights.unflatten(3, split)
        )

    return forward


# The kernels as operators, so that compiled and exported graphs can hold them.


def _pairs(sizes):
    return list(zip(sizes[::2], sizes[1::2]))


def _kernel_of_device(*arguments):
    backend = _choice.backend
    name = backend if backend in _KERNELS else _AUTOMATIC.get(arguments[0].device.type)
    return _KERNELS[name] if name is not None and _why_not(name, *arguments) is None else None


def _compute(value, sizes, *others):
    arguments = (value, _pairs(sizes), *others)
    kernel = _kernel_of_device(*arguments)
    return _plain_attention(*arguments) if kernel is None else kernel.forward(*arguments)


def _compute_backward(grad_output, value, sizes, *others):
    arguments = (value, _pairs(sizes), *others)
    kernel = _kernel_of_device(*arguments)
    if kernel is None:
        raise RuntimeError(
            f"No kernel runs for {value.dtype} on {value.device}, and the backward operator only runs "
            "kernels: differentiate the forward operator, for which autograd takes the plain form otherwise."
        )
    return kernel.backward(grad_output, *arguments)


def _plain_backward(grad_output, value, sizes, reference_points, positions, scores):
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (value, positions, scores)]
        output = _plain_attention(leaves[0], _pairs(sizes), reference_points, *leaves[1:])
        return torch.autograd.grad(output, leaves, grad_output)


def _fake(value, sizes, reference_points, positions, scores):
    return value.new_empty(positions.shape[0], positions.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(grad_output, value, sizes, reference_points, positions, scores):
    return tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (value, positions, scores)
    )


def _reference_gradient(sizes, reference_points, grad_offsets):
    """A reference point moves all offsets of its query and level, in fractions of the level."""
    gradient = grad_offsets.to(reference_points.dtype).sum((2, 4))
    levels = [
        torch.stack((gradient[:, :, level, 0] * width, gradient[:, :, level, 1] * height), dim=-1)
        for level, (height, width) in enumerate(zip(sizes[::2], sizes[1::2]))
    ]
    if not levels:
        return torch.zeros_like(reference_points)
    return torch.stack(levels, dim=2).sum_to_size(reference_points.shape)


def _register(name: str, arguments: str, with_reference_points: bool) -> None:
    """
    Operators `unept_hf::<name>` and its backward, with fake, autograd and autocast rules.

    Another copy of this file may have done so already, in the same process.
    """
    if hasattr(torch.ops.unept_hf, name):
        return
    backward = f"{name}_backward"
    _library.define(f"{name}(Tensor value, SymInt[] spatial_shapes, {arguments}) -> Tensor")
    _library.define(
        f"{backward}(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, {arguments})"
        " -> (Tensor, Tensor, Tensor)"
    )

    def complete(function, leading):
        # The plain form has no reference points.
        def call(*inputs):
            if not with_reference_points:
                inputs = (*inputs[: leading + 2], None, *inputs[leading + 2 :])
            return function(*inputs)

        return call

    def setup_context(ctx, inputs, output):
        ctx.sizes = inputs[1]
        ctx.save_for_backward(inputs[0], *inputs[2:])

    def differentiate(ctx, grad_output):
        value, *others = ctx.saved_tensors
        inputs = others if with_reference_points else (None, *others)
        if _kernel_of_device(value, _pairs(ctx.sizes), *inputs) is None:
            gradients = _plain_backward(grad_output, value, ctx.sizes, *inputs)
        else:
            gradients = getattr(torch.ops.unept_hf, backward)(grad_output, value, ctx.sizes, *others)
        grad_value, grad_positions, grad_scores = gradients
        if not with_reference_points:
            return grad_value, None, grad_positions, grad_scores
        grad_reference = None
        if ctx.needs_input_grad[2]:
            grad_reference = _reference_gradient(ctx.sizes, others[0], grad_positions)
        return grad_value, None, grad_reference, grad_positions, grad_scores

    def autocast(keys):
        def call(value, *others):
            value = _autocast(value)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return getattr(torch.ops.unept_hf, name)(value, *others)

        return call

    qualified = f"unept_hf::{name}"
    _library.impl(name, complete(_compute, 0), "CompositeExplicitAutograd")
    _library.impl(backward, complete(_compute_backward, 1), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, complete(_fake, 0), lib=_library)
    torch.library.register_fake(f"{qualified}_backward", complete(_fake_backward, 1), lib=_library)
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)
    for key in ("AutocastCPU", "AutocastCUDA"):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        _library.impl(name, autocast(keys), key)


_library = torch.library.Library("unept_hf", "FRAGMENT")
_register(
    "deformable_attention",
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits",
    with_reference_points=True,
)
_register(
    "multi_scale_deformable_attention",
    "Tensor sampling_locations, Tensor attention_weights",
    with_reference_points=False,
)


__all__ = [
    "accelerate_transformers",
    "attention_backend",
    "deformable_attention",
    "multi_scale_deformable_attention",
    "sampling_locations_and_weights",
]
