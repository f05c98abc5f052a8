# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set, in one process or many."""

import functools
import itertools
import math
import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from datasets.distributed import split_dataset_by_node
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.class_lists import ClassList
from ..data.label_maps import decode_example
from ..inference.options import PredictionOptions
from ..inference.segment import segment_batch
from .metrics import (
    boundary_f_scores,
    calibration_counts,
    confusion_matrix,
    scores_from_calibration,
    scores_from_confusion_matrix,
    scores_from_sums,
    trimap_confusion_matrices,
)


__all__ = ["MetricCounts", "evaluate_model"]

logger = logging.get_logger(__name__)

# Metrics are computed beside the model, in threads, with this many images waiting at most.
METRIC_THREADS = 4
WAITING_IMAGES = 16
SAMPLE_PIXELS = 480  # longer side of the pictures in a report


@dataclass
class MetricCounts:
    """
    What the metrics are computed from. Counts of images, or of parts of a data set, are added up; 0 stands for zeros.

    Args:
        confusion: `(num_labels, num_labels)`, pixels by reference (rows) and prediction.
        trimap: `(widths, num_labels, num_labels)`, the same near a boundary of the reference.
        f_scores: `(tolerances, num_labels)`, sums of boundary F-scores over images.
        f_counts: `(tolerances, num_labels)`, number of F-scores in each sum.
        images: number of images.
        class_images: `(num_labels,)`, number of images with reference pixels of the class.
        calibration: `(3, bins)`, see `calibration_counts`.
        log_loss: sum over pixels of the cross entropy.
    """

    confusion: Any = 0
    trimap: Any = 0
    f_scores: Any = 0
    f_counts: Any = 0
    images: int = 0
    class_images: Any = 0
    calibration: Any = 0
    log_loss: float = 0.0

    @classmethod
    def of_image(
        cls,
        prediction: np.ndarray,
        reference: np.ndarray,
        num_labels: int,
        ignore_index: int,
        tolerances: Sequence[float],
        widths: Sequence[float],
        confidence: np.ndarray | None = None,
        reference_probability: np.ndarray | None = None,
    ) -> "MetricCounts":
        """
        Counts of one prediction, `(height, width)` of integers, and its reference; with the probabilities of the
        predicted and of the true classes also of calibration and loss.
        """
        counts = cls(confusion_matrix(prediction, reference, num_labels, ignore_index), images=1)
        counts.class_images = (counts.confusion.sum(1) > 0).astype(int)
        if confidence is not None:
            counts.calibration = calibration_counts(prediction, reference, confidence, ignore_index)
        if reference_probability is not None:
            probability = reference_probability[reference != ignore_index].astype(np.float64)
            # A probability may have been rounded to 0.
            counts.log_loss = float(-np.log(probability.clip(np.finfo(np.float32).tiny)).sum())
        if len(widths):
            counts.trimap = trimap_confusion_matrices(prediction, reference, num_labels, ignore_index, widths)
        if len(tolerances):
            scores = boundary_f_scores(prediction, reference, num_labels, ignore_index, tolerances)
            counts.f_scores, counts.f_counts = np.nan_to_num(scores), (~np.isnan(scores)).astype(int)
        return counts

    def __add__(self, other: "MetricCounts") -> "MetricCounts":
        return MetricCounts(*map(operator.add, vars(self).values(), vars(other).values()))

    def metrics(self, class_list: ClassList, tolerances: Sequence[float], widths: Sequence[float]) -> dict:
        """The metrics, as `evaluate_model` returns them."""
        results = scores_from_confusion_matrix(self.confusion, only_referenced=True)
        if len(tolerances):
            # Without reference pixels, all scores of a class are 0, and say as little as its IoU.
            results |= scores_from_sums(self.f_scores, self.f_counts * (self.class_images > 0), tolerances)
        if len(widths):
            scores = [scores_from_confusion_matrix(matrix, only_referenced=True)["mean_iou"] for matrix in self.trimap]
            results["trimap_mean_iou"] = {f"{width:g}": score for width, score in zip(widths, scores)}
        if np.ndim(self.calibration):
            results |= scores_from_calibration(self.calibration)
        by_class = {name: results.pop(name) for name in list(results) if name.startswith("per_category_")}
        results["per_category"] = {
            label: {name.removeprefix("per_category_"): float(values[index]) for name, values in by_class.items()}
            | {"pixels": int(self.confusion[index].sum()), "images": int(self.class_images[index])}
            for index, label in class_list.id2label.items()
        }
        results["confusion_matrix"] = self.confusion.tolist()
        return results


