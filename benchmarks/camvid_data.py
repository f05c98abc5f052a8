# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The photographs of CamVid, to train models with an EfficientNet-Lite0 from ImageNet on, by the recipe
`examples/configs/camvid_efficientnet_lite0.yaml` in fewer steps.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.augmentation import TrainingAugmentation
from unept_hf.data.class_lists import load_class_list
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.training.arguments import parse_arguments
from unept_hf.training.building import load_model, make_scheduler
from unept_hf.training.order import AugmentedDataset, TrainingOrder


RECIPE = Path(__file__).parent.parent / "examples" / "configs" / "camvid_efficientnet_lite0.yaml"
CLASSES = load_class_list("camvid")


class CamvidData:
    """
    The data, and what the recipe says beside the model: crops, augmentation, optimizer, schedule, moving average.

    Warm-up and moving average span the same share of the training as in the recipe.

    Args:
        data_dir: Has the folders train, trainannot, val, valannot, test and testannot.
        backbone_checkpoint: ImageNet weights of the backbone; `None` starts it at random.
        steps: Of the training.
        batch_size: Crops in a step; `None` stands for the recipe's.
        crop_size: Height and width of the crops, a multiple of 32; `None` stands for the recipe's.
        learning_rate: The highest one; `None` stands for the recipe's.
    """

    class_list = CLASSES

    def __init__(
        self,
        data_dir: Path,
        backbone_checkpoint: Path | None,
        steps: int,
        batch_size: int | None = None,
        crop_size: int | None = None,
        learning_rate: float | None = None,
    ):
        model_args, data_args, run_args = parse_arguments([str(RECIPE)])
        share = steps / run_args.max_steps
        self.data_dir = str(data_dir)
        self.model_args = replace(
            model_args, backbone_checkpoint=None if backbone_checkpoint is None else str(backbone_checkpoint)
        )
        self.data_args = replace(data_args, crop_size=crop_size or data_args.crop_size)
        self.run_args = replace(
            run_args,
            max_steps=steps,
            warmup_steps=round(run_args.warmup_steps * share),
            ema_decay=max(0.0, 1 - (1 - run_args.ema_decay) / share) if run_args.ema_decay else 0.0,
            train_batch_size=batch_size or run_args.train_batch_size,
            learning_rate=learning_rate or run_args.learning_rate,
        )

    @functools.cached_property
    def processor(self) -> UneptImageProcessor:
        normalization = UneptForSemanticSegmentation.from_preset(self.model_args.preset).image_processor_options()
        longest, shortest = max(self.data_args.scale), min(self.data_args.scale)
        return UneptImageProcessor(**normalization, size={"shortest_edge": shortest, "longest_edge": longest})

    def settings(self) -> dict[str, Any]:
        """What must be equal for trainings to be comparable, their learning rates aside."""
        return {
            "steps": self.run_args.max_steps,
            "batch_size": self.run_args.train_batch_size,
            "crop_size": self.data_args.crop_size,
            "scale": list(self.data_args.scale),
            "ratio_range": list(self.data_args.ratio_range),
            "backbone_lr_multiplier": self.run_args.backbone_lr_multiplier,
            "weight_decay": self.run_args.weight_decay,
            "lr_scheduler_type": self.run_args.lr_scheduler_type,
            "warmup_steps": self.run_args.warmup_steps,
            "ema_decay": round(self.run_args.ema_decay, 4),
            "config_overrides": self.model_args.config_overrides or {},
        }

    def make_unept(self, **overrides) -> UneptForSemanticSegmentation:
        """UN-EPT of the recipe, with `overrides` in its configuration and the ImageNet weights in its backbone."""
        config_overrides: Any = self.model_args.config_overrides or {}
        model_args = replace(self.model_args, config_overrides={**config_overrides, **overrides})
        return load_model(model_args, self.data_args.crop_size, CLASSES, is_resumed=False)

    def batches(self, seed: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and label maps of each step: the same for each model."""
        dataset, _ = load_segmentation_dataset("camvid", "train", data_dir=self.data_dir)
        augmentation = TrainingAugmentation(
            self.data_args.crop_size,
            tuple(self.data_args.scale),
            tuple(self.data_args.ratio_range),
            self.data_args.cat_max_ratio,
            self.data_args.flip_probability,
            self.data_args.photometric_distortion,
            self.processor.image_mean,
            self.processor.image_std,
            CLASSES.ignore_index,
            boundary_targets=False,  # UN-EPT makes them from the labels, which counts as its work
        )
        crops = AugmentedDataset(dataset, CLASSES, augmentation, seed)
        order = TrainingOrder(
            len(dataset), self.run_args.train_batch_size, self.run_args.max_steps, seed, first_step=first_step
        )
        for keys in order:
            batch = default_collate([crops[key] for key in keys])
            yield batch["pixel_values"], batch["labels"]

    def examples(self, split: str = "validation") -> Iterator[tuple[str, Tensor, np.ndarray]]:
        """Name, image `(1, 3, height, width)` as the model takes it, and label map of each photograph."""
        dataset, _ = load_segmentation_dataset("camvid", split, data_dir=self.data_dir)
        for example in dataset:
            image, label_map = decode_example(example, CLASSES)
            yield example["name"], self.processor(images=image, return_tensors="pt")["pixel_values"], label_map

    def optimizer_and_scheduler(
        self, model: nn.Module, backbone: nn.Module
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """AdamW with a lower learning rate for the backbone, and the schedule of the recipe."""
        rate, factor = self.run_args.learning_rate, self.run_args.backbone_lr_multiplier
        slow = {id(parameter) for parameter in backbone.parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if id(parameter) not in slow], "lr": rate},
            {"params": [parameter for parameter in trained if id(parameter) in slow], "lr": rate * factor},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=self.run_args.weight_decay)
        return optimizer, make_scheduler(optimizer, self.run_args)
