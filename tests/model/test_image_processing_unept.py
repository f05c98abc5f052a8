# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Both image processors, and the post-processing that they share."""

import json
import logging
import math
import subprocess
import sys
import textwrap
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor
from transformers.image_utils import ChannelDimension
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import TensorType

import unept_hf
from unept_hf.model import boundary, post_processing_unept
from unept_hf.model.boundary import DIRECTIONS, boundary_targets
from unept_hf.model.configuration_unept import UneptConfig
from unept_hf.model.image_processing_pil_unept import UneptImageProcessorPil
from unept_hf.model.image_processing_unept import UneptImageProcessor
from unept_hf.model.image_reading import image_to_tensor, label_map_to_tensor
from unept_hf.model.post_processing_unept import post_process_semantic_segmentation


CLASSES = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}
MEAN, STD = (torch.tensor(getattr(UneptImageProcessor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))


@pytest.fixture(params=list(CLASSES))
def processor(request):
    """A processor of each backend, with small images so that tests are quick."""
    return CLASSES[request.param](size={"shortest_edge": 32, "longest_edge": 128})


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth uint8 RGB image, `(height, width, 3)`."""
    rows, columns = np.mgrid[:height, :width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    return (127.5 + 120 * np.sin(rows[..., None] / 9 + columns[..., None] / 14 + phases)).astype(np.uint8)


def blocks(height: int, width: int) -> np.ndarray:
    """A uint8 label map of four classes in four corners, with a stripe of unlabeled pixels."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] += 1
    labels[:, width // 2 :] += 2
    labels[height // 4] = 255
    return labels


def read_pixels(processor, image, **kwargs) -> np.ndarray:
    """What the processor makes of an image before resizing and normalizing: `(height, width, 3)`, without padding."""
    kwargs = {"do_resize": False, "do_rescale": False, "do_normalize": False, **kwargs}
    inputs = processor(image, return_tensors="pt", **kwargs)
    assert inputs["pixel_values"].dtype == torch.float32
    height, width = inputs["image_sizes"][0]
    return inputs["pixel_values"][0, :, :height, :width].permute(1, 2, 0).numpy()


# --- Sizes, padding, normalization


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((480, 640), (512, 688)),  # 682.7 is nearer to 43 * 16 than to 42 * 16
        ((1024, 2048), (512, 1024)),
        ((333, 501), (512, 768)),
        ((1, 1), (512, 512)),
        ((1, 10000), (16, 2048)),
        ((10000, 1), (2048, 16)),
        ((100, 1000), (208, 2048)),
    ],
)
@pytest.mark.parametrize("backend", CLASSES)
def test_default_size(backend, size, expected):
    inputs = CLASSES[backend]()(Image.new("RGB", size[::-1]), return_tensors="pt")
    assert tuple(inputs["pixel_values"].shape) == (1, 3, *expected)
    assert inputs["image_sizes"].tolist() == [list(expected)]


def test_size_keeps_divisor_and_longest_edge():
    rng = np.random.default_rng(0)
    processor = UneptImageProcessor(size={"shortest_edge": 40, "longest_edge": 100}, size_divisor=8)
    for height, width in rng.integers(1, 300, (50, 2)):
        sides = processor(np.zeros((3, height, width), np.uint8), input_data_format="channels_first")["image_sizes"][0]
        scale = min(40 / min(height, width), 100 / max(height, width))
        assert all(side % 8 == 0 for side in sides)
        assert max(sides) <= 96  # the last multiple within the longest edge
        for side, length in zip(sides, (height, width)):
            assert abs(side - min(max(length * scale, 8), 96)) <= 4 + 1e-6


def test_size_given_otherwise(processor):
    image = photo(30, 50)
    assert processor(image, size={"height": 64, "width": 32})["image_sizes"] == [(64, 32)]
    assert processor(image, size={"shortest_edge": 48})["image_sizes"] == [(48, 80)]
    assert processor(image, size=48)["image_sizes"] == [(48, 80)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": {"height": 500, "width": 512}}, r"(?s)'height': 500.*size_divisor=16"),
        ({"size": {"longest_edge": 512}}, r"^size={'longest_edge': 512} is not supported: pass {'height', 'width'}"),
        ({"size": {"shortest_edge": 8, "longest_edge": 10}}, "^size.*not supported.*of at least 16"),
        ({"size_divisor": 0}, "^size_divisor=0 is not supported: pass a whole number from 1"),
        ({"do_center_crop": True, "crop_size": 16}, "do_center_crop"),
        ({"pad_size": {"height": 100, "width": 128}}, "pad_size.*size_divisor=16"),
        ({"pad_size": {"height": 16, "width": 128}}, "pad_size.*larger"),
        ({"pad_size": {"shortest_edge": 96}}, "pad_size.*pass {'height', 'width'}"),
    ],
)
def test_arguments_that_are_not_supported(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor(photo(20, 40), **kwargs)


def test_normalization(processor):
    image = np.full((32, 32, 3), (10, 128, 255), np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.dtype == torch.float32
    expected = (torch.tensor([10, 128, 255])[:, None, None] / 255 - MEAN) / STD
    torch.testing.assert_close(pixels[0], expected.expand(3, 32, 32))
    pixels = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0], torch.tensor([10, 128, 255])[:, None, None].expand(3, 32, 32) / 255)


