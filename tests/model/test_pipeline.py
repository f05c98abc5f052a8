# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The Auto classes and the pipeline, for all kinds of images: from a saved folder to masks of the original size."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

from unept_hf import (
    UneptConfig,
    UneptForSemanticSegmentation,
    UneptImageProcessor,
    UneptImageProcessorPil,
    UneptModel,
)


LABELS = ("sky", "road", "tree", "house", "person")
CLASSES = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with named classes and its image processor, for small images so that tests are quick."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    UneptForSemanticSegmentation.from_preset("unept-tiny", id2label=dict(enumerate(LABELS))).save_pretrained(folder)
    UneptImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def segmenter(request, folder):
    image_processor = AutoImageProcessor.from_pretrained(folder, backend=request.param)
    segmenter = pipeline("image-segmentation", model=folder, image_processor=image_processor)
    assert type(segmenter.image_processor) is CLASSES[request.param]
    return segmenter


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    phases = np.array([0.0, 1.0, 2.0, 4.0])
    pixels = (127.5 + 127 * np.sin(rows[..., None] / 7 + columns[..., None] / 11 + phases)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(pixels, mode)
    return Image.fromarray(pixels[..., :3]).convert(mode)


def rotated_photo(width: int, height: int) -> Image.Image:
    """An image that is upright only when its EXIF orientation is applied: then `height` wide and `width` high."""
    image = photo(width, height)
    image.getexif()[0x0112] = 6
    return image


IMAGES = {
    "rgb": (photo(61, 47), "png"),
    "gray": (photo(61, 47, "L"), "png"),
    "gray with alpha": (photo(61, 47, "LA"), "png"),
    "rgba": (photo(61, 47, "RGBA"), "png"),
    "palette": (photo(61, 47, "P"), "png"),
    "black and white": (photo(61, 47, "1"), "png"),
    "16 bit": (photo(61, 47, "I;16"), "png"),
    "cmyk": (photo(61, 47, "CMYK"), "jpg"),
    "rotated": (rotated_photo(61, 47), "png"),
    "one pixel": (photo(1, 1), "png"),
    "one row": (photo(83, 1), "png"),
    "tall": (photo(9, 200), "png"),
}


def assert_partition(segments: list[dict], size: tuple[int, int]) -> np.ndarray:
    """Checks what the pipeline says of an image of `size`, (width, height), and returns it as a map of labels."""
    masks = []
    for segment in segments:
        assert segment["label"] in LABELS and segment["score"] is None
        assert segment["mask"].mode == "L" and segment["mask"].size == size
        masks.append(np.array(segment["mask"]))
    masks = np.stack(masks)
    assert set(np.unique(masks)) <= {0, 255}
    assert ((masks == 255).sum(axis=0) == 1).all()
    names = [segment["label"] for segment in segments]
    assert len(set(names)) == len(names)
    return np.array(names)[masks.argmax(axis=0)]


@pytest.mark.floor
@pytest.mark.parametrize("backend", CLASSES)
def test_auto_classes(folder, backend):
    config = AutoConfig.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    segmentation_model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    assert type(config) is UneptConfig and list(config.id2label.values()) == list(LABELS)
    assert type(model) is UneptModel
    assert type(segmentation_model) is UneptForSemanticSegmentation
    assert type(image_processor) is CLASSES[backend] and image_processor.size["shortest_edge"] == 64
    pixel_values = image_processor(photo(61, 47), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden_states = [each(pixel_values).last_hidden_state for each in (model, segmentation_model.model)]
    torch.testing.assert_close(*hidden_states, rtol=0, atol=0)


def test_from_config():
    config = UneptConfig.from_preset("unept-tiny", num_labels=3)
    assert type(AutoModel.from_config(config)) is UneptModel
    assert type(AutoModelForSemanticSegmentation.from_config(config)) is UneptForSemanticSegmentation


@pytest.mark.floor
@pytest.mark.parametrize("name", IMAGES)
def test_pipeline(segmenter, tmp_path, name):
    image, extension = IMAGES[name]
    path = tmp_path / f"image.{extension}"
    image.save(path, exif=image.getexif())
    upright = ImageOps.exif_transpose(Image.open(path))
    assert upright.size == ((image.height, image.width) if name == "rotated" else image.size)
    from_file = assert_partition(segmenter(str(path)), upright.size)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(assert_partition(segmenter(opened), upright.size), from_file)
    np.testing.assert_array_equal(assert_partition(segmenter(upright), upright.size), from_file)


def test_pipeline_of_lists(segmenter):
    images = [image for image, _ in IMAGES.values()]
    results = segmenter(images)
    assert len(results) == len(images)
    for image, segments in zip(images, results):
        np.testing.assert_array_equal(
            assert_partition(segments, ImageOps.exif_transpose(image).size),
            assert_partition(segmenter(image), ImageOps.exif_transpose(image).size),
        )


def test_pipeline_in_batches(segmenter):
    images = [photo(61, 47), photo(61, 47, "L"), ImageOps.flip(photo(61, 47))]
    for image, segments in zip(images, segmenter(images, batch_size=2)):
        assert len(segments) > 1
        np.testing.assert_array_equal(
            assert_partition(segments, (61, 47)), assert_partition(segmenter(image), (61, 47))
        )


def test_pipeline_in_batches_of_mixed_sizes(folder):
    """README.md says how: all images are padded to one size."""
    images = [photo(61, 47), photo(47, 61), photo(90, 50)]
    image_processor = AutoImageProcessor.from_pretrained(folder, pad_size={"height": 128, "width": 128})
    segmenter = pipeline("image-segmentation", model=folder, image_processor=image_processor)
    for image, segments in zip(images, segmenter(images, batch_size=2)):
        np.testing.assert_array_equal(
            assert_partition(segments, image.size), assert_partition(segmenter(image), image.size)
        )


@pytest.mark.floor
@pytest.mark.parametrize("backend", CLASSES)
def test_without_the_pipeline(folder, backend):
    image_processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    images = [image for image, _ in IMAGES.values()]
    sizes = [ImageOps.exif_transpose(image).size[::-1] for image in images]
    with torch.no_grad():
        outputs = model(**image_processor(images, return_tensors="pt"))
    label_maps = image_processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert [tuple(label_map.shape) for label_map in label_maps] == sizes
    for label_map in label_maps:
        assert label_map.dtype == torch.int64
        assert label_map.min() >= 0 and label_map.max() < len(LABELS)
