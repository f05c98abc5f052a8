# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The command line: what it writes, what it says, and its exit status."""

import configparser
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spread_models import spread, synthetic_scenes_model
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

import unept_hf.export.graphs
from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, cli, refine
from unept_hf.cli import main
from unept_hf.cli.env import attention_backends, chosen_backend
from unept_hf.cli.segment import _read_ahead, find_images
from unept_hf.data.class_lists import load_class_list
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.inference.loading import load_model_and_processor
from unept_hf.inference.optimize import optimize_for_inference
from unept_hf.inference.segment import segment
from unept_hf.model import deformable_attention as attention
from unept_hf.synthetic.scenes import SYNTHETIC_CLASSES, synthetic_scene
from unept_hf.visualization.overlay import overlay


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(folder):
    """As the commands use it: another rounding could change the class of a pixel."""
    return optimize_for_inference(load_model_and_processor(folder)[0])


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    synthetic_scenes_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three images, two of the same name, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("photos/a.png", "photos/deep/b.png", "photos/deep/b.jpg")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        synthetic_scene(index, size=(48, 80))[0].save(name)
    return tmp_path


def written(folder="segmented"):
    return sorted(str(PurePath(file.relative_to(folder))) for file in Path(folder).rglob("*") if file.is_file())


def test_segment_a_folder(model, processor, folder, photos, capsys):
    assert main(["segment", folder, "photos"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("3 segmented in ") and output.out.endswith(": segmented\n")
    assert output.err == "", "nothing but errors goes to a stderr that is not a terminal"
    names = ["a", "deep/b.jpg", "deep/b.png"]
    kinds = [("areas", "json"), ("label_maps", "png"), ("overlays", "png")]
    assert written() == sorted(f"{kind}/{name}.{suffix}" for kind, suffix in kinds for name in names)
    for name, source in zip(names, ("a.png", "deep/b.jpg", "deep/b.png")):
        expected = segment(model, processor, Path("photos", source)).label_map.numpy()
        label_map = Image.open(f"segmented/label_maps/{name}.png")
        assert label_map.mode == "L"
        np.testing.assert_array_equal(np.array(label_map), expected)
        areas = json.loads(Path(f"segmented/areas/{name}.json").read_text())
        assert (areas["image"], areas["height"], areas["width"]) == (str(Path("photos", source)), 48, 80)
        counts = {SYNTHETIC_CLASSES[index]: int((expected == index).sum()) for index in np.unique(expected)}
        assert {one["label"]: one["pixels"] for one in areas["classes"]} == counts
        assert Image.open(f"segmented/overlays/{name}.png").width > 300


def test_segment_with_options(model, processor, folder, photos):
    options = ["--refine_boundaries", "--boundary_steps", "2", "--boundary-threshold", "0.4", "--flip"]
    options += ["--mode", "slide", "--crop_size", "64", "--stride", "32", "--do_resize", "false"]
    save = ["label_maps", "boundaries", "refinement"]
    assert main(["segment", folder, "photos/a.png", "--output_dir", "out", *options, "--save", *save]) == 0
    assert written("out") == ["boundaries/a.png", "label_maps/a.png", "refinement/a.png"]
    arguments = {"mode": "slide", "crop_size": 64, "stride": 32, "do_resize": False, "flip": True}
    refinement = {"refine_boundaries": True, "boundary_steps": 2, "boundary_threshold": 0.4}
    expected = segment(model, processor, "photos/a.png", **arguments, **refinement).label_map
    got = np.array(Image.open("out/label_maps/a.png"))
    np.testing.assert_array_equal(got, expected)
    assert (segment(model, processor, "photos/a.png", **arguments).label_map != expected).any()


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, decoder_hidden_size=16, num_labels=300)
    model, processor = spread(SegformerForSemanticSegmentation(config)), SegformerImageProcessor(size=64)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), model, processor


