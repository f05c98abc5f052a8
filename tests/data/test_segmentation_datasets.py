# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets in their official layouts, in folders, on disk and streamed, and what is wrong with them."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from unept_hf.data.class_lists import load_class_list
from unept_hf.data.folder_layouts import image_folder_files
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import hold_out, load_segmentation_dataset
from unept_hf.synthetic.scenes import SYNTHETIC_THEMES, synthetic_scene


def save_pair(image_path, mask_path, highest, seed=0, lowest=0):
    """A picture and a mask with all values from lowest to highest, which is returned."""
    rng = np.random.default_rng(seed)
    values = np.resize(np.arange(lowest, highest + 1), (16, 24))
    values = rng.permuted(values.reshape(-1)).reshape(16, 24).astype(np.uint8)
    for path in (image_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(image_path)
    PIL.Image.fromarray(values).save(mask_path)
    return values


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for folder, split, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            name = f"ADE_{split}_{i:08d}"
            save_pair(root / f"images/{folder}/{name}.jpg", root / f"annotations/{folder}/{name}.png", 150, i)
    (root / "objectInfo150.txt").write_text("Idx\n")
    (root / "images/training/Thumbs.db").write_text("")
    return root


@pytest.fixture
def cityscapes(tmp_path):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        stem = f"{split}/{city}/{city}_000000_000019"
        mask = tmp_path / f"gtFine/{stem}_gtFine_labelIds.png"
        save_pair(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", mask, 33)
        for other in ("color", "instanceIds", "labelTrainIds"):
            mask.with_name(mask.name.replace("labelIds", other)).write_bytes(b"not read")
    return tmp_path


@pytest.fixture
def pascal_context(tmp_path):
    root = tmp_path / "VOC2010"
    lists = root / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    for split, names in (("train", ["2008_000002", "2008_000003"]), ("val", ["2008_000009"])):
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save_pair(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClassContext/{name}.png", 59)
    # Images of VOC that PASCAL-Context does not use.
    PIL.Image.new("RGB", (8, 8)).save(root / "JPEGImages/2007_000001.jpg")
    return root


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "mine"
    for split, names in (("train", ["a/1", "a/2", "b/1"]), ("val", ["c/7"])):
        for name in names:
            save_pair(root / f"images/{split}/{name}.JPG", root / f"masks/{split}/{name}.png", 2)
    return root


@pytest.fixture
def class_file(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["sky", "ground", "tree"]))
    return str(path)


def fake_camvid(root, layout):
    """Three splits of CamVid in one of its layouts, and the label maps of the first image of each."""
    classes = load_class_list("camvid")
    colors = np.array([*classes.mask_colors], np.uint8)
    expected = {}
    for seed, (split, count) in enumerate((("train", 2), ("val", 1), ("test", 1))):
        names = [f"{split}_f{index:03d}" for index in range(count)]
        for name in names:
            image, mask = {
                "segnet": (f"{split}/{name}.png", f"{split}annot/{name}.png"),
                "colors": (f"{split}/{name}.png", f"{split}_labels/{name}_L.png"),
                "original": (f"701_StillsRaw_full/{name}.png", f"LabeledApproved_full/{name}_L.png"),
            }[layout]
            values = save_pair(root / image, root / mask, 11, seed)
            label_map = np.where(values == 11, 255, values)
            if layout != "segnet":
                choice = np.random.default_rng(seed).integers(0, len(colors), values.shape)
                PIL.Image.fromarray(colors[choice]).save(root / mask)
                label_map = np.array([*classes.mask_colors.values()])[choice]
            expected.setdefault(split, label_map)
        if layout == "original":
            (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    return expected


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Official layouts


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("split", "count"), [("train", 3), ("training", 3), ("validation", 2), ("val", 2)])
def test_ade20k(ade20k, split, count, streaming):
    data, classes = load_segmentation_dataset("ade20k", split, data_dir=str(ade20k), streaming=streaming)
    assert isinstance(data, datasets.IterableDataset if streaming else datasets.Dataset)
    assert set(data.features) == {"image", "label", "name"}
    assert isinstance(data.features["image"], datasets.Image)
    rows = list(data)
    part = "train" if split.startswith("train") else "val"
    assert [row["name"] for row in rows] == [f"ADE_{part}_{i:08d}" for i in range(1, count + 1)]
    assert len(classes) == 150
    folder = "training" if part == "train" else "validation"
    for row in rows:
        image, label_map = decode_example(row, classes)
        assert np.array_equal(
            np.asarray(image), np.asarray(PIL.Image.open(ade20k / f"images/{folder}/{row['name']}.jpg"))
        )
        raw = np.asarray(PIL.Image.open(ade20k / f"annotations/{folder}/{row['name']}.png")).astype(int)
        assert np.array_equal(label_map, np.where(raw == 0, 255, raw - 1))
        assert set(np.unique(label_map)) == {*range(150), 255}


def test_cityscapes(cityscapes):
    data, classes = load_segmentation_dataset("cityscapes", "train", data_dir=str(cityscapes))
    assert data["name"][:] == ["aachen/aachen_000000_000019", "bochum/bochum_000000_000019"]
    raw = np.asarray(PIL.Image.open(cityscapes / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"))
    image, label_map = decode_example(data[0], classes)
    assert image.size == (24, 16)
    assert classes.id2label[0] == "road"
    for label_id, train_id in ((0, 255), (7, 0), (8, 1), (9, 255), (26, 13), (30, 255), (33, 18)):
        assert (label_map[raw == label_id] == train_id).all()
    assert len(load_segmentation_dataset("cityscapes", "validation", data_dir=str(cityscapes))[0]) == 1


@pytest.mark.parametrize("layout", ["segnet", "colors", "original"])
def test_camvid(tmp_path, layout, caplog):
    expected = fake_camvid(tmp_path, layout)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n")
    splits = {"train": "train", "training": "train", "validation": "val", "val": "val", "test": "test"}
    for spelling, split in splits.items():
        data, classes = load_segmentation_dataset("camvid", spelling, data_dir=str(tmp_path))
        assert data["name"][:] == [f"{split}_f{index:03d}" for index in range(2 if split == "train" else 1)]
        image, label_map = decode_example(data[0], classes)
        assert image.size == (24, 16)
        assert np.array_equal(label_map, expected[split])
    assert classes.name == "camvid" and not warnings_of(caplog)


@pytest.mark.parametrize("layout", ["segnet", "colors", "original"])
def test_joined_splits_of_camvid(tmp_path, layout):
    expected = fake_camvid(tmp_path, layout)
    data, classes = load_segmentation_dataset("camvid", "train+validation", data_dir=str(tmp_path))
    assert data["name"][:] == ["train/train_f000", "train/train_f001", "validation/val_f000"]
    for index, split in ((0, "train"), (2, "val")):
        assert np.array_equal(decode_example(data[index], classes)[1], expected[split])
    for split in ("train+training", "train+", "train+val+valid"):
        with pytest.raises(ValueError, match=r"split='train\+.*' must name each split once, such as"):
            load_segmentation_dataset("camvid", split, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"annotations for the splits train, val and test, not for 'extra'"):
        load_segmentation_dataset("camvid", "train+extra", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("segnet", {"image_dir": "{split}", "label_dir": "{split}annot"}),
        ("colors", {"image_dir": "{split}", "label_dir": "{split}_labels", "label_suffix": "_L"}),
    ],
)
def test_camvid_as_image_folders(tmp_path, layout, options):
    expected = fake_camvid(tmp_path, layout)
    for spelling, split in {"train": "train", "validation": "val", "test": "test"}.items():
        data, classes = load_segmentation_dataset(
            "image_folders", spelling, data_dir=str(tmp_path), class_list="camvid", **options
        )
        assert data["name"][0] == f"{split}_f000"
        assert np.array_equal(decode_example(data[0], classes)[1], expected[split])
    with pytest.raises(ValueError, match=r"no folder '.*extra': set data_dir and image_dir.*holds test, test"):
        load_segmentation_dataset("image_folders", "extra", data_dir=str(tmp_path), class_list="camvid", **options)
    shutil.rmtree(tmp_path / options["label_dir"].replace("{split}", "val"))
    with pytest.raises(ValueError, match=r"no folder '.*val(annot|_labels)': set data_dir and label_dir"):
        load_segmentation_dataset(
            "image_folders", "validation", data_dir=str(tmp_path), class_list="camvid", **options
        )


def test_folders_in_absolute_places(tmp_path):
    fake_camvid(tmp_path, "segnet")
    options = {"image_dir": str(tmp_path / "{split}"), "label_dir": str(tmp_path / "{split}annot")}
    assert len(load_segmentation_dataset("image_folders", "train", class_list="camvid", **options)[0]) == 2


def test_masks_without_the_suffix(tmp_path):
    fake_camvid(tmp_path, "colors")
    options = {"data_dir": str(tmp_path), "image_dir": "{split}", "label_dir": "{split}_labels"}
    with pytest.raises(ValueError, match=r"have no counterpart.*a file of the same name, but for the suffix"):
        load_segmentation_dataset("image_folders", class_list="camvid", **options)
    with pytest.raises(ValueError, match=r"have no counterpart.*NAME_seg and a suffix .* for NAME in"):
        load_segmentation_dataset("image_folders", class_list="camvid", label_suffix="_seg", **options)
    with pytest.raises(ValueError, match=r"label_suffix .* for dataset_name='image_folders', not for 'camvid'"):
        load_segmentation_dataset("camvid", data_dir=str(tmp_path), label_suffix="_L")


def test_color_of_no_class_of_camvid(tmp_path):
    fake_camvid(tmp_path, "colors")
    path = tmp_path / "train_labels/train_f000_L.png"
    pixels = np.array(PIL.Image.open(path))
    pixels[5, 7] = 1, 2, 3
    PIL.Image.fromarray(pixels).save(path)
    data, classes = load_segmentation_dataset("camvid", data_dir=str(tmp_path))
    message = r"train_f000_L\.png' has the color #010203 \(1, 2, 3\) at row 5, column 7.* #000000 .*to ignore"
    with pytest.raises(ValueError, match=message):
        decode_example(data[0], classes)


@pytest.mark.parametrize(
    "line", ["{}", "{}.png", "/SegNet/CamVid/train/{}.png /SegNet/CamVid/trainannot/{}.png", "{}\r"]
)
def test_lists_of_camvid(tmp_path, line):
    fake_camvid(tmp_path, "original")
    listing = tmp_path / "train.txt"
    listing.write_text("\n".join(line.format(name, name) for name in listing.read_text().split()) + "\n")
    data, _ = load_segmentation_dataset("camvid", "train", data_dir=str(tmp_path))
    assert data["name"][:] == ["train_f000", "train_f001"]
    listing.unlink()
    with pytest.raises(ValueError, match=r"File '.*train\.txt' does not exist.*CamVid.*names the images of the split"):
        load_segmentation_dataset("camvid", "train", data_dir=str(tmp_path))


def test_camvid_is_incomplete(tmp_path):
    with pytest.raises(ValueError, match=r"annotations for the splits train, val and test, not for 'extra'"):
        load_segmentation_dataset("camvid", "extra", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"no folder '.*train'.*train and trainannot.*701_StillsRaw_full"):
        load_segmentation_dataset("camvid", data_dir=str(tmp_path))
    fake_camvid(tmp_path, "segnet")
    (tmp_path / "trainannot/train_f001.png").unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\) have no counterpart: .*train_f001\.png"):
        load_segmentation_dataset("camvid", data_dir=str(tmp_path))


@pytest.mark.parametrize("count", [59, 60])
def test_pascal_context(pascal_context, count):
    data, classes = load_segmentation_dataset(f"pascal_context_{count}", "train", data_dir=str(pascal_context))
    assert data["name"][:] == ["2008_000002", "2008_000003"]
    assert len(classes) == count
    raw = np.asarray(PIL.Image.open(pascal_context / "SegmentationClassContext/2008_000002.png")).astype(int)
    _, label_map = decode_example(data[0], classes)
    assert np.array_equal(label_map, raw if count == 60 else np.where(raw == 0, 255, raw - 1))
    assert len(load_segmentation_dataset(f"pascal_context_{count}", "val", data_dir=str(pascal_context))[0]) == 1


def test_pascal_context_as_the_original_processed_it(tmp_path):
    """`train/image` and `train/label`, whose masks have the background as class 0."""
    raw = {}
    for split, names in (("train", ["2008_000002", "2008_000003"]), ("val", ["2008_000009"])):
        for name in names:
            raw[name] = save_pair(tmp_path / f"{split}/image/{name}.jpg", tmp_path / f"{split}/label/{name}.png", 59)
    folders = {"data_dir": str(tmp_path), "image_dir": "{split}/image", "label_dir": "{split}/label"}
    for split, count in (("train", 2), ("validation", 1)):
        data, classes = load_segmentation_dataset("image_folders", split, class_list="pascal_context_60", **folders)
        assert (len(data), len(classes)) == (count, 60)
        for row in data:
            assert np.array_equal(decode_example(row, classes)[1], raw[row["name"]])
    data, classes = load_segmentation_dataset("image_folders", "train", class_list="pascal_context_59", **folders)
    values = raw[data[0]["name"]].astype(int)
    assert np.array_equal(decode_example(data[0], classes)[1], np.where(values == 0, 255, values - 1))


@pytest.mark.parametrize(
    ("name", "known"),
    [("ade20k", "training and validation"), ("cityscapes", "train and val"), ("pascal_context_59", "train and val")],
)
def test_splits_without_annotations(request, name, known):
    root = request.getfixturevalue(name.removesuffix("_59"))
    with pytest.raises(ValueError, match=f"annotations for the splits {known}, not for 'test'"):
        load_segmentation_dataset(name, "test", data_dir=str(root))


@pytest.mark.parametrize("name", ["ade20k", "camvid", "cityscapes", "pascal_context_59", "pascal_context_60"])
def test_no_folder(name, tmp_path):
    with pytest.raises(ValueError, match=f"dataset_name='{name}' needs data_dir"):
        load_segmentation_dataset(name)
    with pytest.raises(ValueError, match=r"There is no folder '.*gone.*'.*data_dir must be.*gone' does not exist"):
        load_segmentation_dataset(name, data_dir=str(tmp_path / "gone"))


def test_the_folder_above(ade20k):
    with pytest.raises(ValueError, match="holds ADEChallengeData2016"):
        load_segmentation_dataset("ade20k", data_dir=str(ade20k.parent))


def test_empty_folders(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / folder / "training").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"There is no image with a mask\. Expected .*NAME\.png for .*NAME\.jpg"):
        load_segmentation_dataset("ade20k", data_dir=str(tmp_path))


def test_pascal_context_lists(pascal_context):
    listing = pascal_context / "ImageSets/SegmentationContext/train.txt"
    listing.write_text("")
    with pytest.raises(ValueError, match=r"train\.txt' is empty"):
        load_segmentation_dataset("pascal_context_60", data_dir=str(pascal_context))
    listing.unlink()
    with pytest.raises(ValueError, match=r"File '.*train\.txt' does not exist"):
        load_segmentation_dataset("pascal_context_60", data_dir=str(pascal_context))


# Unpaired and broken files


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("ade20k", "annotations/training/ADE_train_00000002.png"),
        ("ade20k", "images/training/ADE_train_00000002.jpg"),
        ("cityscapes", "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png"),
        ("pascal_context_59", "SegmentationClassContext/2008_000003.png"),
        ("pascal_context_59", "JPEGImages/2008_000003.jpg"),
    ],
)
def test_unpaired_files(request, caplog, name, lost):
    root = request.getfixturevalue(name.removesuffix("_59"))
    before = load_segmentation_dataset(name, data_dir=str(root))[0]["name"][:]
    (root / lost).unlink()
    with pytest.raises(
        ValueError, match=r"1 file\(s\) have no counterpart: .*(00000002|bochum|2008_000003).*Expected"
    ):
        load_segmentation_dataset(name, data_dir=str(root))
    data, _ = load_segmentation_dataset(name, data_dir=str(root), skip_unreadable=True)
    gone = {name for name in before if name.rpartition("/")[2] in lost}
    assert len(gone) == 1
    assert set(data["name"]) == set(before) - gone
    assert any("1 file(s) have no counterpart" in message for message in warnings_of(caplog))


