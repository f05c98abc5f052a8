# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Label maps from annotations, and rows of data sets as image and label map."""

import io
import json
import re
import zlib

import numpy as np
import PIL.Image
import pytest

from unept_hf.data.class_lists import class_list_from_data, load_class_list
from unept_hf.data.label_maps import decode_example, decode_label_map, doubt_about_masks


THREE = class_list_from_data(["a", "b", "c"], "three")
FROM_ONE = class_list_from_data({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}], "reduce_labels": True})


def encoded(image, format="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return {"bytes": buffer.getvalue(), "path": None}


def photo(height=4, width=6, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def mask(height=4, width=6):
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 3, (height, width), dtype=np.uint8))


def doubt(class_list, *values):
    """About masks with these values."""
    masks = [np.resize(np.array(one, dtype=np.uint8), (4, 6)) for one in values]
    rows = [{"label": PIL.Image.fromarray(one), "name": f"row {index}"} for index, one in enumerate(masks)]
    return doubt_about_masks(rows, class_list)


# Values


def test_values_as_they_are():
    label_map = decode_label_map(np.array([[0, 1], [2, 255]], dtype=np.uint8), THREE)
    assert label_map.dtype == np.uint8
    assert label_map.tolist() == [[0, 1], [2, 255]]


def test_every_value_of_ade20k():
    values = np.append(np.arange(151), 255).astype(np.uint8)[None]
    expected = [255, *range(150), 255]
    assert decode_label_map(values, load_class_list("ade20k")).tolist() == [expected]


def test_every_label_id_of_cityscapes():
    trained = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    label_map = decode_label_map(np.arange(-1, 34)[None], load_class_list("cityscapes"))
    expected = [trained.index(label_id) if label_id in trained else 255 for label_id in range(-1, 34)]
    assert label_map.tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32])
def test_dtypes(dtype):
    values = np.random.default_rng(0).integers(0, 3, (5, 7))
    assert np.array_equal(decode_label_map(values.astype(dtype), THREE), values)


@pytest.mark.parametrize("ignore_index", [65535, -100])
def test_ignore_index_that_does_not_fit_in_a_byte(ignore_index):
    classes = class_list_from_data({"classes": [{"id": 0, "name": "a"}], "ignore_index": ignore_index})
    label_map = decode_label_map(np.array([[0, ignore_index]]), classes)
    assert label_map.dtype == np.int32
    assert label_map.tolist() == [[0, ignore_index]]


def test_more_classes_than_a_byte_holds():
    classes = class_list_from_data(
        {"classes": [{"id": i, "name": str(i)} for i in range(1000)], "ignore_index": 65535, "reduce_labels": True}
    )
    values = np.array([[0, 1, 256, 1000, 65535]], dtype=np.uint16)
    assert decode_label_map(PIL.Image.fromarray(values), classes).tolist() == [[65535, 0, 255, 999, 65535]]


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "F", "1"])
def test_modes_of_masks(mode):
    values = np.random.default_rng(0).integers(0, 2, (5, 7), dtype=np.uint8)
    if mode == "P":
        image = PIL.Image.fromarray(values).convert("P")
        # With colors that have nothing to do with the classes.
        image.putpalette([200, 10, 10, 0, 90, 0] + [7] * 762)
        assert image.mode == "P"
    elif mode == "I;16":
        image = PIL.Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        image = PIL.Image.fromarray(values.astype(bool))
    else:
        image = PIL.Image.fromarray(values).convert(mode)
    assert image.mode == mode
    assert np.array_equal(decode_label_map(image, THREE), values)


