"""The synthetic scenes: reproducible, exactly labelled, balanced enough to learn from, and free of files."""

import hashlib
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest

from unept_hf.data.class_lists import load_class_list
from unept_hf.synthetic.canvas import SceneCanvas, Stencil
from unept_hf.synthetic.scenes import SYNTHETIC_THEMES, synthetic_scene, synthetic_scenes


CLASSES = load_class_list("synthetic").label2id


def _digest(scene) -> str:
    return hashlib.sha256(b"".join(picture.tobytes() for picture in scene)).hexdigest()


@pytest.fixture(scope="module")
def label_maps() -> np.ndarray:
    return np.stack([np.asarray(synthetic_scene(index)[1]) for index in range(120)])


def _thinnest(mask: np.ndarray) -> np.ndarray:
    """For each pixel of the mask, the shorter of the runs of it that it lies on, across and down."""
    runs = []
    for turned in (mask, mask.T):
        padded = np.pad(turned, ((0, 0), (1, 1))).astype(np.int8)
        starts, stops = (np.argwhere(np.diff(padded, axis=1) == step) for step in (1, -1))
        lengths = np.zeros(turned.shape, int)
        for (row, start), (_, stop) in zip(starts, stops):
            lengths[row, start:stop] = stop - start
        runs.append(lengths)
    return np.minimum(runs[0], runs[1].T)[mask]


def test_same_arguments_same_scene_and_others_differ():
    digests = {
        _digest(synthetic_scene(index, seed, (64, 64), theme))
        for seed in (0, 1)
        for index in (0, 1, 2**31)
        for theme in SYNTHETIC_THEMES
    }
    assert len(digests) == 12
    assert _digest(synthetic_scene(1, 0)) == _digest(synthetic_scene(np.int64(1), seed=0, size=[256, 256]))


def test_second_process_gives_the_same_scenes_and_writes_no_file(tmp_path):
    code = (
        "import hashlib\n"
        "from unept_hf.synthetic.scenes import synthetic_scenes\n"
        "row = synthetic_scenes(2, seed=7, size=(48, 64), offset=3)[1]\n"
        "print(hashlib.sha256(row['image'].tobytes() + row['label'].tobytes()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == _digest(synthetic_scene(4, seed=7, size=(48, 64)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("theme", SYNTHETIC_THEMES)
@pytest.mark.parametrize("size", [(32, 32), (33, 200), (200, 33), (96, 128)])
def test_sizes_modes_and_label_values(size, theme):
    for index in range(25):
        image, label = synthetic_scene(index, seed=5, size=size, theme=theme)
        assert (image.mode, label.mode) == ("RGB", "L")
        assert image.size == label.size == size[::-1]
        assert set(np.unique(np.asarray(label))) <= set(load_class_list(theme).id2label)


def test_every_class_is_frequent_enough_to_learn_and_often_absent(label_maps):
    share = np.bincount(label_maps.ravel(), minlength=len(CLASSES)) / label_maps.size
    scenes_with = np.array([(label_maps == value).any((1, 2)).mean() for value in CLASSES.values()])
    assert share.min() > 0.002 and share.max() < 0.25
    assert ((scenes_with > 0.1) & (scenes_with < 0.9)).all()


def test_streets_and_rooms_share_only_persons(label_maps):
    indoors = (label_maps == CLASSES["floor"]).any((1, 2))
    assert 0.35 < indoors.mean() < 0.65
    seen = [
        {name for name, value in CLASSES.items() if (label_maps[which] == value).any()}
        for which in (indoors, ~indoors)
    ]
    assert seen[0] & seen[1] == {"person"}
    assert seen[0] | seen[1] == set(CLASSES)


def test_harbours_show_all_their_classes():
    scenes = [np.asarray(synthetic_scene(index, size=(64, 64), theme="synthetic_harbour")[1]) for index in range(60)]
    assert np.bincount(np.ravel(scenes)).min() > 0.01 * np.size(scenes)


def test_ground_meets_the_sky_in_a_curve(label_maps):
    meets = (label_maps[:, :-1] == CLASSES["sky"]) & (label_maps[:, 1:] == CLASSES["grass"])
    heights = meets.any(2).sum(1)  # at how many different rows of a scene the two meet
    assert np.median(heights[heights > 0]) >= 5


@pytest.mark.parametrize(("name", "low", "high"), [("wire", 2, 5), ("pole", 3, 12), ("fence", 3, 12)])
def test_thin_things_are_thin(label_maps, name, low, high):
    widths = np.concatenate([_thinnest(label_map == CLASSES[name]) for label_map in label_maps])
    assert low <= np.median(widths) <= high


def test_statues_have_the_shape_of_persons_and_another_surface():
    surfaces = {"person": [], "statue": []}
    for index in range(60):
        image, label = (np.asarray(picture).astype(float) for picture in synthetic_scene(index))
        for name, colors in surfaces.items():
            mask = label == CLASSES[name]
            if (label == CLASSES["sky"]).any() and mask.sum() > 500:
                colors.append(np.ptp(image[mask].mean(0)))
    gray, colored = (np.median(surfaces[name]) for name in ("statue", "person"))
    assert gray < colored


def test_paint_writes_image_and_label_through_one_mask():
    scene = SceneCanvas(np.random.default_rng(0), 40, 60, tuple(CLASSES))
    mask = np.random.default_rng(1).random((20, 30)) < 0.1
    scene.paint(Stencil(7, 11, mask), "pole", np.float32((200, 100, 50)))
    everywhere = np.zeros((40, 60), bool)
    everywhere[7:27, 11:41] = mask
    assert np.array_equal(scene.image.any(-1), everywhere)
    assert np.array_equal(scene.label == CLASSES["pole"], everywhere)
    scene.paint(Stencil(7, 11, np.zeros_like(mask)), "tree", np.float32((0, 0, 0)))
    assert np.array_equal(scene.label == CLASSES["pole"], everywhere)


@pytest.mark.parametrize("place", [(5, 5), (-4, 3), (38, 55), (-30, -30), (90, 90)])
def test_stencils_are_parts_of_a_drawing_of_the_whole_canvas(place):
    scene = SceneCanvas(np.random.default_rng(0), 40, 60, tuple(CLASSES))
    row, column = place
    stencil = scene.stencil(("rectangle", [(column, row), (column + 12, row + 9)]))
    drawn = np.zeros((40, 60), bool)
    drawn[max(row, 0) : max(row + 10, 0), max(column, 0) : max(column + 13, 0)] = True
    found = np.zeros((40, 60), bool)
    found[stencil.box] = stencil.mask
    assert np.array_equal(found, drawn)
    other = Stencil(8, 2, np.random.default_rng(2).random((20, 30)) < 0.5)
    elsewhere = np.zeros((40, 60), bool)
    elsewhere[other.box] = other.mask
    shared = np.zeros((40, 60), bool)
    shared[stencil.box] = (stencil & other).mask
    assert np.array_equal(shared, drawn & elsewhere)


@pytest.mark.parametrize("theme", SYNTHETIC_THEMES)
def test_label_edges_lie_on_image_edges(theme):
    def contrast_at_label_edges(image, label):
        return np.abs(np.diff(image, axis=1)).sum(-1)[label[:, 1:] != label[:, :-1]].mean()

    contrasts = []
    for index in range(20):
        image, label = (np.asarray(picture).astype(int) for picture in synthetic_scene(index, theme=theme))
        contrasts.append([contrast_at_label_edges(image, np.roll(label, shift, 1)) for shift in (-3, 0, 3)])
    before, exact, behind = np.mean(contrasts, axis=0)
    assert exact > 1.5 * max(before, behind)


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
