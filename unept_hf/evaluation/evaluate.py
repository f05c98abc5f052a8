# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluation of a model on a data set, in one process or many: predictions as `inference` makes them, metrics as
`metrics` defines them, and the report.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator, DistributedType
from datasets.distributed import split_dataset_by_node
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.class_lists import ClassList
from ..data.label_maps import decode_example
from ..data.segmentation_datasets import hold_out, load_segmentation_dataset
from ..inference.segment import refine, segment_batch
from ..visualization.figures import color_label_map
from .arguments import EvaluationArguments, EvaluationDataArguments
from .metrics import boundary_f_scores, confusion_matrix, trimap_confusion_matrices
from .metrics.boundary_f1.boundary_f1 import scores_from_sums
from .metrics.mean_iou.mean_iou import scores_from_confusion_matrix


logger = logging.get_logger(__name__)

# Metrics are computed beside the model, in threads, with this many images waiting at most.
METRIC_THREADS = 4
WAITING_IMAGES = 16
SAMPLE_PIXELS = 480  # longer side of the pictures in a report


@dataclass
class MetricCounts:
    """
    What the metrics are computed from. Counts of images, or of parts of a data set, are added up.

    Args:
        confusion: `(num_labels, num_labels)`, pixels by reference (rows) and prediction.
        trimap: `(widths, num_labels, num_labels)`, those near a boundary of the reference.
        f_scores: `(tolerances, num_labels)`, sums of boundary F-scores over images.
        f_counts: `(tolerances, num_labels)`, how many F-scores those are.
        images: `(1,)`, number of images.
    """

    confusion: np.ndarray
    trimap: np.ndarray
    f_scores: np.ndarray
    f_counts: np.ndarray
    images: np.ndarray

    @classmethod
    def zeros(cls, num_labels: int, tolerances: Sequence[float], widths: Sequence[float]) -> "MetricCounts":
        shapes = [(num_labels,) * 2, (len(widths), num_labels, num_labels), *[(len(tolerances), num_labels)] * 2, (1,)]
        return cls(*(np.zeros(shape) for shape in shapes))

    @classmethod
    def of_image(
        cls,
        prediction: np.ndarray,
        reference: np.ndarray,
        num_labels: int,
        ignore_index: int,
        tolerances: Sequence[float],
        widths: Sequence[float],
    ) -> "MetricCounts":
        """Counts of one prediction, `(height, width)` of integers, and its reference."""
        counts = cls.zeros(num_labels, tolerances, widths)
        counts.confusion[:] = confusion_matrix(prediction, reference, num_labels, ignore_index)
        if len(widths):
            counts.trimap[:] = trimap_confusion_matrices(prediction, reference, num_labels, ignore_index, widths)
        if len(tolerances):
            scores = boundary_f_scores(prediction, reference, num_labels, ignore_index, tolerances)
            counts.f_scores[:] = np.nan_to_num(scores)
            counts.f_counts[:] = ~np.isnan(scores)
        counts.images[:] = 1
        return counts

    def __add__(self, other: "MetricCounts") -> "MetricCounts":
        names = [field.name for field in fields(self)]
        return MetricCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    def summed(self, accelerator: Accelerator) -> "MetricCounts":
        """The sum over all processes, in each of them."""
        parts = [getattr(self, field.name) for field in fields(self)]
        flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        # float64 counts pixels exactly up to 2**53.
        flat = accelerator.reduce(flat.to(accelerator.device), reduction="sum").cpu().numpy()
        sizes = np.cumsum([part.size for part in parts])[:-1]
        return MetricCounts(*(one.reshape(part.shape) for one, part in zip(np.split(flat, sizes), parts)))

    def metrics(self, class_list: ClassList, tolerances: Sequence[float], widths: Sequence[float]) -> dict:
        """The metrics, as `evaluate_model` returns them."""
        scores = scores_from_confusion_matrix(self.confusion)
        scores.update(scores_from_sums(self.f_scores, self.f_counts, tolerances))
        results = {name: value for name, value in scores.items() if not name.startswith("per_category")}
        if len(widths):
            results["trimap_mean_iou"] = {
                f"{width:g}": scores_from_confusion_matrix(matrix)["mean_iou"]
                for width, matrix in zip(widths, self.trimap)
            }
        results["per_category"] = {
            label: {
                **{
                    name.removeprefix("per_category_"): float(values[index])
                    for name, values in scores.items()
                    if name.startswith("per_category")
                },
                "pixels": int(self.confusion[index].sum()),
            }
            for index, label in class_list.id2label.items()
        }
        return results


