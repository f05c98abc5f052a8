# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Models with random weights that do not predict the same everywhere."""

import torch
from torch import nn

from unept_hf import UneptForSemanticSegmentation
from unept_hf.data.segmentation_datasets import load_segmentation_dataset


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights whose predictions vary over the image, with boundaries that vary too, but not with any seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def synthetic_scenes_model() -> UneptForSemanticSegmentation:
    """A small model for the classes of the synthetic scenes."""
    _, class_list = load_segmentation_dataset("synthetic", num_synthetic_scenes=1)
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny",
        encoder_layers=1,
        decoder_layers=1,
        id2label=class_list.id2label,
        label2id=class_list.label2id,
    )
    return spread(model, seed=4)
