# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Refinement of label maps that any other model has predicted."""

import numpy as np
import pytest
import torch
from PIL import Image
from spread_models import spread
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, refine, segment
from unept_hf.inference.segment import segment_batch
from unept_hf.synthetic.scenes import synthetic_scene


SIZE = (90, 120)
SLIDE = {"mode": "slide", "crop_size": (48, 64), "stride": (24, 40), "do_resize": False}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset("unept-tiny", encoder_layers=1, decoder_layers=1, num_labels=9)
    return spread(model)


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 72, "longest_edge": 160})


@pytest.fixture(scope="module")
def image():
    return synthetic_scene(0, size=SIZE)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"boundary_steps": 3, "boundary_threshold": 0.4},
        {"boundary_steps": 2, "boundary_inside_only": True, "boundary_direction_threshold": 0.2},
        SLIDE,
        {"scales": (0.5, 1.3), "flip": True},
        {"autocast": "bfloat16"},
    ],
)
def test_the_model_s_own_label_map(model, processor, image, options):
    """Refining it afterwards is what segmenting with refinement does."""
    plain = segment(model, processor, image, **options).label_map
    expected = segment(model, processor, image, refine_boundaries=True, **options).label_map
    refined = refine(model, processor, image, plain, **options)
    assert torch.equal(refined, expected) and not torch.equal(refined, plain)


@pytest.mark.parametrize("option", [{"boundary_inside_only": True}, {"boundary_direction_threshold": 0.5}])
def test_options_keep_labels(model, processor, image, option):
    plain = segment(model, processor, image).label_map
    moved = refine(model, processor, image, plain, boundary_threshold=0.4) != plain
    fewer = refine(model, processor, image, plain, boundary_threshold=0.4, **option) != plain
    assert 0 < fewer.sum() < moved.sum()
    assert not (fewer & ~moved).any(), "it moves what moves without the option"


def test_the_rest_of_the_model_does_not_run(model, processor, image):
    def fail(*args):
        raise AssertionError("backbone, encoder, decoder and classifier must not run")

    parts = [model.model.backbone, *model.model.encoder_layers, *model.model.decoder_layers, model.classifier]
    hooks = [part.register_forward_pre_hook(fail) for part in parts]
    try:
        refine(model, processor, image, np.zeros(SIZE, np.uint8))
    finally:
        for hook in hooks:
            hook.remove()


def test_boundaries_alone(model, processor, image):
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, outputs = model(pixel_values), model.predict_boundaries(pixel_values)
    assert set(outputs.keys()) == {"boundary_logits", "direction_logits"}
    assert all(torch.equal(outputs[name], expected[name]) for name in outputs)
    with pytest.raises(ValueError, match="multiples of"):
        model.predict_boundaries(pixel_values[..., :-1])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">u2", "int32", "int64", "bool", "float32"])
def test_arrays_keep_their_dtype(model, processor, image, dtype):
    labels = segment(model, processor, image).label_map.numpy()
    labels = (labels > 4).astype(dtype) if dtype == "bool" else labels.astype(dtype)
    if dtype not in ("uint8", "bool"):
        labels[:, :30] = 300  # any number is a class
    labels = labels[:, ::-1]
    before = labels.copy()
    refined = refine(model, processor, image, labels)
    assert isinstance(refined, np.ndarray) and refined.dtype == dtype
    np.testing.assert_array_equal(labels, before)
    expected = refine(model, processor, image, torch.from_numpy(labels.astype(np.int64)))
    np.testing.assert_array_equal(refined, expected.numpy().astype(dtype))
    assert (refined != labels).any()


def test_unlabeled_pixels(model, processor, image):
    labels = segment(model, processor, image).label_map
    expected = refine(model, processor, image, torch.where(labels == 3, 255, labels))
    refined = refine(model, processor, image, torch.where(labels == 3, -1, labels).to(torch.int16))
    assert refined.dtype == torch.int16
    assert torch.equal(refined.long(), torch.where(expected == 255, -1, expected))


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "1"])
def test_pil_images_keep_their_mode(model, processor, image, mode):
    dtype = {"I;16": np.uint16, "I": np.int32, "1": bool}.get(mode, np.uint8)
    labels = (segment(model, processor, image).label_map.numpy() % (2 if mode == "1" else 9)).astype(dtype)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette(bytes(range(30)))
    assert picture.mode == mode
    refined = refine(model, processor, image, picture)
    assert refined.mode == mode and refined.getpalette() == picture.getpalette()
    np.testing.assert_array_equal(np.asarray(refined), refine(model, processor, image, labels))


def test_another_model(model, processor, image):
    config = SegformerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, decoder_hidden_size=16, num_labels=150)
    torch.manual_seed(1)
    peer, peer_processor = spread(SegformerForSemanticSegmentation(config)), SegformerImageProcessor()
    with torch.no_grad():
        outputs = peer(**peer_processor(image, return_tensors="pt"))
    label_map = peer_processor.post_process_semantic_segmentation(outputs, [SIZE])[0]
    assert label_map.max() > 9, "classes that UN-EPT does not have"
    boundaries = segment(model, processor, image, return_boundaries=True)
    boundaries.label_map = label_map
    refined = refine(model, processor, image, label_map, boundary_steps=2)
    assert torch.equal(refined, boundaries.refined(steps=2).label_map) and not torch.equal(refined, label_map)
    with pytest.raises(ValueError, match=r"SegformerForSemanticSegmentation has no boundary heads.*UN-EPT"):
        refine(peer, peer_processor, image, label_map)


def test_several_images_share_batches(model, processor):
    images = [synthetic_scene(seed, size=SIZE)[0] for seed in range(3)]
    plain = segment_batch(model, processor, images, **SLIDE)
    label_maps = [result.label_map for result in plain]
    refined = segment_batch(model, processor, images, label_maps=label_maps, refine_boundaries=True, **SLIDE)
    for image, label_map, result in zip(images, label_maps, refined):
        assert torch.equal(result.label_map, refine(model, processor, image, label_map, **SLIDE))
        assert result.keys() == {"label_map"}


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.zeros((60, 80), np.uint8), r"label_map has shape \(60, 80\) but its image has size \(90, 120\).*Resize"),
        (np.zeros((120, 90), np.uint8), r"shape \(120, 90\) but its image has size \(90, 120\)"),
        (torch.zeros(*SIZE, 3, dtype=torch.uint8), r"shape \(90, 120, 3\).*RGB label map"),
        (Image.new("RGB", SIZE[::-1]), r"shape \(90, 120, 3\)"),
        (np.full(SIZE, 0.5), "label 0.5: labels must be whole numbers"),
        (np.full(SIZE, np.nan), "label nan: labels must be whole numbers"),
    ],
)
def test_wrong_label_maps(model, processor, image, label_map, message):
    with pytest.raises(ValueError, match=message):
        refine(model, processor, image, label_map)


def test_no_boundary_heads(processor, image):
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny", encoder_layers=0, decoder_layers=0, num_labels=9, use_boundary_heads=False
    )
    for other in (model, nn.Identity()):
        with pytest.raises(ValueError, match=r"has no boundary heads.*use_boundary_heads=True"):
            refine(other, processor, image, np.zeros(SIZE, np.uint8))
