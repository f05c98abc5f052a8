# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The training augmentation of the paper (section 4.2), that of MMSegmentation: resize by a random ratio, random crop,
flip, photometric distortion, normalization, padding; and the boundary targets of the crop. Rotation and blur can be
added.

Random numbers come from PyTorch's global generator.
"""

from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model.boundary import boundary_targets


__all__ = ["PhotometricDistortion", "RandomCropWithMaxRatio", "RandomRatioResize", "TrainingAugmentation"]


class RandomRatioResize(v2.Transform):
    """
    Resizes to `scale` times a random ratio, keeping the aspect: the longer side becomes at most the longer of the
    scaled pair, and the shorter at most the shorter. Bilinear with antialiasing; masks take the nearest label.

    Args:
        scale: Two lengths in pixels, in any order.
        ratio_range: The least and the largest ratio, which is uniform between them.
    """

    def __init__(self, scale: tuple[int, int], ratio_range: tuple[float, float]):
        super().__init__()
        self.scale = scale
        self.ratio_range = ratio_range

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.ratio_range
        ratio = low + (high - low) * torch.rand(()).item()
        longer, shorter = (int(length * ratio) for length in sorted(self.scale, reverse=True))
        height, width = flat_inputs[0].shape[-2:]
        factor = min(longer / max(height, width), shorter / min(height, width))
        return {"size": [max(int(side * factor + 0.5), 1) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return F.resize(inpt, params["size"], antialias=True)
        # As a mask it would be sampled at the corners of its pixels, while images are at the centers.
        labels = inpt.as_subclass(Tensor)[None]
        labels = F.resize(labels, params["size"], interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
        return tv_tensors.wrap(labels, like=inpt)


class RandomCropWithMaxRatio(v2.Transform):
    """
    Crops a random window, or a smaller one where the image is smaller. A window is drawn again, up to 10 times,
    while one class fills `max_ratio` or more of its labeled pixels.

    Args:
        size: (height, width) in pixels.
        max_ratio: Between 0 and 1. 1 takes any window.
        ignore_index: Label of unlabeled pixels.
    """

    tries = 10

    def __init__(self, size: tuple[int, int], max_ratio: float, ignore_index: int):
        super().__init__()
        self.size = size
        self.max_ratio = max_ratio
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask)).as_subclass(Tensor)
        height, width = (min(size, side) for size, side in zip(self.size, mask.shape))
        for _ in range(self.tries + 1):
            top, left = (
                int(torch.randint(side - length + 1, ())) for side, length in zip(mask.shape, (height, width))
            )
            if self.max_ratio >= 1 or self._is_varied(mask[top : top + height, left : left + width]):
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def _is_varied(self, window: Tensor) -> bool:
        if window.dtype == torch.uint8:
            counts = window.flatten().bincount(minlength=256)
            if 0 <= self.ignore_index < 256:
                counts[self.ignore_index] = 0
        else:
            counts = window[window != self.ignore_index].unique(return_counts=True)[1]
        return bool(counts.count_nonzero() > 1 and counts.max() < self.max_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """
    Distorts the colors of an image as SSD and MMSegmentation do: a shift of the brightness, a factor on
    the contrast (before or after the rest), one on the saturation and a turn of the hue, each with probability 1/2.

    torchvision's `RandomPhotometricDistort` differs: it scales the brightness, stretches the contrast about the mean,
    blends with gray instead of changing the saturation of HSV, and permutes the channels.

    Args:
        brightness: Largest shift, in gray levels of 255.
        contrast: Least and largest factor.
        saturation: Least and largest factor.
        hue: Largest turn, in degrees.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 36,
    ):
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = {
            "brightness": (-self.brightness, self.brightness),
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": (-self.hue, self.hue),
        }
        # All numbers are drawn whether used or not, so that one choice does not shift the numbers after it.
        is_used = torch.rand(len(ranges)) < 0.5
        fractions = torch.rand(len(ranges))
        params = {
            name: low + (high - low) * fraction if used else None
            for (name, (low, high)), used, fraction in zip(ranges.items(), is_used.tolist(), fractions.tolist())
        }
        return params | {"contrast_first": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = F.to_dtype_image(inpt.as_subclass(Tensor), torch.float32, scale=True)
        if params["brightness"] is not None:
            image = (image + params["brightness"] / 255).clamp_(0, 1)
        if params["contrast"] is not None and params["contrast_first"]:
            image = (image * params["contrast"]).clamp_(0, 1)
        if params["saturation"] is not None:
            image = _scale_saturation(image, params["saturation"])
        if params["hue"] is not None:
            image = F.adjust_hue(image, params["hue"] / 360)
        if params["contrast"] is not None and not params["contrast_first"]:
            image = (image * params["contrast"]).clamp_(0, 1)
        return tv_tensors.wrap(image, like=inpt)


def _photometric_distortion(strength: float) -> PhotometricDistortion:
    """The default distortion with all ranges `strength` times as wide."""
    factors = (1 - 0.5 * strength, 1 + 0.5 * strength)
    return PhotometricDistortion(32 * strength, factors, factors, 36 * strength)


def _scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation of HSV, up to 1. Hue and value stay. `(3, height, width)`, [0, 1]."""
    low, value = image.aminmax(dim=0)
    chroma = value - low
    # At most what takes the lowest channel to 0. Gray pixels have no saturation to scale.
    factors = torch.where(chroma > 0, torch.clamp(value / chroma, max=factor), 1)
    return torch.lerp(value, image, factors).clamp_(0, 1)


class TrainingAugmentation:
    """
    Makes a training example from an image and its label map. One thread makes a crop of 480 x 480 in hundredths of a
    second (`benchmarks/data_pipeline.py`).

    Args:
        crop_size: Side of the square crop, or its (height, width), in pixels.
        scale: See `RandomRatioResize`. `None` leaves images at their size.
        ratio_range: See `RandomRatioResize`.
        cat_max_ratio: See `max_ratio` of `RandomCropWithMaxRatio`.
        flip_probability: How often the crop is flipped horizontally.
        photometric_distortion: Whether to apply `PhotometricDistortion`.
        image_mean: Mean of each channel, for pixels in [0, 1].
        image_std: Standard deviation of each channel, for pixels in [0, 1].
        ignore_index: Label of unlabeled pixels in the label maps, and of padding.
        boundary_targets: Whether to make the targets of the boundary heads.
        boundary_targets_from: "crop", or "image" for targets that are made from the whole label map, and resized,
            cropped and flipped like it. A flip keeps the values of directions, as in the original code.
        max_boundary_distance: See `max_distance` of `boundary_targets`.
        ignore_unlabelled: See `boundary_targets`.
        min_class_pixels: See `boundary_targets`.
        rotation_degrees: Rotates by a random angle of up to so many degrees in both directions, before the crop. What
            lies outside of the image gets the mean color and `ignore_index`. Not in the paper.
        blur_probability: How often the crop is blurred, with a Gaussian of a random sigma of 0.1 to 2 pixels. Not in
            the paper.
        photometric_strength: Factor on all ranges of `PhotometricDistortion`, from 0 to 2; 1 is the paper's.

    Raises:
        ValueError: for arguments out of range, which may come from a command line; all of them are in one message.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int] = 480,
        scale: tuple[int, int] | None = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip_probability: float = 0.5,
        photometric_distortion: bool = True,
        image_mean: list[float] | tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        image_std: list[float] | tuple[float, ...] = IMAGENET_DEFAULT_STD,
        ignore_index: int = 255,
        boundary_targets: bool = True,
        boundary_targets_from: Literal["crop", "image"] = "crop",
        max_boundary_distance: int = 5,
        ignore_unlabelled: bool = True,
        min_class_pixels: int = 0,
        rotation_degrees: float = 0.0,
        blur_probability: float = 0.0,
        photometric_strength: float = 1.0,
    ):
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        requirements = {
            f"crop_size must be a positive number or (height, width), got {crop_size}.": min(height, width) >= 1,
            f"boundary_targets_from must be 'crop' or 'image', got {boundary_targets_from!r}.": (
                boundary_targets_from in ("crop", "image")
            ),
            f"scale must be two positive lengths in pixels, got {scale}.": scale is None or min(scale) >= 1,
            f"ratio_range must be (least, largest) with 0 < least <= largest, got {ratio_range}.": (
                0 < ratio_range[0] <= ratio_range[1]
            ),
            f"cat_max_ratio must lie within [0, 1], got {cat_max_ratio}.": 0 <= cat_max_ratio <= 1,
            f"flip_probability must lie within [0, 1], got {flip_probability}.": 0 <= flip_probability <= 1,
            f"rotation_degrees must lie within [0, 180], got {rotation_degrees}.": 0 <= rotation_degrees <= 180,
            "rotation_degrees must be 0 with boundary_targets_from='image', whose directions would not turn with the "
            f"image, got {rotation_degrees}.": not (boundary_targets_from == "image" and rotation_degrees),
            f"blur_probability must lie within [0, 1], got {blur_probability}.": 0 <= blur_probability <= 1,
            f"photometric_strength must lie within [0, 2], got {photometric_strength}.": 0
            <= photometric_strength
            <= 2,
        }
        if not all(requirements.values()):
            raise ValueError(" ".join(problem for problem, is_met in requirements.items() if not is_met))
        self.crop_size = height, width
        self.ignore_index = ignore_index
        self.boundary_options = None
        if boundary_targets:
            self.boundary_options = {
                "ignore_index": ignore_index,
                "max_distance": max_boundary_distance,
                "ignore_unlabelled": ignore_unlabelled,
                "min_class_pixels": min_class_pixels,
            }
        self.boundary_targets_from = boundary_targets_from
        # Where a turned image ends, the mean color begins, as in padding.
        mean_color = [round(255 * mean) for mean in image_mean]
        turn = v2.RandomRotation(
            rotation_degrees,
            v2.InterpolationMode.BILINEAR,
            fill={tv_tensors.Image: mean_color, tv_tensors.Mask: ignore_index},
        )
        # Options that are off add no step, which would draw random numbers.
        self.transforms = v2.Compose(
            [
                *([] if scale is None else [RandomRatioResize(scale, ratio_range)]),
                *([turn] if rotation_degrees else []),
                RandomCropWithMaxRatio(self.crop_size, cat_max_ratio, ignore_index),
                v2.RandomHorizontalFlip(flip_probability),
                *([_photometric_distortion(photometric_strength)] if photometric_distortion else []),
                *([v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur_probability)] if blur_probability else []),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
                v2.Normalize(list(image_mean), list(image_std)),
            ]
        )

    @classmethod
    def from_config(cls, config, image_processor, **kwargs) -> "TrainingAugmentation":
        """
        The augmentation that goes with a model: boundary targets with its conventions, and pixels normalized as its
        image processor does.

        Args:
            config: `UneptConfig` of the model.
            image_processor: `UneptImageProcessor` of the model.
            **kwargs: Other arguments of the class.
        """
        options = {
            "image_mean": image_processor.image_mean,
            "image_std": image_processor.image_std,
            "ignore_index": config.semantic_loss_ignore_index,
            "boundary_targets": config.use_boundary_heads,
            "boundary_targets_from": config.boundary_targets_from,
            "max_boundary_distance": config.max_boundary_distance,
            "ignore_unlabelled": config.ignore_unlabelled_boundaries,
            "min_class_pixels": config.min_boundary_class_pixels,
        }
        return cls(**{**options, **kwargs})

    def __call__(self, image: PIL.Image.Image, label_map: np.ndarray) -> dict[str, Tensor]:
        """
        Args:
            image: PIL image of mode "RGB".
            label_map: `(height, width)` of the image, integers: classes and `ignore_index`.

        Returns:
            `pixel_values` float32 `(3, *crop_size)`, padded with 0 (the mean color) at the bottom and right; `labels`
            int64 `crop_size`, padded with `ignore_index`; and with boundary targets `boundary_map` and
            `direction_map`, int64 `crop_size`, see `unept_hf.model.boundary.boundary_targets`.
        """
        pixels = tv_tensors.Image(F.pil_to_tensor(image))
        masks = [tv_tensors.Mask(torch.from_numpy(np.array(label_map)))]
        if self.boundary_options is not None and self.boundary_targets_from == "image":
            targets = boundary_targets(masks[0].as_subclass(Tensor), **self.boundary_options, has_padding=False)
            masks.append(tv_tensors.Mask(torch.stack(targets)))
        pixels, mask, *resized_targets = self.transforms(pixels, *masks)
        padding = [0, 0, *(full - side for full, side in zip(self.crop_size[::-1], mask.shape[::-1]))]
        labels = F.pad(mask, padding, fill=self.ignore_index).as_subclass(Tensor)
        example = {"pixel_values": F.pad(pixels, padding).as_subclass(Tensor), "labels": labels}
        if self.boundary_options is not None:
            if resized_targets:
                fill = self.ignore_index if self.boundary_options["ignore_unlabelled"] else 0
                targets = F.pad(resized_targets[0], padding, fill=fill).as_subclass(Tensor).unbind()
            else:
                targets = boundary_targets(labels, **self.boundary_options)
            example["boundary_map"], example["direction_map"] = targets
        return example