def break_some(ade20k):
    (ade20k / "images/training/ADE_train_00000001.jpg").write_bytes(b"no image")
    PIL.Image.new("L", (24, 16), 151).save(ade20k / "annotations/training/ADE_train_00000003.png")


def test_broken_files_are_errors_where_they_are_read(ade20k):
    break_some(ade20k)
    data, classes = load_segmentation_dataset("ade20k", data_dir=str(ade20k))
    with pytest.raises(ValueError, match=r"Cannot read image '.*ADE_train_00000001\.jpg'"):
        decode_example(data[0], classes)
    decode_example(data[1], classes)
    with pytest.raises(ValueError, match=r"mask '.*ADE_train_00000003\.png' holds the value\(s\) 151"):
        decode_example(data[2], classes)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_broken_files_are_left_out(ade20k, caplog, num_proc):
    break_some(ade20k)
    data, classes = load_segmentation_dataset("ade20k", data_dir=str(ade20k), skip_unreadable=True, num_proc=num_proc)
    assert data["name"][:] == ["ADE_train_00000002"]
    decode_example(data[0], classes)
    assert any(
        "2 of 3 examples are unusable and left out: ADE_train_00000001, ADE_train_00000003." in message
        for message in warnings_of(caplog)
    )


def test_broken_files_are_left_out_of_streams(ade20k, caplog):
    break_some(ade20k)
    data, _ = load_segmentation_dataset("ade20k", data_dir=str(ade20k), skip_unreadable=True, streaming=True)
    assert not warnings_of(caplog)
    assert [row["name"] for row in data] == ["ADE_train_00000002"]
    assert [message.partition(":")[0] for message in warnings_of(caplog)] == ["Left out"] * 2


