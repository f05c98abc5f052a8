# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT model configuration."""

import copy
import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import consolidate_backbone_kwargs_to_config
from transformers.utils import logging


__all__ = ["CONVENTIONS", "PRESETS", "UneptConfig"]

logger = logging.get_logger(__name__)

# The models of the paper (section 4.1) but for the decoder's self-attention, one for small GPUs, one that is small
# enough to train on a laptop and in tests, and later backbones, which we have not trained.
PRESETS: dict[str, dict[str, Any]] = {
    "unept-resnet50": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "resnet50c",
            "out_indices": [2, 3, 4],
            "output_stride": 8,
        },
    },
    "unept-deit-base": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "deit_base_distilled_patch16_224",
            "out_indices": [3, 7, 11],
            "model_args": {"img_size": 480, "dynamic_img_size": True},
        },
    },
    "unept-efficientnet-lite0": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "tf_efficientnet_lite0",  # pads as TensorFlow does, where its public weights are from
            "out_indices": [2, 3, 4],
        },
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_sampling_points": 4,
        "spatial_branch_channels": (32, 64, 128),
    },
    "unept-tiny": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "test_resnet",
            "out_indices": [2, 3, 4],
            "output_stride": 8,
        },
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_sampling_points": 4,
        "query_grid_size": (16, 16),
        "spatial_branch_channels": (16, 32, 64),
    },
    **{
        f"unept-dinov2-{size}": {
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": f"vit_{size}_patch14_dinov2.lvd142m",
                "out_indices": [3, 7, 11],
                # Patches of 14 pixels and queries of 8: 504 is the multiple of both that is nearest to 512.
                "model_args": {"img_size": 504, "dynamic_img_size": True},
            },
            "query_grid_size": (63, 63),
        }
        for size in ("small", "base")
    },
    **{
        f"unept-dinov3-{size}": {
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": f"vit_{size}_patch16_dinov3.lvd1689m",
                "out_indices": [3, 7, 11],
            },
            "query_grid_size": (64, 64),
        }
        for size in ("small", "base")
    },
    "unept-convnext-tiny": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "convnext_tiny.fb_in22k",
            "out_indices": [1, 2, 3],
        },
        "query_grid_size": (64, 64),
    },
}

# Fields under one word, for training: the defaults, and what the original code of 2021 does. The decoder is part of
# the weights, so only the original's conventions name one.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "corrected": {
        "loss_reduction": "valid",
        "direction_loss_region": "predicted",
        "refinement_score": "probability",
        "boundary_align_corners": False,
        "ignore_unlabelled_boundaries": True,
        "min_boundary_class_pixels": 0,
        "boundary_targets_from": "crop",
        "balance_boundaries_per_process": False,
    },
    "original": {
        "decoder_self_attention": "batch",
        "loss_reduction": "all",
        "direction_loss_region": "predicted",
        "refinement_score": "logit",
        "boundary_align_corners": True,
        "ignore_unlabelled_boundaries": False,
        "min_boundary_class_pixels": 100,
        "boundary_targets_from": "image",
        "balance_boundaries_per_process": True,
    },
}


