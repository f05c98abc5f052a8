# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
State dicts of the original UN-EPT, of DeiT and of mmseg's ResNet-50-v1c, brought into the form of unept_hf; and the
arguments, the configuration and the exit code of the conversion scripts.
"""

import argparse
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from timm.layers import to_2tuple
from torch import Tensor
from torch.nn import functional as F

from unept_hf import UneptConfig
from unept_hf.arguments import read_options
from unept_hf.model.backbone_unept import check_state_dict


# Original name -> name in UneptForSemanticSegmentation, except for the backbone. The first match is applied.
UNEPT_NAMES = [
    (r"^layers\.(\d+)\.", r"model.input_projections.\1."),
    (r"^context_branch\.level_embed$", "model.level_embed"),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm1\.", r"model.encoder_layers.\1.self_attn_layer_norm."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm2\.", r"model.encoder_layers.\1.final_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm1\.", r"model.decoder_layers.\1.cross_attn_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm2\.", r"model.decoder_layers.\1.self_attn_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm3\.", r"model.decoder_layers.\1.final_layer_norm."),
    (r"^context_branch\.(encoder|decoder)\.layers\.(\d+)\.linear([12])\.", r"model.\1_layers.\2.mlp.fc\3."),
    (r"^context_branch\.(encoder|decoder)\.layers\.", r"model.\1_layers."),
    (r"^spatial_branch\.convblock(\d+)\.conv1\.", lambda m: f"model.spatial_branch.convolutions.{int(m[1]) - 1}."),
    (r"^spatial_branch\.convblock(\d+)\.bn\.", lambda m: f"model.spatial_branch.normalizations.{int(m[1]) - 1}."),
    (r"^query_embed\.weight$", "model.query_embeddings"),
    (r"^cls\.", "classifier."),
    (r"^mask_head\.", "boundary_head."),
    (r"^dir_head\.", "direction_head."),
]
# The stem of mmseg's ResNetV1c is one Sequential; timm keeps its last norm outside.
RESNET_NAMES = [(r"^stem\.7\.", "bn1."), (r"^stem\.(\d)\.", r"conv1.\1.")]
# Heads and norms of classifiers, which a backbone for segmentation does not have.
CLASSIFIER_KEYS = re.compile(r"^(norm|head|head_dist|fc)\.")
CLASSIFIER_REASON = "only a classifier uses them"
POINTWISE_REASON = (
    "each query attends to itself alone, as in the original on one image, so that its query and key projections have "
    "no effect (--decoder_self_attention dense or batch keeps them)"
)


def rename(key: str, names: list[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    """The new name of a key, or the key itself where no rule matches."""
    for pattern, replacement in names:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def resize_position_embedding(position_embedding: Tensor, grid: tuple[int, int], prefix_tokens: int = 2) -> Tensor:
    """
    Position embedding `(1, prefix_tokens + n * n, C)` of a vision transformer for another grid, bicubic as in the
    original code; the embeddings of the prefix tokens are kept. An embedding whose patches do not form a square is
    returned unchanged, for `check_converted` to report its shape.
    """
    patches = position_embedding[:, prefix_tokens:]
    size = math.isqrt(patches.shape[1])
    if size * size != patches.shape[1] or grid == (size, size):
        return position_embedding
    patches = patches.unflatten(1, (size, size)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((position_embedding[:, :prefix_tokens], patches.flatten(2).transpose(1, 2)), dim=1)


def count_prefix_tokens(backbone: dict[str, Tensor]) -> int:
    """Tokens of a DeiT before those of the patches: the class token and, where distilled, the distillation token."""
    return 1 + ("dist_token" in backbone)


def convert_backbone_state_dict(
    state_dict: dict[str, Tensor], config: UneptConfig
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """
    Weights of a DeiT or of an mmseg ResNet-50-v1c under the names of the timm backbone of `config`.

    Returns:
        The new state dict; and the keys that were left out, by reason: keys that only a classifier needs.
    """
    dropped = [key for key in state_dict if CLASSIFIER_KEYS.match(key)]
    state_dict = {key: value for key, value in state_dict.items() if key not in dropped}
    reasons = {CLASSIFIER_REASON: dropped} if dropped else {}
    if "pos_embed" not in state_dict:
        return {"_backbone." + rename(key, RESNET_NAMES): value for key, value in state_dict.items()}, reasons
    size = image_size(config)
    if size is not None and "patch_embed.proj.weight" in state_dict:
        patch = state_dict["patch_embed.proj.weight"].shape[-1]
        state_dict["pos_embed"] = resize_position_embedding(
            state_dict["pos_embed"], (size[0] // patch, size[1] // patch), count_prefix_tokens(state_dict)
        )
    return {"_backbone.model." + key: value for key, value in state_dict.items()}, reasons


def image_size(config: UneptConfig) -> tuple[int, int] | None:
    """Height and width of the images for which a timm backbone has position embeddings; `None` for other backbones."""
    backbone_config = config.backbone_config
    if backbone_config.model_type != "timm_backbone":
        return None
    pretrained_cfg = timm.get_pretrained_cfg(backbone_config.backbone)
    if pretrained_cfg is None or not pretrained_cfg.fixed_input_size:
        return None
    model_args = getattr(backbone_config, "model_args", None) or {}
    return to_2tuple(model_args.get("img_size", pretrained_cfg.input_size[-2:]))


def infer_sizes(state_dict: dict[str, Tensor]) -> dict:
    """
    Configuration fields that follow from the shapes of an original UN-EPT checkpoint: the number of classes, the query
    grid and the image size of a DeiT backbone (`img_size`).

    Raises:
        ValueError: when the checkpoint is not of a UN-EPT.
    """
    missing = [key for key in ("cls.weight", "query_embed.weight") if key not in state_dict]
    if missing:
        raise ValueError(
            f"This is not a UN-EPT checkpoint: it has no {', '.join(missing)}. convert_backbone_to_hf.py converts "
            "backbones alone."
        )
    queries = state_dict["query_embed.weight"].shape[0]
    side = math.isqrt(queries)
    if side * side != queries:
        raise ValueError(f"query_embed.weight has {queries} queries, which is not the square of a grid's side.")
    sizes = {"num_labels": state_dict["cls.weight"].shape[0], "query_grid_size": (side, side)}
    backbone = select_backbone(state_dict)
    if "pos_embed" in backbone and "patch_embed.proj.weight" in backbone:
        patches = math.isqrt(backbone["pos_embed"].shape[1] - count_prefix_tokens(backbone))
        sizes["img_size"] = patches * backbone["patch_embed.proj.weight"].shape[-1]
    return sizes


def select_backbone(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of an original UN-EPT state dict, under its own names."""
    prefix = "backbone."
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def convert_unept_state_dict(
    state_dict: dict[str, Tensor], config: UneptConfig
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """
    Weights of the original UN-EPT under the names of [`UneptForSemanticSegmentation`].

    Returns:
        The new state dict; and the weights that were left out, by reason: with `decoder_self_attention="pointwise"`,
        the query and key projections of the decoder's self-attention, which have no effect on a single image.

    Raises:
        ValueError: for `decoder_self_attention="deformable"`, which the original does not have.
    """
    if config.decoder_self_attention == "deformable":
        raise ValueError(
            "decoder_self_attention='deformable', the default, has no weights in the original; use 'pointwise', "
            "'dense' or 'batch', in the configuration or as --decoder_self_attention."
        )
    backbone, backbone_dropped = convert_backbone_state_dict(select_backbone(state_dict), config)
    converted = {f"model.backbone.{key}": value for key, value in backbone.items()}
    dropped = defaultdict(list)
    for reason, keys in backbone_dropped.items():
        dropped[reason] += [f"backbone.{key}" for key in keys]
    for key, value in state_dict.items():
        if key.startswith("backbone."):
            continue
        name = rename(key, UNEPT_NAMES)
        if match := re.match(r"(.+\.self_attn\.)in_proj_(weight|bias)$", name):
            # Query, key and value projections lie in one matrix, in this order.
            projections = dict(zip(("q_proj", "k_proj", "v_proj"), value.chunk(3)))
            if config.decoder_self_attention == "pointwise":
                projections = {"v_proj": projections["v_proj"]}
                dropped[POINTWISE_REASON].append(f"{key} (first two thirds)")
            for projection, chunk in projections.items():
                converted[f"{match[1]}{projection}.{match[2]}"] = chunk.clone()
        elif name == "model.query_embeddings" and value.shape[0] == math.prod(config.query_grid_size):
            converted[name] = value.T.reshape(1, -1, *config.query_grid_size).clone()
        else:
            converted[name] = value
    return converted, dict(dropped)


def check_converted(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: that counts missing, unexpected and misshapen keys, and names the first ones.
    """
    try:
        check_state_dict(converted, expected)
    except ValueError as error:
        raise ValueError(
            f"{error} Nothing was written. Check the preset; describe a model of other sizes with --config."
        ) from error


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that both conversion scripts take."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="the PyTorch checkpoint to convert (.pth)")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--preset", choices=("unept-deit-base", "unept-resnet50"), help="the model of the paper")
    model.add_argument("--config", type=Path, help="instead of a preset: config.json of a UneptConfig")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model in --output")


def load_config(preset: str | None, path: Path | None, **kwargs) -> UneptConfig:
    """
    The configuration of a preset, as the original code computes it, or of a file; `kwargs` replace its fields.

    Raises:
        ValueError: when the file cannot be read, or is not the configuration of a UN-EPT.
        StrictDataclassError: when a field of it has a wrong value.
    """
    if preset is not None:
        return UneptConfig.from_preset(preset, decoder_self_attention="pointwise", **kwargs)
    fields = read_options(path)
    if fields.get("model_type") != "unept":
        raise ValueError(
            f"{path} is not the configuration of a UN-EPT: its model_type is {fields.get('model_type')!r}."
        )
    return UneptConfig.from_dict({**fields, **kwargs})


def run(convert: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Exit code of a conversion: 0, or 1 with the reason on stderr for problems that a user can solve."""
    try:
        convert(args)
    except StrictDataclassError as error:
        print(f"error: {args.config}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