def test_nothing_is_left(ade20k):
    for path in ade20k.glob("images/validation/*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"Cannot read image '.*ADE_val_00000001\.jpg'"):
        load_segmentation_dataset("ade20k", "val", data_dir=str(ade20k), skip_unreadable=True)


# Two folders


@pytest.mark.parametrize("layout", ["split below", "split above"])
def test_folders_with_splits(folders, class_file, layout):
    if layout == "split above":
        for split in ("train", "val"):
            (folders / split).mkdir()
            for kind in ("images", "masks"):
                (folders / kind / split).rename(folders / split / kind)
    options = {"data_dir": str(folders), "class_list": class_file}
    data, classes = load_segmentation_dataset("image_folders", "train", **options)
    assert data["name"][:] == ["a/1", "a/2", "b/1"]
    assert list(classes.label2id) == ["sky", "ground", "tree"]
    image, label_map = decode_example(data[0], classes)
    assert image.size == (24, 16)
    assert set(np.unique(label_map)) == {0, 1, 2}
    assert load_segmentation_dataset("image_folders", "validation", **options)[0]["name"][:] == ["c/7"]
    with pytest.raises(ValueError, match="only one split, 'train', not 'test'"):
        load_segmentation_dataset("image_folders", "test", **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_joined_splits_of_folders(folders, class_file, streaming):
    """With an image of the same name in both."""
    save_pair(folders / "images/val/a/1.JPG", folders / "masks/val/a/1.png", 2)
    options = {"data_dir": str(folders), "class_list": class_file, "streaming": streaming}
    data, _ = load_segmentation_dataset("image_folders", "val + train", **options)
    assert [row["name"] for row in data] == ["val/a/1", "val/c/7", "train/a/1", "train/a/2", "train/b/1"]
    shutil.rmtree(folders / "masks/val/a")
    with pytest.raises(ValueError, match=r"1 file\(s\) have no counterpart: .*val/a/1\.JPG"):
        load_segmentation_dataset("image_folders", "train+val", **options)


@pytest.mark.floor
def test_folders_without_splits(folders, class_file):
    options = {
        "image_dir": str(folders / "images/train"),
        "label_dir": str(folders / "masks/train"),
        "class_list": class_file,
    }
    assert len(load_segmentation_dataset("image_folders", "train", **options)[0]) == 3
    with pytest.raises(ValueError, match=r"only one split, 'train', not 'validation'\. Make sub-folders"):
        load_segmentation_dataset("image_folders", "validation", **options)


@pytest.mark.parametrize(("kind", "other"), [("images", "masks"), ("masks", "images")])
@pytest.mark.parametrize("above", [False, True])
def test_split_with_one_of_two_folders(tmp_path, kind, other, above):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    found, missing = (f"train/{kind}", f"train/{other}") if above else (f"{kind}/train", f"{other}/train")
    (tmp_path / found).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"no folder '.*{missing}', but there is '.*{found}'"):
        image_folder_files(tmp_path, "train")


def test_folders_of_other_names(folders, class_file):
    (folders / "images").rename(folders / "photos")
    with pytest.raises(ValueError, match=r"There is no folder '.*images': set data_dir and image_dir.*masks, photos"):
        load_segmentation_dataset("image_folders", data_dir=str(folders), class_list=class_file)
    options = {"data_dir": str(folders), "image_dir": "photos", "class_list": class_file}
    assert len(load_segmentation_dataset("image_folders", **options)[0]) == 3


def test_folders_need_classes_and_places(folders):
    with pytest.raises(ValueError, match="needs class_list"):
        load_segmentation_dataset("image_folders", data_dir=str(folders))
    with pytest.raises(ValueError, match=r"needs data_dir .* or image_dir and label_dir"):
        load_segmentation_dataset("image_folders", class_list="ade20k")


def test_two_images_for_a_mask(folders):
    PIL.Image.new("RGB", (24, 16)).save(folders / "images/train/a/1.png")
    with pytest.raises(ValueError, match="differ only in the suffix"):
        image_folder_files(folders, "train")


def test_folders_for_another_data_set(folders):
    with pytest.raises(
        ValueError, match="label_dir and label_suffix are for dataset_name='image_folders', not for 'ade"
    ):
        load_segmentation_dataset("ade20k", data_dir=str(folders), image_dir="images", label_dir="masks")


def test_relative_folders(folders, class_file, monkeypatch):
    monkeypatch.chdir(folders.parent)
    data, classes = load_segmentation_dataset("image_folders", data_dir="mine", class_list=class_file)
    assert len(data) == 3
    decode_example(data[0], classes)


# What the library datasets loads


@pytest.fixture
def repository(folders, tmp_path):
    """A local copy of a repository with Parquet files and columns of other names."""
    root = tmp_path / "repository"
    (root / "data").mkdir(parents=True)
    for split, folder in (("train", "train"), ("validation", "val")):
        files = image_folder_files(folders, folder)
        columns = {"photo": files.images, "annotation": files.masks, "caption": files.names}
        features = datasets.Features(
            {"photo": datasets.Image(), "annotation": datasets.Image(), "caption": datasets.Value("string")}
        )
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(str(root / f"data/{split}-00000-of-00001.parquet"))
    return root


@pytest.fixture
def load(repository, tmp_path):
    def load(split="train", dataset_name=str(repository), **kwargs):
        options = {"image_column": "photo", "label_column": "annotation", "cache_dir": str(tmp_path / "cache")}
        return load_segmentation_dataset(dataset_name, split, **{**options, **kwargs})

    return load


@pytest.mark.parametrize("skip_unreadable", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("split", "names"), [("train", ["a/1", "a/2", "b/1"]), ("val", ["c/7"])])
def test_parquet(load, folders, class_file, split, names, streaming, skip_unreadable):
    data, classes = load(split, class_list=class_file, streaming=streaming, skip_unreadable=skip_unreadable)
    assert isinstance(data, datasets.IterableDataset if streaming else datasets.Dataset)
    assert set(data.features) == {"image", "label", "name"}
    rows = list(data)
    assert [row["name"] for row in rows] == [f"{split}-{index:06d}" for index in range(len(names))]
    for row, name in zip(rows, names):
        image, label_map = decode_example(row, classes)
        assert np.array_equal(np.asarray(image), np.asarray(PIL.Image.open(folders / f"images/{split}/{name}.JPG")))
        assert np.array_equal(label_map, np.asarray(PIL.Image.open(folders / f"masks/{split}/{name}.png")))


def test_stream_without_schema(load, folders, class_file, monkeypatch):
    files = image_folder_files(folders, "train")

    def rows():
        for image, mask in zip(files.images, files.masks):
            yield {
                "photo": {"bytes": Path(image).read_bytes(), "path": None},
                "annotation": {"path": mask, "bytes": None},
                "other": 1,
            }

    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *args, **kwargs: ["train"])
    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: stream)
    data, classes = load(dataset_name="someone/scenes", class_list=class_file, streaming=True)
    assert [row["name"] for row in data] == ["train-000000", "train-000001", "train-000002"]
    assert all(set(row) == {"image", "label", "name"} for row in data)
    assert all(decode_example(row, classes)[0].size == (24, 16) for row in data)
    with pytest.raises(
        ValueError, match=r"Column \'image\' does not exist: set image_column to .* are photo, annotation, other\."
    ):
        load(dataset_name="someone/scenes", class_list=class_file, streaming=True, image_column="image")


