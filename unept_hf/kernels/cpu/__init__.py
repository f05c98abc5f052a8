# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
CPU backend: loads the library that setup.py built from deformable_attention.cpp, and shares its work among threads.

float32 and bfloat16 are stored, float32 is computed. Results do not depend on the number of threads.
"""

import ctypes
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor


__all__ = ["ABI_VERSION", "Problem", "backward", "forward", "why_not"]

ABI_VERSION = 1
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
# torch's name of the processor's instruction sets -> the libraries that it can run, best first.
_LIBRARIES = {"AVX512": ("avx512", "avx2", "plain"), "AVX2": ("avx2", "plain")}
# Without these options, pip takes the wheel that it kept when there was no compiler.
_REMEDY = (
    "install a C++ compiler (GCC or Clang), and then unept-hf again, with `pip install --no-cache-dir "
    "--force-reinstall --no-deps --no-binary unept-hf unept-hf`, or in a clone with `pip install --no-deps -e .`"
)
if sys.platform == "win32":
    _REMEDY = "it needs Linux or macOS, so run Python in the Windows Subsystem for Linux"


class Problem(ctypes.Structure):
    """Mirrors `struct Problem` of deformable_attention.cpp."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("batch", "queries", "heads", "head_dim", "levels", "points")],
        ("spatial_shapes", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("value_strides", ctypes.c_int64 * 3),
        ("reference_points", ctypes.c_void_p),
        ("reference_strides", ctypes.c_int64 * 3),
        *[(name, ctypes.c_void_p) for name in ("positions", "scores", "output", "grad_output")],
        *[(name, ctypes.c_void_p) for name in ("grad_value", "grad_positions", "grad_scores")],
        *[(name, ctypes.c_void_p) for name in ("workspace", "counters")],
        *[(name, ctypes.c_int32) for name in ("value_type", "position_type", "score_type", "workers")],
    )


def _load_library() -> tuple[ctypes.CDLL | None, str | None]:
    """The best library for this processor, or why there is none."""
    problems = []
    for name in _LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ("plain",)):
        path = Path(__file__).with_name(f"deformable_attention_{name}.so")
        if not path.exists():
            problems.append(f"{path.name} was not built")
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            problems.append(str(error))
            continue
        library.unept_abi_version.restype = ctypes.c_int64
        library.unept_workspace_size.restype = ctypes.c_int64
        if library.unept_abi_version() == ABI_VERSION:
            return library, None
        problems.append(f"{path.name} was built from another version")
    return None, f"{', '.join(problems)}: {_REMEDY}"


# Loaded here, because a graph that is being compiled cannot load anything.
_library, _missing = _load_library()


def why_not(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> str | None:
    """Why the kernel cannot take these tensors, or `None` when it can."""
    if value.device.type != "cpu":
        return f"the tensors are on {value.device}"
    for name, tensor in (("value", value), ("positions", positions), ("scores", scores)):
        if tensor.dtype not in _DTYPES:
            return f"{name} {'are' if name.endswith('s') else 'is'} {tensor.dtype}, not float32 or bfloat16"
    if reference_points is not None and reference_points.dtype != torch.float32:
        return f"reference_points are {reference_points.dtype}, not float32"
    return _missing


def _make_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="unept_hf")


_pool: ThreadPoolExecutor
_make_pool()  # which starts no thread yet
# Threads do not survive a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pool)


def _run(name: str, tensors: dict[str, Tensor], spatial_shapes: list[tuple[int, int]]) -> None:
    assert _library is not None  # why_not has been asked
    value, positions = tensors["value"], tensors["positions"]
    batch, queries, heads, levels, points = positions.shape[:5]
    workers = max(1, min(torch.get_num_threads(), batch * heads * queries))
    shapes = (ctypes.c_int64 * (2 * levels))(*(size for shape in spatial_shapes for size in shape))
    counters = (ctypes.c_int64 * (1 + 2 * batch * heads))()
    problem = Problem(
        batch=batch, queries=queries, heads=heads, head_dim=value.shape[3], levels=levels, points=points,
        spatial_shapes=ctypes.addressof(shapes), value_strides=value.stride()[:3],
        counters=ctypes.addressof(counters), value_type=_DTYPES[value.dtype],
        position_type=_DTYPES[positions.dtype], score_type=_DTYPES[tensors["scores"].dtype], workers=workers,
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )  # fmt: skip
    if "reference_points" in tensors:
        problem.reference_strides = tensors["reference_points"].stride()[:3]
    backward = name == "unept_backward"
    workspace = torch.empty(_library.unept_workspace_size(ctypes.byref(problem), backward), dtype=torch.float32)
    problem.workspace = workspace.data_ptr()

    # A thread that begins after this call holds the problem, which holds all memory that it points to.
    problem.memory = tensors, shapes, counters, workspace

    work, pool = getattr(_library, name), _pool
    others: list[Future] = []
    try:
        # The work is taken in tasks, so it gets done even if some of these start late or never.
        for index in range(1, workers):
            others.append(pool.submit(work, ctypes.byref(problem), index))
        work(ctypes.byref(problem), 0)
    finally:
        _end(others)


def _end(futures: list[Future]) -> None:
    """Waits for work that has begun and cancels the rest. An interruption is raised when nothing is pending."""
    interrupt = None
    while True:
        try:
            wait([future for future in futures if not future.cancel()])
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _prepare(value: Tensor, reference_points: Tensor | None, positions: Tensor, scores: Tensor) -> dict[str, Tensor]:
    if value.stride(3) != 1:
        value = value.contiguous()
    tensors = {"value": value, "positions": positions.contiguous(), "scores": scores.contiguous()}
    if reference_points is not None:
        batch, queries, _, levels = positions.shape[:4]
        reference_points = reference_points.expand(batch, queries, levels, 2)
        if reference_points.stride(3) != 1:
            reference_points = reference_points.contiguous()
        tensors["reference_points"] = reference_points
    return tensors


def forward(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> Tensor:
    """Output `(batch, queries, heads * head_dim)` in the dtype of the value. Arguments: see `unept_hf.kernels`."""
    batch, queries, heads = positions.shape[:3]
    shape = (batch, queries, heads * value.shape[3])
    if value.numel() == 0 or positions.numel() == 0:
        return value.new_zeros(shape)
    output = value.new_empty(shape)
    tensors = _prepare(value, reference_points, positions, scores)
    _run("unept_forward", {**tensors, "output": output}, spatial_shapes)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, positions and scores in their dtypes. Arguments: see `unept_hf.kernels`."""
    if value.numel() == 0 or positions.numel() == 0:
        return torch.zeros_like(value), torch.zeros_like(positions), torch.zeros_like(scores)
    gradients = {
        "grad_value": torch.empty(value.shape, dtype=value.dtype),
        "grad_positions": torch.empty(positions.shape, dtype=positions.dtype),
        "grad_scores": torch.empty(scores.shape, dtype=scores.dtype),
    }
    tensors = _prepare(value, reference_points, positions, scores)
    grad_output = grad_output.to(value.dtype).contiguous()
    _run("unept_backward", {**tensors, "grad_output": grad_output, **gradients}, spatial_shapes)
    return gradients["grad_value"], gradients["grad_positions"], gradients["grad_scores"]
