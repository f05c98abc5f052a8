# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Kinds of images that both image processors read."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from pictures import CLASSES, blocks, photo, read_pixels
from PIL import Image

from unept_hf.model.image_reading import image_to_tensor, label_map_to_tensor


RGB = photo(16, 32)
GRAY = RGB[..., 0]
ALPHA = np.linspace(0, 255, 16 * 32).astype(np.uint8).reshape(16, 32)
OVER_WHITE = np.round(RGB * (ALPHA[..., None] / 255) + (255.0 - ALPHA[..., None]))
GRAY_OVER_WHITE = np.round(GRAY * (ALPHA / 255) + (255.0 - ALPHA))


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def palette_image(transparent: bool) -> tuple[Image.Image, np.ndarray]:
    indices = np.arange(512, dtype=np.uint8).reshape(16, 32) % 3
    colors = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 250]], np.uint8)
    image = Image.fromarray(indices, mode=None).convert("P")
    image.putdata(indices.flatten().tolist())
    image.putpalette(colors.flatten().tolist())
    if transparent:
        image.info["transparency"] = 1
        colors[1] = 255
    return image, colors[indices]


def test_pil_modes(processor):
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    gray_alpha = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(ALPHA)))
    cmyk = Image.fromarray(RGB).convert("CMYK")
    level = int(GRAY[3, 3])
    transparent_gray = Image.fromarray(GRAY)
    transparent_gray.info["transparency"] = level
    gray_with_hole = np.where(np.equal(GRAY, level), 255, GRAY)
    palette, palette_pixels = palette_image(transparent=False)
    transparent_palette, transparent_palette_pixels = palette_image(transparent=True)
    cases = {
        "RGB": (Image.fromarray(RGB), RGB),
        "L": (Image.fromarray(GRAY), as_rgb(GRAY)),
        "1": (Image.fromarray(GRAY > 100), as_rgb(np.where(GRAY > 100, 255, 0))),
        "CMYK": (cmyk, np.array(cmyk.convert("RGB"))),
        "P": (palette, palette_pixels),
        "P transparent": (transparent_palette, transparent_palette_pixels),
        "RGBA": (rgba, OVER_WHITE),
        "LA": (gray_alpha, as_rgb(GRAY_OVER_WHITE)),
        "L transparent": (transparent_gray, as_rgb(gray_with_hole)),
        "F": (Image.fromarray(GRAY.astype(np.float32) + 0.25), as_rgb(GRAY + 0.25)),
    }
    for mode, (image, expected) in cases.items():
        np.testing.assert_allclose(read_pixels(processor, image), expected, atol=0.51 * ("A" in mode), err_msg=mode)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_arrays(processor, kind, dtype):
    rgb, gray = RGB.astype(dtype), GRAY.astype(dtype)
    expected, expected_gray = (RGB, as_rgb(GRAY)) if dtype != "bool" else (255 * (RGB > 0), 255 * as_rgb(GRAY > 0))
    assert np.array_equal(read_pixels(processor, kind(rgb)), expected)
    assert np.array_equal(read_pixels(processor, kind(rgb.transpose(2, 0, 1).copy())), expected)
    assert np.array_equal(read_pixels(processor, kind(gray)), expected_gray)
    assert np.array_equal(read_pixels(processor, kind(gray[None])), expected_gray)
    assert np.array_equal(read_pixels(processor, kind(gray[..., None])), expected_gray)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_rgba_arrays(processor, kind):
    rgba = np.dstack([RGB, ALPHA])
    np.testing.assert_allclose(read_pixels(processor, kind(rgba)), OVER_WHITE, atol=0.51)
    np.testing.assert_allclose(read_pixels(processor, kind(rgba.astype(np.float32))), OVER_WHITE, atol=0.01 + 0.5)
    scaled = read_pixels(processor, kind((rgba / 255).astype(np.float32)))
    np.testing.assert_allclose(255 * scaled, OVER_WHITE, atol=0.51)


def test_alpha_is_the_same_from_pil_and_from_arrays():
    rgba = np.dstack([RGB, ALPHA])
    pixels = [
        read_pixels(backend(), image)
        for backend in CLASSES.values()
        for image in (rgba, Image.fromarray(rgba), torch.from_numpy(rgba))
    ]
    assert all(np.array_equal(one, pixels[0]) for one in pixels)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "uint16", "int32", "tensor"])
def test_16_bit_is_scaled(processor, mode):
    values = (GRAY.astype(np.uint16) * 257)[..., None]
    if mode.startswith("I"):
        dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode]
        image = Image.frombytes(mode, (32, 16), values.astype(dtype).tobytes())
    elif mode == "tensor":
        image = torch.from_numpy(values)
    else:
        image = values.astype(mode)
    assert np.array_equal(read_pixels(processor, image), as_rgb(GRAY))


def test_16_bit_rounds(processor):
    values = np.array([[0, 128, 129, 257, 65406, 65407, 65535]], np.uint16)
    assert read_pixels(processor, values)[0, :, 0].tolist() == [0, 0, 1, 1, 254, 255, 255]