def test_padding(processor):
    images, maps = [photo(32, 64), photo(96, 32)], [blocks(32, 64), blocks(96, 32)]
    inputs = processor(images, maps, return_tensors="pt")
    assert inputs["image_sizes"].dtype == torch.int64
    assert inputs["image_sizes"].tolist() == [[32, 64], [96, 32]]
    assert inputs["pixel_values"].shape == (2, 3, 96, 64)
    assert inputs["labels"].shape == (2, 96, 64)
    assert inputs["labels"].dtype == torch.int64
    for index, (height, width) in enumerate(inputs["image_sizes"]):
        alone = processor(images[index], maps[index], return_tensors="pt")
        assert torch.equal(inputs["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        assert torch.equal(inputs["labels"][index, :height, :width], alone["labels"][0])
        padding = torch.ones(96, 64, dtype=torch.bool)
        padding[:height, :width] = False
        assert not inputs["pixel_values"][index, :, padding].any()
        assert (inputs["labels"][index, padding] == 255).all()


def test_pad_size(processor):
    inputs = processor(photo(32, 64), pad_size={"height": 48, "width": 128}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 48, 128)
    assert inputs["image_sizes"].tolist() == [[32, 64]]


def test_without_resize_sides_are_padded_to_the_divisor(processor):
    inputs = processor([photo(20, 33), photo(17, 7)], do_resize=False, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 32, 48)
    assert inputs["image_sizes"].tolist() == [[20, 33], [17, 7]]


def test_without_padding(processor):
    images = [photo(32, 64), photo(64, 32)]
    inputs = processor(images, [blocks(32, 64), blocks(64, 32)], do_pad=False)
    assert [image.shape for image in inputs["pixel_values"]] == [(3, 32, 64), (3, 64, 32)]
    assert [labels.shape for labels in inputs["labels"]] == [(32, 64), (64, 32)]
    with pytest.raises(ValueError, match="padding"):
        processor(images, do_pad=False, return_tensors="pt")
    assert processor(images[:1] * 2, do_pad=False, return_tensors="pt")["pixel_values"].shape == (2, 3, 32, 64)


def test_return_types(processor):
    inputs = processor(photo(40, 60), blocks(40, 60))
    kind = torch.Tensor if isinstance(processor, UneptImageProcessor) else np.ndarray
    assert isinstance(inputs["pixel_values"][0], kind)
    assert isinstance(inputs["labels"][0], kind)
    arrays = processor(photo(40, 60), blocks(40, 60), return_tensors="np")
    assert {name: (value.shape, str(value.dtype)) for name, value in arrays.items()} == {
        "pixel_values": ((1, 3, 32, 48), "float32"),
        "image_sizes": ((1, 2), "int64"),
        "labels": ((1, 32, 48), "int64"),
    }


def test_input_is_left_alone(processor):
    image, labels = photo(32, 32).astype(np.float32), blocks(32, 32).astype(np.int64)
    copies = image.copy(), labels.copy()
    processor(image, labels, do_reduce_labels=True, do_resize=False, do_rescale=False)
    assert np.array_equal(image, copies[0])
    assert np.array_equal(labels, copies[1])


# --- Kinds of images

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


# --- Label maps


def test_labels_are_resized_to_the_nearest(processor):
    labels = torch.randint(0, 5000, (75, 50), generator=torch.manual_seed(0))
    inputs = processor(photo(75, 50), labels, return_tensors="pt")
    expected = F.interpolate(labels[None, None].double(), (48, 32), mode="nearest-exact")[0].long()
    assert torch.equal(inputs["labels"], expected)


def test_kinds_of_label_maps(processor):
    image, labels = photo(16, 32), blocks(16, 32)
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.flatten().tolist())
    kinds = [
        labels,
        labels.astype(np.int32),
        labels.astype(np.float64),
        labels.astype(np.uint16),
        torch.from_numpy(labels),
        Image.fromarray(labels),
        Image.fromarray(labels.astype(np.uint16)),
        Image.fromarray(labels.astype(np.int32)),
        palette,
        labels[None],
        labels[..., None],
        labels[None, None],
        [labels],
    ]
    for label_map in kinds:
        inputs = processor(image, label_map, do_resize=False, return_tensors="pt")
        assert inputs["labels"].dtype == torch.int64
        assert np.array_equal(inputs["labels"][0], labels)
    binary = processor(image, Image.fromarray(labels > 0), do_resize=False, return_tensors="pt")
    assert np.array_equal(binary["labels"][0], labels > 0)
    for batch in (np.stack([labels] * 3), torch.from_numpy(np.stack([labels] * 3)), [palette] * 3):
        inputs = processor([image] * 3, batch, do_resize=False, return_tensors="pt")
        assert np.array_equal(inputs["labels"], np.stack([labels] * 3))


def test_reduce_labels(processor):
    labels = np.zeros((16, 16), np.uint8)
    labels[0, :5] = [0, 1, 2, 150, 255]
    inputs = processor(photo(16, 16), labels, do_resize=False, do_reduce_labels=True, return_tensors="pt")
    assert inputs["labels"][0, 0, :5].tolist() == [255, 0, 1, 149, 255]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((16, 31), int), r"\(16, 31\).*\(16, 32\)"),
        (Image.new("L", (16, 32)), r"\(32, 16\).*\(16, 32\)"),
        ([np.zeros((16, 32), int)] * 2, "2 segmentation maps for 1 images"),
        ([], "0 segmentation maps"),
        (np.zeros((16, 32, 3), np.uint8), "RGB"),
        (torch.zeros(3, 16, 32, dtype=torch.uint8), "RGB"),
        (Image.new("RGB", (32, 16)), "RGB"),
        ([Image.new("RGBA", (32, 16))], "RGB"),
        (np.full((16, 32), 0.5), "label 0.5"),
        (np.full((16, 32), np.nan), "label nan"),
        (np.full((16, 32), -1), "label -1.*ignore_index=255"),
    ],
)
def test_label_maps_that_are_refused(processor, maps, message):
    with pytest.raises(ValueError, match=message):
        processor(photo(16, 32), maps)