@pytest.mark.parametrize("streaming", [False, True])
def test_joined_splits_of_parquet(load, class_file, streaming):
    data, _ = load("train+val", class_list=class_file, streaming=streaming)
    assert [row["name"] for row in data] == [f"train+val-{index:06d}" for index in range(4)]
    with pytest.raises(ValueError, match=r"no split 'test'\. Choose one of train, validation"):
        load("train+test", class_list=class_file, streaming=streaming)


def test_joined_splits_of_a_saved_data_set(load, repository, class_file, tmp_path):
    files = {split: str(repository / f"data/{split}-00000-of-00001.parquet") for split in ("train", "validation")}
    saved = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    saved.save_to_disk(tmp_path / "saved")
    data, _ = load("train+val", dataset_name=str(tmp_path / "saved"), class_list=class_file)
    assert data["name"][:] == [f"train+val-{index:06d}" for index in range(4)]


def test_slices(load, class_file):
    assert len(load("train[:2]", class_list=class_file)[0]) == 2
    assert len(load("train[:2]+validation", class_list=class_file)[0]) == 3
    with pytest.raises(ValueError, match=r"split='train\[:2\]': slices need"):
        load("train[:2]", class_list=class_file, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_and_splits_that_do_not_exist(load, class_file, streaming):
    options = {"class_list": class_file, "streaming": streaming}
    with pytest.raises(
        ValueError, match=r"Column \'label\' does not exist: set label_column to .* are photo, annotation, caption\."
    ):
        load(label_column="label", **options)
    with pytest.raises(
        ValueError, match=r"Column \'image\' does not exist: set image_column to .* are photo, annotation, caption\."
    ):
        load(image_column="image", **options)
    with pytest.raises(ValueError, match="image_column and label_column are both 'photo'"):
        load(label_column="photo", **options)
    with pytest.raises(ValueError, match=r"no split 'test'\. Choose one of train, validation"):
        load("test", **options)


def test_folder_in_a_repository(load, repository, class_file):
    (repository / "data").rename(repository / "second")
    assert len(load(class_list=class_file, data_dir="second")[0]) == 3
    with pytest.raises(ValueError):
        load(class_list=class_file, data_dir="first")


def test_broken_rows(load, repository, class_file, caplog):
    path = repository / "data/train-00000-of-00001.parquet"
    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(repository.parent / "other cache"))
    data = data.cast_column("photo", datasets.Image(decode=False))
    data.map(
        lambda row, i: {"photo": {"bytes": b"", "path": None} if i == 1 else row["photo"]}, with_indices=True
    ).to_parquet(str(path))
    data, classes = load(class_list=class_file)
    with pytest.raises(ValueError, match="Cannot read image 'train-000001'"):
        [decode_example(row, classes) for row in data]
    data, classes = load(class_list=class_file, skip_unreadable=True)
    assert data["name"][:] == ["train-000000", "train-000002"]
    assert any("1 of 3 examples are unusable and left out: train-000001" in m for m in warnings_of(caplog))
    data, classes = load(class_list=class_file, skip_unreadable=True, streaming=True)
    assert [row["name"] for row in data] == ["train-000000", "train-000002"]


