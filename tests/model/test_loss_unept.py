"""The cross entropies in bands: their plain form in float64, their memory, and graphs that hold them."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F

from unept_hf.model import loss_unept
from unept_hf.model.boundary import follow_direction
from unept_hf.model.loss_unept import cross_entropy_sums


IGNORED = 255


def plain_sums(logits, labels, source, ignore_index=IGNORED):
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    scores = [upsampled]
    if source is not None:
        refined = upsampled.flatten(2).gather(2, source[:, None].expand(-1, logits.shape[1], -1))
        scores.append(refined.view_as(upsampled))
    return torch.stack([F.cross_entropy(s, labels, ignore_index=ignore_index, reduction="sum") for s in scores])


def arguments(batch, num_labels, cells, size, dtype=torch.float64, seed=0):
    """Random logits, labels and sources; a tenth of the labels is ignored, and half of the pixels move."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, num_labels, *cells, generator=generator, dtype=dtype)
    labels = torch.randint(0, num_labels, (batch, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
    moves = torch.rand(labels.shape, generator=generator) < 0.5
    source = follow_direction(moves, torch.randint(0, 8, labels.shape, generator=generator))
    return logits.requires_grad_(), labels, source


@pytest.fixture
def small_bands(monkeypatch):
    """Of as few rows as there can be."""
    monkeypatch.setattr(loss_unept, "_BAND_BYTES", 0)


SHAPES = [  # batch, num_labels, cells, size
    (2, 11, (6, 9), (48, 72)),
    (1, 1000, (5, 4), (40, 36)),
    (2, 2, (7, 5), (50, 33)),  # not whole factors
    (1, 3, (20, 24), (20, 24)),  # as they are
    (1, 3, (50, 40), (33, 17)),  # fewer pixels than cells
    (3, 4, (1, 1), (35, 1)),
    (0, 4, (2, 3), (16, 24)),
]


def assert_equal_to_the_plain_form(shape, refined=True, **kwargs):
    logits, labels, source = arguments(*shape, **kwargs)
    source = source if refined else None
    sums, expected = cross_entropy_sums(logits, labels, source, IGNORED), plain_sums(logits, labels, source)
    torch.testing.assert_close(sums, expected)
    # Each sum by itself.
    for actual, other in zip(sums, expected, strict=True):
        gradients = [torch.autograd.grad(term, logits, retain_graph=True)[0] for term in (actual, other)]
        torch.testing.assert_close(*gradients)


@pytest.mark.floor
@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_plain_form(shape, refined, small_bands):
    assert_equal_to_the_plain_form(shape, refined)


@pytest.mark.slow
def test_equal_to_the_plain_form_at_random_shapes(small_bands):
    generator = torch.Generator().manual_seed(0)
    for seed in range(300):
        batch, num_labels, *sides = (
            int(torch.randint(1, high, (), generator=generator)) for high in (4, 20, 40, 40, 120, 120)
        )
        assert_equal_to_the_plain_form((batch, num_labels + 1, sides[:2], sides[2:]), seed=seed)


def test_gradient_of_both_sums(small_bands):
    logits, labels, source = arguments(2, 3, (5, 2), (37, 9))
    assert torch.autograd.gradcheck(lambda logits: cross_entropy_sums(logits, labels, source, IGNORED), logits)


def test_bands_do_not_take_the_precision_of_autocast():
    logits, labels, source = arguments(1, 5, (6, 9), (48, 72), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sums = cross_entropy_sums(logits, labels, source, IGNORED)
        (gradient,) = torch.autograd.grad(sums.sum(), logits)
    expected = plain_sums(logits, labels, source)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


def bytes_of(function, *inputs):
    """The largest allocation of forward and backward, and all that is saved between them."""
    saved = []

    def save(tensor):
        saved.append(tensor.nbytes)
        return tensor

    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        function(*inputs).sum().backward()
    allocations = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(allocations), sum(saved)


def test_nothing_of_all_classes_at_full_size_is_held(small_bands):
    inputs = arguments(1, 40, (32, 16), (256, 128), torch.float32)
    full = 4 * 40 * 256 * 128
    plain = bytes_of(plain_sums, *inputs)
    assert plain[0] >= full and plain[1] >= 2 * full
    allocated, saved = bytes_of(cross_entropy_sums, *inputs, IGNORED)
    assert allocated <= full / 8 and saved <= full / 8


@pytest.mark.parametrize("refined", [True, False])
def test_rules_of_the_operator(refined):
    """Schema, fake tensors, autograd, and graphs of dynamic shapes."""
    logits, labels, source = arguments(2, 3, (2, 3), (16, 24), torch.float32)
    torch.library.opcheck(cross_entropy_sums, (logits, labels, source if refined else None, IGNORED))


def test_a_second_copy_of_the_file():
    """As one from the Hub beside the package."""
    spec = importlib.util.spec_from_file_location("unept_hf.model.copy", loss_unept.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    inputs = (*arguments(1, 3, (2, 3), (16, 24)), IGNORED)
    torch.testing.assert_close(copy.cross_entropy_sums(*inputs), cross_entropy_sums(*inputs), rtol=0, atol=0)
