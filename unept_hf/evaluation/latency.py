# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""How long a model takes on this machine, and how much memory."""

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Iterator

import psutil
import torch
from torch import Tensor, nn

from ..inference.segment import evaluation_mode
from ..model.deformable_attention import attention_backend


__all__ = ["measure_latency", "peak_memory"]


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """
    Measures memory: what PyTorch allocates on CUDA, the resident memory of the process (looked at 1,000 times a
    second) on the CPU, and nothing elsewhere.

    Yields:
        A dictionary that gets two entries in bytes when the block ends, or `None` where nothing is measured: `bytes`,
        the most above the memory in use when the block began, and `total_bytes`, the most in all.
    """
    measured: dict[str, int | None] = {"bytes": None, "total_bytes": None}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield measured
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
            ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed counts as in use
        process, done = psutil.Process(), threading.Event()
        before = peak = process.memory_info().rss

        def watch():
            nonlocal peak
            while not done.wait(0.001):
                peak = max(peak, process.memory_info().rss)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield measured
        finally:
            done.set()
            watcher.join()
        peak = max(peak, process.memory_info().rss)
    else:
        yield measured
        return
    measured.update(bytes=peak - before, total_bytes=peak)


def measure_latency(model: nn.Module, pixel_values: Tensor, backend: str = "auto", repeats: int = 10) -> dict:
    """
    How long a model takes for a batch, without image processing.

    Args:
        model: a segmentation model, on a device.
        pixel_values: `(batch, channels, height, width)`, on that device.
        backend: backend of deformable attention, a name that `attention_backend` takes.
        repeats: number of runs, after two runs that are not timed.

    Returns:
        `median_seconds` and `fastest_seconds` for the batch, `images_per_second` by the median, and
        `peak_memory_bytes` of the first run above the model's own memory (see `peak_memory`).
    """
    device = pixel_values.device

    def run():
        model(pixel_values=pixel_values)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    seconds = []
    with attention_backend(backend), evaluation_mode(model), torch.inference_mode():
        with peak_memory(device) as memory:
            run()
        run()
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "images_per_second": len(pixel_values) / median,
        "peak_memory_bytes": memory["bytes"],
    }
