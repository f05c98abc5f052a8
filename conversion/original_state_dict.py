# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""State dicts of the original UN-EPT, of DeiT and of mmseg's ResNet-50-v1c, brought into the form of unept_hf."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unept_hf import UneptConfig


# Original name -> name in UneptForSemanticSegmentation. The first that matches is applied.
UNEPT_NAMES = [
    (r"^backbone\.", "model.backbone."),
    (r"^layers\.(\d+)\.", r"model.input_projections.\1."),
    (r"^context_branch\.level_embed$", "model.level_embed"),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm1\.", r"model.encoder_layers.\1.self_attn_layer_norm."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm2\.", r"model.encoder_layers.\1.final_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm1\.", r"model.decoder_layers.\1.cross_attn_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm2\.", r"model.decoder_layers.\1.self_attn_layer_norm."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm3\.", r"model.decoder_layers.\1.final_layer_norm."),
    (r"^context_branch\.(encoder|decoder)\.layers\.(\d+)\.linear([12])\.", r"model.\1_layers.\2.mlp.fc\3."),
    (r"^context_branch\.(encoder|decoder)\.layers\.", r"model.\1_layers."),
    (r"^query_embed\.weight$", "model.query_embeddings"),
    (r"^cls\.", "classifier."),
    (r"^mask_head\.", "boundary_head."),
    (r"^dir_head\.", "direction_head."),
]
# The stem of mmseg's ResNetV1c is one Sequential; timm keeps its last norm outside.
RESNET_NAMES = [(r"^stem\.7\.", "bn1."), (r"^stem\.(\d)\.", r"conv1.\1.")]
# Heads and norms of classifiers, which a backbone for segmentation does not have.
CLASSIFIER_KEYS = re.compile(r"^(norm|head|head_dist|fc)\.")


