# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Order and random numbers of training depend on seed and step alone."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from unept_hf.data.class_lists import class_list_from_data
from unept_hf.training.order import (
    AugmentedDataset,
    AugmentedStream,
    TrainingOrder,
    data_fingerprint,
    repeat_factors,
)


CLASSES = class_list_from_data(["a", "b"])


def order(num_items=10, batch_size=6, num_steps=7, **kwargs) -> list[list[tuple[int, int]]]:
    return list(TrainingOrder(num_items, batch_size, num_steps, **kwargs))


def augmentation(image: Image.Image, label_map: np.ndarray) -> dict[str, torch.Tensor]:
    """The number that is drawn and the number of the example, which is the gray level of its image."""
    return {"noise": torch.rand(()), "example": torch.tensor(image.getpixel((0, 0))[0])}


@pytest.fixture
def examples() -> datasets.Dataset:
    """Ten images of gray levels 0 to 9."""
    images = [Image.new("RGB", (4, 4), (level, level, level)) for level in range(10)]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [Image.new("L", (4, 4))] * 10},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Image()}),
    )


def test_every_epoch_has_every_item_once_in_a_new_order():
    flat = [pair for batch in order(num_steps=10) for pair in batch]
    assert [position for position, _ in flat] == list(range(60))
    epochs = [tuple(index for _, index in flat[start : start + 10]) for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6
    assert order(seed=1) != order(seed=0) == order(seed=0)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_processes_and_pieces_share_the_same_batches(num_processes, accumulation_steps):
    whole = order(batch_size=12)
    parts = [
        order(batch_size=12, process_index=index, num_processes=num_processes, accumulation_steps=accumulation_steps)
        for index in range(num_processes)
    ]
    size = 12 // num_processes // accumulation_steps
    assert all(len(piece) == size for part in parts for piece in part)
    for step, batch in enumerate(whole):
        pieces = slice(step * accumulation_steps, (step + 1) * accumulation_steps)
        assert [pair for part in parts for piece in part[pieces] for pair in piece] == batch


def test_a_later_start_is_the_tail():
    sampler = TrainingOrder(10, 12, 7, first_step=3, accumulation_steps=2, num_processes=3, process_index=1)
    assert list(sampler) == order(batch_size=12, accumulation_steps=2, num_processes=3, process_index=1)[6:]
    assert len(sampler) == len(list(sampler)) == 8
    assert len(TrainingOrder(10, 6, 7, first_step=7)) == len(order(first_step=7)) == 0


def test_a_batch_may_be_larger_than_the_data_set():
    flat = [index for batch in order(num_items=2, batch_size=5, num_steps=2) for _, index in batch]
    assert all(sorted(flat[start : start + 2]) == [0, 1] for start in range(0, 10, 2))


def test_repeat_factors():
    """Section 4.1 of LVIS, by hand: an example has the factor of its rarest class."""
    shown = np.zeros((100, 4), dtype=bool)  # nothing shows the last class
    shown[:, 0] = True
    shown[:4, 1] = True
    shown[3:19, 2] = True
    shown[99] = False
    factors = repeat_factors(shown, 0.36)
    assert factors.tolist() == pytest.approx([3.0] * 4 + [1.5] * 15 + [1.0] * 81)
    assert repeat_factors(shown, 0.001).tolist() == [1.0] * 100


def test_factors_repeat_examples():
    """In each epoch as often as the factor says, rounded up or down, and exactly so on average."""
    factors = torch.tensor([1.0, 1.0, 2.25, 1.0, 3.5, 1.25], dtype=torch.float64)  # 10 in all
    flat = [index for batch in order(6, 5, 800, repeat_factors=factors) for _, index in batch]
    counts = np.array([np.bincount(flat[start : start + 10], minlength=6) for start in range(0, 4000, 10)])
    assert (counts >= factors.floor().numpy()).all() and (counts <= factors.ceil().numpy()).all()
    assert np.abs(counts.mean(0) - factors.numpy()).max() < 0.1
    assert len({tuple(flat[start : start + 10]) for start in range(0, 4000, 10)}) > 390
    assert flat != sorted(flat)


def test_repeated_examples_resume_and_are_shared():
    options = {"num_items": 7, "repeat_factors": torch.rand(7, dtype=torch.float64) * 3 + 1}
    whole = order(batch_size=12, num_steps=9, **options)
    assert order(batch_size=12, num_steps=9, first_step=5, **options) == whole[5:]
    parts = [order(batch_size=12, num_steps=9, process_index=i, num_processes=2, **options) for i in (0, 1)]
    assert [first + second for first, second in zip(*parts)] == whole
    ones = torch.ones(7, dtype=torch.float64)
    epochs = [index for batch in order(7, 7, 3, repeat_factors=ones) for _, index in batch]
    assert all(sorted(epochs[start : start + 7]) == list(range(7)) for start in (0, 7, 14))


def test_augmentation_depends_on_the_position_alone(examples):
    crops = AugmentedDataset(examples, CLASSES, augmentation, seed=3)
    first = crops[5, 2]["noise"]
    assert crops[5, 7]["noise"] == first == AugmentedDataset(examples, CLASSES, augmentation, seed=3)[5, 2]["noise"]
    noises = [crops[position, 0]["noise"].item() for position in range(50)]
    assert len(set(noises)) == 50
    assert 0.35 < np.mean(noises) < 0.65
    assert AugmentedDataset(examples, CLASSES, augmentation, seed=4)[5, 2]["noise"] != first
    assert len(crops) == 10


def test_augmentation_leaves_the_generator_of_dropout_alone(examples):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    AugmentedDataset(examples, CLASSES, augmentation)[0, 0]
    next(iter(AugmentedStream(examples.to_iterable_dataset(), CLASSES, augmentation)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(examples, num_workers):
    crops = AugmentedDataset(examples, CLASSES, augmentation)
    loader = DataLoader(crops, batch_sampler=TrainingOrder(10, 6, 4), num_workers=num_workers)
    for batch, pairs in zip(loader, order(num_steps=4), strict=True):
        assert batch["example"].tolist() == [index for _, index in pairs]
        assert batch["noise"].tolist() == [crops[pair]["noise"].item() for pair in pairs]


def take(examples, count, num_shards=2, num_workers=0, **kwargs) -> list[tuple[int, float]]:
    """The first `count` pieces of two examples of a stream, as (example, noise)."""
    stream = AugmentedStream(
        examples.to_iterable_dataset(num_shards), CLASSES, augmentation, buffer_size=4, batch_size=2, **kwargs
    )
    batches = iter(DataLoader(stream, batch_size=2, num_workers=num_workers))
    return [
        pair for _ in range(count) for b in [next(batches)] for pair in zip(b["example"].tolist(), b["noise"].tolist())
    ]


def test_a_stream_has_every_example_in_every_epoch(examples):
    levels = [level for level, _ in take(examples, 15)]
    epochs = [levels[start : start + 10] for start in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_processes_share_a_stream(examples):
    parts = [take(examples, 5, process_index=index, num_processes=2) for index in range(2)]
    epochs = [{level for level, _ in part[:5]} for part in parts]
    assert epochs[0] | epochs[1] == set(range(10))
    assert not {noise for _, noise in parts[0]} & {noise for _, noise in parts[1]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_goes_on_where_it_stopped(examples, num_workers):
    assert (
        take(examples, 4, num_workers=num_workers, skip_batches=6) == take(examples, 10, num_workers=num_workers)[12:]
    )


def test_a_stream_of_many_workers_goes_on_with_the_examples_that_are_left(examples):
    """In another order of the workers: after three batches it is the second one's turn."""
    whole, rest = take(examples, 9, num_workers=2), take(examples, 6, num_workers=2, skip_batches=3)
    assert sorted(rest) == sorted(whole[6:])


def test_a_stream_without_examples_for_a_process(examples):
    with pytest.raises(ValueError, match="Process 1 gets no example"):
        take(examples.select([0]), 1, num_shards=1, process_index=1, num_processes=2)


def test_fingerprint_of_data_in_memory():
    """By the bytes that are there, or by the files that paths lead to; addresses have no size."""

    def fingerprint(image: dict, name: str = "a") -> dict[str, str]:
        features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Image(decode=False)})
        label = {"bytes": b"12", "path": None}
        data = datasets.Dataset.from_dict({"image": [image, image], "label": [label, label]}, features=features)
        return data_fingerprint(data.add_column("name", [name, "b"]))

    first = fingerprint({"bytes": b"123", "path": None})
    assert set(first) == {"names", "sizes"}
    assert fingerprint({"bytes": b"321", "path": "elsewhere"}) == first
    assert fingerprint({"bytes": b"1234", "path": None}) == {**first, "sizes": mismatch(first["sizes"])}
    assert fingerprint({"bytes": b"123", "path": None}, "c") == {**first, "names": mismatch(first["names"])}
    assert fingerprint({"bytes": None, "path": "https://host/a.png"})["sizes"] != first["sizes"]


class mismatch:
    """Equals all but one value."""

    def __init__(self, value: str):
        self.value = value

    def __eq__(self, other: str) -> bool:
        return other != self.value
