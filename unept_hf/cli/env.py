# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf env`: versions, devices and attention backends, for bug reports."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import psutil
import torch

from ..model import deformable_attention as attention
from ..version import __version__


__all__ = ["EXAMPLES", "add_arguments", "attention_backends", "chosen_backend", "cpu_name", "devices", "run"]

USAGE = ""
OPTIONS = ()
EXAMPLES = """\
examples:
  unept-hf env
  unept-hf env --json > environment.json"""

PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "safetensors", "huggingface_hub", "datasets", "accelerate",
    "evaluate", "numpy", "pillow", "matplotlib", "edt", "triton", "onnx", "onnxruntime", "onnxscript", "peft",
    "bitsandbytes", "torchao", "gradio",
)  # fmt: skip
BACKENDS = ("cpu", "triton", "torch")
VARIABLES = ("UNEPT_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "TRITON_INTERPRET", "CUDA_VISIBLE")


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("--json", action="store_true", help="Print JSON.")


def run(arguments: argparse.Namespace) -> int:
    """Prints what a bug report should say."""
    report = _environment()
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    for title, entries in report.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
    return 0


def cpu_name() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def attention_backends(device: torch.device | str, dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """
    `None` for each backend of deformable attention that runs on this device with values of this dtype, or why it does
    not run. Each is tried on a small problem.
    """
    results: dict[str, str | None] = {}
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
    """The devices that PyTorch can use here, with their properties."""
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


def _environment() -> dict[str, dict[str, str]]:
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
        except RuntimeError as error:  # UNEPT_ATTENTION_BACKEND names a backend that does not run
            backends[f"chosen on {device}"] = str(error)
    if library := attention._KERNELS["cpu"]._library:
        backends["library of the cpu backend"] = Path(library._name).name
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {"versions": versions, "machine": machine, "deformable attention": backends, "variables": variables}
