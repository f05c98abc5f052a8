# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The image processors of both backends, and pictures and label maps for tests of them."""

import numpy as np
import torch

from unept_hf.model.image_processing_pil_unept import UneptImageProcessorPil
from unept_hf.model.image_processing_unept import UneptImageProcessor


CLASSES = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth uint8 RGB image, `(height, width, 3)`."""
    rows, columns = np.mgrid[:height, :width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    return (127.5 + 120 * np.sin(rows[..., None] / 9 + columns[..., None] / 14 + phases)).astype(np.uint8)


def blocks(height: int, width: int) -> np.ndarray:
    """A uint8 label map of four classes in four corners, with a stripe of unlabeled pixels."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] += 1
    labels[:, width // 2 :] += 2
    labels[height // 4] = 255
    return labels


def read_pixels(processor, image, **kwargs) -> np.ndarray:
    """What the processor makes of an image before resizing and normalizing: `(height, width, 3)`, without padding."""
    kwargs = {"do_resize": False, "do_rescale": False, "do_normalize": False, **kwargs}
    inputs = processor(image, return_tensors="pt", **kwargs)
    assert inputs["pixel_values"].dtype == torch.float32
    height, width = inputs["image_sizes"][0]
    return inputs["pixel_values"][0, :, :height, :width].permute(1, 2, 0).numpy()
