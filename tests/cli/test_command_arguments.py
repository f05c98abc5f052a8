# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Options from files, and as words of a command line."""

import dataclasses
import inspect
import json
import runpy
from pathlib import Path

import pytest

from unept_hf.arguments import merge_options, read_options, words_of_options
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.arguments import EvaluationDataArguments


def test_options_of_data_are_those_of_the_function():
    """The command and the trainer, which has splits of its own, can say what load_segmentation_dataset takes."""
    trainer = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "run_semantic_segmentation.py"))
    function = set(inspect.signature(load_segmentation_dataset).parameters)
    names = {"dataset_name", "data_dir", "image_dir", "label_dir", "label_suffix", "class_list"}
    for arguments in (EvaluationDataArguments, trainer["DataArguments"]):
        fields = {field.name: field for field in dataclasses.fields(arguments)}
        assert names <= fields.keys() & function
        assert "camvid" in fields["dataset_name"].metadata["help"]


def test_options_become_words():
    options = {"flip": True, "mixed_precision": False, "scales": [0.5, 1], "class_list": None, "report_to": []}
    options |= {"config_overrides": {"num_feature_levels": 1}, "rate": 2e-4}
    words = ["--flip", "yes", "--mixed_precision", "no", "--scales", "0.5", "1"]
    assert words_of_options(options) == [
        *words, "--config_overrides", '{"num_feature_levels": 1}', "--rate", "0.0002"
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_read_options(tmp_path, suffix):
    options = {"dataset_name": "synthetic", "scales": [0.5, 1], "class_list": None, "flip": True}
    file = tmp_path / f"options{suffix}"
    # YAML holds JSON, but for tabs.
    file.write_text(json.dumps(options, indent="\t" if suffix == ".json" else 1), encoding="utf-8")
    assert read_options(file) == read_options(str(file)) == options


def test_file_without_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("# flip: true\n")
    assert read_options(file) == {}
    for text in ("[1, 2]", "flip"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"options\.yaml has to hold names of options"):
            read_options(file)
    with pytest.raises(ValueError, match=r"missing\.yaml can not be read"):
        read_options(tmp_path / "missing.yaml")


def test_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "options.yaml").write_text("flip: true\n")
    assert read_options("~/options.yaml") == {"flip": True}


def test_merge_options():
    options = {"a": 1, "b": {"c": {"d": 1, "e": 2}, "f": [1, 2]}, "g": {"h": 1}, "i": 1}
    overrides = {"a": 3, "b": {"c": {"e": 4}, "f": [5]}, "g": None, "i": {"j": 1}, "k": {"l": 1}}
    merged = {"a": 3, "b": {"c": {"d": 1, "e": 4}, "f": [5]}, "g": None, "i": {"j": 1}, "k": {"l": 1}}
    assert merge_options(options, overrides) == merged
    assert options["b"] == {"c": {"d": 1, "e": 2}, "f": [1, 2]}