def test_refine_another_model(model, processor, folder, segformer, photos):
    peer, *peer_parts = segformer
    options = ["--refine_with", folder, "--boundary_steps", "2", "--boundary_inside_only", "--mode", "slide"]
    options += ["--crop_size", "64", "--stride", "32", "--do_resize", "no", "--boundary_direction_threshold", "0.2"]
    assert main(["segment", peer, "photos/a.png", *options, "--save", "label_maps", "areas", "refinement"]) == 0
    assert written() == ["areas/a.json", "label_maps/a.png", "refinement/a.png"]
    arguments = {"mode": "slide", "crop_size": 64, "stride": 32, "do_resize": False}
    refinement = {"boundary_steps": 2, "boundary_inside_only": True, "boundary_direction_threshold": 0.2}
    label_map = segment(*peer_parts, "photos/a.png", **arguments).label_map
    expected = refine(model, processor, "photos/a.png", label_map, **arguments, **refinement)
    assert not torch.equal(expected, label_map) and label_map.max() > 255
    np.testing.assert_array_equal(np.array(Image.open("segmented/label_maps/a.png")), expected)
    areas = json.loads(Path("segmented/areas/a.json").read_text())["classes"]
    assert {one["label"] for one in areas} == {f"LABEL_{index}" for index in expected.unique()}


