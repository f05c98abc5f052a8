# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Does each part of UN-EPT help, and what does it cost? Tables 5, 6 and 8 of the paper at a small scale: on synthetic
scenes from scratch, or on the photographs of CamVid from the ImageNet weights of EfficientNet-Lite0.

Every row is trained with several seeds, each in its own process with one thread. Finished runs and the states of
unfinished runs are kept in --runs, so the command can be stopped and started again.

    python benchmarks/ablations.py --jobs 2
    python benchmarks/ablations.py --jobs 2 --dataset camvid --data_dir CamVid \\
        --backbone_checkpoint efficientnet-lite0-57934424.pth
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from camvid_data import CamvidData
from results_file import RESULTS, cpu_device, mean_and_spread, today, versions, write_results
from separate_runs import check_counts, checkpoint_file, read_result, run_all, write_result
from synthetic_data import CLASSES, SyntheticData
from torch import Tensor, nn
from torch.nn import functional as F
from training_loop import best_classes, measure, train
from transformers import HfArgumentParser, set_seed

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.evaluation.latency import peak_memory
from unept_hf.model.modeling_unept import UneptDeformableAttention


BASE = {
    "backbone_config": {
        "model_type": "timm_backbone",
        "backbone": "resnet10t",
        "out_indices": [2, 3, 4],
        "model_args": {"channels": [32, 64, 128, 256]},
    },
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_sampling_points": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "decoder_self_attention": "pointwise",
    "spatial_branch_channels": (32, 64),
    "dropout": 0.0,
}
ONE_LEVEL = {"num_feature_levels": 1}
# On CamVid: the difference of the full model from the recipe.
CAMVID_BASE = {"num_sampling_points": 16, "decoder_self_attention": "pointwise"}
# Row: the difference from the full model, which has 3 levels of 16 points, the spatial branch and boundary heads.
ROWS = {
    "baseline": {**ONE_LEVEL, "use_spatial_branch": False, "use_boundary_heads": False},
    "+ pyramid": {"use_spatial_branch": False, "use_boundary_heads": False},
    "+ spatial branch": {"use_boundary_heads": False},
    "full": {},
    "L1 N4": {**ONE_LEVEL, "num_sampling_points": 4},
    "L1 N16": ONE_LEVEL,
    "L1 N64": {**ONE_LEVEL, "num_sampling_points": 64},
    "L3 N4": {"num_sampling_points": 4},
    "L3 N64": {"num_sampling_points": 64},
    "dense attention": {},
    "dense self-attention": {"decoder_self_attention": "dense"},
    "deformable self-attention": {"decoder_self_attention": "deformable"},
}
TABLES = {
    "Table 5: the parts": ("baseline", "+ pyramid", "+ spatial branch", "full"),
    "Table 6: feature levels L and sampling points N": ("L1 N4", "L1 N16", "L1 N64", "L3 N4", "full", "L3 N64"),
    "Table 8: deformable or dense attention": ("full", "dense attention"),
    "Self-attention of the decoder": ("full", "dense self-attention", "deformable self-attention"),
}
# The fourth row of the paper's Table 5 is "+ stronger backbone", which is not measured here.
SHOWN_AS = {"full": "ours: boundary heads (full: L3 N16, pointwise self-attention)"}
COLUMNS = {
    "mean_iou": ("mIoU", 100),
    "refined mean_iou": ("mIoU, refined", 100),
    "boundary_f1_1px": ("boundary F1, 1 px", 100),
    "refined boundary_f1_1px": ("boundary F1, refined", 100),
    "train_seconds": ("training step, s", 1),
    "eval_seconds": ("one image, s", 1),
    "train_megabytes": ("memory of training, MB", 1),
    "parameters": ("parameters, M", 1e-6),
}


