# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Paths as users write them: `~` is the home folder everywhere, and files that macOS adds are not files of theirs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest

import unept_hf.export.graphs
from unept_hf import SYNTHETIC_SCENES
from unept_hf.arguments import read_options
from unept_hf.cli import main
from unept_hf.cli.segment import files_below, find_images
from unept_hf.data import class_lists
from unept_hf.data.folder_layouts import image_folder_files
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.report import save_results
from unept_hf.export.hub import save_for_hub
from unept_hf.files import atomic_directory, atomic_file, remove_leftovers
from unept_hf.inference.loading import load_model_and_processor
from unept_hf.model.image_reading import open_image
from unept_hf.synthetic.scenes import SYNTHETIC_CLASSES, synthetic_scene
from unept_hf.training.checkpoints import commit_checkpoint, read_checkpoint, start_checkpoint
from unept_hf.visualization import figures as visualization


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a model and a small data set. The current folder is empty, and must stay empty."""
    home, current = tmp_path / "home", tmp_path / "current"
    for folder in (current, home / "mine/images", home / "mine/masks"):
        folder.mkdir(parents=True)
    for index in range(2):
        image, labels = synthetic_scene(index, size=(32, 48))
        PIL.Image.fromarray(np.asarray(image)).save(home / f"mine/images/{index}.png")
        PIL.Image.fromarray(np.asarray(labels, np.uint8)).save(home / f"mine/masks/{index}.png")
    (home / "classes.json").write_text(json.dumps({"classes": SYNTHETIC_CLASSES}))
    shutil.copytree(SYNTHETIC_SCENES, home / "model")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(current)
    yield home
    assert not list(current.iterdir()), "something went to a folder of the name ~"


# The home folder, for functions


@pytest.mark.parametrize(
    "place",
    [
        {"data_dir": "~/mine"},
        {"image_dir": "~/mine/images", "label_dir": "~/mine/masks"},
        {"data_dir": "~", "image_dir": "mine/images", "label_dir": "mine/masks"},
    ],
)
def test_folders_of_images(home, place):
    data, classes = load_segmentation_dataset("image_folders", class_list="~/classes.json", **place)
    assert data["name"][:] == ["0", "1"] and len(classes) == len(SYNTHETIC_CLASSES)
    assert data[0]["image"]["path"] == str(home / "mine/images/0.png")


def test_official_layouts(home):
    for folder in ("images", "annotations"):
        shutil.copytree(home / "mine" / {"annotations": "masks"}.get(folder, folder), home / f"ade/{folder}/training")
    for file in (home / "ade/images/training").iterdir():
        file.rename(file.with_suffix(".jpg"))
    assert len(load_segmentation_dataset("ade20k", data_dir="~/ade")[0]) == 2


def test_data_set_on_disk(home):
    pictures = {
        column: [PIL.Image.open(home / f"mine/{folder}/{index}.png") for index in range(2)]
        for column, folder in (("image", "images"), ("label", "masks"))
    }
    data = datasets.Dataset.from_dict(pictures, features=datasets.Features(dict.fromkeys(pictures, datasets.Image())))
    data.save_to_disk(str(home / "saved"))
    (home / "files/data").mkdir(parents=True)
    data.to_parquet(home / "files/data/train-00000.parquet")
    for name in ("~/saved", "~/files"):
        options = {"cache_dir": "~/cache", "class_list": "~/classes.json"}
        assert len(load_segmentation_dataset(name, **options)[0]) == 2
    assert (home / "cache").is_dir()


def test_functions_that_read(home):
    model, _ = load_model_and_processor("~/model")
    assert model.config.num_labels == len(SYNTHETIC_CLASSES)
    assert open_image("~/mine/images/0.png").size == (48, 32)
    with pytest.raises(FileNotFoundError, match=r"no file ~/gone\.png"):
        open_image("~/gone.png")
    labels = np.zeros((32, 48), np.uint8)
    assert visualization.overlay("~/mine/images/0.png", labels).size == (48, 32)
    (home / "options.yaml").write_text("flip: true\n")
    assert read_options("~/options.yaml") == {"flip": True}
    model.base_model.backbone.save_pretrained(home / "backbone")
    model.load_pretrained_backbone("~/backbone")


def test_functions_that_write(home, monkeypatch):
    model, processor = load_model_and_processor(SYNTHETIC_SCENES)
    assert save_for_hub(model, processor, "~/exported", example_image="~/mine/images/0.png") == home / "exported"
    assert (home / "exported/example.jpg").is_file()
    with atomic_directory("~/new") as folder:
        (folder / "config.json").write_text("{}")
    (home / ".new.killed").mkdir()
    remove_leftovers("~/new")
    assert (home / "new/config.json").is_file() and not (home / ".new.killed").exists()
    with atomic_file("~/deep/model.onnx") as file:
        file.write_bytes(b"1")
    assert (home / "deep/model.onnx").read_bytes() == b"1"

    monkeypatch.setattr("unept_hf.evaluation.report.results_table", lambda results: "table")
    figure = SimpleNamespace(savefig=lambda file, dpi: Path(file).write_bytes(b"picture"))
    monkeypatch.setattr("unept_hf.evaluation.report.results_figure", lambda results: figure)
    save_results({"mean_iou": 0.5}, None, "~/results")
    assert sorted(file.name for file in (home / "results").iterdir()) == ["results.json", "results.md", "results.png"]


def test_file_to_quantize(home):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile, match=str(home / "gone.onnx")):
        unept_hf.export.graphs.quantize_onnx("~/gone.onnx", "~/quantized.onnx")


# The home folder, for the command


def test_segment(home):
    arguments = ["segment", "~/model", "~/mine/images", "--output_dir", "~/out", "--class_list", "~/classes.json"]
    assert main([*arguments, "--save", "label_maps"]) == 0
    assert sorted(file.name for file in (home / "out/label_maps").iterdir()) == ["0.png", "1.png"]


def test_evaluate(home):
    options = {
        "model_name_or_path": "~/model",
        "dataset_name": "image_folders",
        "image_dir": "~/mine/images",
        "label_dir": "~/mine/masks",
        "class_list": "~/classes.json",
        "split": "train",
        "output_dir": "~/results",
        "boundary_metrics": False,
    }
    (home / "evaluation.yaml").write_text(json.dumps(options))
    assert main(["evaluate", "~/evaluation.yaml"]) == 0
    assert json.loads((home / "results/results.json").read_text())["num_images"] == 2


def test_export_and_benchmark(home, monkeypatch):
    (home / "results.json").write_text(json.dumps({"dataset": "scenes", "mean_iou": 0.25}))
    (home / "options.yaml").write_text("max_steps: 10\n")
    files = ["--evaluation", "~/results.json", "--training_options", "~/options.yaml"]
    files += ["--example_image", "~/mine/images/0.png"]
    assert main(["export", "~/model", "~/exported", *files]) == 0
    card = (home / "exported/README.md").read_text()
    assert "0.25" in card and "max_steps" in card and (home / "exported/example.jpg").is_file()
    assert main(["benchmark", "~/model", "--sizes", "64", "--repeats", "1", "--json", "~/latency.json"]) == 0
    assert json.loads((home / "latency.json").read_text())["results"]


# What macOS adds to folders on disks of other systems: ._NAME beside NAME


def beside(*files):
    """Writes the companions of files, and returns them."""
    companions = [file.with_name(f"._{file.name}") for file in files]
    for companion in companions:
        companion.write_bytes(b"\0\5\26\7")
    return companions


def test_companions_of_images_and_masks(home):
    beside(*(home / "mine/images").iterdir(), *(home / "mine/masks").iterdir())
    assert image_folder_files(home / "mine", "train").names == ["0", "1"]
    assert sorted(file.name for file in files_below(home / "mine/images")) == ["0.png", "1.png"]
    assert [name for name, _ in find_images([str(home / "mine/images")], home / "out")[0]] == [
        str(home / f"mine/images/{index}.png") for index in range(2)
    ]


def test_companions_are_not_named_in_messages(home):
    beside(home / "mine/images")
    (home / "mine/images").rename(home / "mine/photos")
    with pytest.raises(ValueError, match=r"mine' holds masks, photos\."):
        image_folder_files(home / "mine", "train")


def test_companions_of_class_lists(home, monkeypatch):
    (home / "lists").mkdir()
    (home / "lists/two.json").write_text('["a", "b"]')
    beside(home / "lists/two.json")
    monkeypatch.setattr(class_lists, "_FOLDERS", (home / "lists",))
    assert class_lists.available_class_lists() == ["two"]


def test_companions_in_the_folder_of_a_model(home):
    directory = home / "new"
    directory.mkdir()
    beside(directory / "config.json")
    with atomic_directory(directory) as folder:
        (folder / "config.json").write_text("{}")
    assert (directory / "config.json").is_file()
    leftover = home / ".new.killed"
    (leftover / "written").mkdir(parents=True)
    beside(leftover / "written")
    remove_leftovers(directory)
    assert not leftover.exists()


def test_companions_of_exported_files(home):
    with atomic_file(home / "model.onnx") as file:
        file.write_bytes(b"1")
        beside(file)
    assert (home / "model.onnx").read_bytes() == b"1"
    assert not (home / "._model.onnx").exists()


def test_companions_in_a_checkpoint(home):
    """They may come and go with the disk that it is copied to."""
    folder = start_checkpoint(home / "run", 1)
    (folder / "weights").write_bytes(b"1")
    beside(folder / "weights")
    checkpoint = commit_checkpoint(folder, {"step": 1})
    (checkpoint / "._weights").unlink()
    assert read_checkpoint(checkpoint) == {"step": 1}
