# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
UN-EPT: backbone, context branch, spatial branch, decoder, heads and loss, in the order in which an image meets them.

Source: Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", ICCV Workshops 2021.
"""

import functools
import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import Format, to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .boundary import DIRECTIONS, boundary_targets, refine_logits
from .configuration_unept import UneptConfig
from .deformable_attention import (
    deformable_attention,
    multi_scale_deformable_attention,
    sampling_locations_and_weights,
)


logger = logging.get_logger(__name__)

SpatialShapes = list[tuple[int, int]]
# What backbones raise for arguments, or sizes of images, that they do not take.
BACKBONE_ERRORS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass
class UneptModelOutput(ModelOutput):
    r"""
    Output of [`UneptModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, queries, hidden_size)`):
            Decoder output, one vector for each cell of `query_shape`, row by row.
        encoder_last_hidden_state (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`):
            Context encoder output: the tokens of the pyramid's levels, one level after the other, row by row.
        spatial_features (`torch.Tensor` of shape `(batch_size, hidden_size, height, width)`, *optional*):
            Spatial branch output at the query stride; `None` without spatial branch.
        query_shape (`tuple[int, int]`):
            Height and width of the query grid.
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states=True`):
            Encoder input and output of each encoder layer, `(batch_size, tokens, hidden_size)`, then the output of
            each decoder layer, `(batch_size, queries, hidden_size)`.
        attentions (`tuple[torch.Tensor]`, *optional*, with `output_attentions=True`):
            Weights of each deformable attention, encoder before decoder, of shape
            `(batch_size, queries, num_attention_heads, levels, num_sampling_points)`.
        sampling_locations (`tuple[torch.Tensor]`, *optional*, with `output_attentions=True`):
            Where those samples are taken, (x, y) as fractions of the level, of shape
            `(batch_size, queries, num_attention_heads, levels, num_sampling_points, 2)`.
    """

    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    spatial_features: Tensor | None = None
    query_shape: tuple[int, int] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    sampling_locations: tuple[Tensor, ...] | None = None


@dataclass
class UneptSemanticSegmenterOutput(ModelOutput):
    r"""
    Output of [`UneptForSemanticSegmentation`]. Height and width are those of the image, divided by the query stride 8.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, with `labels`):
            Weighted sum of the terms in `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
            The unweighted terms `segmentation`, `boundary`, `direction` and `refined_segmentation`, detached.
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
            Class logits.
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, height, width)`, *optional*):
            Logits of "inside" and "boundary"; `None` without boundary heads.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, height, width)`, *optional*):
            Logits of the directions that lead away from the nearest boundary; `None` without boundary heads.
        logits_sizes (`torch.Tensor` of shape `(batch_size, 2)`, *optional*, with `image_sizes`):
            Rows and columns of the logits that each image of a padded batch covers, float32.
        hidden_states, attentions, sampling_locations:
            See [`UneptModelOutput`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    boundary_logits: Tensor | None = None
    direction_logits: Tensor | None = None
    logits_sizes: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    sampling_locations: tuple[Tensor, ...] | None = None


@contextmanager
def plain_tensors(name: str) -> Iterator[None]:
    """
    For a block that loads from a file or a folder, `name`. PyTorch and timm refuse what is more than tensors with the
    advice to load it without checks (`weights_only=False`), which runs whatever code the file names: it is not passed
    on.

    Raises:
        ValueError: in place of their errors.
    """
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        # timm has a RuntimeError of its own for this.
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        raise ValueError(
            f"{name} is not plain tensors, and cannot be loaded safely: it is damaged, or holds Python objects, which "
            "can run code. Get it as .safetensors, or from another source."
        ) from None


def timm_arguments(config: UneptConfig) -> dict:
    """Arguments of `timm.create_model` that a TimmBackboneConfig drops, so they travel in its `model_args`."""
    model_args = dict(getattr(config.backbone_config, "model_args", None) or {})
    if "dynamic_img_size" not in model_args:
        with torch.device("meta"):
            probe = timm.create_model(config.backbone_config.backbone)
        # Vision transformers of timm take one image size only, unless they are told otherwise.
        if hasattr(probe, "dynamic_img_size"):
            model_args["dynamic_img_size"] = True
    return model_args


def create_backbone(config: UneptConfig) -> PreTrainedModel:
    """The backbone that `config.backbone_config` describes, with random weights."""
    backbone_config = config.backbone_config
    # A choice for the whole model is meant for the decoder: a backbone may not have that attention, or none at all.
    if backbone_config._attn_implementation == config._attn_implementation != "eager":
        backbone_config._attn_implementation = None
    if backbone_config.model_type != "timm_backbone":
        return AutoBackbone.from_config(backbone_config)
    try:
        return AutoBackbone.from_config(backbone_config, **timm_arguments(config))
    except BACKBONE_ERRORS as error:
        raise ValueError(
            f"timm cannot make the backbone_config with backbone={backbone_config.backbone!r}, "
            f"out_indices={backbone_config.out_indices}, output_stride={backbone_config.output_stride} and "
            f"model_args={getattr(backbone_config, 'model_args', None)} ({error}). timm.list_models() has the names, "
            "and timm.create_model(name, features_only=True).feature_info the feature maps."
        ) from error


def backbone_feature_maps(backbone: PreTrainedModel, pixel_values: Tensor, num_levels: int) -> list[Tensor]:
    """The last `num_levels` maps of a backbone, each `(batch, channels, height, width)`."""
    # Whatever its own configuration says: only the maps are wanted, and timm backbones have no attentions to give.
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
    Runs a backbone on the meta device, where nothing is computed, to learn what no configuration tells.

    Args:
        backbone_config: its configuration as JSON.
        num_channels, num_feature_levels, query_stride: those of the [`UneptConfig`].

    Returns:
        What height and width of an image must be multiples of; the only (height, width) that the backbone takes, or
        `None` if it takes every multiple; and the names of the parameters on which no feature map depends.

    Raises:
        ValueError: when the feature maps do not cover an image evenly, or when a timm backbone takes images of one
            size only and `model_args` does not name that size.
    """
    config = UneptConfig(
        backbone_config=json.loads(backbone_config), num_channels=num_channels, num_feature_levels=num_feature_levels
    )
    with torch.device("meta"):
        backbone = create_backbone(config).eval()
    if backbone.config.model_type == "timm_backbone":
        name = backbone.config.backbone
        named_size = (getattr(backbone.config, "model_args", None) or {}).get("img_size")
        size = to_2tuple(named_size or backbone._backbone.pretrained_cfg["input_size"][-2:])
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
            shapes = [tuple(feature_map.shape[-2:]) for feature_map in feature_maps(height, width)]
        except BACKBONE_ERRORS as error:
            problem = str(error) or type(error).__name__
            return None
        if any(height * columns != width * rows or height % rows for rows, columns in shapes):
            problem = f"it makes maps of {', '.join(f'{rows} x {columns}' for rows, columns in shapes)} from an image "
            problem += f"of {height} x {width}"
            return None
        return [height // rows for rows, _ in shapes]

    # A multiple of 12, 14 and 64, so of nearly every stride; else the size for which a backbone has its position
    # embeddings.
    strides = find_strides(1344, 1344)
    if strides is None and size is not None:
        strides = find_strides(*size)
        if strides and backbone.config.model_type == "timm_backbone":
            # From one size, a map that was rounded off looks like a map of another stride.
            strides = backbone._backbone.feature_info.reduction()[-num_feature_levels:]
    if strides is None:
        raise ValueError(
            f"The feature maps of the backbone {name!r} must cover an image evenly, but: {problem}. Choose another "
            "backbone."
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
    gradients = torch.autograd.grad([feature_map.sum() for feature_map in maps], trainable.values(), allow_unused=True)
    return divisor, size, tuple(name for name, gradient in zip(trainable, gradients) if gradient is None)


def sine_position_embedding(height: int, width: int, hidden_size: int, device: torch.device) -> Tensor:
    """
    Sine position embedding, float32 `(height * width, hidden_size)`: the first half of the features encodes the row,
    the second the column, both counted from 1 and normalised to 2 pi.

    Source: "Attention Is All You Need", section 3.5, in two dimensions as in DETR.
    """
    features = torch.arange(hidden_size // 2, device=device, dtype=torch.float32)
    wavelengths = 10000 ** (2 * (features // 2) / (hidden_size // 2))
    is_sine = features % 2 == 0

    def encode(size):
        coordinates = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        angles = coordinates[:, None] / wavelengths
        return torch.where(is_sine, angles.sin(), angles.cos())

    rows = encode(height)[:, None].expand(height, width, -1)
    columns = encode(width)[None].expand(height, width, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def cell_centers(spatial_shapes: SpatialShapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Centres of the cells of all levels as (x, y) fractions, `(1, sum of height * width, 1, 2)`."""
    centers = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        centers.append(torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1))
    return torch.cat(centers)[None, :, None]


class UneptDeformableAttention(nn.Module):
    """Multi-scale deformable attention of queries `(batch, queries, C)` to values `(batch, cells, C)`."""

    def __init__(self, config: UneptConfig, num_levels: int):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_levels = num_levels
        self.num_points = config.num_sampling_points
        num_samples = self.num_heads * self.num_levels * self.num_points
        self.sampling_offsets = nn.Linear(config.hidden_size, num_samples * 2)
        self.attention_weights = nn.Linear(config.hidden_size, num_samples)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        value_states: Tensor,
        spatial_shapes: SpatialShapes,
        reference_points: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The output, and with `output_attentions` the weights and locations of its samples."""
        batch, queries, _ = hidden_states.shape
        shape = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(value_states).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(hidden_states).view(*shape, 2)
        logits = self.attention_weights(hidden_states).view(shape)
        if not output_attentions:
            output = deformable_attention(value, spatial_shapes, reference_points, offsets, logits)
            return self.output_proj(output), None
        locations, weights = sampling_locations_and_weights(spatial_shapes, reference_points, offsets, logits)
        output = multi_scale_deformable_attention(value, spatial_shapes, locations, weights)
        return self.output_proj(output), (weights, locations)


class UneptPointwiseAttention(nn.Module):
    """
    Decoder self-attention of the original code for one image. It attends along the batch, so a lone query sees itself
    with weight 1, and what is left are the value and output projections.
    """

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.out_proj(self.v_proj(hidden_states))


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention of `(batch, heads, length, head_dim)` tensors; returns `(batch, length, heads, head_dim)`, weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class UneptDenseAttention(nn.Module):
    """Decoder self-attention in which every query sees every query."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask=None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.out_proj(output.flatten(2))


class UneptMLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states))))

    def forward(self, hidden_states: Tensor) -> Tensor:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or traced:
            return self._feed_forward(hidden_states)
        # What lies between the two layers is several times as large as the input; in pieces it stays in the cache.
        pieces = hidden_states.flatten(0, -2).split(1024)
        return torch.cat([self._feed_forward(piece) for piece in pieces]).view_as(hidden_states)


class UneptEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention over the pyramid and feed-forward layer, each followed by a layer norm."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.self_attn = UneptDeformableAttention(config, config.num_feature_levels)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.mlp = UneptMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        spatial_shapes: SpatialShapes,
        reference_points: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple]:
        # The position is added to the query alone; the value is the plain pyramid.
        attention_output, samples = self.self_attn(
            hidden_states + position_embeddings, hidden_states, spatial_shapes, reference_points, output_attentions
        )
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attention_output))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states))), (samples,)


class UneptDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, deformable cross-attention and feed-forward layer, each followed by a layer norm."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        if config.decoder_self_attention == "deformable":
            self.self_attn = UneptDeformableAttention(config, num_levels=1)
        elif config.decoder_self_attention == "dense":
            self.self_attn = UneptDenseAttention(config)
        else:
            self.self_attn = UneptPointwiseAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attn = UneptDeformableAttention(config, config.num_feature_levels)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.mlp = UneptMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        spatial_shapes: SpatialShapes,
        query_shape: tuple[int, int],
        reference_points: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple]:
        samples = ()
        if isinstance(self.self_attn, UneptDeformableAttention):
            attention_output, self_samples = self.self_attn(
                hidden_states, hidden_states, [query_shape], reference_points, output_attentions
            )
            samples += (self_samples,)
        else:
            attention_output = self.self_attn(hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attention_output))
        attention_output, cross_samples = self.cross_attn(
            hidden_states, encoder_hidden_states, spatial_shapes, reference_points, output_attentions
        )
        samples += (cross_samples,)
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attention_output))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states))), samples


class ContiguousGradient(torch.autograd.Function):
    """
    Identity, with a contiguous gradient. On the CPU, PyTorch's batch norm (2.11 to 2.15 at least) misreads the
    permuted gradient that token sequences send back when the batch has a single image.
    """

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class UneptSpatialBranch(nn.Module):
    """Stride-2 convolutions that keep the detail of the image `(batch, 3, H, W)` at 1/8 of its size."""

    def __init__(self, config: UneptConfig):
        super().__init__()
        channels = [config.num_channels, *config.spatial_branch_channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
            for in_channels, out_channels in pairwise(channels)
        )
        self.normalizations = nn.ModuleList(nn.BatchNorm2d(out_channels) for out_channels in channels[1:])

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = pixel_values
        for index, (convolution, normalization) in enumerate(zip(self.convolutions, self.normalizations)):
            features = normalization(convolution(features))
            if index < len(self.convolutions) - 1:
                features = features.relu()
        if torch.jit.is_tracing():
            # A traced graph cannot hold a function of Python. Reshaping makes the gradient contiguous too.
            return features.flatten(1).view_as(features)
        return ContiguousGradient.apply(features)


class UneptBoundaryHead(nn.Sequential):
    """Per-cell classifier of the spatial features, for boundaries or directions."""

    def __init__(self, config: UneptConfig, num_classes: int):
        super().__init__(
            nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1, bias=False),
            nn.BatchNorm2d(config.hidden_size),
            nn.ReLU(),
            nn.Conv2d(config.hidden_size, num_classes, kernel_size=1, bias=False),
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """
    Reads a safetensors file or a checkpoint of PyTorch: a bare state dict, one of mmcv (`state_dict`, with the
    optimizer beside it) or of DeiT (`model`). No code in a pickle is run. The prefix `module.` of data-parallel
    training is removed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is broken, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds Python objects ({refused[1]}) beside the weights. They are not loaded, because that "
                "can run code: save its state dict alone, with torch.save(state_dict, path)."
            ) from None
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch's own words advise to load it without checks.
            reason = "it is not plain tensors, and cannot be loaded safely"
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
        raise ValueError(
            f"{path} is not a {kind}, or is incomplete ({type(error).__name__}: {reason}). Download it again."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f"{path} holds no state dict, neither at the top nor under 'state_dict' or 'model'.")
    if not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"{path} holds no state dict: its keys are no names of weights.")
    strangers = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"{path}: these entries of the state dict are no tensors: {first_five(strangers)}.")
    not_finite = [key for key, value in checkpoint.items() if not value.isfinite().all()]
    if not_finite:
        raise ValueError(f"{path}: these weights hold NaN or infinite values: {first_five(not_finite)}.")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def first_five(names: list[str]) -> str:
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
        found = "; ".join(f"{len(keys)} {problem}: {first_five(keys)}" for problem, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint has {len(state_dict)} weights, the model {len(expected)}: {found}.")


def pretrained_timm_weights(config: UneptConfig, **kwargs) -> dict[str, Tensor]:
    """The state dict of the timm backbone of `config` with pretrained weights; `kwargs` can say which."""
    backbone_config = config.backbone_config
    # Not through TimmBackbone, whose constructor sets the statistics of batch norms back.
    with plain_tensors(f"What timm has for {backbone_config.backbone!r}"):
        features = timm.create_model(
            backbone_config.backbone,
            pretrained=True,
            features_only=True,
            in_chans=config.num_channels,
            out_indices=backbone_config.out_indices,
            output_stride=backbone_config.output_stride,
            **timm_arguments(config),
            **kwargs,
        )
    return {f"_backbone.{key}": value for key, value in features.state_dict().items()}


def timm_backbone_weights(config: UneptConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The state dict of the timm backbone of `config`, from the weights of a classifier of timm, under timm's names or in
    timm's order. timm itself drops the classifier, resizes position embeddings and renames weights of older files.

    Raises:
        ValueError: when the weights do not fit.
    """
    backbone_config = config.backbone_config
    model_args = dict(getattr(backbone_config, "model_args", None) or {}, in_chans=config.num_channels)
    pretrained_cfg = timm.get_pretrained_cfg(backbone_config.backbone).to_dict()
    with torch.device("meta"):
        expected = timm.create_model(backbone_config.backbone, **model_args).state_dict()
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
        timm.create_model(
            backbone_config.backbone, pretrained=True, pretrained_cfg=source, num_classes=num_classes, **model_args
        )
    except Exception as error:
        check_state_dict(state_dict, expected)
        raise ValueError(f"timm cannot load the checkpoint as {backbone_config.backbone!r} ({error}).") from error
    return pretrained_timm_weights(config, pretrained_cfg=source)


class UneptPreTrainedModel(PreTrainedModel):
    config: UneptConfig
    config_class = UneptConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TimmBackbone", "UneptEncoderLayer", "UneptDecoderLayer", "UneptSpatialBranch"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # forward takes **kwargs, but does not divide its loss by the items of an accumulated batch: Trainer has to.
    accepts_loss_kwargs = False

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # For models outside of transformers, modules without parameters of their own are passed over, to protect
        # loaded weights from `tensor.data` assignments. The rules below make none, and some are for such modules.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The initialisation of the original code: PyTorch's defaults, but for the context branch."""
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if isinstance(module, nn.Conv2d):
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, UneptDeformableAttention):
            for projection in (module.value_proj, module.output_proj):
                init.zeros_(projection.bias)
            for projection in (module.sampling_offsets, module.attention_weights):
                init.zeros_(projection.weight)
                init.zeros_(projection.bias)
            # Head h looks in direction 2 pi h / heads, point p at distance p + 1 (Deformable DETR, section A.4).
            angles = torch.arange(module.num_heads, dtype=torch.float32) * (2 * math.pi / module.num_heads)
            ring = torch.stack((angles.cos(), angles.sin()), dim=-1)
            ring = (ring / ring.abs().amax(-1, keepdim=True))[:, None, None]
            distances = torch.arange(1, module.num_points + 1, dtype=torch.float32)[:, None]
            offsets = (ring * distances).expand(-1, module.num_levels, -1, -1)
            init.copy_(module.sampling_offsets.bias, offsets.flatten())
        elif isinstance(module, (UneptPointwiseAttention, UneptDenseAttention)):
            for name, projection in module.named_children():
                if name != "out_proj":
                    # The original keeps query, key and value projection in one (3 C, C) matrix.
                    bound = math.sqrt(6 / (4 * projection.in_features))
                    init.uniform_(projection.weight, -bound, bound)
                init.zeros_(projection.bias)
        elif isinstance(module, UneptModel):
            init.normal_(module.level_embed)
            init.normal_(module.query_embeddings)

    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        # The names of transformers 5.24 and later, for those before. The old ones go with transformers 6.
        def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None) -> None:
            self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

        def activation_checkpointing_disable(self) -> None:
            self.gradient_checkpointing_disable()

        @property
        def is_activation_checkpointing(self) -> bool:
            return self.is_gradient_checkpointing

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        # TimmBackbone does not pass it on.
        backbone = self.base_model.backbone
        if backbone.config.model_type == "timm_backbone":
            features = backbone._backbone
            getattr(features, "model", features).set_grad_checkpointing(enable)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """See `PreTrainedModel.from_pretrained`, which makes every parameter that it loads trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).base_model.freeze_unused_parameters()
        return loaded

    @classmethod
    def from_preset(cls, name: str, use_pretrained_backbone: bool = False, **kwargs):
        """
        A named model with new weights.

        Args:
            name (`str`): a preset of [`UneptConfig.from_preset`], which says how it differs from the paper's.
            use_pretrained_backbone (`bool`, *optional*, defaults to `False`):
                Whether the backbone starts from the weights that timm has for it (ImageNet), which are downloaded.
            **kwargs: fields that replace those of the preset, such as `num_labels`.

        Raises:
            ValueError: for an unknown name.
            OSError: when the weights can not be downloaded.
        """
        model = cls(UneptConfig.from_preset(name, **kwargs))
        if use_pretrained_backbone:
            model.load_pretrained_backbone()
        return model

    def load_pretrained_backbone(self, checkpoint: str | Path | None = None) -> None:
        """
        Replaces the weights of the backbone. Not done by the constructor: `from_pretrained` brings its own weights.

        Args:
            checkpoint (`str` or `Path`, *optional*):
                A `.safetensors` or PyTorch file, or a folder with a `model.safetensors`. It holds weights under the
                names of this backbone, as `conversion/convert_backbone_to_hf.py` and `backbone.save_pretrained` write
                them; or, for a timm backbone, a classifier under timm's names, or one whose weights have the order,
                the kinds (`weight`, `running_mean`, ...) and the shapes of timm's. By default the weights that timm
                has for this backbone, which are downloaded.

        Raises:
            OSError: when there is no such file, or the weights cannot be downloaded.
            ValueError: for a file that holds no weights, or weights that do not fit; nothing is loaded then.
        """
        backbone = self.base_model.backbone
        is_timm = backbone.config.model_type == "timm_backbone"
        if checkpoint is not None:
            path = Path(checkpoint).expanduser()
            state_dict = read_state_dict(path / "model.safetensors" if path.is_dir() else path)
            if is_timm and not state_dict.keys() & backbone.state_dict().keys():
                state_dict = timm_backbone_weights(self.config, state_dict)
        elif is_timm:
            name = backbone.config.backbone
            try:
                state_dict = pretrained_timm_weights(self.config)
            except Exception as error:
                raise OSError(
                    f"The pretrained weights of the timm model {name!r} could not be had ({error}). Without network, "
                    "pass a local file to load_pretrained_backbone(checkpoint) (--backbone_checkpoint), or start from "
                    "random weights (--use_pretrained_backbone false)."
                ) from error
        else:
            raise ValueError(
                f"checkpoint is needed: a backbone of type {backbone.config.model_type!r} does not name its weights."
            )
        check_state_dict(state_dict, backbone.state_dict())
        backbone.load_state_dict(state_dict, strict=False)

    def image_processor_options(self) -> dict[str, Any]:
        """
        What the image processor of a new model must know: `UneptImageProcessor(**model.image_processor_options())`.

        Returns:
            `size_divisor`, and with a timm backbone the `image_mean` and `image_std` of its pretrained weights.
        """
        options = {"size_divisor": self.base_model.size_divisor}
        if self.config.backbone_config.model_type == "timm_backbone":
            pretrained = self.base_model.backbone._backbone.pretrained_cfg
            options |= {"image_mean": pretrained["mean"], "image_std": pretrained["std"]}
        return options


class UneptModel(UneptPreTrainedModel):
    """
    UN-EPT without its heads: backbone, feature pyramid and context encoder; spatial branch and queries; decoder.
    """

    def __init__(self, config: UneptConfig):
        super().__init__(config)
        self.size_divisor, self.fixed_image_size, self._unused_backbone_parameters = probe_backbone(
            config.backbone_config.to_json_string(use_diff=False),
            config.num_channels,
            config.num_feature_levels,
            config.query_stride,
        )
        self.backbone = create_backbone(config)
        self.freeze_unused_parameters()
        self.input_projections = nn.ModuleList(
            nn.Conv2d(channels, config.hidden_size, kernel_size=1)
            for channels in self.backbone.channels[-config.num_feature_levels :]
        )
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, config.hidden_size))
        self.encoder_layers = nn.ModuleList(UneptEncoderLayer(config) for _ in range(config.encoder_layers))
        self.spatial_branch = UneptSpatialBranch(config) if config.use_spatial_branch else None
        self.query_embeddings = nn.Parameter(torch.empty(1, config.hidden_size, *config.query_grid_size))
        self.decoder_layers = nn.ModuleList(UneptDecoderLayer(config) for _ in range(config.decoder_layers))
        self.post_init()

    def freeze_unused_parameters(self) -> None:
        """
        Freezes the parameters of the backbone on which no feature map depends, such as the mask token of a vision
        transformer. They never have a gradient, for which `DistributedDataParallel` would wait.
        """
        if self._unused_backbone_parameters:
            logger.info(f"Frozen, as no feature map depends on them: {', '.join(self._unused_backbone_parameters)}")
        for name in self._unused_backbone_parameters:
            self.backbone.get_parameter(name).requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        # One level is enough: `enable_input_require_grads` makes its output, so all tokens, require gradients.
        return self.input_projections[0]

    def interpolate_query_embeddings(self, height: int, width: int) -> Tensor:
        """The learned query embedding for another grid, `(1, hidden_size, height, width)`."""
        # A grid of the trained size is its own interpolation; asking for it would fix an exported graph to that size.
        traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
        if not traced and self.query_embeddings.shape[-2:] == (height, width):
            return self.query_embeddings
        return F.interpolate(self.query_embeddings, size=(height, width), mode="bicubic", align_corners=False)

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if not isinstance(pixel_values, Tensor):
            raise ValueError(
                f"pixel_values has to be a tensor, got {type(pixel_values).__name__}. UneptImageProcessor makes it "
                'with return_tensors="pt".'
            )
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has to be (batch, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. UneptImageProcessor makes it from images of any mode."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values has to be of a floating point dtype, got {pixel_values.dtype}.")
        height, width = pixel_values.shape[-2:]
        if height % self.size_divisor or width % self.size_divisor or height == 0 or width == 0:
            raise ValueError(
                f"pixel_values of height {height} and width {width}: both have to be positive multiples of "
                f"{self.size_divisor}, the stride of the model. Resize or pad the image; UneptImageProcessor does "
                f"with size_divisor={self.size_divisor}."
            )
        if self.fixed_image_size is not None and (height, width) != self.fixed_image_size:
            rows, columns = self.fixed_image_size
            raise ValueError(
                f"pixel_values of height {height} and width {width}: the backbone takes images of {rows} x {columns} "
                f"only. UneptImageProcessor makes them with size={{'height': {rows}, 'width': {columns}}}."
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UneptModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images. Height and width have to be multiples of the model's stride, `size_divisor`.
            output_attentions, output_hidden_states, return_dict:
                See [`UneptModelOutput`].

        Returns:
            [`UneptModelOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: for pixel values of another shape or dtype.
        """
        self._check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.level_embed.dtype)
        height, width = pixel_values.shape[-2:]
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        # Half precision can not tell neighbouring cells apart.
        location_dtype = torch.promote_types(pixel_values.dtype, torch.float32)

        feature_maps = backbone_feature_maps(self.backbone, pixel_values, self.config.num_feature_levels)
        levels = [projection(feature_map) for projection, feature_map in zip(self.input_projections, feature_maps)]
        spatial_shapes = [tuple(level.shape[-2:]) for level in levels]
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        position_embeddings = torch.cat(
            [
                sine_position_embedding(*shape, self.config.hidden_size, hidden_states.device)
                + level_embed.to(hidden_states.device)
                for shape, level_embed in zip(spatial_shapes, self.level_embed)
            ]
        ).to(hidden_states.dtype)
        reference_points = cell_centers(spatial_shapes, hidden_states.device, location_dtype)
        all_hidden_states, all_samples = (hidden_states,) if output_hidden_states else None, ()
        for encoder_layer in self.encoder_layers:
            hidden_states, samples = encoder_layer(
                hidden_states, position_embeddings, spatial_shapes, reference_points, output_attentions
            )
            all_samples += samples
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
        encoder_hidden_states = hidden_states

        query_shape = (height // self.config.query_stride, width // self.config.query_stride)
        queries = self.interpolate_query_embeddings(*query_shape).to(hidden_states)
        spatial_features = None
        if self.spatial_branch is not None:
            spatial_features = self.spatial_branch(pixel_values)
            queries = spatial_features.to(hidden_states) + queries
        hidden_states = queries.expand(pixel_values.shape[0], -1, -1, -1).flatten(2).transpose(1, 2)
        reference_points = cell_centers([query_shape], hidden_states.device, location_dtype)
        for decoder_layer in self.decoder_layers:
            hidden_states, samples = decoder_layer(
                hidden_states,
                encoder_hidden_states,
                spatial_shapes,
                query_shape,
                reference_points,
                output_attentions,
            )
            all_samples += samples
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
        return UneptModelOutput(
            last_hidden_state=hidden_states,
            encoder_last_hidden_state=encoder_hidden_states,
            spatial_features=spatial_features,
            query_shape=query_shape,
            hidden_states=all_hidden_states,
            attentions=tuple(weights for weights, _ in all_samples) if output_attentions else None,
            sampling_locations=tuple(locations for _, locations in all_samples) if output_attentions else None,
        )


def mean_over_processes(counts: Tensor) -> Tensor:
    """
    The mean of each count over the processes that train together. A loss divided by it instead of by the process's own
    count has, after data parallelism has averaged the gradients, those of one process with the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    counts = counts.float()
    torch.distributed.all_reduce(counts)
    return counts / torch.distributed.get_world_size()


