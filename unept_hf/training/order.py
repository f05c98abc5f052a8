# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Which examples a training step takes, and with which random numbers they are augmented: a function of the seed and the
step alone. Number of processes, number of data loader workers and interruptions change nothing, and a checkpoint needs
no more than the number of its step.
"""

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow.compute
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data.class_lists import ClassList
from ..data.label_maps import decode_example


__all__ = ["AugmentedDataset", "AugmentedStream", "TrainingOrder", "data_fingerprint", "repeat_factors"]

Augmentation = Callable[..., dict[str, Tensor]]

_ORDER, _AUGMENTATION, _STREAM = range(3)


def _seed(*words: int) -> int:
    """A well mixed seed for the stream of random numbers that the words name."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def data_fingerprint(dataset: datasets.Dataset) -> dict[str, str]:
    """
    Hashes of the names of a data set's examples, and of the sizes of their images and masks in bytes, under the keys
    "names" and "sizes": to notice that the data is not what it was, without reading it.
    """

    def size(path: str) -> int | None:
        try:
            return os.path.getsize(path)
        except OSError:
            return None  # an address, for one

    table = dataset.data
    sizes = []
    for column in ("image", "label"):
        lengths, paths = (pyarrow.compute.struct_field(table.column(column), part) for part in ("bytes", "path"))
        lengths = pyarrow.compute.binary_length(lengths).to_pylist()
        sizes.append([size(path) if length is None else length for length, path in zip(lengths, paths.to_pylist())])
    words = {"names": table.column("name").to_pylist(), "sizes": sizes}
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest() for key, value in words.items()}


def repeat_factors(shows_class: np.ndarray, threshold: float) -> Tensor:
    """
    How often each example shall come in an epoch, so that rare classes come more often: repeat-factor sampling (Gupta
    et al., "LVIS: A dataset for large vocabulary instance segmentation", 2019, section 4.1).

    A class that a share f of the examples show has the factor max(1, sqrt(threshold / f)). An example has the largest
    factor of its classes, and 1 without any.

    Args:
        shows_class: bool `(examples, classes)`: which classes the mask of each example has.
        threshold: The share of the examples below which a class is rare.

    Returns:
        float64 `(examples,)`, at least 1.
    """
    shares = torch.from_numpy(shows_class).double().mean(0)
    # A class that nothing shows repeats nothing.
    of_classes = (threshold / shares.clamp(min=1 / max(len(shows_class), 1))).sqrt().clamp(min=1)
    return torch.from_numpy(shows_class).double().mul(of_classes).amax(1).clamp(min=1)


@dataclass(eq=False)
class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """
    Batch sampler: the examples that one process takes at each step, up to the last one.

    Every epoch is a new permutation of the data set; a batch may reach from one epoch into the next, so no example is
    left out. With repeat factors, an example comes in each epoch as often as its factor says, rounded up or down at
    random, and all epochs have the same length. Of the batch of a step, process r of n takes the r-th of n equal
    parts, in `accumulation_steps` pieces.

    Args:
        num_items: Length of the data set, at least 1.
        batch_size: Number of examples in one step, of all processes and accumulated pieces together; a multiple of
            their number.
        num_steps: The step at which training ends.
        first_step: The number of steps that have been done.
        accumulation_steps: Into how many pieces a process cuts its part.
        repeat_factors: float64 `(num_items,)`, at least 1 each: see `repeat_factors`. `None` takes all equally often.

    Yields:
        Lists of pairs (position, index): the running number of the example in the whole training, and which item of
        the data set it is.
    """

    num_items: int
    batch_size: int
    num_steps: int
    seed: int = 0
    first_step: int = 0
    process_index: int = 0
    num_processes: int = 1
    accumulation_steps: int = 1
    repeat_factors: Tensor | None = None

    def __len__(self) -> int:
        return max(self.num_steps - self.first_step, 0) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.num_processes
        piece = share // self.accumulation_steps
        epoch_length = self.num_items if self.repeat_factors is None else round(self.repeat_factors.sum().item())
        permutation, permuted_epoch = torch.empty(0), -1
        for step in range(self.first_step, self.num_steps):
            start = step * self.batch_size + self.process_index * share
            batch = []
            for position in range(start, start + share):
                epoch, offset = divmod(position, epoch_length)
                if epoch != permuted_epoch:
                    permutation, permuted_epoch = self._permutation(epoch, epoch_length), epoch
                batch.append((position, int(permutation[offset])))
            yield from (batch[first : first + piece] for first in range(0, share, piece))

    def _permutation(self, epoch: int, length: int) -> Tensor:
        """The items of an epoch in their order."""
        generator = torch.Generator().manual_seed(_seed(self.seed, _ORDER, epoch))
        permutation = torch.randperm(self.num_items, generator=generator)
        if self.repeat_factors is None:
            return permutation
        # Systematic sampling: the factors, laid end to end, meet as many points of a grid of distance 1 as they are
        # long, rounded up or down, and all of them together meet `length` points wherever the grid begins.
        ends = self.repeat_factors[permutation].cumsum(0)
        ends = ends * (length / ends[-1])
        ends[-1] = length
        points = (ends + torch.rand((), dtype=torch.float64, generator=generator)).floor().long()
        items = permutation.repeat_interleave(points.diff(prepend=points.new_zeros(1)))
        return items[torch.randperm(length, generator=generator)]


