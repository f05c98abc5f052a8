# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
A model and its image processor as a directory for the Hub, and its upload. The code travels with the weights, so the
directory loads with `trust_remote_code=True` where unept_hf is not installed.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import PIL.Image
import PIL.ImageOps
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from .. import model as model_package
from ..files import atomic_directory
from ..model.configuration_unept import UneptConfig
from ..model.image_processing_pil_unept import UneptImageProcessorPil
from ..model.image_processing_unept import UneptImageProcessor
from ..model.image_reading import open_image, reading
from ..model.modeling_unept import UneptForSemanticSegmentation, UneptModel
from .model_card import default_model_card, describe_backbone, with_metadata


__all__ = ["push_to_hub", "save_for_hub", "source_files"]

# What each Auto class loads: through config.json, and by backend through preprocessor_config.json.
MODEL_CLASSES = {
    "AutoConfig": UneptConfig,
    "AutoModel": UneptModel,
    "AutoModelForSemanticSegmentation": UneptForSemanticSegmentation,
}
IMAGE_PROCESSOR_CLASSES = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}

EXAMPLE_IMAGE = "example.jpg"
EXAMPLE_PIXELS = 1024  # longer side


def source_files() -> list[Path]:
    """The modules that travel with the weights: all of `unept_hf/model`."""
    directory = Path(model_package.__path__[0])
    return sorted(file for file in directory.glob("*.py") if not file.name.startswith((".", "_")))


def _set_auto_map(file: Path, auto_map: dict) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = auto_map
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _references(classes: dict[str, type]) -> dict[str, str]:
    # As `auto_map` names them: `module.Class`, for a module at the root of the repository.
    return {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in classes.items()}


def _plain_card(name: str, config) -> str:
    return default_model_card(name, config.num_labels, backbone=describe_backbone(config))


def _save_example_image(image: PIL.Image.Image | str | os.PathLike, file: Path) -> None:
    # Small enough for a web page, and without the metadata that cameras put into it.
    image = image if isinstance(image, PIL.Image.Image) else open_image(image)
    with reading(getattr(image, "filename", None) or "example_image"):
        image = PIL.ImageOps.exif_transpose(image).convert("RGB")
    image.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    PIL.Image.frombytes("RGB", image.size, image.tobytes()).save(file, quality=90)


def save_for_hub(
    model: UneptForSemanticSegmentation,
    image_processor: UneptImageProcessor | UneptImageProcessorPil,
    directory: str | os.PathLike,
    *,
    overwrite: bool = False,
    model_card: str | None = None,
    license: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
    example_image: PIL.Image.Image | str | os.PathLike | None = None,
) -> Path:
    """
    Writes a directory that loads with `trust_remote_code=True` where this package is not installed.

    It holds the weights (safetensors), the configurations of the model and the image processor, a model card, and the
    modules of this package that they need. `hf upload <repository> <directory>` puts it on the Hub. An interrupted run
    leaves `directory` as it was.

    In contrast, `model.save_pretrained(directory)` writes no code, and the result needs `import unept_hf`.

    Args:
        model: the model. Its weights are stored in their present dtype.
        image_processor: the image processor that the model was trained with. Either backend can be loaded from the
            directory.
        directory: the directory to write. Missing parent directories are created.
        overwrite: whether to replace an earlier model directory with all its files.
        model_card: the text of `README.md`; `None` stands for `default_model_card`.
        license: the license of the weights, as the Hub spells it, for the metadata of the model card. `None` leaves
            the metadata of `model_card`; `default_model_card` states none.
        state_dict: weights to write in place of those of `model`, which data parallel training may have spread.
        example_image: an image, or its path or address, for the widget of the model's page. It is written as
            `example.jpg`, with sides of at most 1024 pixels, and the model card refers to it.

    Returns:
        The absolute path of the directory.

    Raises:
        ValueError: when the image processor makes images of sizes that the model cannot take.
        FileExistsError: when `directory` is not empty (without `overwrite`) or not a model directory.
        OSError: when it cannot be written.
    """
    if image_processor.size_divisor % model.model.size_divisor:
        raise ValueError(
            f"The image processor makes images with sides that are multiples of {image_processor.size_divisor}, but "
            f"the model takes multiples of {model.model.size_divisor}; set size_divisor={model.model.size_divisor} on "
            "the image processor."
        )
    directory = Path(directory).expanduser().resolve()
    if model_card is None:
        model_card = _plain_card(directory.name, model.config)
    if license is not None:
        model_card = with_metadata(model_card, license=license)
    if example_image is not None:
        model_card = with_metadata(model_card, widget=[{"src": EXAMPLE_IMAGE, "example_title": "An example"}])
    with atomic_directory(directory, overwrite) as written:
        model.save_pretrained(written, state_dict=state_dict)
        _set_auto_map(written / "config.json", _references(MODEL_CLASSES))
        image_processor.save_pretrained(written)
        # A dictionary, because transformers ignores backend="pil" where it finds a plain string.
        backends = {"AutoImageProcessor": _references(IMAGE_PROCESSOR_CLASSES)}
        _set_auto_map(written / "preprocessor_config.json", backends)
        for file in source_files():
            shutil.copyfile(file, written / file.name)
        if example_image is not None:
            _save_example_image(example_image, written / EXAMPLE_IMAGE)
        (written / "README.md").write_text(model_card, encoding="utf-8")
    return directory


def push_to_hub(
    model: UneptForSemanticSegmentation,
    image_processor: UneptImageProcessor | UneptImageProcessorPil,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload UN-EPT",
    token: str | bool | None = None,
    **options,
) -> CommitInfo:
    """
    Uploads the directory of `save_for_hub` to a repository of the Hub, which is created if it does not exist. Other
    files of the repository stay.

    In contrast, `model.push_to_hub(repo_id)` uploads the weights and `config.json` alone, and the result needs
    `import unept_hf`.

    Args:
        model, image_processor: see `save_for_hub`.
        repo_id: the repository, `owner/name`, or `name` for one of your own.
        private: whether a new repository is private. `None` stands for its owner's default.
        revision: the branch, which is created if it does not exist. `None` stands for `main`.
        create_pr: whether to open a pull request in place of a commit.
        commit_message: the first line of the commit.
        token: a token with the right to write. `None` stands for the token of `hf auth login`, or `HF_TOKEN`.
        options: `model_card`, `license`, `state_dict` and `example_image` of `save_for_hub`.

    Returns:
        The commit, with `commit_url`, and `pr_url` for a pull request.

    Raises:
        ValueError: when the image processor makes images of sizes that the model cannot take.
        PermissionError: when the token may not write to the repository.
        OSError: when the Hub cannot be reached, or refuses the upload for another reason.
    """
    api = HfApi(token=token)
    if options.get("model_card") is None:
        options["model_card"] = _plain_card(repo_id, model.config)
    with tempfile.TemporaryDirectory() as temporary:
        directory = save_for_hub(model, image_processor, Path(temporary, "model"), **options)
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(repository, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repository,
                folder_path=directory,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (401, 403):
                raise
            raise PermissionError(
                f"The token may not write to {repo_id}; log in with `hf auth login` and a token that may, or set "
                f"HF_TOKEN. The Hub says: {error.server_message or error}"
            ) from error
