# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Where the deformable attention of one pixel looks."""

import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..inference.segment import evaluation_mode
from .overlay import read_image


__all__ = ["SamplingPoints", "sampling_points"]


@dataclass
class SamplingPoints:
    """
    Where one query of a deformable attention looks, in pixels of the image: (0, 0) is the center of its first pixel.

    Args:
        locations (`np.ndarray` of shape `(heads, levels, points, 2)`): (x, y) of each sample.
        weights (`np.ndarray` of shape `(heads, levels, points)`): the weight of each sample; their sum is 1 for each
            head.
        query (`tuple[float, float]`): (x, y) of the center of the query's cell.
        layer (`str`): name of the layer.
        strides (`tuple[float, ...]`): for each level, the side of a cell in pixels of the image.
    """

    locations: np.ndarray
    weights: np.ndarray
    query: tuple[float, float]
    layer: str
    strides: tuple[float, ...]


def _deformable_layers(config) -> list[tuple[str, bool]]:
    """Name of each entry of `attentions`, and whether its queries are the tokens of the pyramid."""
    layers = [(f"encoder layer {index + 1}, self-attention", True) for index in range(config.encoder_layers)]
    for index in range(config.decoder_layers):
        if config.decoder_self_attention == "deformable":
            layers.append((f"decoder layer {index + 1}, self-attention", False))
        layers.append((f"decoder layer {index + 1}, cross-attention", False))
    return layers


def sampling_points(
    model: PreTrainedModel, processor, image, point: tuple[float, float], layer: int = -1, level: int = 0
) -> SamplingPoints:
    """
    Where the deformable attention of one pixel looks.

    The model sees the whole image at once, as the processor makes it, and its weights for all pixels are in memory for
    a moment: 1 to 2 GB for 2,000 x 1,000 pixels.

    Args:
        model: `UneptForSemanticSegmentation` or `UneptModel`.
        processor: its image processor.
        image: PIL image, array or tensor, or the path or address of an image file.
        point: (x, y) of the pixel in the image.
        layer: index of the deformable attention: encoder layers come first, then those of the decoder, in order. -1 is
            the last, from which the classes are predicted.
        level: in the encoder, where queries are cells of the pyramid, the level whose cell is taken.

    Raises:
        IndexError: for a layer or level that does not exist.
        ValueError: for a point outside of the image, or a model that is not a UN-EPT.
    """
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    if not (0 <= point[0] <= width - 1 and 0 <= point[1] <= height - 1):
        raise ValueError(f"point {tuple(point)} is not (x, y) within an image of width {width} and height {height}.")
    if model.config.model_type != "unept":
        raise ValueError(f"{type(model).__name__} is not a UN-EPT model, so its sampling points are not known.")
    base: Any = model.base_model
    name, is_encoder = _deformable_layers(model.config)[layer]

    inputs = processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
    pixel_values = inputs["pixel_values"].to(base.device, base.dtype)
    shapes: list[tuple[int, int]] = []
    thread = threading.get_ident()

    def keep_shape(module, args, output):
        if threading.get_ident() == thread:  # others may use the model at the same time
            shapes.append(output.shape[-2:])

    with ExitStack() as stack, evaluation_mode(model):
        for projection in base.input_projections:
            stack.callback(projection.register_forward_hook(keep_shape).remove)
        outputs = base(pixel_values, output_attentions=True)
    # The part of the padded input that the image covers, as (x, y).
    padded = np.array(pixel_values.shape[:1:-1], dtype=np.float64)
    covered = np.array(inputs["image_sizes"][0].tolist()[::-1]) / padded
    size = np.array([width, height])
    fraction = (np.array(point) + 0.5) / size * covered
    grid = shapes[level] if is_encoder else outputs.query_shape
    row, column = int(fraction[1] * grid[0]), int(fraction[0] * grid[1])
    index = sum(math.prod(shape) for shape in shapes[:level]) if is_encoder else 0
    index += row * grid[1] + column

    def to_pixels(positions: np.ndarray) -> np.ndarray:
        return positions / covered * size - 0.5

    weights = outputs.attentions[layer][0, index].double().numpy(force=True)
    locations = outputs.sampling_locations[layer][0, index].double().numpy(force=True)
    levels = shapes if locations.shape[1] == len(shapes) else [outputs.query_shape]
    x, y = to_pixels(np.array([(column + 0.5) / grid[1], (row + 0.5) / grid[0]])).tolist()
    strides = tuple(float(width / covered[0] / shape[1]) for shape in levels)
    return SamplingPoints(to_pixels(locations), weights, (x, y), name, strides)