def test_refine_label_maps_of_other_programs(model, processor, folder, photos, capsys):
    Path("maps/deep").mkdir(parents=True)
    labels = np.random.default_rng(0).integers(200, 256, (6, 10), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(labels).save("maps/a.png")
    Image.fromarray(labels.astype(np.uint16) * 257).save("maps/deep/b.jpg.png")
    Image.fromarray(labels[1:]).save("maps/deep/b.png.png")
    arguments = ["segment", folder, "photos", "--save", "label_maps", "areas", "--label_maps", "maps", "--output_dir"]
    assert main([*arguments, "out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "label_map (" in error
    assert "b.png.png) has shape (47, 80) but its image has size (48, 80)" in error
    for name, given in (("a", labels), ("deep/b.jpg", labels.astype(np.uint16) * 257)):
        source = f"photos/{name}" if "." in name else f"photos/{name}.png"
        refined = np.array(Image.open(f"out/label_maps/{name}.png"))
        np.testing.assert_array_equal(refined, refine(model, processor, source, given))
        assert refined.dtype == given.dtype and (refined != given).any()
    areas = json.loads(Path("out/areas/a.json").read_text())["classes"]
    assert {one["label"] for one in areas} == {f"class {index}" for index in np.unique(labels)}
    # The given label maps are kept.
    Path("label_maps").mkdir()
    Image.fromarray(labels).save("label_maps/a.png")
    overwriting = ["segment", folder, "photos/a.png", "--label_maps", "label_maps", "--output_dir", "."]
    assert main([*overwriting, "--existing", "overwrite"]) == 1
    assert "a.png is one of the inputs, and would be overwritten" in capsys.readouterr().err
    assert main([*arguments, "other", "--label_maps", "nowhere"]) == 1
    assert "There is no file" in capsys.readouterr().err


def test_pixels_without_confidence_are_unknown(model, processor, folder, segformer, photos, capsys):
    save = ["--save", "label_maps", "confidence", "areas", "overlays"]
    assert main(["segment", folder, "photos/a.png", "--unknown_below", "0.3", *save, "--refine_boundaries"]) == 0
    result = segment(model, processor, "photos/a.png", refine_boundaries=True, return_confidence=True)
    unknown = (result.confidence < 0.3).numpy()
    assert 0.01 < unknown.mean() < 0.99
    expected = np.where(unknown, 255, result.label_map)
    np.testing.assert_array_equal(np.array(Image.open("segmented/label_maps/a.png")), expected)
    confidence = np.array(Image.open("segmented/confidence/a.png"))
    np.testing.assert_allclose(confidence / 255, result.confidence, atol=0.5 / 255 + 1e-6)
    areas = json.loads(Path("segmented/areas/a.json").read_text())["classes"]
    assert {one["id"]: one["label"] for one in areas}[255] == "no class (255)"

    # The model that predicts is the one whose confidence counts; its 300 classes leave no 255.
    name, other, other_processor = segformer
    words = ["--refine_with", folder, "--unknown_below", "0.02", "--save", "label_maps", "confidence"]
    assert main(["segment", name, "photos/a.png", *words, "--output_dir", "other"]) == 0
    plain = segment(other, other_processor, "photos/a.png", return_confidence=True)
    label_map = np.array(Image.open("other/label_maps/a.png"))
    assert set(np.unique(label_map)) <= {*plain.label_map.unique().tolist(), 2**16 - 1}
    confidence = np.array(Image.open("other/confidence/a.png"))
    assert (confidence == (plain.confidence * 255).round().numpy()).mean() > 0.5

    for words in (["--unknown_below", "0.5"], ["--save", "confidence"]):
        with pytest.raises(SystemExit) as exit:
            main(["segment", folder, "photos/a.png", "--label_maps", "segmented/label_maps", *words])
        assert exit.value.code == 2 and "brings no probabilities of the classes" in capsys.readouterr().err


def test_refine_with_a_model_without_heads(folder, segformer, photos, capsys):
    for options in ([segformer[0], "--label_maps", "maps"], [folder, "--refine_with", segformer[0]]):
        assert main(["segment", options[0], "photos", *options[1:]]) == 1
        error = capsys.readouterr().err
        assert "SegformerForSemanticSegmentation has no boundary heads" in error and error.count("\n") == 1


def test_colors_of_a_class_list(folder, photos):
    data = [{"id": index, "name": name, "color": [0, 0, 250]} for index, name in enumerate(SYNTHETIC_CLASSES)]
    Path("classes.json").write_text(json.dumps({"classes": data}))
    arguments = ["segment", folder, "photos/a.png", "--save", "overlays", "--opacity", "1"]
    assert main([*arguments, "--class_list", "classes.json"]) == 0
    picture = np.array(Image.open("segmented/overlays/a.png").convert("RGB"))
    assert (picture == load_class_list("classes.json").palette[0]).all(-1).mean() > 0.5
    # Without a class list, the colors are those of the model.
    shutil.copytree(folder, "model")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"class_colors": ["#fa0000"] * len(data)}))
    assert main(["segment", "model", *arguments[2:], "--output_dir", "red"]) == 0
    picture = np.array(Image.open("red/overlays/a.png").convert("RGB"))
    assert (picture == [250, 0, 0]).all(-1).mean() > 0.5


def test_pictures_of_full_size_and_label_maps_in_color(model, processor, folder, photos):
    synthetic_scene(3, size=(300, 1100))[0].save("wide.png")
    arguments = ["segment", folder, "wide.png", "--palette_label_maps", "--opacity", "1"]
    assert main([*arguments, "--save", "full_overlays", "label_maps", "--class_list", "synthetic"]) == 0
    label_map = Image.open("segmented/label_maps/wide.png")
    expected = segment(model, processor, "wide.png").label_map
    assert label_map.mode == "P"
    np.testing.assert_array_equal(np.array(label_map), expected)
    colors = np.array(load_class_list("synthetic").palette)[expected]
    np.testing.assert_array_equal(np.array(label_map.convert("RGB")), colors)
    np.testing.assert_array_equal(
        np.array(Image.open("segmented/full_overlays/wide.png")),
        np.asarray(overlay("wide.png", expected, load_class_list("synthetic").palette, 1.0)),
    )


def test_threads_read_ahead():
    started, waiting = [], threading.Event()

    def read(name):
        started.append(name)
        if name == "2":
            raise OSError("damaged")
        waiting.wait(0 if name in "01" else 60)
        return name

    names = [str(index) for index in range(100)]
    ahead = _read_ahead(read, names, 3)
    assert next(ahead)() == "0" and next(ahead)() == "1"
    with pytest.raises(OSError, match="damaged"):
        next(ahead)()
    assert len(started) <= 2 * 3 + 3, "no more are read than may wait"
    waiting.set()
    assert [get() for get in itertools.islice(ahead, 60)] == names[3:63]
    ahead.close()
    assert len(started) < 75, "nothing is read after the end"
    assert [get() for get in _read_ahead(str.upper, "abc", 0)] == ["A", "B", "C"]


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_bad_images_are_reported_and_passed_over(folder, photos, capsys, num_workers):
    Path("photos/broken.jpg").write_bytes(b"no image")
    Path("photos/cut.png").write_bytes(Path("photos/a.png").read_bytes()[:3000])
    arguments = ["segment", folder, "photos", "missing.png", "none/*.png", "--save", "areas"]
    arguments += ["--num_workers", num_workers]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "3 segmented, 4 failed in " in output.out
    errors = sorted(output.err.splitlines())
    assert [error.removeprefix("unept-hf segment: ").partition(": ")[::2] for error in errors] == [
        ("missing.png", "no such file or directory"),
        ("none/*.png", "no file matches"),
        (str(Path("photos/broken.jpg")), errors[2].partition(": ")[2].partition(": ")[2]),
        (str(Path("photos/cut.png")), errors[3].partition(": ")[2].partition(": ")[2]),
    ]
    assert "broken.jpg cannot be read: it is not an image" in errors[2] and "truncated" in errors[3]
    assert written() == ["areas/a.json", "areas/deep/b.jpg.json", "areas/deep/b.png.json"]
    assert main([*arguments, "--existing", "overwrite", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_existing_results(folder, photos, capsys):
    arguments = ["segment", folder, "photos", "--save", "label_maps"]
    assert main(arguments) == 0
    result = Path("segmented/label_maps/a.png")
    result.write_bytes(b"mine")
    assert main(arguments) == 1
    assert "exists already, as do 2 other results; pass --existing" in capsys.readouterr().err
    Path("segmented/label_maps/deep/b.jpg.png").unlink()
    assert main([*arguments, "--existing", "skip"]) == 0
    assert capsys.readouterr().out.startswith("1 segmented, 2 skipped in")
    assert result.read_bytes() == b"mine"
    assert main([*arguments, "--existing", "overwrite"]) == 0
    assert Image.open(result).size == (80, 48)


def test_images_are_never_overwritten(folder, photos, capsys):
    # As a user might who takes the label maps of a run for images.
    Path("label_maps").mkdir()
    synthetic_scene(1, size=(48, 80))[0].save("label_maps/a.png")
    before = Path("label_maps/a.png").read_bytes()
    arguments = ["segment", folder, "label_maps/a.png", "--output_dir", ".", "--existing", "overwrite"]
    assert main(arguments) == 1
    assert "is one of the inputs, and would be overwritten" in capsys.readouterr().err
    assert Path("label_maps/a.png").read_bytes() == before
    # In the folder of the images, a second run does not take the results of the first for images.
    arguments = ["segment", folder, "photos", "--output_dir", "photos", "--save", "label_maps", "--existing", "skip"]
    assert main(arguments) == 0 == main(arguments)
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 segmented, 3 skipped")


def places(*names, output_dir="out"):
    images, problems = find_images(names, Path(output_dir))
    assert not problems
    return {Path(name).as_posix(): place.as_posix() for name, place in images}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/deep/a.png", "elsewhere/b.png"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    Path("photos/link").symlink_to("../elsewhere")
    Path("photos/deep/round").symlink_to("..")
    Path("only").mkdir()
    Path("only/link").symlink_to("../elsewhere")
    assert places("photos") == {"photos/deep/a.png": "deep/a", "photos/link/b.png": "link/b"}
    assert places("only") == {"only/link/b.png": "link/b"}


def test_long_names(folder, photos):
    name = "x" * 246 + ".png"  # with which no file system takes more
    Path("photos/a.png").rename(name)
    assert main(["segment", folder, name, "--save", "label_maps"]) == 0
    assert written() == [f"label_maps/{name}"]


def test_names_of_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/x.png", "two/x.png", "two/x.JPG", "two/x.PNG.png", "two/deep/.y.tif", "two/notes.txt", "X.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert places("one/x.png") == {"one/x.png": "x"}
    assert places("one/x.png", "two/x.png") == {"one/x.png": "one/x", "two/x.png": "two/x"}
    assert places("one", "two/deep") == {"one/x.png": "one/x", "two/deep/.y.tif": "two/deep/.y"}
    both = places("two", "two/x.png", "two/*.JPG")
    assert sorted(both) == ["two/deep/.y.tif", "two/x.JPG", "two/x.PNG.png", "two/x.png"], "none twice"
    assert len({place.casefold() for place in both.values()}) == 4
    assert places("**/*.png")["X.png"] == "X"
    assert places("https://host:80/a/b%20c.jpg?size=1") == {"https:/host:80/a/b%20c.jpg?size=1": "host_80/a/b c"}
    assert places("https://host/../../etc/x.png")["https:/host/../../etc/x.png"] == "host/etc/x"
    # A link counts as what it links to, and is named as it is called.
    Path("links").mkdir()
    Path("links/l.png").symlink_to(tmp_path / "one" / "x.png")
    assert places("links", "one") == {"links/l.png": "l"}
    monkeypatch.chdir(tmp_path / "one")
    assert places("../two/x.png", "x.png") == {"../two/x.png": "two/x", "x.png": "one/x"}


def test_label_ids_for_the_test_server_of_cityscapes(processor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes = load_class_list("cityscapes")
    # From cityscapesScripts, helpers/labels.py.
    label_ids = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19}
    label_ids |= {"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26}
    label_ids |= {"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
    # A model may have the classes in another order, and not all of them.
    names = [*reversed(classes.label2id)][:-1]
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny", encoder_layers=0, decoder_layers=0, id2label=dict(enumerate(names))
    )
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # many classes in the picture
    model.save_pretrained("model")
    processor.save_pretrained("model")
    image = Path("leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    image.parent.mkdir(parents=True)
    synthetic_scene(0, size=(64, 128))[0].save(image)
    arguments = ["segment", "model", "leftImg8bit/test", "--save", "cityscapes_label_ids"]
    assert main([*arguments, "label_maps"]) == 0
    assert "cityscapes_label_ids/berlin/berlin_000000_000019_leftImg8bit.png" in written()
    saved, label_map = (
        Image.open(f"segmented/{kind}/berlin/berlin_000000_000019_leftImg8bit.png")
        for kind in ("cityscapes_label_ids", "label_maps")
    )
    assert saved.mode == "L" and saved.size == (128, 64)
    expected = np.array([label_ids[name] for name in names])[np.array(label_map)]
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(np.array(saved), expected)

    model.config.id2label = {**model.config.id2label, 3: "tram", 5: "pedestrian"}
    model.save_pretrained("model")
    assert main([*arguments, "--output_dir", "other"]) == 1
    assert "the classes of Cityscapes, but 'tram', 'pedestrian' are not among them" in capsys.readouterr().err
    assert not Path("other").exists()


def test_many_classes_need_16_bits(processor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny", encoder_layers=0, decoder_layers=0, num_labels=300, semantic_loss_ignore_index=-100
    )
    with torch.no_grad():
        model.classifier.bias[299] = 1000.0
    model.save_pretrained("model")
    processor.save_pretrained("model")
    Image.new("RGB", (32, 32)).save("x.png")
    assert main(["segment", "model", "x.png", "--save", "label_maps", "areas"]) == 0
    assert (np.array(Image.open("segmented/label_maps/x.png")) == 299).all()
    assert json.loads(Path("segmented/areas/x.json").read_text())["classes"][0]["fraction"] == 1
    assert main(["segment", "model", "x.png", "--palette_label_maps", "--output_dir", "colored"]) == 1
    assert "--palette_label_maps is for up to 256 classes, but the model has 300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "nowhere", "a.png"], "nowhere is not a model directory (with a config.json), nor owner/name"),
        (["segment", "./x/y", "a.png"], "./x/y is not a model directory"),
        (["segment", ".", "a.png"], ". is not a model directory"),
        (["segment", "{}", "a.png", "--device", "warp"], "--device warp cannot be used here; use auto, cpu"),
        (["segment", "{}", "a.png", "--class_list", "cityscapes"], "cityscapes has 19 classes, but the model 22"),
        (
            ["segment", "{}", "a.png", "--label_maps", "maps", "--save", "cityscapes_label_ids"],
            "cityscapes_label_ids of --label_maps needs their classes; pass --class_list cityscapes",
        ),
        (["segment", "{}", "a.png", "--class_list", "nolist"], "Unknown class list 'nolist'"),
        (["export", "{}", "model.zip"], "model.zip does not say what to write; end it in .onnx or .pt2"),
        (["export", "{}", "a.png", "--format", "onnx"], "a.png exists already; pass --overwrite"),
        (["evaluate", "--model_name_or_path", "{}", "--dataset_name", "ade20k"], "needs data_dir"),
    ],
)
def test_errors_without_stack_traces(folder, photos, capsys, arguments, message):
    Path("photos/a.png").rename("a.png")
    arguments = [folder if argument == "{}" else argument for argument in arguments]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"unept-hf {arguments[0]}: ") and message in error and "Traceback" not in error
    with pytest.raises((ValueError, OSError), match=r"."):
        main([*arguments, "--traceback"])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_device_that_is_not_there(folder, photos, capsys):
    assert main(["segment", folder, "photos", "--device", "cuda"]) == 1
    assert "--device cuda cannot be used here; use auto, cpu." in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["segment"], ["segment", "m", "i", "--mode", "half"], ["benchmark", "m", "--sizes", "0x5"], ["bake"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: unept-hf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "-1"], "batch_size must be an integer of at least 1, got -1"),
        (["--mode", "slide", "--stride", "900"], "stride [900, 900] leaves gaps"),
        (["--mode", "slide", "--crop_size", "101", "--stride", "8"], "crop_size [101, 101] must be made of"),
        (["--boundary_threshold", "7"], "boundary_threshold must be a probability"),
        (["--boundary_direction_threshold", "2"], "boundary_direction_threshold must be a probability"),
        (["--refine_with", "a", "--label_maps", "b"], "--refine_with and --label_maps are two ways"),
        (["--opacity", "5"], "opacity must lie in [0, 1] and picture_size must be at least 1, got 5.0 and 1024"),
        (["--picture_size", "-3"], "opacity must lie in [0, 1] and picture_size must be at least 1, got 0.6 and -3"),
    ],
)
def test_wrong_options_come_before_the_images(folder, photos, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        main(["segment", folder, "photos", *options])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"unept-hf segment: {message}") and error.count("\n") == 1
    assert not Path("segmented").exists()


