"""The cross entropies in bands against their plain form, their memory, graphs that hold them; the other losses."""

import importlib.util
import math

import pytest
import torch
from torch.nn import functional as F

from unept_hf.model import loss_unept
from unept_hf.model.boundary import follow_direction
from unept_hf.model.configuration_unept import UneptConfig
from unept_hf.model.loss_unept import dice_loss, lovasz_loss, pixel_cross_entropy, segmentation_loss


IGNORED = 255


def plain_losses(logits, labels, source, ignore_index=IGNORED, class_weights=None, label_smoothing=0.0):
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    scores = [upsampled]
    if source is not None:
        refined = upsampled.flatten(2).gather(2, source[:, None].expand(-1, logits.shape[1], -1))
        scores.append(refined.view_as(upsampled))
    options = {"ignore_index": ignore_index, "weight": class_weights, "label_smoothing": label_smoothing}
    return torch.stack([F.cross_entropy(s, labels, reduction="none", **options) for s in scores])


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


def assert_equal_to_the_plain_form(shape, refined=True, options=(), **kwargs):
    logits, labels, source = arguments(*shape, **kwargs)
    inputs = (logits, labels, source if refined else None, IGNORED, *options)
    losses, expected = pixel_cross_entropy(*inputs), plain_losses(*inputs)
    torch.testing.assert_close(losses, expected)
    grad_losses = torch.rand(losses.shape, generator=torch.Generator().manual_seed(1), dtype=losses.dtype)
    gradients = [torch.autograd.grad(actual, logits, grad_losses)[0] for actual in (losses, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.floor
@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_plain_form(shape, refined, small_bands):
    assert_equal_to_the_plain_form(shape, refined)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_and_label_smoothing(weighted, label_smoothing, small_bands):
    class_weights = torch.linspace(0, 3, 11, dtype=torch.float64) if weighted else None
    assert_equal_to_the_plain_form(SHAPES[0], options=(class_weights, label_smoothing))


@pytest.mark.slow
def test_equal_to_the_plain_form_at_random_shapes(small_bands):
    generator = torch.Generator().manual_seed(0)
    for seed in range(300):
        batch, num_labels, *sides = (
            int(torch.randint(1, high, (), generator=generator)) for high in (4, 20, 40, 40, 120, 120)
        )
        assert_equal_to_the_plain_form((batch, num_labels + 1, sides[:2], sides[2:]), seed=seed)


def test_gradient_of_both_losses(small_bands):
    logits, labels, source = arguments(1, 3, (3, 2), (37, 5))
    assert torch.autograd.gradcheck(lambda logits: pixel_cross_entropy(logits, labels, source, IGNORED), logits)


def test_bands_do_not_take_the_precision_of_autocast():
    logits, labels, source = arguments(1, 5, (6, 9), (48, 72), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = pixel_cross_entropy(logits, labels, source, IGNORED)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
    expected = plain_losses(logits, labels, source)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


@pytest.mark.parametrize("per_process", [False, True])
def test_classes_of_boundaries_are_balanced_over_all_processes_or_in_each(per_process, monkeypatch):
    """Two processes with 64 pixels each, of which the other one only tells its counts."""
    generator = torch.Generator().manual_seed(0)
    logits, boundary_logits, direction_logits = (
        torch.randn(1, channels, 8, 8, generator=generator, dtype=torch.float64) for channels in (5, 2, 8)
    )
    labels, boundary, direction = torch.zeros(3, 1, 8, 8, dtype=torch.int64)
    labels[0, 0] = IGNORED
    boundary[0, 0, :3] = 1
    direction[0, 4:] = 1
    # Of boundary classes, directions and labeled pixels, which differ in number.
    other_counts = {2: [43, 21], 8: [0, 64, 0, 0, 0, 0, 0, 0], 1: 8}

    def all_reduce(counts):
        counts += torch.tensor(other_counts[counts.numel()])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    config = UneptConfig.from_preset("unept-tiny", num_labels=5, balance_boundaries_per_process=per_process)
    # Every pixel is predicted as boundary, so the direction loss counts all of them.
    boundary_logits[:, 1] += 100
    losses = segmentation_loss(
        logits, labels, config, boundary_logits, direction_logits, boundary, direction, training=True
    )

    def balanced(logits, labels, counts, total):
        """Weighted by 1 - counts / total, and divided by the sum of the weights in the mean of the processes."""
        weights = 1 - torch.tensor(counts, dtype=torch.float64) / total
        processes = total / 64
        terms = weights[labels] * F.cross_entropy(logits, labels, reduction="none")
        return terms.sum() * processes / (weights * torch.tensor(counts)).sum()

    boundary_counts, direction_counts, total = [61, 3], [32, 32], 64
    if not per_process:
        boundary_counts, direction_counts, total = [61 + 43, 3 + 21], [32, 32 + 64], 128
    expected = balanced(boundary_logits, boundary, boundary_counts, total)
    torch.testing.assert_close(losses["boundary"], expected, rtol=1e-6, atol=0)
    expected = balanced(direction_logits, direction, direction_counts + [0] * 6, total)
    torch.testing.assert_close(losses["direction"], expected, rtol=1e-6, atol=0)
    # 56 labeled pixels here and 8 there, whatever the balance.
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / 32
    torch.testing.assert_close(losses["segmentation"], expected, rtol=1e-6, atol=0)


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
    plain = bytes_of(plain_losses, *inputs)
    assert plain[0] >= full and plain[1] >= 2 * full
    allocated, saved = bytes_of(pixel_cross_entropy, *inputs, IGNORED)
    assert allocated <= full / 8 and saved <= full / 8


@pytest.mark.parametrize("refined", [True, False])
def test_rules_of_the_operator(refined):
    """Schema, fake tensors, autograd, and graphs of dynamic shapes."""
    logits, labels, source = arguments(2, 3, (2, 3), (16, 24), torch.float32)
    options = (torch.tensor([0.5, 1, 2]), 0.1) if refined else ()
    torch.library.opcheck(pixel_cross_entropy, (logits, labels, source if refined else None, IGNORED, *options))


def test_dice_and_lovasz_of_segmentation_models_pytorch():
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, labels, _ = arguments(2, 5, (12, 9), (12, 9), torch.float32)
    labels[labels == 3] = 0  # a class that is not there
    others = {
        dice_loss: losses.DiceLoss("multiclass", ignore_index=IGNORED),
        lovasz_loss: losses.LovaszLoss("multiclass", ignore_index=IGNORED),
    }
    for loss, other in others.items():
        actual, expected = loss(logits.softmax(1), labels, IGNORED), other(logits, labels)
        torch.testing.assert_close(actual, expected)
        gradients = [torch.autograd.grad(value, logits)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients)


def test_dice_and_lovasz_of_a_perfect_prediction_and_of_none():
    labels = torch.tensor([[[0, 2, IGNORED], [2, 2, 0]]])
    perfect = F.one_hot(torch.where(labels == IGNORED, 1, labels), 4).movedim(-1, 1).double()
    for loss in (dice_loss, lovasz_loss):
        assert loss(perfect, labels, IGNORED) == 0
        assert loss(perfect.roll(1, dims=1), labels, IGNORED) == {dice_loss: 0.5, lovasz_loss: 1}[loss]
        probabilities = perfect.clone().requires_grad_()
        nothing = loss(probabilities, torch.full_like(labels, IGNORED), IGNORED)
        assert nothing == 0
        assert torch.autograd.grad(nothing, probabilities)[0].isfinite().all()


def config_with(**options):
    return UneptConfig.from_preset("unept-tiny", num_labels=5, **options)


def test_options_of_the_configuration():
    logits, labels, _ = arguments(2, 5, (12, 9), (48, 36))
    weights = [0.5, 1, 2, 0, 4]
    config = config_with(class_weights=weights, label_smoothing=0.1, dice_loss_weight=1.0, lovasz_loss_weight=0.5)
    terms = segmentation_loss(logits, labels, config)
    upsampled = F.interpolate(logits, size=(48, 36), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(
        upsampled, labels, torch.tensor(weights).double(), ignore_index=IGNORED, label_smoothing=0.1
    )
    assert terms.keys() == {"segmentation", "dice", "lovasz"}
    torch.testing.assert_close(terms["segmentation"], expected)
    torch.testing.assert_close(terms["dice"], dice_loss(upsampled.softmax(1), labels, IGNORED))
    torch.testing.assert_close(terms["lovasz"], lovasz_loss(upsampled.softmax(1), labels, IGNORED))


@pytest.mark.parametrize("class_weights", [None, [0.5, 1, 2, 0.1, 4]])
@pytest.mark.parametrize(("threshold", "least"), [(0.3, 0), (0.3, 400), (1.0, 0), (0.001, 10**9)])
def test_hard_pixels(threshold, least, class_weights):
    logits, labels, _ = arguments(2, 5, (12, 9), (24, 18))
    config = config_with(class_weights=class_weights, ohem_threshold=threshold, ohem_min_pixels=least)
    upsampled = F.interpolate(logits, size=(24, 18), mode="bilinear", align_corners=False)
    losses = F.cross_entropy(upsampled, labels, ignore_index=IGNORED, reduction="none").flatten()
    hard = losses > -math.log(threshold)
    hard[losses.argsort(descending=True)[: 2 * least]] = True
    hard &= labels.flatten() != IGNORED
    weights = torch.tensor(class_weights or [1.0] * 5).double()[labels.flatten().clamp(max=4)] * hard
    expected = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(segmentation_loss(logits, labels, config)["segmentation"], expected)


def test_a_second_copy_of_the_file():
    """As one from the Hub beside the package."""
    spec = importlib.util.spec_from_file_location("unept_hf.model.copy", loss_unept.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    inputs = (*arguments(1, 3, (2, 3), (16, 24)), IGNORED)
    torch.testing.assert_close(copy.pixel_cross_entropy(*inputs), pixel_cross_entropy(*inputs), rtol=0, atol=0)
