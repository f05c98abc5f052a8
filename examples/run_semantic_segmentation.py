# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Trains UN-EPT on ADE20K, Cityscapes, PASCAL-Context, a data set of the Hub, or your own images and masks.

    python examples/run_semantic_segmentation.py examples/configs/synthetic_harbour.yaml
    accelerate launch --num_processes 8 examples/run_semantic_segmentation.py \
        examples/configs/ade20k_resnet50_160k.yaml --data_dir ADEChallengeData2016 --output_dir ade20k

Options come from a YAML or JSON file, from the command line, or from both: what stands on the command line wins.
docs/training.md explains them.
"""

import argparse
import errno
import json
import logging
import math
import multiprocessing.util
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import timm.layers
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from accelerate.utils import broadcast, broadcast_object_list, load, parse_flag_from_env, reduce, set_seed
from huggingface_hub import create_repo, upload_folder, whoami
from huggingface_hub.errors import StrictDataclassError
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_scheduler

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor, __version__
from unept_hf.arguments import merge_options, read_options, words_of_options
from unept_hf.data.augmentation import TrainingAugmentation
from unept_hf.data.class_lists import ClassList
from unept_hf.data.segmentation_datasets import hold_out, load_segmentation_dataset
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.export.hub import (
    dataset_title,
    default_model_card,
    describe_backbone,
    export,
    is_private,
    picture_line,
    with_metadata,
)
from unept_hf.files import atomic_directory, remove_leftovers
from unept_hf.model.modeling_unept import plain_tensors
from unept_hf.training.checkpoints import (
    commit_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    lock_folder,
    read_checkpoint,
    start_checkpoint,
)
from unept_hf.training.order import AugmentedDataset, AugmentedStream, TrainingOrder, data_fingerprint
from unept_hf.visualization.figures import color_label_map


logger = get_logger(__name__)

PREDICTIONS_IMAGE = "predictions.png"  # in the folder of a model, if it may be published


# --------------------------------------------------------------------------------------------------------------------
# Options
# --------------------------------------------------------------------------------------------------------------------


def read_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """
    The option `config_overrides` as a mapping.

    Raises:
        ValueError: when it is none.
    """
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except json.JSONDecodeError as error:
            raise ValueError(f"config_overrides is not JSON ({error}): {overrides}") from error
    if overrides is not None and not isinstance(overrides, dict):
        raise ValueError(f"config_overrides has to be a JSON object, got {overrides!r}.")
    return overrides


def expand_paths(arguments: Any, names: tuple[str, ...]) -> None:
    """Puts the home folder in place of "~", as a shell does, but not after "=" or in a file."""
    for name in names:
        if (path := getattr(arguments, name)) is not None:
            setattr(arguments, name, os.path.expanduser(path))


@dataclass
class ModelArguments:
    """Which model to train."""

    preset: str = field(
        default="unept-resnet50", metadata={"help": "A new model: unept-resnet50, unept-deit-base or unept-tiny."}
    )
    config_overrides: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Fields of UneptConfig that replace those of the preset or of the trained model, as JSON: "
            '{"num_feature_levels": 1}. They are merged into those of a file.'
        },
    )
    use_pretrained_backbone: bool = field(
        default=False, metadata={"help": "Start the backbone of a new model from timm's weights; needs the network."}
    )
    backbone_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Start it from this file or folder, see conversion/convert_backbone_to_hf.py."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Go on from this trained model, in place of a preset; new classes are fine."}
    )

    def __post_init__(self):
        self.config_overrides = read_overrides(self.config_overrides)
        expand_paths(self, ("backbone_checkpoint", "model_name_or_path"))
        if self.use_pretrained_backbone and self.backbone_checkpoint:
            raise ValueError("use_pretrained_backbone and backbone_checkpoint exclude each other: choose one.")
        if self.model_name_or_path and (self.use_pretrained_backbone or self.backbone_checkpoint):
            raise ValueError("model_name_or_path brings its own backbone weights: drop the options of the backbone.")


@dataclass
class DataArguments:
    """What to train on, and what is done to it. See load_segmentation_dataset and TrainingAugmentation."""

    dataset_name: str = field(
        metadata={
            "help": "ade20k, camvid, cityscapes, pascal_context_59, pascal_context_60, image_folders, synthetic, "
            "synthetic_harbour, or a data set of the Hub or on the disk."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the official release, or of your images."})
    image_dir: str | None = field(default=None, metadata={"help": "image_folders: folder of the images."})
    label_dir: str | None = field(default=None, metadata={"help": "image_folders: folder of the masks."})
    label_suffix: str | None = field(default=None, metadata={"help": "image_folders: _L for masks NAME_L.png."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the masks."})
    class_list: str | None = field(default=None, metadata={"help": "Name or JSON file of the classes."})
    train_split: str = field(default="train", metadata={"help": "What to train on."})
    eval_split: str = field(default="validation", metadata={"help": "What to evaluate on."})
    eval_fraction: float = field(
        default=0.0, metadata={"help": "Evaluate on this share of the training split, which is taken out of it."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data set while training; keep nothing."})
    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Streaming: examples to draw the next one from."})
    skip_unreadable: bool = field(default=False, metadata={"help": "Leave broken examples out, with a warning."})
    num_synthetic_scenes: int = field(default=2000, metadata={"help": "synthetic: number of scenes to train on."})
    num_synthetic_eval_scenes: int = field(default=200, metadata={"help": "synthetic: number of held-out scenes."})
    synthetic_scene_size: int = field(default=256, metadata={"help": "synthetic: height and width in pixels."})
    crop_size: int = field(default=480, metadata={"help": "Height and width of the training crops in pixels."})
    scale: list[int] = field(
        default_factory=lambda: [2048, 512],
        metadata={"help": "Images are resized to fit within: longer side, shorter side. Evaluation does the same."},
    )
    ratio_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Training multiplies the scale by a random number."}
    )
    cat_max_ratio: float = field(default=0.75, metadata={"help": "The most of a crop that one class should fill."})
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    photometric_distortion: bool = field(default=True, metadata={"help": "Vary brightness, contrast and colours."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that prepare crops, for each GPU."})

    def __post_init__(self):
        expand_paths(self, ("dataset_name", "data_dir", "image_dir", "label_dir", "class_list"))
        if len(self.scale) != 2 or len(self.ratio_range) != 2:
            raise ValueError(f"scale and ratio_range are two numbers each, got {self.scale} and {self.ratio_range}.")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction has to lie in [0, 1), got {self.eval_fraction}.")
        if self.eval_fraction and self.streaming:
            raise ValueError("eval_fraction can not split a stream: set eval_split to another split.")
        if self.crop_size < 1:
            raise ValueError(
                f"crop_size has to be a number of pixels, a multiple of the model's stride such as 480, got "
                f"{self.crop_size}."
            )
        for name in ("scale", "ratio_range"):
            values = getattr(self, name)
            if not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name} has to be two positive numbers, got {values}.")


@dataclass
class RunArguments:
    """How to train."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, logs, pictures and models."})
    max_steps: int = field(default=160_000, metadata={"help": "Number of optimiser steps."})
    train_batch_size: int = field(
        default=16, metadata={"help": "Crops in one step, over all processes and accumulated pieces together."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Pieces in which a process takes its part."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    backbone_lr_multiplier: float = field(
        default=0.1, metadata={"help": "That of the backbone is this times as much."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(
        default="step", metadata={"help": "step, or a name that transformers knows: polynomial, cosine, linear, ..."}
    )
    lr_milestones: list[int] = field(
        default_factory=lambda: [126_000],
        metadata={"help": "step: after these steps the learning rate is multiplied by lr_gamma."},
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "step: see lr_milestones."})
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Options of the other schedules, as JSON: {"power": 0.9}.'}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Steps in which the learning rate rises from 0."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm; 0 for no limit."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16; otherwise what accelerate launch says, or no."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Save memory, for a third more time."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model for training."})
    torch_compile_backend: str = field(default="inductor", metadata={"help": "Backend of torch.compile."})
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Normalise with the running statistics, and do not update them."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Also average the weights over time with this decay, such as 0.999; 0: do not."}
    )
    seed: int = field(default=0, metadata={"help": "Of weights, order, augmentation and dropout."})
    cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})

    logging_steps: int = field(default=50, metadata={"help": "Steps between two lines of the log."})
    eval_steps: int = field(default=10_000, metadata={"help": "Steps between two evaluations; 0: only at the end."})
    save_steps: int = field(default=2_000, metadata={"help": "Steps between two checkpoints; 0: only at the end."})
    save_total_limit: int = field(default=2, metadata={"help": "How many checkpoints to keep; 0: all."})
    evaluate: bool = field(default=True, metadata={"help": "Whether to evaluate at all."})
    evaluation_mode: str = field(
        default="whole", metadata={"help": "whole images, or slide: windows of crop_size, a third of it apart."}
    )
    max_eval_images: int | None = field(default=None, metadata={"help": "Evaluate on the first so many images."})
    num_prediction_images: int = field(default=3, metadata={"help": "Rows of the picture at each evaluation."})
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "The final model is that with the highest mean IoU, not the last one."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Folder of a checkpoint, or latest: the newest in output_dir, if any."}
    )
    report_to: list[str] = field(default_factory=list, metadata={"help": "Trackers: tensorboard, trackio, wandb."})
    run_name: str = field(default="unept", metadata={"help": "Name of the project in the trackers."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the final model."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Where to; otherwise the name of output_dir."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Whether a new repository is private."})
    hub_prediction_pictures: bool = field(
        default=False,
        metadata={
            "help": "Put a picture of evaluation images, ground truth and predictions into the folders of models, and "
            "so onto the Hub. It shows your data."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "License of the weights for the model card, as the Hub spells it: cc-by-4.0."}
    )

    def __post_init__(self):
        expand_paths(self, ("output_dir", "resume_from_checkpoint"))
        if isinstance(self.lr_scheduler_kwargs, str):
            try:
                self.lr_scheduler_kwargs = json.loads(self.lr_scheduler_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"lr_scheduler_kwargs is not JSON ({error}): {self.lr_scheduler_kwargs}") from error
        if self.mixed_precision not in (None, "no", "fp16", "bf16"):
            raise ValueError(f"mixed_precision has to be no, fp16 or bf16, got {self.mixed_precision!r}.")
        if self.evaluation_mode not in ("whole", "slide"):
            raise ValueError(f"evaluation_mode has to be whole or slide, got {self.evaluation_mode!r}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay has to lie in [0, 1), got {self.ema_decay}.")
        for name in ("max_steps", "train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "backbone_lr_multiplier", "weight_decay", "lr_gamma", "max_grad_norm"):
            value, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} has to be a finite number from 0 on, such as {usual}, got {value}.")
        for name in ("warmup_steps", "eval_steps", "save_steps", "save_total_limit", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be at least 0, got {getattr(self, name)}.")
        if self.max_eval_images is not None and self.max_eval_images < 1:
            raise ValueError(f"max_eval_images has to be at least 1, got {self.max_eval_images}.")
        if self.load_best_model_at_end and not self.evaluate:
            raise ValueError("load_best_model_at_end needs evaluate.")


Arguments = tuple[ModelArguments, DataArguments, RunArguments]

# What may differ between a checkpoint and the run that resumes from it, because it does not change the training...
FREE_OPTIONS = {
    "output_dir", "dataloader_num_workers", "cpu", "logging_steps", "eval_steps",
    "save_steps", "save_total_limit", "evaluate", "evaluation_mode", "eval_split", "max_eval_images",
    "num_prediction_images", "load_best_model_at_end", "resume_from_checkpoint", "report_to", "run_name",
    "disable_tqdm", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_prediction_pictures",
    "license", "use_pretrained_backbone",
    "backbone_checkpoint", "model_name_or_path", "class_list", "num_synthetic_eval_scenes",
}  # fmt: skip
# ... and what changes it in a way that can be meant.
NOTED_OPTIONS = {
    "data_dir", "image_dir", "label_dir", "label_suffix", "max_steps", "mixed_precision", "gradient_checkpointing",
    "torch_compile", "torch_compile_backend", "gradient_accumulation_steps",
}  # fmt: skip


USAGE = "%(prog)s [OPTIONS.yaml] [--option value ...]"

# Where a model comes from: an option on the command line stands in place of these in a file.
REPLACED_OPTIONS = {
    "preset": ("model_name_or_path",),
    "use_pretrained_backbone": ("backbone_checkpoint", "model_name_or_path"),
    "backbone_checkpoint": ("use_pretrained_backbone", "model_name_or_path"),
    "model_name_or_path": ("use_pretrained_backbone", "backbone_checkpoint"),
}


def with_model_options(options: dict[str, Any], args: list[str]) -> dict[str, Any]:
    """The options of a file, as far as words of a command line leave them, with both `config_overrides` in one."""
    names = [option.name for option in fields(ModelArguments)]
    parser = HfArgumentParser(ModelArguments, usage=USAGE, add_help=False)
    given, _ = parser.parse_known_args(args, argparse.Namespace(**dict.fromkeys(names)))
    replaced = {other for name, others in REPLACED_OPTIONS.items() if getattr(given, name) for other in others}
    options = {name: value for name, value in options.items() if name not in replaced}
    if given.config_overrides is not None:
        overrides = [read_overrides(one) or {} for one in (options.get("config_overrides"), given.config_overrides)]
        options["config_overrides"] = merge_options(*overrides)
    return options


def parse_arguments(args: list[str] | None = None) -> Arguments:
    """Options from the command line; if its first word is a YAML or JSON file, then from that file first."""
    args = list(sys.argv[1:] if args is None else args)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, RunArguments),
        description=__doc__.strip().split("\n")[0],
        usage=USAGE,
    )
    parser.add_argument("--traceback", action="store_true", help="Show where errors come from.")
    if args and args[0].endswith((".yaml", ".yml", ".json")):
        path = args.pop(0)
        options = read_options(path)
        known = {option.name for arguments in parser.dataclass_types for option in fields(arguments)}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ValueError(f"{path} has unknown options: {', '.join(unknown)}. --help lists those there are.")
        if options.get("lr_milestones") == []:
            raise ValueError(f"{path} has no lr_milestones: for a constant rate set lr_gamma: 1.0.")
        # As words of a command line, so that both are read and checked in the same way. Of two equal options the last
        # one counts.
        options = with_model_options(options, args)
        overrides = {"config_overrides": options.pop("config_overrides", None)}
        args = words_of_options(options) + args + words_of_options(overrides)
    return parser.parse_args_into_dataclasses(args, look_for_args_file=False)[:3]


# --------------------------------------------------------------------------------------------------------------------
# Data and model
# --------------------------------------------------------------------------------------------------------------------


def load_data(data_args: DataArguments, run_args: RunArguments):
    """The training set, the evaluation set or `None`, and the classes."""
    source = {
        name: getattr(data_args, name)
        for name in (
            "dataset_name", "dataset_config_name", "data_dir", "image_dir", "label_dir", "label_suffix",
            "image_column", "label_column", "class_list", "skip_unreadable", "num_synthetic_scenes",
            "synthetic_scene_size",
        )
    }  # fmt: skip
    train_set, class_list = load_segmentation_dataset(
        split=data_args.train_split, streaming=data_args.streaming, **source
    )
    if data_args.eval_fraction:
        train_set, eval_set = hold_out(train_set, data_args.eval_fraction, run_args.seed)
        return train_set, eval_set if run_args.evaluate else None, class_list
    if not run_args.evaluate:
        return train_set, None, class_list
    try:
        source["num_synthetic_scenes"] = data_args.num_synthetic_eval_scenes
        eval_set, _ = load_segmentation_dataset(split=data_args.eval_split, streaming=data_args.streaming, **source)
    except ValueError as error:
        raise ValueError(
            f"{error}\nThat was the evaluation set. Other ways: eval_fraction takes a share of the training set, and "
            "evaluate=False does without."
        ) from error
    return train_set, eval_set, class_list


def make_config(model_args: ModelArguments, crop_size: int, class_list: ClassList) -> UneptConfig:
    """Configuration of a new model for some classes."""
    unknown = sorted(set(model_args.config_overrides or {}) - set(UneptConfig().to_dict()))
    if unknown:
        raise ValueError(f"config_overrides has what UneptConfig does not know: {', '.join(unknown)}.")
    config = UneptConfig.from_preset(
        model_args.preset,
        id2label=dict(class_list.id2label),
        label2id=dict(class_list.label2id),
        semantic_loss_ignore_index=class_list.ignore_index,
        **(model_args.config_overrides or {}),
    )
    if "query_grid_size" not in (model_args.config_overrides or {}):
        # One learned query for each cell of the crops that it is trained on.
        config.query_grid_size = (math.ceil(crop_size / config.query_stride),) * 2
    return config


def load_model(
    model_args: ModelArguments, crop_size: int, class_list: ClassList, is_resumed: bool
) -> UneptForSemanticSegmentation:
    """A new model, or a trained one with the classes of the data set. When resumed, its weights do not matter."""
    if model_args.model_name_or_path:
        with plain_tensors(model_args.model_name_or_path):
            model, found = UneptForSemanticSegmentation.from_pretrained(
                model_args.model_name_or_path,
                output_loading_info=True,
                id2label=dict(class_list.id2label),
                label2id=dict(class_list.label2id),
                semantic_loss_ignore_index=class_list.ignore_index,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **(model_args.config_overrides or {}),
            )
        name, overrides = model_args.model_name_or_path, model_args.config_overrides
        for keys, what in (
            (found["unexpected_keys"], f"of {name} are not used"),
            (found["missing_keys"], f"that {name} does not have start new"),
        ):
            if keys:
                some = ", ".join(sorted(keys)[:3])
                logger.warning(f"With config_overrides={overrides}, {len(keys)} weights {what}: {some}, ...")
    else:
        model = UneptForSemanticSegmentation(make_config(model_args, crop_size, class_list))
        if (model_args.use_pretrained_backbone or model_args.backbone_checkpoint) and not is_resumed:
            model.load_pretrained_backbone(model_args.backbone_checkpoint)
    divisor = model.model.size_divisor
    if crop_size % divisor:
        raise ValueError(f"crop_size={crop_size} has to be a multiple of {divisor}, the stride of this model.")
    return model


def image_processor_options(model: UneptForSemanticSegmentation, model_name_or_path: str | None) -> dict[str, Any]:
    """The divisor of the sizes, and the mean and std that a trained model had, else those of the backbone."""
    options = model.image_processor_options()
    if model_name_or_path:
        try:
            trained = UneptImageProcessor.from_pretrained(model_name_or_path)
        except OSError:  # weights alone
            return options
        options |= {"image_mean": trained.image_mean, "image_std": trained.image_std}
    return options


def make_loader(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    class_list: ClassList,
    augmentation: TrainingAugmentation,
    accelerator: Accelerator,
    first_step: int,
    data_args: DataArguments,
    run_args: RunArguments,
) -> DataLoader:
    """Batches of this process from a step on. It is not given to `prepare`, because it knows its processes itself."""
    processes = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    accumulation = run_args.gradient_accumulation_steps
    num_workers = data_args.dataloader_num_workers
    if isinstance(dataset, datasets.IterableDataset):
        piece = micro_batch_size(accelerator, run_args)
        crops = AugmentedStream(
            dataset,
            class_list,
            augmentation,
            seed=run_args.seed,
            buffer_size=data_args.shuffle_buffer_size,
            batch_size=piece,
            skip_batches=first_step * accumulation,
            **processes,
        )
        num_workers = min(num_workers, crops.num_shards)
        batches = {"batch_size": piece}
    else:
        crops = AugmentedDataset(dataset, class_list, augmentation, seed=run_args.seed)
        order = TrainingOrder(
            len(dataset),
            run_args.train_batch_size,
            run_args.max_steps,
            seed=run_args.seed,
            first_step=first_step,
            accumulation_steps=accumulation,
            **processes,
        )
        batches = {"batch_sampler": order}
    return DataLoader(
        crops,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals,
        # Its own, because a loader draws a number, and dropout would not see the same ones after a resume.
        generator=torch.Generator(),
        **batches,
    )


def micro_batch_size(accelerator: Accelerator, run_args: RunArguments) -> int:
    """Number of crops that a process takes at once."""
    pieces = accelerator.num_processes * run_args.gradient_accumulation_steps
    if run_args.train_batch_size % pieces:
        raise ValueError(
            f"train_batch_size={run_args.train_batch_size} can not be shared by {accelerator.num_processes} "
            f"process(es) with gradient_accumulation_steps={run_args.gradient_accumulation_steps}: make it a multiple "
            f"of {pieces}."
        )
    return run_args.train_batch_size // pieces


def make_optimizer(model: UneptForSemanticSegmentation, run_args: RunArguments) -> torch.optim.AdamW:
    """AdamW with a lower learning rate for the backbone."""
    backbone = {id(parameter) for parameter in model.base_model.backbone.parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == is_backbone],
            "lr": run_args.learning_rate * (run_args.backbone_lr_multiplier if is_backbone else 1.0),
        }
        for is_backbone in (False, True)
    ]
    return torch.optim.AdamW(groups, lr=run_args.learning_rate, weight_decay=run_args.weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, run_args: RunArguments) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over the steps."""
    if run_args.lr_scheduler_type == "reduce_lr_on_plateau":
        raise ValueError("lr_scheduler_type reduce_lr_on_plateau is not for training by steps: choose another one.")
    if run_args.lr_scheduler_type != "step":
        try:
            return get_scheduler(
                run_args.lr_scheduler_type,
                optimizer,
                num_warmup_steps=run_args.warmup_steps,
                num_training_steps=run_args.max_steps,
                scheduler_specific_kwargs=run_args.lr_scheduler_kwargs,
            )
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs {run_args.lr_scheduler_kwargs} does not fit lr_scheduler_type "
                f"{run_args.lr_scheduler_type}: {error}"
            ) from error

    def factor(step: int) -> float:
        if step < run_args.warmup_steps:
            return (step + 1) / run_args.warmup_steps
        return run_args.lr_gamma ** sum(step >= milestone for milestone in run_args.lr_milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# --------------------------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------------------------


def make_accelerator(run_args: RunArguments) -> Accelerator:
    """What knows the processes and their devices."""
    asked = [name for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM") if parse_flag_from_env(f"ACCELERATE_USE_{name}")]
    on_cpu = run_args.cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    if asked and (on_cpu or not torch.accelerator.is_available()):
        why = "cpu: true keeps the training off them" if on_cpu else "PyTorch finds none"
        raise ValueError(
            f"Accelerate's launcher or configuration asks for {asked[0]}, which needs GPUs, but {why}: "
            f"{'drop cpu, or ' if on_cpu else ''}launch without {asked[0]}."
        )
    return Accelerator(
        cpu=run_args.cpu,
        mixed_precision=run_args.mixed_precision,
        gradient_accumulation_steps=run_args.gradient_accumulation_steps,
        log_with=run_args.report_to or None,
        project_dir=run_args.output_dir,
        step_scheduler_with_optimizer=False,
    )


@contextmanager
def main_process_leads(accelerator: Accelerator) -> Iterator[None]:
    """
    The main process runs the block first, and the others after it. An error of the main process ends the others
    without a word, because they would meet the same one, or wait for it in vain.
    """
    if accelerator.is_main_process:
        try:
            yield
        except BaseException:
            broadcast_object_list([True])
            raise
        broadcast_object_list([False])
    else:
        if broadcast_object_list([None])[0]:
            sys.exit(1)
        yield


# --------------------------------------------------------------------------------------------------------------------
# Signals, logs and pictures
# --------------------------------------------------------------------------------------------------------------------


class Interruption:
    """Notes the first SIGTERM or SIGINT, so that training can stop after the step. A second one acts as usual."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: str | None = None

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._receive) for number in self.signals}
        return self

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


