# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The frames of video files, read and written with PyAV, which the extra `video` installs."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


__all__ = ["VIDEO_SUFFIXES", "VideoReader", "VideoWriter"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
# What FFmpeg may read. Playlists, for example, would make it read other files and addresses.
_DEMUXERS = "asf,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,ogg,yuv4mpegpipe"
_MOST_PIXELS = 2**26  # of a frame, twice those of 8K
# The first that FFmpeg was built with: H.264, or else MPEG-4.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
_MPEG4_TICKS = 65535  # most in a second


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError('Videos need PyAV: pip install "unept-hf[video]".') from error
    return av


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns all errors of FFmpeg on a damaged file into one that names the file."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OSError(
            f"{path} cannot be read: it is not a video in a format that FFmpeg knows, or it is damaged ({reason})."
        ) from error


class VideoReader:
    """
    The frames of a video file, one after the other.

    Args:
        path: a file on this machine. The first frame gives the size of all.

    Attributes:
        rate: frames in a second, on average.
        time_base: the unit of times in the file, in seconds.
        count: number of frames, as far as the file says it.
        num_pixels: number of pixels in a frame, as far as the file says it.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without PyAV.
        OSError: for files that cannot be read, have no frames, or frames of more than 67 million pixels.
    """

    def __init__(self, path: str | os.PathLike):
        av = _import_av()
        self.path = os.fspath(path)
        file = os.path.abspath(os.path.expanduser(self.path))  # no address
        if not os.path.isfile(file):  # opening a named pipe would wait
            raise FileNotFoundError(f"There is no file {self.path}: pass the path of a video.")
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file", "max_pixels": str(_MOST_PIXELS)}
        with _reading(self.path):
            self.container = av.open(file, options=options, metadata_errors="replace")
        try:
            stream = self.container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise OSError(f"{self.path} cannot be read: it has no video.")
            with _reading(self.path):
                stream.thread_type = "AUTO"
                stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
                self.num_pixels = stream.width * stream.height
                self.rate = stream.average_rate or stream.guessed_rate or Fraction(0)
                self.time_base = stream.time_base or Fraction(0)
                self.count = stream.frames or None
                if self.count is None and self.container.duration:
                    self.count = max(1, round(self.rate * self.container.duration / av.time_base))
        except BaseException:
            self.container.close()
            raise
        if not 0 < self.rate <= 1000:
            self.rate = Fraction(25)
        if not Fraction(1, 1_000_000) <= self.time_base <= 1 / self.rate:
            self.time_base = Fraction(1, 90_000)
        self.stream = stream

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Times in seconds since the first frame, and pixels, upright: uint8 `(height, width, 3)`."""
        decoder = self.container.decode(self.stream)
        size: dict[str, int] = {}
        start, last = None, -1 / self.rate
        while True:
            with _reading(self.path):
                frame = next(decoder, None)
                if frame is None:
                    break
                size = size or {"width": frame.width, "height": frame.height}
                # Counterclockwise, as rot90.
                pixels = np.rot90(frame.to_ndarray(format="rgb24", **size), round(frame.rotation / 90))
                time = None if frame.pts is None else frame.pts * (frame.time_base or self.time_base)
            start = time if start is None else start
            # Files without times, and those whose times do not increase, have frames at the average rate.
            time = None if time is None or start is None else time - start
            last = time if time is not None and time > last else last + 1 / self.rate
            yield last, np.ascontiguousarray(pixels)
        if not size:
            raise OSError(f"{self.path} cannot be read: it has no frames.")


class VideoWriter:
    """
    Writes a video file without sound: H.264 where FFmpeg has an encoder for it, and MPEG-4 otherwise.

    Args:
        path: the file, whose suffix gives its format; `.mp4` takes both codecs.
        size: (height, width) of the frames in pixels.
        rate: frames in a second, on average.
        time_base: the unit of times in the file, in seconds.

    Raises:
        OSError: for a file that cannot be written.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], rate: Fraction, time_base: Fraction):
        av = _import_av()
        self.path = path
        height, width = size
        is_even = height % 2 == width % 2 == 0
        name = next(name for name in ENCODERS if name in av.codecs_available and (is_even or name != "libopenh264"))
        if name == "mpeg4":
            time_base = (1 / rate).limit_denominator(_MPEG4_TICKS)
        settings: dict[str, Any] = {"width": width, "height": height}
        if name != "libx264":  # which aims at a quality, the others at a number of bits
            settings["bit_rate"] = min(round(0.2 * height * width * float(rate)), 2**30)
        elif not is_even:
            settings["pix_fmt"] = "yuv444p"  # yuv420p has colors for 2 x 2 pixels
        with self._writing():
            self.container = av.open(os.fspath(path), "w")
            self.stream = self.container.add_stream(name, rate.limit_denominator(_MPEG4_TICKS), **settings)
            self.stream.codec_context.time_base = time_base
        self.frame_from = av.VideoFrame.from_ndarray
        self.time_base, self.last = time_base, -1

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise OSError(
                f"The video {Path(self.path).name} cannot be written ({reason}): name a file that ends with .mp4, on "
                "a disk with room for it."
            ) from error

    def write(self, time: Fraction, pixels: np.ndarray) -> None:
        """Adds a frame: its time in seconds, later than that of the frame before, and its pixels."""
        with self._writing():
            frame = self.frame_from(pixels, format="rgb24")
            # Two times may be the same in the unit of the file.
            self.last = frame.pts = max(round(time / self.time_base), self.last + 1)
            frame.time_base = self.time_base
            self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is not None:
            self.container.close()
            return
        with self._writing():
            self.container.mux(self.stream.encode(None))
            self.container.close()
