# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT semantic segmentation for transformers. Importing registers it with the Auto classes and the pipelines."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from .model.configuration_unept import UneptConfig
from .model.image_processing_pil_unept import UneptImageProcessorPil
from .model.image_processing_unept import UneptImageProcessor
from .model.modeling_unept import UneptForSemanticSegmentation, UneptModel, UneptPreTrainedModel
from .version import __version__


if TYPE_CHECKING:
    from .accelerate import accelerate_transformers
    from .data.segmentation_datasets import load_segmentation_dataset
    from .evaluation.evaluate import evaluate_model
    from .export.hub import save_for_hub
    from .inference.optimize import optimize_for_inference
    from .inference.refine import refine
    from .inference.segment import segment
    from .visualization.segment_video import segment_video

__all__ = [
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

# Imported when they are used, because they bring pictures, data sets and exporters along.
_MODULES = {
    "accelerate_transformers": ".accelerate",
    "evaluate_model": ".evaluation.evaluate",
    "load_segmentation_dataset": ".data.segmentation_datasets",
    "optimize_for_inference": ".inference.optimize",
    "refine": ".inference.refine",
    "save_for_hub": ".export.hub",
    "segment": ".inference.segment",
    "segment_video": ".visualization.segment_video",
}

STREET_PHOTOS = str(Path(__file__).parent / "checkpoints" / "street_photos")
"""Directory of the shipped model of street photographs (CamVid's 11 classes), for `from_pretrained` and `pipeline`."""

SYNTHETIC_SCENES = str(Path(__file__).parent / "checkpoints" / "synthetic_scenes")
"""Directory of the shipped model of drawn scenes (22 classes), for tests and as a start for other drawn pictures."""

AutoConfig.register("unept", UneptConfig, exist_ok=True)
AutoModel.register(UneptConfig, UneptModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(UneptConfig, UneptForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(
    UneptConfig,
    image_processor_classes={"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil},
    exist_ok=True,
)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