def ignore_signals(worker_id: int) -> None:
    """Keeps a data loader worker alive for the step that is being finished. [`end_workers`] ends it."""
    for number in Interruption.signals:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kills data loader workers that an error has left. Python would send a signal that they ignore, and wait."""
    workers = multiprocessing.active_children()
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for each
    for worker in workers:
        worker.kill()


class TrainingLog:
    """Metrics as lines of JSON in a file, in the trackers, and as a curve."""

    def __init__(self, accelerator: Accelerator, output_dir: Path, first_step: int):
        self.accelerator = accelerator
        self.file = output_dir / "training_log.jsonl"
        self.picture = output_dir / "loss_curve.png"
        self.lines = []
        if accelerator.is_main_process:
            if first_step and self.file.is_file():
                self.lines = self._read(first_step)
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            self.file.write_text(text, encoding="utf-8")

    def _read(self, last_step: int) -> list[dict[str, Any]]:
        """The lines up to a step. A killed run may have logged steps that are done again, or half a line."""
        lines = []
        for text in self.file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if line["step"] <= last_step:
                lines.append(line)
        return lines

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.accelerator.log(
            {key: value for key, value in values.items() if isinstance(value, (int, float))}, step=step
        )
        # JSON has no word for NaN and infinity.
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.lines.append({"step": step, **values})
        if self.accelerator.is_main_process:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")

    def draw(self) -> None:
        """The loss and, where there were evaluations, the mean IoU over the steps."""
        if not self.accelerator.is_main_process:
            return
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        for key, label, color in (("loss", "training loss", "tab:blue"), ("eval/mean_iou", "mean IoU", "tab:orange")):
            points = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
            if not points:
                continue
            if key != "loss":
                axis = axis.twinx()
                axis.set_ylim(0, 1)
            axis.plot(*zip(*points), color=color, marker="." if key != "loss" else None)
            axis.set_xlabel("step")
            axis.set_ylabel(label, color=color)
        figure.savefig(self.picture, dpi=120)


def draw_predictions(samples: list[dict[str, Any]], class_list: ClassList, path: Path) -> None:
    """Rows of image, ground truth and prediction."""
    if not samples:
        return
    black = (0, 0, 0)
    figure = Figure(figsize=(9, 3.2 * len(samples)), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples):
        panels = {
            "image": sample["image"],
            "ground truth": color_label_map(sample["reference"], class_list.palette, unlabelled=black),
            "prediction": color_label_map(sample["prediction"], class_list.palette, unlabelled=black),
        }
        for axis, (title, panel) in zip(row, panels.items()):
            axis.imshow(panel)
            axis.set_title(title)
            axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


# --------------------------------------------------------------------------------------------------------------------
# The trainer
# --------------------------------------------------------------------------------------------------------------------


class SegmentationTrainer:
    """Model, optimiser, data and the state of one training run."""

    def __init__(
        self, accelerator: Accelerator, model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments
    ):
        self.accelerator = accelerator
        self.model_args, self.data_args, self.run_args = model_args, data_args, run_args
        self.output_dir = Path(run_args.output_dir)
        with main_process_leads(accelerator):
            self.check_accumulation()
            self.micro_batch_size = micro_batch_size(accelerator, run_args)
            self.check_trackers()
            checkpoint = self.find_checkpoint() if accelerator.is_main_process else None
        checkpoint = broadcast_object_list([checkpoint])[0]
        if run_args.push_to_hub and accelerator.is_main_process:
            whoami()  # better now than after the training

        with main_process_leads(accelerator):
            self.train_set, self.eval_set, self.class_list = load_data(data_args, run_args)
        set_seed(run_args.seed)
        with main_process_leads(accelerator):
            model = load_model(model_args, data_args.crop_size, self.class_list, checkpoint is not None)
        # Dropout draws other numbers in each process.
        set_seed(run_args.seed, device_specific=True)
        self.config = model.config
        self.processor = UneptImageProcessor(
            **image_processor_options(model, model_args.model_name_or_path),
            size={"shortest_edge": min(data_args.scale), "longest_edge": max(data_args.scale)},
            ignore_index=self.class_list.ignore_index,
        )
        if run_args.gradient_checkpointing:
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        if accelerator.num_processes > 1 and not run_args.freeze_batch_norm:
            if accelerator.device.type == "cuda":
                # timm's own, which keeps the activations of its fused normalisations.
                model = timm.layers.convert_sync_batchnorm(model)
            else:
                logger.info("SyncBatchNorm needs GPUs: each process normalises with its own part of the batch.")
        if run_args.torch_compile:
            model.compile(backend=run_args.torch_compile_backend)
        with main_process_leads(accelerator):
            self.average = self.make_average(model)
            optimizer = make_optimizer(model, run_args)
            scheduler = make_scheduler(optimizer, run_args)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Which otherwise wants to see the data loader, and clips by itself.
            plugin_config = accelerator.state.deepspeed_plugin.deepspeed_config
            plugin_config["train_micro_batch_size_per_gpu"] = self.micro_batch_size
            plugin_config["gradient_clipping"] = run_args.max_grad_norm
        self.model, self.optimizer, self.scheduler = accelerator.prepare(model, optimizer, scheduler)
        # So that a checkpoint does not depend on the number of processes.
        accelerator.register_save_state_pre_hook(self.unwrap_saved)
        accelerator.register_load_state_pre_hook(self.unwrap_loaded)

        self.step = 0
        self.best_mean_iou = -1.0
        self.evaluated_step = -1
        self.metrics: dict[str, Any] = {}
        self.fingerprint = None
        if accelerator.is_main_process and isinstance(self.train_set, datasets.Dataset):
            self.fingerprint = data_fingerprint(self.train_set)
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self.log = TrainingLog(accelerator, self.output_dir, self.step)
        if run_args.report_to:
            simple = {
                key: value for key, value in self.options().items() if isinstance(value, (bool, int, float, str))
            }
            accelerator.init_trackers(run_args.run_name, config=simple)

    def options(self) -> dict[str, Any]:
        """All options by name."""
        return {**asdict(self.model_args), **asdict(self.data_args), **asdict(self.run_args)}

    def check_accumulation(self) -> None:
        steps = self.run_args.gradient_accumulation_steps
        if self.accelerator.gradient_accumulation_steps != steps:
            raise ValueError(
                f"gradient_accumulation_steps={steps}, but Accelerate's launcher or configuration says "
                f"{self.accelerator.gradient_accumulation_steps}: set both to the same."
            )

    def check_trackers(self) -> None:
        # Accelerate leaves out trackers that are not installed without a word.
        names = {str(getattr(tracker, "value", tracker)) for tracker in self.accelerator.log_with}
        missing = [name for name in self.run_args.report_to if name not in names]
        if missing:
            raise ValueError(f"report_to={missing}: not installed. Try: pip install {' '.join(missing)}")

    def make_average(self, model: UneptForSemanticSegmentation) -> AveragedModel | None:
        """The moving average of the weights, if it is asked for."""
        if not self.run_args.ema_decay:
            return None
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("ema_decay needs whole weights in each process: use DDP, or set ema_decay=0.")
        average = AveragedModel(
            model.to(self.accelerator.device),
            multi_avg_fn=get_ema_multi_avg_fn(self.run_args.ema_decay),
            use_buffers=True,
        )
        return average.requires_grad_(False).eval()

    # ---- checkpoints ----

    def find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from; `None` to start anew."""
        for name in ("model", "best_model"):
            remove_leftovers(self.output_dir / name)
        wanted, newest = self.run_args.resume_from_checkpoint, latest_checkpoint(self.output_dir)
        found = None
        if wanted == "latest":
            found = newest
            if newest is None:
                logger.info(f"There is no checkpoint in {self.output_dir} yet: training starts anew.")
        elif wanted is not None:
            found = self.named_checkpoint(wanted)
            if newest is not None and found.resolve().parent != self.output_dir.resolve():
                raise ValueError(
                    f"{self.output_dir} has checkpoints of its own ({newest.name}), and {found} is none of them: name "
                    "another output_dir."
                )
            if newest is not None and newest.resolve() != found.resolve():
                raise ValueError(
                    f"{self.output_dir} has a newer checkpoint than the one to resume from, {newest.name}: remove it, "
                    "or name another output_dir."
                )
        elif newest is not None:
            raise ValueError(
                f"{self.output_dir} has checkpoints ({newest.name}): go on with --resume_from_checkpoint latest, or "
                "name another output_dir."
            )
        elif any((self.output_dir / name).exists() for name in ("model", "best_model")):
            raise ValueError(f"{self.output_dir} has the model of an earlier training: name another output_dir.")
        if found is not None:
            read_checkpoint(found)
        return found

    def named_checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint, named by its path or, in `output_dir`, without it."""
        for path in (Path(name), self.output_dir / name):
            if path.is_dir():
                return path
        known = [path.name for path in list_checkpoints(self.output_dir)]
        choices = f"latest, {', '.join(known)} in {self.output_dir}" if known else f"none is in {self.output_dir} yet"
        raise FileNotFoundError(
            f"resume_from_checkpoint={name} is not a checkpoint, for there is no such folder: give the path of a "
            f"folder checkpoint-<step> ({choices})."
        )

    def unwrap_saved(self, models: list, weights: list, output_dir: str) -> None:
        weights[:] = [self.accelerator.unwrap_model(model).state_dict() for model in models[: len(weights)]]

    def unwrap_loaded(self, models: list, input_dir: str) -> None:
        models[:] = [self.accelerator.unwrap_model(model) for model in models]

    def save_checkpoint(self) -> None:
        """Everything that is needed to go on as if nothing had happened."""
        accelerator = self.accelerator
        if (self.output_dir / f"checkpoint-{self.step}").is_dir():
            return
        folder = [start_checkpoint(self.output_dir, self.step) if accelerator.is_main_process else None]
        folder = broadcast_object_list(folder)[0]
        try:
            self.write_checkpoint(folder)
        except Exception:
            # Half a checkpoint must not take the space that is missing.
            if accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        accelerator.wait_for_everyone()
        logger.info(f"Saved {self.output_dir / f'checkpoint-{self.step}'}")

    def write_checkpoint(self, folder: Path) -> None:
        accelerator = self.accelerator
        accelerator.save_state(folder)
        if accelerator.is_main_process:
            if self.average is not None:
                save_file(self.average.module.state_dict(), folder / "average.safetensors")
            content = {
                "step": self.step,
                "best_mean_iou": self.best_mean_iou,
                "evaluated_step": self.evaluated_step,
                "metrics": self.metrics,
                "num_processes": accelerator.num_processes,
                "num_examples": len(self.train_set) if isinstance(self.train_set, datasets.Dataset) else None,
                "data_fingerprint": self.fingerprint,
                "id2label": self.config.id2label,
                "options": self.options(),
                "versions": {
                    "unept_hf": __version__,
                    "torch": torch.__version__,
                    "accelerate": accelerate.__version__,
                },
            }
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            commit_checkpoint(folder, content, self.run_args.save_total_limit or None)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint, after a look at whether this is the same training."""
        content = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        with main_process_leads(self.accelerator):
            self.check_resumed(checkpoint, content)
        with plain_tensors(str(checkpoint)):
            self.accelerator.load_state(checkpoint)
        if content["num_processes"] == self.accelerator.num_processes:
            self.check_random_states(checkpoint)
        self.set_learning_rates()
        self.accelerator.step = 0  # counts accumulated pieces, of which there may be another number now
        if self.average is not None:
            self.average.module.load_state_dict(load_file(checkpoint / "average.safetensors"))
            self.average.n_averaged.fill_(content["step"])
        self.step = content["step"]
        self.best_mean_iou = content["best_mean_iou"]
        self.evaluated_step = content["evaluated_step"]
        self.metrics = content["metrics"]
        # The model card says what the training started from, which a run that goes on need not be told again.
        for name in ("use_pretrained_backbone", "backbone_checkpoint", "model_name_or_path"):
            setattr(self.model_args, name, content["options"].get(name))
        logger.info(f"Resumed from {checkpoint}")

    def check_random_states(self, checkpoint: Path) -> None:
        """Warns of random states that were not restored, which Accelerate passes over."""
        device = self.accelerator.device
        try:
            file = checkpoint / f"random_states_{self.accelerator.process_index}.pkl"
            with plain_tensors(str(file)):
                saved = load(file)
            pairs = [(torch.get_rng_state(), saved["torch_manual_seed"])]
            pairs += zip(np.random.get_state()[1:], saved["numpy_random_seed"][1:])
            pairs += zip(random.getstate(), saved["random_state"])
            if device.type != "cpu":
                states = torch.get_device_module(device).get_rng_state_all()
                pairs += zip(states, saved[f"torch_{device.type}_manual_seed"], strict=True)
            problem = None if all(np.array_equal(*pair) for pair in pairs) else "they are of another kind"
        except Exception as error:  # whatever a file that is not what it was can bring about
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            logger.warning(
                f"Process {self.accelerator.process_index} cannot restore the random states of {checkpoint} "
                f"({problem}): dropout draws other numbers than without the stop.",
                main_process_only=False,
            )

    def set_learning_rates(self) -> None:
        """Those of this step in the schedule as it is now, whose end may be another one than when it was saved."""
        scheduler = getattr(self.scheduler, "scheduler", None)
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            return
        rates = [rate * factor(scheduler.last_epoch) for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates):
            group["lr"] = rate
        scheduler._last_lr = rates

    def check_resumed(self, checkpoint: Path, content: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: when the checkpoint is that of another training.
        """
        before = content["options"]
        # What became of the options in JSON.
        now = json.loads(json.dumps(self.options()))
        # Options that are younger than the checkpoint have no value to compare with.
        changed = {
            name: f"{name} was {before[name]}, now {value}"
            for name, value in now.items()
            if name in before and before[name] != value
        }
        strict = [text for name, text in changed.items() if name not in FREE_OPTIONS | NOTED_OPTIONS]
        if isinstance(self.train_set, datasets.Dataset) and content["num_examples"] != len(self.train_set):
            strict.append(f"the training set had {content['num_examples']} examples, now {len(self.train_set)}")
        if content["id2label"] != json.loads(json.dumps(self.config.id2label)):
            strict.append("the classes are other ones")
        if strict:
            raise ValueError(
                f"{checkpoint} is that of another training: {'; '.join(strict)}. Set them back, or start a new "
                "training in another output_dir."
            )
        for name in sorted(NOTED_OPTIONS & changed.keys()):
            logger.warning(f"Since {checkpoint}, {changed[name]}.")
        # A warning, because training stops at a broken file, and goes on when it is mended.
        known = content.get("data_fingerprint") or {}  # which older checkpoints do not have
        other = [part for part, value in (self.fingerprint or {}).items() if known.get(part, value) != value]
        if other:
            logger.warning(
                f"Since {checkpoint}, the data was replaced: its files have other {' and '.join(other)}. If that is "
                "not meant, bring the old data back, or start a new training in another output_dir."
            )
        if content["num_processes"] != self.accelerator.num_processes:
            logger.warning(
                f"{checkpoint} is from {content['num_processes']} process(es), now there are "
                f"{self.accelerator.num_processes}: the order of the data is the same, dropout is not."
            )

    # ---- steps ----

    def set_to_training(self) -> None:
        self.model.train()
        if self.run_args.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def train_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> tuple[float, float]:
        """
        One step of the optimiser. Returns the loss and the norm of the gradient.

        Raises:
            FloatingPointError: when one of them is not finite. The weights are still those of the step before.
        """
        accelerator, run_args = self.accelerator, self.run_args
        total_loss = torch.zeros((), device=accelerator.device)
        for _ in range(run_args.gradient_accumulation_steps):
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(batches).items()}
            with accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                accelerator.backward(loss)
                total_loss += loss.detach().float() / run_args.gradient_accumulation_steps
        loss = reduce(total_loss, reduction="mean").item()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), run_args.max_grad_norm or math.inf)
        norm = float("nan") if norm is None else float(norm)
        # A scaler skips such a step by itself, and DeepSpeed does not say.
        is_measured = accelerator.scaler is None and accelerator.distributed_type != DistributedType.DEEPSPEED
        if not math.isfinite(loss) or (is_measured and not math.isfinite(norm)):
            newest = latest_checkpoint(self.output_dir)
            raise FloatingPointError(
                f"At step {self.step + 1} the loss is {loss} and the norm of the gradient {norm}. Training stops; "
                f"{f'the last checkpoint is {newest}' if newest else 'there is no checkpoint yet'}. Try a lower "
                "learning_rate, warmup_steps, a max_grad_norm, or bf16 in place of fp16."
            )
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model))
        return loss, norm

    def is_interrupted(self, interruption: Interruption) -> bool:
        """Whether any process has received a signal."""
        flag = torch.tensor(float(interruption.received is not None), device=self.accelerator.device)
        return reduce(flag, reduction="sum").item() > 0

    def is_due(self, interval: int) -> bool:
        return self.step == self.run_args.max_steps or (interval > 0 and self.step % interval == 0)

    def train(self) -> bool:
        """Trains to the end, or until a signal comes. Returns whether it got to the end."""
        accelerator, run_args = self.accelerator, self.run_args
        augmentation = TrainingAugmentation.from_config(
            self.config,
            self.processor,
            crop_size=self.data_args.crop_size,
            scale=tuple(self.data_args.scale),
            ratio_range=tuple(self.data_args.ratio_range),
            cat_max_ratio=self.data_args.cat_max_ratio,
            flip_probability=self.data_args.flip_probability,
            photometric_distortion=self.data_args.photometric_distortion,
        )
        loader = make_loader(
            self.train_set, self.class_list, augmentation, accelerator, self.step, self.data_args, run_args
        )
        progress = tqdm(
            total=run_args.max_steps,
            initial=self.step,
            desc="Training",
            disable=run_args.disable_tqdm or not accelerator.is_local_main_process,
        )
        batches = iter(loader)
        with Interruption() as interruption, progress:
            if self.step and self.is_due(run_args.eval_steps):
                self.evaluate()
            losses, started = [], time.perf_counter()
            self.set_to_training()
            while self.step < run_args.max_steps:
                loss, norm = self.train_step(batches)
                losses.append(loss)
                progress.update()
                progress.set_postfix(loss=f"{loss:.3f}")
                if self.step % run_args.logging_steps == 0 or self.step == run_args.max_steps:
                    seconds = time.perf_counter() - started
                    self.log_losses(losses, norm, len(losses) * run_args.train_batch_size / seconds)
                    losses, started = [], time.perf_counter()
                if self.is_interrupted(interruption):
                    self.save_checkpoint()
                    logger.info(
                        f"Stopped by {interruption.received or 'a signal'} after step {self.step}. Go on with "
                        "--resume_from_checkpoint latest."
                    )
                    return False
                paused = time.perf_counter()
                if self.is_due(run_args.eval_steps):
                    try:
                        self.evaluate()
                    except Exception:
                        # A broken image in the evaluation set may not cost what was learned. Several processes could
                        # not agree on saving here.
                        if accelerator.num_processes == 1:
                            self.save_checkpoint()
                        raise
                    self.set_to_training()
                if self.is_due(run_args.save_steps):
                    self.save_checkpoint()
                started += time.perf_counter() - paused
        return True

    def log_losses(self, losses: list[float], norm: float, samples_per_second: float) -> None:
        values = {
            "loss": sum(losses) / len(losses),
            "gradient_norm": norm,
            "learning_rate": self.learning_rate,
            "samples_per_second": samples_per_second,
        }
        memory = ""
        if self.accelerator.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 1e9
            memory = f", {values['peak_memory_gb']:.1f} GB"
        self.log.write(self.step, values)
        logger.info(
            f"step {self.step}: loss {values['loss']:.4f}, learning rate {values['learning_rate']:.2e}, "
            f"{samples_per_second:.1f} samples/s{memory}"
        )

    # ---- evaluation and results ----

    def evaluated_model(self) -> UneptForSemanticSegmentation:
        """The averaged weights where there are any, else those of the last step."""
        return self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)

    def evaluate(self) -> None:
        """Measures, draws and logs, once for each step, and keeps the best model."""
        if self.eval_set is None or self.evaluated_step == self.step:
            return
        accelerator, run_args = self.accelerator, self.run_args
        model = self.evaluated_model().eval()
        if accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            # Running statistics of batch norms differ until the next step.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
        # Images of all sizes would be compiled again and again; and training may not depend on evaluations.
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=[]):
            metrics = evaluate_model(
                model,
                self.processor,
                self.eval_set,
                self.class_list,
                mode=run_args.evaluation_mode,
                crop_size=self.data_args.crop_size,
                stride=self.data_args.crop_size // 3,
                accelerator=accelerator,
                boundary_f1=False,
                progress=not run_args.disable_tqdm,
                max_images=run_args.max_eval_images,
                num_samples=run_args.num_prediction_images,
            )
        if accelerator.is_main_process:
            draw_predictions(metrics.get("samples", []), self.class_list, self.picture(self.step))
        self.metrics = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.evaluated_step = self.step
        self.log.write(self.step, {f"eval/{name}": value for name, value in self.metrics.items()})
        self.log.draw()
        logger.info(
            f"step {self.step}: mean IoU {self.metrics['mean_iou']:.4f}, pixel accuracy "
            f"{self.metrics['overall_accuracy']:.4f}, in {self.metrics['seconds']:.1f} s"
        )
        if self.metrics["mean_iou"] > self.best_mean_iou:
            self.best_mean_iou = self.metrics["mean_iou"]
            self.export_model(self.output_dir / "best_model")

    def picture(self, step: int) -> Path:
        return self.output_dir / "predictions" / f"step_{step}.png"

    def export_model(self, directory: Path) -> None:
        """A folder that loads anywhere, with a model card."""
        state_dict = None
        if self.average is None:
            # Gathers the weights that FSDP and DeepSpeed have spread.
            state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            export(
                self.evaluated_model(),
                self.processor,
                directory,
                overwrite=True,
                state_dict=state_dict,
                model_card=self.model_card(),
            )
            if self.has_published_picture():
                shutil.copyfile(self.picture(self.evaluated_step), directory / PREDICTIONS_IMAGE)
        self.accelerator.wait_for_everyone()

    def has_published_picture(self) -> bool:
        """Whether the folder of the model gets a picture, which shows images of the data set."""
        return self.run_args.hub_prediction_pictures and self.picture(self.evaluated_step).is_file()

    def model_card(self) -> str:
        """The model card with what is known about this training."""
        model_args, data_args, run_args = self.model_args, self.data_args, self.run_args
        if model_args.model_name_or_path:
            trained = model_args.model_name_or_path
            started_from = "a trained model" if is_private(trained) else f"the trained model `{trained}`"
        elif model_args.backbone_checkpoint:
            started_from = "a checkpoint file"
        elif model_args.use_pretrained_backbone:
            started_from = "timm's pretrained weights"
        else:
            started_from = "random weights"
        # Those of the upload are no part of the training.
        options = {
            name: value
            for name, value in self.options().items()
            if not name.startswith("hub_") and name not in ("push_to_hub", "license")
        }
        evaluation = None
        if self.metrics:
            held_out = f"a held-out share of {data_args.train_split}"
            evaluation = {
                **self.metrics,
                "dataset": data_args.dataset_name,
                "split": held_out if data_args.eval_fraction else data_args.eval_split,
                "settings": {"mode": run_args.evaluation_mode},
            }
        return default_model_card(
            self.repository_name(),
            self.config.num_labels,
            license=run_args.license,
            backbone=describe_backbone(self.config, started_from),
            dataset=data_args.dataset_name,
            training=f"Trained for {self.step} steps of {run_args.train_batch_size} crops ({data_args.crop_size} x "
            f"{data_args.crop_size}) on the split `{data_args.train_split}` of "
            f"{dataset_title(data_args.dataset_name)}, with seed {run_args.seed}, by "
            f"`examples/run_semantic_segmentation.py` of unept-hf {__version__} (torch {torch.__version__}, "
            f"transformers {transformers.__version__}).",
            training_options=options,
            evaluation=evaluation,
            picture=PREDICTIONS_IMAGE if self.has_published_picture() else None,
        )

    def repository_name(self) -> str:
        return self.run_args.hub_model_id or self.output_dir.resolve().name

    def finish(self) -> None:
        """Writes the final model, and uploads it if that is asked for."""
        final = self.output_dir / "model"
        has_best = self.best_mean_iou >= 0
        if self.run_args.load_best_model_at_end and not has_best:
            logger.warning("No evaluation gave a mean IoU, so the final model is the last one, not the best.")
        if self.run_args.load_best_model_at_end and has_best:
            if self.accelerator.is_main_process:
                with atomic_directory(final, overwrite=True) as folder:
                    shutil.copytree(self.output_dir / "best_model", folder, dirs_exist_ok=True)
                    # What may be published is for this run to say, though an earlier one may have written the model.
                    card = folder / "README.md"
                    text = with_metadata(card.read_text(encoding="utf-8"), license=self.run_args.license)
                    if not self.run_args.hub_prediction_pictures:
                        (folder / PREDICTIONS_IMAGE).unlink(missing_ok=True)
                        text = text.replace(picture_line(PREDICTIONS_IMAGE), "")
                    card.write_text(text, encoding="utf-8")
        else:
            self.export_model(final)
        self.log.draw()
        logger.info(f"The model is in {final}")
        if self.run_args.push_to_hub and self.accelerator.is_main_process:
            repository = create_repo(
                self.repository_name(), private=self.run_args.hub_private_repo, exist_ok=True
            ).repo_id
            upload_folder(repo_id=repository, folder_path=final, commit_message=f"Step {self.step}")
            logger.info(f"Uploaded to https://huggingface.co/{repository}")


# What comes of options, files, disks and data, and not of a mistake in the code.
USER_ERRORS = (
    ValueError, OSError, ImportError, FloatingPointError, SafetensorError, StrictDataclassError, torch.OutOfMemoryError
)  # fmt: skip


def is_full_disk(error: Exception) -> bool:
    """Whether there was no room to write. PyTorch and safetensors say so in their own words."""
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return is_full or "inline_container.cc" in str(error) or "(os error 28)" in str(error)


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Trains, and returns the metrics of the last evaluation of this process."""
    arguments = parse_arguments(args)
    run_args = arguments[-1]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if run_args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    multiprocessing.util.Finalize(None, end_workers, exitpriority=0)  # before Python waits for them
    accelerator = make_accelerator(run_args)
    output_dir = Path(run_args.output_dir)
    with ExitStack() as stack:
        with main_process_leads(accelerator):
            if accelerator.is_main_process:
                if output_dir.is_file():
                    raise NotADirectoryError(f"output_dir {output_dir} is a file: name a folder.")
                output_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_folder(output_dir))
        trainer = SegmentationTrainer(accelerator, *arguments)
        try:
            if trainer.train():
                trainer.finish()
        except Exception as error:
            if not is_full_disk(error):
                raise
            newest, free = latest_checkpoint(output_dir), shutil.disk_usage(output_dir).free
            raise OSError(
                f"No space left on the disk ({error}). Without what was unfinished, {free / 1e6:.1f} MB are free in "
                f"{output_dir}. {f'The last whole checkpoint is {newest}' if newest else 'There is no checkpoint yet'}"
                ". Make room, and go on with --resume_from_checkpoint latest."
            ) from error
        accelerator.end_training()
    return trainer.metrics


def message_of(error: Exception) -> str:
    """What a user should read of an error, in one line."""
    # From a data loader worker it brings the worker's traceback, whose last line names the error.
    message = re.split(rf"\n(?:\S+\.)?{type(error).__name__}: ", str(error))[-1]
    return " ".join(message.split()) or type(error).__name__


def command() -> int:
    """
    `main` for a shell, with the exit status: a user's errors are one line there, unless --traceback is among the
    options. All other errors are raised.
    """
    try:
        main()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # So a process on a CPU says that another one has ended, which has told why.
        is_alone = "gloo/transport" in str(error)
        if "--traceback" in sys.argv or not (isinstance(error, USER_ERRORS) or is_alone):
            raise
        is_connected = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Until they know each other, the processes of a machine do the same; and a loss is that of all of them.
        is_common = not is_connected or isinstance(error, FloatingPointError)
        if not is_common or int(os.environ.get("LOCAL_RANK", 0)) <= 0:
            process = f" (process {torch.distributed.get_rank()})" if is_connected else ""
            print(f"{Path(sys.argv[0]).name}: error{process}: {message_of(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(command())
