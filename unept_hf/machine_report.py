# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What this machine has, which attention backends run on it, and how long a model takes on it."""

import contextlib
import gc
import importlib.metadata
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from .inference.segment import evaluation_mode
from .model import deformable_attention as attention
from .version import __version__


PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "safetensors", "huggingface_hub", "datasets", "accelerate",
    "evaluate", "numpy", "pillow", "matplotlib", "edt", "triton", "onnx", "onnxruntime", "onnxscript", "peft",
    "bitsandbytes", "torchao", "gradio",
)  # fmt: skip
BACKENDS = ("cpu", "triton", "torch")
VARIABLES = ("UNEPT_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "TRITON_INTERPRET", "CUDA_VISIBLE")


def cpu_name() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def attention_backends(device: torch.device | str, dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """
    For each backend of deformable attention `None` if it runs on this device with values of this dtype, or why it does
    not. Each is tried on a small problem.
    """
    results = {}
    for name in BACKENDS:
        try:
            with attention.attention_backend(name), torch.inference_mode():
                attention.deformable_attention(*_small_problem(device, dtype))
            results[name] = None
        # A kernel that is compiled here may fail in any way.
        except Exception as error:
            results[name] = str(error).partition(" cannot run: ")[2].rstrip(".") or f"{type(error).__name__}: {error}"
    return results


def chosen_backend(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that a model takes by itself, or that `UNEPT_ATTENTION_BACKEND` names."""
    kernel = attention._choose_kernel(*_small_problem(device, dtype))
    return "torch" if kernel is None else kernel.__name__.rpartition(".")[2]


def _small_problem(device, dtype) -> tuple:
    value = torch.zeros(1, 4, 1, 16, device=device, dtype=dtype)
    reference_points = torch.full((1, 1, 1, 2), 0.5, device=device)
    offsets = torch.zeros(1, 1, 1, 1, 4, 2, device=device, dtype=dtype)
    return value, [(2, 2)], reference_points, offsets, offsets[..., 0]


def devices() -> dict[str, str]:
    """The devices that PyTorch can use here, with what is known of them."""
    found = {"cpu": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        version = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        found[f"cuda:{index}"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {properties.major}."
            f"{properties.minor}, {version}"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "Metal"
    return found


def environment() -> dict[str, dict[str, str]]:
    """What a bug report should say: versions, devices, attention backends and environment variables."""
    versions = {"unept-hf": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    memory = psutil.virtual_memory()
    machine = {"memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free", **devices()}
    backends = {}
    for device in devices():
        for name, reason in attention_backends(device).items():
            backends[f"{name} on {device}"] = "runs" if reason is None else f"does not run: {reason}"
        try:
            backends[f"chosen on {device}"] = chosen_backend(device)
        except RuntimeError as error:  # UNEPT_ATTENTION_BACKEND names one that does not run
            backends[f"chosen on {device}"] = str(error)
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {"versions": versions, "machine": machine, "deformable attention": backends, "variables": variables}


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """
    Measures the memory in bytes that the block takes at most above what was taken before, under the key `bytes` at
    its end: what PyTorch allocates on CUDA, the resident memory of the process (looked at 500 times a second) on the
    CPU, and `None` elsewhere.
    """
    measured: dict[str, int | None] = {"bytes": None}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield measured
        torch.cuda.synchronize(device)
        measured["bytes"] = torch.cuda.max_memory_allocated(device) - before
        return
    if device.type != "cpu":
        yield measured
        return
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield measured
    finally:
        peak = max(peak, process.memory_info().rss)
        done.set()
        watcher.join()
    measured["bytes"] = peak - before


def measure_latency(model: nn.Module, pixel_values: Tensor, backend: str = "auto", repeats: int = 10) -> dict:
    """
    How long a model takes for a batch, without image processing.

    Args:
        model: a segmentation model, on a device.
        pixel_values: `(batch, channels, height, width)`, on that device.
        backend: of deformable attention, see [`unept_hf.model.deformable_attention.attention_backend`].
        repeats: how often to run it, after two runs that are not timed.

    Returns:
        `median_seconds` and `fastest_seconds` for the batch, `images_per_second` by the median, and
        `peak_memory_bytes` of the first run above the model's own memory (see [`peak_memory`]).
    """
    device = pixel_values.device

    def run():
        model(pixel_values=pixel_values)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    seconds = []
    with attention.attention_backend(backend), evaluation_mode(model), torch.inference_mode():
        with peak_memory(device) as memory:
            run()
        run()
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "images_per_second": len(pixel_values) / median,
        "peak_memory_bytes": memory["bytes"],
    }


__all__ = [
    "attention_backends",
    "chosen_backend",
    "cpu_name",
    "devices",
    "environment",
    "measure_latency",
    "peak_memory",
]