def test_boundary_targets_come_from_before_the_padding(processor):
    pytest.importorskip("edt")
    maps = [blocks(32, 64), blocks(64, 48)]
    inputs = processor(
        [photo(*labels.shape) for labels in maps], maps, do_resize=False, do_boundary_targets=True, return_tensors="pt"
    )
    for index, labels in enumerate(maps):
        height, width = labels.shape
        for name, target in zip(("boundary_map", "direction_map"), boundary_targets(torch.from_numpy(labels).long())):
            assert inputs[name].dtype == torch.int64
            assert inputs[name].shape == (2, 64, 64)
            expected = F.pad(target, (0, 64 - width, 0, 64 - height), value=255)
            assert torch.equal(inputs[name][index], expected)


def test_edt_is_needed_for_boundary_targets_only(processor, monkeypatch):
    monkeypatch.setattr(boundary, "edt", None)
    assert "boundary_map" not in processor(photo(16, 16), blocks(16, 16))
    assert "labels" not in processor(photo(16, 16), do_boundary_targets=True)
    with pytest.raises(ImportError, match="edt"):
        processor(photo(16, 16), blocks(16, 16), do_boundary_targets=True)


# --- The two backends, files and processes


@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint16"])
def test_backends_agree(dtype):
    pytest.importorskip("edt")
    images = [photo(97, 150, 1), photo(300, 211, 2), photo(5, 3, 3)]
    maps = [blocks(*image.shape[:2]) for image in images]
    if dtype != "uint8":
        images = [(image * (257.0 if dtype == "uint16" else 1.0) + 0.4).astype(dtype) for image in images]
    kwargs = {"size": {"shortest_edge": 64, "longest_edge": 160}, "do_boundary_targets": True, "return_tensors": "pt"}
    inputs = [backend()(images, maps, **kwargs) for backend in CLASSES.values()]
    assert inputs[0].keys() == inputs[1].keys()
    for name in inputs[0].keys() - {"pixel_values"}:
        assert torch.equal(inputs[0][name], inputs[1][name])
    pixels = [one["pixel_values"] for one in inputs]
    torch.testing.assert_close(*pixels, atol=1e-1 if dtype != "float32" else 1e-4, rtol=1e-3)
    assert (pixels[0] - pixels[1]).abs().mean() <= 5e-3