class _LockstepForward(nn.Module):
    """
    A sharded model on data of which each process has another amount: its forward gathers weights from all processes,
    so processes that are done keep calling it until the last process is.
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


def _is_sharded(accelerator: Accelerator) -> bool:
    """Whether a forward needs all processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def _local_examples(
    dataset: "datasets.Dataset | datasets.IterableDataset", rank: int, world_size: int, max_images: int | None
) -> tuple[Iterable, int | None]:
    """The examples of a process, so that none is taken twice or left out, and their number where it is known."""
    if max_images is not None:
        dataset = dataset.take(max_images)
    if isinstance(dataset, datasets.IterableDataset):
        return split_dataset_by_node(dataset, rank, world_size), None
    indices = range(rank, len(dataset), world_size)
    return (dataset[index] for index in indices), len(indices)


def _decoded_chunks(
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


def _warn_of_other_names(id2label: dict[int, str], class_list: ClassList) -> None:
    """Warns when the metrics would carry other names than the classes have in the model."""
    names = [name for _, name in sorted(id2label.items())]
    other = [index for index, name in enumerate(names) if name != class_list.id2label[index]]
    if other and names != [f"LABEL_{index}" for index in range(len(names))]:
        logger.warning(
            f"Class {other[0]} is '{names[other[0]]}' in the model but '{class_list.id2label[other[0]]}' in class "
            f"list '{class_list.name}', whose names the metrics carry: evaluate with the class list that the model "
            "was trained on."
        )


def _warn_of_missing_classes(results: dict, class_list: ClassList) -> None:
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
            f"'{class_list.name}' ({names}). They have no IoU, and the mean IoU leaves them out: evaluate on more "
            "images, or on the class list of the data."
        )