def test_a_directory_that_cannot_be_written(folder, photos, capsys):
    Path("file").touch()
    assert main(["segment", folder, "photos", "--output_dir", "file"]) == 1
    error = capsys.readouterr().err
    assert "file cannot be a directory, because file is a file" in error and error.count("\n") == 1, (
        "once, not for each image"
    )


def test_results_that_cannot_be_written(folder, tmp_path, monkeypatch, capsys):
    """Said before the evaluation."""
    monkeypatch.setattr("unept_hf.evaluation.report.evaluate_model", None)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    arguments = ["--model_name_or_path", folder, "--dataset_name", "synthetic", "--num_synthetic_scenes", "1"]
    assert main(["evaluate", *arguments, "--device", "cpu", "--output_dir", "file/results"]) == 1
    assert "file/results cannot be a directory, because file is a file" in capsys.readouterr().err


def test_weights_that_are_missing(folder, photos, capsys):
    shutil.copytree(folder, "model")
    weights = load_file("model/model.safetensors")
    save_file({name: weights[name] for name in weights if "classifier" not in name}, "model/model.safetensors")
    for command in (["segment", "model", "photos"], ["export", "model", "for-the-hub"]):
        assert main(command) == 1
        assert "classifier.bias is missing, classifier.weight is missing. Copy" in capsys.readouterr().err
    assert not Path("segmented").exists() and not Path("for-the-hub").exists()