NOISE = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)
PICTURES = {"smooth": photo(45, 61), "noise": NOISE, "enlarged": NOISE[:9, :13], "float": NOISE.astype(np.float32)}
PICTURES |= {"rgba": np.dstack([NOISE, photo(45, 61)[..., 0]]), "gray": NOISE[..., 0]}
FILTERS = list(Image.Resampling)

# What may be given for each option, and what may not.
GOOD = {
    "do_resize": [True, False, None],
    "size": [
        48, (48, 64), [48, 64], {"height": 48, "width": 64}, {"shortest_edge": 48},
        {"shortest_edge": 48, "longest_edge": 64}, {"shortest_edge": 64, "longest_edge": 48},
    ],
    "default_to_square": [True, False, None],
    "resample": [*FILTERS, *map(int, FILTERS), InterpolationMode.BICUBIC],
    "do_rescale": [True],
    "rescale_factor": [1 / 255, 1 / 300, 1e-30],
    "do_normalize": [True, False, None],
    "image_mean": [0.5, [0.1, 0.2, 0.3], (0.1, 0.2, 0.3), -0.5],
    "image_std": [0.5, [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)],
    "do_pad": [True],
    "pad_size": [96, (96, 112), {"height": 96, "width": 112}, None],
    "size_divisor": [1, 8, 16],
    "do_center_crop": [False, None],
    "crop_size": [16, {"height": 16, "width": 16}, None],
    "do_convert_rgb": [True],
    "do_reduce_labels": [True, False, None],
    "ignore_index": [255, 0, -100, 300],
    "do_boundary_targets": [True, False, None],
    "data_format": ["channels_first", ChannelDimension.FIRST, None],
    "input_data_format": ["channels_last", ChannelDimension.LAST, None],
    "return_tensors": ["pt", "np", None, TensorType.PYTORCH, TensorType.NUMPY],
    "device": ["cpu", torch.device("cpu"), None],
    "disable_grouping": [True, False, None],
    "image_seq_length": [3, None],
}  # fmt: skip
BAD = {
    "do_resize": ["yes"],
    "size": [
        0, -16, True, 48.0, "48", None, (64,), (32, 48, 64), (48.0, 64.0), {}, {"foo": 3}, {"height": 48},
        {"height": 0, "width": 16}, {"height": -16, "width": 16}, {"height": 48.0, "width": 64.0},
        {"shortest_edge": -48}, {"shortest_edge": 48.5}, {"shortest_edge": 48, "longest_edge": 0},
        {"longest_edge": 64}, {"max_height": 48, "max_width": 64}, {"min_pixels": 1000, "max_pixels": 4000},
    ],
    "resample": [-1, 99, None, "bilinear", [2], InterpolationMode.NEAREST],
    "do_rescale": ["yes"],
    "rescale_factor": [0.0, -1.0, math.inf, math.nan, None, "x", [1.0], 10**309],
    "do_normalize": ["yes"],
    "image_mean": [[], [0.1, 0.2], [0.5], math.nan, [math.inf] * 3, None, "x", [[0.1, 0.2, 0.3]]],
    "image_std": [[], [0.1, 0.2], [0.5], math.nan, [math.inf] * 3, None, "x", 0.0, [0.0, 1.0, 1.0], -0.5],
    "do_pad": ["yes"],
    "pad_size": [0, -16, 97, (96, 112, 3), {"height": 96}, {"shortest_edge": 96}, {"height": 96.0, "width": 112}],
    "size_divisor": [0, -1, 1.5, None, "16"],
    "do_center_crop": [True],
    "crop_size": ["x", (1, 2, 3)],
    "do_convert_rgb": ["yes"],
    "do_reduce_labels": ["yes"],
    "ignore_index": [1.5, "x", None],
    "do_boundary_targets": ["yes"],
    "data_format": ["channels_last", ChannelDimension.LAST, "first", 3],
    "input_data_format": ["first", "none", 3],
    "return_tensors": ["tf", "mlx", 1],
    "device": ["gpu", "cuda:99", "cuda:-1", -1],
    "disable_grouping": ["yes"],
    "default_to_square": ["yes"],
    "image_seq_length": ["x"],
}  # fmt: skip
# Options that are also checked if a class or its file gives them.
ALWAYS_CHECKED = {
    "size", "resample", "rescale_factor", "image_mean", "image_std", "pad_size", "crop_size", "size_divisor",
    "ignore_index", "data_format", "input_data_format", "do_center_crop", "device",
}  # fmt: skip


def pairs_of(options: dict[str, list]):
    return [pytest.param(name, value, id=f"{name}-{value}") for name, values in options.items() for value in values]


