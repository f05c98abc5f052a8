# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of UN-EPT on torchvision."""

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import requires_backends

from .image_preprocessing import UneptImageProcessorKwargs, UneptPreprocessing, resize_with_pillow


__all__ = ["UneptImageProcessor"]

# The filters that torchvision has with antialiasing on every device, and since its oldest supported version.
_TORCHVISION_FILTERS = (PILImageResampling.NEAREST, PILImageResampling.BILINEAR, PILImageResampling.BICUBIC)


class UneptImageProcessor(UneptPreprocessing, TorchvisionBackend):
    r"""
    Image processor of UN-EPT: resizes, rescales, normalizes and pads images and their label maps, and turns the
    outputs of the model into label maps.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`):
            Whether to resize images to `size`. Otherwise they keep their size, and their sides are padded to the next
            multiple of `size_divisor` if `do_pad` is set.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            Length of the shorter side and maximum of the longer side in pixels, with both sides rounded to
            the nearest multiple of `size_divisor` in the same resize; or a fixed `{"height", "width"}` in multiples of
            `size_divisor`. A number stands for the shortest edge.
        size_divisor (`int`, *optional*, defaults to 16):
            Both sides of the output are multiples of it, in pixels.
        resample (`PILImageResampling`, *optional*, defaults to `BILINEAR`):
            Filter for images, with antialiasing. Label maps always take the nearest label. Filters beyond `NEAREST`,
            `BILINEAR` and `BICUBIC` are slower: Pillow applies them, on the CPU.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Whether to multiply pixels by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1 / 255`):
            The factor that takes pixels to [0, 1]. Above 0.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`, both in units of the rescaled pixels.
        image_mean (`list[float]`, *optional*, defaults to that of ImageNet):
            Mean of each channel.
        image_std (`list[float]`, *optional*, defaults to that of ImageNet):
            Standard deviation of each channel.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether to move labels down by one, for data sets in which 0 means "no class": 0 becomes
            `ignore_index`, which stays.
        ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels without a class, and of padding. It must be the model's `semantic_loss_ignore_index`.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to bring images to RGB. Transparent ones are laid over white.
        do_pad (`bool`, *optional*, defaults to `True`):
            Whether to pad images at the bottom and right to the largest height and width of the batch, rounded up to
            multiples of `size_divisor`.
        do_boundary_targets (`bool`, *optional*, defaults to `False`):
            Whether to return the targets of the boundary heads with the labels, made with the default options of
            `boundary_targets`. Leave it off for a model with other options, which makes its targets itself. Needs the
            package `edt`.
    """

    def __init__(self, **kwargs: Unpack[UneptImageProcessorKwargs]):
        # transformers imports this backend without torchvision too, and would fail only at the first image.
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)  # type: ignore[misc]

    def _to_backend(self, tensor: Tensor, device: "torch.device | str | None") -> Tensor:
        return tensor if device is None else tensor.to(device)

    def resize(  # type: ignore[override]
        self,
        image: Tensor,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        antialias: bool = True,
        **kwargs,
    ) -> Tensor:
        """
        Resizes images `(..., channels, height, width)`, uint8 or float32, to `size.height` and `size.width`. Floating
        point numbers stay in the range of each image, as 8 bit ones do.
        """
        if resample is None or resample in _TORCHVISION_FILTERS:
            resized = super().resize(image, size, resample, antialias, **kwargs)
        else:
            resized = torch.from_numpy(resize_with_pillow(image.numpy(force=True), size, resample)).to(image.device)
        if not image.is_floating_point():
            return resized
        return resized.clamp(*(limit((-3, -2, -1), keepdim=True) for limit in (image.amin, image.amax)))