def channels(values, mode, alpha=255):
    """Gray pixels with the channels of another mode."""
    gray = PIL.Image.fromarray(values)
    opacity = PIL.Image.fromarray(np.broadcast_to(np.uint8(alpha), values.shape).copy())
    bands = {"LA": [gray, opacity], "RGB": [gray] * 3, "RGBA": [gray] * 3 + [opacity]}
    return PIL.Image.merge(mode, bands[mode])


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
@pytest.mark.parametrize("as_mask", ["file", "PIL", "array"])
def test_gray_masks_with_more_channels(mode, as_mask):
    values = np.random.default_rng(0).integers(0, 3, (4, 6), dtype=np.uint8)
    image = channels(values, mode)
    if as_mask == "file":
        label_map = decode_example({"image": photo(), "label": encoded(image)}, THREE)[1]
    else:
        label_map = decode_label_map(image if as_mask == "PIL" else np.asarray(image), THREE)
    assert label_map.dtype == np.uint8
    assert np.array_equal(label_map, values)


def test_array_with_one_channel():
    assert decode_label_map(np.array([[[0], [2]]], dtype=np.uint8), THREE).tolist() == [[0, 2]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_masks(mode):
    """What lies below is not said: the class that the eye does not see, or none."""
    values = np.zeros((4, 6), dtype=np.uint8)
    alpha = np.where(np.arange(6) < 5, 255, 0)
    with pytest.raises(ValueError, match=r"mask 'm' has 4 transparent pixels.*Save it without an alpha channel"):
        decode_label_map(channels(values, mode, alpha), THREE, "m")


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_channels_that_are_no_gray(mode):
    with pytest.raises(ValueError, match=f"mask 'm' has mode {mode}: .*one channel of class ids"):
        decode_label_map(PIL.Image.new(mode, (6, 4), 0), THREE, "m")


def test_16_bit_gray_with_more_channels():
    """Pillow keeps the upper bytes alone, which are 0 for all of these."""
    values = np.array([[0, 1, 2]], dtype=">u2")
    pixels = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in values)  # each row begins with its filter

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (3).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    row = {"image": photo(1, 3), "label": {"bytes": file, "path": None}, "name": "deep"}
    with pytest.raises(ValueError, match=r"mask 'deep' has 16 bits in each of several channels.*one channel"):
        decode_example(row, THREE)


# Colors

COLORED = class_list_from_data(
    {
        "classes": [
            {"id": 0, "name": "sky", "color": [128, 128, 128]},
            {"id": 1, "name": "road", "color": [128, 64, 128]},
            {"id": 2, "name": "car", "color": [64, 0, 128]},
        ],
        "mask_colors": [{"color": [0, 0, 0], "id": None}, {"color": [64, 128, 192], "id": 2}],
    },
    "colored",
)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("as_mask", ["file", "PIL", "array"])
def test_colors(mode, as_mask):
    colors = np.array([*COLORED.mask_colors], dtype=np.uint8)
    choice = np.random.default_rng(0).integers(0, len(colors), (4, 6))
    image = PIL.Image.fromarray(colors[choice]).convert(mode)
    if as_mask == "file":
        label_map = decode_example({"image": photo(), "label": encoded(image)}, COLORED)[1]
    else:
        label_map = decode_label_map(image if as_mask == "PIL" else np.asarray(image), COLORED)
    assert label_map.dtype == np.uint8
    assert np.array_equal(label_map, np.array([*COLORED.mask_colors.values()])[choice])


@pytest.mark.parametrize("ignore_index", [255, 65535, -100])
def test_colors_of_nothing_but_gray(ignore_index):
    """The sky and what is not labelled look gray; read as class ids they would be others."""
    data = {
        "classes": [{"id": 0, "name": "sky", "color": [128, 128, 128]}, {"id": 1, "name": "x", "color": [1, 2, 3]}]
    }
    data |= {"mask_colors": [{"color": [0, 0, 0], "id": None}], "ignore_index": ignore_index}
    for gray, expected in ((128, 0), (0, ignore_index)):
        image = PIL.Image.new("RGB", (6, 4), (gray,) * 3)
        assert (decode_label_map(image, class_list_from_data(data)) == expected).all()
    assert (decode_label_map(PIL.Image.new("RGB", (6, 4), (1, 1, 1)), class_list_from_data(data)) == 1).all()


