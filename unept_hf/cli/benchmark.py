# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf benchmark`: latency and memory of a model on this machine."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..arguments import HubArguments
from .command_line import DeviceArguments, choose_device, load_model, positive_integer
from .env import attention_backends, chosen_backend, devices


__all__ = ["EXAMPLES", "add_arguments", "run"]

USAGE = "model"
OPTIONS = (DeviceArguments, HubArguments)
EXAMPLES = """\
examples:
  unept-hf benchmark my-model
  unept-hf benchmark unept-resnet50 --sizes 480 1024x2048 --all_backends --json latency.json

A preset's name stands for that model with random weights."""


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("model", help="Directory or Hub name of the model, or a preset for random weights.")
    add("--sizes", nargs="+", type=_size, help="Such as 480, or 480x640 for height and width; by default 480.")
    add("--batch_size", type=positive_integer, default=1, help="Images at once.")
    add("--repeats", type=positive_integer, default=10, help="Timed runs.")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="Dtype of the weights.")
    add("--all_backends", action="store_true", help="Measure each attention backend that runs.")
    add("--compile", action="store_true", help="Compile the model with torch.compile first.")
    add("--json", metavar="FILE", help="Write the results to a file too.")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return positive_integer(height), positive_integer(width or height)


def run(arguments: argparse.Namespace) -> int:
    """Measures latency and memory of a model."""
    from ..evaluation.latency import measure_latency

    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    model, _ = load_model(arguments.model, arguments, allow_preset=True)
    model.to(device, dtype)
    is_unept = model.config.model_type == "unept"
    reasons = attention_backends(device, dtype) if is_unept else {}
    chosen = chosen_backend(device, dtype) if is_unept else None
    names = [chosen]
    if is_unept and arguments.all_backends:
        names = [name for name, reason in reasons.items() if reason is None]
    machine = devices().get(str(device)) or devices().get(f"{device.type}:0") or str(device)
    print(f"{arguments.model} in {arguments.dtype} on {device}: {machine}")
    for name, reason in reasons.items():
        text = f"does not run: {reason}" if reason else "chosen" if name == chosen else "runs"
        print(f"  attention backend {name}: {text}")

    if arguments.compile:
        model.compile()
    rows: list[dict[str, Any]] = []
    configurations = [(size, name) for size in arguments.sizes or [(480, 480)] for name in names]
    for (height, width), name in tqdm(configurations, desc="Measuring", disable=None):
        shape = (arguments.batch_size, getattr(model.config, "num_channels", 3), height, width)
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        measured = measure_latency(model, pixel_values, name or "auto", arguments.repeats)
        settings = {"height": height, "width": width, "batch_size": arguments.batch_size, "attention": name}
        rows.append(settings | {"compiled": arguments.compile} | measured)
    lines = [["size", "batch", "attention", "median", "fastest", "images/s", "peak memory above the model"]]
    lines += [
        [
            f"{row['height']} x {row['width']}",
            str(row["batch_size"]),
            row["attention"] or "-",
            f"{1000 * row['median_seconds']:.1f} ms",
            f"{1000 * row['fastest_seconds']:.1f} ms",
            f"{row['images_per_second']:.2f}",
            "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    if arguments.json is not None:
        report = {"model": arguments.model, "device": str(device), "machine": machine, "dtype": arguments.dtype}
        report |= {"backends": reasons, "chosen": chosen, "repeats": arguments.repeats, "results": rows}
        Path(arguments.json).expanduser().write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0
