# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainings that are stopped, killed and resumed."""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from training_runs import (
    TINY_MODEL,
    arguments,
    assert_same,
    log_of,
    run,
    wait_for_step,
    weights_of,
    write_image_folders,
)

from unept_hf import UneptConfig, UneptImageProcessor
from unept_hf.training import trainer
from unept_hf.training.checkpoints import list_checkpoints, read_checkpoint


class Poison:
    """Unpickled without checks, it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def test_models_of_an_earlier_training_stay(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"has results \(model\): name another output_dir"):
        run(tmp_path)


def test_a_failing_evaluation_costs_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a broken image")

    monkeypatch.setattr(trainer, "evaluate_model", fail)
    with pytest.raises(ValueError, match="a broken image"):
        run(tmp_path, max_steps=2, eval_steps=1, save_steps=0)
    assert read_checkpoint(list_checkpoints(tmp_path)[-1])["step"] == 1
    monkeypatch.undo()
    run(tmp_path, max_steps=2, eval_steps=1, save_steps=0, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step")[-1] == 2


def test_a_training_goes_on_with_its_normalization(tmp_path):
    """Checkpoints of earlier versions do not name it: their trainings normalized as for ImageNet."""
    options = {"evaluate": False, "resume_from_checkpoint": "latest"}
    for step, names_it, expected in ((1, True, 0.5), (2, True, 0.5), (3, False, 0.485), (4, True, 0.485)):
        if not names_it:
            checkpoint = tmp_path / f"checkpoint-{step - 1}" / "checkpoint.json"
            content = json.loads(checkpoint.read_text())
            del content["image_mean"], content["image_std"]
            checkpoint.write_text(json.dumps(content))
        run(tmp_path, max_steps=step, **options)
        assert UneptImageProcessor.from_pretrained(tmp_path / "model").image_mean[0] == expected


def test_class_balanced_sampling_goes_on(tmp_path, caplog):
    """To the bit, with the augmentation that is off by default."""
    options = {"evaluate": False, "lr_scheduler_type": "constant", "class_balanced_sampling": 1.0}
    options |= {"rotation_degrees": 20.0, "blur_probability": 0.5, "photometric_strength": 0.5}
    with caplog.at_level(logging.INFO):
        run(tmp_path / "whole", max_steps=6, **options)
    assert "of 10 images come more often, at most" in caplog.text
    for steps in (3, 6):
        run(tmp_path / "parts", max_steps=steps, resume_from_checkpoint="latest", **options)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    with pytest.raises(ValueError, match=r"class_balanced_sampling was 1\.0, now 0\.5"):
        run(tmp_path / "parts", resume_from_checkpoint="latest", **options | {"class_balanced_sampling": 0.5})


def test_killed_ten_times(processes, tmp_path):
    """At random moments, while steps are made and checkpoints written: the same bits as without."""
    options = {"max_steps": 24, "save_steps": 2, "ema_decay": 0.9, "seed": 5, "evaluate": False}
    whole = processes(arguments(tmp_path / "whole", **options))
    whole.join()
    assert whole.exitcode == 0
    killed = tmp_path / "killed"
    options.update(resume_from_checkpoint="latest", dataloader_num_workers=1)
    generator = random.Random()
    moments = []
    for _ in range(10):
        done = max([read_checkpoint(path)["step"] for path in list_checkpoints(killed)], default=0)
        step, delay = min(done + generator.randint(1, 4), 23), generator.uniform(0, 0.08)
        moments.append((step, round(delay, 3)))
        process = processes(arguments(killed, **options))
        wait_for_step(process, killed, step)
        time.sleep(delay)
        process.kill()
        process.join()
    last = processes(arguments(killed, **options))
    last.join()
    assert last.exitcode == 0, moments
    for name in ("model/model.safetensors", "checkpoint-24/model.safetensors", "checkpoint-24/average.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (name, moments)
    assert log_of(killed) == log_of(tmp_path / "whole"), moments
    assert log_of(killed, "step") == list(range(1, 25))
    assert [path.name for path in list_checkpoints(killed)] == ["checkpoint-22", "checkpoint-24"]


def test_early_stopping_counts_across_a_resume(tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.6, 0.6, 0.5])

    def evaluate(*args, **kwargs):
        names = ("mean_accuracy", "overall_accuracy", "loss", "seconds")
        return {"mean_iou": next(scores), **dict.fromkeys(names, 0.5), "num_images": 1, "per_category": {}}

    monkeypatch.setattr(trainer, "evaluate_model", evaluate)
    options = {"eval_steps": 1, "early_stopping_patience": 2, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options, max_steps=4)
    assert log_of(tmp_path, "step")[-1] == 4
    for _ in range(2):  # the second time it has ended already
        run(tmp_path, **options, max_steps=9, load_best_model_at_end=True)
        assert log_of(tmp_path, "step")[-1] == 5
        assert [read_checkpoint(path)["step"] for path in list_checkpoints(tmp_path)] == [4, 5]
    assert_same(weights_of(tmp_path / "model"), weights_of(tmp_path / "best_model"))


@pytest.mark.floor
def test_resume(tmp_path, caplog):
    options = {"save_steps": 2, "eval_steps": 2}
    run(tmp_path, **options)
    with pytest.raises(ValueError, match=r"has results \(checkpoint-4, model, best_model\): name another"):
        run(tmp_path, **options)
    options["resume_from_checkpoint"] = "latest"
    with pytest.raises(ValueError, match=r"train_batch_size was 4, now 8; seed was 0, now 1") as error:
        run(tmp_path, **options, train_batch_size=8, seed=1, logging_steps=2)
    assert "logging_steps" not in str(error.value)
    with pytest.raises(
        ValueError, match="num_synthetic_scenes was 10, now 12; the training set had 10 examples, now 12"
    ):
        run(tmp_path, **options, num_synthetic_scenes=12)
    with pytest.raises(ValueError, match="config_overrides was"):
        run(tmp_path, **options, config_overrides={**TINY_MODEL, "decoder_layers": 2})
    for name in (tmp_path / "checkpoint-2", "checkpoint-2"):
        with pytest.raises(ValueError, match=r"has other results \(checkpoint-4\)"):
            run(tmp_path, **{**options, "resume_from_checkpoint": name})
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3 is not a checkpoint .* Resume from checkpoint-4"):
        run(tmp_path, **{**options, "resume_from_checkpoint": "checkpoint-3"})
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"has other results \(checkpoint-4\)"):
        run(tmp_path, **{**options, "resume_from_checkpoint": tmp_path / "other" / "checkpoint-4"})

    # Finished: nothing is left to do but to write the model again, with what was measured.
    assert run(tmp_path, **options)["mean_iou"] == log_of(tmp_path, "eval/mean_iou")[-1]
    assert len(log_of(tmp_path)) == 4
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(tmp_path, **options, max_steps=6)
    assert "max_steps was 4, now 6" in caplog.text
    assert log_of(tmp_path, "step") == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    # Polynomial to 1e-7, at first over four steps and then over six.
    expected = [1e-3 - (1e-3 - 1e-7) * step / (4 if step < 4 else 6) for step in range(6)]
    np.testing.assert_allclose(log_of(tmp_path, "learning_rate"), expected)

    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoint-6 is damaged; remove it and resume from checkpoint-4"):
        run(tmp_path, **options, max_steps=8)


@pytest.mark.parametrize("file", ["optimizer.bin", "scheduler.bin"])
def test_a_checkpoint_that_would_run_code(file, tmp_path):
    """Its list of hashes fits."""
    options = {"evaluate": False, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options)
    checkpoint = tmp_path / "checkpoint-4"
    torch.save(Poison(), checkpoint / file)
    content = (checkpoint / file).read_bytes()
    description = json.loads((checkpoint / "checkpoint.json").read_text())
    description["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"checkpoint-4 .* cannot be loaded safely") as error:
        run(tmp_path, **options, max_steps=5)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


def test_a_trained_model_that_would_run_code(tmp_path):
    folder = tmp_path / "poisoned"
    UneptConfig.from_preset("unept-tiny", **TINY_MODEL, num_labels=3).save_pretrained(folder)
    torch.save({"classifier.bias": Poison()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"poisoned .* cannot be loaded safely") as error:
        run(tmp_path / "run", model_name_or_path=folder, config_overrides=None)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


def change_random_states(checkpoint: Path, change) -> None:
    """As if they had been saved like this: with their hash."""
    file = checkpoint / "random_states_0.pkl"
    change(file)
    content = json.loads((checkpoint / "checkpoint.json").read_text())
    if file.is_file():
        data = file.read_bytes()
        content["files"][file.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        del content["files"][file.name]
    (checkpoint / "checkpoint.json").write_text(json.dumps(content))


def drop_numpy(file: Path) -> None:
    states = torch.load(file, weights_only=False)
    del states["numpy_random_seed"]
    torch.save(states, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "FileNotFoundError"),
        (lambda file: file.write_bytes(b"nothing"), "Error: "),
        (drop_numpy, "KeyError: 'numpy_random_seed'"),
    ],
    ids=["missing", "broken", "incomplete"],
)
def test_random_states_that_are_not_restored(change, reason, tmp_path, caplog):
    options = {"max_steps": 1, "evaluate": False, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options)
    run(tmp_path, **options)
    message = "Process 0 cannot restore the random states of "
    assert message not in caplog.text
    change_random_states(tmp_path / "checkpoint-1", change)
    run(tmp_path, **options)
    (line,) = (record.message for record in caplog.records if message in record.message)
    assert reason in line and "dropout draws other numbers" in line


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("accelerate.checkpointing.save", OSError(errno.ENOSPC, "No space left on device")),
        ("accelerate.checkpointing.save", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        ("unept_hf.training.checkpoints._sync", OSError(errno.EDQUOT, "Disk quota exceeded")),
        ("matplotlib.figure.Figure.savefig", OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=["checkpoint", "weights", "optimizer", "quota", "picture"],
)
def test_full_disk(target, error, tmp_path, monkeypatch):
    run(tmp_path, max_steps=1, evaluate=False)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(target, fail)
    message = (
        rf"No space left on the disk \(.*MB are free in .*The last whole checkpoint is {tmp_path}/checkpoint-\d\. "
    )
    with pytest.raises(OSError, match=message) as raised:
        run(tmp_path, max_steps=2, evaluate=False, resume_from_checkpoint="latest")
    assert raised.value.__cause__ is error
    assert not list(tmp_path.glob(".unfinished*"))
    monkeypatch.undo()
    run(tmp_path, max_steps=2, evaluate=False, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step") == [1, 2]


def test_killed_while_models_are_written(tmp_path, monkeypatch):
    """The best model is found again, what was half written goes, and the final model is there as a whole or not."""
    options = {"max_steps": 2, "load_best_model_at_end": True, "resume_from_checkpoint": "latest"}

    def copy_half(source, target, **kwargs):
        shutil.copy(source / "config.json", target)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(trainer.shutil, "copytree", copy_half)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **options)
    assert not (tmp_path / "model").exists()
    best = weights_of(tmp_path / "best_model")
    leftover = tmp_path / ".best_model.abc"
    leftover.mkdir()
    shutil.copytree(tmp_path / "best_model", leftover / "replaced")
    (tmp_path / "best_model").rename(leftover / "written")
    (tmp_path / ".model.abc" / "written").mkdir(parents=True)
    run(tmp_path, **options)
    assert not list(tmp_path.glob(".*"))
    for name in ("best_model", "model"):
        assert_same(weights_of(tmp_path / name), best)


def test_latest_without_a_checkpoint_starts_anew(tmp_path):
    run(tmp_path, resume_from_checkpoint="latest", max_steps=1, evaluate=False)
    assert log_of(tmp_path, "step") == [1]


def test_replaced_data_is_noticed(tmp_path, caplog):
    options = write_image_folders(tmp_path / "data")
    options |= {"max_steps": 1, "evaluate": False, "resume_from_checkpoint": "latest"}

    def warnings_of_a_resume() -> list[str]:
        caplog.clear()
        run(tmp_path / "run", **options)
        return [record.message for record in caplog.records if "the data was replaced" in record.message]

    assert not warnings_of_a_resume()
    assert not warnings_of_a_resume()
    checkpoint = tmp_path / "run" / "checkpoint-1" / "checkpoint.json"
    written = checkpoint.read_text()

    # The same data in another place is not other data.
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    options["data_dir"] = tmp_path / "moved"
    assert not warnings_of_a_resume()
    for folder, name in (("images", "7.jpg"), ("masks", "7.png")):
        path = tmp_path / "moved" / folder / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0")
        (message,) = warnings_of_a_resume()
        assert "its files have other sizes. If" in message
        path.write_bytes(whole)
    for path in (*(tmp_path / "moved" / "images").glob("7.*"), *(tmp_path / "moved" / "masks").glob("7.*")):
        path.rename(path.with_stem("8"))
    (message,) = warnings_of_a_resume()
    assert "its files have other names. If" in message

    # Checkpoints of earlier versions do not know.
    content = json.loads(written)
    del content["data_fingerprint"]
    checkpoint.write_text(json.dumps(content))
    assert not warnings_of_a_resume()
