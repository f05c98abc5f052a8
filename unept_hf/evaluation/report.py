# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The report of an evaluation: a table, a picture and a JSON file."""

import contextlib
import json
import math
import os
from typing import Any

import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn

from ..data.class_lists import ClassList
from ..data.segmentation_datasets import hold_out, load_segmentation_dataset
from ..files import make_directory
from ..visualization.figures import draw_samples
from .arguments import EvaluationArguments, EvaluationDataArguments
from .evaluate import evaluate_model


__all__ = ["evaluate_and_report", "results_figure", "results_table", "save_results"]

REFINEMENTS: dict[str, bool | str] = {"no": False, "yes": True, "both": "both"}


def results_table(results: dict) -> str:
    """The metrics of `evaluate_model` as Markdown."""
    variants = {"refined" if results["settings"]["refine_boundaries"] is True else "plain": results}
    if "refined" in results:
        variants["refined"] = results["refined"]
    columns = list(variants)

    def table(heads, rows):
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def number(value):
        return "-" if math.isnan(value) else f"{value:.4f}"

    names = [name for name in results if name.startswith(("mean_", "overall_", "boundary_f1_"))]
    rows = [[name, *(number(one[name]) for one in variants.values())] for name in names]
    for width in results.get("trimap_mean_iou", {}):
        values = (number(one["trimap_mean_iou"][width]) for one in variants.values())
        rows.append([f"mean_iou within {width} px of a boundary", *values])
    summary = table(["metric", *columns], rows)
    scores = [name for name in next(iter(results["per_category"].values())) if name != "pixels"]
    heads = ["class", *(f"{name} {column}" if len(columns) > 1 else name for column in columns for name in scores)]
    rows = []
    for label, own in results["per_category"].items():
        values = (number(one["per_category"][label][name]) for one in variants.values() for name in scores)
        rows.append([label, *values, str(own["pixels"])])
    settings = ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    speed = (
        f"{results['num_images']} images in {results['seconds']:.1f} s ({results['images_per_second']:.2f} a second)."
    )
    return f"{summary}\n\n{speed} Settings: {settings}.\n\n{table([*heads, 'pixels'], rows)}\n"


def results_figure(results: dict, class_list: ClassList) -> Figure:
    """IoU of each class, the trimap curve, and the samples beside their predictions."""
    samples = results.get("samples", [])
    variants = {"prediction": results, **({"refined": results["refined"]} if "refined" in results else {})}
    labels = list(results["per_category"])
    bars_height = max(3.5, 0.16 * len(labels) * len(variants) + 1)
    figure = Figure(figsize=(12, bars_height + 2.6 * len(samples)), layout="constrained")
    heights = [bars_height, *([2.6 * len(samples)] if samples else [])]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    has_trimap = "trimap_mean_iou" in results
    axes = parts[0].subplots(1, 2 if has_trimap else 1, width_ratios=[3, 2][: 1 + has_trimap], squeeze=False)[0]

    positions = np.arange(len(labels))
    thickness = 0.8 / len(variants)
    for index, (name, one) in enumerate(variants.items()):
        values = [one["per_category"][label]["iou"] for label in labels]
        label = f"{name}: mean {one['mean_iou']:.3f}"
        axes[0].barh(positions + index * thickness, np.nan_to_num(values), thickness, label=label)
    axes[0].set(xlabel="IoU", xlim=(0, 1), ylim=(len(labels), -1))
    axes[0].set_yticks(positions, labels, parse_math=False)
    axes[0].tick_params("y", labelsize=8)
    axes[0].legend()
    if has_trimap:
        for name, one in variants.items():
            curve = one["trimap_mean_iou"]
            axes[1].plot([float(width) for width in curve], list(curve.values()), marker="o", label=name)
        axes[1].set(xlabel="distance to a true boundary below (pixels)", ylabel="mean IoU", ylim=(0, 1))
        axes[1].legend()

    if samples:
        draw_samples(samples, class_list.palette, parts[-1])
    return figure


def save_results(results: dict, class_list: ClassList, output_dir: str | os.PathLike) -> None:
    """Writes `results.json` (with null for NaN), `results.md` and `results.png`."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key != "samples"}
        return None if isinstance(value, float) and math.isnan(value) else value

    output_dir = make_directory(output_dir)
    text = json.dumps(plain(results), indent=2, default=str) + "\n"
    (output_dir / "results.json").write_text(text, encoding="utf-8")
    (output_dir / "results.md").write_text(results_table(results), encoding="utf-8")
    results_figure(results, class_list).savefig(output_dir / "results.png", dpi=100)


def evaluate_and_report(
    model: nn.Module,
    processor: Any,
    data_arguments: EvaluationDataArguments,
    evaluation_arguments: EvaluationArguments,
    model_name: str,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict:
    """
    Loads the data, evaluates, and on the main process saves the results and prints them.

    Args:
        model, processor, accelerator, progress: see `evaluate_model`.
        data_arguments: which data.
        evaluation_arguments: how to predict, and where to write.
        model_name: what the report calls the model.

    Returns:
        What `evaluate_model` returns, with `model` and `dataset`, their names.

    Raises:
        ValueError: as `evaluate_model` and `load_segmentation_dataset`.
    """
    is_main = accelerator is None or accelerator.is_main_process
    if is_main:
        make_directory(evaluation_arguments.output_dir)
    data_options = dict(vars(data_arguments))
    max_images, eval_fraction, seed = (data_options.pop(name) for name in ("max_images", "eval_fraction", "seed"))
    # One process prepares the cache, the others read it.
    with accelerator.main_process_first() if accelerator is not None else contextlib.nullcontext():
        dataset, class_list = load_segmentation_dataset(**data_options)
        if eval_fraction:
            _, dataset = hold_out(dataset, eval_fraction, seed)

    results = evaluate_model(
        model,
        processor,
        dataset,
        class_list,
        evaluation_arguments,
        refine_boundaries=REFINEMENTS[evaluation_arguments.refine_boundaries],
        boundary_f1=evaluation_arguments.boundary_metrics,
        accelerator=accelerator,
        progress=progress,
        max_images=max_images,
        num_samples=evaluation_arguments.num_samples,
    )
    results["model"], results["dataset"] = model_name, data_arguments.dataset_name
    if is_main:
        save_results(results, class_list, evaluation_arguments.output_dir)
        print(results_table(results))
        print(f"results.json, results.md and results.png are in {evaluation_arguments.output_dir}")
    return results
