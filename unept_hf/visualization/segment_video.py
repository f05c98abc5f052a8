# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""A video with its classes over it, frame by frame, in bounded memory."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files import atomic_directory, atomic_file
from ..inference.options import PredictionOptions
from ..inference.segment import segment_batch
from .overlay import class_palette, label_map_to_image, overlay
from .video_files import VideoReader, VideoWriter


__all__ = ["segment_video"]

SCORE_BYTES = 2**30  # that the scores of the frames of a batch may take


def segment_video(
    model: nn.Module,
    processor: Any,
    path: str | os.PathLike,
    output: str | os.PathLike | None,
    options: PredictionOptions | None = None,
    *,
    label_maps: str | os.PathLike | None = None,
    overwrite: bool = False,
    smoothing: float = 0.0,
    palette: Any = None,
    opacity: float = 0.6,
    progress: bool | None = None,
    **overrides: Any,
) -> int:
    """
    Writes a video with its classes over it, and optionally the label map of each frame.

    The new video has the size of the upright frames and the times of the frames of the old one, without its sound. It
    is H.264 where FFmpeg has an encoder for it, and MPEG-4 otherwise. Frames are read, segmented and written
    `batch_size` at a time, so the length of the video does not matter. An interrupted call leaves no results.

    `smoothing` steadies the classes: the scores of a frame become `smoothing` times those of the frame before, as they
    became, plus `1 - smoothing` times its own. This makes changes appear late, by `smoothing / (1 - smoothing)` frames
    on average, so that moving objects trail: 1 frame at 0.5, 4 at 0.8 and 9 at 0.9. It takes `4 * num_labels` bytes
    for each pixel of a frame.

    Args:
        model, processor, options, overrides: as in `segment`.
        path: the video, a file on this machine in any format that FFmpeg reads.
        output: the new video, an `.mp4` file; `None` for label maps alone. An existing file is replaced.
        label_maps: a new directory for label maps of all frames, `000000.png` for the first, as PNG files with the
            colors of the classes; 16-bit without colors for more than 256 classes.
        overwrite: whether to replace an existing directory of label maps.
        smoothing: from 0 (each frame by itself) to below 1.
        palette: as in `overlay`; `None` stands for the model's `class_colors`.
        opacity: as in `overlay`.
        progress: whether to show a progress bar. `None` shows one on terminals.

    Returns:
        The number of frames.

    Raises:
        ImportError: without PyAV, which the extra `video` installs.
        FileExistsError: if `label_maps` exists, or is not a directory of label maps.
        OSError: for a video that is missing or damaged, or cannot be written.
        ValueError: for options that cannot be used, and for an output that is the video itself.
    """
    options = replace(options or PredictionOptions(), **overrides)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}.")
    if output is not None and Path(output).expanduser().resolve() == Path(path).expanduser().resolve():
        raise ValueError(f"The output {output} is the video itself, which would be overwritten: name another file.")
    config: Any = model.config
    palette = class_palette(getattr(config, "class_colors", None) if palette is None else palette, config.id2label)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(VideoReader(path))
        directory = part = writer = None
        if label_maps is not None:
            directory = stack.enter_context(
                atomic_directory(label_maps, overwrite, kind="directory of label maps", marker="000000.png")
            )
        if output is not None:
            part = stack.enter_context(atomic_file(output))
        name, disable = Path(path).name, None if progress is None else not progress
        bar = stack.enter_context(tqdm(total=video.count, desc=name, unit="frame", disable=disable))
        number = -1
        for number, (time, pixels, label_map) in enumerate(_label_maps(model, processor, video, options, smoothing)):
            if directory is not None:
                label_map_to_image(label_map, config.num_labels, palette).save(directory / f"{number:06}.png")
            if part is not None:
                if writer is None:
                    writer = VideoWriter(part, pixels.shape[:2], video.rate, video.time_base)
                    stack.enter_context(writer)
                writer.write(time, np.asarray(overlay(pixels, label_map, palette, opacity)))
            bar.update()
    return number + 1


def _label_maps(
    model: nn.Module, processor: Any, video: VideoReader, options: PredictionOptions, smoothing: float
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Time, pixels and label map of each frame."""
    frames = iter(video)
    average: Tensor | None = None
    batch_size = options.batch_size
    if smoothing:
        config: Any = model.config
        batch_size = max(1, min(batch_size, SCORE_BYTES // max(1, 4 * config.num_labels * video.num_pixels)))
    while batch := list(itertools.islice(frames, batch_size)):
        images = [PIL.Image.fromarray(pixels) for _, pixels in batch]
        results = segment_batch(model, processor, images, options, return_scores=smoothing > 0, progress=False)
        for (time, pixels), result in zip(batch, results):
            label_map = result.label_map
            if result.scores is not None:
                average = result.scores if average is None else average.lerp_(result.scores, 1 - smoothing)
                label_map = average.argmax(0)
            yield time, pixels, label_map.numpy()
