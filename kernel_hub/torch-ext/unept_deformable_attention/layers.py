# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The layer that transformers' models look for."""

from torch import Tensor, nn

from .attention import multi_scale_deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """Takes the place of transformers' layer of the same name. It has no state."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ):
        sizes = [size for shape in value_spatial_shapes_list for size in shape]
        return multi_scale_deformable_attention(value, sizes, sampling_locations, attention_weights)