@pytest.mark.parametrize("single", [False, True])
def test_saved_to_disk(load, repository, class_file, tmp_path, single):
    saved = datasets.load_dataset(str(repository), cache_dir=str(tmp_path / "cache"))
    (saved["train"] if single else saved).save_to_disk(str(tmp_path / "saved"))
    data, classes = load(dataset_name=str(tmp_path / "saved"), class_list=class_file)
    assert len(data) == 3
    decode_example(data[0], classes)
    with pytest.raises(ValueError, match=r"no split 'test'\. Choose one of train"):
        load("test", dataset_name=str(tmp_path / "saved"), class_list=class_file)


def test_columns_that_are_no_images(load, class_file, repository, tmp_path):
    data = datasets.Dataset.from_dict({"photo": [1], "annotation": [2]})
    data.save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(ValueError, match=r"Column 'photo' holds Value\('int64'\), not images: set image_column"):
        load(dataset_name=str(tmp_path / "numbers"), class_list=class_file)


def test_columns_of_paths(load, folders, class_file, tmp_path):
    files = image_folder_files(folders, "train")
    data = datasets.Dataset.from_dict({"photo": files.images, "annotation": files.masks})
    data.save_to_disk(str(tmp_path / "paths"))
    data, classes = load(dataset_name=str(tmp_path / "paths"), class_list=class_file)
    assert decode_example(data[2], classes)[0].size == (24, 16)


