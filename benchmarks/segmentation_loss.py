# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much faster is the loss, and how much less memory does it take, than its plain form?

Both cross entropies, of the logits and of the refined ones, forward and backward. The plain form upsamples the logits,
gathers the refined ones and calls `cross_entropy` on each. A result is timed only after a comparison with float64.

    OMP_NUM_THREADS=1 python benchmarks/segmentation_loss.py
    python benchmarks/segmentation_loss.py --device cuda
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from torch.nn import functional as F

from unept_hf.evaluation.latency import peak_memory
from unept_hf.model.boundary import follow_direction
from unept_hf.model.loss_unept import pixel_cross_entropy


IGNORED = 255
# name: images, classes, side of the images; the logits have an eighth of it
SHAPES = {"2 x 480 x 480, 150 classes": (2, 150, 480), "8 x 352 x 352, 11 classes": (8, 11, 352)}


def plain(logits, labels, source):
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    refined = upsampled.flatten(2).gather(2, source[:, None].expand(-1, logits.shape[1], -1)).view_as(upsampled)
    scores = (upsampled, refined)
    return torch.stack([F.cross_entropy(s, labels, ignore_index=IGNORED, reduction="sum") for s in scores])


def fused(logits, labels, source):
    return pixel_cross_entropy(logits, labels, source, IGNORED).sum((1, 2, 3))


def make_arguments(images, classes, side, device):
    """Regions of 16 by 16 pixels, a tenth of which is ignored; one pixel in five is refined."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, classes, (images, side // 16, side // 16), generator=generator)
    regions[torch.rand(regions.shape, generator=generator) < 0.1] = IGNORED
    labels = regions.repeat_interleave(16, 1).repeat_interleave(16, 2)
    moves = torch.rand(labels.shape, generator=generator) < 0.2
    source = follow_direction(moves, torch.randint(0, 8, labels.shape, generator=generator))
    logits = 3 * torch.randn(images, classes, side // 8, side // 8, generator=generator)
    return logits.to(device), labels.to(device), source.to(device)


def run(function, logits, labels, source):
    """The mean of both cross entropies, and the gradient of their sum."""
    logits = logits.detach().requires_grad_()
    losses = function(logits, labels, source) / labels.numel()
    return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def measure(shape, device, repeats):
    inputs = make_arguments(*SHAPES[shape], device)
    loss, gradient = run(plain, inputs[0].double(), *inputs[1:])
    functions, rows = {"plain": plain, "fused": fused}, {}
    for name, function in functions.items():
        errors = [relative_error(*pair) for pair in zip(run(function, *inputs), (loss, gradient))]
        if max(errors) > 1e-5:
            raise AssertionError(f"{shape}, {name}: relative errors {errors}")
        with peak_memory(device) as memory:
            run(function, *inputs)
        rows[name] = {"loss_error": errors[0], "gradient_error": errors[1], "bytes": memory["bytes"], "seconds": []}
    for _ in range(repeats):  # interleaved: load hits both alike
        for name, function in functions.items():
            start = time.perf_counter()
            run(function, *inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rows[name]["seconds"].append(time.perf_counter() - start)
    return [
        {"shape": shape, "name": name, **row, "seconds": statistics.median(row["seconds"])}
        for name, row in rows.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU")

    rows = []
    for shape in arguments.shapes:
        rows += measure(shape, device, arguments.repeats)
        print(json.dumps(rows[-2:]), flush=True)
    facts = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch"),
        "date": today(),
        "repeats": arguments.repeats,
    }
    memory = "allocated by torch" if device.type == "cuda" else "resident"
    lines = [
        "Milliseconds of forward and backward: the median of interleaved repeats. Ratio: how many times slower the "
        f"plain form is. Memory is the peak over the inputs, {memory}. Errors are relative to float64.",
        "",
        "| shape | form | milliseconds | ratio | memory | error of the losses | error of the gradient |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    slowest = {row["shape"]: row["seconds"] for row in rows if row["name"] == "plain"}
    for row in rows:
        lines.append(
            f"| {row['shape']} | {row['name']} | {1e3 * row['seconds']:.1f} | "
            f"{slowest[row['shape']] / row['seconds']:.1f} | {row['bytes'] / 2**20:.0f} MiB | "
            f"{row['loss_error']:.1e} | {row['gradient_error']:.1e} |"
        )
    write_results(
        arguments.output, f"segmentation_loss-{device.type}", "Cross entropies of the loss", facts, lines, rows=rows
    )


if __name__ == "__main__":
    main()
