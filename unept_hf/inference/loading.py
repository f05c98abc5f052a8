# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading a trained model with its image processor, as a whole or not at all."""

import os

from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

from ..model.backbone_unept import plain_tensors


__all__ = ["load_model_and_processor"]


def load_model_and_processor(name: str, **kwargs) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A trained model, in evaluation mode, and its image processor. Weights that are missing or of another shape are an
    error, whereas `from_pretrained` initializes them at random for fine-tuning.

    Args:
        name (`str`):
            Folder or Hub name.
        kwargs:
            Options of `from_pretrained` for both, such as `revision`.

    Raises:
        OSError: when there is no such model, or when its weights are damaged.
        ValueError: when weights are missing, or of another shape than the configuration says; when they are a pickle
            of more than tensors.
    """
    name = os.path.expanduser(name)
    processor = AutoImageProcessor.from_pretrained(name, **kwargs)
    try:
        with plain_tensors(name):
            model, found = AutoModelForSemanticSegmentation.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except SafetensorError as error:
        raise OSError(f"The weights of {name} are damaged ({error}): copy or download them again.") from error
    problems = [
        *(f"{key} is missing" for key in sorted(found["missing_keys"])),
        *(
            f"{key} has shape {tuple(stored)} instead of {tuple(wanted)}"
            for key, stored, wanted in sorted(found["mismatched_keys"])
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"The weights of {name} do not fit its configuration: {', '.join(problems[:3])}{more}. Copy or download "
            "it again, or train the new parts first."
        )
    return model.eval(), processor
