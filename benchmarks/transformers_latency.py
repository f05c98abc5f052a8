# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much faster do transformers' own deformable models run after `accelerate_transformers()`?

The models have their default configurations and random weights, and see one image. Their outputs, up to where ties are
broken, are compared before anything is timed.

    python benchmarks/transformers_latency.py --repeats 5
"""

import argparse
import contextlib
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from transformers import (
    DeformableDetrConfig,
    DeformableDetrModel,
    GroundingDinoConfig,
    GroundingDinoModel,
    Mask2FormerConfig,
    Mask2FormerModel,
    OneFormerConfig,
    OneFormerModel,
    ResNetConfig,
    RTDetrConfig,
    RTDetrModel,
    SwinConfig,
)

from unept_hf.model.deformable_attention import accelerate_transformers


def resnet50():
    return ResNetConfig(out_features=["stage2", "stage3", "stage4"])


def swin_tiny():
    return SwinConfig(image_size=224, out_features=["stage1", "stage2", "stage3", "stage4"])


# name: how to make the model, what it takes besides an image, and the output to compare. The outputs of two-stage
# detectors depend on the order of nearly equal scores, so theirs are compared before that.
MODELS = {
    "Deformable DETR, ResNet-50": (
        lambda: DeformableDetrModel(DeformableDetrConfig(use_timm_backbone=False, backbone_config=resnet50())),
        {},
        "last_hidden_state",
    ),
    "RT-DETR, ResNet-50": (lambda: RTDetrModel(RTDetrConfig()), {}, "last_hidden_state"),
    "Mask2Former, Swin-T": (
        lambda: Mask2FormerModel(Mask2FormerConfig(backbone_config=swin_tiny())),
        {},
        "pixel_decoder_last_hidden_state",
    ),
    "OneFormer, Swin-T": (
        lambda: OneFormerModel(OneFormerConfig(backbone_config=swin_tiny(), is_training=False)),
        {"task_inputs": torch.arange(77)[None]},
        "transformer_decoder_object_queries",
    ),
    "Grounding DINO, Swin-T": (
        lambda: GroundingDinoModel(GroundingDinoConfig()),
        {"input_ids": torch.tensor([[101, 1037, 4937, 1012, 102]])},
        "encoder_last_hidden_state_vision",
    ),
}


def run(model, inputs, accelerated):
    with torch.inference_mode(), accelerate_transformers() if accelerated else contextlib.nullcontext():
        start = time.perf_counter()
        outputs = model(**inputs)
        return time.perf_counter() - start, outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    rows = []
    for name in arguments.models:
        make, inputs, compared = MODELS[name]
        torch.manual_seed(0)
        model = make().eval()
        inputs = inputs | {"pixel_values": torch.randn(1, 3, arguments.size, arguments.size)}
        outputs = [run(model, inputs, accelerated)[1][compared] for accelerated in (False, True)]
        expected, got = (torch.cat([x.flatten() for x in ([o] if torch.is_tensor(o) else o)]) for o in outputs)
        error = ((got - expected).norm() / expected.norm()).item()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"
        seconds = {False: [], True: []}
        for _ in range(arguments.repeats):
            for accelerated, times in seconds.items():
                times.append(run(model, inputs, accelerated)[0])
        before, after = (min(times) for times in seconds.values())
        rows.append({"model": name, "transformers": before, "ours": after, "speed-up": before / after, "error": error})
        print(rows[-1], flush=True)

    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "transformers"),
        "date": today(),
        "size": arguments.size,
        "repeats": arguments.repeats,
    }
    table = [
        "Seconds for one image, the whole model in float32: the fastest of the repeats, which are interleaved.",
        "",
        "| model | transformers | with accelerate_transformers() | speed-up | relative error |",
        "| --- | ---: | ---: | ---: | ---: |",
        *[
            f"| {row['model']} | {row['transformers']:.3f} | {row['ours']:.3f} | {row['speed-up']:.2f} | "
            f"{row['error']:.1e} |"
            for row in rows
        ],
    ]
    title = "transformers' deformable models with our kernel"
    write_results(arguments.output, "transformers_latency-cpu", title, facts, table, rows=rows)


if __name__ == "__main__":
    main()
