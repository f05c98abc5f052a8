# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared by the ablations and the comparison with other models: scenes, training and metrics."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from unept_hf.data.class_lists import load_class_list
from unept_hf.evaluation.evaluate import MetricCounts
from unept_hf.synthetic.scenes import synthetic_scene


CLASSES = load_class_list("synthetic")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
HELD_OUT = 2**31  # where the validation scenes begin


def draw_scenes(folder: Path, train_scenes: int, eval_scenes: int, size: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """
    Scenes to train on and held-out ones: images `(count, 3, size, size)` and label maps `(count, size, size)`, uint8.

    The process that starts the runs draws them once and keeps them in the folder, so that the memory of the runs does
    not include the drawing.
    """
    return _draw(folder, 0, train_scenes, size), _draw(folder, HELD_OUT, eval_scenes, size)


def _draw(folder: Path, first: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    file = folder / f"scenes_{first}_{count}_{size}.safetensors"
    if not file.exists():
        images, labels = [], []
        for index in trange(first, first + count, desc="Drawing scenes", mininterval=5):
            image, label = synthetic_scene(index, size=(size, size))
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            labels.append(torch.from_numpy(np.array(label)))
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({"images": torch.stack(images), "labels": torch.stack(labels)}, partial)
        partial.replace(file)
    scenes = load_file(file)
    return scenes["images"], scenes["labels"]


def normalized(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    scenes: tuple[Tensor, Tensor],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, float]:
    """Trains in place, with flips and a one-cycle schedule, in bfloat16 where autocast allows.

    Returns:
        `train_seconds`, the processor time of a step (the median, so that other work on the machine does not count),
        and `final_loss`, the mean of the last tenth.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    seconds, losses = [], []
    for _ in trange(steps, desc="Training", mininterval=5):
        start = time.process_time()
        batch = torch.randint(len(scenes[0]), (batch_size,), generator=generator)
        images, labels = normalized(scenes[0][batch]), scenes[1][batch].long()
        if torch.rand((), generator=generator) < 0.5:
            images, labels = images.flip(-1), labels.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, images, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        seconds.append(time.process_time() - start)
        losses.append(loss.item())
    model.eval()
    return {"train_seconds": float(np.median(seconds)), "final_loss": float(np.mean(losses[-max(steps // 10, 1) :]))}


@torch.inference_mode()
def measure(
    model: nn.Module,
    label_maps_of: Callable[[nn.Module, Tensor], dict[str, Tensor]],
    scenes: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """Metrics on held-out scenes, one at a time, of each kind of label map `(1, height, width)` that the model gives.

    Returns:
        For each kind `mean_iou`, `overall_accuracy` and `boundary_f1_1px` with the kind before it ("refined mean_iou";
        the kind "" has nothing before it), and `eval_seconds`, the median processor time of an image.
    """
    counts, seconds = {}, []
    for image, label in zip(*scenes):
        start = time.process_time()
        label_maps = label_maps_of(model, normalized(image)[None])
        seconds.append(time.process_time() - start)
        for kind, label_map in label_maps.items():
            one = MetricCounts.of_image(label_map[0].numpy(), label.numpy(), len(CLASSES), 255, (1.0,), ())
            counts[kind] = counts[kind] + one if kind in counts else one
    results = {"eval_seconds": float(np.median(seconds))}
    for kind, total in counts.items():
        metrics = total.metrics(CLASSES, (1.0,), ())
        for name in ("mean_iou", "overall_accuracy", "boundary_f1_1px"):
            results[f"{kind} {name}".strip()] = float(metrics[name])
    return results


def best_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps `(batch, *size)` of logits of any resolution."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).argmax(1)
