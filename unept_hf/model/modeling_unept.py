# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
UN-EPT: context branch, spatial branch, decoder, heads and the whole model, in the order in which an image meets them.

Source: Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", ICCV Workshops 2021.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.siglip.modeling_siglip import eager_attention_forward
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .backbone_unept import (
    backbone_feature_maps,
    check_state_dict,
    create_backbone,
    plain_tensors,
    pretrained_timm_weights,
    probe_backbone,
    read_state_dict,
    timm_backbone_weights,
)
from .boundary import DIRECTIONS, boundary_targets
from .configuration_unept import UneptConfig
from .deformable_attention import (
    deformable_attention,
    keep_backend,
    multi_scale_deformable_attention,
    sampling_locations_and_weights,
)
from .loss_unept import segmentation_loss


__all__ = ["UneptForSemanticSegmentation", "UneptModel", "UneptPreTrainedModel"]

logger = logging.get_logger(__name__)

# The image segmentation pipeline looks up names, and would log that the model is not supported. This file travels with
# a checkpoint, and so does the name.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["unept"] = "UneptForSemanticSegmentation"

SpatialShapes: TypeAlias = list[tuple[int, int]]
# Attention weights and sampling locations, or None where nobody asked for them.
Samples: TypeAlias = tuple[Tensor, Tensor] | None


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
            Locations of these samples, (x, y) as fractions of the level, of shape
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
    Output of [`UneptForSemanticSegmentation`]. Height and width are the image's, divided by the query stride 8.

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
        hidden_states, attentions, sampling_locations (`tuple[torch.Tensor]`, *optional*):
            As in [`UneptModelOutput`].
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


