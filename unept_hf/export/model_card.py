# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The model card of an exported model, without anything that tells of a machine and its user."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.class_lists import available_class_lists
from ..model.configuration_unept import UneptConfig


__all__ = [
    "dataset_title",
    "default_model_card",
    "describe_backbone",
    "is_private",
    "picture_line",
    "with_metadata",
]

# Metrics that a card shows, if the evaluation has them.
METRICS = {
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy",
    "overall_accuracy": "pixel accuracy",
    "boundary_f1_3px": "boundary F-score at 3 pixels",
}
# A card is public, and paths tell of a machine and its user. Paths show in how they begin (at the start of a value or
# after a separator in it), in a backslash, in slashes that the one between the two words of a Hub name is not, or in
# their ending.
LOCAL_PATH = re.compile(
    r"""(?:^|[\s"'=,;:|([{<`@])(?:[.$%]|[a-z]:|file:)|[\\~]|(?<!\w)/|/(?!\w)|/[^\s/]+/
    |\.(?:json|ya?ml|pth?|ckpt|bin|safetensors|onnx|pkl|csv|tsv|txt|zip|t?gz|tar|parquet|arrow|png|jpe?g|webp|tiff?|np[yz])$""",
    re.I | re.X,
)
# Without a user and a password.
PUBLIC_ADDRESS = re.compile(r"""\b(?:https?|hf)://[^\s"',;@]+(?![^\s"',;]*@)""", re.I)
# Options of a training that name places, however their values are written.
PRIVATE_OPTIONS = {
    "output_dir", "data_dir", "image_dir", "label_dir", "resume_from_checkpoint", "backbone_checkpoint",
    "hub_model_id",
}  # fmt: skip
# Names of `load_segmentation_dataset` that stand for a user's own files.
LOCAL_DATASETS = {"image_folders", "imagefolder", "parquet", "arrow", "json", "csv", "webdataset"}
PRIVATE_DATASET = "a private data set"

TEMPLATE = Path(__file__).with_name("model_card_template.md")


def _looks_like_path(value: Any) -> bool:
    """Whether a value is, or contains, text that looks like a path of somebody's machine."""
    if isinstance(value, str):
        return LOCAL_PATH.search(PUBLIC_ADDRESS.sub("", value)) is not None
    return isinstance(value, os.PathLike)


def is_private(value: Any) -> bool:
    """Whether a value looks like a path, or names a file or directory of this machine."""
    return _looks_like_path(value) or (isinstance(value, str) and os.path.exists(value))


def _is_on_the_hub(name: Any) -> bool:
    """Whether a name may be that of a repository, `owner/name`."""
    return isinstance(name, str) and name.count("/") == 1 and not is_private(name)


def _without_private(value: Any) -> Any:
    """A value without private values, at any depth, and without the options that name directories."""
    if isinstance(value, Mapping):
        return {
            name: _without_private(one)
            for name, one in value.items()
            if not (_looks_like_path(name) or is_private(one) or name in PRIVATE_OPTIONS)
        }
    if isinstance(value, (list, tuple, set)):
        return [_without_private(one) for one in value if not is_private(one)]
    return value


def dataset_title(name: str) -> str:
    """The name of a data set if it is public, such as its name on the Hub."""
    if name in available_class_lists():
        return name  # though there may be a directory of that name
    return PRIVATE_DATASET if name in LOCAL_DATASETS or is_private(name) else name


def describe_backbone(config: UneptConfig, started_from: str | None = None) -> str:
    """The backbone of a model, for its card, and its weights before the training, such as "random weights"."""
    backbone: Any = config.backbone_config
    if backbone.model_type == "timm_backbone":
        is_local = _looks_like_path(backbone.backbone)
        text = "a timm model of a local directory" if is_local else f"timm `{backbone.backbone}`"
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
    The `README.md` of an exported model: its kind, how to load it from `name`, and the known facts of its training.

    Paths are not shown: options that look like a path are left out at any depth, and a local data set is "a private
    data set".

    Args:
        name: The id of the repository on the Hub, or the name of the directory.
        num_labels: Number of classes.
        license: The license of the weights, as the Hub spells it; `None` states none. The code is under Apache 2.0.
        backbone: The backbone and its weights before the training, as `describe_backbone` describes them.
        dataset: The data set of the training, which the metadata names if it is on the Hub. `None` stands for the
            `dataset_name` of `training_options`.
        training: Sentences on the training, which are published unchanged.
        training_options: The options of the training. The metadata names the model that it started from
            (`model_name_or_path`) if it is on the Hub.
        evaluation: The result of `evaluate_model`, or the content of `results.json`, with the name of the data set
            under "dataset". Its metrics go into a table, and into the metadata that the Hub shows.
        picture: The name of a file beside the card that shows predictions.

    Raises:
        ValueError: when `evaluation` does not name its data set, or has no metrics.
    """
    name = str(name)
    if _looks_like_path(name):
        name = re.split(r"[/\\:]", name.rstrip("/\\"))[-1]
    dataset = dataset or (training_options or {}).get("dataset_name")
    title = None if dataset is None else dataset_title(dataset)
    base_model = (training_options or {}).get("model_name_or_path")
    results = None if evaluation is None else _evaluation_results(evaluation)
    if training_options is not None:
        training_options = yaml.safe_dump(_without_private(training_options), sort_keys=False, allow_unicode=True)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=None if _looks_like_path(license) else license,
        tags=["semantic-segmentation", "unept"],
        model_name=None if results is None else name,
        eval_results=results,
        datasets=[title] if title is not None and _is_on_the_hub(title) else None,
        base_model=base_model if _is_on_the_hub(base_model) else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        num_labels=num_labels,
        backbone=None if _looks_like_path(backbone) else backbone,
        results=results,
        evaluation=evaluation,
        settings=_without_private((evaluation or {}).get("settings") or {}),
        picture="" if picture is None else picture_line(os.path.basename(picture)),
        training=training or (title and f"Trained on {title}."),
        options=training_options,
    )
    return str(card)


def picture_line(file: str) -> str:
    """The line of a card that shows a picture of predictions."""
    return f"\n![Image, ground truth and prediction]({file})\n"


def _evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics in the form of the metadata of a card."""
    dataset, metrics = evaluation.get("dataset"), [name for name in METRICS if evaluation.get(name) is not None]
    if not dataset or not metrics:
        raise ValueError(
            f"evaluation must hold the name of the data set under 'dataset', and one of {', '.join(METRICS)}; it has "
            f"{', '.join(map(str, evaluation)) or 'nothing'}."
        )
    title, split = dataset_title(dataset), evaluation.get("split")
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=title,
            dataset_name=title,
            dataset_split=None if _looks_like_path(split) else split,
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=round(evaluation[metric], 4),
        )
        for metric in metrics
    ]


def with_metadata(model_card: str, **metadata: Any) -> str:
    """A model card with other values of some metadata; `None` removes them."""
    card = ModelCard(model_card, ignore_metadata_errors=True)
    for name, value in metadata.items():
        card.data[name] = value
    return str(card)
