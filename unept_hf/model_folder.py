# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Writing a model's folder as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    directory = Path(directory).resolve()
    if directory.exists():
        if not directory.is_dir():
            raise FileExistsError(f"{directory} is a file: name a folder.")
        if directory == Path.cwd():
            raise FileExistsError(f"{directory} is the current folder, which would be replaced: name another one.")
        entries = list(directory.iterdir())
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


def remove_leftovers(directory: str | os.PathLike) -> None:
    """
    Removes what processes that were killed in [`new_folder`] left beside `directory`. Where one was killed between its
    two last steps, so that `directory` is not there, the folder that it had written becomes `directory`.

    No other process may be writing `directory`.
    """
    directory = Path(directory).resolve()
    siblings = list(directory.parent.iterdir()) if directory.parent.is_dir() else []
    for leftover in siblings:
        if not leftover.name.startswith(_prefix(directory)) or not leftover.is_dir():
            continue
        written, replaced = leftover / "written", leftover / "replaced"
        if not set(leftover.iterdir()) <= {written, replaced}:
            continue
        if replaced.exists() and not directory.exists():
            (written if written.exists() else replaced).rename(directory)
        shutil.rmtree(leftover)


__all__ = ["new_folder", "remove_leftovers"]