def evaluate_model(
    model: nn.Module,
    processor: Any,
    dataset: "datasets.Dataset | datasets.IterableDataset",
    class_list: ClassList,
    options: PredictionOptions | None = None,
    *,
    refine_boundaries: bool | str | None = None,
    boundary_f1: bool = True,
    boundary_tolerances: Sequence[float] = (1, 3, 5),
    trimap_widths: Sequence[float] = (1, 3, 5, 10, 20),
    accelerator: Accelerator | None = None,
    progress: bool = True,
    max_images: int | None = None,
    num_samples: int = 0,
    num_worst: int = 0,
    **overrides: Any,
) -> dict:
    """
    Metrics of a model on a data set, at the size of the annotations.

    Several processes share the examples; their counts are summed, so the metrics do not depend on the number of
    processes, and each process returns them.

    Args:
        model: a semantic segmentation model of transformers; it may be wrapped for DDP, FSDP or DeepSpeed. Stays
            in its mode.
        processor: its image processor.
        dataset: with columns `image` and `label`, and optionally `name`, as `load_segmentation_dataset` returns it.
        class_list: the classes of the data set, as many as the model has.
        options: how to predict; `None` stands for the defaults of `PredictionOptions`. In mode "whole", images of
            equal size share a batch.
        refine_boundaries: `False`, `True`, or `"both"`: without, and with under the key `refined`, from one forward.
            `None` stands for `options.refine_boundaries`.
        boundary_f1: whether to compute the boundary F-scores and the trimap curve, which take more time than a small
            model on a GPU.
        boundary_tolerances: distances in pixels for the boundary F-scores.
        trimap_widths: widths in pixels of the bands of the trimap curve, ascending.
        accelerator: knows the processes. `None` for one process.
        progress: whether to show a progress bar on the main process.
        max_images: number of examples to take from the start of the data set. `None` takes all.
        num_samples: number of images that the main process returns with their predictions, for pictures: the same
            ones each time, spread evenly over its share of the data set, or the first ones of a stream.
        num_worst: number of images of all processes to return as well, those with the largest share of wrong pixels.
        overrides: fields of `PredictionOptions` that replace the values in `options`, such as `mode="slide"`.

    Returns:
        A dictionary with
        - `mean_iou`, `mean_accuracy`, `overall_accuracy`, and `boundary_f1_{tolerance}px` for each tolerance;
        - `trimap_mean_iou`: width (a string) to mean IoU;
        - `expected_calibration_error` and `calibration`, see `scores_from_calibration`;
        - `per_category`: class name to `iou`, `accuracy`, the F-scores, and the numbers of `pixels` of the reference
          and of `images` with any; NaN where the reference has no pixel of the class;
        - `confusion_matrix`: lists of numbers of pixels, one list for each class of the reference;
        - `refined`: with `refine_boundaries="both"`, all of the above with refinement;
        - `loss`: the mean cross entropy of the pixels in nats, without refinement;
        - `num_images`, `seconds` and `images_per_second` of all processes together, and `settings`;
        - `samples`, with `num_samples`: on the main process, dictionaries with `name`, `image` (PIL), `reference`,
          `prediction` and perhaps `refined` (arrays), of up to 480 pixels, and the share of `wrong` pixels;
        - `worst`, with `num_worst`: on the main process, the same for the worst images, the worst first.

    Raises:
        ValueError: when the classes of model and data set differ in number, when there are no images, and as in
            `segment` and `decode_example`.
    """
    options = replace(options or PredictionOptions(), **overrides)
    if refine_boundaries is None:
        refine_boundaries = options.refine_boundaries
    parallel = accelerator if accelerator is not None and accelerator.num_processes > 1 else None
    rank, world_size = (0, 1) if parallel is None else (parallel.process_index, parallel.num_processes)
    is_main = rank == 0
    is_sharded = parallel is not None and _is_sharded(parallel)
    if parallel is not None and not is_sharded:
        # DDP would exchange buffers in each forward, of which the processes have different numbers.
        model = parallel.unwrap_model(model)
    config: Any = model.config
    num_labels, ignore_index = len(class_list), class_list.ignore_index
    if config.num_labels != num_labels:
        raise ValueError(
            f"The model has {config.num_labels} classes but class list '{class_list.name}' has {num_labels}: "
            "evaluate with the class list that the model was trained on."
        )
    if is_main:
        _warn_of_other_names(config.id2label, class_list)
    tolerances = tuple(boundary_tolerances) if boundary_f1 else ()
    widths = tuple(trimap_widths) if boundary_f1 else ()
    settings = {one.name: getattr(options, one.name) for one in fields(PredictionOptions)}
    settings |= {"refine_boundaries": refine_boundaries, "processes": world_size}
    if options.mode == "whole":
        del settings["crop_size"], settings["stride"]
    variants = {False: ["plain"], True: ["refined"], "both": ["plain", "refined"]}[refine_boundaries]
    totals = dict.fromkeys(variants, MetricCounts())
    samples: list[dict] = []
    worst: list[tuple[float, int, dict]] = []
    examples, count = _local_examples(dataset, rank, world_size, max_images)
    shown = set(range(num_samples))
    if count:
        shown = set(np.linspace(0, count - 1, min(num_samples, count)).round().astype(int).tolist())
    if parallel is not None and is_sharded:
        side = 4 * (getattr(processor, "size_divisor", None) or 32)
        pixel_values = torch.zeros(1, 3, side, side, device=parallel.device)
        model = _LockstepForward(model, parallel, pixel_values)

    start = time.perf_counter()
    bar = tqdm(total=count, desc="Evaluating", unit="image", disable=not (progress and is_main))
    with bar, ThreadPoolExecutor(METRIC_THREADS) as executor:
        waiting: deque[tuple[str, Future, int, Callable[[float], dict]]] = deque()

        def collect(limit):
            while len(waiting) > limit:
                variant, future, index, make_sample = waiting.popleft()
                counts = future.result()
                totals[variant] = totals[variant] + counts
                if variant != variants[0]:
                    continue
                wrong = 1 - scores_from_confusion_matrix(counts.confusion)["overall_accuracy"]
                if is_main and index in shown:
                    samples.append(make_sample(wrong))
                if num_worst and (len(worst) < num_worst or wrong > worst[-1][0]) and not math.isnan(wrong):
                    worst.append((wrong, index * world_size + rank, make_sample(wrong)))
                    worst.sort(key=_worst_first)
                    del worst[num_worst:]

        number = itertools.count()
        # In windows, one image fills the batches by itself.
        size = options.batch_size if options.mode == "whole" else 1
        for chunk in _decoded_chunks(examples, class_list, size, executor):
            predictions = segment_batch(
                model,
                processor,
                [image for _, image, _ in chunk],
                options,
                return_boundaries=refine_boundaries is not False,
                return_confidence=True,
                references=[reference for _, _, reference in chunk],
                progress=False,
                refine_boundaries=False,
            )
            for (name, image, reference), result in zip(chunk, predictions):
                found = {"plain": result}
                if refine_boundaries:
                    found["refined"] = result.refined(**options.refinement)
                label_maps = {variant: found[variant].label_map.numpy() for variant in variants}
                make_sample = functools.partial(_make_sample, name, image, reference, label_maps)
                index = next(number)
                for variant in variants:
                    confidence, probability = found[variant].confidence, result.reference_probability
                    assert confidence is not None and probability is not None  # as asked for
                    future = executor.submit(
                        MetricCounts.of_image,
                        label_maps[variant],
                        reference,
                        num_labels,
                        ignore_index,
                        tolerances,
                        widths,
                        confidence.numpy(),
                        probability.numpy() if variant == variants[0] else None,
                    )
                    waiting.append((variant, future, index, make_sample))
            collect(WAITING_IMAGES)
            bar.update(len(chunk))
        collect(0)
    if isinstance(model, _LockstepForward):
        model.finish()
    if parallel is not None:
        totals = {name: sum(gather_object([counts]), MetricCounts()) for name, counts in totals.items()}
        worst = sorted(gather_object(worst), key=_worst_first)[:num_worst]
    seconds = time.perf_counter() - start

    num_images = totals[variants[0]].images
    if num_images == 0:
        raise ValueError("There are no images to evaluate on: the data set is empty.")
    results = {name: counts.metrics(class_list, tolerances, widths) for name, counts in totals.items()}
    if is_main:
        _warn_of_missing_classes(results[variants[0]], class_list)
    metrics = results.pop(variants[0]) | results
    pixels = np.sum(totals[variants[0]].confusion)
    metrics["loss"] = float(totals[variants[0]].log_loss / pixels) if pixels else float("nan")
    metrics.update(num_images=num_images, seconds=seconds, images_per_second=num_images / seconds)
    metrics["settings"] = settings
    if num_samples and is_main:
        metrics["samples"] = samples
    if num_worst and is_main:
        metrics["worst"] = [sample for _, _, sample in worst]
    return metrics


def _worst_first(one: tuple[float, int, dict]) -> tuple[float, int]:
    wrong, index, _ = one
    return -wrong, index


def _make_sample(
    name: str, image: PIL.Image.Image, reference: np.ndarray, label_maps: dict[str, np.ndarray], wrong: float
) -> dict:
    """A small copy of an image with its reference and predictions, of which the first has this share of errors."""
    step = math.ceil(max(reference.shape) / SAMPLE_PIXELS)
    # Copies, which do not keep the large arrays.
    small = {"reference": reference[::step, ::step].copy()}
    for index, (variant, label_map) in enumerate(label_maps.items()):
        small[variant if index else "prediction"] = label_map[::step, ::step].copy()
    height, width = small["reference"].shape
    return {"name": name, "image": image.resize((width, height)), **small, "wrong": wrong}
