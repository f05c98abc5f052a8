# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Lends the kernels of deformable attention to transformers' own deformable models."""

import importlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers.models
from torch import Tensor

from .model.deformable_attention import multi_scale_deformable_attention


__all__ = ["accelerate_transformers"]


class _Acceleration:
    """Operators that are replaced for the whole process, by the first of its users until the last one leaves."""

    def __init__(self):
        self._undo, self._users, self._lock = ExitStack(), 0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                for owner, name, function in _replacements():
                    self._undo.callback(setattr, owner, name, getattr(owner, name))
                    setattr(owner, name, function)
            self._users += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._undo.close()


_acceleration = _Acceleration()


def accelerate_transformers() -> ExitStack:
    """
    Makes the deformable models of transformers use [`multi_scale_deformable_attention`], for all of the process.

    These are Deformable DETR, RT-DETR, RT-DETR v2, Grounding DINO, Mask2Former, OneFormer and all others that have one
    of the three forms of the operator in transformers. Outputs differ by rounding only. Samplers that take the nearest
    cell, or different numbers of points on different levels, keep their own code.

    D-FINE and DEIMv2 look the operator up when a model is built, so call this first.

    Returns:
        A context manager whose `close()`, or the end of its `with` block, undoes the change. Of several calls, also in
        several threads, the last to be undone puts transformers' own code back.

    Example:
        ```python
        with accelerate_transformers():
            outputs = AutoModelForObjectDetection.from_pretrained("SenseTime/deformable-detr")(**inputs)
        ```
    """
    undo = ExitStack()
    undo.enter_context(_acceleration)
    return undo


_DEFINITION = re.compile(r"^class MultiScaleDeformableAttention\(|^def multi_scale_deformable_attention", re.M)


def _replacements() -> Iterator[tuple[Any, str, Callable]]:
    for module in _deformable_modules():
        if hasattr(module, "MultiScaleDeformableAttention"):
            yield module.MultiScaleDeformableAttention, "forward", _module_forward
        if hasattr(module, "multi_scale_deformable_attention"):
            yield module, "multi_scale_deformable_attention", _function_forward
        if hasattr(module, "multi_scale_deformable_attention_v2"):
            original = module.multi_scale_deformable_attention_v2
            yield module, "multi_scale_deformable_attention_v2", _function_v2_forward(original)


def _deformable_modules() -> Iterator[ModuleType]:
    for path in Path(transformers.models.__path__[0]).glob("*/modeling_*.py"):
        # Most of transformers' hundreds of models need not be imported for this.
        if _DEFINITION.search(path.read_text("utf-8")):
            yield importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")


def _module_forward(
    self,
    value,
    value_spatial_shapes,
    value_spatial_shapes_list,
    level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    return multi_scale_deformable_attention(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _function_forward(value, value_spatial_shapes, sampling_locations, attention_weights):
    if isinstance(value_spatial_shapes, Tensor):
        value_spatial_shapes = value_spatial_shapes.tolist()
    return multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def _function_v2_forward(original):
    def forward(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"):
        if method != "default" or len(set(num_points_list)) != 1:
            return original(
                value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method
            )
        split = (len(num_points_list), num_points_list[0])
        return _function_forward(
            value, value_spatial_shapes, sampling_locations.unflatten(3, split), attention_weights.unflatten(3, split)
        )

    return forward
