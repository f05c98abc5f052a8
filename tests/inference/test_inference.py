# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Segmentation of images of any size: equal to the original's test code, and to a plain form that holds everything."""

import http.server
import itertools
import json
import logging
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from original_state_dict import convert_unept_state_dict
from PIL import Image
from reference_weights import DEIT_TINY, reference_state_dict
from safetensors.torch import load_file
from spread_models import spread
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor, UneptImageProcessorPil
from unept_hf.inference import bands
from unept_hf.inference.bands import refine_in_bands
from unept_hf.inference.options import PredictionOptions
from unept_hf.inference.segment import segment, segment_batch, segment_views
from unept_hf.inference.windows import View, WindowRunner, window_starts
from unept_hf.model.boundary import refine_label_map
from unept_hf.synthetic.scenes import synthetic_scene


FIXTURES = Path(__file__).parents[1] / "fixtures"
LABELS = 9
SLIDE = {"mode": "slide", "crop_size": (48, 64), "stride": (24, 40)}
VIEWS = {"scales": (0.5, 1.0, 1.3), "flip": True}


@pytest.fixture(scope="module")
def model():
    config = UneptConfig.from_preset("unept-tiny", encoder_layers=1, decoder_layers=1, num_labels=LABELS)
    torch.manual_seed(0)
    return spread(UneptForSemanticSegmentation(config))


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 72, "longest_edge": 160})


def scene(height, width, seed=0):
    return synthetic_scene(seed, size=(height, width))[0]


def naive(model, processor, image, sizes, mode, crop_size=None, stride=None, flips=(None,), target_size=None):
    """
    Probabilities of classes, boundary and direction `(channels, height, width)`, with whole arrays and plain loops.
    `sizes` are those of the views.
    """
    target_size = target_size or (image.height, image.width)
    total = 0
    for size in sizes:
        inputs = processor(
            image, size={"height": size[0], "width": size[1]}, do_resize=True, size_divisor=1, return_tensors="pt"
        )
        for flip in flips:
            dims = {None: [], "horizontal": [3], "vertical": [2]}[flip]
            pixels = inputs["pixel_values"].flip(dims)

            def logits_of(pixels):
                with torch.no_grad():
                    outputs = model(pixels)
                return torch.cat([outputs.logits, outputs.boundary_logits, outputs.direction_logits], dim=1)

            if mode == "whole":
                logits = logits_of(pixels)
            else:
                height, width = size
                crop_height, crop_width = crop_size
                padded = F.pad(pixels, (0, max(0, crop_width - width), 0, max(0, crop_height - height)))
                summed = torch.zeros(1, LABELS + 10, *padded.shape[2:])
                count = torch.zeros(padded.shape[2:])
                tops = range(0, max(height - crop_height, 0) + stride[0], stride[0])
                lefts = range(0, max(width - crop_width, 0) + stride[1], stride[1])
                for top in tops:
                    for left in lefts:
                        y = min(top, padded.shape[2] - crop_height)
                        x = min(left, padded.shape[3] - crop_width)
                        window = (slice(y, y + crop_height), slice(x, x + crop_width))
                        cells = logits_of(padded[..., window[0], window[1]])
                        summed[..., window[0], window[1]] += F.interpolate(cells, size=crop_size, mode="bilinear")
                        count[window] += 1
                logits = (summed / count)[..., :height, :width]
            logits = F.interpolate(logits, size=target_size, mode="bilinear")
            parts = [part.softmax(1) for part in logits.split([LABELS, 2, 8], dim=1)]
            if flip is not None:
                # Directions go round in steps of 45 degrees: left, up left, up, up right, right, down right, ...
                turned = [4, 3, 2, 1, 0, 7, 6, 5] if flip == "horizontal" else [0, 7, 6, 5, 4, 3, 2, 1]
                parts = [part.flip(dims) for part in parts]
                parts[2] = parts[2][:, turned]
            total = total + torch.cat(parts, dim=1)[0]
    return total / (len(sizes) * len(flips))


