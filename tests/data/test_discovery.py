"""Directories of images and masks of which nothing is known."""

import json

import numpy as np
import PIL.Image
import pytest

from unept_hf.data.class_lists import load_class_list
from unept_hf.data.discovery import find_dataset
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset


IDS = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 16, 0), 24, 1)
COLORS = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]], np.uint8)


def write_pairs(folder, images, masks, mask=IDS, suffix="", names=("a", "b", "c")):
    for name in names:
        for directory, pixels, ending in ((images, np.zeros((32, 48, 3), np.uint8), ""), (masks, mask, suffix)):
            (folder / directory).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(folder / directory / f"{name}{ending}.png")


def load(found, folder, split="train"):
    """The data set that was found, with its class list in a file, as the trainer loads it."""
    options = dict(found.options)
    if found.class_list is not None:
        (folder / "found.json").write_text(json.dumps(found.class_list))
        options["class_list"] = str(folder / "found.json")
    return load_segmentation_dataset(split=split, **options)


@pytest.mark.parametrize(
    ("train", "validation", "suffix"),
    [
        (("images/train", "masks/train"), ("images/val", "masks/val"), ""),
        (("train/images", "train/labels"), ("valid/images", "valid/labels"), ""),
        (("img_dir/train", "ann_dir/train"), None, ""),
        (("train", "train_labels"), ("val", "val_labels"), "_L"),
        (("JPEGImages", "SegmentationClass"), None, ""),
    ],
)
def test_layouts(train, validation, suffix, tmp_path):
    write_pairs(tmp_path, *train, suffix=suffix)
    if validation:
        write_pairs(tmp_path, *validation, suffix=suffix, names=("d",))
    found = find_dataset(tmp_path, progress=False)
    assert (found.num_images, found.num_evaluation_images, found.size) == (3, 1 if validation else 0, (32, 48))
    dataset, classes = load(found, tmp_path)
    assert len(dataset) == 3
    assert list(classes.id2label.values()) == ["class 0", "class 1", "class 2"]
    assert np.array_equal(decode_example(dataset[0], classes)[1], IDS)


def test_known_data_sets(tmp_path):
    write_pairs(
        tmp_path / "camvid", "train", "trainannot", np.zeros((32, 48), np.uint8), names=("0001TP_1", "Seq05VD_2")
    )
    write_pairs(tmp_path / "other", "train", "trainannot", np.zeros((32, 48), np.uint8))
    assert find_dataset(tmp_path / "camvid", progress=False).options["dataset_name"] == "camvid"
    assert find_dataset(tmp_path / "other", progress=False).options["dataset_name"] == "image_folders"


@pytest.mark.parametrize(
    ("mask", "names", "label_map"),
    [
        (IDS // 255 * 255, ["background", "foreground"], IDS // 255),
        (COLORS[IDS // 86], ["color #000000", "color #1ec81e"], IDS // 255),
        (np.where(IDS == 2, 7, IDS), ["class 0", "class 1", "class 7"], IDS),
        (np.repeat(IDS[..., None], 3, -1), ["class 0", "class 1", "class 2"], IDS),
    ],
    ids=["black and white", "colors", "gaps", "gray"],
)
def test_classes_of_masks(mask, names, label_map, tmp_path):
    write_pairs(tmp_path, "images", "masks", mask.astype(np.uint8))
    dataset, classes = load(find_dataset(tmp_path, progress=False), tmp_path)
    assert list(classes.id2label.values()) == names
    assert np.array_equal(decode_example(dataset[1], classes)[1], label_map)


def test_files_of_classes(tmp_path):
    write_pairs(tmp_path, "images", "masks")
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    assert load(find_dataset(tmp_path, progress=False), tmp_path)[1].label2id == {"background": 0, "cat": 1, "dog": 2}
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n2, dog\n")
    found = find_dataset(tmp_path, progress=False)
    assert found.class_list["label_id_to_train_id"] == {"0": 0, "2": 1, "255": 255}
    (tmp_path / "labels.txt").write_text("sky\ncat\n\ndog\n")
    assert load(find_dataset(tmp_path, progress=False), tmp_path)[1].label2id == {"sky": 0, "cat": 1, "dog": 2}
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    found = find_dataset(tmp_path, progress=False)
    assert found.class_list is None
    assert len(load_class_list(found.options["class_list"])) == 3
    assert find_dataset(tmp_path, progress=False, class_list="ade20k").options["class_list"] == "ade20k"


def test_classes_that_only_evaluation_shows(tmp_path):
    write_pairs(tmp_path, "images/train", "masks/train", IDS // 2 * 0)
    write_pairs(tmp_path, "images/val", "masks/val", np.where(IDS == 255, 3, IDS), names=("d",))
    found = find_dataset(tmp_path, progress=False)
    assert found.class_list["classes"] == ["class 0", "class 1", "class 2", "class 3"]


def test_files_that_cannot_be_read(tmp_path):
    write_pairs(tmp_path, "images", "masks")
    (tmp_path / "masks" / "b.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"b\.png"):
        find_dataset(tmp_path, progress=False)
    assert find_dataset(tmp_path, progress=False, skip_unreadable=True).class_list["classes"][2] == "class 2"
    (tmp_path / "labels.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt must have .* in UTF-8"):
        find_dataset(tmp_path, progress=False)


def test_masks_that_were_resized_smoothly(tmp_path):
    smooth = PIL.Image.fromarray(IDS // 255 * 200).resize((480, 320), PIL.Image.Resampling.BICUBIC)
    write_pairs(tmp_path, "images", "masks", np.asarray(smooth))
    with pytest.raises(ValueError, match="different values with gaps"):
        find_dataset(tmp_path, progress=False)
    one_bit = tmp_path / "one_bit"
    write_pairs(one_bit, "images", "masks", IDS == 255)
    assert find_dataset(one_bit, progress=False).class_list["classes"] == ["class 0", "class 1"]


def test_what_is_not_a_data_set(tmp_path):
    with pytest.raises(ValueError, match="There is no directory"):
        find_dataset(tmp_path / "nowhere", progress=False)
    with pytest.raises(ValueError, match=r"No images with masks .* set image_dir, label_dir"):
        find_dataset(tmp_path, progress=False)
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    write_pairs(tmp_path, "photos", "truth", noise)
    with pytest.raises(ValueError, match="more than 64 colors"):
        find_dataset(tmp_path, progress=False, image_dir="photos", label_dir="truth")
    (tmp_path / "truth" / "a.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"a\.png"):
        find_dataset(tmp_path, progress=False, image_dir="photos", label_dir="truth")
