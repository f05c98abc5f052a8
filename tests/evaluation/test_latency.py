# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""How much memory a block takes, and what is measured of a model."""

import pytest
import torch
from torch import nn

from unept_hf.evaluation.latency import measure_latency, peak_memory


def test_peak_memory():
    kept = torch.ones(32 * 2**20 // 4)
    with peak_memory(torch.device("cpu")) as memory:
        assert memory == {"bytes": None, "total_bytes": None}
        held = torch.ones(64 * 2**20 // 4)
        del held
    assert 60 * 2**20 < memory["bytes"] < 200 * 2**20
    assert memory["total_bytes"] > memory["bytes"] + kept.nbytes


def test_memory_of_a_block_that_fails():
    with pytest.raises(KeyError), peak_memory(torch.device("cpu")) as memory:
        raise KeyError
    assert memory["bytes"] is None


def test_memory_of_other_devices_is_unknown():
    with peak_memory(torch.device("meta")) as memory:
        pass
    assert memory == {"bytes": None, "total_bytes": None}


def test_latency():
    calls = []

    class Model(nn.Module):
        def forward(self, pixel_values):
            calls.append((self.training, torch.is_inference_mode_enabled()))

    model = Model()
    measured = measure_latency(model, torch.zeros(3, 3, 8, 8), repeats=4)
    assert calls == [(False, True)] * 6 and model.training
    assert measured["images_per_second"] == pytest.approx(3 / measured["median_seconds"])
    assert 0 < measured["fastest_seconds"] <= measured["median_seconds"]
    assert measured["peak_memory_bytes"] >= 0