_generator_lock = threading.RLock()
# A data loader's worker that is forked meanwhile would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_generator_lock.acquire, after_in_parent=_generator_lock.release, after_in_child=_generator_lock.release
    )


def _augment(augmentation: Augmentation, example: dict, class_list: ClassList, seed: int) -> dict[str, Tensor]:
    image, label_map = decode_example(example, class_list)
    # All threads share the generator, and torchvision's transforms take no other.
    with _generator_lock, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPU too, where dropout draws its numbers.
        torch.default_generator.manual_seed(seed)
        return augmentation(image, label_map)


@dataclass(eq=False)
class AugmentedDataset(Dataset):
    """
    The examples of a data set with random access, decoded and augmented; the keys are those of `TrainingOrder`. The
    augmentation takes an image and a label map, draws from torch's generator, and returns a dict of tensors.
    """

    dataset: datasets.Dataset
    class_list: ClassList
    augmentation: Augmentation
    seed: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        position, index = key
        seed = _seed(self.seed, _AUGMENTATION, position)
        return _augment(self.augmentation, self.dataset[index], self.class_list, seed)


@dataclass(eq=False)
class AugmentedStream(IterableDataset):
    """
    The examples of a streaming data set, without end: shuffled within a buffer, split over processes and data loader
    workers, decoded and augmented.

    Which example comes when depends on the numbers of processes and workers. A resumed training must read all the
    examples that it skips; it goes on exactly where it stopped with at most one worker, and with a rotated order of
    the workers otherwise.

    Args:
        buffer_size: Number of examples among which the next one is drawn.
        batch_size: Number of examples in a batch of the data loader.
        skip_batches: Number of batches of this process to pass over first.

    Raises:
        ValueError: when a whole pass over the data set gives this process no example.
    """

    dataset: datasets.IterableDataset
    class_list: ClassList
    augmentation: Augmentation
    seed: int = 0
    buffer_size: int = 1000
    batch_size: int = 1
    skip_batches: int = 0
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self):
        shuffled = self.dataset.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        self.dataset = split_dataset_by_node(shuffled, rank=self.process_index, world_size=self.num_processes)

    @property
    def num_shards(self) -> int:
        """The most data loader workers that have something to read."""
        return self.dataset.num_shards

    def _examples(self) -> Iterator[dict]:
        for epoch in itertools.count():
            self.dataset.set_epoch(epoch)
            is_empty = True
            for example in self.dataset:
                is_empty = False
                yield example
            if is_empty:
                raise ValueError(
                    f"Process {self.process_index} gets no example of the streaming data set, which has fewer "
                    "examples than there are processes and data loader workers: use fewer, or do not stream it."
                )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # The workers give batches in turn.
        skip = len(range(worker_id, self.skip_batches, num_workers)) * self.batch_size
        for count, example in enumerate(self._examples()):
            if count >= skip:
                seed = _seed(self.seed, _STREAM, self.process_index, worker_id, count)
                yield _augment(self.augmentation, example, self.class_list, seed)