def load_original_state_dict(path: str | Path) -> dict[str, Tensor]:
    """
    Reads a checkpoint of mmcv (`state_dict`, with the optimizer beside it), of DeiT (`model`), or a bare state dict,
    without running code from the pickle. The prefix `module.` of data-parallel training is removed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is broken, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} could not be read as a PyTorch checkpoint of tensors and plain values. It may be incomplete "
            "(download it again), or hold Python objects beside the weights (save its state dict alone). The reason: "
            f"{error}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f"{path} holds no state dict, neither at the top nor under 'state_dict' or 'model'.")
    strangers = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"{path}: these entries of the state dict are no tensors: {', '.join(strangers)}.")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def rename(key: str, names: list[tuple[str, str]]) -> str:
    """The new name of a key, or the key itself where no rule matches."""
    for pattern, replacement in names:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def resize_position_embedding(position_embedding: Tensor, grid: tuple[int, int], prefix_tokens: int = 2) -> Tensor:
    """
    Position embedding `(1, prefix_tokens + n * n, C)` of a vision transformer for another grid, bicubic as in the
    original code; the embeddings of the prefix tokens are kept.
    """
    prefix, patches = position_embedding.split(
        [prefix_tokens, position_embedding.shape[1] - prefix_tokens], dim=1
    )
    size = math.isqrt(patches.shape[1])
    patches = patches.unflatten(1, (size, size)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((prefix, patches.flatten(2).transpose(1, 2)), dim=1)


def convert_backbone_state_dict(state_dict: dict[str, Tensor], config: UneptConfig) -> tuple[dict[str, Tensor], list[str]]:
    """
    Weights of a DeiT or of an mmseg ResNet-50-v1c under the names of the timm backbone of `config`.

    Returns:
        The new state dict, and the keys that were left out because only a classifier needs them.
    """
    dropped = [key for key in state_dict if CLASSIFIER_KEYS.match(key)]
    state_dict = {key: value for key, value in state_dict.items() if key not in dropped}
    if "pos_embed" not in state_dict:
        return {"_backbone." + rename(key, RESNET_NAMES): value for key, value in state_dict.items()}, dropped
    size = config.backbone_config.model_args.get("img_size", 224)
    patch = state_dict["patch_embed.proj.weight"].shape[-1]
    state_dict["pos_embed"] = resize_position_embedding(state_dict["pos_embed"], (size // patch, size // patch))
    return {"_backbone.model." + key: value for key, value in state_dict.items()}, dropped


def infer_sizes(state_dict: dict[str, Tensor]) -> dict:
    """
    Configuration fields that the shapes of an original UN-EPT checkpoint tell: the number of classes, and, where the
    crop differed from 480, the query grid and the image size of a DeiT backbone (`img_size`).

    Raises:
        ValueError: when the checkpoint is not one of UN-EPT.
    """
    missing = [key for key in ("cls.weight", "query_embed.weight") if key not in state_dict]
    if missing:
        raise ValueError(
            f"This is no UN-EPT checkpoint: it has no {', '.join(missing)}. Backbones alone are converted by "
            "convert_backbone_to_hf.py."
        )
    queries = state_dict["query_embed.weight"].shape[0]
    side = math.isqrt(queries)
    if side * side != queries:
        raise ValueError(f"query_embed.weight has {queries} queries, which is not the square of a grid's side.")
    sizes = {"num_labels": state_dict["cls.weight"].shape[0], "query_grid_size": (side, side)}
    if "backbone.pos_embed" in state_dict:
        patches = math.isqrt(state_dict["backbone.pos_embed"].shape[1] - 2)
        sizes["img_size"] = patches * state_dict["backbone.patch_embed.proj.weight"].shape[-1]
    return sizes


def convert_unept_state_dict(state_dict: dict[str, Tensor], config: UneptConfig) -> tuple[dict[str, Tensor], list[str]]:
    """
    Weights of the original UN-EPT under the names of [`UneptForSemanticSegmentation`].

    Returns:
        The new state dict, and the weights that were left out: with `decoder_self_attention="pointwise"`, the query
        and key projections of the decoder's self-attention, which have no effect on a single image.

    Raises:
        ValueError: for `decoder_self_attention="deformable"`, which the original does not have.
    """
    if config.decoder_self_attention == "deformable":
        raise ValueError("decoder_self_attention='deformable' has no weights in the original: use 'pointwise'.")
    backbone = {
        key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")
    }
    backbone, dropped = convert_backbone_state_dict(backbone, config)
    converted = {f"model.backbone.{key}": value for key, value in backbone.items()}
    dropped = [f"backbone.{key}" for key in dropped]
    for key, value in state_dict.items():
        if key.startswith("backbone."):
            continue
        name = rename(key, UNEPT_NAMES)
        if match := re.match(r"spatial_branch\.convblock(\d+)\.(conv1|bn)\.(.+)", key):
            part = {"conv1": "convolutions", "bn": "normalizations"}[match[2]]
            converted[f"model.spatial_branch.{part}.{int(match[1]) - 1}.{match[3]}"] = value
        elif match := re.match(r"(.+\.self_attn\.)in_proj_(weight|bias)$", name):
            for projection, chunk in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3)):
                if projection == "v_proj" or config.decoder_self_attention == "dense":
                    converted[f"{match[1]}{projection}.{match[2]}"] = chunk.clone()
                else:
                    dropped.append(f"{key} ({projection})")
        elif name == "model.query_embeddings" and value.shape[0] == math.prod(config.query_grid_size):
            converted[name] = value.T.reshape(1, -1, *config.query_grid_size).clone()
        else:
            converted[name] = value
    return converted, dropped


def check_state_dict(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: that lists every missing, unexpected or misshapen key.
    """
    # Counters of batches have no effect, and old checkpoints lack them.
    missing = [key for key in expected if key not in converted and not key.endswith("num_batches_tracked")]
    problems = [f"  missing: {key}" for key in missing]
    problems += [f"  unexpected: {key}" for key in converted if key not in expected]
    problems += [
        f"  wrong shape: {key} is {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        for key, value in converted.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        raise ValueError("The checkpoint does not fit the model; nothing was written.\n" + "\n".join(problems))
