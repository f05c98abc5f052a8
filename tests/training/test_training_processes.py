# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The processes of a training: their errors and signals, and that several do the work of one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_runs import (
    EXAMPLES,
    TINY_MODEL,
    arguments,
    assert_same,
    free_port,
    log_of,
    new_state,
    run,
    save_image,
    scene,
    start_together,
    wait_for_step,
    weights_of,
    write_image_folders,
)

from unept_hf.training import trainer
from unept_hf.training.checkpoints import list_checkpoints, read_checkpoint
from unept_hf.training.processes import Interruption
from unept_hf.training.run import command


def run_as_command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["folder/train.py", *words])
    return command()


def test_errors_of_a_user_are_one_line(tmp_path, monkeypatch, capsys):
    """Whatever lines the message has."""
    (tmp_path / "options.yaml").write_text("dataset_name: synthetic\nlerning_rate: 1\n")
    for words, message in (
        ([str(tmp_path / "options.yaml")], "options.yaml has unknown options: lerning_rate. --help lists"),
        (arguments(tmp_path, lerning_rate=1), "['--lerning_rate', '1']"),
        (arguments(tmp_path, dataset_name="ade20k", data_dir="nowhere"), "There is no folder 'nowhere"),
        (arguments(tmp_path, config_overrides={"hidden_size": 33}), "num_attention_heads=4 does not divide"),
        (arguments(tmp_path, config_overrides={"hidden_size": "x"}), "'hidden_size' expected int, got str"),
        (arguments(tmp_path, eval_split="nowhere"), "That was the evaluation set."),
    ):
        assert run_as_command(monkeypatch, *words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("train.py: error: ") and message in line
        new_state()
    with pytest.raises(ValueError, match="unknown options"):
        run_as_command(monkeypatch, str(tmp_path / "options.yaml"), "--traceback")
    with pytest.raises(SystemExit) as status:
        run_as_command(monkeypatch, *arguments(tmp_path, max_steps="many"))
    assert status.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage == "usage: train.py [OPTIONS.yaml] [--option value ...]"
    assert "invalid int value: 'many'" in line


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise raised

    monkeypatch.setattr(trainer, "load_data", fail)
    raised = AttributeError("a mistake")
    with pytest.raises(AttributeError, match="a mistake"):
        run_as_command(monkeypatch, *arguments(tmp_path))
    new_state()
    raised = KeyboardInterrupt()
    assert run_as_command(monkeypatch, *arguments(tmp_path)) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"


def test_a_command_that_ends_well(tmp_path, monkeypatch, capsys):
    assert run_as_command(monkeypatch, *arguments(tmp_path, max_steps=1, evaluate=False), "--traceback") == 0
    assert "traceback" not in read_checkpoint(tmp_path / "checkpoint-1")["options"]


def told_errors(file: Path) -> list[str]:
    """The errors that processes printed, all of them in one line."""
    text = file.read_text()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("train.py: ")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "train.py: error: max_steps must be at least 1"),
        ({"train_batch_size": 3}, "train.py: error (process 0): train_batch_size=3 cannot be shared"),
        ({"dataset_name": "ade20k", "data_dir": "nowhere"}, "train.py: error (process 0): There is no folder"),
    ],
    ids=["options", "batch", "data"],
)
def test_one_of_two_processes_tells_of_an_error(options, message, processes, tmp_path):
    errors = tmp_path / "errors"
    for process in start_together(processes, 2, arguments(tmp_path / "run", **options), errors=errors):
        process.join(60)
        assert process.exitcode == 1
    (line,) = told_errors(errors)
    assert line.startswith(message)


def test_the_other_process_has_no_traceback(processes, tmp_path):
    """One meets a bad mask, and the other one loses the connection."""
    options = write_image_folders(tmp_path / "data") | {"evaluate": False, "train_batch_size": 2}
    save_image(np.full(scene(3)[1].shape, 40, dtype=np.uint8), tmp_path / "data" / "masks" / "3.png")
    errors = tmp_path / "errors"
    for process in start_together(processes, 2, arguments(tmp_path / "run", **options), errors=errors):
        process.join(60)
        assert process.exitcode == 1
    lines = told_errors(errors)
    assert all(line.startswith("train.py: error (process ") for line in lines)
    assert any(str(tmp_path / "data" / "masks" / "3.png") in line for line in lines)