def test_neither_a_name_nor_a_folder(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset_name='.*gone' is neither 'ade20k', .*'synthetic'.* nor 'image_folders'"
    ):
        load_segmentation_dataset(str(tmp_path / "gone"), class_list="ade20k")


# Class names of the data set itself


def test_class_list_beside_the_data(load, repository):
    (repository / "id2label.json").write_text(json.dumps({"0": "sky", "1": "ground", "2": "tree"}))
    _, classes = load()
    assert classes.name == str(repository)
    assert list(classes.label2id) == ["sky", "ground", "tree"]


def test_class_list_that_is_asked_for_wins(load, repository):
    (repository / "id2label.json").write_text(json.dumps({"0": "sky", "1": "ground", "2": "tree"}))
    assert load(class_list="ade20k")[1].name == "ade20k"


def test_class_list_on_the_hub(load, class_file, tmp_path, monkeypatch):
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        return class_file

    data = datasets.Dataset.from_dict({"photo": ["x"], "annotation": ["y"]})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *args, **kwargs: ["train"])
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: data)
    _, classes = load(dataset_name="someone/scenes", revision="v1")
    assert list(classes.label2id) == ["sky", "ground", "tree"]
    assert asked == [(("someone/scenes", "id2label.json"), {"repo_type": "dataset", "revision": "v1", "token": None})]


