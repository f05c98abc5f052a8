# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared by the ablations and the comparisons with other models: training and metrics, whatever the model and data."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from unept_hf.data.class_lists import ClassList
from unept_hf.evaluation.evaluate import MetricCounts


CHECKPOINT_SECONDS = 60.0


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    steps: int,
    ema_decay: float = 0.0,
    checkpoint: Path | None = None,
    settings: Mapping | None = None,
) -> dict[str, float]:
    """
    Trains in place, in bfloat16 where autocast allows. With `ema_decay`, the model ends with the moving average of its
    weights and statistics.

    Args:
        model: In training, `loss_of` takes it, images and label maps.
        batches: Takes the number of steps that are done; yields the images `(batch, 3, height, width)`, normalized,
            and the label maps `(batch, height, width)`, int64, of the steps that follow.
        checkpoint: File to which the state goes now and then, and from which a run that was stopped goes on as if
            nothing had happened.
        settings: What must be equal for the checkpoint to belong to this run.

    Returns:
        `train_seconds`, the processor time of a step (the median, so that other work on the machine does not count),
        and `final_loss`, the mean of the last tenth.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    average = None
    if ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
    seconds: list[float] = []
    losses: list[float] = []
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if average is not None:
        parts["average"] = average
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != str(settings):
            raise ValueError(
                f"{checkpoint} comes from settings {state['settings']}: choose another folder for --runs."
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        seconds, losses = state["seconds"], state["losses"]
        torch.set_rng_state(state["random"])  # of dropout

    def save() -> None:
        if checkpoint is not None:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"seconds": seconds, "losses": losses, "random": torch.get_rng_state(), "settings": str(settings)}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)

    model.train()
    batch = batches(len(losses))
    saved = time.monotonic()
    for _ in trange(len(losses), steps, desc="Training", mininterval=5):
        start = time.process_time()
        images, labels = next(batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, images, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if average is not None:
            average.update_parameters(model)
        seconds.append(time.process_time() - start)
        losses.append(loss.item())
        if len(losses) == steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
            save()
            saved = time.monotonic()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return {"train_seconds": float(np.median(seconds)), "final_loss": float(np.mean(losses[-max(steps // 10, 1) :]))}


@torch.inference_mode()
def measure(
    model: nn.Module,
    label_maps_of: Callable[[nn.Module, Tensor, tuple[int, int]], dict[str, Tensor]],
    examples: Iterable[tuple[str, Tensor, np.ndarray]],
    class_list: ClassList,
    tolerances: tuple[float, ...] = (1.0,),
    predictions: Path | None = None,
) -> dict[str, float]:
    """
    Metrics on held-out images, one at a time, of each kind of label map `(1, height, width)` that the model gives.

    Args:
        label_maps_of: Takes the model, the image and the (height, width) of the label maps.
        examples: The name of each image, the image `(1, 3, height, width)`, normalized, and its true label map, which
            may have another size.
        tolerances: Of the boundary F-score, in pixels.
        predictions: Folder for the label maps of the kind "", as images with a class in each pixel.

    Returns:
        For each kind `mean_iou`, `overall_accuracy` and a `boundary_f1_1px` for each tolerance, with the kind before
        it ("refined mean_iou"; the kind "" has nothing before it), and `eval_seconds`, the median processor time of an
        image.
    """
    counts: dict[str, MetricCounts] = {}
    seconds = []
    if predictions is not None:
        predictions.mkdir(parents=True, exist_ok=True)
    for name, image, label in examples:
        start = time.process_time()
        label_maps = label_maps_of(model, image, label.shape)
        seconds.append(time.process_time() - start)
        for kind, label_map in label_maps.items():
            array = label_map[0].numpy()
            one = MetricCounts.of_image(array, label, len(class_list), class_list.ignore_index, tolerances, ())
            counts[kind] = counts[kind] + one if kind in counts else one
            if predictions is not None and not kind:
                PIL.Image.fromarray(array.astype(np.uint8)).save(predictions / f"{name}.png")
    results = {"eval_seconds": float(np.median(seconds))}
    for kind, total in counts.items():
        metrics = total.metrics(class_list, tolerances, ())
        for name in ("mean_iou", "overall_accuracy", *(f"boundary_f1_{tolerance:g}px" for tolerance in tolerances)):
            results[f"{kind} {name}".strip()] = float(metrics[name])
    return results


def best_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps `(batch, *size)` of logits of any resolution."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).argmax(1)
