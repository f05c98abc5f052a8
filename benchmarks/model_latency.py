# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How long does a UN-EPT take for one image on the CPU, and what do the kernel and the fast mode change?

Each preset, with random weights, runs with the attention of transformers (its `grid_sample` form), with our kernel,
with feed-forward layers that take all tokens at once instead of pieces, with folded batch norms, and in fast mode:
bfloat16 and channels_last, once eager and once compiled. Logits are compared before anything is timed.

    python benchmarks/model_latency.py --repeats 7
"""

import argparse
import copy
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from unept_hf import UneptConfig, UneptForSemanticSegmentation, optimize_for_inference
from unept_hf.model import modeling_unept as modeling


PRESETS = ("unept-deit-base", "unept-resnet50")


def transformers_attention(value, spatial_shapes, reference_points, offsets, logits):
    """The layer with transformers' fallback."""
    locations, weights = modeling.sampling_locations_and_weights(spatial_shapes, reference_points, offsets, logits)
    return MultiScaleDeformableAttention()(value, None, spatial_shapes, None, locations, weights, 64)


FALLBACK = patch.object(modeling, "deformable_attention", transformers_attention)
WHOLE = patch.object(modeling.UneptMLP, "forward", modeling.UneptMLP._feed_forward)


def run_with(change, function, pixel_values):
    with change, torch.inference_mode():
        start = time.perf_counter()
        logits = function(pixel_values).logits
        return time.perf_counter() - start, logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    rows = []
    for preset in arguments.presets:
        torch.manual_seed(0)
        model = UneptForSemanticSegmentation(UneptConfig.from_preset(preset, num_labels=150)).eval()
        image = torch.randn(1, 3, arguments.size, arguments.size)
        fast = UneptForSemanticSegmentation(model.config).eval()
        fast.load_state_dict(model.state_dict())
        fast = fast.to(torch.bfloat16, memory_format=torch.channels_last)
        optimized = optimize_for_inference(copy.deepcopy(model))
        fast_image = image.to(torch.bfloat16, memory_format=torch.channels_last)
        contestants = {
            "float32, transformers' fallback": (FALLBACK, model, image),
            "float32, our kernel, feed-forward layers at once": (WHOLE, model, image),
            "float32, our kernel": (nullcontext(), model, image),
            "float32, our kernel, optimize_for_inference": (nullcontext(), optimized, image),
            "bfloat16, channels_last, our kernel": (nullcontext(), fast, fast_image),
        }
        if not arguments.no_compile:
            contestants["bfloat16, channels_last, our kernel, compiled"] = (
                nullcontext(),
                torch.compile(fast),
                fast_image,
            )

        logits = {name: run_with(*contestant)[1].float() for name, contestant in contestants.items()}
        expected = logits["float32, transformers' fallback"]
        errors = {name: ((got - expected).norm() / expected.norm()).item() for name, got in logits.items()}
        assert max(error for name, error in errors.items() if name.startswith("float32")) < 1e-4, errors
        times = {name: [] for name in contestants}
        for _ in range(arguments.repeats):
            for name, contestant in contestants.items():
                times[name].append(run_with(*contestant)[0])
        slowest = min(times["float32, transformers' fallback"])
        for name, seconds in times.items():
            row = {"preset": preset, "mode": name, "seconds": min(seconds), "speed-up": slowest / min(seconds)}
            rows.append(row | {"relative error of the logits": errors[name]})
            print(rows[-1], flush=True)

    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        "size": arguments.size,
        "repeats": arguments.repeats,
    }
    table = [
        "Seconds: the fastest of the repeats, which are interleaved.",
        "",
        "| preset | mode | seconds | speed-up | relative error of the logits |",
        "| --- | --- | ---: | ---: | ---: |",
        *[
            f"| {preset} | {mode} | {seconds:.3f} | {speed_up:.2f} | {error:.1e} |"
            for preset, mode, seconds, speed_up, error in (row.values() for row in rows)
        ],
    ]
    write_results(arguments.output, "model_latency-cpu", "Latency of UN-EPT for one image", facts, table, rows=rows)


if __name__ == "__main__":
    main()
