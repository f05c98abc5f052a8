# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The weights with which the fixtures were recorded: they are not stored, but follow from a rule."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor


DEIT_TINY = {
    "backbone_config": {
        "model_type": "timm_backbone",
        "backbone": "deit_tiny_distilled_patch16_224",
        "out_indices": [3, 7, 11],
        "model_args": {"img_size": 64, "embed_dim": 48, "depth": 12, "num_heads": 3},
    },
    "num_sampling_points": 4,
    "intermediate_size": 128,
    "num_labels": 7,
}
# Kind of weight -> its values, from standard normal numbers and the number of inputs of each output.
RULES = {
    "zero_int64": lambda z, fan_in: np.zeros(z.shape, dtype=np.int64),
    "running_mean": lambda z, fan_in: 0.1 * z,
    "running_var": lambda z, fan_in: 0.5 + 0.5 * abs(z),
    "embed_0.02": lambda z, fan_in: 0.02 * z,
    "embed_1.0": lambda z, fan_in: z,
    "offset_weight": lambda z, fan_in: z * (2 / math.sqrt(fan_in)),
    "offset_bias": lambda z, fan_in: 3 * z,
    "weight": lambda z, fan_in: z * (1 / math.sqrt(fan_in)),
    "bias": lambda z, fan_in: 0.02 * z,
    "norm_weight": lambda z, fan_in: 1 + 0.1 * z,
}


def reference_state_dict(meta: dict, weight_seed: int = 1234) -> dict[str, Tensor]:
    """
    State dict of the original model that a fixture was recorded with, under the original names.

    Args:
        meta: content of the fixture's JSON file; `weight_kinds` has the shape and kind of each weight.
        weight_seed: seed of the fixture.
    """
    state_dict = {}
    for key, (shape, kind) in meta["weight_kinds"].items():
        # An array also where the shape is (), for which NumPy returns a number.
        z = np.asarray(np.random.default_rng(zlib.crc32(key.encode()) + weight_seed).standard_normal(shape))
        weight = torch.from_numpy(np.asarray(RULES[kind](z, math.prod(shape[1:]))))
        state_dict[key] = weight if kind == "zero_int64" else weight.float()
    return state_dict