@pytest.fixture(scope="module")
def recorded():
    meta = json.loads((FIXTURES / "slide_and_tta.json").read_text())
    tensors = load_file(FIXTURES / "slide_and_tta.safetensors")
    config = UneptConfig.from_preset("unept-deit-base", conventions="original", **DEIT_TINY, query_grid_size=(8, 8))
    model = UneptForSemanticSegmentation(config).eval()
    weights = reference_state_dict(json.loads((FIXTURES / "deit_tiny.json").read_text()), meta["weight_seed"])
    model.load_state_dict(convert_unept_state_dict(weights, config)[0])
    return meta, tensors, model


class TestOriginal:
    """The recorded windows and views of the original code."""

    def segment(self, recorded, indices, batch_size=4):
        meta, tensors, model = recorded
        # The recorded views are resized and normalised already.
        processor = UneptImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
        runner = WindowRunner(model, processor, PredictionOptions(batch_size=batch_size))
        for view in [meta["views"][index] for index in indices]:
            pixels = tensors[f"input.{view['name']}"][0]
            flip = view["flip_direction"] if view["flip"] else None
            runner.views.append(View(pixels, tuple(meta["ori_shape"]), (64, 64), (24, 24), flip))
        with torch.no_grad():
            return segment_views(runner.views, runner, return_scores=True), tensors

    @pytest.mark.parametrize("batch_size", [1, 5])
    def test_three_scales_and_flips(self, recorded, batch_size):
        result, tensors = self.segment(recorded, range(6), batch_size)
        torch.testing.assert_close(result.scores, tensors["aug6.prob_mean"][0], atol=1e-4, rtol=0)
        assert (result.label_map != tensors["aug6.pred"]).sum() <= 1

    def test_vertical_flip_too(self, recorded):
        result, tensors = self.segment(recorded, range(7))
        assert (result.label_map != tensors["aug7.pred"]).sum() <= 1

    @pytest.mark.parametrize("index", [0, 6])
    def test_views(self, recorded, index):
        result, tensors = self.segment(recorded, [index])
        expected = tensors[f"prob.{recorded[0]['views'][index]['name']}"][0]
        torch.testing.assert_close(result.scores, expected, atol=1e-4, rtol=0)

    def test_single_view(self, recorded):
        result, tensors = self.segment(recorded, [4])
        assert (result.label_map != tensors["single_view4.pred"]).sum() <= 1


def test_windows_are_those_of_mmsegmentation():
    for length, window, stride in [
        (683, 480, 160),
        (480, 480, 160),
        (481, 480, 160),
        (300, 480, 160),
        (8192, 480, 320),
    ]:
        starts = window_starts(length, window, stride)
        assert starts[0] == 0 and starts == sorted(set(starts))
        assert starts[-1] == max(length - window, 0)
        assert all(start == index * stride for index, start in enumerate(starts[:-1]))
        assert all(later - earlier <= stride for earlier, later in itertools.pairwise(starts))


class TestAgainstPlainForm:
    @pytest.mark.parametrize(
        ("size", "options", "view_sizes", "target_size"),
        [
            ((150, 120), {"do_resize": False, **SLIDE}, [(150, 120)], None),
            ((40, 32), {"do_resize": False, **SLIDE}, [(40, 32)], None),  # smaller than the window
            ((40, 130), {"do_resize": False, **SLIDE}, [(40, 130)], (57, 61)),
            ((101, 77), {**SLIDE, **VIEWS}, [(47, 36), (94, 72), (122, 93)], None),
            ((300, 100), {**SLIDE}, [(160, 53)], (31, 200)),  # as long as it may be
            ((100, 140), {"do_resize": False, "scales": (1.0, 1.5), **SLIDE}, [(100, 140), (150, 210)], None),
            ((101, 77), {**VIEWS}, [(48, 40), (96, 72), (120, 96)], None),
            ((96, 64), {"do_resize": False}, [(96, 64)], (300, 50)),
        ],
    )
    def test_scores_labels_and_boundaries(self, model, size, options, view_sizes, target_size):
        processor = UneptImageProcessor(size={"shortest_edge": 72, "longest_edge": 160}, size_divisor=8)
        image = scene(*size)
        mode = options.get("mode", "whole")
        flips = (None, "horizontal") if options.get("flip") else (None,)
        expected = naive(
            model, processor, image, view_sizes, mode, SLIDE["crop_size"], SLIDE["stride"], flips, target_size
        )
        result = segment(
            model, processor, image, target_size=target_size, return_scores=True, return_boundaries=True, **options
        )
        torch.testing.assert_close(result.scores, expected[:LABELS], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.boundary_probability, expected[LABELS + 1], atol=1e-5, rtol=0)
        assert result.label_map.dtype == result.direction_map.dtype == torch.int64
        assert len(result.label_map.unique()) > 2 and len(result.direction_map.unique()) > 2
        # The best class, but for ties up to rounding.
        for chosen, scores in ((result.label_map, expected[:LABELS]), (result.direction_map, expected[LABELS + 2 :])):
            assert chosen.shape == scores.shape[1:]
            assert (scores.gather(0, chosen[None])[0] > scores.amax(0) - 2e-5).all()

    def test_vertical_flip_of_directions(self, model, processor):
        image = scene(90, 72)
        expected = naive(
            model, processor, image, [(90, 72)], "slide", SLIDE["crop_size"], SLIDE["stride"], (None, "vertical")
        )
        result = segment(
            model,
            processor,
            image,
            do_resize=False,
            flip="vertical",
            return_boundaries=True,
            return_scores=True,
            **SLIDE,
        )
        torch.testing.assert_close(result.scores, expected[:LABELS], atol=1e-5, rtol=0)
        chosen = expected[LABELS + 2 :].gather(0, result.direction_map[None])[0]
        assert (chosen > expected[LABELS + 2 :].amax(0) - 2e-5).all()


