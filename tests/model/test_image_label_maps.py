# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Label maps and boundary targets, by both image processors."""

import numpy as np
import pytest
import torch
from pictures import blocks, photo
from PIL import Image
from torch.nn import functional as F

from unept_hf.model import boundary
from unept_hf.model.boundary import boundary_targets


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