class LockstepForward(nn.Module):
    """
    A sharded model on data of which each process has another amount: its forward gathers weights from all processes,
    so those that are done keep calling it until the last one is.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, pixel_values: Tensor):
        super().__init__()
        self.model, self.accelerator, self.pixel_values = model, accelerator, pixel_values

    def _working_processes(self, is_working: bool) -> int:
        flag = torch.tensor([int(is_working)], device=self.accelerator.device)
        return int(self.accelerator.reduce(flag, reduction="sum"))

    def forward(self, pixel_values: Tensor):
        self._working_processes(True)
        return self.model(pixel_values=pixel_values)

    def finish(self) -> None:
        """Takes part in the forwards of the others until they are done."""
        while self._working_processes(False):
            with torch.no_grad():
                self.model(pixel_values=self.pixel_values)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a forward needs all processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def local_examples(
    dataset: "datasets.Dataset | datasets.IterableDataset", rank: int, world_size: int, max_images: int | None
) -> tuple[Iterable, int | None]:
    """The examples that a process takes, none twice and none left out, and how many there are where that is known."""
    if max_images is not None:
        dataset = dataset.take(max_images)
    if isinstance(dataset, datasets.IterableDataset):
        return split_dataset_by_node(dataset, rank, world_size), None
    indices = range(rank, len(dataset), world_size)
    return (dataset[index] for index in indices), len(indices)


def decoded_chunks(
    examples: Iterable, class_list: ClassList, size: int, executor: ThreadPoolExecutor
) -> Iterator[list[tuple]]:
    """Lists of up to `size` tuples of name, image and label map; the next list is read while one is worked on."""
    iterator = iter(examples)

    def read():
        chunk = itertools.islice(iterator, size)
        return [(example.get("name") or "", *decode_example(example, class_list)) for example in chunk]

    following = executor.submit(read)
    while chunk := following.result():
        following = executor.submit(read)
        yield chunk


def warn_of_other_names(model: nn.Module, class_list: ClassList) -> None:
    """Warns when the metrics would carry other names than the classes have in the model."""
    names = [name for _, name in sorted(model.config.id2label.items())]
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        return
    for index, name in enumerate(names):
        if name != class_list.id2label[index]:
            logger.warning(
                f"Class {index} is '{name}' in the model but '{class_list.id2label[index]}' in class list "
                f"'{class_list.name}', whose names the metrics carry: evaluate with the class list that the model was "
                "trained on."
            )
            return


def warn_of_missing_classes(results: dict, class_list: ClassList) -> None:
    """Warns when metrics say nothing about some classes, or about all. Evaluations while training say so once."""
    missing = [label for label, one in results["per_category"].items() if one["pixels"] == 0]
    if len(missing) == len(class_list):
        logger.warning_once(
            f"The reference has no pixel of any class of class list '{class_list.name}': all are ignored, and no "
            "metric means anything. Check the masks, and ignore_index and reduce_labels in the class list."
        )
    elif missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        logger.warning_once(
            f"The reference has no pixel of {len(missing)} of {len(class_list)} classes of class list "
            f"'{class_list.name}' ({names}). The mean IoU counts them as 0 where they are predicted, and leaves them "
            "out otherwise: evaluate on more images, or on the class list of the data."
        )


def evaluate_model(
    model: nn.Module,
    processor,
    dataset: "datasets.Dataset | datasets.IterableDataset",
    class_list: ClassList,
    *,
    mode: str = "whole",
    crop_size: int | tuple[int, int] = 480,
    stride: int | tuple[int, int] = 160,
    scales: Sequence[float] = (1.0,),
    flip: "bool | str | Sequence[str]" = False,
    refine_boundaries: bool | str = False,
    boundary_threshold: float = 0.5,
    boundary_steps: int = 1,
    boundary_f1: bool = True,
    boundary_tolerances: Sequence[float] = (1, 3, 5),
    trimap_widths: Sequence[float] = (1, 3, 5, 10, 20),
    batch_size: int = 4,
    do_resize: bool | None = None,
    autocast: torch.dtype | str | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    max_images: int | None = None,
    num_samples: int = 0,
) -> dict:
    """
    Metrics of a model on a data set, at the size of the annotations.

    Several processes share the examples; their counts are summed, so the metrics do not depend on the number of
    processes, and each process returns them.

    Args:
        model: a semantic segmentation model of transformers; wrapped for DDP, FSDP or DeepSpeed it may be. Stays in
            its mode.
        processor: its image processor.
        dataset: with columns `image` and `label`, and optionally `name`, as `load_segmentation_dataset` returns it.
        class_list: the classes of the data set, as many as the model has.
        mode, crop_size, stride, scales, flip, boundary_threshold, boundary_steps, do_resize, autocast: see
            [`unept_hf.inference.segment.segment`].
        refine_boundaries: `False`, `True`, or `"both"`: without, and with under the key `refined`, from one forward.
        boundary_f1: whether to compute the boundary F-scores and the trimap curve, which take more time than a small
            model on a GPU.
        boundary_tolerances: distances in pixels for the boundary F-scores.
        trimap_widths: widths in pixels of the bands of the trimap curve, ascending.
        batch_size: how many windows the model gets at once; in mode "whole", images of equal size share a batch.
        accelerator: knows the processes. `None` for one process.
        progress: whether to show a progress bar on the main process.
        max_images: how many examples to take from the start of the data set. `None` takes all.
        num_samples: how many of its images the main process returns with their predictions, for pictures.

    Returns:
        A dictionary with
        - `mean_iou`, `mean_accuracy`, `overall_accuracy`, and `boundary_f1_{tolerance}px` for each tolerance;
        - `trimap_mean_iou`: width (a string) to mean IoU;
        - `per_category`: class name to `iou`, `accuracy`, the F-scores and `pixels` of the reference; NaN where a
          class does not occur;
        - `refined`: with `refine_boundaries="both"`, all of the above with refinement;
        - `num_images`, `seconds` and `images_per_second` of all processes together, and `settings`;
        - `samples`, with `num_samples`: on the main process, dictionaries with `name`, `image` (PIL), `reference`,
          `prediction` and perhaps `refined` (arrays), of up to 480 pixels.

    Raises:
        ValueError: when the classes of model and data set differ in number, when there are no images, and as in
            `segment` and `decode_example`.
    """
    if refine_boundaries not in (False, True, "both"):
        raise ValueError(f"refine_boundaries has to be False, True or 'both', got {refine_boundaries!r}.")
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    is_main = rank == 0
    lockstep = world_size > 1 and is_sharded(accelerator)
    if world_size > 1 and not lockstep:
        # DDP would exchange buffers in each forward, of which the processes have different numbers.
        model = accelerator.unwrap_model(model)
    num_labels, ignore_index = len(class_list), class_list.ignore_index
    if model.config.num_labels != num_labels:
        raise ValueError(
            f"The model has {model.config.num_labels} classes but class list '{class_list.name}' has {num_labels}: "
            "evaluate with the class list that the model was trained on."
        )
    if is_main:
        warn_of_other_names(model, class_list)
    tolerances = tuple(boundary_tolerances) if boundary_f1 else ()
    widths = tuple(trimap_widths) if boundary_f1 else ()
    settings = {
        "refine_boundaries": refine_boundaries,
        "mode": mode,
        "scales": list(scales),
        "flip": flip,
        "boundary_threshold": boundary_threshold,
        "boundary_steps": boundary_steps,
        "batch_size": batch_size,
        "do_resize": do_resize,
        "autocast": None if autocast is None else str(autocast),
        "processes": world_size,
    }
    if mode == "slide":
        settings.update(crop_size=crop_size, stride=stride)
    variants = {False: ["plain"], True: ["refined"], "both": ["plain", "refined"]}[refine_boundaries]
    totals = {name: MetricCounts.zeros(num_labels, tolerances, widths) for name in variants}
    samples = []
    examples, count = local_examples(dataset, rank, world_size, max_images)
    if lockstep:
        side = 4 * (getattr(processor, "size_divisor", None) or 32)
        pixel_values = torch.zeros(1, 3, side, side, device=accelerator.device)
        model = LockstepForward(model, accelerator, pixel_values)

    start = time.perf_counter()
    bar = tqdm(total=count, desc="Evaluating", unit="image", disable=not (progress and is_main))
    with bar, ThreadPoolExecutor(METRIC_THREADS) as executor:
        waiting = deque()

        def collect(limit):
            while len(waiting) > limit:
                name, future = waiting.popleft()
                totals[name] = totals[name] + future.result()

        # In windows, one image fills the batches by itself.
        for chunk in decoded_chunks(examples, class_list, batch_size if mode == "whole" else 1, executor):
            results = segment_batch(
                model,
                processor,
                [image for _, image, _ in chunk],
                mode=mode,
                crop_size=crop_size,
                stride=stride,
                scales=scales,
                flip=flip,
                return_boundaries=refine_boundaries is not False,
                batch_size=batch_size,
                do_resize=do_resize,
                autocast=autocast,
                progress=False,
            )
            for (name, image, reference), result in zip(chunk, results):
                label_maps = {"plain": result.label_map.numpy()}
                if refine_boundaries:
                    is_boundary = result.boundary_probability > boundary_threshold
                    refined, _ = refine(result.label_map, is_boundary, result.direction_map, boundary_steps)
                    label_maps["refined"] = refined.numpy()
                for variant in variants:
                    args = (label_maps[variant], reference, num_labels, ignore_index, tolerances, widths)
                    waiting.append((variant, executor.submit(MetricCounts.of_image, *args)))
                if is_main and len(samples) < num_samples:
                    samples.append(make_sample(name, image, reference, label_maps, variants))
            collect(WAITING_IMAGES)
            bar.update(len(chunk))
        collect(0)
    if lockstep:
        model.finish()
    if world_size > 1:
        totals = {name: counts.summed(accelerator) for name, counts in totals.items()}
    seconds = time.perf_counter() - start

    results = {name: counts.metrics(class_list, tolerances, widths) for name, counts in totals.items()}
    num_images = int(totals[variants[0]].images[0])
    if num_images == 0:
        raise ValueError("There are no images to evaluate on: the data set is empty.")
    if is_main:
        warn_of_missing_classes(results[variants[0]], class_list)
    metrics = results.pop(variants[0])
    metrics.update(results)
    metrics.update(num_images=num_images, seconds=seconds, images_per_second=num_images / seconds)
    metrics["settings"] = settings
    if num_samples and is_main:
        metrics["samples"] = samples
    return metrics


def make_sample(
    name: str, image: PIL.Image.Image, reference: np.ndarray, label_maps: dict[str, np.ndarray], variants: list[str]
) -> dict:
    """A small copy of an image with its reference and predictions."""
    step = math.ceil(max(reference.shape) / SAMPLE_PIXELS)
    small = {"reference": reference[::step, ::step]}
    for key in variants:
        small["prediction" if key == variants[0] else key] = label_maps[key][::step, ::step]
    height, width = small["reference"].shape
    return {"name": name, "image": image.resize((width, height)), **small}


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
    rows = [
        [
            label,
            *(number(one["per_category"][label][name]) for one in variants.values() for name in scores),
            f"{pixels}",
        ]
        for label, pixels in ((label, one["pixels"]) for label, one in results["per_category"].items())
    ]
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
    top, bottom = figure, None
    if samples:
        top, bottom = figure.subfigures(2, 1, height_ratios=[bars_height, 2.6 * len(samples)])
    axes = top.subplots(1, 2, width_ratios=[3, 2]) if "trimap_mean_iou" in results else [top.subplots()]

    positions = np.arange(len(labels))
    thickness = 0.8 / len(variants)
    for index, (name, one) in enumerate(variants.items()):
        values = [one["per_category"][label]["iou"] for label in labels]
        axes[0].barh(
            positions + index * thickness,
            np.nan_to_num(values),
            thickness,
            label=f"{name}: mean {one['mean_iou']:.3f}",
        )
    axes[0].set(xlabel="IoU", xlim=(0, 1), ylim=(len(labels), -1))
    axes[0].set_yticks(positions, labels, parse_math=False)
    axes[0].tick_params("y", labelsize=8)
    axes[0].legend()
    if "trimap_mean_iou" in results:
        for name, one in variants.items():
            curve = one["trimap_mean_iou"]
            axes[1].plot([float(width) for width in curve], list(curve.values()), marker="o", label=name)
        axes[1].set(xlabel="distance to a true boundary below (pixels)", ylabel="mean IoU", ylim=(0, 1))
        axes[1].legend()

    names = ["image", "reference", *variants]
    for row, one in zip(bottom.subplots(len(samples), len(names), squeeze=False) if samples else [], samples):
        for axis, name in zip(row, names):
            if name == "image":
                axis.imshow(one[name])
            else:
                colors = color_label_map(one[name], class_list.palette, unlabelled=(0, 0, 0))
                axis.imshow(colors, interpolation="nearest")
            title = f"{name} {one['name']}" if name == "image" else name
            axis.set_title(title, fontsize=9, parse_math=False)
            axis.axis("off")
    return figure


def save_results(results: dict, class_list: ClassList, output_dir: str | os.PathLike) -> None:
    """Writes `results.json` (with null for NaN), `results.md` and `results.png`."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key != "samples"}
        return None if isinstance(value, float) and math.isnan(value) else value

    output_dir = Path(output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), indent=2, default=str) + "\n"
    (output_dir / "results.json").write_text(text, encoding="utf-8")
    (output_dir / "results.md").write_text(results_table(results), encoding="utf-8")
    results_figure(results, class_list).savefig(output_dir / "results.png", dpi=100)


