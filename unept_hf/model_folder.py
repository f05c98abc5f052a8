# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""A model's folder, read and written as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

from .model.modeling_unept import plain_tensors


def _prefix(directory: Path) -> str:
    return f".{directory.name}."


@contextmanager
def new_folder(directory: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """
    A new folder beside `directory`, which takes its place at the end of the block. An error before that, or a killed
    process, leaves what was there.

    Args:
        directory (`str` or `os.PathLike`):
            The folder to write. Folders above it are made where they are missing.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace a model that is there, with all that is in its folder.

    Raises:
        FileExistsError: when `directory` is a file or the current folder; when it is not empty (without `overwrite`);
            when it holds more than a model, or none (with `overwrite`).
    """
    directory = Path(directory).expanduser().resolve()
    if directory.exists():
        if not directory.is_dir():
            raise FileExistsError(f"{directory} is a file: name a folder.")
        if directory == Path.cwd():
            raise FileExistsError(f"{directory} is the current folder, which would be replaced: name another one.")
        entries = [entry for entry in directory.iterdir() if not entry.name.startswith("._")]  # what macOS adds
        if entries and not overwrite:
            raise FileExistsError(
                f"{directory} is not empty: name another folder, or pass overwrite=True (--overwrite) to replace what "
                "is in it."
            )
        # A home folder or a git repository may not be lost to a slip.
        if entries and (directory / "config.json" not in entries or any(entry.is_dir() for entry in entries)):
            raise FileExistsError(
                f"{directory} holds more than a model, or none (sub-folders, or no config.json), and overwrite would "
                "delete all of it: name another folder."
            )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(directory), dir=directory.parent) as temporary:
        written, replaced = Path(temporary, "written"), Path(temporary, "replaced")
        written.mkdir()
        yield written
        if directory.exists():
            directory.rename(replaced)
        try:
            written.rename(directory)
        except OSError:
            if replaced.exists():
                replaced.rename(directory)
            raise


def load_whole(name: str, **kwargs) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A trained model, in evaluation mode, and its image processor. `from_pretrained` alone makes up what is missing, as
    fine-tuning wants it.

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


def remove_leftovers(directory: str | os.PathLike) -> None:
    """
    Removes what processes that were killed in [`new_folder`] left beside `directory`. Where one was killed between its
    two last steps, so that `directory` is not there, the folder that it had written becomes `directory`.

    No other process may be writing `directory`.
    """
    directory = Path(directory).expanduser().resolve()
    siblings = list(directory.parent.iterdir()) if directory.parent.is_dir() else []
    for leftover in siblings:
        if not leftover.name.startswith(_prefix(directory)) or not leftover.is_dir():
            continue
        written, replaced = leftover / "written", leftover / "replaced"
        if any(path not in (written, replaced) and not path.name.startswith("._") for path in leftover.iterdir()):
            continue
        if replaced.exists() and not directory.exists():
            (written if written.exists() else replaced).rename(directory)
        shutil.rmtree(leftover)


__all__ = ["load_whole", "new_folder", "remove_leftovers"]