def test_class_names_in_the_features(load, folders, tmp_path, caplog):
    files = image_folder_files(folders, "train")
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "annotation": datasets.Image(),
            "present": datasets.Sequence(datasets.ClassLabel(names=["sky", "ground", "tree"])),
        }
    )
    columns = {"photo": files.images, "annotation": files.masks, "present": [[0, 1, 2]] * 3}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "named"))
    data, classes = load(dataset_name=str(tmp_path / "named"))
    assert list(classes.label2id) == ["sky", "ground", "tree"]
    assert set(data.features) == {"image", "label", "name"}
    assert any("from its column 'present'" in message for message in warnings_of(caplog))


def test_no_class_names(load):
    with pytest.raises(ValueError, match="does not name its classes: set class_list"):
        load()


# What is worth a warning


def test_black_and_white_masks(folders, class_file, caplog):
    load_segmentation_dataset("image_folders", data_dir=str(folders), class_list=class_file)
    assert not warnings_of(caplog)
    for path in folders.glob("masks/train/*/*.png"):
        PIL.Image.fromarray(np.resize(np.array([0, 255], dtype=np.uint8), (16, 24))).save(path)
    for streaming in (False, True):
        load_segmentation_dataset("image_folders", data_dir=str(folders), class_list=class_file, streaming=streaming)
        (message,) = warnings_of(caplog)
        assert message.startswith(f"The masks that were read (3, such as '{folders / 'masks'}")
        assert "hold only 0 and 255" in message
        caplog.clear()


