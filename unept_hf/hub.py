# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Export of a model and its image processor as a folder for the Hub. The code travels with the weights, so the folder
loads with `trust_remote_code=True` where unept_hf is not installed.
"""

import inspect
import json
import os
import shutil
from pathlib import Path

from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_unept import UneptConfig
from .image_processing_pil_unept import UneptImageProcessorPil
from .image_processing_unept import UneptImageProcessor
from .model_folder import new_folder
from .modeling_unept import UneptForSemanticSegmentation, UneptModel


# What each Auto class loads: through config.json, and by backend through preprocessor_config.json.
MODEL_CLASSES = {
    "AutoConfig": UneptConfig,
    "AutoModel": UneptModel,
    "AutoModelForSemanticSegmentation": UneptForSemanticSegmentation,
}
IMAGE_PROCESSOR_CLASSES = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}

MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: image-segmentation
license: apache-2.0
---

# {name}

UN-EPT (Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", ICCV Workshops 2021) for
semantic segmentation with {num_labels} classes. The code of the model is part of this repository. It needs
`pip install "transformers>=5.17" torch torchvision timm`.

```python
from transformers import pipeline

repository = "{name}"  # the id of this repository on the Hub, or the path of a local copy
segmenter = pipeline("image-segmentation", model=repository, trust_remote_code=True)
for segment in segmenter("image.jpg"):
    print(segment["label"], segment["mask"])
```

Or without the pipeline:

```python
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.image_utils import load_image

repository = "{name}"  # the id of this repository on the Hub, or the path of a local copy
image_processor = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(repository, trust_remote_code=True)

image = load_image("image.jpg")
with torch.no_grad():
    outputs = model(**image_processor(image, return_tensors="pt"))
label_map = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
```

After `pip install unept-hf` and `import unept_hf`, both work without `trust_remote_code=True`.
"""


def source_files() -> list[Path]:
    """The modules of this package that travel with the weights: those of the Auto classes and all they import."""
    entries = {Path(inspect.getfile(cls)) for cls in (*MODEL_CLASSES.values(), *IMAGE_PROCESSOR_CLASSES.values())}
    # transformers' own search, so that these are the files that it will look for.
    imported = {Path(file) for entry in entries for file in get_relative_import_files(entry)}
    return sorted(entries | imported)


def class_reference(cls: type) -> str:
    """A class as `auto_map` names it: `module.Class`, for a module at the root of the repository."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def default_model_card(name: str, num_labels: int) -> str:
    """The `README.md` of an exported model: what it is, and how to load it from `name`."""
    return MODEL_CARD.format(name=name, num_labels=num_labels)


def set_auto_map(file: Path, auto_map: dict) -> None:
    """Replaces the `auto_map` of a configuration file."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = auto_map
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export(
    model: UneptForSemanticSegmentation,
    image_processor: UneptImageProcessor | UneptImageProcessorPil,
    directory: str | os.PathLike,
    *,
    overwrite: bool = False,
    model_card: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """
    Writes a folder that loads with `trust_remote_code=True` where this package is not installed.

    It holds the weights (safetensors), the configurations of the model and the image processor, a model card, and the
    modules of this package that those need. `hf upload <repository> <directory>` puts it on the Hub. It is written
    beside `directory` and then renamed, so a run that is cut off leaves nothing at `directory`, or what was there.

    In contrast, `model.save_pretrained(directory)` writes no code, and the result needs `import unept_hf`.

    Args:
        model (`UneptForSemanticSegmentation`):
            The model. Its weights are stored in their present dtype.
        image_processor (`UneptImageProcessor` or `UneptImageProcessorPil`):
            The image processor that the model was trained with. Either backend can be loaded from what is written.
        directory (`str` or `os.PathLike`):
            The folder to write. Folders above it are made where they are missing.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace an earlier export, with all that is in it.
        model_card (`str`, *optional*):
            The text of `README.md`; [`default_model_card`] unless given.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            Weights to write in place of those of `model`, which data parallel training may have spread.

    Returns:
        `Path`: the absolute path of the folder.

    Raises:
        TypeError: for anything else than a model with its segmentation head and its image processor.
        ValueError: when the image processor makes images of sizes that the model can not take.
        FileExistsError: when `directory` can not be replaced, see [`new_folder`].
        OSError: when it can not be written.

    Example:

    ```python
    >>> from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
    >>> from unept_hf.hub import export

    >>> model = UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=19)
    >>> export(model, UneptImageProcessor(), "my-unept")  # doctest: +SKIP
    ```"""
    if not isinstance(model, UneptForSemanticSegmentation):
        raise TypeError(
            f"model has to be a UneptForSemanticSegmentation, got {type(model).__name__}: unwrap a compiled, parallel "
            "or adapted model first, and put a UneptModel under a segmentation head."
        )
    if not isinstance(image_processor, tuple(IMAGE_PROCESSOR_CLASSES.values())):
        raise TypeError(
            "image_processor has to be a UneptImageProcessor or a UneptImageProcessorPil, got "
            f"{type(image_processor).__name__}."
        )
    if image_processor.size_divisor % model.model.size_divisor:
        raise ValueError(
            f"The image processor makes images with sides that are multiples of {image_processor.size_divisor}, but "
            f"the model takes multiples of {model.model.size_divisor}: set size_divisor={model.model.size_divisor} on "
            "the image processor."
        )
    directory = Path(directory).resolve()
    with new_folder(directory, overwrite) as folder:
        model.save_pretrained(folder, state_dict=state_dict)
        set_auto_map(folder / "config.json", {name: class_reference(cls) for name, cls in MODEL_CLASSES.items()})
        image_processor.save_pretrained(folder)
        # As a dictionary: with a plain string, transformers ignores backend="pil".
        backends = {name: class_reference(cls) for name, cls in IMAGE_PROCESSOR_CLASSES.items()}
        set_auto_map(folder / "preprocessor_config.json", {"AutoImageProcessor": backends})
        for file in source_files():
            shutil.copyfile(file, folder / file.name)
        if model_card is None:
            model_card = default_model_card(directory.name, model.config.num_labels)
        (folder / "README.md").write_text(model_card, encoding="utf-8")
    return directory


__all__ = ["default_model_card", "export", "source_files"]
