# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a data set holds: counts, odd files, and the report on them."""

import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from unept_hf.cli import main
from unept_hf.data.class_lists import class_list_from_data
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.data.statistics import pixels_of_masks
from unept_hf.evaluation.data_report import data_table, inspect_split


CLASSES = ["field", "path | way", "$pond$", "gate"]


def save(folder: Path, split: str, name: str, label_map: np.ndarray, size=None) -> None:
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    height, width = size or label_map.shape
    PIL.Image.new("RGB", (width, height), (90, 120, 60)).save(folder / "images" / split / f"{name}.png")
    PIL.Image.fromarray(label_map.astype(np.uint8)).save(folder / "masks" / split / f"{name}.png")


@pytest.fixture
def folder(tmp_path):
    """Three usable images of two sizes, four odd ones, and an image without a mask; no gate in training."""
    wide = np.zeros((4, 10), int)
    wide[0] = 255
    wide[1, :5] = 1
    tall = np.full((20, 10), 2)
    save(tmp_path, "train", "a", wide)
    save(tmp_path, "train", "b", wide)
    save(tmp_path, "train", "c", tall)
    save(tmp_path, "train", "value", np.full((4, 10), 9))
    save(tmp_path, "train", "value2", np.full((4, 10), 8))
    save(tmp_path, "train", "size", wide, size=(4, 9))
    save(tmp_path, "train", "cut", wide)
    cut = tmp_path / "images/train/cut.png"
    cut.write_bytes(cut.read_bytes()[:40])
    save(tmp_path, "train", "alone", wide)
    (tmp_path / "masks/train/alone.png").unlink()
    save(tmp_path, "val", "d", np.full((4, 10), 3))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def test_command(folder, capsys, monkeypatch):
    """Odd files are counted by their kind and named, do not stop the report, and make the exit status 1."""
    monkeypatch.chdir(folder)
    assert main(["data", "image_folders", "--data_dir", ".", "--class_list", "classes.json", "--output_dir", "x"]) == 1
    table = capsys.readouterr().out
    report = json.loads(Path("x/data.json").read_text(encoding="utf-8"))
    assert list(report["splits"]) == ["train", "validation"]
    train, validation = report["splits"].values()
    assert (train["images"], train["total"], train["sizes"]) == (7, 7, [[4, 10, 2], [20, 10, 1]])
    assert train["unlabeled_share"] == 20 / 280
    assert [[counts["pixels"], counts["images"]] for counts in train["classes"]] == [
        [50, 2],
        [10, 2],
        [200, 1],
        [0, 0],
    ]
    assert [counts["share"] for counts in train["classes"]] == [50 / 260, 10 / 260, 200 / 260, 0]
    assert [counts["image_share"] for counts in train["classes"]] == [2 / 3, 2 / 3, 1 / 3, 0]
    kinds = {problem["name"]: problem["kind"] for problem in train["problems"]}
    assert kinds == {
        "cut": "image that cannot be read",
        "size": "mask of another size than its image",
        "value": "values outside of the class list",
        "value2": "values outside of the class list",
    }
    assert validation["problems"] == [] and validation["classes"][3]["share"] == 1
    assert Path("x/data.md").read_text(encoding="utf-8") in table
    assert "| 1 path \\| way | 3.85% | 2 (66.7%) | 0% | 0 (0%) |" in table
    assert "**train:** no image that was read shows gate." in table
    assert "**train, values outside of the class list: 2 of 7**" in table
    assert "value2.png' holds the value(s) 8" in table
    assert PIL.Image.open("x/data.png").width == 1000
    assert sorted(path.name for path in Path("x").iterdir()) == ["data.json", "data.md", "data.png"]


def test_options_of_a_training_name_the_data(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    options = "dataset_name: image_folders\ndata_dir: .\nclass_list: classes.json\neval_split: val\n"
    Path("training.yaml").write_text(f"{options}max_steps: 3\noutput_dir: runs/a\nscale: [64, 32]\n")
    arguments = ["data", "training.yaml", "--num_samples", "0", "--output_dir", "out", "--max_images"]
    assert main([*arguments, "2"]) == 1  # the last one is odd
    assert "| images read | 2 of 7 | 1 |" in capsys.readouterr().out
    assert not Path("runs").exists()
    for words, message in (([*arguments, "0"], "max_images must be at least 1"), (["data"], "Name a data set")):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert main(["data", "training.yaml", "--splits", "train", "night"]) == 1
    assert "'night'" in capsys.readouterr().err


def test_a_directory_alone(tmp_path, capsys):
    """Its layout and classes are found as for training."""
    save(tmp_path, "train", "a", np.repeat([[0, 1]], 5, axis=0))
    assert main(["data", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Images are in ") and "| images read | 1 |" in output
    assert output.count("| 50.0% | 1 (100.0%) |") == 2
    assert (tmp_path / "out/classes.json").is_file()


def test_streams_and_classes_without_a_pixel():
    classes = class_list_from_data(CLASSES)
    options = {"num_synthetic_scenes": 3, "synthetic_scene_size": 32}
    dataset, synthetic = load_segmentation_dataset("synthetic", **options)
    whole = inspect_split(dataset, synthetic, progress=False)
    stream, _ = load_segmentation_dataset("synthetic", streaming=True, **options)
    read = inspect_split(stream, synthetic, max_images=2, num_samples=1, progress=False)
    assert (whole["images"], read["images"], read["total"], len(read["samples"])) == (3, 2, None, 1)
    shown = pixels_of_masks(dataset, synthetic, progress=False) > 0
    assert shown.sum(0).tolist() == [counts["images"] for counts in whole["classes"]]
    rows = {"image": [PIL.Image.new("RGB", (4, 4))], "label": [PIL.Image.new("L", (4, 4), 255)], "name": ["nothing"]}
    features = {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    unlabeled = inspect_split(datasets.Dataset.from_dict(rows, datasets.Features(features)), classes, progress=False)
    assert unlabeled["unlabeled_share"] == 1 and unlabeled["classes"][0]["share"] is None
    assert "| 0 field | - | 0 (0%) |" in data_table({"train": unlabeled}, "nothing", classes)