def test_ignored_masks_of_a_column(load, class_file, tmp_path, caplog):
    """Nine of ten are not looked at, but the first and the last are."""
    for last, is_odd in ((255, True), (1, False)):
        masks = [PIL.Image.new("L", (8, 8), 255)] * 79 + [PIL.Image.new("L", (8, 8), last)]
        features = datasets.Features({"photo": datasets.Image(), "annotation": datasets.Image()})
        columns = {"photo": [PIL.Image.new("RGB", (8, 8))] * 80, "annotation": masks}
        folder = str(tmp_path / f"saved-{last}")
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
        load(dataset_name=folder, class_list=class_file)
        messages = warnings_of(caplog)
        assert len(messages) == is_odd
        if is_odd:
            assert messages[0].startswith(f"Column 'annotation' of '{folder}': The masks that were read (8, ")
            caplog.clear()


def test_held_out_share(folders, class_file):
    data, _ = load_segmentation_dataset("image_folders", data_dir=str(folders), class_list=class_file)
    rest, held_out = hold_out(data, 0.3, seed=3)
    assert sorted([*rest["name"], *held_out["name"]]) == data["name"][:] and len(held_out) == 1
    assert hold_out(data, 0.3, seed=3)[1]["name"][:] == held_out["name"][:]
    assert {hold_out(data, 0.3, seed=seed)[1]["name"][0] for seed in range(20)} == set(data["name"])
    with pytest.raises(ValueError, match="empty"):
        hold_out(data.select([0]), 0.3, seed=3)


# Synthetic scenes


@pytest.mark.parametrize("theme", SYNTHETIC_THEMES)
def test_synthetic(theme):
    data, classes = load_segmentation_dataset(theme, "val", num_synthetic_scenes=3, synthetic_scene_size=64)
    assert data["name"][:] == ["validation-000000", "validation-000001", "validation-000002"]
    assert classes == load_class_list(theme)
    image, label_map = decode_example(data[1], classes)
    expected_image, expected_labels = synthetic_scene(2**31 + 1, size=(64, 64), theme=theme)
    assert np.array_equal(np.asarray(image), np.asarray(expected_image))
    assert np.array_equal(label_map, np.asarray(expected_labels))
    with pytest.raises(ValueError, match=r"split must be train or validation for '.*', got 'test'"):
        load_segmentation_dataset(theme, "test")


def test_synthetic_out_of_range():
    with pytest.raises(
        ValueError, match=r"num_synthetic_scenes must .* got 0\. synthetic_scene_size must .* got 31\."
    ):
        load_segmentation_dataset("synthetic", num_synthetic_scenes=0, synthetic_scene_size=31)
