# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The report of an evaluation: tables, pictures and JSON files."""

import contextlib
import json
import math
import os
from typing import Any

import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn

from ..data.class_lists import ClassList, class_list_from_data
from ..data.segmentation_datasets import hold_out, load_segmentation_dataset
from ..files import make_directory
from ..visualization.figures import draw_samples, shortened
from ..visualization.metric_figures import draw_calibration, draw_confusion_matrix
from .arguments import EvaluationArguments, EvaluationDataArguments
from .evaluate import evaluate_model


__all__ = ["evaluate_and_report", "results_figure", "results_table", "results_text", "save_results"]

REFINEMENTS: dict[str, bool | str] = {"no": False, "yes": True, "both": "both"}


def _variants(results: dict) -> dict[str, dict]:
    """The metrics without refinement, with it, or both, by their name in reports."""
    variants = {"refined" if results["settings"]["refine_boundaries"] is True else "plain": results}
    if "refined" in results:
        variants["refined"] = results["refined"]
    return variants


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _summary(results: dict) -> tuple[list[str], list[list[str]]]:
    """What the metrics rest on, in sentences, and the metrics of all classes together, in rows of words."""
    variants = _variants(results)
    classes = results["per_category"].values()
    counted = sum(one["pixels"] > 0 for one in classes)
    sentences = [
        f"{results['num_images']} images in {results['seconds']:.1f} s ({results['images_per_second']:.2f} a second).",
        f"The means are over the {counted} of {len(classes)} classes that have reference pixels.",
    ]
    prefixes = ("mean_", "overall_", "loss", "expected_calibration_error", "boundary_f1_")
    names = [name for prefix in prefixes for name in results if name.startswith(prefix)]
    # The loss is that of the probabilities before refinement.
    rows = [[name, *(_number(one[name]) if name in one else "" for one in variants.values())] for name in names]
    for width in results.get("trimap_mean_iou", {}):
        values = (_number(one["trimap_mean_iou"][width]) for one in variants.values())
        rows.append([f"mean_iou within {width} px of a boundary", *values])
    return sentences, rows


def _most_confused(results: dict, most: int) -> list[tuple[str, str, int, float]]:
    """True class, predicted class, number of pixels and their share of the true class, the most pixels first."""
    matrix, labels = np.array(results["confusion_matrix"]), list(results["per_category"])
    totals = matrix.sum(1)
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, matrix)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*(one.tolist() for one in np.unravel_index(places, matrix.shape)))
    return [
        (labels[true], labels[found], int(matrix[true, found]), float(matrix[true, found] / totals[true]))
        for true, found in pairs
        if wrong[true, found]
    ]


def results_table(results: dict) -> str:
    """The metrics of `evaluate_model` as Markdown."""
    variants = _variants(results)
    columns = list(variants)

    def table(heads, rows):
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    sentences, rows = _summary(results)
    parts = [" ".join(sentences), table(["metric", *columns], rows)]
    scores = _scores(results)
    heads = ["class", *(f"{name} {column}" if len(columns) > 1 else name for column in columns for name in scores)]
    rows = []
    for label, own in results["per_category"].items():
        values = (_number(one["per_category"][label][name]) for one in variants.values() for name in scores)
        rows.append([label, *values, str(own["images"]), str(own["pixels"])])
    parts.append(table([*heads, "images", "pixels"], rows))
    confused = [
        [true, found, str(pixels), f"{share:.1%}"] for true, found, pixels, share in _most_confused(results, 20)
    ]
    if confused:
        heads = ["true class", "predicted class", "pixels", "share of the true class"]
        parts.append(f"The most frequent confusions:\n\n{table(heads, confused)}")
    settings = ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    return "\n\n".join([*parts, f"Settings: {settings}."]) + "\n"


def _scores(results: dict) -> list[str]:
    """The names of what is measured for each class."""
    return [name for name in next(iter(results["per_category"].values())) if name not in ("pixels", "images")]


