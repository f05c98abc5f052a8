# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""From a file, an address, a PIL image, an array or a tensor to pixels or labels. Every image is opened here."""

import asyncio
import base64
import contextlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub import get_async_session
from torch import Tensor
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.utils import logging


__all__ = [
    "LONGEST_SIDE",
    "WHITE_NORMALIZED",
    "clip_to_pixels",
    "image_to_tensor",
    "label_map_to_tensor",
    "open_image",
    "reading",
    "with_file",
]

logger = logging.get_logger(__name__)

LONGEST_SIDE = 2**20  # in pixels. Resizing a longer line of pixels takes gigabytes.
WHITE_NORMALIZED = 2.7  # just above white after normalization with ImageNet's mean and standard deviation

# Limits on reading from an address.
_DOWNLOAD_BYTES = 256 * 2**20
_DOWNLOAD_SECONDS = 120  # in all, from looking up the host to the last byte
_DOWNLOAD_REDIRECTS = 10
_COMPRESSED = ("br", "compress", "deflate", "gzip", "x-gzip", "zstd")  # content encodings

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_CHUNK_PIXELS = 2**22  # converted at once
# How far floating point numbers may leave the range of pixels, as a part of it: the error of resizing and rounding.
_OVERSHOOT = 1e-3


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """
    Turns all errors that Pillow raises on a damaged file into one that names the file.

    Raises:
        OSError: for a file that cannot be read, or has more pixels than Pillow allows or the memory holds.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # the file system's message is complete
            raise
        reasons: dict[type[Exception], str] = {
            PIL.Image.DecompressionBombError: f"it has more pixels than Pillow considers safe ({error}). Make it "
            "smaller, or set PIL.Image.MAX_IMAGE_PIXELS = None if you trust its source",
            MemoryError: "it does not fit into memory. Make it smaller, or cut it into pieces",
            PIL.UnidentifiedImageError: "it is not an image in a format that Pillow knows, or it is damaged",
        }
        reason = reasons.get(type(error), f"it is damaged or unusual ({type(error).__name__}: {error})")
        raise OSError(f"{name} cannot be read: {reason}.") from error


async def _download(address: str) -> io.BytesIO:
    """The content at an address, within `_DOWNLOAD_BYTES` and `_DOWNLOAD_REDIRECTS`. Errors give the reason only."""
    async with get_async_session() as session:
        # The Hub's hook reads the body of an error, however far it unpacks.
        session.event_hooks = {**session.event_hooks, "response": []}
        headers = {"User-Agent": "unept-hf", "Accept-Encoding": "identity"}
        # The client itself would read the bodies of redirects, of any length.
        for _ in range(_DOWNLOAD_REDIRECTS + 1):
            async with session.stream("GET", address, headers=headers, follow_redirects=False) as answer:
                if answer.next_request is not None:
                    address = str(answer.next_request.url)
                    continue
                if not answer.is_success:
                    raise OSError(f"the server answers {answer.status_code} {answer.reason_phrase}")
                encoding = answer.headers.get("Content-Encoding", "")
                if encoding.lower() in _COMPRESSED:  # a few bytes could unpack to any number
                    raise OSError(f"the server compresses it with {encoding}: download and unpack it first")
                content = io.BytesIO()
                async for chunk in answer.aiter_raw():
                    if content.tell() + len(chunk) > _DOWNLOAD_BYTES:
                        raise OSError(f"it has more than the {_DOWNLOAD_BYTES} bytes that are read: make it smaller")
                    content.write(chunk)
                content.seek(0)
                return content
    raise OSError(f"the server redirects more than {_DOWNLOAD_REDIRECTS} times")


def _fetch(address: str) -> io.BytesIO:
    """`_download` within `_DOWNLOAD_SECONDS`, however slowly the server sends headers or content."""

    def run() -> io.BytesIO:
        # asyncio.run would wait for a name lookup that is still under way in a thread.
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(asyncio.wait_for(_download(address), _DOWNLOAD_SECONDS))
        finally:
            loop.close()

    # In a thread of its own, because the caller's may run an event loop, as in notebooks and servers.
    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(run).result()
    except Exception as error:
        reasons: dict[type[Exception], str] = {
            OSError: str(error),
            asyncio.TimeoutError: f"the server takes longer than {_DOWNLOAD_SECONDS} seconds",
        }
        reason = reasons.get(type(error), f"{type(error).__name__}: {error}")
        raise OSError(f"{address} cannot be fetched ({reason}).") from error
    finally:
        thread.shutdown(wait=False)  # so that Ctrl-C ends the wait


def open_image(source: str | os.PathLike) -> PIL.Image.Image:
    """
    Opens an image file, or fetches an image from an address (`http://`, `https://` or `data:image/`).

    The image keeps its palette, alpha channel and bit depth. An address is read through `huggingface_hub`'s
    asynchronous session: at most 256 MiB in 120 seconds after 10 redirects, and not at all with `HF_HUB_OFFLINE=1`.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the file cannot be read or the address cannot be fetched.
        ValueError: for PostScript.
    """
    source = os.fspath(source)
    file: str | io.BytesIO
    if source.startswith(("http://", "https://")):
        file = _fetch(source)
    elif source.startswith("data:image/"):
        source, _, content = source.partition(",")
        with reading(source):
            file = io.BytesIO(base64.b64decode(content))
    else:
        file = os.path.expanduser(source)
        if not os.path.isfile(file):  # opening a named pipe would wait
            raise FileNotFoundError(f"There is no file {source}: pass the path or address of an image file.")
    with reading(source):
        image = PIL.Image.open(file)
    if image.format == "EPS":
        raise ValueError(f"{source} is a PostScript program, which is not run: convert it to PNG first.")
    return image


def with_file(name: str, image) -> str:
    """`name`, which messages call an image, with the file of a PIL image."""
    file = getattr(image, "filename", None)
    return f"{name} ({os.fsdecode(file)})" if file else name


def _read_array(image, name: str, do_convert_rgb: bool | None = False) -> Tensor:
    """The pixels of an image in its own layout and dtype, over the same memory where PyTorch can use it."""
    if isinstance(image, Tensor):
        return image
    if isinstance(image, PIL.Image.Image):
        with reading(name):
            image = PIL.ImageOps.exif_transpose(image)
            # Integer ("I", "I;16") and float ("F") pixels are gray already. Pillow's conversion would cut them at 255.
            if do_convert_rgb and image.mode[0] not in "IF":
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            image = np.array(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"{name} is of type {type(image).__name__}: pass a PIL image, a NumPy array, a PyTorch tensor, or the "
            "path or address of an image file."
        )
    # PyTorch knows neither foreign byte orders nor negative strides, and warns about read-only memory.
    return torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["C", "W"]))


def _scale_to_8_bit(pixels: Tensor, name: str, has_alpha: bool) -> Tensor:
    """
    Brings pixels of any dtype to uint8 in [0, 255], or to float32 with their values unchanged.

    Booleans become 0 and 255. Integers that need 16 bits are divided by 257, which takes 65535 to 255. There is a
    warning when they look like the integers of a camera with 10, 12 or 14 bits, or like 8 bits in a wider type, and
    come out dark: none is as high as 2**14, and they are neither 8 bits stretched to 16 (multiples of 257) nor shifted
    to the upper bits (multiples of 4). A dark image of full 16 bits looks the same, and warns too.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    is_float = pixels.is_floating_point()
    chunks = pixels.flatten().split(_CHUNK_PIXELS)
    ranges = [(chunk if is_float else chunk.to(torch.int64)).aminmax() for chunk in chunks]
    low = torch.stack([one.min for one in ranges]).min().item()
    high = torch.stack([one.max for one in ranges]).max().item()
    finite = torch.finfo(torch.float32)
    lowest, highest = (finite.min, finite.max) if is_float and not has_alpha else (0, 255 if is_float else 65535)
    if not lowest <= low <= high <= highest:  # NaN is not either
        raise ValueError(
            f"{name} holds values in [{low:g}, {high:g}] of {pixels.dtype}. Integers must be in [0, 255] (8 bit) or "
            "[0, 65535] (16 bit). Floating point numbers must be finite. In an image with an alpha channel, colors "
            "and the alpha channel must be in [0, 1] or [0, 255]: scale the image, or drop its alpha channel."
        )
    if is_float:
        return pixels.float()
    is_16_bit = pixels.dtype == torch.uint16 or high > 255
    bits = next((bits for bits in (8, 10, 12, 14) if 0 < high < 2**bits), None)
    if is_16_bit and bits and all(any((one.to(torch.int64) % step).any() for one in chunks) for step in (257, 4)):
        logger.warning_once(
            f"An image of 16 bit integers holds none above {2**bits - 1}, as if it had {bits} bits, and comes out "
            f"dark. If it has {bits} bits, shift it to the left by {16 - bits}: image << {16 - bits}."
        )
    scaled = torch.empty(pixels.shape, dtype=torch.uint8, device=pixels.device)
    for part, chunk in zip(scaled.view(-1).split(_CHUNK_PIXELS), chunks):
        chunk = chunk.to(torch.int64)
        part.copy_((chunk + 128) // 257 if is_16_bit else chunk)
    return scaled


def _composite_on_white(pixels: Tensor) -> Tensor:
    """RGBA of `(4, height, width)`, as `_scale_to_8_bit` returns it, to RGB over white."""
    if pixels.is_floating_point():
        white = 1.0 if pixels.max() <= 1 else 255.0
        return (pixels[:3] * pixels[3:] + white * (white - pixels[3:])) / white
    composite = torch.empty_like(pixels[:3], memory_format=torch.contiguous_format)
    rows = max(1, _CHUNK_PIXELS // pixels.shape[2])
    for part, band in zip(composite.split(rows, dim=1), pixels.split(rows, dim=1)):
        alpha = band[3:].int()
        part.copy_((band[:3] * alpha + 255 * (255 - alpha) + 127) // 255)
    return composite


def image_to_tensor(
    image: "str | os.PathLike | PIL.Image.Image | np.ndarray | Tensor",
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    name: str = "image",
) -> Tensor:
    """
    Reads one image.

    Args:
        image: The path or address of an image file (see `open_image`), a PIL image of any mode (its EXIF orientation
            is applied), or an array or tensor of `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)` with 1 (gray), 3 (RGB) or 4 (RGBA) channels, of any real dtype.
        do_convert_rgb: Whether to repeat the channel of gray images and to lay transparent ones over white.
        input_data_format: Where arrays and tensors have their channels. `None` looks for a side of 1, 3 or 4.
        name: What messages call the image.

    Returns:
        `(channels, height, width)`: uint8, or float32 for floating point numbers.

    Raises:
        TypeError: for anything but an image.
        OSError: for missing or damaged files.
        ValueError: for images that are empty or too long, or have another number of channels, NaN or infinite pixels,
            or integers out of range.
    """
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    name = with_file(name, image)
    pixels = _read_array(image, name, do_convert_rgb)
    shape = tuple(pixels.shape)
    if pixels.dim() == 2:
        pixels, input_data_format = pixels[None], ChannelDimension.FIRST
    elif isinstance(image, PIL.Image.Image):
        input_data_format = ChannelDimension.LAST
    elif input_data_format is None:
        with contextlib.suppress(ValueError):  # the shape is refused below
            # Only the shape is looked at.
            input_data_format = infer_channel_dimension_format(pixels, num_channels=_CHANNELS)  # type: ignore[arg-type]
    if pixels.dim() == 3 and input_data_format and ChannelDimension(input_data_format) == ChannelDimension.LAST:
        pixels = pixels.permute(2, 0, 1)
    sides = pixels.shape[1:]
    if len(sides) != 2 or pixels.shape[0] not in _CHANNELS or not 1 <= min(sides) <= max(sides) <= LONGEST_SIDE:
        raise ValueError(
            f"{name} has shape {shape} and input_data_format={input_data_format}: pass an image of (height, width), "
            "(height, width, channels) or (channels, height, width) with 1 (gray), 3 (RGB) or 4 (RGBA) channels and "
            f"sides of 1 to {LONGEST_SIDE} pixels."
        )

    pixels = _scale_to_8_bit(pixels, name, has_alpha=bool(do_convert_rgb) and pixels.shape[0] == 4)
    if do_convert_rgb:
        pixels = _composite_on_white(pixels) if pixels.shape[0] == 4 else pixels.expand(3, -1, -1)
    return pixels.contiguous()


def clip_to_pixels(
    pixels: Tensor, do_rescale: bool | None, rescale_factor: float | None, do_normalize: bool | None, name: str
) -> Tensor:
    """
    Checks that floating point numbers that are about to be rescaled or normalized can be pixels, in [0, 1] or [0, 255]
    (or up to `1 / rescale_factor`, if that is more), and clips a small overshoot. Integers, and numbers that are
    neither rescaled nor normalized, are returned as they are.

    Raises:
        ValueError: if they are in another range, as after a normalization.
    """
    if not pixels.is_floating_point() or not (do_rescale or do_normalize):
        return pixels
    low, high = (float(limit) for limit in pixels.aminmax())
    most = max(255.0, 1 / rescale_factor) if do_rescale and rescale_factor else 255.0
    if low < -_OVERSHOOT * max(high, 1) or high > most * (1 + _OVERSHOOT):
        raise ValueError(
            f"{name} holds floating point numbers in [{low:g}, {high:g}], which are not pixels in [0, 1] or "
            f"[0, {most:g}]: scale or clip it to this range, or pass do_rescale=False and do_normalize=False if it is "
            "normalized already."
        )
    return pixels.clamp(0, most) if low < 0 or high > most else pixels


def label_map_to_tensor(
    label_map: "str | os.PathLike | PIL.Image.Image | np.ndarray | Tensor",
    image_size: tuple[int, int],
    ignore_index: int = 255,
    name: str = "label map",
) -> Tensor:
    """
    Reads the label map of one image.

    Args:
        label_map: The path or address of an image file, a PIL image with one channel (its EXIF orientation is applied,
            palettes are left as indices), or an array or tensor of `(height, width)`, `(height, width, 1)` or
            `(1, height, width)`, of whole numbers of any dtype.
        image_size: (height, width) of its image.
        ignore_index: The one label that may be negative.
        name: What messages call the label map.

    Returns:
        `(height, width)`, int64.

    Raises:
        TypeError: for anything but an image.
        OSError: for missing or damaged files.
        ValueError: for color images, and for label maps of another size, with fractions, or with negative labels.
    """
    if isinstance(label_map, (str, os.PathLike)):
        label_map = open_image(label_map)
    name = with_file(name, label_map)
    labels = _read_array(label_map, name)
    if tuple(labels.shape) not in ((*image_size,), (1, *image_size), (*image_size, 1)):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)} but its image has size {tuple(image_size)}: pass one class index "
            "for each pixel. Resize the label map (nearest) to its image, pair it with the right image, or translate "
            "the colors of an RGB label map to class indices."
        )
    labels = labels.reshape(image_size)
    whole = labels.to(torch.int64)
    wrong = (whole < 0) & (whole != ignore_index)
    if labels.is_floating_point():
        wrong |= whole != labels  # as NaN is
    if wrong.any():
        raise ValueError(
            f"{name} holds the label {labels[wrong][0].item():g}: labels must be whole numbers from 0, and "
            f"ignore_index={ignore_index} for pixels to ignore."
        )
    return whole
