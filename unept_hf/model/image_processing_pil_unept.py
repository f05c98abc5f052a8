# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of UN-EPT on PIL and NumPy."""

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict

from .image_preprocessing import UneptImageProcessorKwargs, UneptPreprocessing, resize_with_pillow


__all__ = ["UneptImageProcessorPil"]


class UneptImageProcessorPil(UneptPreprocessing, PilBackend):
    """
    Image processor of UN-EPT on PIL and NumPy. It gives the same as [`UneptImageProcessor`], up to the rounding of
    resized 8 bit pixels, and needs no torchvision. `UneptImageProcessor` describes the arguments.
    """

    # transformers looks for the class of the arguments in the module of a processor.
    valid_kwargs = UneptImageProcessorKwargs  # type: ignore[assignment]

    def _to_backend(self, tensor: Tensor, device: "torch.device | str | None") -> np.ndarray:
        return tensor.numpy(force=True)

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        reducing_gap: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """See `resize_with_pillow`. Floating point numbers stay in the range of the image, as 8 bit ones do."""
        resized = resize_with_pillow(image, size, PILImageResampling.BILINEAR if resample is None else resample)
        return resized.clip(image.min(), image.max()) if image.dtype.kind == "f" else resized
