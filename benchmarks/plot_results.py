# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Draws the figures of docs/results.md from the newest results in `benchmarks/results`.

    python benchmarks/plot_results.py
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from quote_results import ROOT, newest
from transformers import HfArgumentParser

from unept_hf.palette import OKABE_ITO


ORANGE, BLUE = ([channel / 255 for channel in OKABE_ITO[index]] for index in (4, 6))


def results_of(name: str) -> dict:
    return json.loads(newest(name).with_suffix(".json").read_text())


def ablations() -> Figure:
    """Mean and standard deviation of each row over the seeds; a line through the full model."""
    rows = results_of("ablations-cpu")["rows"]
    rows = {row: ones for row, ones in rows.items() if ones}
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, metric, title in zip(axes, ("mean_iou", "boundary_f1_1px"), ("mean IoU, %", "boundary F1 at 1 px, %")):
        for kind, color, offset in (("", BLUE, 0.12), ("refined ", ORANGE, -0.12)):
            found = {
                height: [100 * one[kind + metric] for one in ones]
                for height, ones in enumerate(rows.values())
                if kind + metric in ones[0]
            }
            axis.errorbar(
                [statistics.fmean(values) for values in found.values()],
                [height - offset for height in found],
                xerr=[statistics.stdev(values) if len(values) > 1 else 0 for values in found.values()],
                color=color,
                capsize=3,
                fmt="o",
                label="with boundary refinement" if kind else "plain",
            )
        axis.axvline(statistics.fmean(100 * one[metric] for one in rows["full"]), color=BLUE, linewidth=0.8, alpha=0.5)
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), ["full: L3 N16" if row == "full" else row for row in rows])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def peers_latency() -> Figure:
    """Times of each model at the first size."""
    runs = results_of("peers_latency-cpu")["runs"]
    size = next(iter(runs)).rpartition(" ")[2]
    found = {name.rpartition(" ")[0]: run for name, run in runs.items() if name.endswith(f" {size}") and run}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    titles = {
        "forward": "forward, float32",
        "bfloat16": "forward, bfloat16",
        "training step": "training step of 2",
    }
    for axis, (kind, title) in zip(figure.subplots(1, 3, sharey=True), titles.items()):
        models = {name: run[kind] for name, run in found.items() if kind in run}
        bars = axis.barh(
            list(models), list(models.values()), color=[ORANGE if "UN-EPT" in name else BLUE for name in models]
        )
        axis.bar_label(bars, fmt="%.1f", padding=2)
        axis.margins(x=0.15)
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axis.invert_yaxis()
    figure.supxlabel(f"seconds, {size} pixels")
    return figure


def peers_training() -> Figure:
    """Accuracy over the cost of training, each learning rate of each model a point, and the best one large."""
    runs = results_of("peers_training-cpu")["runs"]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    models = dict.fromkeys(name.rpartition(" ")[0] for name in runs)
    for axis, metric, title in zip(axes, ("mean_iou", "boundary_f1_1px"), ("mean IoU, %", "boundary F1 at 1 px, %")):
        for model in models:
            found = [run for name, run in runs.items() if name.rpartition(" ")[0] == model and run]
            if not found:
                continue
            best = max(found, key=lambda run: run["mean_iou"])
            color = ORANGE if "UN-EPT" in model else BLUE
            # A variant lies too close to its model for a name.
            is_variant = ", " in model
            axis.scatter(
                [run["train_seconds"] for run in found],
                [100 * run[metric] for run in found],
                facecolors="none" if is_variant else [color],
                edgecolors=[color],
                s=[60 if run is best else 12 for run in found],
                label=model if is_variant else None,
            )
            if not is_variant:
                axis.annotate(
                    model,
                    (best["train_seconds"], 100 * best[metric]),
                    xytext=(0, 7),
                    textcoords="offset points",
                    horizontalalignment="center",
                    fontsize="small",
                )
        axis.margins(x=0.2, y=0.12)
        axis.set_xlabel("training step of one thread, s")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower left", fontsize="small")
    return figure


def attention_memory() -> Figure:
    """Counted memory over the side of the image, one line for each attention, its name at the end of the line."""
    counted = results_of("attention_memory")["counted"]
    attentions = dict.fromkeys(name.rpartition(" ")[0] for name in counted if "DeiT" not in name)
    sizes = sorted({int(name.rpartition(" ")[2]) for name in counted})
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {"peak": "peak of a training step, GB", "saved_in_attentions": "kept by the attentions alone, GB"}
    for axis, (kind, title) in zip(axes, titles.items()):
        lines = {name: [counted[f"{name} {size}"][kind] / 1e9 for size in sizes] for name in attentions}
        ordered = sorted(lines, key=lambda name: lines[name][-1])
        # Names would cover each other, so neighbors move apart, in units of the logarithmic axis.
        heights = np.log([lines[name][-1] for name in ordered])
        gap = 0.042 * np.ptp(np.log(list(lines.values())))
        for _ in range(200):
            overlap = np.maximum(gap - np.diff(heights), 0) / 2
            heights += np.append(0, overlap) - np.append(overlap, 0)
        for name, height in zip(ordered, heights):
            color = ORANGE if "ours" in name else BLUE
            axis.plot(sizes, lines[name], marker="o", markersize=4, color=color, linewidth=1.2)
            axis.annotate(
                name,
                (sizes[-1], lines[name][-1]),
                xytext=(sizes[-1] * 1.12, np.exp(height)),
                verticalalignment="center",
                fontsize="small",
                color=color,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5)},
                annotation_clip=False,
            )
        axis.set(xscale="log", yscale="log", xlabel="side of the image, pixels", title=title)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "results_ablations": ablations,
    "results_peers_latency": peers_latency,
    "results_peers_training": peers_training,
    "results_attention_memory": attention_memory,
}


@dataclass
class Arguments:
    """Where to draw."""

    output: Path = field(default=ROOT / "docs" / "images", metadata={"help": "Folder of the pictures."})


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    for name, draw in FIGURES.items():
        file = arguments.output / f"{name}.png"
        draw().savefig(file, dpi=120)
        print(file)


if __name__ == "__main__":
    main()