def test_color_that_is_not_listed():
    """And the remedy of the message, followed."""
    pixels = np.full((4, 6, 3), 128, dtype=np.uint8)
    pixels[2, 3] = pixels[3, 1] = 9, 8, 7
    message = (
        r"mask 'm' has the color #090807 \(9, 8, 7\) at row 2, column 3 \(and 1 more such pixels\), which class list "
        r"'colored' .* The nearest color that it knows is #000000 \(0, 0, 0\), of pixels to ignore\."
        r'.*"mask_colors": \[\{"color": \[9, 8, 7\], "id": 0\}\]'
    )
    with pytest.raises(ValueError, match=message) as error:
        decode_label_map(PIL.Image.fromarray(pixels), COLORED, "m")
    assert error.value.kind == "colors outside of the class list"
    entry = json.loads("{" + re.search(r'"mask_colors": \[.*\]', str(error.value))[0] + "}")
    data = {"classes": [{"id": 0, "name": "sky", "color": [128, 128, 128]}], **entry}
    assert (decode_label_map(PIL.Image.fromarray(pixels), class_list_from_data(data)) == 0).all()
    pixels[2, 3] = 120, 70, 130
    with pytest.raises(ValueError, match=r"#784682 .* nearest .* is #804080 \(128, 64, 128\), of class 'road'"):
        decode_label_map(pixels, COLORED)


def test_colors_without_a_list_of_them():
    with pytest.raises(ValueError, match=r"mask 'm' has colors, but class list 'three' does not say .*\"color\""):
        decode_label_map(photo(), THREE, "m")
    with pytest.raises(ValueError, match=r"mask 'm' has float32 colors"):
        decode_label_map(np.random.default_rng(0).random((4, 6, 3), dtype=np.float32), COLORED, "m")


def test_colors_of_two_classes():
    message = r"has the color #8c8c8c \(140, 140, 140\) at row 0, column 0, which .* several"
    with pytest.raises(ValueError, match=message):
        ade20k = load_class_list("ade20k")
        assert ade20k.palette[6] == ade20k.palette[48] == [140, 140, 140]
        decode_label_map(np.array([[[140] * 3, ade20k.palette[2]]], dtype=np.uint8), ade20k)


def palette_mask(values, colors):
    image = PIL.Image.fromarray(np.array(values, dtype=np.uint8))
    image.putpalette([channel for color in colors for channel in color])
    return image


def test_palettes_with_the_colors_of_other_classes():
    """As image editors write color masks: the numbers of the colors, in any order, are no class ids."""
    sky, road, car = COLORED.palette
    values = [[0, 1, 2, 3]]
    for colors, is_odd in (
        ([road, sky, car, car], True),
        ([sky, road, car, [0, 0, 0]], True),  # as CamVid's, the last for pixels to ignore
        ([road, sky, [1, 2, 3], car], False),
    ):
        row = {"label": palette_mask([[0, 1, 2, 2]], colors), "name": "p"}
        expected = is_odd and colors[0] == road
        assert (doubt_about_masks([row], COLORED) is not None) == expected
        with pytest.raises(ValueError, match=r"mask 'p' holds the value\(s\) 3") as error:
            decode_label_map(palette_mask(values, colors), COLORED, "p")
        assert str(error.value).endswith("save it as RGB.") == is_odd
    assert "save the masks as RGB" in doubt_about_masks([{"label": palette_mask([[0]], [car])}], COLORED)
    assert doubt_about_masks([{"label": palette_mask([[0]], [car])}], THREE) is None