def assert_backends_agree(pictures, options: dict, of_class: dict | None = None, tolerance: float = 0.05):
    """Compares what both image processors make of pictures, one after the other, on the scale of the results."""
    options = {"return_tensors": "pt"} | options
    size = {"size": {"shortest_edge": 32, "longest_edge": 128}} | (of_class or {})
    processors = [backend(**size) for backend in CLASSES.values()]
    for name in pictures:
        picture = PICTURES[name]
        labels = blocks(*picture.shape[:2])
        inputs, others = (processor(picture, labels, **options) for processor in processors)
        assert inputs.keys() == others.keys()
        for key, values in inputs.items():
            for value, other in zip(values, others[key]):
                value, other = torch.as_tensor(value), torch.as_tensor(other)
                assert value.shape == other.shape and value.dtype == other.dtype, (name, key)
                atol = tolerance if key == "pixel_values" else 0
                assert value.isfinite().all(), (name, key)
                assert (value - other).abs().max() <= atol, (name, key)


def test_every_option_is_compared():
    assert GOOD.keys() == BAD.keys() == UneptImageProcessor.valid_kwargs.__annotations__.keys()


@pytest.mark.parametrize(("name", "value"), pairs_of(GOOD))
def test_options_mean_the_same(name, value):
    pytest.importorskip("edt")
    pictures = ["smooth"] if name in ("data_format", "input_data_format") else PICTURES
    pictures = [one for one in pictures if name != "input_data_format" or PICTURES[one].ndim == 3]
    assert_backends_agree(pictures, {name: value})
    if value is not None and name not in ("return_tensors", "device"):
        assert_backends_agree(pictures, {}, {name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False},
        {"do_rescale": None},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1.0, "do_normalize": False},
        {"rescale_factor": 2.0, "image_mean": 100.0, "image_std": 3.0},
        {"do_rescale": False, "rescale_factor": None},
        {"do_normalize": False, "image_mean": None, "image_std": None},
    ],
    ids=str,
)
def test_options_mean_the_same_on_the_scale_of_8_bits(options):
    """Where pixels are not rescaled, the rounding of one is as large as their unit in the results."""
    unit = options.get("rescale_factor") or 1.0
    std = 1.0 if options.get("do_normalize") is False else np.min(options.get("image_std", 0.224))
    assert_backends_agree(PICTURES, options, tolerance=1.05 * unit / std)


@pytest.mark.parametrize(
    "options", [{"rescale_factor": 2}, {"image_mean": [1, 2, 3]}, {"image_std": [1, 2, 3]}], ids=str
)
def test_whole_numbers_of_a_file(options):
    """Configurations hold 1 for 1.0."""
    floats = {name: float(it) if isinstance(it, int) else [*map(float, it)] for name, it in options.items()}
    for backend in CLASSES.values():
        pixels, expected = (
            backend(**each, do_resize=False)(RGB, return_tensors="pt")["pixel_values"] for each in (options, floats)
        )
        assert torch.equal(pixels, expected)


def test_numbers_in_arrays():
    for kind in (np.array, torch.tensor):
        assert_backends_agree(["noise"], {}, {"image_mean": kind([0.1, 0.2, 0.3]), "image_std": kind([0.5, 0.6, 0.7])})


@pytest.mark.parametrize(("name", "value"), pairs_of(BAD))
def test_bad_options_are_refused_alike(name, value):
    def refuse(make, options):
        with pytest.raises(ValueError) as caught:
            make()("there is no such file", **{"return_tensors": "pt"} | options)
        return str(caught.value)

    messages = {refuse(backend, {name: value}) for backend in CLASSES.values()}
    assert len(messages) == 1
    if name in ALWAYS_CHECKED and value is not None:  # which stands for the default there
        assert len({refuse(partial(backend, **{name: value}), {}) for backend in CLASSES.values()}) == 1


def test_numpy_arrays_are_on_no_device():
    for backend in CLASSES.values():
        with pytest.raises(ValueError, match="return_tensors='pt'"):
            backend()("there is no such file", device="meta", return_tensors="np")


@pytest.mark.slow
@settings(deadline=None, max_examples=500, derandomize=True)
@given(data=st.data())
def test_combined_options_mean_the_same(data):
    options = {}
    for name, values in GOOD.items():
        values = [value for value in values if value is not None or name in ("pad_size", "crop_size")]
        if data.draw(st.booleans()):
            options[name] = data.draw(st.sampled_from(values), label=name)
    if options.get("do_resize", True) and options.get("size_divisor") == 1:
        options.pop("pad_size", None)
    name = data.draw(st.sampled_from(["smooth", "noise", "enlarged", "float", "rgba"]))
    std = np.min(options.get("image_std", 0.224)) if options.get("do_normalize", True) else 1.0
    assert_backends_agree([name], options, tolerance=max(0.05, 1.05 * options.get("rescale_factor", 1 / 255) / std))