def test_exif_orientation(processor, tmp_path):
    stored = np.rot90(RGB, 1).copy()  # the camera lay on its side: orientation 6 turns it clockwise by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(np.rot90(blocks(16, 32), 1).copy()).save(tmp_path / "map.png", exif=exif)
    with Image.open(tmp_path / "image.png") as image, Image.open(tmp_path / "map.png") as label_map:
        assert image.size == (16, 32)
        assert np.array_equal(read_pixels(processor, image), RGB)
        labels = processor(image, label_map, do_resize=False, return_tensors="pt")["labels"]
    assert np.array_equal(labels[0], blocks(16, 32))


def test_files(processor, tmp_path):
    palette, _ = palette_image(transparent=False)
    palette.save(tmp_path / "map.png")
    Image.fromarray(np.dstack([RGB, ALPHA])).save(tmp_path / "image.png")
    np.testing.assert_allclose(read_pixels(processor, tmp_path / "image.png"), OVER_WHITE, atol=0.51)
    np.testing.assert_allclose(read_pixels(processor, str(tmp_path / "image.png")), OVER_WHITE, atol=0.51)
    inputs = processor([tmp_path / "image.png"], [tmp_path / "map.png"], do_resize=False, return_tensors="pt")
    assert inputs["labels"].unique().tolist() == [0, 1, 2]


def test_paths_are_read_like_opened_images(tmp_path):
    palette, colors = palette_image(transparent=False)
    palette.save(tmp_path / "map.png")
    for path in (tmp_path / "map.png", str(tmp_path / "map.png")):
        assert np.array_equal(image_to_tensor(path).permute(1, 2, 0), colors)
        assert np.array_equal(label_map_to_tensor(path, (16, 32)), np.asarray(palette))
    (tmp_path / "broken.png").write_bytes(b"no image")
    for read in (image_to_tensor, partial(label_map_to_tensor, image_size=(16, 32))):
        with pytest.raises(OSError, match=r"broken\.png cannot be read: it is not an image"):
            read(tmp_path / "broken.png")


def test_odd_memory_layouts(processor):
    read_only = RGB.copy()
    read_only.flags.writeable = False
    assert np.array_equal(read_pixels(processor, read_only), RGB)
    assert np.array_equal(read_pixels(processor, RGB[:, ::-1]), RGB[:, ::-1])
    assert np.array_equal(read_pixels(processor, (GRAY.astype(np.uint16) * 257).astype(">u2")), as_rgb(GRAY))
    assert np.array_equal(read_pixels(processor, torch.from_numpy(RGB).expand(16, 32, 3)), RGB)


def test_batches(processor):
    batch = np.stack([photo(32, 48, seed) for seed in range(3)])
    expected = processor(list(batch), return_tensors="pt")["pixel_values"]
    for images in (batch, torch.from_numpy(batch), batch.transpose(0, 3, 1, 2), [batch[:1], batch[1:]]):
        assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)
    images = [Image.fromarray(batch[0]), batch[1], torch.from_numpy(batch[2]).permute(2, 0, 1)]
    assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)
    assert torch.equal(processor([images[:1], images[1:]], return_tensors="pt")["pixel_values"], expected)


def test_channels_without_conversion(processor):
    gray = processor(GRAY, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], return_tensors="pt")
    assert gray["pixel_values"].shape == (1, 1, 32, 64)
    kwargs = {"do_convert_rgb": False, "do_resize": False, "do_rescale": False, "do_normalize": False}
    rgba = np.dstack([RGB, ALPHA])
    assert np.array_equal(read_pixels(processor, rgba, **kwargs), rgba)
    with pytest.raises(ValueError, match=r"\[1\] channels, and image_mean and image_std have \[3\]"):
        processor(GRAY, do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"\[1, 3\] channels.*do_convert_rgb=True"):
        processor([GRAY, RGB], do_convert_rgb=False)


def test_ambiguous_layout_can_be_named(processor):
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    assert read_pixels(processor, pixel, input_data_format="channels_last").tolist() == [[[10, 20, 30]]]
    assert read_pixels(processor, pixel.transpose(2, 0, 1)).tolist() == [[[10, 20, 30]]]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((8, 8, 3), np.nan, np.float32), r"images\[0\] holds values in \[nan, nan\]"),
        (np.full((8, 8, 3), 765.0), r"images\[0\] holds floating point numbers in \[765, 765\]"),
        ([RGB, np.full((8, 8, 3), np.inf)], r"images\[1\] holds values in \[inf, inf\]"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\).*channels"),
        (torch.zeros(5, 8, 8), r"\(5, 8, 8\).*channels"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), r"\(2, 2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), "sides of 1 to"),
        (torch.zeros(3, 8, 0), "sides of 1 to"),
        (Image.new("RGB", (0, 8)), "sides of 1 to"),
        ([], "no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
        (np.full((8, 8), -1), r"\[-1, -1\]"),
        (np.full((8, 8), 70000), r"\[70000, 70000\]"),
        (np.full((8, 8, 4), 300.0), "alpha"),
        (np.dstack([np.full((8, 8, 3), -2.1), np.ones((8, 8))]), r"\[-2.1, 1\].* colors and the alpha channel"),
    ],
)
def test_images_that_are_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