def results_text(results: dict) -> str:
    """The most important metrics of `evaluate_model` for a terminal of 80 columns."""
    variants = _variants(results)
    sentences, rows = _summary(results)
    lines = [*sentences, ""]
    for row in [["metric", *variants], *rows]:
        lines.append(f"{row[0]:44}" + "".join(f"{value:>10}" for value in row[1:]))
    # Five columns of numbers fit; results.md has all of them.
    scores, width = _scores(results)[: 5 // len(variants)], 7 if len(variants) == 1 else 8
    heads = {"iou": "IoU", "accuracy": "acc", **{name: f"F1 {name[12:]}" for name in scores if name[12:]}}
    pairs = [(name, variant) for name in scores for variant in variants]
    lines += ["", f"{'class':24}{''.join(f'{heads[name]:>{width}}' for name, _ in pairs)}{'images':>8}{'pixels':>13}"]
    if len(variants) > 1:
        lines.append(" " * 24 + "".join(f"{variant:>{width}}" for _, variant in pairs))
    for label, own in results["per_category"].items():
        values = (variants[variant]["per_category"][label][name] for name, variant in pairs)
        cells = "".join(f"{'-' if math.isnan(value) else f'{value:.3f}':>{width}}" for value in values)
        lines.append(f"{shortened(label, 23):24}{cells}{own['images']:>8}{own['pixels']:>13}")
    confused = _most_confused(results, 5)
    if confused:
        lines += ["", "The most frequent confusions:"]
    for true, found, _, share in confused:
        lines.append(f"  {share:6.1%} of {shortened(true, 26)} is taken for {shortened(found, 26)}")
    return "\n".join(lines)


def results_figure(results: dict) -> Figure:
    """IoU of each class, and the trimap curve."""
    variants = {"prediction": results, **({"refined": results["refined"]} if "refined" in results else {})}
    labels = list(results["per_category"])
    height = max(3.5, 0.16 * len(labels) * len(variants) + 1)
    figure = Figure(figsize=(12, height), layout="constrained")
    has_trimap = "trimap_mean_iou" in results
    axes = figure.subplots(1, 2 if has_trimap else 1, width_ratios=[3, 2][: 1 + has_trimap], squeeze=False)[0]

    positions = np.arange(len(labels))
    thickness = 0.8 / len(variants)
    for index, (name, one) in enumerate(variants.items()):
        values = [one["per_category"][label]["iou"] for label in labels]
        label = f"{name}: mean {one['mean_iou']:.3f}"
        axes[0].barh(positions + index * thickness, np.nan_to_num(values), thickness, label=label)
    for position, label in enumerate(labels):
        if not results["per_category"][label]["pixels"]:
            axes[0].text(0.01, position, "no reference pixels", color="0.4", fontsize=8, va="center")
    axes[0].set(xlabel=f"IoU on {results['num_images']} images", xlim=(0, 1), ylim=(len(labels), -1))
    axes[0].set_yticks(positions, labels, parse_math=False)
    axes[0].tick_params("y", labelsize=8)
    axes[0].legend()
    if has_trimap:
        for name, one in variants.items():
            curve = one["trimap_mean_iou"]
            axes[1].plot([float(width) for width in curve], list(curve.values()), marker="o", label=name)
        axes[1].set(xlabel="distance to a true boundary below (pixels)", ylabel="mean IoU", ylim=(0, 1))
        axes[1].legend()
    return figure


def save_results(results: dict, class_list: ClassList, output_dir: str | os.PathLike) -> None:
    """
    Writes the results of `evaluate_model`: `results.json` (with null for NaN), `results.md`, `results.png`, and as far
    as the results have what they show, `confusion_matrix.json`, `confusion_matrix.png`, `calibration.png`,
    `predictions.png` and `worst.png`.
    """

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in ("samples", "confusion_matrix")}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    output_dir = make_directory(output_dir)
    content = results | {"worst": [{key: one[key] for key in ("name", "wrong")} for one in results.get("worst", [])]}
    text = json.dumps(plain(content), indent=2, default=str) + "\n"
    (output_dir / "results.json").write_text(text, encoding="utf-8")
    (output_dir / "results.md").write_text(results_table(results), encoding="utf-8")
    results_figure(results).savefig(output_dir / "results.png", dpi=100)
    if "confusion_matrix" in results:
        variants, labels = _variants(results), list(results["per_category"])
        pixels = {name: one["confusion_matrix"] for name, one in variants.items()}
        matrices = {"classes": labels, "rows": "true class", "columns": "predicted class", "pixels": pixels}
        (output_dir / "confusion_matrix.json").write_text(json.dumps(matrices) + "\n", encoding="utf-8")
        title = f"{next(iter(variants))}, {results['num_images']} images"
        figure = draw_confusion_matrix(results["confusion_matrix"], labels, title)
        figure.savefig(output_dir / "confusion_matrix.png", bbox_inches="tight")
    if "calibration" in results:
        draw_calibration(_variants(results)).savefig(output_dir / "calibration.png")
    for name, file in (("samples", "predictions.png"), ("worst", "worst.png")):
        if results.get(name):
            colors = (class_list.palette, class_list.id2label, class_list.ignore_index)
            draw_samples(results[name], *colors).savefig(output_dir / file)


def _classes_of(model: Any) -> ClassList | None:
    """The classes of a model that has names for them."""
    names = [name for _, name in sorted(model.config.id2label.items())]
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        return None
    ignore_index = getattr(model.config, "semantic_loss_ignore_index", 255)
    with contextlib.suppress(ValueError):  # equal names, for example
        return class_list_from_data({"classes": names, "ignore_index": ignore_index}, "of the model")
    return None


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
        What `evaluate_model` returns, with `model`, `dataset` and `split`, their names.

    Raises:
        ValueError: as `evaluate_model` and `load_segmentation_dataset`.
    """
    is_main = accelerator is None or accelerator.is_main_process
    if is_main:
        make_directory(evaluation_arguments.output_dir)
    data_options = dict(vars(data_arguments))
    data_options["split"] = data_options.pop("eval_split")
    max_images, eval_fraction, seed = (data_options.pop(name) for name in ("max_images", "eval_fraction", "seed"))
    # One process prepares the cache, the others read it.
    with accelerator.main_process_first() if accelerator is not None else contextlib.nullcontext():
        dataset, class_list = load_segmentation_dataset(**data_options, model_classes=_classes_of(model))
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
        num_worst=evaluation_arguments.num_worst,
    )
    results["model"], results["dataset"] = model_name, data_arguments.dataset_name
    split = data_arguments.eval_split
    results["split"] = f"a held-out share of {split}" if eval_fraction else split
    if is_main:
        # A model has the same colors in all pictures.
        if colors := getattr(model.config, "class_colors", None):
            class_list.palette = colors
        save_results(results, class_list, evaluation_arguments.output_dir)
        print(results_text(results))
        print(f"\nAll metrics, settings and pictures are in {evaluation_arguments.output_dir}")
    return results