def test_grouping_changes_nothing():
    images = [photo(40, 60, 1), photo(60, 40, 2), photo(40, 60, 3)]
    processor = UneptImageProcessor(size={"shortest_edge": 32})
    grouped, alone = (processor(images, disable_grouping=off, return_tensors="pt") for off in (False, True))
    torch.testing.assert_close(grouped["pixel_values"], alone["pixel_values"])


def test_devices():
    """Everything goes to `device`. The meta device stands for an accelerator where there is none."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    for backend in CLASSES.values():
        inputs = backend()(
            photo(32, 32), blocks(32, 32), do_resize=device == "cuda", device=device, return_tensors="pt"
        )
        assert {value.device.type for value in inputs.values()} == {device}


@pytest.mark.parametrize("backend", CLASSES)
def test_save_and_load(backend, tmp_path):
    AutoImageProcessor.register(UneptConfig, image_processor_classes=CLASSES, exist_ok=True)
    kwargs = {"size": {"height": 64, "width": 32}, "size_divisor": 32, "do_reduce_labels": True, "do_pad": False}
    processor = CLASSES[backend](**kwargs, do_boundary_targets=True, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    for other in CLASSES:
        for loaded in (
            CLASSES[other].from_pretrained(tmp_path),
            AutoImageProcessor.from_pretrained(tmp_path, backend=other),
        ):
            assert type(loaded) is CLASSES[other]
            assert loaded.backend == other
            assert loaded.to_dict() == processor.to_dict()
            assert loaded.size_divisor == 32
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is UneptImageProcessor
    changed = CLASSES[backend].from_pretrained(tmp_path, size={"shortest_edge": 96}, do_pad=True)
    assert changed(photo(30, 30))["image_sizes"] == [(96, 96)]


@pytest.fixture(scope="module")
def alone() -> dict:
    """
    The findings of a process without torchvision, in which `unept_hf` is a package without `__init__`, which
    would need torchvision, and its memory would blur the measurement.
    """
    script = f"""
    import json, resource, sys, types
    package = types.ModuleType("unept_hf")
    package.__path__ = {list(unept_hf.__path__)!r}
    sys.modules["unept_hf"] = package
    sys.modules["torchvision"] = None
    import numpy as np
    import torch
    from unept_hf.model.image_processing_pil_unept import UneptImageProcessorPil
    from unept_hf.model.image_processing_unept import UneptImageProcessor
    image = np.zeros((20, 30, 3), np.uint8)
    found = dict(labels=UneptImageProcessorPil()(image, image[..., 0], return_tensors="pt")["labels"].shape)
    try:
        UneptImageProcessor()
    except ImportError as error:
        found["error"] = str(error)
    def peak_megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outputs = dict(logits=torch.randn(1, 150, 128, 256))
    post_process = UneptImageProcessorPil.post_process_semantic_segmentation
    post_process(outputs, [(64, 64)])
    before = peak_megabytes()
    found["large"] = post_process(outputs, [(1024, 2048)])[0].shape
    found["megabytes"] = peak_megabytes() - before
    print(json.dumps(found))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_without_torchvision(alone):
    assert alone["labels"] == [1, 512, 768]
    assert "torchvision" in alone["error"].lower()


# --- Post-processing


def outputs_of(logits, **kwargs) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, **kwargs)


def sample_bilinear(logits: np.ndarray, size: tuple[float, float], target_size: tuple[int, int], stride: int):
    """Oracle: logits `(channels, height, width)` read at the centers of the target's pixels, in float64."""
    for axis, (length, target) in enumerate(zip(size, target_size), start=1):
        cells = -(-length // stride)
        position = np.clip((np.arange(target) + 0.5) * length / target / stride - 0.5, 0, None)
        lower = position.astype(int)
        upper = np.minimum(lower + 1, cells - 1)
        weight = (position - lower).reshape(-1, *[1] * (2 - axis))
        logits = (1 - weight) * logits.take(lower, axis) + weight * logits.take(upper, axis)
    return logits


# Only on one thread PyTorch resizes three channels by code of their own.
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 19, 1000])
def test_chunks_give_the_argmax(monkeypatch, dtype, channels_last, chunk):
    monkeypatch.setattr(post_processing_unept, "_CHUNK_BYTES", chunk * 4 * 90 * 70)
    logits = torch.randn(2, 19, 9, 13, generator=torch.manual_seed(0)).to(dtype)
    logits[:, 18] = logits[:, 4]  # ties between chunks go to the first
    upcast = logits if dtype == torch.float64 else logits.float()
    full = F.interpolate(upcast, (90, 70), mode="bilinear", align_corners=False)
    outputs = outputs_of(logits.to(memory_format=torch.channels_last) if channels_last else logits)
    for labels, expected in zip(post_process_semantic_segmentation(outputs, [(90, 70)] * 2), full):
        assert labels.dtype == torch.int64
        assert torch.equal(labels, expected.argmax(0))
    for labels, expected in zip(post_process_semantic_segmentation(outputs), upcast):
        assert torch.equal(labels, expected.argmax(0))


