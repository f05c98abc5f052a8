# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The post-processing that both image processors share."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import blocks, photo
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from unept_hf.model import post_processing_unept
from unept_hf.model.boundary import DIRECTIONS
from unept_hf.model.post_processing_unept import post_process_semantic_segmentation


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
