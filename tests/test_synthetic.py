"""The synthetic scenes: reproducible, exactly labelled, balanced enough to learn from, and free of files."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

import unept_hf.data.synthetic as synthetic
from unept_hf.data.synthetic import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE, synthetic_scene, synthetic_scenes


POLE = SYNTHETIC_CLASSES.index("pole")


def _digest(scene) -> str:
    return hashlib.sha256(b"".join(picture.tobytes() for picture in scene)).hexdigest()


@pytest.fixture(scope="module")
def label_maps() -> np.ndarray:
    return np.stack([np.asarray(synthetic_scene(index)[1]) for index in range(50)])


def test_same_arguments_same_scene_and_others_differ():
    digests = {_digest(synthetic_scene(index, seed)) for seed in (0, 1) for index in (0, 1, 2**31)}
    assert len(digests) == 6
    assert _digest(synthetic_scene(1, 0)) == _digest(synthetic_scene(np.int64(1), seed=0, size=[128, 128]))


def test_second_process_gives_the_same_scenes_and_writes_no_file(tmp_path):
    code = (  # the module alone: importing the whole package would load torch and transformers, for seconds
        "import hashlib, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('synthetic', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "row = module.synthetic_scenes(2, seed=7, size=(48, 64), offset=3)[1]\n"
        "print(hashlib.sha256(row['image'].tobytes() + row['label'].tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(Path(synthetic.__file__).resolve())]
    environment = os.environ | {"PYTHONHASHSEED": "123", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _digest(synthetic_scene(4, seed=7, size=(48, 64)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (200, 33), (96, 128)])
def test_sizes_modes_and_label_values(size):
    for index in range(10):
        image, label = synthetic_scene(index, seed=5, size=size)
        assert (image.mode, label.mode) == ("RGB", "L")
        assert image.size == label.size == size[::-1]
        assert set(np.unique(np.asarray(label))) <= set(range(len(SYNTHETIC_CLASSES)))


def test_every_class_is_frequent_enough_to_learn_and_sometimes_absent(label_maps):
    share = np.bincount(label_maps.ravel(), minlength=len(SYNTHETIC_CLASSES)) / label_maps.size
    scenes_with = np.array([(label_maps == value).any((1, 2)).mean() for value in range(len(SYNTHETIC_CLASSES))])
    assert share.min() > 0.015 and share.max() < 0.55
    assert (scenes_with[:2] == 1).all()
    assert ((scenes_with[2:] > 0.4) & (scenes_with[2:] < 0.95)).all()


def test_horizon_is_curved(label_maps):
    ground_under_sky = (label_maps[:, :-1] == 0) & (label_maps[:, 1:] == 1)
    heights = ground_under_sky.any(2).sum(1)  # at how many different rows of a scene the two meet
    assert np.median(heights) > 6


def test_poles_are_thin():
    widths = []
    for index in range(60):
        pole = np.asarray(synthetic_scene(index)[1]) == POLE
        runs = np.diff(np.pad(pole, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        widths += (np.argwhere(runs == -1)[:, 1] - np.argwhere(runs == 1)[:, 1]).tolist()
    assert np.median(widths) <= 5
    assert np.percentile(widths, 10) >= 2
    assert max(widths) > 10  # the signs, and the arms of lamps


def test_paint_writes_image_and_label_through_one_mask():
    scene = synthetic._new_scene(np.random.default_rng(0), 40, 60)
    mask = np.random.default_rng(1).random((40, 60)) < 0.1
    scene.paint(mask, "pole", np.float32((200, 100, 50)))
    assert np.array_equal(scene.image.any(-1), mask)
    assert np.array_equal(scene.label == POLE, mask)
    scene.paint(np.zeros_like(mask), "tree", np.float32((0, 0, 0)))
    assert np.array_equal(scene.label == POLE, mask)


def test_label_edges_lie_on_image_edges():
    def contrast_at_label_edges(image, label):
        return np.abs(np.diff(image, axis=1)).sum(-1)[label[:, 1:] != label[:, :-1]].mean()

    for index in range(20):
        image, label = (np.asarray(picture).astype(int) for picture in synthetic_scene(index))
        moved = [contrast_at_label_edges(image, np.roll(label, shift, 1)) for shift in (-2, 2)]
        assert contrast_at_label_edges(image, label) > 1.2 * max(moved)


def test_dataset_features_content_and_map_without_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = synthetic_scenes(3, seed=2, size=(40, 56))
    assert scenes.features == datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    assert scenes.num_rows == 3 and scenes.cache_files == []
    for index, row in enumerate(scenes):
        image, label = synthetic_scene(index, seed=2, size=(40, 56))
        assert np.array_equal(row["image"], image) and np.array_equal(row["label"], label)
        assert (row["image"].mode, row["label"].mode) == ("RGB", "L")
    assert scenes.map(lambda row: {"tall": row["image"].height})["tall"][:] == [40, 40, 40]
    assert not list(tmp_path.iterdir())


def test_fingerprint_follows_the_scenes():
    prints = [synthetic_scenes(2, seed=seed, size=(32, 32))._fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_splits_and_offsets_are_disjoint():
    def digests(**arguments):
        return {_digest(row.values()) for row in synthetic_scenes(4, size=(32, 32), **arguments)}

    parts = [digests(), digests(offset=4), digests(split="validation"), digests(split="validation", seed=1)]
    assert len(set.union(*parts)) == 16
    with pytest.raises(ValueError, match="num_scenes"):  # the last scene of a split: the next would be the other's
        synthetic_scenes(2, split="train", offset=2**31 - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index"),
        ({"index": 1.0}, "index"),
        ({"index": True}, "index"),
        ({"index": 2**32}, "index"),
        ({"index": 0, "seed": -1}, "seed"),
        ({"index": 0, "seed": "0"}, "seed"),
        ({"index": 0, "size": 128}, "size"),
        ({"index": 0, "size": (128, 128, 3)}, "size"),
        ({"index": 0, "size": (31, 128)}, "size"),
        ({"index": 0, "size": (128, 64.5)}, "size"),
    ],
)
def test_bad_scene_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_scene(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 0}, "num_scenes"),
        ({"num_scenes": 2.0}, "num_scenes"),
        ({"num_scenes": 1, "split": "test"}, "split"),
        ({"num_scenes": 1, "split": ["train"]}, "split"),
        ({"num_scenes": 1, "offset": -1}, "offset"),
        ({"num_scenes": 1, "seed": None}, "seed"),
        ({"num_scenes": 1, "size": (16, 16)}, "size"),
    ],
)
def test_bad_dataset_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_scenes(**arguments)


def test_palette_has_one_distinct_colour_a_class():
    assert len(set(SYNTHETIC_PALETTE)) == len(SYNTHETIC_CLASSES) == len(set(SYNTHETIC_CLASSES))
    assert all(len(colour) == 3 and all(0 <= part <= 255 for part in colour) for colour in SYNTHETIC_PALETTE)
