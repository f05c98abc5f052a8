# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Folders `checkpoint-<step>` of a training: each exists as a whole or not at all, whenever the process is killed.

A folder is written under a hidden temporary name, synced to the disk, and then renamed. Its `checkpoint.json` lists
the size and SHA-256 of every other file, so that damage is found before anything is loaded. One training at a time
writes to a folder: it holds the folder's lock.
"""

import json
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj


__all__ = [
    "checkpoint_to_resume",
    "commit_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "lock_folder",
    "read_checkpoint",
    "start_checkpoint",
]

_CHECKPOINT_FILE = "checkpoint.json"
_LOCK_FILE = "training.lock"

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = ".unfinished-"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # past the text, which others could not read otherwise
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # Not flock, whose locks live on in data loader workers that outlast a killed training by seconds.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def lock_folder(directory: str | os.PathLike) -> Iterator[None]:
    """
    Keeps the trainings of other processes out of a folder during the block, by a lock of the operating system on its
    file `training.lock`. The lock ends with the process, however that ends, and child processes do not inherit it.
    The file names the owner, and stays, empty, after the block.

    Raises:
        BlockingIOError: when another process holds the lock; the message names the process and its host.
    """
    host = socket.gethostname()
    with Path(directory, _LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise BlockingIOError(
                f"{directory} is in use by another training, {file.read() or 'which is just starting'}: wait for its "
                "end, or name another output_dir."
            ) from error
        except OSError as error:
            logger.warning(f"The file system cannot lock {directory} ({error}): start no second training there.")
        file.seek(0)
        left = file.read()
        if left and not left.endswith(f" on {host}"):
            logger.warning(
                f"The last training in {directory}, {left}, did not end by itself. If it still runs, stop one of the "
                "two: not every network file system passes locks on."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {host}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def list_checkpoints(directory: str | os.PathLike) -> list[Path]:
    """The complete checkpoints in a folder, by step, the oldest first. None if there is no such folder."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    found = {int(match[1]): path for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def latest_checkpoint(directory: str | os.PathLike) -> Path | None:
    """The checkpoint with the highest step in a folder; `None` without one."""
    return next(reversed(list_checkpoints(directory)), None)


def checkpoint_to_resume(output_dir: Path, wanted: str | None) -> Path | None:
    """
    The checkpoint from which a training in a folder goes on, after a look at its files; `None` to start anew.

    Args:
        output_dir: The folder of the training.
        wanted: A checkpoint's path, its name in `output_dir`, or "latest"; `None` to start anew.

    Raises:
        FileNotFoundError: when the checkpoint does not exist.
        ValueError: when the checkpoint is damaged, or `output_dir` holds results that the training would overwrite.
    """
    newest = latest_checkpoint(output_dir)
    found, results = newest, [newest]
    if wanted is None:
        found, results = None, [newest, output_dir / "model", output_dir / "best_model"]
    elif wanted != "latest":
        is_path = Path(wanted).is_dir() or Path(wanted).name != wanted
        found = Path(wanted) if is_path else output_dir / wanted
    elif newest is None:
        logger.info(f"There is no checkpoint in {output_dir} yet: training starts anew.")
    if found is not None:
        read_checkpoint(found)
    kept = [path for path in results if path is not None and path.exists()]
    others = [path.name for path in kept if found is None or not path.samefile(found)]
    if others:
        raise ValueError(
            f"{output_dir} has {'other ' if found else ''}results ({', '.join(others)}): name another output_dir, or "
            "go on from its checkpoints with --resume_from_checkpoint latest."
        )
    return found


def start_checkpoint(directory: str | os.PathLike, step: int) -> Path:
    """A new folder in which to write the checkpoint of a step. Leftovers of killed processes are removed."""
    directory = Path(directory)
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    folder = directory / f"{_TEMPORARY}checkpoint-{step}"
    folder.mkdir(parents=True)
    return folder


def commit_checkpoint(folder: Path, content: dict[str, Any], save_total_limit: int | None = None) -> Path:
    """
    Makes the folder of `start_checkpoint`, with all files in it, a checkpoint, and removes old ones beyond the limit.
    `content` are JSON values that `read_checkpoint` will return.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("._")  # what macOS adds comes and goes
    }
    text = json.dumps({**content, "files": files}, indent=2) + "\n"
    (folder / _CHECKPOINT_FILE).write_text(text, encoding="utf-8")
    # Without this, a power cut could leave the new name with empty files.
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    checkpoint = folder.with_name(folder.name.removeprefix(_TEMPORARY))
    folder.rename(checkpoint)
    _sync(checkpoint.parent)

    if save_total_limit is not None:
        for old in list_checkpoints(checkpoint.parent)[:-save_total_limit]:
            # A folder that is half removed must not look like a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f"{_TEMPORARY}{old.name}")))
    return checkpoint


def read_checkpoint(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """
    The `content` of a checkpoint, after all its files have been compared with their recorded sizes and hashes.

    Raises:
        FileNotFoundError: when it is not the folder of a checkpoint.
        ValueError: when files are missing, cut off or changed; the message names them.
    """
    checkpoint = Path(checkpoint)
    file = checkpoint / _CHECKPOINT_FILE
    siblings = (path for path in list_checkpoints(checkpoint.parent) if path != checkpoint)
    others = [path.name for path in siblings if (path / _CHECKPOINT_FILE).is_file()]
    if not file.is_file():
        remedy = f"Resume from {others[-1]} beside it" if others else "Name a folder checkpoint-<step> that it wrote"
        raise FileNotFoundError(
            f"{checkpoint} is not a checkpoint of this trainer: it has no {_CHECKPOINT_FILE}. {remedy}."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = {name: (entry["size"], entry["sha256"]) for name, entry in content.pop("files").items()}
        problems = [] if files else [f"{_CHECKPOINT_FILE} lists no files"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        files, problems = {}, [f"{_CHECKPOINT_FILE}: {error!r}"]
    for name, (size, sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif _sha256(path) != sha256:
            problems.append(f"{name} has other bytes than were written")
    if problems:
        remedy = f"resume from {others[-1]}" if others else "there is no other one: start again"
        raise ValueError(f"The checkpoint {checkpoint} is damaged; remove it and {remedy} ({'; '.join(problems)})")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def _sync(path: Path) -> None:
    # Windows cannot open folders, and asks for write access to files.
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
