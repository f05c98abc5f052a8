# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
What is left of a model's folder when the process is killed, and that it is found again; and that no half of a model is
taken for a whole one.
"""

import os
import shutil
import traceback

import pytest
import torch
from safetensors.torch import load_file, save_file

from unept_hf import SYNTHETIC_SCENES, UneptForSemanticSegmentation
from unept_hf.files import atomic_directory, remove_leftovers
from unept_hf.inference.loading import load_model_and_processor


class Killed(BaseException):
    """Not an Exception: nothing is put right, as when the process is killed."""


def write(directory, content):
    with atomic_directory(directory, overwrite=True) as folder:
        (folder / "config.json").write_text(content)


def write_and_be_killed(directory, content, at_rename, monkeypatch):
    """At one of the renames, or with 0 while the files are written."""
    renames = []

    def rename(source, target):
        renames.append(target)
        if len(renames) == at_rename:
            raise Killed
        os.rename(source, target)

    with monkeypatch.context() as context:
        context.setattr("pathlib.Path.rename", rename)
        # The temporary folder is not removed either.
        context.setattr("tempfile.TemporaryDirectory.__exit__", lambda *args: None)
        context.setattr("tempfile.TemporaryDirectory._cleanup", lambda *args, **kwargs: None)
        with pytest.raises(Killed), atomic_directory(directory, overwrite=True) as folder:
            (folder / "config.json").write_text(content)
            if at_rename == 0:
                raise Killed


@pytest.mark.parametrize(("at_rename", "left"), [(0, "old"), (1, "old"), (2, "new")])
def test_killed(tmp_path, monkeypatch, at_rename, left):
    directory = tmp_path / "best_model"
    write(directory, "old")
    write_and_be_killed(directory, "new", at_rename, monkeypatch)
    assert len(list(tmp_path.glob(".best_model.*"))) == 1
    assert directory.exists() == (at_rename < 2)
    remove_leftovers(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["best_model"]
    assert (directory / "config.json").read_text() == left
    write(directory, "newer")
    assert (directory / "config.json").read_text() == "newer"


def test_killed_before_there_was_one(tmp_path, monkeypatch):
    write_and_be_killed(tmp_path / "model", "half", 0, monkeypatch)
    remove_leftovers(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_nothing_else_is_removed(tmp_path):
    for name in ("model", ".modelling", ".model.mine", ".best_model.x/written", ".model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".model.mine" / "notes.txt").touch()
    (tmp_path / ".model.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path / "model")
    assert sorted(tmp_path.rglob("*")) == before
    remove_leftovers(tmp_path / "missing" / "model")


def test_load_whole(tmp_path):
    model, processor = load_model_and_processor(SYNTHETIC_SCENES)
    assert not model.training and processor.size_divisor == model.model.size_divisor
    folder = tmp_path / "model"
    shutil.copytree(SYNTHETIC_SCENES, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"The weights of .*model are damaged \(.*\): copy or download them again"):
        load_model_and_processor(str(folder))
    del weights["classifier.bias"]
    weights["classifier.weight"] = torch.zeros(5, 96, 1, 1)
    save_file(weights, file)
    wanted = tuple(model.classifier.weight.shape)
    with pytest.raises(ValueError) as error:
        load_model_and_processor(str(folder))
    assert "classifier.bias is missing, classifier.weight has shape (5, 96, 1, 1)" in str(error.value)
    assert f"instead of {wanted}." in str(error.value)


class Poison:
    """Unpickled without checks, it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def test_weights_that_would_run_code(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(SYNTHETIC_SCENES, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Poison()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="model is not plain tensors, and cannot be loaded safely") as error:
        load_model_and_processor(str(folder))
    # PyTorch's advice is to load it all the same.
    assert "weights_only" not in "".join(traceback.format_exception(error.value))
    with pytest.raises(ValueError, match="is not plain tensors, and cannot be loaded safely") as error:
        UneptForSemanticSegmentation.from_pretrained(folder)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))
