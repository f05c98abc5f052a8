# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What changes a state for a while is right when several threads do so at once, and leave in any order."""

import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.models.deformable_detr import modeling_deformable_detr

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.accelerate import accelerate_transformers
from unept_hf.data.class_lists import load_class_list
from unept_hf.export.graphs import _export, export_torch
from unept_hf.inference.segment import evaluation_mode
from unept_hf.model import deformable_attention as attention
from unept_hf.model.deformable_attention import attention_backend
from unept_hf.training.order import AugmentedDataset
from unept_hf.visualization.figures import sampling_points


@contextmanager
def overlapping(first, second):
    """Two threads enter a context manager each; the first leaves it, the second stays until the end of the block."""
    events = {name: threading.Event() for name in ("first in", "second in", "first out", "end")}

    def run_first():
        with first():
            events["first in"].set()
            assert events["second in"].wait(60)
        events["first out"].set()

    def run_second():
        assert events["first in"].wait(60)
        with second():
            events["second in"].set()
            assert events["end"].wait(60)

    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(run_first), executor.submit(run_second)]
        try:
            assert events["first out"].wait(60)
            yield
        finally:
            events["end"].set()
        for future in futures:
            future.result()


def make_model():
    torch.manual_seed(0)
    return UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=3, encoder_layers=1, decoder_layers=1)


def test_backends_of_attention():
    seen = []

    @contextmanager
    def torch_backend():
        with attention_backend("torch"):
            seen.append(attention._choice.backend)
            yield
            seen.append(attention._choice.backend)

    before = attention._choice.backend
    with overlapping(torch_backend, lambda: attention_backend("cpu")):
        assert attention._choice.backend == before
    assert attention._choice.backend == before
    assert seen == ["torch", "torch"]


@pytest.mark.floor
def test_evaluation_mode():
    model = make_model().train()
    model.model.spatial_branch.eval()
    modes = [module.training for module in model.modules()]
    with overlapping(lambda: evaluation_mode(model), lambda: evaluation_mode(model.model)):
        assert not any(module.training for module in model.model.modules())
        assert model.training and model.classifier.training
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


@pytest.mark.floor
def test_acceleration_of_transformers():
    owner = modeling_deformable_detr.MultiScaleDeformableAttention
    original = owner.forward
    with overlapping(accelerate_transformers, accelerate_transformers):
        assert owner.forward is not original
    assert owner.forward is original
    undo = accelerate_transformers()
    with accelerate_transformers():
        undo.close()
        undo.close()
        assert owner.forward is not original
    assert owner.forward is original


@pytest.mark.floor
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_in_another_thread_takes_the_backend_of_the_forward(use_reentrant, monkeypatch):
    model = make_model().train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
        {"use_reentrant": use_reentrant}
    )
    plain, calls = attention._plain_attention, []
    monkeypatch.setattr(
        attention, "_plain_attention", lambda *args: calls.append(threading.get_ident()) or plain(*args)
    )
    with attention_backend("torch"):
        outputs = model(torch.rand(1, 3, 64, 64).requires_grad_())
    in_forward = len(calls)
    assert in_forward
    backward = threading.Thread(target=outputs.logits.sum().backward)
    backward.start()
    backward.join(60)
    assert model.classifier.weight.grad is not None
    assert len(calls) == 2 * in_forward and set(calls[in_forward:]) == {backward.ident}


def test_exports_take_turns():
    logger = logging.getLogger("torch.onnx")
    filters = list(warnings.filters)
    entered = threading.Event()

    def export():
        with _export():
            entered.set()

    other = threading.Thread(target=export)
    with _export():
        other.start()
        assert not entered.wait(0.2)
        assert not logger.isEnabledFor(logging.WARNING)
    other.join(60)
    assert entered.is_set()
    assert logger.isEnabledFor(logging.WARNING)
    assert list(warnings.filters) == filters


@pytest.mark.slow
def test_exports_in_two_threads(tmp_path):
    def export(name):
        return export_torch(make_model().eval(), tmp_path / name)

    with ThreadPoolExecutor(2) as executor:
        assert all(difference < 1e-4 for difference in executor.map(export, ("a.pt2", "b.pt2")))


def test_sampling_points_while_others_use_the_model():
    model, processor = make_model().eval(), UneptImageProcessor(size={"shortest_edge": 64}, size_divisor=8)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = sampling_points(model, processor, image, (40, 20))
    others = []

    def use_it(module, args, output):
        # Between the projections and the rest of the forward, another thread runs the model on a larger image.
        if not others:
            others.append(threading.Thread(target=model, args=(torch.zeros(1, 3, 128, 128),)))
            others[0].start()
            others[0].join()

    with model.model.input_projections[0].register_forward_hook(use_it):
        got = sampling_points(model, processor, image, (40, 20))
    assert others
    assert got.strides == expected.strides
    np.testing.assert_allclose(got.locations, expected.locations, atol=1e-3)


def test_augmentations():
    entered = [threading.Event(), threading.Event()]

    def augmentation(image, label_map):
        first = torch.rand(4)
        mine, other = entered if torch.equal(first, expected[0][0]) else entered[::-1]
        mine.set()
        other.wait(0.3)  # for the other thread to come in between, if it can
        return {"draws": torch.stack([first, torch.rand(4)])}

    classes = load_class_list("synthetic")
    scene = {"image": PIL.Image.new("RGB", (8, 8)), "label": PIL.Image.new("L", (8, 8))}
    dataset = AugmentedDataset([scene, scene], classes, augmentation)
    expected = [torch.zeros(2, 4)]
    expected = [dataset[position, position]["draws"] for position in range(2)]
    for event in entered:
        event.clear()
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as executor:
        got = list(executor.map(lambda position: dataset[position, position]["draws"], range(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(got, expected))
