# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How does UN-EPT compare with other segmentation models of transformers, in speed, memory and accuracy?

Latency: models of their published sizes, with random weights and 150 classes, on the CPU: the time of a forward, in
float32 and in bfloat16, and of a training step, and the memory that they add. Training: small models of about equal
size, from scratch on the synthetic scenes, with the same budget; for each model, the best of several learning rates
counts.

Every model runs in its own process, the latencies one after the other. Finished runs are kept in --runs.

    python benchmarks/peers.py --part latency
    python benchmarks/peers.py --part training --jobs 2
"""

import re
import resource
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from ablations import make_model as make_small_unept
from results_file import RESULTS, cpu_device, today, versions, write_results
from separate_runs import check_counts, read_result, run_all, write_result
from synthetic_data import CLASSES, SyntheticData
from torch import Tensor, nn
from training_loop import best_classes, measure, train
from transformers import (
    DPTConfig,
    DPTForSemanticSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    HfArgumentParser,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

from unept_hf import UneptForSemanticSegmentation
from unept_hf.evaluation.latency import peak_memory


STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Models that predict masks with a class each, and not a class for each pixel.
MASK_MODELS = (Mask2FormerForUniversalSegmentation, EomtForUniversalSegmentation)


def resnet50() -> ResNetConfig:
    return ResNetConfig(out_features=STAGES)


def swin_base() -> SwinConfig:
    return SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], out_features=STAGES)


def small_resnet() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=STAGES,
    )


# The sizes of their papers. Each takes the size of the image and the number of classes.
PUBLISHED = {
    "UN-EPT ResNet-50": lambda size, **labels: UneptForSemanticSegmentation.from_preset("unept-resnet50", **labels),
    "UperNet ResNet-50": lambda size, **labels: UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=resnet50(), auxiliary_in_channels=1024, **labels)
    ),
    "Mask2Former ResNet-50": lambda size, **labels: Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=resnet50(), **labels)
    ),
    "SegFormer-B2": lambda size, **labels: SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3], decoder_hidden_size=768, **labels)
    ),
    "UN-EPT DeiT-B": lambda size, **labels: UneptForSemanticSegmentation.from_preset("unept-deit-base", **labels),
    "UperNet Swin-B": lambda size, **labels: UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=swin_base(), auxiliary_in_channels=512, **labels)
    ),
    "Mask2Former Swin-B": lambda size, **labels: Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=swin_base(), **labels)
    ),
    "SegFormer-B5": lambda size, **labels: SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[64, 128, 320, 512], depths=[3, 6, 40, 3], decoder_hidden_size=768, **labels)
    ),
    "DPT ViT-B": lambda size, **labels: DPTForSemanticSegmentation(DPTConfig(image_size=size, **labels)),
    "EoMT ViT-B": lambda size, **labels: EomtForUniversalSegmentation(
        EomtConfig(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_queries=100, image_size=size, **labels
        )
    ),
}
# About 1.6 million parameters each.
SMALL = {
    "UN-EPT": lambda size, **labels: make_small_unept("deformable self-attention", size),
    "UN-EPT, pointwise": lambda size, **labels: make_small_unept("full", size),
    "SegFormer": lambda size, **labels: SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[24, 48, 96, 160],
            num_attention_heads=[1, 2, 4, 8],
            decoder_hidden_size=128,
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
            **labels,
        )
    ),
    "UperNet": lambda size, **labels: UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=small_resnet(), hidden_size=40, use_auxiliary_head=False, **labels)
    ),
    "Mask2Former": lambda size, **labels: Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=small_resnet(),
            feature_size=64,
            mask_feature_size=64,
            hidden_dim=64,
            num_attention_heads=4,
            encoder_layers=2,
            encoder_feedforward_dim=96,
            decoder_layers=3,
            dim_feedforward=96,
            num_queries=40,
            train_num_points=1024,
            **labels,
        )
    ),
    "DPT": lambda size, **labels: DPTForSemanticSegmentation(
        DPTConfig(
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=size,
            patch_size=8,
            backbone_out_indices=[1, 2, 4, 5],
            neck_hidden_sizes=[24, 48, 64, 96],
            fusion_hidden_size=40,
            semantic_classifier_dropout=0.0,
            **labels,
        )
    ),
    "EoMT": lambda size, **labels: EomtForUniversalSegmentation(
        EomtConfig(
            hidden_size=144,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_blocks=2,
            num_queries=40,
            num_upscale_blocks=1,
            image_size=size,
            patch_size=8,
            train_num_points=1024,
            **labels,
        )
    ),
}
# Seconds for the calls of one kind; there are at least two, the first of which warms up.
LONG = 20.0
KINDS = ("forward", "bfloat16", "training step")
LEARNING_RATES = (3e-3, 1e-3, 3e-4)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    if not isinstance(model, MASK_MODELS):
        return model(pixel_values=images, labels=labels).loss
    classes = [label_map.unique() for label_map in labels]
    masks = [(label_map == here[:, None, None]).float() for label_map, here in zip(labels, classes)]
    return model(pixel_values=images, mask_labels=masks, class_labels=classes).loss


def label_maps_of(model: nn.Module, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    outputs = model(pixel_values=images)
    if isinstance(model, MASK_MODELS):
        # The last class stands for no object.
        scores = outputs.class_queries_logits.softmax(-1)[..., :-1]
        logits = torch.einsum("bqc,bqhw->bchw", scores, outputs.masks_queries_logits.sigmoid())
    else:
        logits = outputs.logits
    return {"": best_classes(logits, size)}


@dataclass
class Arguments:
    """What to measure."""

    part: Literal["latency", "training"] = field(default="latency", metadata={"help": "latency or training."})
    models: list[str] = field(default_factory=list, metadata={"help": "Models to run; all unless given."})
    sizes: list[str] = field(
        default_factory=lambda: ["480x480", "1024x2048"], metadata={"help": "latency: heights and widths."}
    )
    repeats: int = field(default=3, metadata={"help": "latency: number of runs, of which the fastest counts."})
    memory_limit: float = field(default=16, metadata={"help": "latency: GiB of memory that a model can use."})
    steps: int = field(default=300, metadata={"help": "training: steps."})
    batch_size: int = field(default=8, metadata={"help": "training: scenes in a step."})
    train_scenes: int = field(default=1000, metadata={"help": "training: scenes to train on."})
    eval_scenes: int = field(default=100, metadata={"help": "training: held-out scenes to measure on."})
    size: int = field(default=128, metadata={"help": "training: height and width of the scenes."})
    seed: int = field(default=0, metadata={"help": "training: of weights and batches."})
    jobs: int = field(default=1, metadata={"help": "training: runs at the same time, with one thread each."})
    runs: Path = field(default=Path("runs/peers"), metadata={"help": "Folder of finished runs."})
    output: Path = field(default=RESULTS, metadata={"help": "Folder of the tables."})
    worker: str | None = field(default=None, metadata={"help": "Make one run, of this name, in this process."})

    def settings(self) -> dict:
        """The settings that must be equal for runs to be comparable."""
        names = {
            "latency": ("repeats", "memory_limit"),
            "training": ("steps", "batch_size", "train_scenes", "eval_scenes", "size", "seed"),
        }[self.part]
        return {name: getattr(self, name) for name in names}

    def __post_init__(self):
        counts = ("repeats", "steps", "batch_size", "train_scenes", "eval_scenes", "size", "jobs")
        check_counts({name: getattr(self, name) for name in counts})
        for size in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ValueError(f"{size!r} is not a size: write height and width as 480x480.")


def measure_latency(name: str, height: int, width: int, arguments: Arguments) -> dict:
    """Times and memory of one model for one image, or an "error" for each that failed."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.memory_limit * 2**30), resource.RLIM_INFINITY))
    torch.manual_seed(0)
    try:
        model = PUBLISHED[name](height if height == width else (height, width), num_labels=150)
    except TypeError:  # EoMT's image_size is one number.
        return {"forward error": "it only takes square images"}
    images = torch.randn(2, 3, height, width)
    labels = torch.randint(0, 150, (2, height // 32, width // 32))
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    results = {"parameters": sum(parameter.numel() for parameter in model.parameters())}

    @torch.inference_mode()
    def forward():
        model(pixel_values=images[:1])

    @torch.inference_mode()
    def bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            model(pixel_values=images[:1])

    def training_step():
        loss_of(model, images, labels).backward()
        model.zero_grad()

    for kind, function in zip(KINDS, (forward, bfloat16, training_step)):
        model.train(kind == "training step")
        # The best layout for it on CPUs.
        layout = torch.channels_last if kind == "bfloat16" else torch.contiguous_format
        model, images = model.to(memory_format=layout), images.to(memory_format=layout)
        seconds = []
        try:
            with peak_memory(torch.device("cpu")) as memory:
                while len(seconds) < 2 or (len(seconds) <= arguments.repeats and sum(seconds) < LONG):
                    start = time.perf_counter()
                    function()
                    seconds.append(time.perf_counter() - start)
        except (RuntimeError, ValueError) as error:
            results[f"{kind} error"] = str(error).splitlines()[0]
            continue
        results[kind] = min(seconds[1:])
        results[f"{kind} memory"] = memory["bytes"]
    return results


def measure_training(name: str, learning_rate: float, arguments: Arguments) -> dict:
    """Metrics of one small model after its training."""
    torch.set_num_threads(1)
    data = SyntheticData(arguments.runs, arguments.train_scenes, arguments.eval_scenes, arguments.size)
    set_seed(arguments.seed)
    model = SMALL[name](arguments.size, num_labels=len(CLASSES))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer, scheduler = data.optimizer_and_scheduler(model, arguments.steps, learning_rate)
    batches = partial(data.batches, arguments.batch_size, arguments.seed)
    results = train(model, loss_of, batches, optimizer, scheduler, arguments.steps)
    return results | measure(model, label_maps_of, data.examples(), CLASSES) | {"parameters": parameters}


def run(name: str, arguments: Arguments) -> None:
    """Makes the run `<model> <height>x<width>` or `<model> <learning rate>`, and stores its results."""
    model, _, rest = name.rpartition(" ")
    if arguments.part == "latency":
        results = measure_latency(model, *map(int, rest.split("x")), arguments)
    else:
        results = measure_training(model, float(rest), arguments)
    write_result(arguments.runs, name, arguments.settings(), results)


def latency_tables(
    results: dict[str, dict | None], models: list[str], sizes: list[str], memory_limit: float
) -> list[str]:
    lines = []
    for size in sizes:
        lines += [
            "",
            f"## {size}",
            "",
            "| model | parameters, M | forward, s | memory, GiB | in bfloat16, s | training step, s | memory, GiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        remarks = []
        for model in models:
            found = results[f"{model} {size}"] or {"forward error": "the run did not finish"}
            cells = [f"{found['parameters'] / 1e6:.1f}" if "parameters" in found else "-"]
            for kind in KINDS:
                error = found.get(f"{kind} error")
                is_too_large = error is not None and "allocate memory" in error
                cells.append(f"{found[kind]:.2f}" if kind in found else "-")
                if kind != "bfloat16":  # its memory lies within the memory that float32 took before
                    memory = f"> {memory_limit:g}" if is_too_large else "-"
                    cells.append(f"{found[f'{kind} memory'] / 2**30:.2f}" if kind in found else memory)
                if error is not None and not is_too_large and remarks[-1:] != [f"{model}: {error}."]:
                    remarks.append(f"{model}: {error}.")
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines += ["", *remarks] if remarks else []
    return lines


def training_table(results: dict[str, dict | None], models: list[str]) -> list[str]:
    lines = [
        "",
        "| model | parameters, M | learning rate | mIoU | boundary F1, 1 px | training step, s | one image, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in models:
        rates = {rate: results[f"{model} {rate:g}"] for rate in LEARNING_RATES}
        rates = {rate: found for rate, found in rates.items() if found is not None}
        if rates:
            rate, best = max(rates.items(), key=lambda item: item[1]["mean_iou"])
            lines.append(
                f"| {model} | {best['parameters'] / 1e6:.2f} | {rate:g} | {100 * best['mean_iou']:.1f} | "
                f"{100 * best['boundary_f1_1px']:.1f} | {best['train_seconds']:.3f} | {best['eval_seconds']:.4f} |"
            )
    return lines


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.worker:
        return run(arguments.worker, arguments)
    known = PUBLISHED if arguments.part == "latency" else SMALL
    models = arguments.models or list(known)
    unknown = [model for model in models if model not in known]
    if unknown:
        raise ValueError(f"There is no model {', '.join(unknown)}: the models are {', '.join(known)}.")
    variants = arguments.sizes if arguments.part == "latency" else [f"{rate:g}" for rate in LEARNING_RATES]
    names = [f"{model} {variant}" for model in models for variant in variants]
    settings = arguments.settings()
    options = [f"--{name}={value}" for name, value in settings.items()]
    if arguments.part == "training":
        SyntheticData(arguments.runs, arguments.train_scenes, arguments.eval_scenes, arguments.size)
    commands = {
        name: [f"--part={arguments.part}", f"--worker={name}", f"--runs={arguments.runs}", *options]
        for name in names
        if read_result(arguments.runs, name, settings) is None
    }
    # A model that runs out of memory is a result too.
    run_all(arguments.runs, commands, 1 if arguments.part == "latency" else arguments.jobs, may_fail=True)
    results = {name: read_result(arguments.runs, name, settings) for name in names}

    threads = torch.get_num_threads() if arguments.part == "latency" else 1
    facts = {"device": cpu_device(), "threads": threads, **versions("torch", "transformers", "timm"), "date": today()}
    if arguments.part == "latency":
        lines = [
            "Random weights. Forward: of one image in float32, and with autocast to bfloat16 and channels_last. "
            "Training step: forward and backward of two images in float32. The fastest of the repeats, of which there "
            f"are fewer when they take more than {LONG:g} seconds; memory is the peak of the process above what it "
            f"has with the model, of at most {arguments.memory_limit:g} GiB for the process.",
            *latency_tables(results, models, arguments.sizes, arguments.memory_limit),
        ]
    else:
        lines = [
            "From scratch on the synthetic scenes; of the learning rates "
            f"{', '.join(variants)} the one with the best mIoU. Processor seconds of one thread.",
            *training_table(results, models),
        ]
    title = {"latency": "Latency of segmentation models", "training": "Training small segmentation models"}
    name = f"peers_{arguments.part}-cpu"
    write_results(arguments.output, name, title[arguments.part], facts | settings, lines, runs=results)


if __name__ == "__main__":
    main()
