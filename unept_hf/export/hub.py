# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Export of a model and its image processor as a folder for the Hub, and its upload. The code travels with the weights,
so the folder loads with `trust_remote_code=True` where unept_hf is not installed.
"""

import inspect
import json
import os
import re
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

from ..data.class_lists import available_class_lists
from ..files import atomic_directory
from ..model.configuration_unept import UneptConfig
from ..model.image_processing_pil_unept import UneptImageProcessorPil
from ..model.image_processing_unept import UneptImageProcessor
from ..model.image_reading import open_image, reading
from ..model.modeling_unept import UneptForSemanticSegmentation, UneptModel


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
# A card is for everybody, and paths tell of a machine and its user. They are known by how they begin (at the start of
# a value or after a separator in it), by a backslash or more slashes than names on the Hub have, or by their ending.
LOCAL_PATH = re.compile(
    r"""(?:^|[\s"'=,;:|([{<])(?:[/.~$%]|[a-z]:|file:)|\\|/[^\s/]+/|\.(?:json|ya?ml|pth?|ckpt|bin|safetensors)$""", re.I
)
PUBLIC_ADDRESS = re.compile(r"\b(?:https?|hf)://[^\s\"']+", re.I)
# Options of a training that name places, however their values are written.
PRIVATE_OPTIONS = {
    "output_dir", "data_dir", "image_dir", "label_dir", "resume_from_checkpoint", "backbone_checkpoint",
    "hub_model_id",
}  # fmt: skip
# Names that stand for a user's own files, see `load_segmentation_dataset`.
LOCAL_DATASETS = {"image_folders", "imagefolder", "parquet", "arrow", "json", "csv", "webdataset"}
PRIVATE_DATASET = "a private data set"
EXAMPLE_IMAGE = "example.jpg"
EXAMPLE_PIXELS = 1024  # longer side

MODEL_CARD = """\
# {name}

UN-EPT (Zhu et al., "A Unified Efficient Pyramid Transformer for Semantic Segmentation", ICCV Workshops 2021) for
semantic segmentation with {num_labels} classes.{backbone}
The code of the model is part of this repository, under the Apache License 2.0. It needs
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


def looks_like_path(value: Any) -> bool:
    """Whether a value is, or has in it, what looks like a place on somebody's machine."""
    if isinstance(value, str):
        return LOCAL_PATH.search(PUBLIC_ADDRESS.sub("", value)) is not None
    return isinstance(value, os.PathLike)


def is_private(value: Any) -> bool:
    """Whether a value [`looks_like_path`], or names a file or folder of this machine."""
    return looks_like_path(value) or (isinstance(value, str) and os.path.exists(value))


def without_private(value: Any) -> Any:
    """A value without all that [`is_private`] in it, at any depth, and without the options that name folders."""
    if isinstance(value, Mapping):
        return {
            name: without_private(one)
            for name, one in value.items()
            if not (looks_like_path(name) or is_private(one) or name in PRIVATE_OPTIONS)
        }
    if isinstance(value, (list, tuple, set)):
        return [without_private(one) for one in value if not is_private(one)]
    return value


def dataset_title(name: "str | os.PathLike") -> str:
    """What a card calls a data set: its name where it is public, such as that of the Hub."""
    if name in available_class_lists():
        return name  # of its own, though there may be a folder of that name
    return PRIVATE_DATASET if name in LOCAL_DATASETS or is_private(name) else name


def describe_backbone(config: UneptConfig, started_from: str | None = None) -> str:
    """
    The backbone of a model, for its card.

    Args:
        config: The configuration of the model.
        started_from: What its weights were before the training, such as "random weights"; `None` if that is not known.
    """
    backbone = config.backbone_config
    if backbone.model_type == "timm_backbone":
        text = (
            "a timm model of a local folder" if looks_like_path(backbone.backbone) else f"timm `{backbone.backbone}`"
        )
    else:
        text = f"`{backbone.model_type}` of transformers"
    return text if started_from is None else f"{text}, which started from {started_from}"


def default_model_card(
    name: str,
    num_labels: int,
    *,
    license: str | None = None,
    backbone: str | None = None,
    dataset: str | None = None,
    training: str | None = None,
    training_options: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> str:
    """
    The `README.md` of an exported model: what it is, how to load it from `name`, and what is known of its training.

    Nothing that looks like a path of a machine is shown: such options are left out at any depth, and a local data set
    is "a private data set".

    Args:
        name: The id of the repository on the Hub, or the name of the folder.
        num_labels: Number of classes.
        license: The license of the weights, as the Hub spells it; `None` states none. The code is under Apache 2.0.
        backbone: The backbone and what it started from, see [`describe_backbone`].
        dataset: The data set of the training, which the metadata names if it is one of the Hub.
        training: Sentences on the training, which are published as they are given.
        training_options: The options of the training.
        evaluation: The result of `evaluate_model`, or the content of `results.json`, with the name of the data set
            under "dataset". Its metrics go into a table, and into the metadata that the Hub shows.
        picture: The name of a file beside the card that shows predictions.

    Raises:
        ValueError: when `evaluation` does not say what data set it is of, or has no metrics.
    """
    if looks_like_path(name):
        name = re.split(r"[/\\:]", name.rstrip("/\\"))[-1]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=license,
        tags=["semantic-segmentation", "unept"],
    )
    backbone = "" if backbone is None else f" Its backbone is {backbone}."
    text = MODEL_CARD.format(name=name, num_labels=num_labels, backbone=backbone)
    if evaluation is not None:
        data.model_name = name
        data.eval_results = evaluation_results(evaluation)
        text += evaluation_section(evaluation)
    if picture is not None:
        text += picture_line(picture)
    if dataset is not None and dataset_title(dataset).count("/") == 1:
        data.datasets = [dataset]
    if training is None and dataset is not None:
        training = f"Trained on {dataset_title(dataset)}."
    if training is not None or training_options is not None:
        text += "\n## Training\n"
    if training is not None:
        text += f"\n{training}\n"
    if training_options is not None:
        options = yaml.safe_dump(without_private(training_options), sort_keys=False, allow_unicode=True)
        text += f"\n<details><summary>Options of the training</summary>\n\n```yaml\n{options}```\n\n</details>\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def picture_line(file: str) -> str:
    """How a card shows a picture of predictions."""
    return f"\n![Image, ground truth and prediction]({file})\n"


def evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics of an evaluation as the metadata of a model card has them."""
    dataset, metrics = evaluation.get("dataset"), [name for name in METRICS if evaluation.get(name) is not None]
    if not dataset or not metrics:
        raise ValueError(
            f"evaluation must hold the name of the data set under 'dataset', and at least one of "
            f"{', '.join(METRICS)}, but it has {', '.join(map(str, evaluation)) or 'nothing'}."
        )
    title, split = dataset_title(dataset), evaluation.get("split")
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=title,
            dataset_name=title,
            dataset_split=None if looks_like_path(split) else split,
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
    rows = [
        [
            METRICS[result.metric_type],
            *(f"{one[result.metric_type]:.4f}" for one in ([evaluation, refined] if refined else [evaluation])),
        ]
        for result in results
    ]
    heads = ["metric", "", *(["boundaries refined"] if refined else [])]
    sentence = f"Evaluated on {results[0].dataset_name}"
    if results[0].dataset_split is not None:
        sentence += f" (split `{results[0].dataset_split}`)"
    if "num_images" in evaluation:
        sentence += f", {evaluation['num_images']} images"
    settings = without_private(evaluation.get("settings") or {})
    if settings:
        sentence += f" with {', '.join(f'{name} {value}' for name, value in settings.items())}"
    lines = ["", "## Evaluation", "", f"{sentence}.", ""]
    lines += [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def with_metadata(model_card: str, **metadata: Any) -> str:
    """A model card with other values of some metadata; `None` removes them."""
    card = ModelCard(model_card, ignore_metadata_errors=True)
    for name, value in metadata.items():
        card.data[name] = value
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
    license: str | None = None,
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
        license (`str`, *optional*):
            The license of the weights, as the Hub spells it, for the metadata of the model card. `None` leaves the
            metadata as they are: [`default_model_card`] states none.
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
        FileExistsError: when `directory` can not be replaced, see [`atomic_directory`].
        OSError: when it can not be written.

    Example:

    ```python
    >>> from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
    >>> from unept_hf.export.hub import export

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
    directory = Path(directory).expanduser().resolve()
    with atomic_directory(directory, overwrite) as folder:
        model.save_pretrained(folder, state_dict=state_dict)
        set_auto_map(folder / "config.json", {name: class_reference(cls) for name, cls in MODEL_CLASSES.items()})
        image_processor.save_pretrained(folder)
        # As a dictionary: with a plain string, transformers ignores backend="pil".
        backends = {name: class_reference(cls) for name, cls in IMAGE_PROCESSOR_CLASSES.items()}
        set_auto_map(folder / "preprocessor_config.json", {"AutoImageProcessor": backends})
        for file in source_files():
            shutil.copyfile(file, folder / file.name)
        if model_card is None:
            backbone = describe_backbone(model.config)
            model_card = default_model_card(directory.name, model.config.num_labels, backbone=backbone)
        if license is not None:
            model_card = with_metadata(model_card, license=license)
        if example_image is not None:
            save_example_image(example_image, folder / EXAMPLE_IMAGE)
            widget = [{"src": EXAMPLE_IMAGE, "example_title": "An example"}]
            model_card = with_metadata(model_card, widget=widget)
        (folder / "README.md").write_text(model_card, encoding="utf-8")
    return directory


def push_to_hub(
    model: UneptForSemanticSegmentation,
    image_processor: UneptImageProcessor | UneptImageProcessorPil,
    repo_id: str,
    *,
    model_card: str | None = None,
    license: str | None = None,
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
        model, image_processor, license, state_dict, example_image: see [`export`].
        repo_id (`str`):
            The repository, `owner/name`, or `name` for one of your own.
        model_card (`str`, *optional*):
            The text of `README.md`; [`default_model_card`] unless given, which takes metrics and training options.
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
            backbone = describe_backbone(model.config)
            model_card = default_model_card(repo_id, model.config.num_labels, backbone=backbone)
        options = {"model_card": model_card, "license": license, "state_dict": state_dict}
        export(model, image_processor, folder, example_image=example_image, **options)
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


__all__ = ["default_model_card", "describe_backbone", "export", "push_to_hub", "source_files"]