@pytest.mark.parametrize("wrap", [outputs_of, dict, SemanticSegmenterOutput])
def test_kinds_of_outputs_and_target_sizes(processor, wrap):
    outputs = wrap(logits=torch.randn(2, 5, 8, 8, generator=torch.manual_seed(0)))
    expected = processor.post_process_semantic_segmentation(outputs, [(20, 30), (7, 1)])
    assert [tuple(labels.shape) for labels in expected] == [(20, 30), (7, 1)]
    for target_sizes in (torch.tensor([[20, 30], [7, 1]]), np.array([[20, 30], [7, 1]]), ([20, 30], [7, 1])):
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=target_sizes)
        assert all(torch.equal(one, other) for one, other in zip(labels, expected))


def test_scores(processor):
    logits = torch.randn(2, 5, 8, 8, generator=torch.manual_seed(0)).half().requires_grad_()
    sizes = [(20, 30), (8, 16)]
    labels = processor.post_process_semantic_segmentation(outputs_of(logits), sizes)
    scored = processor.post_process_semantic_segmentation(outputs_of(logits), sizes, return_segmentation_scores=True)
    for index, (one, size) in enumerate(zip(scored, sizes)):
        expected = F.interpolate(logits[index : index + 1].float(), size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(one.segmentation_scores, expected)
        assert not one.segmentation_scores.requires_grad
        assert torch.equal(one.segmentation, labels[index])


@pytest.mark.parametrize("sizes", [[(64, 96), (80, 32)], [(61, 96), (80, 33)], [(1, 1), (79, 90)]])
@pytest.mark.parametrize("target", [(130, 55), (17, 40)])
def test_padding_is_undone(sizes, target):
    logits = torch.randn(2, 6, 10, 12, generator=torch.manual_seed(0))
    outputs = outputs_of(logits, logits_sizes=torch.tensor(sizes) / 8)
    scored = post_process_semantic_segmentation(outputs, [target] * 2, return_segmentation_scores=True)
    labels = post_process_semantic_segmentation(outputs, [target] * 2)
    native = post_process_semantic_segmentation(outputs)
    for index, (height, width) in enumerate(sizes):
        expected = sample_bilinear(logits[index].double().numpy(), (height, width), target, stride=8)
        np.testing.assert_allclose(scored[index].segmentation_scores, expected, atol=1e-4)
        assert torch.equal(labels[index], scored[index].segmentation)
        assert tuple(native[index].shape) == (-(-height // 8), -(-width // 8))


def test_labels_make_the_round_trip(processor):
    """Label maps of several sizes come back from perfect logits as they were, but for cells at a boundary."""
    maps = [np.where(blocks(*size) == 255, 0, blocks(*size)) for size in ((64, 128), (200, 100), (120, 120))]
    images = [photo(*labels.shape) for labels in maps]
    inputs = processor(images, maps, size={"shortest_edge": 64, "longest_edge": 160}, return_tensors="pt")
    one_hot = F.one_hot(inputs["labels"].clamp(max=4), 5).permute(0, 3, 1, 2).float()  # padding becomes class 4
    outputs = outputs_of(F.avg_pool2d(one_hot, 8), logits_sizes=inputs["image_sizes"] / 8)
    results = processor.post_process_semantic_segmentation(outputs, [labels.shape for labels in maps])
    for labels, result in zip(maps, results):
        assert result.max() <= 3
        assert (result.numpy() == labels).mean() > 0.95


@pytest.mark.parametrize(
    ("outputs", "kwargs", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4, 4)}, {"target_sizes": [(8, 8)]}, "1 target_sizes .* logits of 2 images"),
        ({"logits": torch.zeros(1, 3, 4, 4), "logits_sizes": torch.tensor([[5, 1]])}, {}, r"\(5, 1\) does not fit"),
        (
            {"logits": torch.zeros(1, 3, 4, 4), "logits_sizes": torch.ones(2, 2)},
            {},
            "2 logits_sizes for the logits",
        ),
        ({"logits": torch.zeros(1, 3, 4, 4)}, {"refine_boundaries": True}, "refine_boundaries=False"),
        (
            {"logits": torch.zeros(1, 3, 4, 4), "boundary_logits": torch.zeros(1, 2, 4, 4), "direction_logits": None},
            {"refine_boundaries": True},
            "direction_logits",
        ),
    ],
)
def test_outputs_that_do_not_fit(processor, outputs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_semantic_segmentation(outputs, **kwargs)


def test_boundaries_are_refined(processor):
    """Two halves whose border is predicted two columns too far right. The boundary heads know better."""
    truth = torch.arange(16).ge(8).long().expand(16, 16)
    predicted = torch.arange(16).ge(10).long().expand(16, 16)
    is_boundary = (torch.arange(16) >= 6) & (torch.arange(16) < 10)
    direction = torch.where(torch.arange(16) < 8, DIRECTIONS.index((0, -1)), DIRECTIONS.index((0, 1)))
    outputs = outputs_of(
        F.one_hot(predicted, 2).permute(2, 0, 1)[None].float(),
        boundary_logits=6.0 * F.one_hot(is_boundary.long(), 2).T[None, :, None].expand(1, 2, 16, 16),
        direction_logits=F.one_hot(direction, 8).T[None, :, None].expand(1, 8, 16, 16).half(),
    )

    def post_process(**kwargs):
        return processor.post_process_semantic_segmentation(outputs, **kwargs)[0]

    assert torch.equal(post_process(), predicted)
    assert torch.equal(post_process(refine_boundaries=True, boundary_steps=2), truth)
    assert post_process(refine_boundaries=True)[0].tolist() == [0] * 9 + [1] * 7
    assert torch.equal(post_process(refine_boundaries=True, boundary_threshold=0.999), predicted)
    scored = post_process(refine_boundaries=True, boundary_steps=2, return_segmentation_scores=True)
    assert torch.equal(scored.segmentation, truth)
    assert torch.equal(scored.segmentation_scores.argmax(0), truth)
    # The direction has the probability e / (e + 7) = 0.28.
    directed = {"refine_boundaries": True, "boundary_steps": 2}
    assert torch.equal(post_process(**directed, boundary_direction_threshold=0.27), truth)
    assert torch.equal(post_process(**directed, boundary_direction_threshold=0.29), predicted)
    # One step from column 8 leads to column 9, which is at the boundary too.
    outputs.logits = outputs.logits.roll(-1, dims=3)
    assert torch.equal(post_process(refine_boundaries=True)[:, :15], truth[:, :15])
    kept = post_process(refine_boundaries=True, boundary_inside_only=True)
    assert kept[0, :15].tolist() == [0] * 9 + [1] * 6
    outputs.logits = outputs.logits.roll(1, dims=3)

    padded = {name: F.pad(value.float(), (0, 4, 0, 4)) for name, value in vars(outputs).items()}
    padded["logits_sizes"] = torch.tensor([[16, 16]])
    kwargs = {"target_sizes": [(64, 64)], "refine_boundaries": True, "boundary_steps": 8}
    refined = processor.post_process_semantic_segmentation(padded, **kwargs)[0]
    assert torch.equal(refined, post_process(**kwargs))
    assert torch.equal(refined, torch.arange(64).ge(32).long().expand(64, 64))


def test_memory_of_a_large_image(alone):
    """150 classes at 1024x2048 are 1.2 GB of scores, which must not exist unless they are asked for."""
    assert alone["large"] == [1024, 2048]
    assert alone["megabytes"] < 300


def test_another_ignore_index(processor):
    labels = [np.full((64, 64), 290), np.full((64, 128), 290)]
    labels[0][:16] = -100
    batch = processor(
        [np.zeros((*one.shape, 3), np.uint8) for one in labels],
        labels,
        size={"shortest_edge": 64, "longest_edge": 128},
        ignore_index=-100,
        do_reduce_labels=True,
        do_boundary_targets=True,
        return_tensors="pt",
    )
    assert batch["labels"].unique().tolist() == [-100, 289]
    assert (batch["labels"][0, :, 64:] == -100).all()
    assert set(batch["boundary_map"].unique().tolist()) == {-100, 0, 1}
    with pytest.raises(ValueError, match=r"label -1.*ignore_index=-100"):
        processor(np.zeros((16, 16, 3), np.uint8), np.full((16, 16), -1), ignore_index=-100)
