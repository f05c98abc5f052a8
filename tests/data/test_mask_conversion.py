# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks from annotation files, read back as the training reads them."""

import base64
import io
import itertools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from unept_hf.cli import main
from unept_hf.data.annotations import _run_lengths
from unept_hf.data.class_lists import load_class_list
from unept_hf.data.label_maps import decode_example
from unept_hf.data.mask_conversion import convert_masks
from unept_hf.data.segmentation_datasets import load_segmentation_dataset


mask_code = pytest.importorskip("pycocotools.mask", reason="needs the extra 'annotations'")
HEIGHT, WIDTH = 12, 16


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path: str, height: int = HEIGHT, width: int = WIDTH, **options) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (width, height), (9, 90, 190)).save(path, **options)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(region: np.ndarray) -> dict:
    """COCO's uncompressed run-length code: along the columns, the first run outside."""
    values = region.reshape(-1, order="F").tolist()
    counts = [len(list(run)) for _, run in itertools.groupby(values)]
    return {"size": list(region.shape), "counts": [0, *counts] if values[0] else counts}


def coco(annotations: list[dict], images=("a.jpg",), categories=((7, "dog"), (3, "cat"))) -> dict:
    return {
        "images": [
            {"id": index + 1, "file_name": name, "height": HEIGHT, "width": WIDTH} for index, name in enumerate(images)
        ],
        "categories": [{"id": index, "name": name, "supercategory": "animal"} for index, name in categories],
        "annotations": [{"id": index, "image_id": 1, **one} for index, one in enumerate(annotations)],
    }


def write(path: str, content) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))


def label_maps(folder: str, split: str = "train") -> dict[str, np.ndarray]:
    dataset, classes = load_segmentation_dataset(
        "image_folders", split, data_dir=folder, class_list=f"{folder}/classes.json"
    )
    return {row["name"]: decode_example(row, classes)[1] for row in dataset}


def background() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), np.uint8)


def test_coco(capsys):
    """Small regions above large ones, crowds ignored below all, several parts, holes, and ids in another order."""
    picture("a.jpg")
    picture("sub/b.png")
    ring = background()
    ring[0:5, 9:15] = 1
    ring[2, 11:13] = 0
    crowd = background()
    crowd[5:12] = 1
    compressed = mask_code.encode(np.asfortranarray(crowd))
    compressed["counts"] = compressed["counts"].decode()
    annotations = [
        {"category_id": 7, "segmentation": [rectangle(3, 6, 5, 8)]},
        {"category_id": 3, "segmentation": [rectangle(1, 5, 7, 10), rectangle(0, 0, 2, 2), [4, 4, 5, 5]]},
        {"category_id": 7, "segmentation": runs(ring), "iscrowd": 0},
        {"category_id": 3, "segmentation": compressed, "iscrowd": 1},
    ]
    write("coco.json", coco(annotations, ("a.jpg", "sub/b.png")))
    assert main(["convert_masks", "coco.json", "out", "--format", "coco"]) == 0
    output = capsys.readouterr()
    assert output.out == "2 images and masks in out/train; the classes are in out/classes.json\n"
    assert output.err == ""
    expected = background()
    expected[5:12] = 255
    expected[5:10, 1:7] = expected[0:2, 0:2] = 1
    expected[6:8, 3:5] = 2
    expected[ring == 1] = 2
    found = label_maps("out")
    np.testing.assert_array_equal(found["a"], expected)
    assert (found["sub/b"] == 0).all()
    classes = load_class_list("out/classes.json")
    assert list(classes.label2id) == ["background", "cat", "dog"]
    mask = PIL.Image.open("out/train/masks/a.png")
    assert mask.mode == "P" and mask.convert("RGB").getpixel((3, 6)) == tuple(classes.palette[2])
    assert Path("out/train/images/a.jpg").read_bytes() == Path("a.jpg").read_bytes()


def test_compressed_codes():
    """All numbers of digits and signs that differences of runs can have."""
    generator = np.random.default_rng(0)
    for scale in (3, 40, 5000):
        runs_of_both = generator.integers(1, scale, 60)
        values = np.repeat(np.arange(60) % 2, runs_of_both).astype(np.uint8)
        code = mask_code.encode(np.asfortranarray(values[:, None]))["counts"]
        assert _run_lengths(code.decode()) == runs_of_both.tolist()


