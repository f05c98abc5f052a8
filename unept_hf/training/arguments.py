# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of a training, from a YAML or JSON file, from the command line, or from both."""

import argparse
import json
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..arguments import merge_options, option, read_options, words_of_options
from ..data.arguments import DatasetArguments
from ..data.folder_layouts import split_parts, split_spellings
from ..model.configuration_unept import CONVENTIONS, PRESETS
from .automatic_options import automatic_options


__all__ = [
    "FREE_OPTIONS",
    "NOTED_OPTIONS",
    "RunArguments",
    "TrainingDataArguments",
    "TrainingModelArguments",
    "common_splits",
    "parse_arguments",
    "refuse",
]

_USAGE = "%(prog)s [OPTIONS.yaml] [--option value ...]"


def refuse(*faults: str | bool) -> None:
    """Raises one `ValueError` for all faults: a message for each, or `False` where there is no fault."""
    messages = [fault for fault in faults if isinstance(fault, str)]
    if messages:
        raise ValueError(" ".join(messages))


def _json_object(name: str, value: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        refuse(f"{name} is not JSON ({error}): {value}")
    refuse(not isinstance(value, dict | None) and f"{name} must be a JSON object, got {value!r}.")
    return value


def _expand_paths(arguments: Any, *names: str) -> None:
    """Replaces "~" by the home folder. A shell does this too, but not after "=" or in a file."""
    for name in names:
        if (path := getattr(arguments, name)) is not None:
            setattr(arguments, name, os.path.expanduser(path))


@dataclass
class TrainingModelArguments:
    """Which model to train."""

    preset: str = option("unept-resnet50", f"A new model: {', '.join(PRESETS)}.")
    conventions: str | None = option(
        None,
        "corrected, or original: what the code of 2021 does in training, in the loss, its targets and the decoder. "
        "It sets several fields of UneptConfig; config_overrides win over it. By default corrected for a new model, "
        "and for a trained model those that it has.",
    )
    backbone: str | None = option(
        None, "A feature extractor of timm in place of the preset's, such as convnext_small.fb_in22k."
    )
    config_overrides: dict[str, Any] | str | None = option(
        None,
        "Fields of UneptConfig that replace those of the preset or of the trained model, as JSON: "
        '{"num_feature_levels": 1}. They are merged into those of a file.',
    )
    use_pretrained_backbone: bool = option(
        False, "Start the backbone of a new model from timm's weights; needs the network."
    )
    backbone_checkpoint: str | None = option(
        None, "Start the backbone from this file or folder; conversion/convert_backbone_to_hf.py makes some."
    )
    model_name_or_path: str | None = option(
        None, "Fine-tune this trained model instead of a preset; new classes are fine."
    )

    def __post_init__(self):
        self.config_overrides = _json_object("config_overrides", self.config_overrides)
        _expand_paths(self, "backbone_checkpoint", "model_name_or_path")
        if self.model_name_or_path is not None and os.path.exists(self.model_name_or_path):
            # A run that resumes in another folder must not take it for a name on the Hub, and publish it.
            self.model_name_or_path = os.path.abspath(self.model_name_or_path)
        backbones = bool(self.use_pretrained_backbone) + bool(self.backbone_checkpoint)
        refuse(
            self.conventions not in (None, *CONVENTIONS)
            and f"conventions must be {' or '.join(CONVENTIONS)}, got {self.conventions!r}.",
            backbones > 1 and "use_pretrained_backbone and backbone_checkpoint exclude each other: choose one.",
            bool((backbones or self.backbone) and self.model_name_or_path)
            and "model_name_or_path brings its own backbone weights: drop the options of the backbone.",
            bool(self.backbone and "backbone" in ((self.config_overrides or {}).get("backbone_config") or {}))
            and f"backbone={self.backbone} and the backbone_config of config_overrides both name a backbone: choose "
            "one.",
        )


@dataclass(kw_only=True)
class TrainingDataArguments(DatasetArguments):
    """What to train on, and how to augment it. See load_segmentation_dataset and TrainingAugmentation."""

    num_synthetic_scenes: int = option(2000, "For synthetic: number of training scenes.")
    num_synthetic_eval_scenes: int = option(200, "For synthetic: number of held-out scenes.")
    train_split: str = option("train", "Split to train on, or several, joined by +: train+validation.")
    eval_split: str | None = option(
        None,
        "Split to evaluate on; validation by default, or none where train_split has it already.",
        aliases=["--split"],
    )
    eval_fraction: float = option(0.0, "Evaluate on this share of the training split, and do not train on it.")
    shuffle_buffer_size: int = option(1000, "With streaming: number of examples among which the next one is drawn.")
    crop_size: int = option(480, "Height and width of the training crops in pixels.")
    scale: list[int] = option(
        [2048, 512], "Images are resized to fit within: longer side, shorter side. Evaluation does the same."
    )
    ratio_range: list[float] = option([0.5, 2.0], "Training multiplies the scale by a random number of this range.")
    cat_max_ratio: float = option(0.75, "Largest share of a crop for one class.")
    flip_probability: float = option(0.5, "Probability of a horizontal flip.")
    photometric_distortion: bool = option(True, "Vary brightness, contrast and colors.")
    photometric_strength: float = option(1.0, "How strongly, as a factor on the ranges of the paper.")
    rotation_degrees: float = option(0.0, "Rotate by up to this angle in both directions, before the crop.")
    blur_probability: float = option(0.0, "Probability of a Gaussian blur, with a sigma of 0.1 to 2 pixels.")
    class_weighting: str = option(
        "none",
        "Weights of the classes in the loss, from their pixels in the training set.",
        choices=["none", "median_frequency", "inverse_log"],
    )
    class_balanced_sampling: float = option(
        0.0,
        "Show images of rare classes more often: the share of the images below which a class counts as rare "
        "(repeat-factor sampling); 0: show all images equally often.",
    )
    dataloader_num_workers: int = option(2, "Processes that prepare crops, for each GPU.")

    def __post_init__(self):
        _expand_paths(self, "dataset_name", "data_dir", "image_dir", "label_dir", "class_list")
        if self.eval_split is None and not common_splits(self.train_split, "validation"):
            self.eval_split = "validation"
        pairs = {"scale": self.scale, "ratio_range": self.ratio_range}
        refuse(
            not 0 <= self.eval_fraction < 1 and f"eval_fraction must lie in [0, 1), got {self.eval_fraction}.",
            bool(self.eval_fraction and self.streaming)
            and "eval_fraction cannot split a stream: set eval_split to another split.",
            not 0 <= self.class_balanced_sampling <= 1
            and f"class_balanced_sampling must lie in [0, 1], got {self.class_balanced_sampling}.",
            bool(self.class_balanced_sampling and self.streaming)
            and "class_balanced_sampling must read all masks first, which a stream cannot: do without one of them.",
            self.class_weighting not in ("none", "median_frequency", "inverse_log")
            and f"class_weighting must be none, median_frequency or inverse_log, got {self.class_weighting!r}.",
            self.class_weighting != "none"
            and self.streaming
            and "class_weighting must read all masks first, which a stream cannot: do without one of them.",
            self.crop_size < 1
            and f"crop_size must be a multiple of the model's stride such as 480, got {self.crop_size}.",
            *(
                f"{name} must be two positive numbers, got {pair}."
                for name, pair in pairs.items()
                if len(pair) != 2 or not all(0 < value < math.inf for value in pair)
            ),
        )


def common_splits(first: str, second: str) -> list[str]:
    """The parts of the second split that have images of the first one too. Two slices of one split count as apart."""
    return [
        part
        for part in split_parts(second)
        for other in split_parts(first)
        if part.partition("[")[0] in split_spellings(other.partition("[")[0])
        and ("[" not in part or "[" not in other or part.partition("[")[2] == other.partition("[")[2])
    ]


@dataclass
class OutputArguments:
    """What a training writes, measures and uploads, and where it runs: none of it changes the training."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, logs, pictures and models."})
    cpu: bool = option(False, "Stay on the CPU where there is a GPU.")
    logging_steps: int = option(50, "Steps between two lines of the log.")
    eval_steps: int = option(10_000, "Steps between two evaluations; 0: only at the end.")
    save_steps: int = option(2_000, "Steps between two checkpoints; 0: only at the end.")
    save_total_limit: int = option(2, "Number of checkpoints to keep; 0: all.")
    evaluate: bool = option(True, "Whether to evaluate at all.")
    evaluation_mode: str = option("whole", "whole images, or slide: windows of crop_size, a third of it apart.")
    max_eval_images: int | None = option(None, "Number of images to evaluate on; all by default.")
    num_prediction_images: int = option(3, "Rows of the picture at each evaluation.")
    load_best_model_at_end: bool = option(
        False, "Make the model with the highest mean IoU the final one, not the last one."
    )
    resume_from_checkpoint: str | None = option(
        None, "Folder of a checkpoint, or latest: the newest in output_dir, if any."
    )
    report_to: list[str] = option([], "Trackers: tensorboard, trackio, wandb.")
    run_name: str = option("unept", "Name of the project in the trackers.")
    dry_run: bool = option(False, "Load data and model, draw the crops of the first step, and stop.")
    lr_range_test: bool = option(False, "Train 100 steps at rising learning rates, draw the loss, and stop.")
    disable_tqdm: bool = option(False, "Show no progress bars.")
    push_to_hub: bool = option(False, "Upload the final model.")
    hub_model_id: str | None = option(None, "Repository to upload to; the name of output_dir by default.")
    hub_private_repo: bool = option(False, "Whether a new repository is private.")
    hub_prediction_pictures: bool = option(
        False,
        "Put a picture of evaluation images, ground truth and predictions into the folders of models, and "
        "so onto the Hub. It shows your data.",
    )
    license: str | None = option(None, "License of the weights for the model card, as the Hub spells it: cc-by-4.0.")


@dataclass
class RunArguments(OutputArguments):
    """How to train."""

    max_steps: int = option(160_000, "Number of optimizer steps.")
    early_stopping_patience: int | None = option(
        None, "End the training after this many evaluations without a higher mean IoU."
    )
    train_batch_size: int = option(16, "Crops in one step, over all processes and accumulated pieces together.")
    gradient_accumulation_steps: int = option(1, "Number of pieces in which a process computes its part of a step.")
    learning_rate: float = option(1e-4, "Highest learning rate of AdamW.")
    backbone_lr_multiplier: float = option(0.1, "Factor on the learning rate of the backbone.")
    layer_decay: float = option(
        1.0, "Factor on the learning rate from each layer of the backbone to the layer below, such as 0.8."
    )
    weight_decay: float = option(1e-4, "Weight decay of AdamW.")
    lr_scheduler_type: str = option("step", "step, or a schedule of transformers: polynomial, cosine, linear, ...")
    lr_milestones: list[int] = option(
        [126_000], "For step: after these steps the learning rate is multiplied by lr_gamma."
    )
    lr_gamma: float = option(0.1, "For step: see lr_milestones.")
    lr_scheduler_kwargs: dict[str, Any] | str | None = option(
        None, 'Options of the other schedules, as JSON: {"power": 0.9}.'
    )
    warmup_steps: int = option(0, "Steps in which the learning rate rises from 0.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 for no limit.")
    mixed_precision: str | None = option(None, "no, fp16 or bf16; the setting of accelerate launch by default.")
    gradient_checkpointing: bool = option(False, "Save memory, for a third more time.")
    torch_compile: bool = option(False, "Compile the model for training.")
    torch_compile_backend: str = option("inductor", "Backend of torch.compile.")
    freeze_batch_norm: bool = option(False, "Normalize with the running statistics, and do not update them.")
    ema_decay: float = option(0.0, "Decay of a moving average of the weights, such as 0.999; 0 for no average.")
    seed: int = option(0, "Seed of weights, order, augmentation and dropout.")

    def __post_init__(self):
        _expand_paths(self, "output_dir", "resume_from_checkpoint")
        self.lr_scheduler_kwargs = _json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        least = dict.fromkeys(("max_steps", "train_batch_size", "gradient_accumulation_steps", "logging_steps"), 1)
        least |= dict.fromkeys(("warmup_steps", "eval_steps", "save_steps", "save_total_limit", "seed"), 0)
        least |= {
            name: 1 for name in ("max_eval_images", "early_stopping_patience") if getattr(self, name) is not None
        }
        numbers = ("learning_rate", "backbone_lr_multiplier", "weight_decay", "lr_gamma", "max_grad_norm")
        usual = type(self).__dataclass_fields__
        refuse(
            self.mixed_precision not in (None, "no", "fp16", "bf16")
            and f"mixed_precision must be no, fp16 or bf16, got {self.mixed_precision!r}.",
            self.torch_compile
            and self.torch_compile_backend not in (known := torch.compiler.list_backends(exclude_tags=()))
            and f"torch_compile_backend {self.torch_compile_backend!r} is not one of {', '.join(known)}.",
            self.evaluation_mode not in ("whole", "slide")
            and f"evaluation_mode must be whole or slide, got {self.evaluation_mode!r}.",
            self.lr_scheduler_type == "reduce_lr_on_plateau"
            and "lr_scheduler_type reduce_lr_on_plateau is not for training by steps: choose another one.",
            not 0 <= self.ema_decay < 1 and f"ema_decay must lie in [0, 1), got {self.ema_decay}.",
            not 0 < self.layer_decay <= 1 and f"layer_decay must lie in (0, 1], got {self.layer_decay}.",
            *(
                f"{name} must be at least {limit}, got {getattr(self, name)}."
                for name, limit in least.items()
                if getattr(self, name) < limit
            ),
            *(
                f"{name} must be a finite number from 0 on, such as {usual[name].default}, got {getattr(self, name)}."
                for name in numbers
                if not 0 <= getattr(self, name) < math.inf
            ),
            self.load_best_model_at_end and not self.evaluate and "load_best_model_at_end needs evaluate.",
            self.early_stopping_patience is not None
            and not (self.evaluate and self.eval_steps)
            and "early_stopping_patience needs evaluate and eval_steps above 0.",
        )


# Options that may differ between a checkpoint and the run that resumes from it: they do not change the training ...
FREE_OPTIONS = {one.name for one in fields(OutputArguments)} | {
    "backbone_checkpoint", "class_list", "dataloader_num_workers", "eval_split", "model_name_or_path",
    "num_synthetic_eval_scenes", "use_pretrained_backbone",
}  # fmt: skip
# ... or they change it in a way that can be intended.
NOTED_OPTIONS = {
    "data_dir", "image_dir", "label_dir", "label_suffix", "max_steps", "early_stopping_patience", "mixed_precision",
    "gradient_checkpointing", "torch_compile", "torch_compile_backend", "gradient_accumulation_steps",
}  # fmt: skip


def _words_of_both(options: dict[str, Any], args: list[str]) -> list[str]:
    """The options of a file as words, without those that `args` replace, and `args`; `config_overrides` are merged."""
    dataclass_type: Any = TrainingModelArguments
    parser = HfArgumentParser(dataclass_type, usage=_USAGE, add_help=False)
    unset = argparse.Namespace(**dict.fromkeys(TrainingModelArguments.__dataclass_fields__))
    given, _ = parser.parse_known_args(args, unset)
    sources = {"use_pretrained_backbone", "backbone_checkpoint", "model_name_or_path"}
    replaced = {"model_name_or_path"} if given.preset or given.backbone else set()
    if any(getattr(given, name) for name in sources):
        replaced = {name for name in sources if not getattr(given, name)}
    if (given.preset or given.model_name_or_path) and not given.backbone:
        replaced.add("backbone")
    if given.backbone:
        overrides = _json_object("config_overrides", options.get("config_overrides")) or {}
        rest = {name: value for name, value in overrides.items() if name != "backbone_config"}
        options = {**options, "config_overrides": rest or None}
    # Of two equal options the last one counts.
    words = words_of_options({name: value for name, value in options.items() if name not in replaced}) + args
    if given.config_overrides is not None and options.get("config_overrides") is not None:
        both = (
            _json_object("config_overrides", one) or {}
            for one in (options["config_overrides"], given.config_overrides)
        )
        words += words_of_options({"config_overrides": merge_options(*both)})
    return words


def _automatic_file(args: list[str]) -> str | None:
    """The file of automatic options, if the words name data but neither a file of options nor a data set."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("data_dir", "image_dir", "label_dir", "label_suffix", "class_list", "output_dir", "dataset_name")
    for name in (*names, "cpu", "disable_tqdm", "skip_unreadable"):
        flag: dict[str, Any] = {} if name in names else {"nargs": "?", "const": "yes"}
        parser.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, dest=name, **flag)
    parser.add_argument("-h", "--help", action="store_true")
    given, _ = parser.parse_known_args(args)
    if given.help or given.dataset_name is not None or given.data_dir is None:
        return None
    known = {name: getattr(given, name) for name in ("image_dir", "label_dir", "label_suffix", "class_list")}
    flags = {name: string_to_bool(getattr(given, name) or "no") for name in ("cpu", "disable_tqdm", "skip_unreadable")}
    return str(
        automatic_options(
            given.data_dir,
            given.output_dir,
            use_cpu=flags["cpu"],
            progress=not flags["disable_tqdm"],
            skip_unreadable=flags["skip_unreadable"],
            **known,
        )
    )


