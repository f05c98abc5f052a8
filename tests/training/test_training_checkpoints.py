# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders are there as a whole or not at all."""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from unept_hf.training import checkpoints as training_checkpoints
from unept_hf.training.checkpoints import (
    commit_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    lock_folder,
    read_checkpoint,
    start_checkpoint,
)


class Killed(BaseException):
    """Not an Exception: no cleaning up, as when the process is killed."""


FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree"}
countdown = None


def kill_at_file_operation(event: str, arguments: tuple) -> None:
    global countdown
    if countdown is not None and event in FILE_OPERATIONS:
        countdown -= 1
        if countdown < 0:
            countdown = None
            raise Killed


# Hooks cannot be removed; this one does nothing while there is no countdown.
sys.addaudithook(kill_at_file_operation)


def save(directory: Path, step: int, save_total_limit: int | None = 2) -> Path:
    folder = start_checkpoint(directory, step)
    (folder / "weights.bin").write_bytes(bytes([step]) * 1000)
    (folder / "shards").mkdir()
    (folder / "shards" / "0.bin").write_bytes(b"0" * 10)
    return commit_checkpoint(folder, {"step": step}, save_total_limit)


def test_save_and_read(tmp_path):
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    assert save(tmp_path, 9) == tmp_path / "checkpoint-9"
    save(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by name
    assert read_checkpoint(tmp_path / "checkpoint-10") == {"step": 10}
    assert (tmp_path / "checkpoint-10" / "weights.bin").read_bytes() == b"\n" * 1000


def test_old_ones_are_removed(tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, step, save_total_limit=None)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    save(tmp_path, 8, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    save(tmp_path, 10, save_total_limit=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10"]


def test_killed_at_any_file_operation(tmp_path):
    """The newest checkpoint is always whole, and saving works again afterwards."""
    global countdown
    after = set()
    for operation in range(1000):
        directory = tmp_path / str(operation)
        save(directory, 2, save_total_limit=1)
        countdown = operation
        try:
            save(directory, 4, save_total_limit=1)
            done, countdown = countdown is not None, None
        except Killed:
            done = False
        newest = latest_checkpoint(directory)
        assert read_checkpoint(newest)["step"] in (2, 4)
        after.add(newest.name)
        for path in list_checkpoints(directory):
            read_checkpoint(path)
        save(directory, 6, save_total_limit=1)
        assert [path.name for path in directory.iterdir()] == ["checkpoint-6"]
        if done:
            break
    assert operation > 15
    assert after == {"checkpoint-2", "checkpoint-4"}


def test_other_entries_are_no_checkpoints(tmp_path):
    save(tmp_path, 3)
    for name in ("checkpoint-7.zip", "checkpoint-best", "old-checkpoint-8", ".unfinished-checkpoint-9"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "weights.bin is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "weights.bin has 500 bytes instead of 1000"),
        (lambda path: path.write_bytes(b"\0" * 1000), "weights.bin has other bytes"),
        (lambda path: path.with_name("checkpoint.json").write_text("{"), "checkpoint.json"),
        (lambda path: path.with_name("checkpoint.json").write_text("{}"), "checkpoint.json"),
        (lambda path: path.with_name("checkpoint.json").write_text("[]"), "checkpoint.json"),
        (lambda path: path.with_name("checkpoint.json").write_text('{"files": {}}'), "checkpoint.json lists no files"),
        (lambda path: path.with_name("checkpoint.json").write_text('{"files": []}'), "checkpoint.json"),
        (
            lambda path: path.with_name("checkpoint.json").write_text('{"files": {"weights.bin": 9}}'),
            "checkpoint.json",
        ),
    ],
)
def test_damage_is_reported(damage, message, tmp_path):
    save(tmp_path, 2)
    checkpoint = save(tmp_path, 4)
    damage(checkpoint / "weights.bin")
    with pytest.raises(ValueError, match=r"checkpoint-4 is damaged; remove it and resume from checkpoint-2") as error:
        read_checkpoint(checkpoint)
    assert message in str(error.value)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a checkpoint .* Name a folder checkpoint-<step>"):
        read_checkpoint(tmp_path)
    save(tmp_path, 4)
    (tmp_path / "checkpoint-500").mkdir()  # by another trainer
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.json\. Resume from checkpoint-4 beside it"):
        read_checkpoint(tmp_path / "checkpoint-500")


# ---- the lock ------------------------------------------------------------------------------------------------------


def hold_lock(directory: Path, connection) -> None:
    with lock_folder(directory):
        worker = os.fork()  # as a data loader does
        if worker:
            connection.send(worker)
        time.sleep(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lock_ends_with_its_process(tmp_path):
    """A second owner hears of the first; `kill -9` ends the lock at once, though a forked worker lives on."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    owner = context.Process(target=hold_lock, args=(tmp_path, there))
    owner.start()
    worker = here.recv()
    try:
        message = rf"in use by another training, process {owner.pid} on {socket.gethostname()}: wait for its end, or"
        with pytest.raises(BlockingIOError, match=message), lock_folder(tmp_path):
            pass
        owner.kill()
        owner.join()
        os.kill(worker, 0)  # lives
        with lock_folder(tmp_path):
            assert (tmp_path / "training.lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        assert (tmp_path / "training.lock").read_text() == ""
    finally:
        owner.kill()
        os.kill(worker, signal.SIGKILL)


def test_lock_of_another_machine(tmp_path, caplog):
    """That it could be taken may only mean that the file system does not pass locks on."""
    for host, warns in ((socket.gethostname(), False), ("node-7", True)):
        (tmp_path / "training.lock").write_text(f"process 12 on {host}")
        with lock_folder(tmp_path):
            assert ("process 12 on node-7, did not end by itself" in caplog.text) == warns


def test_file_systems_without_locks(tmp_path, monkeypatch, caplog):
    def fail(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(training_checkpoints, "_lock", fail)
    with lock_folder(tmp_path):
        assert "start no second training there" in caplog.text