@pytest.mark.parametrize("options", [SLIDE, {**SLIDE, **VIEWS, "flip": ["horizontal", "vertical"]}, {**VIEWS}])
def test_every_batch_size_and_band_height_gives_the_same_bits(model, processor, options, monkeypatch):
    image = scene(170, 230)
    kwargs = {"refine_boundaries": True, "return_scores": True, "return_boundaries": True, **options}
    expected = segment(model, processor, image, batch_size=1, **kwargs)
    for batch_size, band_bytes in [(2, None), (3, None), (7, None), (64, None), (1, 1), (4, 230 * 19 * 4 * 17)]:
        if band_bytes is not None:
            monkeypatch.setattr(bands, "BAND_BYTES", band_bytes)
        result = segment(model, processor, image, batch_size=batch_size, **kwargs)
        for name, value in expected.items():
            assert torch.equal(result[name], value), (name, batch_size, band_bytes)


@pytest.mark.parametrize("refine_boundaries", [False, True])
@pytest.mark.parametrize("size", [(101, 77), (64, 96)])
@pytest.mark.parametrize("do_resize", [False, True])
def test_whole_equals_the_post_processing(model, processor, size, do_resize, refine_boundaries):
    image = scene(*size)
    with torch.no_grad():
        outputs = model(**processor(image, do_resize=do_resize, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(
        outputs, [size], return_segmentation_scores=True, refine_boundaries=refine_boundaries, boundary_steps=2
    )[0]
    result = segment(
        model,
        processor,
        image,
        do_resize=do_resize,
        refine_boundaries=refine_boundaries,
        boundary_steps=2,
        return_scores=True,
    )
    probabilities = expected["segmentation_scores"].softmax(0)
    torch.testing.assert_close(result.scores, probabilities, atol=1e-5, rtol=0)
    assert (result.label_map != expected["segmentation"]).float().mean() < 1e-3


@pytest.mark.parametrize(("steps", "inside_only"), [(1, False), (3, False), (3, True)])
def test_refinement_in_bands_is_that_of_the_whole(steps, inside_only, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    label_map = torch.randint(9, (70, 50), generator=generator)
    probability = torch.rand(70, 50, generator=generator)
    direction = torch.randint(8, (70, 50), generator=generator)
    expected = refine_label_map(label_map, probability, direction, 0.3, steps, inside_only)
    for rows in (1, 7, 1000):
        monkeypatch.setattr(bands, "BAND_BYTES", rows * 100 * 50)
        refined, scores = refine_in_bands(
            label_map.to(torch.uint8),
            probability > 0.3,
            direction,
            steps,
            inside_only,
            F.one_hot(label_map).permute(2, 0, 1),
        )
        assert refined.dtype == torch.uint8
        assert torch.equal(refined.long(), expected)
        assert torch.equal(scores.argmax(0), expected)


class TestInputs:
    def test_kinds(self, model, processor, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        image = scene(60, 90)
        image.save(tmp_path / "image.png")
        expected = segment(model, processor, image).label_map
        assert expected.shape == (60, 90)
        array = np.array(image)
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/image.png"
            for given in (array, torch.from_numpy(array).permute(2, 0, 1), tmp_path / "image.png", address):
                assert torch.equal(segment(model, processor, given).label_map, expected)
            image.save(tmp_path / "zwölf Bäume.png")
            spaced = address.replace("image.png", "zwölf Bäume.png?size=1")
            assert torch.equal(segment(model, processor, spaced).label_map, expected)
            with pytest.raises(OSError, match=r"none\.png cannot be fetched \(the server answers 404 File not"):
                segment(model, processor, address.replace("image", "none"))
            server.shutdown()
        with pytest.raises(OSError, match=r"image\.png cannot be fetched \(ConnectError: "):
            segment(model, processor, address)

    def test_floating_point(self, model, processor):
        array = np.array(scene(60, 90)).astype(np.float32)
        expected = segment(model, processor, array).label_map
        unscaled = UneptImageProcessor(size=processor.size, do_rescale=False)
        assert torch.equal(segment(model, unscaled, array / 255).label_map, expected)
        assert segment(model, processor, np.zeros((60, 90))).label_map.shape == (60, 90)
        bright = (array / 255 - np.array(processor.image_mean)) / np.array(processor.image_std)
        ranges = {r"\[0, 0\.9": array / 255, r"\[-1, 0\.": array / 128 - 1, r"\[0, 7": array * 3}
        ranges |= {r"\[-128, 1": array - 128, r"\[-2\.1\d*, 2\.": bright, r"\[0, 2\.": bright.clip(0)}
        for limits, wrong in ranges.items():
            with pytest.raises(ValueError, match=rf"image holds .* numbers in {limits}.* do_normalize=False"):
                segment(model, processor, wrong)

    def test_normalized_images(self, model, processor):
        array = np.array(scene(72, 96)).astype(np.float32)
        mean, std = np.array(processor.image_mean), np.array(processor.image_std)
        normalized = (array / 255 - mean) / std
        half, plain = (
            UneptImageProcessor(size=processor.size, do_rescale=False, do_normalize=do_normalize)
            for do_normalize in (True, False)
        )
        with pytest.raises(ValueError, match="do_rescale=False and do_normalize=False"):
            segment(model, half, normalized)
        expected = segment(model, processor, array).label_map
        assert (segment(model, plain, normalized).label_map == expected).float().mean() > 0.999

    def test_sharp_filters_leave_no_range(self, model, caplog):
        """Cubic filters overshoot at edges, and dark windows look as if they were in another range."""
        processor = UneptImageProcessor(size={"height": 72, "width": 160}, resample=Image.Resampling.BICUBIC)
        array = np.zeros((40, 80, 3), np.uint8)
        array[::2, ::2], array[:, 60:] = 255, 0
        assert array.std() > 50
        logging.Logger.warning_once.cache_clear()
        for image in (array.astype(np.float32), array - np.float32(0.1)):
            label_map = segment(model, processor, image, **SLIDE).label_map
            assert (label_map == segment(model, processor, array, **SLIDE).label_map).float().mean() > 0.99
        assert not [record for record in caplog.records if "rescale" in record.getMessage()]

    def test_16_bit_windows_are_scaled_like_the_image(self, model, processor):
        # Only one corner is bright enough to tell that there are 16 bits.
        array = np.full((100, 100), 200, dtype=np.int32)
        array[:10, :10] = 60000
        expected = segment(model, processor, ((array + 128) // 257).astype(np.uint8), do_resize=False, **SLIDE)
        assert torch.equal(segment(model, processor, array, do_resize=False, **SLIDE).label_map, expected.label_map)

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 33)])
    @pytest.mark.parametrize("options", [{}, {**SLIDE, "flip": True}, {**SLIDE, "do_resize": False}])
    def test_small_and_thin_images(self, model, processor, size, options):
        label_map = segment(model, processor, Image.new("RGB", size[::-1]), **options).label_map
        assert label_map.shape == size

    def test_pil_backend_gives_the_same(self, model):
        size = {"shortest_edge": 72, "longest_edge": 160}
        image = scene(72, 144)
        labels = [
            segment(model, kind(size=size, do_resize=False), image, **SLIDE).label_map
            for kind in (UneptImageProcessor, UneptImageProcessorPil)
        ]
        assert (labels[0] != labels[1]).float().mean() < 1e-3
        resized = segment(model, UneptImageProcessorPil(size=size), image, scales=[1.5], **SLIDE).label_map
        assert resized.shape == (72, 144)

    def test_batch_equals_each_alone(self, model, processor):
        images = [scene(60, 90), scene(90, 60, 1), scene(60, 90, 2), scene(32, 34, 3)]
        for options in ({"batch_size": 3}, {**SLIDE, "batch_size": 5, "flip": True}):
            results = segment_batch(model, processor, images, target_sizes=[None, None, (30, 45), None], **options)
            for image, result, target_size in zip(images, results, [None, None, (30, 45), None]):
                expected = segment(model, processor, image, target_size=target_size, **options)
                assert torch.equal(result.label_map, expected.label_map)

    def test_more_classes_than_bytes_can_count(self, processor):
        model = spread(
            UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=400, semantic_loss_ignore_index=-100)
        )
        with torch.no_grad():
            model.classifier.bias[300:].add_(100)
        assert segment(model, processor, scene(32, 32)).label_map.min() >= 300


@pytest.fixture(scope="module")
def segformer():
    config = SegformerConfig(
        hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=LABELS
    )
    return spread(SegformerForSemanticSegmentation(config))


class TestOtherModels:
    def test_whole_and_slide(self, segformer):
        processor = SegformerImageProcessor(size={"height": 64, "width": 96})
        image = scene(100, 120)
        with torch.no_grad():
            outputs = segformer(**processor(image, return_tensors="pt"))
        expected = processor.post_process_semantic_segmentation(outputs, [(100, 120)])[0]
        label_map = segment(segformer, processor, image).label_map
        assert (label_map != expected).float().mean() < 1e-3
        slide = segment(segformer, processor, image, do_resize=False, **SLIDE).label_map
        assert slide.shape == (100, 120) and not torch.equal(slide, label_map)

    def test_no_boundaries_to_refine(self, segformer):
        with pytest.raises(ValueError, match=r"returns no boundary_logits.*use_boundary_heads=True"):
            segment(segformer, SegformerImageProcessor(), scene(40, 40), refine_boundaries=True)

    def test_model_without_logits(self, model, processor):
        with pytest.raises(ValueError, match=r"UneptModel returns no logits.*AutoModelForSemanticSegmentation"):
            segment(model.model, processor, scene(40, 40))


def test_modules_keep_their_modes(model, processor):
    model.train()
    frozen = model.model.spatial_branch.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    label_map = segment(model, processor, scene(40, 40)).label_map
    assert [module.training for module in model.modules()] == modes and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert torch.equal(segment(model, processor, scene(40, 40)).label_map, label_map)


def test_autocast(model, processor):
    image = scene(72, 96)
    expected = segment(model, processor, image, return_scores=True, **SLIDE)
    for dtype in ("bfloat16", torch.bfloat16):
        result = segment(model, processor, image, return_scores=True, autocast=dtype, **SLIDE)
        assert result.scores.dtype == torch.float32
        assert not torch.equal(result.scores, expected.scores)
        assert (result.label_map == expected.label_map).float().mean() > 0.9


def test_progress_bar(model, processor, capfd):
    image = scene(72, 96)
    segment(model, processor, image, progress=None, **SLIDE)
    assert capfd.readouterr().err == ""
    segment(model, processor, image, progress=True, **SLIDE)
    assert "4/4" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tile"}, "'whole' or 'slide', got 'tile'"),
        ({"mode": "slide", "crop_size": 32, "stride": 64}, "stride .* leaves gaps"),
        ({"mode": "slide", "crop_size": 36, "stride": 16}, r"crop_size \[36, 36\] must be made of multiples of 8"),
        ({"crop_size": 0}, "crop_size must be"),
        ({"crop_size": 128.0}, "crop_size must be"),
        ({"stride": True}, "stride must be"),
        ({"stride": (16, 2.5)}, "stride must be"),
        ({"scales": ()}, "scales must be"),
        ({"scales": (1.0, -1)}, "scales must be"),
        ({"flip": "diagonal"}, "flip must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"boundary_steps": 0}, "boundary_steps must be"),
        ({"boundary_steps": 1.5}, "boundary_steps must be"),
        ({"boundary_threshold": 7}, r"boundary_threshold must be a probability in \[0, 1\], got 7"),
        ({"boundary_threshold": float("nan")}, "boundary_threshold must be"),
        ({"autocast": torch.int8}, "autocast must be"),
        ({"autocast": "float12"}, "autocast must be"),
        ({"mode": "tile", "batch_size": 0}, "mode must be .*; batch_size must be"),
    ],
)
def test_bad_options(model, processor, options, message):
    with pytest.raises(ValueError, match=message):
        segment(model, processor, scene(40, 40), **options)


def test_options_are_those_of_the_words(model, processor):
    image = scene(90, 72)
    expected = segment(model, processor, image, **SLIDE, scales=(0.5, 1.0), flip=True, refine_boundaries=True)
    options = PredictionOptions(**SLIDE, scales=[0.5, 1.0], flip=["horizontal"])
    result = segment(model, processor, image, options, refine_boundaries=True)
    assert torch.equal(result.label_map, expected.label_map)
    assert not options.refine_boundaries  # an override is of one call
    with pytest.raises(TypeError, match="stripe"):
        segment(model, processor, image, options, stripe=3)


@pytest.mark.parametrize("return_scores", [False, True])
def test_refined_result(model, processor, return_scores):
    """Refining a result is what segmenting with refinement does, scores and all."""
    image, returned = scene(120, 160), {"return_boundaries": True, "return_scores": return_scores}
    plain = segment(model, processor, image, **SLIDE, **returned)
    before = {name: value.clone() for name, value in plain.items()}
    options = {"refine_boundaries": True, "boundary_threshold": 0.4, "boundary_steps": 2}
    expected = segment(model, processor, image, **SLIDE, **options, **returned)
    result = plain.refined(0.4, 2)
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert all(torch.equal(plain[name], value) for name, value in before.items())
    assert not torch.equal(result.label_map, plain.label_map)


@pytest.mark.parametrize("options", [{}, SLIDE, {"refine_boundaries": True, "boundary_threshold": 0.4}])
def test_confidence_is_that_of_the_class(model, processor, options):
    image = scene(60, 80)
    result = segment(model, processor, image, return_confidence=True, **options)
    scores = segment(model, processor, image, return_scores=True, **options).scores
    assert result.confidence.shape == (60, 80) and result.scores is None
    torch.testing.assert_close(result.confidence, scores.amax(0), atol=1e-6, rtol=0)
    assert torch.equal(result.label_map, segment(model, processor, image, **options).label_map)
    reference = np.full((60, 80), 3, np.uint8)
    reference[:, 40:], reference[:5] = 1, 255
    plain = {**options, "refine_boundaries": False}
    [result] = segment_batch(model, processor, [image], references=[reference], **plain)
    scores = segment(model, processor, image, return_scores=True, **plain).scores
    expected = torch.where(torch.arange(80) < 40, scores[3], scores[1])
    expected[:5] = torch.nan
    torch.testing.assert_close(result.reference_probability, expected, atol=1e-6, rtol=0, equal_nan=True)


def test_bad_images(model, processor):
    with pytest.raises(TypeError, match="dict"):
        segment(model, processor, {})
    with pytest.raises(ValueError, match="shape"):
        segment(model, processor, np.zeros((2, 3, 40, 40), np.uint8))
    with pytest.raises(ValueError, match="zip"):
        segment_batch(model, processor, [scene(40, 40)] * 2, target_sizes=[(3, 3)])


MEMORY_SCRIPT = """
import resource
import numpy as np
import torch
from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.inference.segment import segment

torch.set_num_threads(1)
model = UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=150, encoder_layers=1, decoder_layers=1)
options = {"mode": "slide", "crop_size": 256, "stride": 224, "do_resize": False, "batch_size": 2}
segment(model, UneptImageProcessor(), np.zeros((256, 256, 3), np.uint8), **options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
label_map = segment(model, UneptImageProcessor(), image, refine_boundaries=True, **options).label_map
assert label_map.shape == (1024, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_hold_all_scores():
    result = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # All scores would take 630 MB.
    assert int(result.stdout) < 450 * 1024, f"{int(result.stdout) / 1024:.0f} MB"
