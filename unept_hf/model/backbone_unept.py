# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The backbone of UN-EPT: any timm feature extractor or transformers backbone, its requirements, and its weights."""

import functools
import json
import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import Format, to_2tuple
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoBackbone, PreTrainedConfig, PreTrainedModel


__all__ = [
    "backbone_feature_maps",
    "check_state_dict",
    "create_backbone",
    "plain_tensors",
    "pretrained_timm_weights",
    "probe_backbone",
    "read_state_dict",
    "timm_backbone_weights",
]

# Errors of backbones for arguments, or sizes of images, that they do not take.
_BACKBONE_ERRORS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def _model_args(backbone_config: PreTrainedConfig) -> dict[str, Any]:
    return dict(getattr(backbone_config, "model_args", None) or {})


def _timm_arguments(backbone_config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of `timm.create_model` that a TimmBackboneConfig drops, so they travel in its `model_args`."""
    model_args = _model_args(backbone_config)
    if "dynamic_img_size" not in model_args:
        with torch.device("meta"):
            probe = timm.create_model(backbone_config.backbone)
        # Vision transformers of timm take one image size only, unless they are told otherwise.
        if hasattr(probe, "dynamic_img_size"):
            model_args["dynamic_img_size"] = True
    return model_args


def create_backbone(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    """
    The backbone that a configuration describes, with random weights.

    Raises:
        ValueError: when timm has no such backbone.
    """
    if backbone_config.model_type != "timm_backbone":
        return AutoBackbone.from_config(backbone_config)
    try:
        return AutoBackbone.from_config(backbone_config, **_timm_arguments(backbone_config))
    except _BACKBONE_ERRORS as error:
        raise ValueError(
            f"timm cannot make the backbone_config with backbone={backbone_config.backbone!r}, "
            f"out_indices={backbone_config.out_indices}, output_stride={backbone_config.output_stride} and "
            f"model_args={_model_args(backbone_config)} ({error}). timm.list_models() has the names, "
            "and timm.create_model(name, features_only=True).feature_info the feature maps."
        ) from error


def backbone_feature_maps(backbone: PreTrainedModel, pixel_values: Tensor, num_levels: int) -> list[Tensor]:
    """The last `num_levels` maps of a backbone, each `(batch, channels, height, width)`."""
    # Whatever its own configuration says: only the maps are needed, and timm backbones have no attentions.
    maps = backbone(pixel_values, output_hidden_states=False, output_attentions=False).feature_maps[-num_levels:]
    # timm backbones say when their maps are channels-last.
    if getattr(getattr(backbone, "_backbone", None), "output_fmt", None) == Format.NHWC:
        maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
    return list(maps)


# Models with one backbone are made again and again, and the meta device is not that fast.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.enable_grad()
def probe_backbone(
    backbone_config: str, num_channels: int, num_feature_levels: int, query_stride: int
) -> tuple[int, tuple[int, int] | None, tuple[str, ...]]:
    """
    Runs a backbone on the meta device, where nothing is computed, to learn properties that no configuration tells.

    Args:
        backbone_config: its configuration as JSON.
        num_channels, num_feature_levels, query_stride: from the [`UneptConfig`].

    Returns:
        The number that height and width of an image must be multiples of; the only (height, width) that the backbone
        takes, or `None` if it takes every multiple; and the names of the parameters on which no feature map depends.

    Raises:
        ValueError: when the feature maps do not cover an image evenly, or have other channels than the backbone says;
            or when a timm backbone takes images of one size only and `model_args` does not name that size.
    """
    fields = json.loads(backbone_config)
    with torch.device("meta"):
        backbone = create_backbone(CONFIG_MAPPING[fields["model_type"]].from_dict(fields)).eval()
    features: Any = getattr(backbone, "_backbone", None)  # of a timm backbone
    if features is not None:
        name = backbone.config.backbone
        named_size = _model_args(backbone.config).get("img_size")
        size = to_2tuple(named_size or features.pretrained_cfg["input_size"][-2:])
    else:
        name = backbone.config.model_type
        named_size = getattr(backbone.config, "image_size", None)
        size = to_2tuple(named_size) if named_size else None
    problem = None

    def feature_maps(height: int, width: int) -> list[Tensor]:
        pixel_values = torch.empty(1, num_channels, height, width, device="meta")
        return backbone_feature_maps(backbone, pixel_values, num_feature_levels)

    def find_strides(height: int, width: int) -> list[int] | None:
        nonlocal problem
        try:
            maps = feature_maps(height, width)
        except _BACKBONE_ERRORS as error:
            problem = str(error) or type(error).__name__
            return None
        channels, promised = [one.shape[1] for one in maps], list(backbone.channels[-num_feature_levels:])
        if channels != promised:
            problem = f"they have {channels} channels where its configuration says {promised}"
            return None
        shapes = [tuple(one.shape[-2:]) for one in maps]
        if any(height * columns != width * rows or height % rows for rows, columns in shapes):
            problem = f"they are {', '.join(f'{rows} x {columns}' for rows, columns in shapes)} from an image "
            problem += f"of {height} x {width}"
            return None
        return [height // rows for rows, _ in shapes]

    # A multiple of 12, 14 and 64, so of nearly every stride; else the size for which a backbone has its position
    # embeddings.
    strides = find_strides(1344, 1344)
    if strides is None and size is not None:
        strides = find_strides(*size)
        if strides and features is not None:
            # From one size, a map that was rounded off looks like a map of another stride.
            strides = features.feature_info.reduction()[-num_feature_levels:]
    if strides is None:
        raise ValueError(
            f"The feature maps of the backbone {name!r} do not fit: {problem}. They must cover an image evenly. "
            "Choose another backbone."
        )
    stride = math.lcm(query_stride, *strides)
    # In some backbones whole windows must fill a map: sides of 5 and 7 times a candidate show it.
    candidates = (multiple * stride for multiple in range(1, 17))
    divisor = next((side for side in candidates if find_strides(5 * side, 7 * side) == strides), None)
    if divisor is not None:
        size = None
    elif named_size and not (size[0] % stride or size[1] % stride):
        divisor = stride
    else:
        raise ValueError(
            f"The backbone {name!r} takes images of one size only ({problem}). Name the size of your crops, in "
            f"multiples of {stride}, as backbone_config={{..., 'model_args': {{'img_size': {14 * stride}}}}}, or "
            "choose a backbone that takes any size."
        )
    trainable = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    maps = feature_maps(*(size or (2 * divisor, 2 * divisor)))
    sums = [feature_map.sum() for feature_map in maps]
    gradients = torch.autograd.grad(sums, list(trainable.values()), allow_unused=True)
    return divisor, size, tuple(name for name, gradient in zip(trainable, gradients) if gradient is None)


@contextmanager
def plain_tensors(name: str) -> Iterator[None]:
    """
    For a block that loads tensors from a file or a folder, `name`. PyTorch and timm refuse other objects with the
    advice to load them without checks (`weights_only=False`), which runs any code that the file names. This context
    replaces their advice.

    Raises:
        ValueError: in place of their errors.
    """
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        # timm has a RuntimeError of its own for this.
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{name} is not plain tensors, and cannot be loaded safely: it is damaged, or holds Python objects"
            f"{f' ({refused[1]})' if refused else ''}, which can run code. Save its state dict alone, with "
            "torch.save(state_dict, path), or get it as .safetensors or from another source."
        ) from None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """
    Reads a safetensors file or a checkpoint of PyTorch: a bare state dict, one of mmcv (`state_dict`, with the
    optimizer beside it) or of DeiT (`model`). No code in a pickle is run. The prefix `module.` of data-parallel
    training is removed.

    Raises:
        OSError: when the file does not exist or cannot be read.
        ValueError: for a file that is damaged, is not a checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    try:
        with plain_tensors(str(path)):
            checkpoint: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except (EOFError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"{path} is damaged or incomplete ({type(error).__name__}: {reason}). Download it again."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    entries = checkpoint.items() if isinstance(checkpoint, dict) else [(type(checkpoint).__name__, None)]
    others = [str(key) for key, value in entries if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not checkpoint:
        raise ValueError(
            f"{path} does not hold a state dict (tensors by name), neither at the top nor under 'state_dict' or "
            f"'model': it has {_first_five(others) or 'nothing'}."
        )
    not_finite = [key for key, value in checkpoint.items() if not value.isfinite().all()]
    if not_finite:
        raise ValueError(f"{path}: these weights hold NaN or infinite values: {_first_five(not_finite)}.")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def _first_five(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def check_state_dict(state_dict: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: that counts the keys that are missing, unexpected or of another shape, and names the first ones.
    """
    problems = {
        # Counters of batches have no effect; old checkpoints and frozen batch norms lack them.
        "missing": [key for key in expected if key not in state_dict and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state_dict if key not in expected and not key.endswith("num_batches_tracked")],
        "of another shape": [
            f"{key} ({tuple(value.shape)} instead of {tuple(expected[key].shape)})"
            for key, value in state_dict.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {problem}: {_first_five(keys)}" for problem, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint has {len(state_dict)} weights, the model {len(expected)}: {found}.")


def pretrained_timm_weights(backbone_config: PreTrainedConfig, **kwargs) -> dict[str, Tensor]:
    """The state dict of a timm backbone with pretrained weights, which `kwargs` of `timm.create_model` can choose."""
    # Not through TimmBackbone, whose constructor sets the statistics of batch norms back.
    with plain_tensors(f"The file of pretrained weights for timm's {backbone_config.backbone!r}"):
        features = timm.create_model(
            backbone_config.backbone,
            pretrained=True,
            features_only=True,
            in_chans=backbone_config.num_channels,
            out_indices=backbone_config.out_indices,
            output_stride=backbone_config.output_stride,
            **_timm_arguments(backbone_config),
            **kwargs,
        )
    return {f"_backbone.{key}": value for key, value in features.state_dict().items()}


def timm_backbone_weights(backbone_config: PreTrainedConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The state dict of a timm backbone, from the weights of a classifier of timm, under timm's names or in timm's order.
    timm itself drops the classifier, resizes position embeddings and renames weights of older files.

    Raises:
        ValueError: when the weights do not fit.
    """
    name, model_args = backbone_config.backbone, _model_args(backbone_config)
    model_args["in_chans"] = backbone_config.num_channels
    with torch.device("meta"):
        expected = timm.create_model(name, **model_args).state_dict()
    default = timm.get_pretrained_cfg(name)
    pretrained_cfg = default.to_dict() if default else {}
    # Another implementation of the same network: each weight must be of the kind and shape of its counterpart, the
    # classifier included, so that no permutation passes unseen.
    if not state_dict.keys() & expected.keys() and len(state_dict) == len(expected):
        kinds = [[(key.split(".")[-1], value.shape) for key, value in d.items()] for d in (state_dict, expected)]
        if kinds[0] == kinds[1]:
            state_dict = dict(zip(expected, state_dict.values()))
    classifiers = to_2tuple(pretrained_cfg.get("classifier") or ())
    num_classes = next((len(state_dict[key]) for c in classifiers if (key := f"{c}.weight") in state_dict), 0)
    source = {**pretrained_cfg, "state_dict": state_dict, "num_classes": num_classes, "label_offset": 0}
    try:
        # With the classes of the checkpoint timm is strict; with a backbone alone it is not.
        timm.create_model(name, pretrained=True, pretrained_cfg=source, num_classes=num_classes, **model_args)
    except Exception as error:
        check_state_dict(state_dict, expected)
        raise ValueError(f"timm cannot load the checkpoint as {name!r} ({error}).") from error
    return pretrained_timm_weights(backbone_config, pretrained_cfg=source)
