# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training is made of, from its options: data sets, model, optimizer and learning rates."""

import difflib
import math
from dataclasses import fields
from typing import Any, TypeAlias

import datasets
import timm
import torch
from accelerate.logging import get_logger
from timm.models import group_parameters
from transformers import PreTrainedModel, get_scheduler

from ..arguments import check_model_name
from ..data.arguments import DatasetArguments
from ..data.class_lists import ClassList
from ..data.segmentation_datasets import hold_out, load_segmentation_dataset
from ..model.backbone_unept import plain_tensors
from ..model.configuration_unept import CONVENTIONS, UneptConfig
from ..model.image_processing_unept import UneptImageProcessor
from ..model.modeling_unept import UneptForSemanticSegmentation
from .arguments import RunArguments, TrainingDataArguments, TrainingModelArguments, common_splits, refuse


__all__ = ["image_processor_options", "load_data", "load_model", "make_config", "make_optimizer", "make_scheduler"]

logger = get_logger(__name__)

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


def load_data(
    data_args: TrainingDataArguments, run_args: RunArguments
) -> tuple[AnyDataset, AnyDataset | None, ClassList]:
    """The training set, the evaluation set or `None`, and the classes."""
    source = {option.name: getattr(data_args, option.name) for option in fields(DatasetArguments)}
    train_set, class_list = load_segmentation_dataset(split=data_args.train_split, **source)
    refuse(isinstance(train_set, datasets.Dataset) and not len(train_set) and "The training data set is empty.")
    if data_args.eval_fraction:
        train_set, eval_set = hold_out(train_set, data_args.eval_fraction, run_args.seed)
        return train_set, eval_set if run_args.evaluate else None, class_list
    if not run_args.evaluate:
        return train_set, None, class_list
    if data_args.eval_split is None:
        logger.info(
            f"No evaluation, because train_split={data_args.train_split} takes the validation images for training. "
            "Measure the final model with unept-hf evaluate --split test."
        )
        return train_set, None, class_list
    if common := common_splits(data_args.train_split, data_args.eval_split):
        logger.warning(
            f"eval_split={data_args.eval_split}: the images of {', '.join(common)} are trained on too, so the metrics "
            "say nothing about other images."
        )
    if common_splits("test", data_args.eval_split):
        logger.warning(
            f"eval_split={data_args.eval_split}: best_model is the one that is best on these test images, so their "
            "metrics are too good for other images. Report those of the last step, without load_best_model_at_end."
        )
    source["num_synthetic_scenes"] = data_args.num_synthetic_eval_scenes
    try:
        eval_set, _ = load_segmentation_dataset(split=data_args.eval_split, **source)
    except ValueError as error:
        raise ValueError(
            f"{error}\nThat was the evaluation set. Other ways: eval_fraction takes a share of the training set, and "
            "evaluate=False does without."
        ) from error
    return train_set, eval_set, class_list


def _config_fields(model_args: TrainingModelArguments) -> dict[str, Any]:
    """The fields that replace those of the preset or of the trained model."""
    conventions = CONVENTIONS[model_args.conventions] if model_args.conventions else {}
    overrides: Any = model_args.config_overrides or {}
    return {**conventions, **overrides}


def make_config(model_args: TrainingModelArguments, crop_size: int, class_list: ClassList) -> UneptConfig:
    """Configuration of a new model for some classes."""
    overrides = _config_fields(model_args)
    unknown = ", ".join(sorted(overrides.keys() - UneptConfig().to_dict().keys()))
    refuse(bool(unknown) and f"config_overrides has fields that UneptConfig does not know: {unknown}.")
    if model_args.backbone is not None:
        num_levels = overrides.get("num_feature_levels", UneptConfig.num_feature_levels)
        more = overrides.get("backbone_config") or {}
        backbone_config = _timm_backbone_config(model_args.backbone, num_levels, more.get("model_args") or {})
        overrides = {**overrides, "backbone_config": {**backbone_config, **more}}
    config = UneptConfig.from_preset(model_args.preset, **_class_options(class_list), **overrides)
    if "query_grid_size" not in overrides:
        # One learned query for each cell of the crops that it is trained on.
        config.query_grid_size = (math.ceil(crop_size / config.query_stride),) * 2
    return config


