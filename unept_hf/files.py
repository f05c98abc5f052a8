# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and directories that are written as a whole or not at all, whenever the process is killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["atomic_directory", "atomic_file", "make_directory", "remove_leftovers"]


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."  # file systems limit names to 255 bytes


def make_directory(directory: str | os.PathLike) -> Path:
    """
    Makes a directory for results, and its parents, where they are missing.

    Raises:
        FileExistsError: if it or a parent is a file.
    """
    directory = Path(directory).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (directory, *directory.parents) if path.exists())
        raise FileExistsError(
            f"{directory} cannot be a directory, because {file} is a file; name another directory."
        ) from error
    return directory


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    A path in a temporary directory beside `path`, which takes its place at the end of the block. After an error, or in
    a killed process, the old file stays. Other files that the block writes beside the new one move with it. Missing
    parent directories are created.

    Raises:
        FileExistsError: if `path` is a directory.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileExistsError(f"{path} is a directory; name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent) as temporary:
        written = Path(temporary, path.name)
        yield written
        files = [file for file in Path(temporary).iterdir() if not file.name.startswith("._")]  # macOS adds these
        # The file itself comes last, because it may need the others.
        for file in sorted(files, key=lambda file: file == written):
            file.replace(path.with_name(file.name))


@contextmanager
def atomic_directory(
    directory: str | os.PathLike, overwrite: bool = False, kind: str = "model directory", marker: str = "config.json"
) -> Iterator[Path]:
    """
    A new directory beside `directory`, which takes its place at the end of the block. After an error, or in a killed
    process, the old directory stays. Missing parent directories are created.

    Args:
        directory: the directory to write.
        overwrite: whether to replace a directory of this kind with all its files.
        kind: what messages call the directory.
        marker: a file that each directory of this kind has.

    Raises:
        FileExistsError: if `directory` is a file or the current directory; if it is not empty (without `overwrite`);
            if it has no `marker`, or has subdirectories (with `overwrite`).
    """
    directory = Path(directory).expanduser().resolve()
    if directory.exists():
        if not directory.is_dir():
            raise FileExistsError(f"{directory} is a file; name a directory.")
        if directory == Path.cwd():
            raise FileExistsError(f"{directory} is the current directory, which cannot be replaced; name another.")
        entries = [entry for entry in directory.iterdir() if not entry.name.startswith("._")]  # macOS adds these
        if entries and not overwrite:
            raise FileExistsError(
                f"{directory} is not empty; name another directory, or pass overwrite=True (--overwrite) to replace "
                "its files."
            )
        # A slip must not cost a home directory or a git repository.
        if entries and (directory / marker not in entries or any(entry.is_dir() for entry in entries)):
            raise FileExistsError(
                f"{directory} is not a {kind} (it has subdirectories, or no {marker}), and overwriting would delete "
                "all its files; name another directory."
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
    Removes the temporary directories that killed processes left beside `directory`. If a process was killed between
    the last two steps of `atomic_directory`, so that `directory` is missing, its new directory becomes `directory`.

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