def test_interruption_notes_the_first_signal_only():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (interruption.received, seen) == ("SIGTERM", [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        with Interruption() as interruption:
            assert interruption.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize(
    "through_launcher", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["processes", "launcher"]
)
def test_two_processes_with_half_batches_are_one_with_the_whole(processes, tmp_path, through_launcher):
    """Over 20 steps, with evaluation of a number of images that does not divide."""
    options = {
        "max_steps": 20,
        "freeze_batch_norm": True,
        "config_overrides": {**TINY_MODEL, "dropout": 0.0},
        "eval_steps": 10,
        "max_eval_images": 7,
        "dataloader_num_workers": 1,
    }
    if through_launcher:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        result = subprocess.run(
            [
                *(*launcher, "--master_port", str(free_port()), EXAMPLES / "run_semantic_segmentation.py"),
                *arguments(tmp_path / "two", **options),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    else:
        for process in start_together(processes, 2, arguments(tmp_path / "two", **options)):
            process.join()
            assert process.exitcode == 0
    run(tmp_path / "one", **options)
    for key in ("loss", "gradient_norm", "eval/mean_iou", "eval/overall_accuracy"):
        one, two = log_of(tmp_path / "one", key), log_of(tmp_path / "two", key)
        assert len(one) == len(two) == (2 if "eval" in key else 20)
        # Pixels that just pass the threshold of the direction loss make the gradient jump.
        rtol = 1e-2 if key == "gradient_norm" else 1e-4
        np.testing.assert_allclose(two, one, rtol=rtol)
    assert read_checkpoint(tmp_path / "two" / "checkpoint-20")["num_processes"] == 2
    assert (tmp_path / "two" / "checkpoint-20" / "random_states_1.pkl").is_file()


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(processes, tmp_path):
    """One of two processes gets the signal; both finish the step, and the training goes on as if nothing had been."""
    options = {"max_steps": 16, "eval_steps": 8, "max_eval_images": 1}

    def start(output_dir, world_size=2, **more):
        return start_together(processes, world_size, arguments(output_dir, **options, **more))

    stopped = start(tmp_path / "stopped")
    wait_for_step(stopped[0], tmp_path / "stopped", 4)
    os.kill(stopped[1].pid, signal.SIGTERM)
    for process in stopped:
        process.join()
        assert process.exitcode == 0
    (checkpoint,) = list_checkpoints(tmp_path / "stopped")
    step = read_checkpoint(checkpoint)["step"]
    assert 4 <= step < 16
    assert not (tmp_path / "stopped" / "model").exists()
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")

    # One pair after the other: with four processes on two cores, most of the time goes to waiting.
    for name, resumed in (("stopped", {"resume_from_checkpoint": "latest"}), ("whole", {})):
        for process in start(tmp_path / name, **resumed):
            process.join()
            assert process.exitcode == 0
    assert_same(weights_of(tmp_path / "stopped" / "model"), weights_of(tmp_path / "whole" / "model"))
    for key in ("loss", "eval/mean_iou"):
        assert log_of(tmp_path / "stopped", key) == log_of(tmp_path / "whole", key)

    # One process goes on from the checkpoint of two, with the same crops; dropout differs.
    (process,) = start(tmp_path / "alone", world_size=1, resume_from_checkpoint="latest")
    process.join()
    assert process.exitcode == 0
    np.testing.assert_allclose(
        log_of(tmp_path / "alone")[step : step + 2], log_of(tmp_path / "whole")[step : step + 2], rtol=0.1
    )


def test_two_trainings_in_one_folder(processes, tmp_path):
    first = processes(arguments(tmp_path, max_steps=1000, evaluate=False, save_steps=2))
    wait_for_step(first, tmp_path, 1)
    with pytest.raises(BlockingIOError, match=rf"in use by another training, process {first.pid} on "):
        run(tmp_path, resume_from_checkpoint="latest")
    assert first.exitcode is None
    wait_for_step(first, tmp_path, log_of(tmp_path, "step")[-1] + 3)
    first.kill()
    first.join()
    step = read_checkpoint(list_checkpoints(tmp_path)[-1])["step"]
    run(tmp_path, max_steps=step + 1, evaluate=False, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step") == list(range(1, step + 2))


def test_a_bad_mask_ends_the_process(processes, tmp_path):
    """Its data loader workers ignore signals, and Python waits for them. The error is one line all the same."""
    options = write_image_folders(tmp_path / "data") | {"evaluate": False, "dataloader_num_workers": 2}
    for index in range(6):
        save_image(np.full((64, 64), 40 + index, dtype=np.uint8), tmp_path / "data" / "masks" / f"{index}.png")
        save_image(np.zeros((64, 64, 3), dtype=np.uint8), tmp_path / "data" / "images" / f"{index}.jpg")
    process = processes(arguments(tmp_path / "run", **options), errors=tmp_path / "errors")
    process.join(60)
    assert process.exitcode == 1
    (line,) = told_errors(tmp_path / "errors")
    assert line.startswith("train.py: error: ")
    assert str(tmp_path / "data" / "masks") in line