def _timm_backbone_config(name: str, num_levels: int, model_args: dict[str, Any]) -> dict[str, Any]:
    """
    The `backbone_config` of a timm model, with its last feature levels. Where all levels are of one size, as in plain
    vision transformers, they are spread over its blocks, as in the paper: 4, 8 and 12 of 12.
    """
    try:
        with torch.device("meta"):
            levels: Any = timm.create_model(name, features_only=True, **model_args).feature_info
        reductions = [level["reduction"] for level in levels]
    except Exception as error:  # each family of timm has its own
        known = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3))
        raise ValueError(
            f"timm makes no feature extractor for backbone={name} ({error}). "
            f"{f'Did you mean {known}? ' if known else ''}timm.list_models() has all names."
        ) from error
    count = len(reductions)
    if reductions[0] == reductions[-1]:
        indices = [(level + 1) * count // num_levels - 1 for level in range(num_levels)]
    else:
        indices = list(range(count))[-num_levels:]
    return {"model_type": "timm_backbone", "backbone": name, "out_indices": indices}


def _class_options(class_list: ClassList) -> dict:
    return {
        "id2label": dict(class_list.id2label),
        "label2id": dict(class_list.label2id),
        "semantic_loss_ignore_index": class_list.ignore_index,
        "class_colors": class_list.palette,
    }


def load_model(
    model_args: TrainingModelArguments, crop_size: int, class_list: ClassList, is_resumed: bool
) -> UneptForSemanticSegmentation:
    """A new model, or a trained one with the classes of the data set. When resumed, its weights do not matter."""
    name = model_args.model_name_or_path
    overrides = _config_fields(model_args)
    if model_args.conventions:
        for field, value in CONVENTIONS[model_args.conventions].items():
            if overrides[field] != value:
                logger.warning(
                    f"conventions={model_args.conventions} stands for {field}={value!r}, but config_overrides set "
                    f"{overrides[field]!r}, which counts."
                )
    if name:
        check_model_name(name)
        with plain_tensors(name):
            model, found = UneptForSemanticSegmentation.from_pretrained(
                name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **_class_options(class_list),
                **overrides,
            )
        for keys, what in (
            (found["unexpected_keys"], f"of {name} are not used"),
            (found["missing_keys"], f"that {name} does not have start new"),
        ):
            if keys:
                some = ", ".join(sorted(keys)[:3])
                fields_set = f"{overrides} from conventions and config_overrides"
                logger.warning(f"With {fields_set}, {len(keys)} weights {what}: {some}, ...")
    else:
        model = UneptForSemanticSegmentation(make_config(model_args, crop_size, class_list))
        if (model_args.use_pretrained_backbone or model_args.backbone_checkpoint) and not is_resumed:
            model.load_pretrained_backbone(model_args.backbone_checkpoint)
    divisor = model.model.size_divisor
    refuse(
        crop_size % divisor != 0
        and f"crop_size={crop_size} must be a multiple of {divisor}, the stride of this model."
    )
    return model


def image_processor_options(model: UneptForSemanticSegmentation, model_name_or_path: str | None) -> dict[str, Any]:
    """The divisor of the sizes, and the mean and std of the trained model, or of the backbone of a new model."""
    options = model.image_processor_options()
    if model_name_or_path:
        try:
            trained = UneptImageProcessor.from_pretrained(model_name_or_path)
        except OSError:  # weights alone
            return options
        options |= {"image_mean": trained.image_mean, "image_std": trained.image_std}
    return options


def make_optimizer(model: UneptForSemanticSegmentation, run_args: RunArguments) -> torch.optim.AdamW:
    """AdamW with a lower learning rate for the backbone, which `layer_decay` lowers further from layer to layer."""
    rate, backbone = run_args.learning_rate, model.model.backbone
    trained = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    above = _layers_above(backbone, list(trained)) if run_args.layer_decay < 1 else dict.fromkeys(trained, 0)
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in in_backbone]
    groups: list[dict[str, Any]] = [{"params": others, "lr": rate}]
    for number in sorted(set(above.values())):
        layer = [parameter for name, parameter in trained.items() if above[name] == number]
        groups.append({"params": layer, "lr": rate * run_args.backbone_lr_multiplier * run_args.layer_decay**number})
    return torch.optim.AdamW(groups, lr=rate, weight_decay=run_args.weight_decay)


def _layers_above(backbone: PreTrainedModel, names: list[str]) -> dict[str, int]:
    """
    How many of the layers that have the named parameters of a timm backbone are above the layer of each of them. The
    layers are those of timm's own layer-wise decay (`timm.optim.param_groups_layer_decay`): blocks above a stem.
    """
    config: Any = backbone.config
    layers: dict[str, int] = {}
    if config.model_type == "timm_backbone":
        with torch.device("meta"):
            # Feature extractors do not know their layers. Their parameters have the names of the classifier's, but for
            # a prefix, and "_" in place of some ".".
            classifier: Any = timm.create_model(config.backbone, **(getattr(config, "model_args", None) or {}))
        if hasattr(classifier, "group_matcher"):
            found = group_parameters(classifier, classifier.group_matcher(coarse=False), reverse=True)
            layers = {name.replace(".", "_"): layer for name, layer in found.items()}
    keys = {name: name.removeprefix("_backbone.").removeprefix("model.").replace(".", "_") for name in names}
    unknown = [name for name, key in keys.items() if key not in layers]
    refuse(
        bool(unknown)
        and f"layer_decay needs the layers of the backbone, but timm does not say which layer {unknown[0]} of "
        f"{getattr(config, 'backbone', config.model_type)} belongs to: drop layer_decay, or use a timm backbone that "
        "has a group_matcher."
    )
    highest = max((layers[key] for key in keys.values()), default=0)
    return {name: highest - layers[key] for name, key in keys.items()}


def make_scheduler(optimizer: torch.optim.Optimizer, run_args: RunArguments) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over the steps."""
    if run_args.lr_scheduler_type != "step":
        kwargs: Any = run_args.lr_scheduler_kwargs
        try:
            return get_scheduler(
                run_args.lr_scheduler_type,
                optimizer,
                num_warmup_steps=run_args.warmup_steps,
                num_training_steps=run_args.max_steps,
                scheduler_specific_kwargs=kwargs,
            )
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs {kwargs} does not fit lr_scheduler_type {run_args.lr_scheduler_type}: {error}"
            ) from error

    def factor(step: int) -> float:
        if step < run_args.warmup_steps:
            return (step + 1) / run_args.warmup_steps
        return run_args.lr_gamma ** sum(step >= milestone for milestone in run_args.lr_milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
