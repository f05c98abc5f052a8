# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much faster is deformable attention with our kernels than with existing ones?

The script compares our backends with the fallback of transformers, the same fallback compiled, and the package
torch-ms-deform-attn if it is installed, all on the sampling locations and weights that transformers' models pass. Our
fused form, from offsets and logits, has its own row. A result is timed only after a comparison with float64.

On a GPU there are two images, and rows give their shares of two measured ceilings: the rate at which the device copies
memory, for bytes that must be read or written at least once, and the rate at which it copies within its cache, for the
gathered corners.

    python benchmarks/deformable_attention.py --device cpu --repeats 15
    python benchmarks/deformable_attention.py --device cuda --dtypes float32 bfloat16 float16
"""

import argparse
import importlib.util
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from unept_hf.evaluation.latency import peak_memory
from unept_hf.model.deformable_attention import (
    attention_backend,
    deformable_attention,
    multi_scale_deformable_attention,
    sampling_locations_and_weights,
)


DETR = [(64, 64), (32, 32), (16, 16), (8, 8)]
# name: levels, queries, points; always 8 heads of 32 channels
SHAPES = {
    "UN-EPT encoder": ([(60, 60)] * 3, 10800, 16),
    "UN-EPT decoder": ([(60, 60)] * 3, 3600, 16),
    "UN-EPT DeiT encoder": ([(30, 30)] * 3, 2700, 16),
    "UN-EPT Cityscapes encoder": ([(96, 96)] * 3, 27648, 16),
    "Deformable DETR encoder": (DETR, 5440, 4),
    "Deformable DETR decoder": (DETR, 900, 4),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def make_arguments(spatial_shapes, queries, points, dtype, device, batch=1):
    """One query for each cell, or on a grid; offsets as a fresh model has them, with noise of one cell."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in spatial_shapes)
    if queries != cells:
        side = math.ceil(math.sqrt(queries))
        grids = [(side, side)]
    else:
        grids = spatial_shapes
    centers = torch.cat(
        [
            torch.stack(
                torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[::-1], -1
            ).flatten(0, 1)
            for h, w in grids
        ]
    )[:queries]
    angles = torch.arange(8) * (2 * math.pi / 8)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    shape = (batch, queries, 8, len(spatial_shapes), points)
    offsets = directions[:, None, None] * torch.arange(1, points + 1)[:, None] + torch.randn(
        *shape, 2, generator=generator
    )
    value = torch.randn(batch, cells, 8, 32, generator=generator)
    logits = torch.randn(*shape, generator=generator)
    reference_points = centers[None, :, None].to(device)
    return (
        value.to(device, dtype),
        spatial_shapes,
        reference_points,
        offsets.to(device, dtype),
        logits.to(device, dtype),
    )


