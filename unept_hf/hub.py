# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Export of a model and its image processor as a folder for the Hub, and its upload. The code travels with the weights,
so the folder loads with `trust_remote_code=True` where unept_hf is not installed.
"""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
import yaml
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_unept import UneptConfig
from .image_processing_pil_unept import UneptImageProcessorPil, open_image, reading
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

# What a card says of an evaluation, where that has it.
METRICS = {
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy",
    "overall_accuracy": "pixel accuracy",
    "boundary_f1_3px": "boundary F-score at 3 pixels",
}
EXAMPLE_IMAGE = "example.jpg"
EXAMPLE_PIXELS = 1024  # longer side

MODEL_CARD = """\
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


def default_model_card(
    name: str,
    num_labels: int,
    *,
    license: str = "apache-2.0",
    evaluation: Mapping[str, Any] | None = None,
    training_options: Mapping[str, Any] | None = None,
) -> str:
    """
    The `README.md` of an exported model: what it is, and how to load it from `name`.

    Args:
        name: The id of the repository on the Hub, or the name of the folder.
        num_labels: Number of classes.
        license: The licence of the weights, as the Hub spells it. That of the code is Apache 2.0.
        evaluation: What [`~unept_hf.evaluation.evaluate_model`] returns, or `results.json` holds, with the name of the
            data set under "dataset". Its metrics go into a table, and into the metadata that the Hub shows.
        training_options: The options of the training, which are published as they are given.

    Raises:
        ValueError: when `evaluation` does not say what data set it is of, or has no metrics.
    """
    data = ModelCardData(library_name="transformers", pipeline_tag="image-segmentation", license=license)
    text = MODEL_CARD.format(name=name, num_labels=num_labels)
    if evaluation is not None:
        data.model_name = name
        data.eval_results = evaluation_results(evaluation)
        text += evaluation_section(evaluation)
    if training_options is not None:
        options = yaml.safe_dump(dict(training_options), sort_keys=False, allow_unicode=True)
        text += f"\n## Training\n\nOptions of the training:\n\n```yaml\n{options}```\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics of an evaluation as the metadata of a model card has them."""
    dataset, metrics = evaluation.get("dataset"), [name for name in METRICS if evaluation.get(name) is not None]
    if not dataset or not metrics:
        raise ValueError(
            f"evaluation has to hold the name of the data set under 'dataset', and at least one of "
            f"{', '.join(METRICS)}, but it has {', '.join(map(str, evaluation)) or 'nothing'}."
        )
    # A path is private to the machine.
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=evaluation.get("split"),
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=round(evaluation[metric], 4),
        )
        for metric in metrics
    ]


def evaluation_section(evaluation: Mapping[str, Any]) -> str:
    """The metrics of an evaluation as a table, with those after the refinement of boundaries if both were measured."""
    results = evaluation_results(evaluation)
    refined = evaluation.get("refined") or {}
    heads = [f"`{results[0].dataset_name}`", "", *(["boundaries refined"] if refined else [])]
    rows = [
        [
            METRICS[result.metric_type],
            *(f"{one[result.metric_type]:.4f}" for one in ([evaluation, refined] if refined else [evaluation])),
        ]
        for result in results
    ]
    settings = ", ".join(f"{name} {value}" for name, value in (evaluation.get("settings") or {}).items())
    lines = ["", "## Evaluation", ""]
    if "num_images" in evaluation:
        lines += [f"{evaluation['num_images']} images{f' with {settings}' if settings else ''}.", ""]
    lines += [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def with_example_image(model_card: str) -> str:
    """A model card whose metadata names the example image, for the widget of the model's page."""
    card = ModelCard(model_card, ignore_metadata_errors=True)
    card.data["widget"] = [{"src": EXAMPLE_IMAGE, "example_title": "An example"}]
    return str(card)


def save_example_image(image: "PIL.Image.Image | str | os.PathLike", file: Path) -> None:
    """Writes an image small enough for a web page, and without the metadata that cameras put into it."""
    image = image if isinstance(image, PIL.Image.Image) else open_image(image)
    with reading(getattr(image, "filename", None) or "example_image"):
        image = PIL.ImageOps.exif_transpose(image).convert("RGB")
    image.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    PIL.Image.frombytes("RGB", image.size, image.tobytes()).save(file, quality=90)


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
    example_image: "PIL.Image.Image | str | os.PathLike | None" = None,
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
        example_image (`PIL.Image.Image`, `str` or `os.PathLike`, *optional*):
            An image, or the path of one, for the widget of the model's page. It is written as `example.jpg`, with
            sides of at most 1024 pixels, and the model card refers to it.

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
        if example_image is not None:
            save_example_image(example_image, folder / EXAMPLE_IMAGE)
            model_card = with_example_image(model_card)
        (folder / "README.md").write_text(model_card, encoding="utf-8")
    return directory


def push_to_hub(
    model: UneptForSemanticSegmentation,
    image_processor: UneptImageProcessor | UneptImageProcessorPil,
    repo_id: str,
    *,
    model_card: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
    example_image: "PIL.Image.Image | str | os.PathLike | None" = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload UN-EPT",
    token: str | bool | None = None,
) -> CommitInfo:
    """
    Uploads what [`export`] writes to a repository of the Hub, which is made where there is none. Files of other names
    that it has already stay.

    In contrast, `model.push_to_hub(repo_id)` uploads the weights and `config.json` alone, and the result needs
    `import unept_hf`.

    Args:
        model, image_processor, state_dict, example_image: see [`export`].
        repo_id (`str`):
            The repository, `owner/name`, or `name` for one of your own.
        model_card (`str`, *optional*):
            The text of `README.md`; [`default_model_card`] unless given, which takes metrics, training options and the
            licence.
        private (`bool`, *optional*):
            Whether a new repository is private. `None` stands for what its owner has chosen.
        revision (`str`, *optional*):
            The branch, which is made where it is missing. `None` stands for `main`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request in place of a commit.
        commit_message (`str`, *optional*, defaults to `"Upload UN-EPT"`):
            The first line of the commit.
        token (`str` or `bool`, *optional*):
            A token with the right to write. `None` stands for the one of `hf auth login`, or of `HF_TOKEN`.

    Returns:
        `huggingface_hub.CommitInfo`: with `commit_url`, and `pr_url` for a pull request. An address as text.

    Raises:
        TypeError, ValueError: see [`export`].
        PermissionError: when the Hub does not let the token write there.
        OSError: when the Hub can not be reached, or refuses the upload for another reason.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        if model_card is None and isinstance(model, UneptForSemanticSegmentation):
            model_card = default_model_card(repo_id, model.config.num_labels)
        options = {"model_card": model_card, "state_dict": state_dict, "example_image": example_image}
        export(model, image_processor, folder, **options)
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(repository, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (401, 403):
                raise
            raise PermissionError(
                f"The Hub does not let you write to {repo_id}: log in by `hf auth login` with a token that may write "
                f"there, or set HF_TOKEN. It says: {error.server_message or error}"
            ) from error


__all__ = ["default_model_card", "export", "push_to_hub", "source_files"]
