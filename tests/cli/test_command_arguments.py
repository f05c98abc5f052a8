# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Options from files, and as words of a command line."""

import dataclasses
import inspect
import json

import pytest

from unept_hf.arguments import merge_options, read_options, words_of_options
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.arguments import EvaluationDataArguments
from unept_hf.training.arguments import TrainingDataArguments


def test_options_of_data_are_those_of_the_function():
    """The command and the trainer, which has splits of its own, can say what load_segmentation_dataset takes."""
    function = set(inspect.signature(load_segmentation_dataset).parameters)
    names = {"dataset_name", "data_dir", "image_dir", "label_dir", "label_suffix", "class_list"}
    for arguments in (EvaluationDataArguments, TrainingDataArguments):
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
        with pytest.raises(ValueError, match=r"options\.yaml must hold names of options"):
            read_options(file)
    with pytest.raises(ValueError, match=r"missing\.yaml cannot be read"):
        read_options(tmp_path / "missing.yaml")


def test_options_of_base_files(tmp_path):
    """Relative to the file that names them; a mapping is merged, and null takes an option away."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "all.json").write_text('{"seed": 1, "scales": [1, 2], "config": {"a": {"b": 1, "c": 2}}}')
    (tmp_path / "shared" / "some.yaml").write_text("base: all.json\nseed: 2\nflip: true\n")
    file = tmp_path / "options.yaml"
    file.write_text("base: shared/some.yaml\nscales: [3]\nflip: null\nconfig: {a: {c: 3}}\n")
    assert read_options(file) == {"seed": 2, "scales": [3], "flip": None, "config": {"a": {"b": 1, "c": 3}}}


@pytest.mark.parametrize("file_has_text", [True, False])
def test_json_text_is_merged_with_a_mapping(file_has_text, tmp_path):
    """`config_overrides` may be written as for a command line, in the file or in its base."""
    text, mapping = '{"a": 2, "b": {"c": 3}}', {"a": 1, "b": {"d": 4}}
    values = (text, mapping) if file_has_text else (mapping, text)
    for name, value, base in (("options", values[0], "other.yaml"), ("other", values[1], None)):
        options = {"base": base} if base else {"image_dir": "{split}"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**options, "config_overrides": value}))
    merged = {"a": 2 if file_has_text else 1, "b": {"c": 3, "d": 4}}
    assert read_options(tmp_path / "options.yaml") == {"image_dir": "{split}", "config_overrides": merged}


@pytest.mark.parametrize("base", ["options.yaml", "other.yaml"])
def test_base_files_in_a_circle(base, tmp_path):
    (tmp_path / "options.yaml").write_text(f"base: {base}\nseed: 1\n")
    (tmp_path / "other.yaml").write_text(f"base: ../{tmp_path.name}/options.yaml\n")
    with pytest.raises(ValueError, match=r"options\.yaml cannot be read: its base files lead back to .*options\.yaml"):
        read_options(tmp_path / "options.yaml")


def test_a_missing_base_file(tmp_path):
    (tmp_path / "options.yaml").write_text("base: nowhere.yaml\n")
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read"):
        read_options(tmp_path / "options.yaml")


def test_merge_options():
    options = {"a": 1, "b": {"c": {"d": 1, "e": 2}, "f": [1, 2]}, "g": {"h": 1}, "i": 1}
    overrides = {"a": 3, "b": {"c": {"e": 4}, "f": [5]}, "g": None, "i": {"j": 1}, "k": {"l": 1}}
    merged = {"a": 3, "b": {"c": {"d": 1, "e": 4}, "f": [5]}, "g": None, "i": {"j": 1}, "k": {"l": 1}}
    assert merge_options(options, overrides) == merged
    assert options["b"] == {"c": {"d": 1, "e": 2}, "f": [1, 2]}
