# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much memory and time does a training step take, and how do the kernel, bfloat16 and checkpointing change them?

A step is forward, loss, backward and AdamW on random images and labels, with random weights, as the paper trains: 480
by 480, two images per device, 150 classes. Boundary maps are made before, as data loaders do. On a GPU, memory is the
peak allocated by torch; on the CPU, it is the peak resident memory of a separate process, libraries included.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --device cpu --size 128 --batch_size 1 --presets unept-deit-base
"""

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results

from unept_hf import UneptForSemanticSegmentation
from unept_hf.evaluation.latency import peak_memory
from unept_hf.model.boundary import boundary_targets
from unept_hf.model.deformable_attention import attention_backend


# Memory of a device in gigabytes, from the table of results in the README of the paper's repository.
PAPER = {"unept-resnet50": 7.0, "unept-deit-base": 8.5}
# name: whether bfloat16 autocast, whether gradient checkpointing, attention backend, decoder self-attention (the
# paper's figures are of the pointwise one)
MODES = {
    "float32, pointwise decoder": (False, False, "auto", "pointwise"),
    "float32": (False, False, "auto", "deformable"),
    "float32, checkpointing": (False, True, "auto", "deformable"),
    "float32, grid_sample": (False, False, "torch", "deformable"),
    "bfloat16": (True, False, "auto", "deformable"),
    "bfloat16, checkpointing": (True, True, "auto", "deformable"),
    "bfloat16, grid_sample": (True, False, "torch", "deformable"),
    "bfloat16, pointwise decoder": (True, False, "auto", "pointwise"),
    "bfloat16, dense decoder": (True, False, "auto", "dense"),
}


def training_inputs(batch_size, size):
    """Random square images, and the keyword arguments of the loss for them."""
    images = torch.randn(batch_size, 3, size, size)
    # Regions of 16 by 16 pixels have boundaries as scenes do.
    labels = torch.randint(0, 150, (batch_size, -(-size // 16), -(-size // 16)))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :size, :size].contiguous()
    boundary_map, direction_map = boundary_targets(labels)
    return images, {"labels": labels, "boundary_map": boundary_map, "direction_map": direction_map}


def measure_steps(model, device, size, batch_size, repeats, autocast=False):
    """Peak bytes and median seconds of training steps of a model, which moves to the device."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images, targets = training_inputs(batch_size, size)
    images, targets = images.to(device), {name: tensor.to(device) for name, tensor in targets.items()}

    def step():
        context = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
        with context:
            loss = model(images, **targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if not loss.isfinite():
            raise AssertionError(f"The loss is {loss.item()}.")

    seconds = []
    step()  # compiles and fills caches
    with peak_memory(device) as memory:
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"bytes": memory["total_bytes"], "seconds": statistics.median(seconds)}


def measure(preset, mode, arguments):
    """Peak bytes and seconds of a step."""
    autocast, checkpointing, backend, decoder = MODES[mode]
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset(preset, num_labels=150, decoder_self_attention=decoder)
    if checkpointing:
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    device = torch.device(arguments.device)
    with attention_backend(backend):
        return measure_steps(model, device, arguments.size, arguments.batch_size, arguments.repeats, autocast)


def measure_alone(preset, mode, arguments):
    """Measures in a separate process, because the peak memory of a process never falls."""
    command = [sys.executable, __file__, "--row", preset, mode]
    for name in ("device", "size", "batch_size", "repeats"):
        command += [f"--{name}", str(getattr(arguments, name))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{preset}, {mode}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--presets", nargs="*", default=list(PAPER), choices=list(PAPER))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--size", type=int, default=480, help="height and width of the images, in pixels")
    parser.add_argument("--batch_size", type=int, default=2, help="images for each device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--row", nargs=2, metavar=("PRESET", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(*arguments.row, arguments)))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "this machine has no GPU; --device cpu measures resident memory instead, best with a small --size"
        )

    rows = []
    for preset in arguments.presets:
        for mode in arguments.modes:
            try:
                row = (measure if arguments.device == "cuda" else measure_alone)(preset, mode, arguments)
            except torch.cuda.OutOfMemoryError:
                row = {"bytes": None, "seconds": None}
            rows.append({"preset": preset, "mode": mode, **row})
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    write(rows, arguments)


def write(rows, arguments):
    facts = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_device(),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "repeats": arguments.repeats,
    }
    memory = "allocated by torch" if arguments.device == "cuda" else "resident, libraries included"
    lines = [
        f"Gigabytes (10^9 bytes) at the peak, {memory}; the paper's are of 480 by 480, two images for each device. "
        "Seconds are the median.",
        "",
        "| preset | mode | GB | paper, GB | share of the paper's | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    # The paper's figures hold only for its own setting.
    comparable = (arguments.device, arguments.size, arguments.batch_size) == ("cuda", 480, 2)
    for row in rows:
        paper = PAPER[row["preset"]]
        start = f"| {row['preset']} | {row['mode']} |"
        if row["bytes"] is None:
            lines.append(f"{start} out of memory | {paper} | | |")
        else:
            gigabytes = row["bytes"] / 1e9
            share = f"{gigabytes / paper:.0%}" if comparable else ""
            lines.append(f"{start} {gigabytes:.2f} | {paper} | {share} | {row['seconds']:.3f} |")
    write_results(arguments.output, f"training_memory-{arguments.device}", "A training step", facts, lines, rows=rows)


if __name__ == "__main__":
    main()