def sine_position_embedding(height: int, width: int, hidden_size: int, device: torch.device) -> Tensor:
    """
    Sine position embedding, float32 `(height * width, hidden_size)`: the first half of the features encodes the row,
    the second the column, both counted from 1 and normalized to 2 pi.

    Source: "Attention Is All You Need", section 3.5, in two dimensions as in DETR.
    """
    features = torch.arange(hidden_size // 2, device=device, dtype=torch.float32)
    wavelengths = 10000 ** (2 * (features // 2) / (hidden_size // 2))
    is_sine = features % 2 == 0

    def encode(size: int) -> Tensor:
        coordinates = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        angles = coordinates[:, None] / wavelengths
        return torch.where(is_sine, angles.sin(), angles.cos())

    rows = encode(height)[:, None].expand(height, width, -1)
    columns = encode(width)[None].expand(height, width, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def cell_centers(spatial_shapes: SpatialShapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Centers of the cells of all levels as (x, y) fractions, `(1, sum of height * width, 1, 2)`."""
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
    ) -> tuple[Tensor, Samples]:
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
    with weight 1, and only the value and output projections remain.
    """

    def __init__(self, config: UneptConfig):
        super().__init__()
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.out_proj(self.v_proj(hidden_states))


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


class UneptBatchAttention(UneptDenseAttention):
    """
    Decoder self-attention of the original code in training: it takes `(batch, queries, C)` for `(sequence, batch, C)`,
    so a query attends to the queries at its place in all images of the batch. In evaluation each image gets the
    result for itself alone, which is how the original's results were measured.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.training:
            return super().forward(hidden_states.transpose(0, 1)).transpose(0, 1)
        return self.out_proj(self.v_proj(hidden_states))


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
        # Between the two layers, features are several times as large as the input; in pieces they stay in the cache.
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
    ) -> tuple[Tensor, tuple[Samples, ...]]:
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
        self.self_attn: nn.Module
        if config.decoder_self_attention == "deformable":
            self.self_attn = UneptDeformableAttention(config, num_levels=1)
        elif config.decoder_self_attention == "dense":
            self.self_attn = UneptDenseAttention(config)
        elif config.decoder_self_attention == "batch":
            self.self_attn = UneptBatchAttention(config)
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
    ) -> tuple[Tensor, tuple[Samples, ...]]:
        samples: tuple[Samples, ...] = ()
        if isinstance(self.self_attn, UneptDeformableAttention):
            attention_output, self_samples = self.self_attn(
                hidden_states, hidden_states, [query_shape], reference_points, output_attentions
            )
            samples = (self_samples,)
        else:
            attention_output = self.self_attn(hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attention_output))
        attention_output, cross_samples = self.cross_attn(
            hidden_states, encoder_hidden_states, spatial_shapes, reference_points, output_attentions
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attention_output))
        hidden_states = self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))
        return hidden_states, (*samples, cross_samples)


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
        if features.requires_grad:
            # On the CPU, PyTorch's batch norm (2.11 to 2.15 at least) misreads the permuted gradient that token
            # sequences send back when the batch has a single image. Reshaping makes it contiguous.
            features = features.flatten(1).view_as(features)
        return features


class UneptBoundaryHead(nn.Sequential):
    """Per-cell classifier of the spatial features, for boundaries or directions."""

    def __init__(self, config: UneptConfig, num_classes: int):
        super().__init__(
            nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1, bias=False),
            nn.BatchNorm2d(config.hidden_size),
            nn.ReLU(),
            nn.Conv2d(config.hidden_size, num_classes, kernel_size=1, bias=False),
        )


class UneptPreTrainedModel(PreTrainedModel):
    config: UneptConfig
    config_class = UneptConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["TimmBackbone", "UneptEncoderLayer", "UneptDecoderLayer", "UneptSpatialBranch"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # forward takes **kwargs, but does not divide its loss by the items of an accumulated batch: Trainer must.
    accepts_loss_kwargs = False

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # For models outside of transformers, modules without parameters of their own are passed over, to protect
        # loaded weights from `tensor.data` assignments. The rules below make none, and some are for such modules.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The initialization of the original code: PyTorch's defaults, but for the context branch."""
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
            for linear in (module.value_proj, module.output_proj):
                init.zeros_(linear.bias)
            for linear in (module.sampling_offsets, module.attention_weights):
                init.zeros_(linear.weight)
                init.zeros_(linear.bias)
            # Head h looks in direction 2 pi h / heads, point p at distance p + 1 (Deformable DETR, section A.4).
            angles = torch.arange(module.num_heads, dtype=torch.float32) * (2 * math.pi / module.num_heads)
            ring = torch.stack((angles.cos(), angles.sin()), dim=-1)
            ring = (ring / ring.abs().amax(-1, keepdim=True))[:, None, None]
            distances = torch.arange(1, module.num_points + 1, dtype=torch.float32)[:, None]
            offsets = (ring * distances).expand(-1, module.num_levels, -1, -1)
            init.copy_(module.sampling_offsets.bias, offsets.flatten())
        elif isinstance(module, (UneptPointwiseAttention, UneptDenseAttention)):
            for name, child in module.named_children():
                assert isinstance(child, nn.Linear)
                if name != "out_proj":
                    # The original keeps query, key and value projection in one (3 C, C) matrix.
                    bound = math.sqrt(6 / (4 * child.in_features))
                    init.uniform_(child.weight, -bound, bound)
                init.zeros_(child.bias)
        elif isinstance(module, UneptModel):
            init.normal_(module.level_embed)
            init.normal_(module.query_embeddings)

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func=checkpoint, **kwargs
    ):
        def checkpoint_with_backend(function, *args, **options):
            # The backward computes again, in a thread of its own on a GPU, and perhaps after the choice has ended.
            return gradient_checkpointing_func(keep_backend(function), *args, **options)

        super()._set_gradient_checkpointing(enable, checkpoint_with_backend, **kwargs)
        # TimmBackbone does not pass it on.
        backbone: Any = self.base_model.backbone
        if backbone.config.model_type == "timm_backbone":
            features = backbone._backbone
            getattr(features, "model", features).set_grad_checkpointing(enable)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        with plain_tensors(str(pretrained_model_name_or_path)):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        # transformers makes every parameter that it loads trainable.
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
            **kwargs: `conventions`, and fields that replace the preset's, such as `num_labels`.

        Raises:
            ValueError: for an unknown name, or unknown conventions.
            OSError: when the weights cannot be downloaded.
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
            OSError: when the file does not exist, or the weights cannot be downloaded.
            ValueError: for a file without weights, or with weights that do not fit; nothing is loaded then.
        """
        backbone: Any = self.base_model.backbone
        is_timm = backbone.config.model_type == "timm_backbone"
        if checkpoint is not None:
            path = Path(checkpoint).expanduser()
            state_dict = read_state_dict(path / "model.safetensors" if path.is_dir() else path)
            if is_timm and not state_dict.keys() & backbone.state_dict().keys():
                state_dict = timm_backbone_weights(backbone.config, state_dict)
        elif is_timm:
            try:
                state_dict = pretrained_timm_weights(backbone.config)
            except Exception as error:
                raise OSError(
                    f"The pretrained weights of the timm model {backbone.config.backbone!r} could not be downloaded "
                    f"({error}). Without network, pass a local file to load_pretrained_backbone(checkpoint) "
                    "(--backbone_checkpoint), or start from random weights (--use_pretrained_backbone false)."
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
        backbone: Any = self.base_model.backbone
        if backbone.config.model_type == "timm_backbone":
            pretrained = backbone._backbone.pretrained_cfg
            options |= {"image_mean": pretrained["mean"], "image_std": pretrained["std"]}
        return options


class UneptModel(UneptPreTrainedModel):
    """
    UN-EPT without its heads: backbone, feature pyramid and context encoder; spatial branch and queries; decoder.
    """

    def __init__(self, config: UneptConfig):
        super().__init__(config)
        backbone_config = config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # whatever UneptConfig was given
        self.size_divisor, self.fixed_image_size, self._unused_backbone_parameters = probe_backbone(
            backbone_config.to_json_string(use_diff=False),
            config.num_channels,
            config.num_feature_levels,
            config.query_stride,
        )
        # A choice for the whole model is meant for the decoder: a backbone may lack that attention, or any attention.
        if backbone_config._attn_implementation == config._attn_implementation != "eager":
            backbone_config._attn_implementation = None
        self.backbone = create_backbone(backbone_config)
        self.freeze_unused_parameters()
        channels: Any = self.backbone.channels
        self.input_projections = nn.ModuleList(
            nn.Conv2d(in_channels, config.hidden_size, kernel_size=1)
            for in_channels in channels[-config.num_feature_levels :]
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
        divisor, shape, size = self.size_divisor, tuple(pixel_values.shape), self.fixed_image_size
        if (
            len(shape) == 4
            and shape[1] == self.config.num_channels
            and all(side > 0 and side % divisor == 0 for side in shape[2:])
            and size in (None, shape[2:])
            and pixel_values.is_floating_point()
        ):
            return
        sides, option = f"positive multiples of {divisor}", f"size_divisor={divisor}"
        if size is not None:
            sides, option = f"{size[0]} x {size[1]}", f"size={{'height': {size[0]}, 'width': {size[1]}}}"
        raise ValueError(
            f"pixel_values must be (batch, {self.config.num_channels}, height, width) of a floating point dtype, with "
            f"height and width {sides}, which the model needs, got {shape} of {pixel_values.dtype}: "
            f"UneptImageProcessor with {option} makes them from any image."
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> UneptModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images. Height and width must be multiples of the model's stride, `size_divisor`.
            output_attentions, output_hidden_states (`bool`, *optional*):
                Whether the output has these; the configuration's choice by default.

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
        # Half precision cannot tell neighboring cells apart.
        location_dtype = torch.promote_types(pixel_values.dtype, torch.float32)

        feature_maps = backbone_feature_maps(self.backbone, pixel_values, self.config.num_feature_levels)
        levels = [projection(feature_map) for projection, feature_map in zip(self.input_projections, feature_maps)]
        spatial_shapes = [(level.shape[2], level.shape[3]) for level in levels]
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        position_embeddings = torch.cat(
            [
                sine_position_embedding(*shape, self.config.hidden_size, hidden_states.device)
                + level_embed.to(hidden_states.device)
                for shape, level_embed in zip(spatial_shapes, self.level_embed)
            ]
        ).to(hidden_states.dtype)
        reference_points = cell_centers(spatial_shapes, hidden_states.device, location_dtype)
        all_hidden_states: list[Tensor] = [hidden_states] if output_hidden_states else []
        all_samples: list[Any] = []
        for encoder_layer in self.encoder_layers:
            hidden_states, samples = encoder_layer(
                hidden_states, position_embeddings, spatial_shapes, reference_points, output_attentions
            )
            all_samples += samples
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
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
                all_hidden_states.append(hidden_states)
        return UneptModelOutput(
            last_hidden_state=hidden_states,
            encoder_last_hidden_state=encoder_hidden_states,
            spatial_features=spatial_features,
            query_shape=query_shape,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(weights for weights, _ in all_samples) if output_attentions else None,
            sampling_locations=tuple(locations for _, locations in all_samples) if output_attentions else None,
        )


class UneptForSemanticSegmentation(UneptPreTrainedModel):
    """UN-EPT with a per-pixel classifier, and heads for boundaries and the directions that lead away from them."""

    def __init__(self, config: UneptConfig):
        super().__init__(config)
        self.model = UneptModel(config)
        assert config.num_labels is not None
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)
        self.boundary_head = UneptBoundaryHead(config, 2) if config.use_boundary_heads else None
        self.direction_head = UneptBoundaryHead(config, len(DIRECTIONS)) if config.use_boundary_heads else None
        self.post_init()

    def predict_boundaries(self, pixel_values: Tensor) -> UneptSemanticSegmenterOutput:
        r"""
        Boundaries and directions without classes. The heads read the spatial branch alone, so neither the backbone nor
        the encoder nor the decoder runs. Needs `config.use_boundary_heads`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images, as `forward` takes them.

        Returns:
            [`UneptSemanticSegmenterOutput`] with `boundary_logits` and `direction_logits`, the same as from `forward`.

        Raises:
            ValueError: for pixel values of another shape or dtype.
        """
        spatial_branch, boundary_head, direction_head = (
            self.model.spatial_branch,
            self.boundary_head,
            self.direction_head,
        )
        assert spatial_branch is not None and boundary_head is not None and direction_head is not None
        self.model._check_pixel_values(pixel_values)
        features = spatial_branch(pixel_values.to(self.model.level_embed.dtype))
        return UneptSemanticSegmenterOutput(
            boundary_logits=boundary_head(features), direction_logits=direction_head(features)
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
        **kwargs: Any,
    ) -> UneptSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images. Height and width must be multiples of the model's stride.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class of each pixel, or `config.semantic_loss_ignore_index`. With them the loss is computed.
            boundary_map (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for boundary pixels, 0 for others, or the ignored label; computed from `labels` if both maps are
                missing.
            direction_map (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Direction 0..7 that leads away from the nearest boundary, or the ignored label; as above.
            image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Height and width of each image within a padded batch, from which the post-processing learns where the
                padding is. The model itself does not look at them.
            output_attentions, output_hidden_states (`bool`, *optional*):
                Whether the output has these; the configuration's choice by default.

        Returns:
            [`UneptSemanticSegmenterOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: for pixel values or labels of another shape, and on the CPU for labels outside of the classes.
        """
        if labels is not None and self.config.num_labels == 1:
            raise ValueError(
                "num_labels=1 trains nothing, because the only class always has the probability 1: use num_labels=2, "
                "with the background as class 0."
            )
        if labels is not None and (labels.shape != pixel_values[:, 0].shape or labels.is_floating_point()):
            raise ValueError(
                f"labels must be integers, one for each pixel of pixel_values {tuple(pixel_values.shape)}, got "
                f"{tuple(labels.shape)} of {labels.dtype}."
            )

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
        if self.boundary_head is not None and self.direction_head is not None:
            boundary_logits = self.boundary_head(outputs.spatial_features)
            direction_logits = self.direction_head(outputs.spatial_features)

        loss = loss_dict = None
        if labels is not None:
            labels = labels.long()
            if boundary_logits is not None and boundary_map is None and direction_map is None:
                if torch.jit.is_tracing():
                    raise ValueError(
                        "Boundary targets are not computed by PyTorch, so a trace would keep its example's targets: "
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