def segmentation_cross_entropy(logits: Tensor, labels: Tensor, config: UneptConfig, training: bool = False) -> Tensor:
    """Cross entropy over the labelled pixels; a mean over those, or over all pixels (`config.loss_reduction`)."""
    ignore_index = config.semantic_loss_ignore_index
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    if config.loss_reduction == "all":
        return loss / max(labels.numel(), 1)
    count = (labels != ignore_index).sum()
    count = mean_over_processes(count) if training else count
    return loss / torch.where(count > 0, count, 1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, training: bool = False) -> Tensor:
    """Mean cross entropy, weighted by one minus the frequency of the label in the batch. Zero if no pixel counts."""
    counts = torch.stack([(labels == label).sum() for label in range(logits.shape[1])])
    counts = mean_over_processes(counts) if training else counts
    total = counts.sum()
    weights = (1 - counts / torch.where(total > 0, total, 1)).to(logits.dtype)
    loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum")
    return loss / (weights * counts).sum().clamp(min=torch.finfo(logits.dtype).eps)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    config: UneptConfig,
    boundary_logits: Tensor | None = None,
    direction_logits: Tensor | None = None,
    boundary_map: Tensor | None = None,
    direction_map: Tensor | None = None,
    training: bool = False,
) -> dict[str, Tensor]:
    """
    The unweighted terms of the loss (section 3.4). Each is finite and differentiable, also when no pixel counts.

    Args:
        logits: `(batch, num_labels, h, w)`.
        labels: `(batch, height, width)`, int64.
        config: has the ignored label and the conventions.
        boundary_logits: `(batch, 2, h, w)`; without them the segmentation term is all there is.
        direction_logits: `(batch, 8, h, w)`.
        boundary_map: `(batch, height, width)`, int64, 0 or 1 or ignored.
        direction_map: `(batch, height, width)`, int64, 0..7 or ignored.
        training: whether pixels are counted over all processes of `torch.distributed`, each of which has a share of
            the batch and has to call this.

    Returns:
        `segmentation` and, with boundary logits, `boundary`, `direction` and `refined_segmentation`; float32 `()`.
    """
    ignore_index = config.semantic_loss_ignore_index

    def upsample(tensor, align_corners):
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return F.interpolate(tensor, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)

    logits = upsample(logits, align_corners=False)
    losses = {"segmentation": segmentation_cross_entropy(logits, labels, config, training)}
    if boundary_logits is None:
        return losses
    boundary_logits = upsample(boundary_logits, align_corners=config.boundary_align_corners)
    direction_logits = upsample(direction_logits, align_corners=config.boundary_align_corners)
    losses["boundary"] = balanced_cross_entropy(boundary_logits, boundary_map, ignore_index, training)

    boundary_probability = boundary_logits.detach().softmax(dim=1)[:, 1]
    if config.direction_loss_region == "predicted":
        region = boundary_probability > config.boundary_threshold
    else:
        region = boundary_map == 1
    losses["direction"] = balanced_cross_entropy(
        direction_logits, torch.where(region, direction_map, ignore_index), ignore_index, training
    )

    score = boundary_probability if config.refinement_score == "probability" else boundary_logits[:, 1]
    refined_logits = refine_logits(logits, score > config.boundary_threshold, direction_logits.argmax(dim=1))
    losses["refined_segmentation"] = segmentation_cross_entropy(refined_logits, labels, config, training)
    return losses