def parse_arguments(
    args: list[str], program: str | None = None
) -> tuple[TrainingModelArguments, TrainingDataArguments, RunArguments]:
    """
    The options of a command line. If its first word is a YAML or JSON file, that file comes first, and the words after
    it replace its values. If there is neither a file nor a data set, but a `data_dir`, the file of `automatic_options`
    comes first.

    Args:
        args: The words.
        program: Name of the command in messages and help; that of the running script by default.

    Raises:
        ValueError: for unknown options, and for values that cannot be used.
        SystemExit: for words that are not of an option's type, after a message.
    """
    dataclass_types: Any = (TrainingModelArguments, TrainingDataArguments, RunArguments)
    parser = HfArgumentParser(
        dataclass_types,
        prog=program,
        description="Trains UN-EPT on ADE20K, CamVid, Cityscapes, PASCAL-Context, a data set of the Hub, or your own "
        "images and masks.",
        usage=_USAGE,
    )
    parser.add_argument("--traceback", action="store_true", help="Show where errors come from.")
    if not (args and args[0].endswith((".yaml", ".yml", ".json"))) and (file := _automatic_file(args)):
        args = [file, *args]
    if args and args[0].endswith((".yaml", ".yml", ".json")):
        path, *args = args
        options = read_options(path)
        known = {one.name for arguments in dataclass_types for one in fields(arguments)}
        if "split" in options:
            options = {"eval_split" if name == "split" else name: value for name, value in options.items()}
        unknown = ", ".join(name for name in options if name not in known)
        refuse(
            bool(unknown) and f"{path} has unknown options: {unknown}. --help lists the known ones.",
            options.get("lr_milestones") == []
            and f"{path} has no lr_milestones: for a constant rate set lr_gamma: 1.0.",
        )
        args = _words_of_both(options, args)  # so that both are read and checked in the same way
    model_args, data_args, run_args, _ = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    refuse(
        run_args.load_best_model_at_end
        and not (data_args.eval_split or data_args.eval_fraction)
        and "load_best_model_at_end needs images to choose the best model by, but "
        f"train_split={data_args.train_split} takes the validation images for training: drop load_best_model_at_end, "
        "and the model of the last step is the final one; or hold images out with eval_fraction.",
        run_args.early_stopping_patience is not None
        and not (data_args.eval_split or data_args.eval_fraction)
        and "early_stopping_patience needs images to evaluate on, but "
        f"train_split={data_args.train_split} takes the validation images for training: drop it, or hold images out "
        "with eval_fraction.",
    )
    return model_args, data_args, run_args
