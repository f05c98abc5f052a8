# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Does the GPU kernel access memory outside of its tensors? Calls it at its edges, under compute-sanitizer.

    compute-sanitizer --error-exitcode 9 python benchmarks/sanitized_kernel.py
"""

import os
import sys
from pathlib import Path


# Each tensor has its own allocation, so that the memory beyond it is not torch's too.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
os.environ["UNEPT_TEST_BACKEND"] = "triton"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels"))

import torch
from test_deformable_attention import draw, plain_form, run

from unept_hf.model.deformable_attention import deformable_attention, multi_scale_deformable_attention


for shape in (
    {"dtype": torch.bfloat16, "head_dim": 32, "points": 16},
    {"spatial_shapes": [(1, 1), (9, 2)], "head_dim": 5, "points": 3, "queries": 1},
):
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        arguments = draw(**shape)
        run(deformable_attention, arguments)
        value, spatial_shapes, locations, weights = plain_form(arguments)
        for bad in (None, float("nan"), float("inf"), -1e30, 3e9):
            if bad is not None:
                locations = locations.clone()
                locations[:, ::2] = bad
            run(multi_scale_deformable_attention, (value, spatial_shapes, locations, weights))
torch.cuda.synchronize()
print("every call returned")
