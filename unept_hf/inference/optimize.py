# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""A model that computes the same in less time, and can no longer be trained."""

from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..model.modeling_unept import UneptPreTrainedModel


__all__ = ["optimize_for_inference"]


@torch.no_grad()
def optimize_for_inference(model: UneptPreTrainedModel) -> UneptPreTrainedModel:
    """
    Folds each batch norm into the convolution before it, and lays out the weights of convolutions channels last. The
    results differ by rounding alone.

    The model is changed in place, and cannot be trained or saved any more: optimize it last, after `to` has moved and
    converted it.

    Args:
        model: in evaluation mode.

    Returns:
        The same model.

    Raises:
        ValueError: for a model in training mode, whose batch norms take their statistics from the batch.
    """
    if model.training:
        raise ValueError(
            "The model is in training mode, but optimize_for_inference is for use: call model.eval() first."
        )
    for convolution, normalization in _convolutions_before_batch_norms(model):
        dtype = convolution.weight.dtype
        parameters: list[Any] = [
            convolution.weight, convolution.bias, normalization.running_mean, normalization.running_var,
            normalization.eps, normalization.weight, normalization.bias,
        ]  # fmt: skip
        parameters = [value.float() if isinstance(value, Tensor) else value for value in parameters]
        convolution.weight, convolution.bias = (
            nn.Parameter(value.to(dtype), requires_grad=False) for value in fuse_conv_bn_weights(*parameters)
        )
        _replace(model, normalization)
    model.requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]

    def refuse(*args, **kwargs):
        raise ValueError("A model after optimize_for_inference cannot be saved: save it before, and optimize a copy.")

    model.save_pretrained = refuse  # type: ignore[method-assign]
    return model


def _convolutions_before_batch_norms(model: UneptPreTrainedModel) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """
    The pairs in which a batch norm takes what the convolution returns, found by running the model: whatever a backbone
    calls its modules, and in whatever order it has them.
    """
    makers: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # with the tensor, so that its id names no other tensor
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []
    calls: Counter[nn.Module] = Counter()

    def after(module, inputs, output):
        calls[module] += 1
        makers[id(output)] = (module, output)

    def before(module, inputs):
        calls[module] += 1
        if id(inputs[0]) in makers:
            pairs.append((makers[id(inputs[0])][0], module))

    hooks = [module.register_forward_hook(after) for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks += [module.register_forward_pre_hook(before) for module in model.modules() if isinstance(module, _BatchNorm)]
    unept: Any = model.base_model
    size = unept.fixed_image_size or (2 * unept.size_divisor, 2 * unept.size_divisor)
    try:
        model(torch.zeros(1, model.config.num_channels, *size, dtype=model.dtype, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    normalized = Counter(convolution for convolution, _ in pairs)
    return [
        (convolution, normalization)
        for convolution, normalization in pairs
        if calls[convolution] == calls[normalization] == normalized[convolution] == 1
        and normalization.running_mean is not None
    ]


def _replace(model: nn.Module, normalization: _BatchNorm) -> None:
    """Puts in the place of a batch norm what it does besides: nothing, or in timm's the activation."""
    besides = [normalization.drop, normalization.act] if isinstance(normalization, BatchNormAct2d) else []
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is normalization:
                setattr(parent, name, nn.Sequential(*besides) if besides else nn.Identity())