def test_splits_share_their_classes():
    picture("a.jpg")
    write("train.json", coco([{"category_id": 3, "segmentation": [rectangle(0, 0, 4, 4)]}]))
    dogs = [{"category_id": 1, "segmentation": [rectangle(0, 0, 4, 4)]}]
    write("val.json", coco(dogs, categories=[(1, "dog")]))
    write("test.json", coco(dogs, categories=[(1, "horse")]))
    assert convert_masks("train.json", "out", "coco", progress=False) == {"train": 1}
    assert convert_masks("val.json", "out", "coco", split="val", progress=False) == {"val": 1}
    assert label_maps("out")["a"][0, 0] == 1 and label_maps("out", "validation")["a"][0, 0] == 2
    with pytest.raises(ValueError, match=r"has labels that class list 'out/classes\.json' does not have: horse"):
        convert_masks("test.json", "out", "coco", split="test")
    with pytest.raises(FileExistsError, match="not empty"):
        convert_masks("train.json", "out", "coco")
    with pytest.raises(ValueError, match="other classes"):
        convert_masks("val.json", "out", "coco", split="o", class_list="camvid", unlabeled="ignore")
    assert sorted(path.name for path in Path("out").iterdir()) == ["classes.json", "train", "val"]


def test_unlabeled_and_ignored():
    """Without a background; and more classes than a palette has."""
    picture("a.jpg")
    categories = [(index, f"class {index}") for index in range(300)]
    annotations = [{"category_id": 299, "segmentation": [rectangle(0, 0, 4, 4)]}]
    annotations += [{"category_id": 1, "segmentation": [rectangle(6, 0, 10, 4)]}]
    write("coco.json", coco(annotations, categories=categories))
    convert_masks("coco.json", "out", "coco", unlabeled="ignore", ignored_labels=["class 1"], progress=False)
    found = label_maps("out")["a"]
    assert found[0, 0] == 298 and found[0, 6] == found[11, 11] == 65535


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.jpg", "in/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "C:a.jpg", "\\\\host\\a.jpg", "", ".", 3],
)
def test_paths_that_leave_the_folder(name):
    picture("a.jpg")
    picture("in/b.jpg")
    write("in/coco.json", coco([], (name,)))
    with pytest.raises(ValueError, match=r"coco\.json names the image .*, which does not lie below the folder"):
        convert_masks("in/coco.json", "out", "coco")
    assert not Path("out").exists()


OUTLINES = {
    "no segmentation": [],
    "not a list of x and y": [[0, 0, 5, 0, 5]],
    "near an image": [[0, 0, 1e9, 0, 5, 5]],
    "in pixels": [[0, 0, float("nan"), 0, 5, 5]],
    "is not a list": [["a", "b"] * 3],
    "does not fit the image of": {"size": [2**20, 2**20], "counts": [0, 2**40]},
    "run-length code": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH + 1]},
    "code that does not fit": {"size": [HEIGHT, WIDTH], "counts": "0Pb`n0"},  # a million pixels
    "that does not fit": {"size": [HEIGHT, WIDTH], "counts": ""},
}


@pytest.mark.parametrize("message", OUTLINES)
def test_outlines_that_cannot_be_painted(message):
    """The annotation is named, and what was painted before it is removed."""
    picture("a.jpg")
    picture("b.jpg")
    content = coco([{"category_id": 3, "segmentation": OUTLINES[message], "image_id": 2}], ("a.jpg", "b.jpg"))
    write("coco.json", content)
    with pytest.raises(ValueError, match=rf"^Annotation 0 of coco\.json .*{message}"):
        convert_masks("coco.json", "out", "coco", progress=False)
    assert not Path("out").exists()