@strict
class UneptConfig(PreTrainedConfig):
    r"""
    Configuration of [`UneptModel`] and [`UneptForSemanticSegmentation`]. The defaults give the ResNet-50 model of the
    paper but for `decoder_self_attention`; `UneptConfig.from_preset` has the others.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Any backbone configuration of transformers, or a `timm_backbone` one for any timm feature extractor. Extra
            arguments of `timm.create_model` go into its `model_args`. `None` stands for the dilated ResNet-50-C.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the pyramid, the encoder, the decoder and the heads.
        encoder_layers (`int`, *optional*, defaults to 2):
            Number of context encoder layers.
        decoder_layers (`int`, *optional*, defaults to 2):
            Number of decoder layers.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of heads of every attention layer. Must divide `hidden_size`.
        num_feature_levels (`int`, *optional*, defaults to 3):
            Number of pyramid levels (Table 5: 3, or 1 for a single scale). The last maps of the backbone are taken.
        num_sampling_points (`int`, *optional*, defaults to 16):
            Number of points that a query samples on each level with each head (Table 6).
        intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the feed-forward layers.
        dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability after the attention and in the feed-forward layers.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability of the attention weights of the decoder self-attentions `"dense"` and `"batch"`.
        activation_function (`str`, *optional*, defaults to `"relu"`):
            Activation of the feed-forward layers.
        decoder_self_attention (`str`, *optional*, defaults to `"deformable"`):
            `"deformable"`: a query samples the query grid, which was best in our ablations; `"pointwise"`: a query
            sees only itself, as in the original code for a single image, so in its weights and the published
            results; `"dense"`: every query sees every query; `"batch"`: a fault of the original code, for repeating
            its training: in training mode, a query sees the queries at its place in all images of the batch, and
            otherwise only itself, as with `"pointwise"`.
        query_grid_size (`tuple[int, int]`, *optional*, defaults to `(60, 60)`):
            Height and width of the learned query embedding: one query for each cell of the training crop (480 / 8).
            Other input sizes interpolate it.
        use_spatial_branch (`bool`, *optional*, defaults to `True`):
            Whether the queries start from the spatial branch. Without it they are the learned embedding alone.
        spatial_branch_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 128, 256)`):
            Output channels of the stride-2 convolutions of the spatial branch; their number also sets the stride of
            the queries. The last must equal `hidden_size`.
        use_boundary_heads (`bool`, *optional*, defaults to `True`):
            Whether boundaries and directions are predicted, trained and used to refine the logits.
        boundary_threshold (`float`, *optional*, defaults to 0.5):
            A pixel is taken for a boundary pixel when its boundary score exceeds this value.
        max_boundary_distance (`int`, *optional*, defaults to 5):
            A pixel belongs to the boundary when its distance to another class, in whole pixels, is at most this.
        segmentation_loss_weight (`float`, *optional*, defaults to 0.8):
            Weight of the cross entropy of the logits.
        boundary_loss_weight (`float`, *optional*, defaults to 5.0):
            Weight of the balanced cross entropy of the boundary logits.
        direction_loss_weight (`float`, *optional*, defaults to 0.6):
            Weight of the balanced cross entropy of the direction logits.
        refined_segmentation_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the cross entropy of the refined logits.
        dice_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the Dice loss of the logits. Unlike the cross entropies, it and the Lovász loss hold the
            probabilities of all classes at full size.
        lovasz_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the Lovász-Softmax loss of the logits.
        class_weights (`tuple[float, ...]`, *optional*):
            Weight of each class in the cross entropies of the logits and the refined logits, which are weighted means.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is spread over all classes in these cross entropies.
        ohem_threshold (`float`, *optional*):
            With it, these cross entropies count the hard pixels alone (online hard example mining): those whose label
            has a probability below this value.
        ohem_min_pixels (`int`, *optional*, defaults to 100000):
            The least number of pixels that hard example mining counts, for each image of the batch.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label that no loss counts.
        loss_reduction (`str`, *optional*, defaults to `"valid"`):
            The segmentation cross entropies are means over the `"valid"` pixels, or over `"all"` (original code).
        direction_loss_region (`str`, *optional*, defaults to `"predicted"`):
            Where the direction is learned: on `"predicted"` boundary pixels (original code) or on the `"target"` ones.
        refinement_score (`str`, *optional*, defaults to `"probability"`):
            The score that `boundary_threshold` applies to when the loss refines the logits: the boundary
            `"probability"`, or the raw `"logit"` (original code).
        boundary_align_corners (`bool`, *optional*, defaults to `False`):
            `align_corners` of the interpolation that brings boundary and direction logits to the size of the labels
            in the loss (`True` in the original code).
        ignore_unlabelled_boundaries (`bool`, *optional*, defaults to `True`):
            Whether unlabeled pixels are left out of the boundary targets computed from `labels`. The original code
            takes them for boundary pixels.
        min_boundary_class_pixels (`int`, *optional*, defaults to 0):
            Classes with fewer pixels in an image count as unlabeled when boundary targets are computed from `labels`
            (100 in the original target generator).
        boundary_targets_from (`str`, *optional*, defaults to `"crop"`):
            What `TrainingAugmentation` makes boundary targets from: the `"crop"` after resizing and flipping, or the
            whole label map of the `"image"` before it (original code). The targets are then resized, cropped and
            flipped like labels, so their boundaries get wider with the image, and a flip keeps the values of
            directions. The model and the image processor always make them from the labels that they get.
        balance_boundaries_per_process (`bool`, *optional*, defaults to `False`):
            Whether each process weighs the classes of boundaries and directions by their frequency among its own
            pixels (original code) instead of among those of all processes.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        class_colors (`list`, *optional*):
            The color of each class in pictures: `"#rrggbb"` or `[red, green, blue]` in 0..255, kept as `"#rrggbb"`.
            The functions of `unept_hf.visualization` take it as their `palette`, and choose colors for `None`.

    Raises:
        ValueError: (wrapped by the strict dataclass) for fields of a wrong type or value, all wrong values in one
            message.

    Source: Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", sections 3 and 4.

    Example:

    ```python
    >>> from unept_hf import UneptConfig, UneptForSemanticSegmentation

    >>> config = UneptConfig.from_preset("unept-tiny", num_labels=19)
    >>> model = UneptForSemanticSegmentation(config)
    ```"""

    model_type = "unept"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = [
        "boundary_logits",
        "direction_logits",
        "logits_sizes",
        "loss_dict",
        "hidden_states",
        "attentions",
        "sampling_locations",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 2
    num_attention_heads: int = 8
    num_feature_levels: int = 3
    num_sampling_points: int = 16
    intermediate_size: int = 2048
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_function: str = "relu"
    decoder_self_attention: Literal["pointwise", "dense", "deformable", "batch"] = "deformable"
    query_grid_size: list[int] | tuple[int, ...] = (60, 60)
    use_spatial_branch: bool = True
    spatial_branch_channels: list[int] | tuple[int, ...] = (64, 128, 256)
    use_boundary_heads: bool = True
    boundary_threshold: float | int = 0.5
    max_boundary_distance: int = 5
    segmentation_loss_weight: float | int = 0.8
    boundary_loss_weight: float | int = 5.0
    direction_loss_weight: float | int = 0.6
    refined_segmentation_loss_weight: float | int = 1.0
    dice_loss_weight: float | int = 0.0
    lovasz_loss_weight: float | int = 0.0
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    label_smoothing: float | int = 0.0
    ohem_threshold: float | int | None = None
    ohem_min_pixels: int = 100_000
    semantic_loss_ignore_index: int = 255
    loss_reduction: Literal["valid", "all"] = "valid"
    direction_loss_region: Literal["predicted", "target"] = "predicted"
    refinement_score: Literal["probability", "logit"] = "probability"
    boundary_align_corners: bool = False
    ignore_unlabelled_boundaries: bool = True
    min_boundary_class_pixels: int = 0
    boundary_targets_from: Literal["crop", "image"] = "crop"
    balance_boundaries_per_process: bool = False
    num_channels: int = 3
    class_colors: list[Any] | tuple[Any, ...] | None = None

    def __setattr__(self, name, value):
        if name == "class_colors" and value is not None:
            value = [_hex_color(color) for color in value]
        super().__setattr__(name, value)
        if name == "id2label":
            # As `config.num_labels = 19` does before a fine-tuning: colors and weights were those of other classes.
            for field in ("class_colors", "class_weights"):
                if (values := getattr(self, field)) is not None and len(values) != len(value or ()):
                    super().__setattr__(field, None)

    def __post_init__(self, **kwargs):
        if "use_pretrained_backbone" in kwargs:
            raise ValueError(
                "use_pretrained_backbone is not part of the configuration, because weights are loaded into a model: "
                "use UneptForSemanticSegmentation.from_preset(..., use_pretrained_backbone=True) or "
                "model.load_pretrained_backbone()."
            )
        if "conventions" in kwargs:
            raise ValueError(
                "conventions is not a field of the configuration, because it stands for several fields: use "
                "UneptConfig.from_preset(name, conventions=...)."
            )
        # Other models of transformers take these in place of backbone_config.
        for name in ("backbone", "use_timm_backbone", "backbone_kwargs"):
            if kwargs.get(name) is not None:
                backbone = kwargs.get("backbone") or "resnet50c"
                raise ValueError(
                    f"UneptConfig does not take {name}={kwargs[name]!r}: describe the backbone in backbone_config, "
                    f"for a timm model as backbone_config={{'model_type': 'timm_backbone', 'backbone': {backbone!r}, "
                    "'out_indices': [2, 3, 4]}."
                )
        # A Hub folder's pointer to the code in it, which saving with the installed package would not write again.
        if __name__.startswith("unept_hf."):
            kwargs.pop("auto_map", None)
        # PreTrainedConfig keeps unknown keywords as attributes, so a typo would pass unseen.
        fields = list(type(self).__dataclass_fields__)
        for name in kwargs:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
            if close and name not in fields:
                logger.warning(f"UneptConfig has no field {name!r}; did you mean {close[0]!r}?")

        class_colors, class_weights = self.class_colors, self.class_weights
        if self.id2label is None and self.label2id:
            self.id2label = {index: label for label, index in self.label2id.items()}
        if self.id2label:
            # Keys are strings in JSON.
            labels = {str(index): label for index, label in self.id2label.items()}
            count = len(self.id2label)
            if labels.keys() != set(map(str, range(count))):
                raise ValueError(
                    f"id2label must have the keys 0..{count - 1} for its {count} classes, got "
                    f"{', '.join(list(labels)[:10])}: count from 0 without gaps."
                )
            if kwargs.get("num_labels") not in (None, count):
                raise ValueError(
                    f"num_labels={kwargs['num_labels']}, but id2label names {count} classes: give one of them."
                )
            self.id2label = {index: labels[str(index)] for index in range(count)}
            self.label2id = {label: index for index, label in self.id2label.items()}
        if self.backbone_config is None:
            self.backbone_config = copy.deepcopy(PRESETS["unept-resnet50"]["backbone_config"])
        if isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                problem = "no model_type" if model_type is None else f"the unknown model_type {model_type!r}"
                raise ValueError(
                    f"backbone_config has {problem}: use 'timm_backbone' for a timm model, or the model type of a "
                    "transformers backbone such as 'resnet'."
                )
            # from_dict of some configurations changes the dict it is given.
            self.backbone_config, _ = consolidate_backbone_kwargs_to_config(dict(self.backbone_config))
        super().__post_init__(**kwargs)
        self.class_colors, self.class_weights = class_colors, class_weights  # of whatever number, which is checked

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        # Overrides take part in the construction, so that contradictions are found.
        config_dict = dict(config_dict)
        classes = ("id2label", "label2id", "num_labels")
        count = len(config_dict.get("id2label") or {})
        if "id2label" in kwargs or "label2id" in kwargs or kwargs.get("num_labels", count) != count:
            # The file's fields of classes belong together.
            for name in (*classes, "class_weights", "class_colors"):
                config_dict.pop(name, None)
        config_dict.update({name: kwargs.pop(name) for name in (*cls.__annotations__, *classes) if name in kwargs})
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Number of encoder and decoder layers, so of `hidden_states` less the encoder's input."""
        return self.encoder_layers + self.decoder_layers

    @property
    def query_stride(self) -> int:
        """Pixels of the image, in each direction, for one query and one logit."""
        return 2 ** len(self.spatial_branch_channels)

    @classmethod
    def from_preset(cls, name: str, conventions: str = "corrected", **kwargs) -> "UneptConfig":
        """
        Configuration of a named model.

        Args:
            name (`str`):
                A key of `PRESETS`: the README has a table of them. All presets have deformable self-attention in the
                decoder, where the published results have `"pointwise"`.
            conventions (`str`, *optional*, defaults to `"corrected"`):
                `"original"` sets the loss, its targets and the decoder's self-attention to what the original code
                does in training; docs/fidelity.md lists the fields.
            **kwargs:
                Fields that replace those of the preset and of the conventions, such as `num_labels` or
                `query_grid_size`.

        Raises:
            ValueError: for an unknown name, or unknown conventions.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}; the presets are {', '.join(sorted(PRESETS))}.")
        if conventions not in CONVENTIONS:
            raise ValueError(f"Unknown conventions {conventions!r}; the choices are {', '.join(CONVENTIONS)}.")
        return cls(**{**copy.deepcopy(PRESETS[name]), **CONVENTIONS[conventions], **kwargs})

    def validate_fields(self):
        """Values that are out of range or do not fit together, all in one message."""
        if problems := list(self._problems()):
            raise ValueError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        sizes = ("hidden_size", "num_attention_heads", "num_feature_levels", "num_sampling_points")
        for name in (*sizes, "intermediate_size", "num_channels", "num_labels"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}."
        losses = ("segmentation", "boundary", "direction", "refined_segmentation", "dice", "lovasz")
        weights = [f"{name}_loss_weight" for name in losses]
        counts = ("encoder_layers", "decoder_layers", "min_boundary_class_pixels", "max_boundary_distance")
        for name in (*counts, "ohem_min_pixels", *weights):
            if not 0 <= getattr(self, name) < float("inf"):
                yield f"{name} must be a finite number of at least 0, got {getattr(self, name)}."
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must lie in [0, 1), got {getattr(self, name)}."
        if self.class_weights is not None:
            if len(self.class_weights) != self.num_labels:
                yield f"class_weights has {len(self.class_weights)} weights, but there are {self.num_labels} classes."
            if not all(0 <= weight < float("inf") for weight in self.class_weights):
                yield f"class_weights must be finite numbers of at least 0, got {list(self.class_weights)}."
        if not 0 <= self.label_smoothing <= 1:
            yield f"label_smoothing must lie in [0, 1], got {self.label_smoothing}."
        if self.ohem_threshold is not None and not 0 < self.ohem_threshold <= 1:
            yield f"ohem_threshold is a probability within (0, 1], got {self.ohem_threshold}."
        if self.refinement_score == "probability" and not 0 <= self.boundary_threshold <= 1:
            yield f"boundary_threshold is a probability within [0, 1], got {self.boundary_threshold}."
        if self.activation_function not in ACT2FN:
            yield f"activation_function={self.activation_function!r} is not known to transformers."
        if len(self.query_grid_size) != 2 or min(self.query_grid_size) < 1:
            yield f"query_grid_size must be a positive height and width, got {self.query_grid_size}."
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            yield (
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}: "
                "change one of the two."
            )
        if self.hidden_size % 4:
            yield (
                f"hidden_size={self.hidden_size} must be a multiple of 4, because the sine position embedding gives "
                "half of it to rows and half to columns, each as sine and cosine pairs."
            )
        channels = tuple(self.spatial_branch_channels)
        if min(channels, default=0) < 1 or (self.use_spatial_branch and channels[-1] != self.hidden_size):
            yield (
                f"spatial_branch_channels={channels} must be positive widths that end with "
                f"hidden_size={self.hidden_size}, because the output of the branch is added to the queries."
            )
        if self.use_boundary_heads and not self.use_spatial_branch:
            yield (
                "use_boundary_heads=True needs use_spatial_branch=True, because the heads read the spatial branch: "
                "set use_boundary_heads=False or use_spatial_branch=True."
            )
        if 0 <= self.semantic_loss_ignore_index < (self.num_labels or 0):
            yield (
                f"semantic_loss_ignore_index={self.semantic_loss_ignore_index} is one of the {self.num_labels} "
                "classes (num_labels): choose another, for example -100."
            )
        if self.class_colors is not None:
            if len(self.class_colors) != self.num_labels:
                yield (
                    f"class_colors has {len(self.class_colors)} colors for {self.num_labels} classes: give one for "
                    "each, or None."
                )
            for index, color in enumerate(self.class_colors):
                if not isinstance(color, str) or not re.fullmatch("#[0-9a-f]{6}", color):
                    yield f"class_colors[{index}] is {color!r}: give '#rrggbb', or [red, green, blue] in 0..255."
                    break
        backbone: Any = self.backbone_config
        out_indices = getattr(backbone, "out_indices", None)
        if out_indices is None:
            yield (
                f"backbone_config of type {backbone.model_type!r} is not a backbone: it has no out_indices. Use a "
                "timm_backbone or a transformers backbone configuration."
            )
        elif len(out_indices) < self.num_feature_levels:
            yield (
                f"num_feature_levels={self.num_feature_levels}, but backbone_config gives {len(out_indices)} feature "
                f"map(s) (out_indices={list(out_indices)}): name more out_indices or lower num_feature_levels."
            )
        if getattr(backbone, "num_channels", self.num_channels) != self.num_channels:
            yield (
                f"num_channels={self.num_channels}, but backbone_config takes {backbone.num_channels}: set "
                "num_channels in both."
            )


def _hex_color(color: Any) -> Any:
    """A color as "#rrggbb"; anything else stays as it is."""
    is_triple = isinstance(color, (list, tuple)) and len(color) == 3
    if is_triple and all(type(value) is int and 0 <= value <= 255 for value in color):
        return "#{:02x}{:02x}{:02x}".format(*color)
    return color.lower() if isinstance(color, str) else color
