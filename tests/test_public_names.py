# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The names that `import unept_hf` gives, and what it does not import."""

import subprocess
import sys

import pytest

import unept_hf


PUBLIC_NAMES = [
    "STREET_PHOTOS",
    "SYNTHETIC_SCENES",
    "UneptConfig",
    "UneptForSemanticSegmentation",
    "UneptImageProcessor",
    "UneptImageProcessorPil",
    "UneptModel",
    "UneptPreTrainedModel",
    "__version__",
    "accelerate_transformers",
    "evaluate_model",
    "load_segmentation_dataset",
    "optimize_for_inference",
    "refine",
    "save_for_hub",
    "segment",
    "segment_video",
]


def test_public_names():
    assert unept_hf.__all__ == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(unept_hf, name) is not None
    assert set(PUBLIC_NAMES) <= set(dir(unept_hf))
    with pytest.raises(AttributeError, match="module 'unept_hf' has no attribute 'segments'"):
        unept_hf.segments  # noqa: B018


def test_import_brings_no_heavy_rooms():
    """accelerate is not on the list, because transformers imports it itself."""
    code = "import sys, unept_hf; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "datasets", "evaluate", "onnx", "onnxruntime"} & set(modules)
    rooms = {name.split(".")[1] for name in modules if name.startswith("unept_hf.")}
    assert rooms == {"kernels", "model", "version"}