def test_pure_colors_are_not_black_and_white():
    classes = [{"id": i, "name": f"{i}", "color": [255 * (i == band) for band in range(3)]} for i in range(3)]
    data = {"classes": classes, "mask_colors": [{"color": [0, 0, 0], "id": None}]}
    pixels = np.array([[[255, 0, 0], [0, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    assert doubt_about_masks([{"label": PIL.Image.fromarray(pixels)}], class_list_from_data(data)) is None


def jpeg(values, mode="L"):
    """A row whose mask went through JPEG."""
    file = encoded(PIL.Image.fromarray(values).convert(mode), "JPEG", quality=75)
    return {"image": photo(*values.shape), "label": file, "name": "j"}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("as_mask", ["file", "PIL"])
def test_jpeg_is_named_as_the_cause(mode, as_mask):
    row = jpeg(np.kron(np.array([[0, 255], [255, 0]]), np.ones((12, 12))).astype(np.uint8), mode)
    if as_mask == "PIL":
        row["label"] = PIL.Image.open(io.BytesIO(row["label"]["bytes"]))
    ground = class_list_from_data(["ground", "crack"])
    with pytest.raises(ValueError, match=r"mask 'j'.*It is a JPEG file, .* values of pixels.*as PNG"):
        decode_example(row, ground)


def test_jpeg_is_named_as_the_cause_of_wrong_colors():
    pixels = np.array([*COLORED.mask_colors], dtype=np.uint8).repeat(12, 0)[None].repeat(12, 0)
    row = {"image": photo(12, 60), "label": encoded(PIL.Image.fromarray(pixels), "JPEG"), "name": "j"}
    with pytest.raises(ValueError, match=r"mask 'j' has the color .*It is a JPEG file"):
        decode_example(row, COLORED)


def test_jpeg_with_values_that_are_classes():
    values = np.kron(np.array([[0, 200], [100, 50]]), np.ones((12, 12))).astype(np.uint8)
    many = class_list_from_data([str(i) for i in range(255)], "many")
    row = jpeg(values)
    assert not np.array_equal(decode_example(row, many)[1], values), "the values are those of other classes"
    message = doubt_about_masks([row], many)
    assert message.startswith("The masks that were read (1, such as 'j') are JPEG files")
    assert "PNG" in message


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_values_outside_the_classes(dtype):
    values = np.array([[0, 3, 9], [200, 255, 3]], dtype=dtype)
    message = (
        r"mask 'x/1\.png' holds the value\(s\) 3, 9, 200, but class list 'three' allows 0\.\.2 and 255 \(ignored\)"
    )
    with pytest.raises(ValueError, match=message + ".*ignore_index.*reduce_labels"):
        decode_label_map(values, THREE, "x/1.png")


def test_value_to_ignore_outside_the_classes():
    """The remedy of the message, followed."""
    values = np.array([[0, 1, 11]], dtype=np.uint8)
    with pytest.raises(ValueError, match=r'"ignore_index": 11 ') as error:
        decode_label_map(values, class_list_from_data(["sky", "road"]))
    entry = json.loads("{" + re.search(r'"ignore_index": \d+', str(error.value))[0] + "}")
    assert decode_label_map(values, class_list_from_data({"classes": ["sky", "road"], **entry})).tolist() == [
        [0, 1, 11]
    ]


def test_values_outside_a_table():
    classes = class_list_from_data({"classes": ["a", "b"], "label_id_to_train_id": {"0": 0, "1": 1, "7": 255}})
    with pytest.raises(ValueError, match=r"value\(s\) 3, but .* allows the label ids 0\.\.1, 7\. Correct .* add "):
        decode_label_map(np.array([[0, 3]], dtype=np.uint8), classes)


def test_values_outside_are_shortened():
    with pytest.raises(ValueError, match=r"3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 17 more"):
        decode_label_map(np.arange(30, dtype=np.uint8)[None], THREE)


def test_values_outside_with_reduced_labels():
    with pytest.raises(ValueError, match=r"holds the value\(s\) 3, but .* allows 0 \(unlabeled\), 1\.\.2 and 255"):
        decode_label_map(np.array([[0, 3]], dtype=np.uint8), FROM_ONE)


def test_train_ids_for_label_ids():
    with pytest.raises(ValueError, match=r"255, but class list 'cityscapes' allows the label ids -1\.\.33.*train ids"):
        decode_label_map(np.array([[0, 18, 255]], dtype=np.uint8), load_class_list("cityscapes"))


@pytest.mark.parametrize("values", [np.zeros((4, 6, 5), np.uint8), np.zeros((0, 6), np.uint8), np.zeros(6, np.uint8)])
def test_shapes_that_are_no_label_map(values):
    with pytest.raises(ValueError, match=r"mask 'm' has shape .*one channel of class ids"):
        decode_label_map(values, THREE, "m")


def test_other_things_that_are_no_label_map():
    with pytest.raises(ValueError, match="not whole numbers"):
        decode_label_map(np.array([[0.5]]), THREE)
    with pytest.raises(ValueError, match="not whole numbers"):
        decode_label_map(np.array([[np.nan]]), THREE)


# Rows


@pytest.mark.parametrize("as_row", [lambda image: image, encoded], ids=["PIL", "bytes"])
def test_row(as_row):
    image, label_map = decode_example({"image": as_row(photo()), "label": as_row(mask())}, THREE)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(photo()))
    assert np.array_equal(label_map, np.asarray(mask()))


def test_row_with_paths(tmp_path):
    photo().save(tmp_path / "a.png")
    mask().save(tmp_path / "b.png")
    row = {
        name: {"path": str(tmp_path / file), "bytes": None}
        for name, file in {"image": "a.png", "label": "b.png"}.items()
    }
    image, label_map = decode_example(row, THREE)
    assert np.array_equal(np.asarray(image), np.asarray(photo()))
    assert np.array_equal(label_map, np.asarray(mask()))


def test_gray_palette_16_bit_and_transparent_images():
    gray = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    expected = np.repeat(gray[..., None], 3, axis=2)
    images = {
        "L": PIL.Image.fromarray(gray),
        "P": PIL.Image.fromarray(gray).convert("RGB").convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=256),
        "I;16": PIL.Image.fromarray(gray.astype(np.uint16) * 257),
        "LA": PIL.Image.merge("LA", [PIL.Image.fromarray(gray), PIL.Image.new("L", (6, 4), 255)]),
    }
    for mode, picture in images.items():
        assert picture.mode == mode
        image, _ = decode_example({"image": encoded(picture), "label": mask()}, THREE)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected), mode
    clear = PIL.Image.new("RGBA", (6, 4), (10, 20, 30, 0))
    image, _ = decode_example({"image": encoded(clear), "label": mask()}, THREE)
    assert (np.asarray(image) == 255).all()


def test_images_of_floating_point_pixels():
    image = PIL.Image.fromarray(np.ones((4, 6), dtype=np.float32))
    row = {"image": encoded(image, "TIFF"), "label": mask(), "name": "depth"}
    with pytest.raises(ValueError, match=r"image 'depth' has floating point pixels.*8 or 16 bit"):
        decode_example(row, THREE)


def test_exif_orientation():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    row = encoded(photo(6, 4), exif=exif)
    expected = np.asarray(photo(6, 4).transpose(PIL.Image.Transpose.ROTATE_270))
    image, _ = decode_example({"image": row, "label": mask()}, THREE)
    assert np.array_equal(np.asarray(image), expected)
    opened = PIL.Image.open(io.BytesIO(row["bytes"]))
    image, _ = decode_example({"image": opened, "label": mask()}, THREE)
    assert np.array_equal(np.asarray(image), expected)
    with pytest.raises(ValueError, match="EXIF"):
        decode_example({"image": row, "label": mask(6, 4)}, THREE)


def test_sizes_that_differ():
    with pytest.raises(ValueError, match=r"mask 'p1' has size \(5, 6\).*image 'p1' has \(4, 6\).*Resize the mask"):
        decode_example({"image": photo(), "label": mask(5, 6), "name": "p1"}, THREE)


@pytest.mark.parametrize("damage", ["truncated", "no image", "empty"])
@pytest.mark.parametrize("which", ["image", "label"])
def test_broken_files(tmp_path, damage, which):
    row = {}
    for column, picture, file in (("image", photo(40, 60), "a.jpg"), ("label", mask(40, 60), "b.png")):
        picture.save(tmp_path / file)
        row[column] = {"path": str(tmp_path / file), "bytes": None}
    path = tmp_path / ("a.jpg" if which == "image" else "b.png")
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "no image": b"hello", "empty": b""}[damage])
    kind = {"image": "image", "label": "mask"}[which]
    with pytest.raises(ValueError, match=f"Cannot read {kind} '.*{path.name}'.*complete image file.*skip_unreadable"):
        decode_example(row, THREE)


