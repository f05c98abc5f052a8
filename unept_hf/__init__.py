# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT semantic segmentation for transformers. Importing registers it with the Auto classes and the pipelines."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .model.configuration_unept import UneptConfig
from .model.image_processing_pil_unept import UneptImageProcessorPil
from .model.image_processing_unept import UneptImageProcessor
from .model.modeling_unept import UneptForSemanticSegmentation, UneptModel, UneptPreTrainedModel
from .version import __version__


SYNTHETIC_SCENES = str(Path(__file__).parent / "checkpoints" / "synthetic_scenes")
"""Folder of the checkpoint that comes with the package, for `from_pretrained` and `pipeline`."""

AutoConfig.register("unept", UneptConfig, exist_ok=True)
AutoModel.register(UneptConfig, UneptModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(UneptConfig, UneptForSemanticSegmentation, exist_ok=True)
# The image segmentation pipeline looks up names, and would log that a registered model is not supported.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["unept"] = "UneptForSemanticSegmentation"
AutoImageProcessor.register(
    UneptConfig,
    image_processor_classes={"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil},
    exist_ok=True,
)

__all__ = [
    "SYNTHETIC_SCENES",
    "UneptConfig",
    "UneptForSemanticSegmentation",
    "UneptImageProcessor",
    "UneptImageProcessorPil",
    "UneptModel",
    "UneptPreTrainedModel",
    "__version__",
]