def evaluate_and_report(
    model: nn.Module,
    processor,
    data_arguments: EvaluationDataArguments,
    evaluation_arguments: EvaluationArguments,
    model_name: str,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict:
    """
    Loads the data, evaluates, and on the main process saves the results and prints them.

    Args:
        model, processor, accelerator, progress: see [`evaluate_model`].
        data_arguments: which data, see [`unept_hf.data.segmentation_datasets.load_segmentation_dataset`].
        evaluation_arguments: how to predict, and where to write.
        model_name: what the report calls the model.

    Returns:
        What [`evaluate_model`] returns, with `model` and `dataset`, their names.

    Raises:
        ValueError: as [`evaluate_model`] and `load_segmentation_dataset`.
    """
    data_options = dict(vars(data_arguments))
    max_images, eval_fraction, seed = (data_options.pop(name) for name in ("max_images", "eval_fraction", "seed"))
    # One process prepares the cache, the others read it.
    with accelerator.main_process_first() if accelerator is not None else contextlib.nullcontext():
        dataset, class_list = load_segmentation_dataset(**data_options)
        if eval_fraction:
            _, dataset = hold_out(dataset, eval_fraction, seed)

    options = dict(vars(evaluation_arguments))
    output_dir = options.pop("output_dir")
    options["refine_boundaries"] = {"no": False, "yes": True, "both": "both"}[options["refine_boundaries"]]
    options["boundary_f1"] = options.pop("boundary_metrics")
    results = evaluate_model(
        model,
        processor,
        dataset,
        class_list,
        accelerator=accelerator,
        max_images=max_images,
        progress=progress,
        **options,
    )
    results["model"], results["dataset"] = model_name, data_arguments.dataset_name
    if accelerator is None or accelerator.is_main_process:
        save_results(results, class_list, output_dir)
        print(results_table(results))
        print(f"results.json, results.md and results.png are in {output_dir}")
    return results


__all__ = ["evaluate_and_report", "evaluate_model", "results_figure", "results_table", "save_results"]
