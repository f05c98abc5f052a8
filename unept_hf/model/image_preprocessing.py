# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The common part of both image processors: their options, sizes and label maps. It works without torchvision."""

import contextlib
import numbers
from functools import partial
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
    torch_pil_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .boundary import boundary_targets
from .image_reading import WHITE_NORMALIZED, clip_to_pixels, image_to_tensor, label_map_to_tensor, with_file
from .post_processing_unept import post_process_semantic_segmentation


__all__ = [
    "UneptImageProcessorKwargs",
    "UneptPreprocessing",
    "resize_label_map",
    "resize_with_pillow",
    "resized_size",
]

logger = logging.get_logger(__name__)


def _flatten(inputs, batch_ndim: int) -> list:
    """One list of the images in nested lists and in arrays of `batch_ndim` dimensions."""
    if isinstance(inputs, (list, tuple)):
        return [image for item in inputs for image in _flatten(item, batch_ndim)]
    if isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == batch_ndim:
        return list(inputs)
    return [inputs]


def resize_label_map(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map `(height, width)` of any dtype to `size`: each pixel takes the label at its center (nearest-exact)."""
    rows, columns = (
        (2 * torch.arange(new, device=labels.device) + 1) * old // (2 * new) for old, new in zip(labels.shape, size)
    )
    # Several times faster than by one index of two dimensions.
    return labels.index_select(0, rows).gather(1, columns.expand(len(rows), -1))


def resized_size(height: int, width: int, size: SizeDict, size_divisor: int) -> tuple[int, int]:
    """
    (height, width) in pixels of an image after the resize.

    With `shortest_edge`, the image is scaled until its shorter side has that length, or less if its longer side would
    pass `longest_edge`. Both sides are then rounded to the nearest multiple of `size_divisor`, but to at least one
    multiple and not past `longest_edge`. A fixed `height` and `width` are taken as they are.
    """
    if size["height"]:
        return size["height"], size["width"]
    scale, most = size["shortest_edge"] / min(height, width), None
    if size["longest_edge"]:
        scale = min(scale, size["longest_edge"] / max(height, width))
        most = size["longest_edge"] // size_divisor * size_divisor
    height, width = (max(int(side * scale / size_divisor + 0.5), 1) * size_divisor for side in (height, width))
    return (height, width) if most is None else (min(height, most), min(width, most))


def resize_with_pillow(pixels: np.ndarray, size: SizeDict, resample: PILImageResampling) -> np.ndarray:
    """
    Resizes pixels `(..., height, width)`, uint8 or float32, to `size.height` and `size.width`.

    One channel at a time: that way Pillow resizes floating point numbers as they are instead of rounding them to 8
    bit, and does not weight colors by an alpha channel.
    """
    new_size = (size["width"], size["height"])
    channels = pixels.reshape(-1, *pixels.shape[-2:])
    resized = [np.array(PIL.Image.fromarray(channel).resize(new_size, resample)) for channel in channels]
    return np.stack(resized).reshape(*pixels.shape[:-2], size["height"], size["width"])


def _is_size(size: SizeDict, size_divisor: int, edges: tuple[set[str], ...] = ()) -> bool:
    """Whether a size has a height and width in multiples of `size_divisor`, or exactly the keys of one of `edges`."""
    sides = dict(size)
    if not all(isinstance(side, numbers.Integral) and side is not True and int(side) > 0 for side in sides.values()):
        return False
    if sides.keys() == {"height", "width"}:
        return all(side % size_divisor == 0 for side in sides.values())
    return sides.keys() in edges and sides.get("longest_edge", size_divisor) >= size_divisor


def _check(options: dict[str, Any], name: str, is_supported: bool, remedy: str) -> None:
    """Refuses the value of an option."""
    if not is_supported:
        value = dict(options[name]) if isinstance(options[name], SizeDict) else options[name]
        raise ValueError(f"{name}={value!r} is not supported: {remedy}.")


class UneptImageProcessorKwargs(ImagesKwargs, total=False):
    """The arguments of both image processors beside those of transformers. `UneptImageProcessor` describes them."""

    size_divisor: int | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    do_boundary_targets: bool | None


class UneptPreprocessing(BaseImageProcessor):
    """
    The common behavior of both image processors. It comes before the backend among the bases of a class, which must
    define `_to_backend(tensor, device)`: the tensor in the array type of the backend.
    """

    valid_kwargs = UneptImageProcessorKwargs  # type: ignore[assignment]
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]  # type: ignore[misc]

    do_resize = True
    size: ClassVar[dict[str, int]] = {"shortest_edge": 512, "longest_edge": 2048}  # type: ignore[misc]
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

    def preprocess(  # type: ignore[override]
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[UneptImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares images, and optionally their label maps, for the model.

        Args:
            images: An image, or a batch of images of any sizes: PIL images, arrays or tensors of `(height, width)`,
                `(height, width, channels)` or `(channels, height, width)`, paths or addresses of files, lists of
                these, or an array or tensor of four dimensions. 8 bit, 16 bit (scaled to 8), boolean or floating
                point. Floating point images are in [0, 255]; in [0, 1] with `do_rescale=False`; or in any range, such
                as after a normalization, with `do_rescale=False` and `do_normalize=False`.
            segmentation_maps: One label map for each image and of its size: whole numbers from 0, with
                `ignore_index` (255) for pixels to ignore. In the same forms, with one channel or none, or as an array
                of three dimensions.
            kwargs: Any argument of the class, for this call only. Also `return_tensors` ("pt", "np" or
                `None` for lists), `device` for tensors, and `pad_size`, a {"height", "width"} to pad to.

        Returns:
            `pixel_values` `(batch_size, 3, height, width)`, float32, padded at the bottom and right with 0 (the mean
            color); `image_sizes` `(batch_size, 2)`, int64, (height, width) of each image within the padding; and with
            label maps `labels`, with `do_boundary_targets` also `boundary_map` and `direction_map`, each
            `(batch_size, height, width)`, int64, padded with `ignore_index`.

        Raises:
            TypeError: for inputs that are not images.
            OSError: for files that are missing or damaged.
            ValueError: for images, label maps and options that are not supported. The message gives the remedy.
        """
        try:
            return super().preprocess(images, segmentation_maps, **kwargs)
        except StrictDataclassError as error:  # an option of the wrong type
            raise ValueError(str(error)) from error

    def _standardize_kwargs(self, **kwargs) -> dict:  # type: ignore[override]
        """Brings options that may be given in several forms to one, for both backends."""
        for name in ("size", "crop_size", "pad_size"):
            is_pair = not isinstance(kwargs.get(name), (list, tuple)) or len(kwargs[name]) == 2
            _check(kwargs, name, is_pair, "pass (height, width)")
        for name in ("rescale_factor", "image_mean", "image_std"):
            if kwargs.get(name) is not None:
                with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):  # refused if used
                    value = np.asarray(kwargs[name], dtype=np.float64).tolist()
                    kwargs[name] = tuple(value) if isinstance(value, list) else value
        resample = kwargs.get("resample")
        if resample is not None:
            is_filter = resample in (*PILImageResampling, *torch_pil_interpolation_mapping)
            _check(kwargs, "resample", is_filter, "pass one of PIL.Image.Resampling")
            kwargs["resample"] = PILImageResampling(torch_pil_interpolation_mapping.get(resample, resample))
        return super()._standardize_kwargs(**kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        """Checks the options before an image is read, whether the call, the class or its file gives them."""
        super()._validate_preprocess_kwargs(**kwargs)
        check = partial(_check, kwargs)
        check("do_center_crop", not kwargs["do_center_crop"], "crop the images and label maps beforehand")
        check("ignore_index", isinstance(kwargs["ignore_index"], numbers.Integral), "pass a whole number")
        for name, choices in {
            "data_format": (None, "channels_first"),
            "input_data_format": (None, "channels_first", "channels_last"),
            "return_tensors": (None, "pt", "np"),
        }.items():
            check(name, kwargs[name] in choices, f"pass one of {choices}")
        device_type, device = None, kwargs["device"]
        with contextlib.suppress(RuntimeError, AssertionError, TypeError):  # PyTorch raises all of these
            device_type = torch.empty(0, device="cpu" if device is None else device).device.type
        is_usable = device_type == "cpu" or (device_type is not None and kwargs["return_tensors"] != "np")
        check("device", is_usable, "pass one that PyTorch can use here, and return_tensors='pt' unless it is the CPU")
        channels = (3,) if kwargs["do_convert_rgb"] else (1, 3, 4)
        for name, lowest, user, lengths in (
            ("rescale_factor", 0, "do_rescale", ()),
            ("image_mean", -np.inf, "do_normalize", channels),
            ("image_std", 0, "do_normalize", channels),
        ):
            value = kwargs[name]
            values = value if isinstance(value, tuple) and len(value) in lengths else (value,)
            are_numbers = all(isinstance(one, float) and lowest < one < np.inf for one in values)
            each = ", or one for each channel" if lengths else ""
            check(name, are_numbers or not kwargs[user], f"pass a finite number above {lowest}{each}")
        divisor = kwargs["size_divisor"]
        check("size_divisor", isinstance(divisor, numbers.Integral) and divisor > 0, "pass a whole number from 1")
        fixed = f"pass {{'height', 'width'}} in multiples of size_divisor={divisor}"
        if kwargs["do_resize"]:
            edges = ({"shortest_edge"}, {"shortest_edge", "longest_edge"})
            remedy = f"{fixed}, {{'shortest_edge'}}, or {{'shortest_edge', 'longest_edge'}} of at least {divisor}"
            check("size", _is_size(kwargs["size"], divisor, edges), f"{remedy}, in whole pixels")
        if kwargs["do_pad"] and kwargs["pad_size"] is not None:
            check("pad_size", _is_size(kwargs["pad_size"], divisor), fixed)

    def _to_backend(self, tensor: Tensor, device: "torch.device | str | None") -> Any:
        raise NotImplementedError

    def _read_image(self, image, name: str, options: dict[str, Any]) -> Any:
        """One image as `(channels, height, width)`, uint8 or float32, in the array type of the backend."""
        pixels = image_to_tensor(image, options["do_convert_rgb"], options["input_data_format"], name)
        do_rescale, do_normalize = options["do_rescale"], options["do_normalize"]
        pixels = clip_to_pixels(pixels, do_rescale, options["rescale_factor"], do_normalize, with_file(name, image))
        if do_rescale and pixels.is_floating_point() and 0 < pixels.max() <= WHITE_NORMALIZED:
            logger.warning_once(
                f"An image of floating point numbers of at most {WHITE_NORMALIZED} is about to be rescaled as if they "
                "were in [0, 255]. Pass do_rescale=False if it is rescaled already, and do_normalize=False if it is "
                "normalized too."
            )
        return self._to_backend(pixels, options["device"])

    def _read_label_maps(self, segmentation_maps, sizes: list[tuple[int, int]], ignore_index: int) -> list[Tensor]:
        """The label maps `(height, width)`, int64, one for each image."""
        # Three dimensions are a batch only if the first counts the images. Otherwise they have one of channels.
        is_batch = getattr(segmentation_maps, "ndim", None) == 3 and len(segmentation_maps) == len(sizes)
        segmentation_maps = _flatten(segmentation_maps, batch_ndim=3 if is_batch else 4)
        if len(segmentation_maps) != len(sizes):
            raise ValueError(
                f"There are {len(segmentation_maps)} segmentation maps for {len(sizes)} images: pass one for each."
            )
        return [
            label_map_to_tensor(label_map, size, ignore_index, name=f"segmentation_maps[{index}]")
            for index, (label_map, size) in enumerate(zip(segmentation_maps, sizes))
        ]

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: ImageInput, segmentation_maps: ImageInput | None, **options
    ) -> BatchFeature:
        device, size_divisor, ignore_index = options["device"], options["size_divisor"], options["ignore_index"]
        images = _flatten(images, batch_ndim=4)
        if not images:
            raise ValueError("There are no images: pass at least one.")
        arrays = [self._read_image(image, f"images[{index}]", options) for index, image in enumerate(images)]
        channels = {array.shape[0] for array in arrays}
        numbers_of = [options[name] for name in ("image_mean", "image_std") if options["do_normalize"]]
        lengths = {len(value) for value in numbers_of if isinstance(value, tuple)}
        if len(channels | lengths) > 1:
            raise ValueError(
                f"The images have {sorted(channels)} channels, and image_mean and image_std have {sorted(lengths)} "
                "values: pass do_convert_rgb=True, or images with the same channels and one value for each."
            )
        if segmentation_maps is not None:  # before the resize, so that errors come early
            sizes = [tuple(array.shape[-2:]) for array in arrays]
            label_maps = self._read_label_maps(segmentation_maps, sizes, ignore_index)

        if options["do_resize"]:
            for index, array in enumerate(arrays):
                height, width = resized_size(array.shape[-2], array.shape[-1], options["size"], size_divisor)
                size = SizeDict(height=height, width=width)
                arrays[index] = self.resize(array, size, options["resample"])  # type: ignore[attr-defined]
        sizes = [tuple(array.shape[-2:]) for array in arrays]
        pad_size = options["pad_size"]
        if pad_size is None:
            height, width = (-(-max(sides) // size_divisor) * size_divisor for sides in zip(*sizes))
            pad_size = SizeDict(height=height, width=width)
        done = {"do_resize": False, "pad_size": pad_size, "return_tensors": None}
        arrays = self._preprocess(arrays, **options | done)["pixel_values"]
        arrays = [torch.as_tensor(array).float().contiguous() for array in arrays]
        data = {"pixel_values": [self._to_backend(array, device) for array in arrays], "image_sizes": sizes}

        if segmentation_maps is not None:
            if options["do_reduce_labels"]:
                label_maps = [
                    torch.where((labels == 0) | (labels == ignore_index), ignore_index, labels - 1)
                    for labels in label_maps
                ]
            targets = {"labels": [resize_label_map(labels, size) for labels, size in zip(label_maps, sizes)]}
            if options["do_boundary_targets"]:
                # Before the padding, which would make boundaries of its own.
                pairs = [boundary_targets(labels, ignore_index=ignore_index) for labels in targets["labels"]]
                targets["boundary_map"], targets["direction_map"] = (list(maps) for maps in zip(*pairs))
            for name, maps in targets.items():
                if options["do_pad"]:
                    margins = [(0, pad_size.width - width, 0, pad_size.height - height) for height, width in sizes]
                    maps = [F.pad(one, margin, value=ignore_index) for one, margin in zip(maps, margins)]
                data[name] = [self._to_backend(one, device) for one in maps]
        inputs = BatchFeature(data=data, tensor_type=options["return_tensors"])
        return inputs.to(device) if device is not None and options["return_tensors"] == "pt" else inputs

    post_process_semantic_segmentation = staticmethod(post_process_semantic_segmentation)

    def to_dict(self) -> dict[str, Any]:
        """
        The content of `preprocessor_config.json`. Where the code travels with it, `auto_map` names both backends:
        transformers would name this class alone, and copy its file without the other's.
        """
        content = super().to_dict()
        # Of a folder with code, which the installed package does without.
        content.pop("auto_map", None)
        if self._auto_class is not None:
            # These imports are how transformers finds the files of both.
            from .image_processing_pil_unept import UneptImageProcessorPil
            from .image_processing_unept import UneptImageProcessor

            classes = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}
            content["auto_map"] = {
                self._auto_class: {
                    backend: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for backend, cls in classes.items()
                }
            }
        return content
