# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Kernels of deformable attention, one package for each backend, and the operators of torch that hold them.

A backend is a module with three functions. `reference_points` is `None` in the form that takes locations and weights;
otherwise positions are offsets and scores are logits. Tensors have passed the checks of
`unept_hf.model.deformable_attention`, and spatial shapes are (height, width) tuples of integers.

- `why_not(value, spatial_shapes, reference_points, positions, scores) -> str | None`: why the backend cannot take
  these tensors (of which it reads dtypes and devices only), or `None` when it can.
- `forward(value, spatial_shapes, reference_points, positions, scores) -> output`
- `backward(grad_output, value, spatial_shapes, reference_points, positions, scores) -> grad_value, grad_positions,
  grad_scores`, each in the dtype of its tensor.
"""
