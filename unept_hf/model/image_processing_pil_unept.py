# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Image processor of UN-EPT on PIL and NumPy, and what the torchvision one shares with it: how images and label maps are
read, checked and sized. The shared part lives here because this file works without torchvision.
"""

import asyncio
import base64
import contextlib
import io
import numbers
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub import get_async_session
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    torch_pil_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .boundary import boundary_targets
from .post_processing_unept import post_process_semantic_segmentation


logger = logging.get_logger(__name__)

# Limits on what is read from an address.
DOWNLOAD_BYTES = 256 * 2**20
DOWNLOAD_SECONDS = 120  # in all, from looking up the host to the last byte
DOWNLOAD_REDIRECTS = 10
COMPRESSED = ("br", "compress", "deflate", "gzip", "x-gzip", "zstd")  # content encodings

# How far floating point numbers may leave the range of pixels, as a part of it: what resizing and rounding add.
OVERSHOOT = 1e-3
WHITE_NORMALIZED = 2.7  # just above what ImageNet's mean and standard deviation make of white

LONGEST_SIDE = 2**20  # in pixels. Resizing a longer line of pixels takes gigabytes.
CHUNK_PIXELS = 2**22  # converted at once


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """
    Turns whatever Pillow raises on a damaged file into one error that names it.

    Raises:
        ValueError: for images of more pixels than Pillow allows, or than fit into memory.
        OSError: for files that can not be read, for any other reason.
    """
    try:
        yield
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more pixels than Pillow takes for safe ({error}): make it smaller, or set "
            "PIL.Image.MAX_IMAGE_PIXELS = None if you trust its source."
        ) from error
    except MemoryError as error:
        raise ValueError(f"{name} does not fit into memory: make it smaller, or cut it into pieces.") from error
    except PIL.UnidentifiedImageError as error:
        raise OSError(f"{name} is no image file that Pillow knows: it may be damaged, or of another kind.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # the file system's, which says it all
            raise
        reason = f"{type(error).__name__}: {error}"
        raise OSError(f"{name} can not be read, because it is damaged or unusual ({reason}).") from error


async def download(address: str) -> io.BytesIO:
    """
    What is at an address, in at most `DOWNLOAD_BYTES`.

    Raises:
        OSError: for too many bytes or redirects, and for answers that are an error or compressed. Says only why.
    """
    async with get_async_session() as session:
        # The Hub's hook reads the body of an error, however far it unpacks.
        session.event_hooks = {**session.event_hooks, "response": []}
        headers = {"User-Agent": "unept-hf", "Accept-Encoding": "identity"}
        # The client itself would read the bodies of redirects, of any length.
        for _ in range(DOWNLOAD_REDIRECTS + 1):
            async with session.stream("GET", address, headers=headers, follow_redirects=False) as answer:
                if answer.next_request is not None:
                    address = answer.next_request.url
                    continue
                if not answer.is_success:
                    raise OSError(f"the server answers {answer.status_code} {answer.reason_phrase}")
                encoding = answer.headers.get("Content-Encoding", "")
                if encoding.lower() in COMPRESSED:  # a few bytes could unpack to any number
                    raise OSError(f"the server sends it compressed, as {encoding}: download and unpack it first")
                content = io.BytesIO()
                async for chunk in answer.aiter_raw():
                    if content.tell() + len(chunk) > DOWNLOAD_BYTES:
                        raise OSError(f"it has more than the {DOWNLOAD_BYTES} bytes that are read: make it smaller")
                    content.write(chunk)
                content.seek(0)
                return content
    raise OSError(f"the server redirects more than {DOWNLOAD_REDIRECTS} times")


def fetch(address: str) -> io.BytesIO:
    """
    [`download`] in at most `DOWNLOAD_SECONDS`, however slowly the server sends headers or content.

    Raises:
        OSError: when the address cannot be read within the limits.
    """
    try:
        # In a thread of its own, because the caller's may run an event loop, as in notebooks and servers.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, asyncio.wait_for(download(address), DOWNLOAD_SECONDS)).result()
    except asyncio.TimeoutError as error:
        reason = f"the server takes longer than {DOWNLOAD_SECONDS} seconds"
        raise OSError(f"{address} cannot be fetched ({reason}).") from error
    except Exception as error:
        reason = str(error) if type(error) is OSError else f"{type(error).__name__}: {error}"
        raise OSError(f"{address} cannot be fetched ({reason}).") from error


def open_image(source: "str | os.PathLike") -> PIL.Image.Image:
    """
    Opens an image file, or fetches one from an address (`http://`, `https://` or `data:image/`). It keeps its palette,
    alpha channel and bit depth. Addresses are read through `huggingface_hub`'s asynchronous session, within the limits
    of this module's `DOWNLOAD_BYTES`, `DOWNLOAD_SECONDS` and `DOWNLOAD_REDIRECTS`, and not at all with
    `HF_HUB_OFFLINE=1`.

    Raises:
        FileNotFoundError, IsADirectoryError: when there is no such file.
        OSError: when the address can not be fetched; and see [`reading`].
        ValueError: see [`reading`], and for PostScript.
    """
    source = os.fspath(source)
    if source.startswith(("http://", "https://")):
        file = fetch(source)
    elif source.startswith("data:image/"):
        source, _, content = source.partition(",")
        with reading(source):
            file = io.BytesIO(base64.b64decode(content))
    else:
        file = os.path.expanduser(source)
        if os.path.isdir(file):
            raise IsADirectoryError(f"{source} is a folder: pass the path or address of an image file.")
        if not os.path.isfile(file):
            raise FileNotFoundError(f"There is no file {source}: pass the path or address of an image file.")
    with reading(source):
        image = PIL.Image.open(file)
    if image.format == "EPS":
        raise ValueError(f"{source} is a PostScript program, which would have to be run: convert it to PNG first.")
    return image


def with_file(name: str, image) -> str:
    """What messages call an image, with the file that it comes from, if any."""
    file = getattr(image, "filename", None)  # of PIL images
    return f"{name} ({os.fsdecode(file)})" if file else name


def flatten_inputs(inputs, batch_ndim: int) -> list:
    """One list of the images in nested lists and in arrays of `batch_ndim` dimensions."""
    if isinstance(inputs, (list, tuple)):
        return [image for item in inputs for image in flatten_inputs(item, batch_ndim)]
    if isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == batch_ndim:
        return list(inputs)
    return [inputs]


def array_to_tensor(array: np.ndarray | Tensor, name: str) -> Tensor:
    """A tensor over the same memory where PyTorch can use that, else over a copy."""
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} is of type {type(array).__name__}: pass a PIL image, a NumPy array, a PyTorch tensor, or the "
            "path or address of an image file."
        )
    # PyTorch knows neither foreign byte orders nor negative strides, and warns of read-only memory.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def scale_to_8_bit(pixels: Tensor, name: str) -> Tensor:
    """
    Brings pixels of any dtype to uint8 in [0, 255], or to float32 with their values unchanged.

    Booleans become 0 and 255. Integers that need 16 bits are divided by 257, which takes 65535 to 255. There is a
    warning when they look like those of a camera with 10, 12 or 14 bits, or like 8 bits in a wider type, and come out
    dark: none is as high as 2**14, and they are neither those of 8 bits stretched to 16 (multiples of 257) nor shifted
    to the upper bits (multiples of 4). A dark image of full 16 bits cannot be told apart from these, and warns too.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_floating_point():
        if not pixels.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values: replace them, for example by torch.nan_to_num.")
        return pixels.float()
    if pixels.is_complex():
        raise ValueError(f"{name} is of dtype {pixels.dtype}: pass real numbers.")
    chunks = pixels.flatten().split(CHUNK_PIXELS)
    ranges = [chunk.to(torch.int64).aminmax() for chunk in chunks]
    low, high = min(int(one.min) for one in ranges), max(int(one.max) for one in ranges)
    if low < 0 or high > 65535:
        raise ValueError(
            f"{name} holds integers in [{low}, {high}]: scale them to [0, 255] (8 bit) or [0, 65535] (16 bit)."
        )
    is_16_bit = pixels.dtype == torch.uint16 or high > 255
    bits = next((bits for bits in (8, 10, 12, 14) if 0 < high < 2**bits), None)
    if is_16_bit and bits and all(any((one.to(torch.int64) % step).any() for one in chunks) for step in (257, 4)):
        logger.warning_once(
            f"An image of 16 bit integers holds none above {2**bits - 1}, as if it had {bits} bits, and comes out "
            f"dark. If it has {bits} bits, shift it to the left by {16 - bits}: image << {16 - bits}."
        )
    scaled = torch.empty(pixels.shape, dtype=torch.uint8, device=pixels.device)
    for part, chunk in zip(scaled.view(-1).split(CHUNK_PIXELS), chunks):
        chunk = chunk.to(torch.int64)
        part.copy_((chunk + 128) // 257 if is_16_bit else chunk)
    return scaled


def composite_on_white(pixels: Tensor, name: str) -> Tensor:
    """RGBA of `(4, height, width)`, in uint8 or float32 as `scale_to_8_bit` returns it, to RGB over white."""
    colors, alpha = pixels[:3], pixels[3:]
    if pixels.dtype == torch.uint8:
        composite = torch.empty_like(colors, memory_format=torch.contiguous_format)
        rows = max(1, CHUNK_PIXELS // pixels.shape[2])
        for part, band in zip(composite.split(rows, dim=1), pixels.split(rows, dim=1)):
            alpha = band[3:].int()
            part.copy_((band[:3] * alpha + 255 * (255 - alpha) + 127) // 255)
        return composite
    low, high = (float(value) for value in pixels.aminmax())
    if low < 0 or high > 255:
        raise ValueError(
            f"{name} has an alpha channel and values in [{low}, {high}]: scale them to [0, 1] or [0, 255], or drop "
            "the alpha channel."
        )
    white = 1.0 if high <= 1 else 255.0
    return (colors * alpha + white * (white - alpha)) / white


def clip_to_pixels(
    pixels: Tensor, do_rescale: bool | None, rescale_factor: float | None, do_normalize: bool | None, name: str
) -> Tensor:
    """
    Checks that floating point numbers that are about to be rescaled or normalized can be pixels, of [0, 1] or [0, 255]
    (or up to `1 / rescale_factor`, where that is more), and clips what passes that range by no more than `OVERSHOOT`.
    Integers, and numbers that are neither rescaled nor normalized, are returned as they are.

    Raises:
        ValueError: when they are in another range, such as after a normalization.
    """
    if not pixels.is_floating_point() or not (do_rescale or do_normalize):
        return pixels
    low, high = (float(limit) for limit in pixels.aminmax())
    most = max(255.0, 1 / rescale_factor) if do_rescale else 255.0
    if low < -OVERSHOOT * max(high, 1) or high > most * (1 + OVERSHOOT):
        raise ValueError(
            f"{name} holds floating point numbers in [{low:g}, {high:g}], which are no pixels of [0, 1] or "
            f"[0, {most:g}]: scale or clip it to these, or pass do_rescale=False and do_normalize=False if it is "
            "normalized already."
        )
    return pixels.clamp(0, most) if low < 0 or high > most else pixels


def image_to_tensor(
    image: "PIL.Image.Image | np.ndarray | Tensor",
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    name: str = "image",
) -> Tensor:
    """
    Reads one image.

    Args:
        image: A PIL image of any mode (its EXIF orientation is applied), or an array or tensor of `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1 (gray), 3 (RGB) or 4 (RGBA) channels, of
            any real dtype.
        do_convert_rgb: Whether to repeat the channel of gray images and to lay transparent ones over white.
        input_data_format: Where arrays and tensors have their channels. `None` looks for a side of 1, 3 or 4.
        name: What messages call the image.

    Returns:
        `(channels, height, width)`: uint8, or float32 where floating point numbers were given.

    Raises:
        TypeError: for anything else than an image.
        OSError: for damaged files.
        ValueError: for images that are empty, or have another number of channels, NaN or infinite pixels, or integers
            out of range.
    """
    name = with_file(name, image)
    shape = image.size[::-1] if isinstance(image, PIL.Image.Image) else tuple(getattr(image, "shape", ()))
    if max(shape, default=0) > LONGEST_SIDE:
        raise ValueError(
            f"{name} has shape {shape}: sides of more than {LONGEST_SIDE} pixels are not supported, crop it."
        )
    if isinstance(image, PIL.Image.Image):
        with reading(name):
            image = PIL.ImageOps.exif_transpose(image)
            # Integer ("I", "I;16") and float ("F") pixels are gray already. Pillow's conversion would cut them at 255.
            if do_convert_rgb and image.mode[0] not in "IF":
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            image = np.array(image)
        input_data_format = ChannelDimension.LAST

    pixels = array_to_tensor(image, name)
    shape = tuple(pixels.shape)
    if pixels.dim() == 2:
        pixels = pixels[None]
        input_data_format = ChannelDimension.FIRST
    if pixels.dim() != 3:
        raise ValueError(
            f"{name} has shape {shape}: pass images of shape (height, width), (height, width, channels) or (channels, "
            "height, width)."
        )
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}: an image needs at least one pixel.")
    try:
        if input_data_format is None:
            input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
        if ChannelDimension(input_data_format) == ChannelDimension.LAST:
            pixels = pixels.permute(2, 0, 1)
        if pixels.shape[0] not in (1, 3, 4):
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"{name} has shape {shape} with input_data_format={input_data_format}: images need 1 (gray), 3 (RGB) or 4 "
            "(RGBA) channels, first or last. Choose the channels that show the image, and expand gray with alpha to "
            "RGBA."
        ) from error

    pixels = scale_to_8_bit(pixels, name)
    if do_convert_rgb and pixels.shape[0] == 4:
        pixels = composite_on_white(pixels, name)
    elif do_convert_rgb:
        pixels = pixels.expand(3, -1, -1)
    return pixels.contiguous()


def label_map_to_tensor(
    label_map: "PIL.Image.Image | np.ndarray | Tensor",
    image_size: tuple[int, int],
    ignore_index: int = 255,
    name: str = "segmentation map",
) -> Tensor:
    """
    Reads the label map of one image.

    Args:
        label_map: A PIL image with one channel (its EXIF orientation is applied, palettes are left as indices), or an
            array or tensor of `(height, width)`, `(height, width, 1)` or `(1, height, width)`, of integers of any
            dtype.
        image_size: (height, width) of the image that it belongs to.
        ignore_index: The one label that may be negative.
        name: What messages call the label map.

    Returns:
        `(height, width)`, int64.

    Raises:
        TypeError: for anything else than an image.
        OSError: for damaged files.
        ValueError: for colour images, and for label maps of another size, with fractions, or with negative labels.
    """
    name = with_file(name, label_map)
    if isinstance(label_map, PIL.Image.Image):
        with reading(name):
            label_map = np.array(PIL.ImageOps.exif_transpose(label_map))
    labels = array_to_tensor(label_map, name)
    shape = tuple(labels.shape)
    if shape == (1, *image_size):
        labels = labels[0]
    elif shape == (*image_size, 1):
        labels = labels[..., 0]
    if labels.dim() != 2:
        raise ValueError(
            f"{name} has shape {shape}: pass class indices of shape (height, width). Translate the colours of an RGB "
            "label map to class indices first."
        )
    if labels.shape != image_size:
        raise ValueError(
            f"{name} has size {tuple(labels.shape)} but its image has {image_size}: each pixel of the image needs one "
            "label. Resize the label map (nearest) to its image, or pair it with the right one."
        )
    if labels.is_floating_point() and not (labels == labels.round()).all():  # NaN is unequal to itself
        raise ValueError(f"{name} holds fractions or NaN: labels have to be whole numbers.")
    labels = labels.to(torch.int64)
    negative = labels[(labels < 0) & (labels != ignore_index)]
    if negative.numel() > 0:
        raise ValueError(
            f"{name} holds the negative label {int(negative.min())}: mark pixels to ignore with "
            f"ignore_index={ignore_index}."
        )
    return labels


def reduce_labels(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Moves classes down by one: 0 becomes `ignore_index`, which stays, and any other label n becomes n - 1."""
    return torch.where((labels == 0) | (labels == ignore_index), ignore_index, labels - 1)


def resize_label_map(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map `(height, width)` of any dtype to `size`: each pixel takes the label at its centre (nearest-exact)."""
    rows, columns = (
        (2 * torch.arange(new, device=labels.device) + 1) * old // (2 * new) for old, new in zip(labels.shape, size)
    )
    # Several times faster than by one index of two dimensions.
    return labels.index_select(0, rows).gather(1, columns.expand(len(rows), -1))


def resized_size(height: int, width: int, size: SizeDict, size_divisor: int) -> tuple[int, int]:
    """
    (height, width) in pixels that an image is resized to.

    With `shortest_edge`, the image is scaled until its shorter side has that length, or less where its longer side
    would pass `longest_edge`. Both sides are then rounded to the nearest multiple of `size_divisor`, but to at least
    one and not past `longest_edge`. A fixed `height` and `width` are taken as they are.
    """
    if size.height:
        return size.height, size.width
    scale = size.shortest_edge / min(height, width)
    most = float("inf")
    if size.longest_edge:
        scale = min(scale, size.longest_edge / max(height, width))
        most = size.longest_edge // size_divisor
    multiples = (int(side * scale / size_divisor + 0.5) for side in (height, width))
    height, width = (min(max(multiple, 1), most) * size_divisor for multiple in multiples)
    return height, width


def resize_with_pillow(pixels: np.ndarray, size: SizeDict, resample: PILImageResampling) -> np.ndarray:
    """
    Resizes pixels `(..., height, width)`, uint8 or float32, to `size.height` and `size.width`.

    One channel at a time: that way Pillow resizes floating point numbers as they are instead of rounding them to 8
    bit, and does not weight colours by an alpha channel.
    """
    new_size = (size.width, size.height)
    channels = pixels.reshape(-1, *pixels.shape[-2:])
    resized = [np.array(PIL.Image.fromarray(channel).resize(new_size, resample)) for channel in channels]
    return np.stack(resized).reshape(*pixels.shape[:-2], size.height, size.width)


def finite_numbers(name: str, value) -> float | tuple[float, ...] | None:
    """A number as a float, and several in any kind of sequence as a tuple of these."""
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number, or one for each channel, got {value!r}.") from error
    if array.ndim > 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite number, or one for each channel, got {value!r}.")
    return tuple(array.tolist()) if array.ndim else float(array)


class UneptImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        What both sides of `pixel_values` are multiples of, so that the feature grids of the model stay aligned.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether to move the labels of segmentation maps down by one, for data sets in which 0 stands for no class: 0
        becomes `ignore_index`, which stays.
    ignore_index (`int`, *optional*, defaults to `self.ignore_index`):
        Label of pixels that have no class, and of padding; `semantic_loss_ignore_index` of the model's configuration.
    do_boundary_targets (`bool`, *optional*, defaults to `self.do_boundary_targets`):
        Whether to return the targets of the boundary heads with the labels. Needs the package `edt`.
    """

    size_divisor: int | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    do_boundary_targets: bool | None


class UneptPreprocessing:
    """
    What the image processors of both backends do alike. Goes before the backend among the bases of a class, which has
    to give `_to_backend(tensor, device)`: the tensor in the array type of the backend.
    """

    valid_kwargs = UneptImageProcessorKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]

    do_resize = True
    size: ClassVar[dict[str, int]] = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    size_divisor = 16
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_reduce_labels = False
    ignore_index = 255
    do_convert_rgb = True
    do_pad = True
    do_boundary_targets = False

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[UneptImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares images, and label maps where given, for the model.

        Args:
            images: An image, or a batch of images of any sizes: PIL images, arrays or tensors of `(height, width)`,
                `(height, width, channels)` or `(channels, height, width)`, paths or addresses of files, lists of
                these, or an array or tensor of four dimensions. 8 bit, 16 bit (scaled to 8), boolean or floating
                point. Floating point images are in [0, 255]; in [0, 1] with `do_rescale=False`; or in any range, such
                as after a normalization, with `do_rescale=False` and `do_normalize=False`.
            segmentation_maps: One label map for each image and of its size: whole numbers from 0, with
                `ignore_index` (255) for pixels to ignore. Given alike, with one channel or none, or as an array of
                three dimensions.
            kwargs: Any argument of the class, for this call only. Also `return_tensors` ("pt", "np" or
                `None` for lists), `device` for tensors, and `pad_size`, a {"height", "width"} to pad to.

        Returns:
            `pixel_values` `(batch_size, 3, height, width)`, float32, padded at the bottom and right with 0 (the mean
            colour); `image_sizes` `(batch_size, 2)`, int64, (height, width) of each image within that; and with label
            maps `labels`, with `do_boundary_targets` also `boundary_map` and `direction_map`, each
            `(batch_size, height, width)`, int64, padded with `ignore_index`.

        Raises:
            TypeError: for inputs that are not images.
            OSError: for files that are missing or damaged.
            ValueError: for images, label maps and arguments that can not be used. The message says what to do.
        """
        try:
            return super().preprocess(images, segmentation_maps, **kwargs)
        except StrictDataclassError as error:  # of an argument's type
            raise ValueError(str(error)) from error

    def fetch_images(self, image_url_or_urls):
        """
        Opens files and addresses, in any nesting, and passes images on as they are.

        Local files come with their palette, alpha channel and bit depth, so that both backends see the same pixels and
        label maps keep their indices.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls)
        return image_url_or_urls

    def process_image(
        self,
        image: "PIL.Image.Image | np.ndarray | Tensor",
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "torch.device | str | None" = None,
        do_rescale: bool | None = False,
        rescale_factor: float | None = None,
        do_normalize: bool | None = False,
        name: str = "image",
        **kwargs,
    ) -> "np.ndarray | Tensor":
        """Reads one image into the array type of the backend. See `image_to_tensor` and `clip_to_pixels`."""
        pixels = image_to_tensor(image, do_convert_rgb, input_data_format, name)
        pixels = clip_to_pixels(pixels, do_rescale, rescale_factor, do_normalize, with_file(name, image))
        if do_rescale and pixels.is_floating_point() and 0 < pixels.max() <= WHITE_NORMALIZED:
            logger.warning_once(
                f"An image of floating point numbers of at most {WHITE_NORMALIZED} is about to be rescaled as if they "
                "were in [0, 255]. Pass do_rescale=False if it is rescaled already, and do_normalize=False if it is "
                "normalized too."
            )
        return self._to_backend(pixels, device)

    def _standardize_kwargs(
        self, resample=None, rescale_factor=None, image_mean=None, image_std=None, **kwargs
    ) -> dict:
        """Brings what may be given in several forms to one, for both backends. Raises a `ValueError` for others."""
        for name in ("size", "crop_size", "pad_size"):
            if isinstance(kwargs.get(name), (tuple, list)) and len(kwargs[name]) != 2:
                raise ValueError(f"{name}={kwargs[name]} is no pair: pass (height, width).")
        kwargs = super()._standardize_kwargs(**kwargs)
        if resample is not None:
            try:
                resample = PILImageResampling(torch_pil_interpolation_mapping.get(resample, resample))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"resample={resample!r} is no filter of Pillow: pass one of PIL.Image.Resampling."
                ) from error
        rescale_factor = finite_numbers("rescale_factor", rescale_factor)
        if rescale_factor is not None and (isinstance(rescale_factor, tuple) or rescale_factor <= 0):
            raise ValueError(f"rescale_factor must be a number above 0, got {rescale_factor}.")
        image_mean, image_std = finite_numbers("image_mean", image_mean), finite_numbers("image_std", image_std)
        if image_std is not None and np.min(image_std) <= 0:
            raise ValueError(f"image_std must be above 0, got {image_std}.")
        return {
            **kwargs,
            "resample": resample,
            "rescale_factor": rescale_factor,
            "image_mean": image_mean,
            "image_std": image_std,
        }

    def _validate_preprocess_kwargs(self, **kwargs):
        if kwargs["do_center_crop"]:
            raise ValueError("do_center_crop is not supported: crop the images and label maps beforehand.")
        super()._validate_preprocess_kwargs(**kwargs)
        do_resize, size, size_divisor = kwargs["do_resize"], kwargs["size"], kwargs["size_divisor"]
        if not isinstance(size_divisor, numbers.Integral) or size_divisor < 1:
            raise ValueError(f"size_divisor must be a whole number of at least 1, got {size_divisor!r}.")
        if not isinstance(kwargs["ignore_index"], numbers.Integral):
            raise ValueError(f"ignore_index must be a whole number, got {kwargs['ignore_index']!r}.")
        if do_resize and not ((size.height and size.width) or size.shortest_edge):
            raise ValueError(
                f"size={dict(size)} is not supported: pass {{'height', 'width'}}, {{'shortest_edge'}} or "
                "{'shortest_edge', 'longest_edge'}."
            )
        pad_size = kwargs["pad_size"] if kwargs["do_pad"] else None
        if pad_size is not None and not (pad_size.height and pad_size.width):
            raise ValueError(f"pad_size={dict(pad_size)} is not supported: pass {{'height', 'width'}}.")
        for name, sides in (("size", size if do_resize else None), ("pad_size", pad_size)):
            if sides is None:
                continue
            lengths = dict(sides).values()
            if not all(isinstance(it, numbers.Integral) and it is not True and it > 0 for it in lengths):
                raise ValueError(f"{name}={dict(sides)} must be made of whole numbers of pixels, from 1.")
            if sides.height and (sides.height % size_divisor or sides.width % size_divisor):
                raise ValueError(
                    f"{name}={dict(sides)} has a side that is not a multiple of size_divisor={size_divisor}: choose "
                    "multiples, or another size_divisor if the model allows that."
                )
        if do_resize and size.longest_edge and size.longest_edge < size_divisor:
            raise ValueError(
                f"size={dict(size)} leaves no room for one multiple of size_divisor={size_divisor}: raise "
                "longest_edge or lower size_divisor."
            )
        if kwargs["do_normalize"] and kwargs["do_convert_rgb"]:
            self._check_channels(3, kwargs["image_mean"], kwargs["image_std"])
        device, return_tensors = kwargs["device"], kwargs["return_tensors"]
        for name, choices in {
            "data_format": (None, "channels_first"),
            "input_data_format": (None, "channels_first", "channels_last"),
            "return_tensors": (None, "pt", "np"),
        }.items():
            if kwargs[name] not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {kwargs[name]!r}.")
        if device is not None:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError, TypeError) as error:  # PyTorch raises all of these
                raise ValueError(f"device={device!r} cannot be used ({error}).") from error
            if return_tensors == "np" and torch.device(device).type != "cpu":
                raise ValueError(f"device={device!r} holds no NumPy arrays: pass return_tensors='pt'.")

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        do_reduce_labels: bool | None,
        ignore_index: int,
        do_boundary_targets: bool | None,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        return_tensors: str | TensorType | None,
        device: "torch.device | str | None" = None,
        **kwargs,
    ) -> BatchFeature:
        images = flatten_inputs(self.fetch_images(images), batch_ndim=4)
        if not images:
            raise ValueError("There are no images: pass at least one.")
        images = [
            self.process_image(
                image,
                do_convert_rgb,
                input_data_format,
                device,
                do_rescale=kwargs["do_rescale"],
                rescale_factor=kwargs["rescale_factor"],
                do_normalize=kwargs["do_normalize"],
                name=f"images[{index}]",
            )
            for index, image in enumerate(images)
        ]
        channels = {image.shape[0] for image in images}
        if len(channels) > 1:
            raise ValueError(
                f"The images have {sorted(channels)} channels: pass do_convert_rgb=True to make them alike."
            )
        if kwargs["do_normalize"]:
            self._check_channels(channels.pop(), kwargs["image_mean"], kwargs["image_std"])
        if segmentation_maps is not None:
            # Before the images are resized, so that bad label maps are found first.
            sizes = [tuple(image.shape[-2:]) for image in images]
            label_maps = self._read_label_maps(segmentation_maps, sizes, ignore_index)

        images = self._preprocess(images, **kwargs)
        sizes = [tuple(image.shape[-2:]) for image in images]
        padded_size = self._padded_size(sizes, do_pad, pad_size, kwargs["size_divisor"], return_tensors)
        if do_pad:
            images = self.pad(
                images,
                pad_size=SizeDict(height=padded_size[0], width=padded_size[1]),
                disable_grouping=kwargs.get("disable_grouping"),
            )
        data = {"pixel_values": images, "image_sizes": sizes}

        if segmentation_maps is not None:
            if do_reduce_labels:
                label_maps = [reduce_labels(labels, ignore_index) for labels in label_maps]
            targets = {"labels": [resize_label_map(labels, size) for labels, size in zip(label_maps, sizes)]}
            if do_boundary_targets:
                # Before the padding, which would make boundaries of its own.
                pairs = [boundary_targets(labels, ignore_index=ignore_index) for labels in targets["labels"]]
                targets["boundary_map"], targets["direction_map"] = (list(maps) for maps in zip(*pairs))
            for name, maps in targets.items():
                if do_pad:
                    margins = [(0, padded_size[1] - width, 0, padded_size[0] - height) for height, width in sizes]
                    maps = [F.pad(one, margin, value=ignore_index) for one, margin in zip(maps, margins)]
                data[name] = [self._to_backend(one, device) for one in maps]
        inputs = BatchFeature(data=data, tensor_type=return_tensors)
        return inputs.to(device) if device is not None and return_tensors == "pt" else inputs

    @staticmethod
    def _check_channels(channels: int, image_mean: float | tuple[float], image_std: float | tuple[float]):
        """The normalization needs one number for all channels, or one for each."""
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(
                    f"The images have {channels} channels but {name} has {len(value)} values: pass "
                    "do_convert_rgb=True, or an image_mean and image_std with a value for each channel."
                )

    def _read_label_maps(
        self, segmentation_maps, image_sizes: list[tuple[int, int]], ignore_index: int
    ) -> list[Tensor]:
        """The label maps `(height, width)`, int64, one for each image."""
        segmentation_maps = self.fetch_images(segmentation_maps)
        # Three dimensions are a batch only where the first counts the images. Otherwise they have one of channels.
        is_batch = getattr(segmentation_maps, "ndim", None) == 3 and len(segmentation_maps) == len(image_sizes)
        segmentation_maps = flatten_inputs(segmentation_maps, batch_ndim=3 if is_batch else 4)
        if len(segmentation_maps) != len(image_sizes):
            raise ValueError(
                f"There are {len(segmentation_maps)} segmentation maps for {len(image_sizes)} images: pass one for "
                "each."
            )
        return [
            label_map_to_tensor(label_map, image_size, ignore_index, name=f"segmentation_maps[{index}]")
            for index, (label_map, image_size) in enumerate(zip(segmentation_maps, image_sizes))
        ]

    @staticmethod
    def _padded_size(
        sizes: list[tuple[int, int]],
        do_pad: bool | None,
        pad_size: SizeDict | None,
        size_divisor: int,
        return_tensors: str | TensorType | None,
    ) -> tuple[int, int]:
        """(height, width) of the padded batch; without padding, a check that images of these sizes can do without."""
        largest = tuple(max(sides) for sides in zip(*sizes))
        if do_pad and pad_size is not None:
            if pad_size.height < largest[0] or pad_size.width < largest[1]:
                raise ValueError(
                    f"pad_size={dict(pad_size)} is smaller than an image of the batch, {largest}: raise it."
                )
            return pad_size.height, pad_size.width
        if do_pad:
            return tuple(-(-side // size_divisor) * size_divisor for side in largest)
        for size in sizes:
            if size[0] % size_divisor or size[1] % size_divisor:
                raise ValueError(
                    f"An image has size {size}, whose sides are not both multiples of size_divisor={size_divisor}: "
                    "pass do_resize=True or do_pad=True."
                )
        if return_tensors is not None and len(set(sizes)) > 1:
            raise ValueError(
                f"Images of sizes {sorted(set(sizes))} do not fit one tensor: pass do_pad=True, a fixed size, or "
                "return_tensors=None."
            )
        return largest

    post_process_semantic_segmentation = staticmethod(post_process_semantic_segmentation)

    def to_dict(self) -> dict[str, Any]:
        """
        What is written as `preprocessor_config.json`. Where the code travels with it, that is said of both backends:
        transformers would name this class alone, and copy its file without the other's.
        """
        content = super().to_dict()
        # What was read from a folder with code, for the installed package brings its own.
        content.pop("auto_map", None)
        if self._auto_class is not None:
            # This import is what transformers finds the other file by.
            from .image_processing_unept import UneptImageProcessor

            classes = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}
            content["auto_map"] = {
                self._auto_class: {
                    backend: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for backend, cls in classes.items()
                }
            }
        return content


class UneptImageProcessorPil(UneptPreprocessing, PilBackend):
    """
    Image processor of UN-EPT on PIL and NumPy. It gives the same as [`UneptImageProcessor`], up to the rounding of
    resized 8 bit pixels, and needs no torchvision. `UneptImageProcessor` describes the arguments.
    """

    def _to_backend(self, tensor: Tensor, device: "torch.device | str | None") -> np.ndarray:
        return tensor.numpy(force=True)

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: "PILImageResampling | None" = None, **kwargs
    ) -> np.ndarray:
        """See `resize_with_pillow`. Floating point numbers stay in the range of the image, as 8 bit ones do."""
        resized = resize_with_pillow(image, size, PILImageResampling.BILINEAR if resample is None else resample)
        return resized.clip(image.min(), image.max()) if image.dtype.kind == "f" else resized

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool | None,
        size: SizeDict,
        size_divisor: int,
        resample: "PILImageResampling | None",
        do_rescale: bool | None,
        rescale_factor: float | None,
        do_normalize: bool | None,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        **kwargs,
    ) -> list[np.ndarray]:
        """Resizes, rescales and normalises images `(channels, height, width)`, and returns them as float32."""
        processed = []
        for image in images:
            if do_resize:
                height, width = resized_size(*image.shape[-2:], size, size_divisor)
                image = self.resize(image, SizeDict(height=height, width=width), resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(np.ascontiguousarray(image, dtype=np.float32))
        return processed


__all__ = ["UneptImageProcessorPil"]
