# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Sizes, padding and normalization, by both image processors."""

import numpy as np
import pytest
import torch
from pictures import CLASSES, blocks, photo
from PIL import Image

from unept_hf.model.image_processing_unept import UneptImageProcessor


MEAN, STD = (torch.tensor(getattr(UneptImageProcessor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))


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
