# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Synthetic scenes to train small models on from scratch."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import trange

from unept_hf.data.class_lists import load_class_list
from unept_hf.synthetic.scenes import synthetic_scene


CLASSES = load_class_list("synthetic")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
HELD_OUT = 2**31  # where the validation scenes begin


class SyntheticData:
    """
    Scenes to train on and held-out ones: images `(count, 3, size, size)` and label maps `(count, size, size)`, uint8.

    The process that starts the runs draws them once and keeps them in the folder, so that the memory of the runs does
    not include the drawing.
    """

    class_list = CLASSES

    def __init__(self, folder: Path, train_scenes: int, eval_scenes: int, size: int):
        self.scenes = _draw(folder, 0, train_scenes, size)
        self.held_out = _draw(folder, HELD_OUT, eval_scenes, size)

    def batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and label maps of each step, with flips."""
        generator = torch.Generator().manual_seed(seed)
        for step in itertools.count():
            batch = torch.randint(len(self.scenes[0]), (batch_size,), generator=generator)
            is_flipped = torch.rand((), generator=generator) < 0.5
            if step >= first_step:
                images, labels = normalized(self.scenes[0][batch]), self.scenes[1][batch].long()
                yield (images.flip(-1), labels.flip(-1)) if is_flipped else (images, labels)

    def examples(self) -> Iterator[tuple[str, Tensor, np.ndarray]]:
        """Number, image `(1, 3, size, size)` and label map of each held-out scene."""
        for index, (image, label) in enumerate(zip(*self.held_out)):
            yield str(index), normalized(image)[None], label.numpy()

    def optimizer_and_scheduler(
        self, model: nn.Module, steps: int, learning_rate: float
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
        return optimizer, OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)


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