@pytest.mark.parametrize("images", [None, [1, 2], object()])
def test_what_is_no_image(processor, images):
    with pytest.raises(TypeError, match="pass a PIL image"):
        processor(images)


def test_channels_must_be_at_the_named_side(processor):
    with pytest.raises(ValueError, match="channels_first"):
        processor(RGB, input_data_format="channels_first")


def test_rescaling_twice_warns_once(processor, caplog):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            processor([RGB / 255, RGB / 255])
    assert [record.getMessage() for record in caplog.records if "do_rescale=False" in record.getMessage()] != []
    assert sum("do_rescale=False" in record.getMessage() for record in caplog.records) == 1

    logging.Logger.warning_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        processor([RGB, RGB.astype(np.float32), np.zeros((8, 8), np.float32)])
        scaled = processor(RGB / 255, do_rescale=False, return_tensors="pt")
    assert not caplog.records
    expected = processor(RGB.astype(np.float32), return_tensors="pt")
    torch.testing.assert_close(scaled["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("low", "high", "rescale", "normalize"),
    [
        (-2.12, 2.64, True, True),
        (-2.12, 2.64, False, True),  # would be normalized twice
        (-2.12, 2.64, True, False),
        (-1, 1, True, True),
        (-0.1, 2.64, True, True),  # a bright image
        (-2.12, -0.5, True, True),  # a dark one
        (-0.01, 1, False, True),
        (-1, 200, True, True),
        (0, 257, True, True),
        (0, 4095, True, True),
        (0, 4095, False, True),
    ],
)
def test_numbers_that_cannot_be_pixels(processor, low, high, rescale, normalize):
    image = np.interp(RGB, (RGB.min(), RGB.max()), (low, high)).astype(np.float32)
    for kind in (np.asarray, torch.from_numpy, lambda array: Image.fromarray(array.reshape(16, -1))):
        with pytest.raises(ValueError, match=r"images\[0\] holds .* pass do_rescale=False and do_normalize=False"):
            processor(kind(image), do_rescale=rescale, do_normalize=normalize)
    kwargs = {"do_rescale": False, "do_normalize": False, "do_resize": False}
    assert np.array_equal(read_pixels(processor, image, **kwargs), image)


def test_numbers_that_can_be_pixels(processor, caplog):
    """A little overshoot is clipped, and 1 / rescale_factor is the maximum where it is more than 255."""
    logging.Logger.warning_once.cache_clear()
    image = RGB.astype(np.float32)
    kwargs = {"do_normalize": True, "image_mean": 0.0, "image_std": 1.0, "do_rescale": True}
    expected = read_pixels(processor, image, **kwargs)
    over = image.copy()
    over[0, 0], over[0, 1] = -0.2, 255.2
    clipped = image.copy()
    clipped[0, 0], clipped[0, 1] = 0, 255
    np.testing.assert_allclose(read_pixels(processor, over, **kwargs), clipped / 255, atol=1e-6)
    wide = read_pixels(processor, image * 257, rescale_factor=1 / 65535, **kwargs)
    np.testing.assert_allclose(wide, expected, atol=1e-5)
    scaled = read_pixels(processor, image / 255 - np.float32(1e-3) * (image == 0), **kwargs | {"do_rescale": False})
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    assert not caplog.records


def test_bright_normalized_images_warn(processor, caplog):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        processor(((RGB / 255 - 0.45) / 0.225).clip(0))
    assert "do_normalize=False" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, "I;16"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_than_16_bits_warn(processor, caplog, bits, dtype):
    values = np.linspace(0, 2**bits - 1, 16 * 32).astype(np.uint16).reshape(16, 32)
    image = Image.fromarray(values) if dtype == "I;16" else values.astype(dtype)
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        processor(image)
    if bits == 16 or (bits == 8 and dtype == np.int32):  # eight bits in a type that says nothing are eight bits
        assert not caplog.records
    else:
        assert f"has {bits} bits, shift it to the left by {16 - bits}: image << {16 - bits}" in caplog.text
        pixels = read_pixels(processor, values << (16 - bits))
        assert np.abs(pixels[..., 0] - values / (2**bits - 1) * 255).max() <= 1.01


def test_dark_images_of_16_bits_do_not_warn(processor, caplog):
    """8 bits that were stretched to 16, and 14, 12 or 10 that were shifted, are what they seem to be."""
    logging.Logger.warning_once.cache_clear()
    dark = (GRAY // 16).astype(np.uint16)
    with caplog.at_level(logging.WARNING):
        for image in (dark * 257, dark << 6, dark * 0):
            processor(image)
    assert not caplog.records