def make_contestants(arguments, peers):
    """Name -> (function of three differentiable tensors, the tensors)."""
    value, spatial_shapes, reference_points, offsets, logits = arguments
    locations, weights = sampling_locations_and_weights(spatial_shapes, reference_points, offsets, logits)
    device = value.device
    shapes = torch.tensor(spatial_shapes, device=device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    fallback = MultiScaleDeformableAttention()
    # The fallback takes one dtype only.
    same = (value, locations.to(value.dtype), weights.to(value.dtype))
    contestants = {"transformers": (lambda v, x, w: fallback(v, shapes, spatial_shapes, starts, x, w, 64), same)}
    if "compile" in peers:
        compiled = torch.compile(fallback)
        contestants["transformers, compiled"] = (
            lambda v, x, w: compiled(v, shapes, spatial_shapes, starts, x, w, 64),
            same,
        )
    if "torch-ms-deform-attn" in peers:
        from torch_ms_deform_attn import MSDeformAttnFunction

        contestants["torch-ms-deform-attn"] = (
            lambda v, x, w: MSDeformAttnFunction.apply(v, shapes, starts, x, w, 64),
            same,
        )
    if "torch" in peers:

        def plain(v, x, w):
            with attention_backend("torch"):
                return multi_scale_deformable_attention(v, spatial_shapes, x, w)

        contestants["ours, plain PyTorch"] = (plain, (value, locations, weights))
    contestants["ours"] = (
        lambda v, x, w: multi_scale_deformable_attention(v, spatial_shapes, x, w),
        (value, locations, weights),
    )
    contestants["ours, fused"] = (
        lambda v, x, w: deformable_attention(v, spatial_shapes, reference_points, x, w),
        (value, offsets, logits),
    )
    return contestants


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def run_forward(function, tensors):
    with torch.no_grad():
        return function(*tensors)


def run_both(function, tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


def memory_of(function, device):
    """Bytes over what was in use before, results included."""
    function()
    with peak_memory(device) as memory:
        result = function()
    del result
    return memory["bytes"]


def check(name, function, tensors, oracle, tolerance):
    error = ((run_forward(function, tensors).double() - oracle).norm() / oracle.norm()).item()
    # The fallback has locations in the dtype of the values; that is its own error.
    if error > tolerance and name.startswith("ours"):
        raise AssertionError(f"{name}: relative error {error:.1e}")
    return error


def time_on_gpu(function, calls=10):
    """Milliseconds of one of several calls in a row, so that the GPU need not wait for Python between them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def copy_rate(size):
    """Bytes read and written per second when the GPU copies `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [time_on_gpu(lambda: target.copy_(source), calls=50) for _ in range(10)]
    return 2 * size / (1e-3 * min(times))


def count_bytes(value, tensors):
    """The bytes that the forward must move to and from memory once, and the bytes that it gathers from the cache."""
    positions, scores = tensors[1:]
    output = positions.shape[0] * positions.shape[1] * value.shape[2] * value.shape[3] * value.element_size()
    once = sum(tensor.numel() * tensor.element_size() for tensor in (value, positions, scores)) + output
    return once, 4 * scores.numel() * value.shape[3] * value.element_size()


def measure(contestants, device, repeats):
    """Milliseconds of each contestant, forward and forward + backward. Rounds are interleaved: load hits all alike."""
    times = {name: {"forward": [], "forward + backward": []} for name in contestants}
    for repeat in range(repeats):
        for name, (function, tensors) in contestants.items():
            for kind, run in (("forward", run_forward), ("forward + backward", run_both)):
                # Two runs are enough for durations of seconds.
                if repeat >= 2 and min(times[name][kind]) > 1000:
                    continue
                if device.type == "cuda":
                    times[name][kind].append(time_on_gpu(lambda run=run, f=function, t=tensors: run(f, t)))
                    continue
                synchronize(device)
                start = time.perf_counter()
                run(function, tensors)
                synchronize(device)
                times[name][kind].append(1e3 * (time.perf_counter() - start))
    return times


def machine(device):
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name()}, {'ROCm' if torch.version.hip else 'CUDA'}"
        name += f" {torch.version.hip or torch.version.cuda}, Triton {versions('triton')['triton']}"
    else:
        name = cpu_device()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions("torch", "transformers"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, help="1 on the CPU, 2 on a GPU")
    parser.add_argument("--peers", nargs="*", default=["compile", "torch-ms-deform-attn", "torch"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    peers = set(arguments.peers)
    images = arguments.images or (2 if device.type == "cuda" else 1)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU")
    if "torch-ms-deform-attn" in peers and importlib.util.find_spec("torch_ms_deform_attn") is None:
        print("torch-ms-deform-attn is not installed and is left out.")
        peers.remove("torch-ms-deform-attn")

    rows, ceilings = [], {}
    if device.type == "cuda":
        ceilings = {"memory": copy_rate(2**30), "cache": copy_rate(2**22)}
        print(json.dumps({f"bytes a second, {name}": rate for name, rate in ceilings.items()}))
    for shape in arguments.shapes:
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            inputs = make_arguments(*SHAPES[shape], dtype, device, images)
            oracle = [tensor.double() if isinstance(tensor, torch.Tensor) else tensor for tensor in inputs]
            oracle = deformable_attention(*oracle)
            contestants, errors, memory = {}, {}, {}
            for name, contestant in make_contestants(inputs, peers).items():
                try:
                    errors[name] = check(name, *contestant, oracle, TOLERANCE[dtype])
                    memory[name] = [
                        memory_of(lambda run=run, contestant=contestant: run(*contestant), device)
                        for run in (run_forward, run_both)
                    ]
                except (RuntimeError, TypeError) as error:
                    print(f"{shape}, {dtype}: {name} cannot run: {str(error).splitlines()[0]}")
                    continue
                contestants[name] = contestant
            times = measure(contestants, device, arguments.repeats)
            for name, kinds in times.items():
                rows.append(
                    {
                        "shape": shape,
                        "dtype": str(dtype).removeprefix("torch."),
                        "name": name,
                        "error": errors[name],
                        "forward_ms": min(kinds["forward"]),
                        "forward_median_ms": statistics.median(kinds["forward"]),
                        "both_ms": min(kinds["forward + backward"]),
                        "both_median_ms": statistics.median(kinds["forward + backward"]),
                        "forward_mib": memory[name][0] / 2**20,
                        "both_mib": memory[name][1] / 2**20,
                    }
                )
                if ceilings:
                    once, gathered = count_bytes(inputs[0], contestants[name][1])
                    seconds = 1e-3 * rows[-1]["forward_ms"]
                    rows[-1]["memory_share"] = once / seconds / ceilings["memory"]
                    rows[-1]["cache_share"] = gathered / seconds / ceilings["cache"]
                print(json.dumps(rows[-1]), flush=True)

    facts = machine(device) | {"date": today(), "repeats": arguments.repeats}
    if ceilings:
        facts |= {"images": images}
        facts |= {f"{name} copy": f"{rate / 1e12:.2f} TB/s" for name, rate in ceilings.items()}
    name = f"deformable_attention-{device.type}"
    write_results(arguments.output, name, "Deformable attention", facts, table_lines(rows), rows=rows)


def table_lines(rows):
    lines = [
        "Milliseconds: the fastest of the repeats, which are interleaved. Ratios: how many times slower transformers' "
        "fallback is. Memory is the peak over the inputs, outputs included. Error is relative to float64.",
        "",
        "| shape | dtype | implementation | forward | ratio | forward + backward | ratio | memory forward | "
        "memory both | error |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    shares = "memory_share" in rows[0]
    if shares:
        lines[-4] += (
            " Shares are the forward's: of the rate of copying memory, for bytes that must be moved once, and of "
            "the rate of copying within the cache, for corners; beyond 100% they come from a multiprocessor's own."
        )
        lines[-2] += " share of memory | share of cache |"
        lines[-1] += " ---: | ---: |"
    first = {(row["shape"], row["dtype"]): row for row in rows if row["name"] == "transformers"}
    for row in rows:
        base = first.get((row["shape"], row["dtype"]), row)
        lines.append(
            f"| {row['shape']} | {row['dtype']} | {row['name']} | {row['forward_ms']:.2f} | "
            f"{base['forward_ms'] / row['forward_ms']:.1f} | {row['both_ms']:.2f} | "
            f"{base['both_ms'] / row['both_ms']:.1f} | {row['forward_mib']:.0f} MiB | {row['both_mib']:.0f} MiB | "
            f"{row['error']:.1e} |"
        )
        if shares:
            lines[-1] += f" {row['memory_share']:.0%} | {row['cache_share']:.0%} |"
    return lines


if __name__ == "__main__":
    main()