def test_broken_bytes_are_called_by_the_name_of_the_row():
    row = {"image": {"bytes": b"hello", "path": "elsewhere.jpg"}, "label": mask(), "name": "train-000007"}
    with pytest.raises(ValueError, match="Cannot read image 'train-000007'"):
        decode_example(row, THREE)


def test_missing_values():
    with pytest.raises(ValueError, match=r"Cannot read image 'n' .*both are None.*complete image file"):
        decode_example({"image": None, "label": mask(), "name": "n"}, THREE)
    with pytest.raises(ValueError, match="Cannot read mask ''"):
        decode_example({"image": photo(), "label": {"bytes": None, "path": None}}, THREE)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read image '.*gone\.png' \(FileNotFoundError"):
        decode_example({"image": {"path": str(tmp_path / "gone.png"), "bytes": None}, "label": mask()}, THREE)


# What is odd about masks


def test_good_masks_raise_no_doubt():
    assert doubt(THREE, [0, 255], [0, 1, 255]) is None
    assert doubt(THREE, [255], [1]) is None
    assert doubt(THREE, [0], [0]) is None, "nothing but background"
    assert doubt(FROM_ONE, [0, 255], [1]) is None
    assert doubt(THREE) is None
    many = {"ignore_index": 999, "classes": [{"id": i, "name": str(i)} for i in range(256)]}
    assert doubt(class_list_from_data(many), [0, 255]) is None, "255 is a class"
    assert doubt(THREE, [0, 255], [7]) is None, "an error where it is read"


def test_black_and_white_masks():
    message = doubt(THREE, [0], [0, 255], [255])
    assert "(3, such as 'row 0') hold only 0 and 255, but class list 'three' has 3 classes" in message
    assert "store the id of the class instead" in message
    assert "only 0 and 255" in doubt(class_list_from_data(["ground", "crack"]), [0, 255])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_remedy_for_black_and_white_masks(mode):
    """What the message says, done as it says."""
    black_and_white = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    rows = [{"label": PIL.Image.fromarray(black_and_white).convert(mode)}]
    message = doubt_about_masks(rows, class_list_from_data(["ground", "crack"]))
    table = json.loads("{" + re.search(r'"label_id_to_train_id": \{[^}]*\}', message)[0] + "}")
    classes = class_list_from_data({"classes": ["ground", "crack"], **table})
    assert doubt_about_masks(rows, classes) is None
    assert decode_label_map(rows[0]["label"], classes).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("entries", "is_doubtful"),
    [
        ({"label_id_to_train_id": {"0": 0, "255": 1}}, False),
        ({"label_id_to_train_id": {"0": 1, "255": 0}}, False),
        ({"label_id_to_train_id": {"0": 0, "255": 255}}, True),
        ({"label_id_to_train_id": {"0": 0, "255": -1}, "ignore_index": 99}, True),
        ({"ignore_index": 99}, False),  # an error where it is read
    ],
)
def test_black_and_white_masks_with_a_table(entries, is_doubtful):
    assert (doubt(class_list_from_data({"classes": ["ground", "crack"], **entries}), [0, 255]) is None) != is_doubtful


def test_error_for_white_names_the_table():
    """Another ignore_index alone does not make 255 a class."""
    classes = class_list_from_data({"classes": ["ground", "crack"], "ignore_index": 254})
    with pytest.raises(ValueError, match=r'label_id_to_train_id": \{"0": 0, "255": 1\}'):
        decode_label_map(np.array([[0, 255]], dtype=np.uint8), classes)


def test_ignored_masks():
    message = doubt(FROM_ONE, [0], [0])
    assert "(2, such as 'row 0') hold only pixels that class list 'custom' ignores" in message
    assert "reduce_labels" in message
    assert "hold only pixels" in doubt(load_class_list("cityscapes"), [0, 1, 2])


def test_a_look_at_good_masks_ends_with_the_first():
    def rows():
        yield {"label": mask()}
        raise AssertionError("a second one was asked for")

    assert doubt_about_masks(rows(), THREE) is None