class DenseAttention(nn.Module):
    """Multi-head attention of every query to every cell, with the arguments of the deformable one."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.value_proj, self.output_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, hidden_states, value_states, spatial_shapes, reference_points, output_attentions=False):
        # In the encoder, queries are the cells with their positions, which keys need too.
        keys = hidden_states if hidden_states.shape == value_states.shape else value_states
        query, key, value = (
            projection(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, hidden_states),
                (self.k_proj, keys),
                (self.value_proj, value_states),
            )
        )
        output = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.output_proj(output), None


def make_model(row: str, size: int) -> UneptForSemanticSegmentation:
    cells = size // 2 ** len(BASE["spatial_branch_channels"])
    config = UneptConfig(**{**BASE, **ROWS[row]}, num_labels=len(CLASSES), query_grid_size=(cells, cells))
    model = UneptForSemanticSegmentation(config)
    if row == "dense attention":
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, UneptDeformableAttention):
                    setattr(module, name, DenseAttention(config))
    return model


def make_camvid_model(row: str, data: CamvidData, seed: int) -> UneptForSemanticSegmentation:
    """All rows start from the same weights, as far as they share parts with the full model."""
    set_seed(seed)
    full = data.make_unept(**CAMVID_BASE).state_dict()
    set_seed(seed)
    model = data.make_unept(**{**CAMVID_BASE, **ROWS[row]})
    own = model.state_dict()
    shared = {name: value for name, value in full.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(own | shared)
    return model


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(pixel_values=images, labels=labels).loss


def label_maps_of(model: nn.Module, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    outputs = model(pixel_values=images)
    label_maps = {"": best_classes(outputs.logits, size)}
    if outputs.boundary_logits is not None:
        refined = UneptImageProcessor().post_process_semantic_segmentation(
            outputs, target_sizes=[size], refine_boundaries=True
        )
        label_maps["refined"] = refined[0][None]
    return label_maps


@dataclass
class Arguments:
    """What to train on, and how much."""

    dataset: Literal["synthetic", "camvid"] = field(default="synthetic", metadata={"help": "synthetic or camvid."})
    data_dir: Path | None = field(default=None, metadata={"help": "camvid: folder of the photographs."})
    backbone_checkpoint: Path | None = field(default=None, metadata={"help": "camvid: ImageNet weights."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run of each row for each."})
    rows: list[str] = field(default_factory=list, metadata={"help": "Rows to run; the rest is as it is."})
    steps: int | None = field(default=None, metadata={"help": "Training steps: 300, or 160 on CamVid."})
    batch_size: int = field(default=8, metadata={"help": "Scenes or crops in a step."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Highest learning rate: 3e-3, or 1e-3 on CamVid."}
    )
    size: int | None = field(
        default=None, metadata={"help": "Height and width of the scenes (128), or of the crops of CamVid (224)."}
    )
    train_scenes: int = field(default=1000, metadata={"help": "synthetic: scenes to train on."})
    eval_scenes: int = field(default=100, metadata={"help": "synthetic: held-out scenes to measure on."})
    jobs: int = field(default=1, metadata={"help": "Runs at the same time."})
    runs: Path | None = field(
        default=None, metadata={"help": "Folder of finished runs: runs/ablations, or runs/ablations_camvid."}
    )
    output: Path = field(default=RESULTS, metadata={"help": "Folder of the tables."})
    name: str | None = field(
        default=None,
        metadata={"help": "Name of their file, to which the date is added: ablations-cpu, or ablations_camvid-cpu."},
    )
    worker: bool = field(default=False, metadata={"help": "Run the first row with the first seed in this process."})

    def __post_init__(self):
        is_camvid = self.dataset == "camvid"
        if is_camvid and None in (self.data_dir, self.backbone_checkpoint):
            raise ValueError("--dataset camvid needs --data_dir and --backbone_checkpoint.")
        defaults = {"steps": 160, "learning_rate": 1e-3, "size": 224, "runs": Path("runs/ablations_camvid")}
        defaults |= {"name": "ablations_camvid-cpu"}
        if not is_camvid:
            defaults = {"steps": 300, "learning_rate": 3e-3, "size": 128, "runs": Path("runs/ablations")}
            defaults |= {"name": "ablations-cpu"}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        # The dense rows compare operators, for which photographs are not needed.
        known = [row for row in ROWS if not (is_camvid and row.startswith("dense"))]
        unknown = [row for row in self.rows if row not in known]
        if unknown:
            raise ValueError(
                f"There is no row {', '.join(map(repr, unknown))}: the rows are {', '.join(map(repr, known))}."
            )
        self.rows = self.rows or known
        names = ("steps", "batch_size", "size", "train_scenes", "eval_scenes", "jobs")
        check_counts({name: getattr(self, name) for name in names})
        if len(set(self.seeds)) < max(len(self.seeds), 1):
            raise ValueError(f"seeds must be at least one, and all different, got {self.seeds}.")

    def options(self) -> dict[str, Any]:
        """What a run must know."""
        names = ["steps", "batch_size", "learning_rate", "size"]
        names += ["train_scenes", "eval_scenes"] if self.dataset == "synthetic" else []
        return {name: getattr(self, name) for name in names}

    def camvid_data(self) -> CamvidData:
        return CamvidData(
            self.data_dir, self.backbone_checkpoint, self.steps, self.batch_size, self.size, self.learning_rate
        )

    def budget(self) -> dict[str, Any]:
        """The settings that must be equal for runs to be comparable."""
        if self.dataset == "synthetic":
            return self.options()
        return {"dataset": "camvid", "learning_rate": self.learning_rate, **self.camvid_data().settings()}


def run(row: str, seed: int, arguments: Arguments) -> None:
    """Trains and measures one model, and writes the run file."""
    torch.set_num_threads(1)
    steps, data, ema_decay = arguments.steps, None, 0.0
    if arguments.dataset == "camvid":
        data = arguments.camvid_data()
        model = make_camvid_model(row, data, seed)
        batches = partial(data.batches, seed)
        optimizer, scheduler = data.optimizer_and_scheduler(model, model.model.backbone)
        ema_decay = data.run_args.ema_decay
    else:
        data = SyntheticData(arguments.runs, arguments.train_scenes, arguments.eval_scenes, arguments.size)
        set_seed(seed)
        model = make_model(row, arguments.size)
        batches = partial(data.batches, arguments.batch_size, seed)
        optimizer, scheduler = data.optimizer_and_scheduler(model, steps, arguments.learning_rate)
    budget, checkpoint = arguments.budget(), checkpoint_file(arguments.runs, f"{row} {seed}")
    with peak_memory(torch.device("cpu")) as memory:
        results = train(model, loss_of, batches, optimizer, scheduler, steps, ema_decay, checkpoint, budget)
    results["train_megabytes"] = memory["bytes"] / 2**20
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    results |= measure(model, label_maps_of, data.examples(), data.class_list)
    write_result(arguments.runs, f"{row} {seed}", budget, results)
    checkpoint.unlink()


def table(rows: list[str], results: dict[str, list[dict[str, float]]]) -> list[str]:
    names = [name for name in COLUMNS if any(name in one for row in rows for one in results[row])]
    lines = ["| | " + " | ".join(COLUMNS[name][0] for name in names) + " |", "| --- |" + " ---: |" * len(names)]
    for row in rows:
        cells = []
        for name in names:
            values = [one[name] * COLUMNS[name][1] for one in results[row] if name in one]
            # A model has one number of parameters.
            cells.append(mean_and_spread(values[:1] if name == "parameters" else values))
        lines.append(f"| {SHOWN_AS.get(row, row)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.worker:
        return run(arguments.rows[0], arguments.seeds[0], arguments)

    budget = arguments.budget()
    options = [f"--{name}={value}" for name, value in arguments.options().items()]
    options += [f"--dataset={arguments.dataset}", f"--runs={arguments.runs}"]
    if arguments.dataset == "camvid":
        options += [f"--data_dir={arguments.data_dir}", f"--backbone_checkpoint={arguments.backbone_checkpoint}"]
        title = "Ablations on CamVid"
        start = "Trained from the same ImageNet weights, and measured on the 101 validation photographs of CamVid"
    else:
        SyntheticData(arguments.runs, arguments.train_scenes, arguments.eval_scenes, arguments.size)
        title, start = "Ablations", "Trained from scratch on synthetic scenes"
    commands = {
        f"{row} {seed}": ["--worker=True", "--rows", row, "--seeds", str(seed), *options]
        for seed in arguments.seeds
        for row in arguments.rows
        if read_result(arguments.runs, f"{row} {seed}", budget) is None
    }
    run_all(arguments.runs, commands, arguments.jobs)
    found = {row: [read_result(arguments.runs, f"{row} {seed}", budget) for seed in arguments.seeds] for row in ROWS}
    results = {row: [one for one in ones if one is not None] for row, ones in found.items()}
    facts = {
        "device": cpu_device(),
        "threads": 1,
        **versions("torch", "transformers", "timm"),
        "date": today(),
        **budget,
        "seeds": len(arguments.seeds),
    }
    lines = [
        f"{start}, mean ± standard deviation over the seeds. Times are processor seconds of one thread. Memory is "
        "what a training adds to the process at its peak.",
    ]
    for heading, rows in TABLES.items():
        rows = [row for row in rows if results[row]]
        if len(rows) > 1:
            lines += ["", f"## {heading}", "", *table(rows, results)]
    write_results(arguments.output, arguments.name, title, facts, lines, rows=results)


if __name__ == "__main__":
    main()
