# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Multi-scale deformable attention in Triton, for NVIDIA and AMD, with a backward."""

from . import layers
from .attention import multi_scale_deformable_attention


__all__ = ["layers", "multi_scale_deformable_attention"]