def test_images_that_do_not_fit(capsys):
    picture("a.jpg")
    write("coco.json", coco([], ("a.jpg", "gone.jpg", "gone/too.jpg")))
    assert main(["convert_masks", "coco.json", "out", "--format", "coco"]) == 1
    error = capsys.readouterr().err
    assert "2 of 3 images of coco.json are missing: gone.jpg, gone/too.jpg." in error
    assert convert_masks("coco.json", "out", "coco", skip_missing=True, progress=False) == {"train": 1}
    picture("a.png")
    write("twice.json", coco([], ("a.jpg", "a.png")))
    with pytest.raises(ValueError, match=r"'a\.jpg' and 'a\.png' of .* would have the same mask"):
        convert_masks("twice.json", "out2", "coco")
    picture("small.jpg", HEIGHT - 1)
    region = {"category_id": 3, "segmentation": [rectangle(0, 0, 4, 4)]}
    write("lost.json", coco([region | {"image_id": 99}]))
    with pytest.raises(ValueError, match=r"of lost\.json is of image 99, which the file does not list"):
        convert_masks("lost.json", "out2", "coco")

    write("small.json", coco([], ("small.jpg",)))
    with pytest.raises(ValueError, match=r"'small\.jpg' has \(11, 16\) pixels .* its annotation says \(12, 16\)"):
        convert_masks("small.json", "out2", "coco", progress=False)
    for content in ("[]", "{", '{"images": [{"id": 1}], "categories": []}', '{"annotations": 3}'):
        write("broken.json", content)
        with pytest.raises(ValueError, match=r"broken\.json (cannot be read|must have)"):
            convert_masks("broken.json", "out2", "coco")
    assert not Path("out2").exists()


def test_photographs_that_are_turned():
    """Viewers, and so annotators, see the picture as its EXIF orientation turns it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture("a.jpg", WIDTH, HEIGHT, exif=exif)
    write("coco.json", coco([{"category_id": 3, "segmentation": [rectangle(0, 0, WIDTH, 2)]}]))
    convert_masks("coco.json", "out", "coco", progress=False)
    found = label_maps("out")["a"]
    assert found.shape == (HEIGHT, WIDTH) and (found[:2] == 1).all() and (found[2:] == 0).all()


def test_roboflow():
    for split in ("train", "valid"):
        picture(f"export/{split}/a_jpg.rf.1234.jpg")
        content = coco([{"category_id": 2, "segmentation": [rectangle(0, 0, 4, 4)]}], ("a_jpg.rf.1234.jpg",))
        content["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ]
        write(f"export/{split}/_annotations.coco.json", content)
    assert convert_masks("export", "out", "roboflow", progress=False) == {"train": 1, "valid": 1}
    assert list(load_class_list("out/classes.json").label2id) == ["background", "cat", "dog"]
    assert label_maps("out", "validation")["a_jpg.rf.1234"][0, 0] == 2
    with pytest.raises(ValueError, match=r"no sub-folder with _annotations\.coco\.json"):
        convert_masks("out", "out2", "roboflow")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <meta><task><labels><label><name>road</name></label><label><name>car</name></label></labels></task></meta>
  <image id="0" name="in/a.png" width="16" height="12">
    <polygon label="car" points="2.0,1.0;6.0,1.0;6.0,5.0;2.0,5.0" z_order="1"/>
    <box label="road" xtl="0" ytl="0" xbr="16" ybr="6" z_order="0"/>
    <box label="car" xtl="9" ytl="8" xbr="13" ybr="10" rotation="90.0" z_order="0"/>
    <mask label="road" rle="1, 2, 1, 2" left="1" top="9" width="3" height="2" z_order="0"/>
    <points label="car" points="1,1"/><tag label="car"/>
  </image>
  <image id="1" name="b.png" width="16" height="12"><ellipse label="car" cx="8" cy="6" rx="5" ry="3"/></image>
</annotations>"""