@pytest.mark.parametrize("command", ["segment", "evaluate", "export", "benchmark", "env"])
def test_help_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    examples = [line.partition("   ")[0].split() for line in text.splitlines() if line.startswith("  unept-hf ")]
    assert examples
    for example in examples:
        assert example[1] == command
        if not example[-1].endswith((".yaml", ".json")):
            cli.make_parser().parse_args(example[1:])


def test_evaluate(model, processor, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"max_images": 2, "batch_size": 2, "mode": "slide", "crop_size": 64, "stride": 48}
    options |= {"scales": [0.5, 1.0], "flip": True, "do_resize": False, "num_samples": 1}
    source = {"dataset_name": "synthetic", "num_synthetic_scenes": 2, "synthetic_scene_size": 96}
    given = {"model_name_or_path": folder, "refine_boundaries": "both", **source, **options}
    Path("evaluation.yaml").write_text(json.dumps(given))
    assert main(["evaluate", "evaluation.yaml"]) == 0
    output = capsys.readouterr()
    assert "mean_iou" in output.out and "outputs/evaluation" in output.out and output.err == ""
    results = json.loads(Path("outputs/evaluation/results.json").read_text())
    dataset, class_list = load_segmentation_dataset(**source, split="validation")
    expected = evaluate_model(
        model, processor, dataset, class_list, refine_boundaries="both", progress=False, **options
    )
    for name in ("mean_iou", "overall_accuracy", "boundary_f1_3px"):
        assert results[name] == pytest.approx(expected[name])
        assert results["refined"][name] == pytest.approx(expected["refined"][name])
    assert Path("outputs/evaluation/results.png").stat().st_size > 1000

    typed = ["--model_name_or_path", folder, "--dataset_name", "synthetic", "--max_images", "1", "--device", "cpu"]
    typed += ["--num_synthetic_scenes", "3", "--synthetic_scene_size", "64"]
    assert main(["evaluate", *typed, "--no_boundary_metrics", "--output_dir", "out"]) == 0
    assert not any(name.startswith("boundary") for name in json.loads(Path("out/results.json").read_text()))

    # What a training with these options has held out: another scene than the first.
    typed += ["--eval_fraction", "0.3", "--seed", "5", "--eval_split", "validation"]
    parsed = cli.make_parser().parse_args(["evaluate", *typed, "--split", "test"])
    assert parsed.eval_split == "test", "--split is the same option"
    assert main(["evaluate", *typed, "--no_boundary_metrics", "--output_dir", "share"]) == 0
    shares = [json.loads(Path(name, "results.json").read_text()) for name in ("out", "share")]
    assert shares[0]["num_images"] == shares[1]["num_images"] == 1
    pixels = [[one["pixels"] for one in share["per_category"].values()] for share in shares]
    assert sum(pixels[0]) == sum(pixels[1]) == 64**2 and pixels[0] != pixels[1]
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *typed, "--eval_fraction", "2"])
    assert exit.value.code == 2
    assert "eval_fraction must lie in [0, 1) and cannot split a stream, got 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [("[1, 2]", "names of options"), ("{a: [", "be read: ")])
def test_bad_option_files(tmp_path, capsys, content, message):
    (tmp_path / "evaluation.yaml").write_text(content)
    assert main(["evaluate", str(tmp_path / "evaluation.yaml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("unept-hf evaluate: ") and message in error


def test_export_hub_folder(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", folder, "for-the-hub"]) == 0
    assert "hf upload <user>/for-the-hub" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "modeling_unept.py"} <= {
        file.name for file in Path("for-the-hub").iterdir()
    }
    assert main(["export", folder, "for-the-hub"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", folder, "for-the-hub", "--overwrite"]) == 0


@pytest.mark.parametrize(("difference", "said"), [(2e-6, "at most 2.0e-06"), (None, "pip install onnxruntime")])
def test_export_onnx(folder, tmp_path, monkeypatch, capsys, difference, said):
    calls = {}

    def export_onnx(model, path, **options):
        calls.update(options)
        path.write_bytes(b"onnx")
        return difference

    monkeypatch.setattr(unept_hf.export.graphs, "export_onnx", export_onnx)
    path = str(tmp_path / "model.onnx")
    assert main(["export", folder, path, "--opset", "20", "--size_divisor", "32"]) == 0
    assert said in capsys.readouterr().out
    assert (calls["opset_version"], calls["size_divisor"], calls["tolerance"]) == (20, 32, 1e-3)
    assert calls["metadata"]["size"] == {"shortest_edge": 64, "longest_edge": 256}
    assert len(calls["metadata"]["image_mean"]) == 3


@pytest.mark.parametrize(("options", "form"), [(["--keep_kernel"], "torch"), (["--format", "aot"], "aot_inductor")])
def test_export_pt2(folder, tmp_path, monkeypatch, capsys, options, form):
    calls = {}

    def export(model, path, **options):
        calls.update(options)
        path.write_bytes(b"pt2")
        return 0.0

    monkeypatch.setattr(unept_hf.export.graphs, f"export_{form}", export)
    assert main(["export", folder, str(tmp_path / "model.pt2"), *options, "--tolerance", "1e-4"]) == 0
    assert "differ from the model's by at most 0.0e+00 (tolerance 1.0e-04)" in capsys.readouterr().out
    expected = {"size_divisor": None, "tolerance": 1e-4} | ({"keep_kernel": True} if form == "torch" else {})
    assert calls == expected


def test_benchmark(tmp_path, capsys):
    path = tmp_path / "latency.json"
    arguments = [
        "--sizes",
        "64",
        "32x64",
        "--repeats",
        "2",
        "--batch_size",
        "2",
        "--all_backends",
        "--json",
        str(path),
    ]
    assert main(["benchmark", "unept-tiny", "--device", "cpu", *arguments]) == 0
    text = capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["chosen"] == chosen_backend("cpu")
    runs = [name for name, reason in report["backends"].items() if reason is None]
    assert "torch" in runs
    assert [(row["height"], row["width"], row["attention"]) for row in report["results"]] == [
        (height, 64, name) for height in (64, 32) for name in runs
    ]
    for row in report["results"]:
        assert 0 < row["fastest_seconds"] <= row["median_seconds"]
        assert row["images_per_second"] == pytest.approx(2 / row["median_seconds"])
        assert f"{1000 * row['median_seconds']:.1f} ms" in text
    for name, reason in report["backends"].items():
        assert f"attention backend {name}: " in text
        assert reason is None or reason in text


def test_attention_backends_say_why_not():
    reasons = attention_backends("cpu", torch.float64)
    assert reasons["torch"] is None
    assert "float64" in reasons["cpu"] or "not built" in reasons["cpu"]
    assert chosen_backend("cpu", torch.float64) == "torch"
    with attention.attention_backend("torch"):
        assert chosen_backend("cpu") == "torch"


def test_env(capsys, monkeypatch):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert f"torch: {torch.__version__.split('+')[0]}" in text and "torch on cpu: runs" in text
    monkeypatch.setattr(attention._choice, "backend", "abacus")
    monkeypatch.setenv("UNEPT_ATTENTION_BACKEND", "abacus")
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "abacus" in report["deformable attention"]["chosen on cpu"]
    assert report["variables"]["UNEPT_ATTENTION_BACKEND"] == "abacus"


@pytest.mark.parametrize("module", ["unept_hf", "unept_hf.cli"])
def test_entry_points(module):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "unept-hf = unept_hf.cli:main" in setup["options.entry_points"]["console_scripts"]
    result = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"{unept_hf.__version__}\n")


def test_interruption(folder, photos, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.segment, "_segment_one", interrupt)
    assert main(["segment", folder, "photos"]) == 130
    assert capsys.readouterr().err == "unept-hf segment: interrupted\n"


def test_train(tmp_path, monkeypatch, capsys):
    training = pytest.importorskip("unept_hf.training.run")
    calls = []
    monkeypatch.setattr(training, "command", lambda args, program: calls.append((args, program)) or 3)
    words = ["my.yaml", "--output_dir", "runs/mine", "--max_steps", "2"]
    assert main(["train", *words]) == 3
    assert calls == [(words, "unept-hf train")]
    monkeypatch.undo()
    assert main(["train", str(tmp_path / "gone.yaml")]) == 1
    assert "unept-hf train: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["train", "--help"])
    assert exit.value.code == 0
    assert "usage: unept-hf train" in capsys.readouterr().out


def test_help_lists_every_command_without_heavy_imports():
    code = "import sys, unept_hf.cli; print(*sys.modules); unept_hf.cli.main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, _, help_text = result.stdout.partition("\n")
    for name in ("segment", "train", "evaluate", "export", "benchmark", "env"):
        assert re.search(rf"^ +{name}\s+\w", help_text, re.M), name
    heavy = {"matplotlib", "datasets", "onnx", "unept_hf.inference.segment", "unept_hf.evaluation.evaluate"}
    assert not heavy & set(modules.split())