class UneptForSemanticSegmentation(UneptPreTrainedModel):
    """UN-EPT with a per-pixel classifier, and heads for boundaries and the directions that lead away from them."""

    def __init__(self, config: UneptConfig):
        super().__init__(config)
        self.model = UneptModel(config)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)
        self.boundary_head = UneptBoundaryHead(config, 2) if config.use_boundary_heads else None
        self.direction_head = UneptBoundaryHead(config, len(DIRECTIONS)) if config.use_boundary_heads else None
        self.post_init()

    def _check_labels(self, name: str, labels: Tensor, pixel_values: Tensor, num_classes: int) -> None:
        if not isinstance(labels, Tensor):
            raise ValueError(f"{name} has to be a tensor, got {type(labels).__name__}.")
        expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"{name} has to be {expected}, one label for each pixel of pixel_values, got {tuple(labels.shape)}."
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"{name} has to be of an integer dtype, got {labels.dtype}.")
        # Reading values would break a compiled graph, and be a constant of a traced one.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and labels.numel() > 0:
            valid = (labels >= 0) & (labels < num_classes) | (labels == self.config.semantic_loss_ignore_index)
            if not valid.all():
                remedy = "boundary_targets makes it from the labels"
                if name == "labels":
                    remedy = "check num_labels, and whether the annotations need do_reduce_labels=True"
                raise ValueError(
                    f"{name} has the value {labels[~valid][0].item()}, but has to lie in 0..{num_classes - 1} or to "
                    f"be {self.config.semantic_loss_ignore_index} (semantic_loss_ignore_index): {remedy}."
                )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        boundary_map: Tensor | None = None,
        direction_map: Tensor | None = None,
        image_sizes: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UneptSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images. Height and width have to be multiples of the model's stride.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class of each pixel, or `config.semantic_loss_ignore_index`. With them the loss is computed.
            boundary_map (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for boundary pixels, 0 for others, or the ignored label; made from `labels` when missing.
            direction_map (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Direction 0..7 that leads away from the nearest boundary, or the ignored label; as above.
            image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Height and width of each image within a padded batch, from which the post-processing learns what is
                padding. The model itself does not look at them.
            output_attentions, output_hidden_states, return_dict:
                See [`UneptSemanticSegmenterOutput`].

        Returns:
            [`UneptSemanticSegmenterOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: for inputs of another shape, dtype or range.
        """
        if image_sizes is not None:
            image_sizes = torch.as_tensor(image_sizes)
            if tuple(image_sizes.shape) != (len(pixel_values), 2):
                raise ValueError(
                    f"image_sizes has to be ({len(pixel_values)}, 2), height and width of each image, got "
                    f"{tuple(image_sizes.shape)}."
                )
        if labels is not None:
            if self.config.num_labels == 1:
                raise ValueError(
                    "num_labels=1 trains nothing, because the only class always has the probability 1: use "
                    "num_labels=2, with the background as class 0."
                )
            self._check_labels("labels", labels, pixel_values, self.config.num_labels)
            if (boundary_map is None) != (direction_map is None):
                raise ValueError("boundary_map and direction_map have to be given together.")
            if boundary_map is not None:
                self._check_labels("boundary_map", boundary_map, pixel_values, 2)
                self._check_labels("direction_map", direction_map, pixel_values, len(DIRECTIONS))

        outputs = self.model(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        decoder_features = outputs.last_hidden_state.transpose(1, 2).unflatten(2, outputs.query_shape)
        logits = self.classifier(decoder_features)
        boundary_logits = direction_logits = None
        if self.boundary_head is not None:
            boundary_logits = self.boundary_head(outputs.spatial_features)
            direction_logits = self.direction_head(outputs.spatial_features)

        loss = loss_dict = None
        if labels is not None:
            labels = labels.long()
            if boundary_logits is not None and boundary_map is None:
                if torch.jit.is_tracing():
                    raise ValueError(
                        "Boundary targets are not computed by PyTorch, so a trace would keep those of its example: "
                        "pass boundary_map and direction_map (unept_hf.model.boundary.boundary_targets makes them)."
                    )
                boundary_map, direction_map = boundary_targets(
                    labels,
                    ignore_index=self.config.semantic_loss_ignore_index,
                    max_distance=self.config.max_boundary_distance,
                    ignore_unlabelled=self.config.ignore_unlabelled_boundaries,
                    min_class_pixels=self.config.min_boundary_class_pixels,
                )
            losses = segmentation_loss(
                logits,
                labels,
                self.config,
                boundary_logits,
                direction_logits,
                boundary_map,
                direction_map,
                training=self.training,
            )
            loss = sum(getattr(self.config, f"{name}_loss_weight") * value for name, value in losses.items())
            loss_dict = {name: value.detach() for name, value in losses.items()}

        return UneptSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            boundary_logits=boundary_logits,
            direction_logits=direction_logits,
            logits_sizes=image_sizes / self.config.query_stride if image_sizes is not None else None,
            loss_dict=loss_dict,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sampling_locations=outputs.sampling_locations,
        )


__all__ = ["UneptForSemanticSegmentation", "UneptModel", "UneptPreTrainedModel"]