def test_cvat(caplog):
    picture("images/in/a.png")
    picture("images/b.png")
    write("annotations.xml", CVAT)
    convert_masks("annotations.xml", "out", "cvat", image_dir="images", progress=False)
    assert list(load_class_list("out/classes.json").label2id) == ["background", "road", "car"]
    found = label_maps("out")
    expected = background()
    expected[0:6] = 1
    expected[1:5, 2:6] = 2
    expected[7:11, 10:12] = 2
    expected[9, 2:4] = expected[10, 2:4] = 1
    np.testing.assert_array_equal(found["in/a"], expected)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = ((columns - 8) / 5) ** 2 + ((rows - 6) / 3) ** 2
    assert (found["b"][distance < 0.8] == 2).all() and (found["b"][distance > 1.25] == 0).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>", "document type"),
        ("<annotations>", "<annotations", "cannot be read"),
        ("image", "track", "not for video"),
        ('name="b.png"', 'name="../b.png"', "does not lie below the folder"),
        ('points="2.0,1.0;', 'points="2.0;', "outline"),
        (' xtl="0"', "", "lacks something.*xtl"),
        ('left="1"', 'left="-1"', "mask that does not fit"),
        ('rle="1, 2', 'rle="1, 9999999999', "mask that does not fit"),
        ('height="12"', 'height="x"', "Image 'in/a.png' of annotations.xml: invalid literal"),
    ],
)
def test_broken_files_of_cvat(old, new, message):
    picture("images/in/a.png")
    picture("images/b.png")
    write("annotations.xml", CVAT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        convert_masks("annotations.xml", "out", "cvat", image_dir="images", progress=False)
    assert not Path("out").exists()


def labelme(shapes: list[dict], name: str) -> dict:
    return {"version": "5.5.0", "shapes": shapes, "imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH}


def test_labelme():
    """Later shapes above earlier ones; Labelme's names for nothing; and its paths from the file."""
    picture("in/images/a.png")
    part = io.BytesIO()
    PIL.Image.fromarray(np.array([[True, False, True]])).save(part, "PNG")
    shapes = [
        {"label": "tree", "points": [[0, 0], [16, 6]], "shape_type": "rectangle"},
        {"label": "bird", "points": [[2, 1], [6, 1], [6, 5], [2, 5]], "shape_type": "polygon"},
        {"label": "_background_", "points": [[3, 2], [4, 2], [4, 4], [3, 4]]},
        {"label": "Background", "points": [[4, 2], [5, 2], [5, 4], [4, 4]], "shape_type": None},
        {"label": "__ignore__", "points": [[12, 0], [16, 0], [16, 2], [12, 2]], "shape_type": "polygon"},
        {"label": "bird", "points": [[8, 9], [8, 11]], "shape_type": "circle"},
        {
            "label": "tree",
            "points": [[13, 10], [15, 10]],
            "shape_type": "mask",
            "mask": base64.b64encode(part.getvalue()).decode(),
        },
        {"label": "bird", "points": [[1, 1], [2, 2]], "shape_type": "line"},
    ]
    write("in/json/a.json", labelme(shapes, "..\\images\\a.png"))
    convert_masks("in", "out", "labelme", progress=False)
    assert list(load_class_list("out/classes.json").label2id) == ["background", "bird", "tree"]
    expected = background()
    expected[0:6] = 2
    expected[1:5, 2:6] = 1
    expected[2:4, 3:5] = 0
    expected[0:2, 12:16] = 255
    expected[10, [13, 15]] = 2
    found = label_maps("out")["images/a"]
    np.testing.assert_array_equal(found[:6], expected[:6])
    np.testing.assert_array_equal(found[:, 12:], expected[:, 12:])
    assert found[7:11, 7:9].all() and 10 <= (found[6:, :12] == 1).sum() <= 15
    picture("elsewhere/a.png")
    write("in/json/a.json", labelme(shapes, "../../a.png"))
    assert convert_masks("in", "out3", "labelme", image_dir="elsewhere", progress=False) == {"train": 1}
    np.testing.assert_array_equal(label_maps("out3")["a"], found)
    with pytest.raises(ValueError, match="does not lie below the folder"):
        convert_masks("in", "out2", "labelme")
    write(
        "in/json/a.json",
        labelme([{"label": "tree", "points": [[0, 0]], "shape_type": "rectangle"}], "../images/a.png"),
    )
    with pytest.raises(ValueError, match=r"a\.json: not enough values"):
        convert_masks("in", "out2", "labelme", progress=False)
    write("in/json/a.json", {"shapes": []})
    with pytest.raises(ValueError, match=r"a\.json lacks something"):
        convert_masks("in", "out2", "labelme")
    assert not Path("out2").exists()
