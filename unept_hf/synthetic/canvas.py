# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The canvas of a synthetic scene: image and label map are written through one mask, so the two cannot disagree.

Randomness is uniform integers and fractions, and geometry is elementary arithmetic, to have every platform draw the
same pixels.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


__all__ = ["SceneCanvas", "Stencil", "smooth_noise"]


@dataclass
class Stencil:
    """A boolean mask for a part of the canvas, `mask[0, 0]` being its pixel (`top`, `left`)."""

    top: int
    left: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.mask.shape[0]), slice(self.left, self.left + self.mask.shape[1])

    @property
    def rows(self) -> np.ndarray:
        """Row numbers on the canvas, float32 of shape (height, 1)."""
        return np.arange(self.top, self.top + self.mask.shape[0], dtype=np.float32)[:, None]

    @property
    def columns(self) -> np.ndarray:
        """Column numbers on the canvas, float32 of shape (width,)."""
        return np.arange(self.left, self.left + self.mask.shape[1], dtype=np.float32)

    def __and__(self, other: "Stencil") -> "Stencil":
        """The part of this stencil that lies in `other` too."""
        shared = np.zeros_like(self.mask)
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = (min(mine.stop, theirs.stop) for mine, theirs in zip(self.box, other.box))
        if top < bottom and left < right:
            shared[top - self.top : bottom - self.top, left - self.left : right - self.left] = other.mask[
                top - other.top : bottom - other.top, left - other.left : right - other.left
            ]
        return Stencil(self.top, self.left, self.mask & shared)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Noise in [-1, 1], float32 (height, width), with blobs about `cell` pixels broad."""
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 127.5 - 1


@dataclass
class SceneCanvas:
    """What all painters share: picture, labels, randomness, light, and the noise that gives surfaces texture."""

    rng: np.random.Generator
    height: int
    width: int
    classes: tuple[str, ...]
    image: np.ndarray = field(init=False)  # (height, width, 3) float32, 0 to 255
    label: np.ndarray = field(init=False)  # (height, width) uint8
    sun: float = field(init=False)  # brightness gained at an object's right edge and lost at its left, -1 to 1
    relief: np.ndarray = field(init=False)  # (height, width) float32 in [-2, 2]: surfaces and ragged outlines

    def __post_init__(self):
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.label = np.zeros((self.height, self.width), np.uint8)
        self.sun = self.between(-1, 1)
        self.relief = self.noise(1 / 20) + self.noise(0)

    @property
    def unit(self) -> int:
        """The shorter side in pixels, with which everything scales."""
        return min(self.height, self.width)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def tone(self, colors: tuple) -> np.ndarray:
        """One of `colors`, shifted a little so that no class can be told by exact values."""
        return np.array(colors[self.rng.integers(len(colors))], np.float32) + self.rng.integers(-16, 17, 3).astype(
            np.float32
        )

    def noise(self, cell: float) -> np.ndarray:
        """Noise in [-1, 1] for the whole canvas, its blobs `cell` times the unit broad (at least two pixels)."""
        return smooth_noise(self.rng, self.height, self.width, max(int(cell * self.unit), 2))

    def whole(self, mask: np.ndarray | None = None) -> Stencil:
        """A stencil of a mask for the whole canvas; by default of all of it."""
        return Stencil(0, 0, np.ones((self.height, self.width), bool) if mask is None else mask)

    def _empty(self, points: list[tuple[float, float]]) -> Stencil:
        """An empty stencil that covers the points (x, y), as far as they lie on the canvas."""
        xs, ys = zip(*points)
        left, top = (
            min(max(int(min(values)) - 1, 0), side - 1) for values, side in ((xs, self.width), (ys, self.height))
        )
        right, bottom = (max(values) + 2 for values in (xs, ys))
        shape = max(min(int(bottom), self.height) - top, 1), max(min(int(right), self.width) - left, 1)
        return Stencil(top, left, np.zeros(shape, bool))

    def stencil(self, *shapes: tuple, thickness: int = 1) -> Stencil:
        """The union of (ImageDraw method, points) shapes, not antialiased; `thickness` is that of "line"s."""
        stencil = self._empty([point for _, points in shapes for point in points])
        canvas = Image.new("L", stencil.mask.shape[::-1])
        draw = ImageDraw.Draw(canvas)
        for kind, points in shapes:
            style = {"width": thickness} if kind == "line" else {}
            getattr(draw, kind)(
                [(round(x) - stencil.left, round(y) - stencil.top) for x, y in points], fill=1, **style
            )
        stencil.mask = np.asarray(canvas).view(bool)
        return stencil

    def blob(self, *lobes: tuple[float, float, float, float], ragged: float = 0.35) -> Stencil:
        """The union of ellipses (x, y, half width, half height) with a ragged outline."""
        reach = 1 + ragged
        corners = [(x + side * reach * rx, y + side * reach * ry) for x, y, rx, ry in lobes for side in (-1, 1)]
        stencil = self._empty(corners)
        distance = np.full(stencil.mask.shape, np.inf, np.float32)  # squared, 1 on the outline
        for x, y, rx, ry in lobes:
            np.minimum(distance, ((stencil.columns - x) / rx) ** 2 + ((stencil.rows - y) / ry) ** 2, out=distance)
        stencil.mask = distance + ragged * self.relief[stencil.box] < 1
        return stencil

    def paint(
        self, stencil: Stencil, name: str, color: np.ndarray, rough: float = 0.06, bulge: float = 0.2, pattern=1.0
    ) -> None:
        """Write class `name` and its textured, side-lit `color` where the stencil is true.

        `color` and the brightness `pattern` broadcast to the stencil's box, with and without a last axis of RGB.
        """
        if not stencil.mask.any():
            return
        across = 2 * (stencil.columns - stencil.left) / len(stencil.columns) - 1
        light = (1 + self.sun * bulge * across + rough * self.relief[stencil.box]) * np.asarray(pattern, np.float32)
        np.copyto(
            self.image[stencil.box], np.asarray(color, np.float32) * light[..., None], where=stencil.mask[..., None]
        )
        self.label[stencil.box][stencil.mask] = self.classes.index(name)

    def shade(self, stencil: Stencil, names: tuple[str, ...], light: float = 0.65) -> None:
        """Darken what is one of the classes `names`; a shadow keeps the label of what it falls on."""
        fallen_on = np.isin(self.label[stencil.box], [self.classes.index(name) for name in names])
        self.image[stencil.box][stencil.mask & fallen_on] *= light

    def photograph(self) -> Image.Image:
        """The image as a camera gives it: exposure, color cast, blur across edges, sensor noise."""
        cast = self.between(0.75, 1.15) * (1 + 0.12 * (self.rng.random(3, dtype=np.float32) - 0.5))
        sharp = Image.fromarray((self.image * cast.astype(np.float32)).clip(0, 255).astype(np.uint8))
        middle = int(self.rng.integers(2, 9))  # a lens from blurred to sharp
        blurred = sharp.filter(ImageFilter.Kernel((3, 3), (0, 1, 0, 1, middle, 1, 0, 1, 0)))
        byte = self.rng.integers(0, 256, self.image.shape, dtype=np.uint8)
        noise = (byte >> 4) + (byte & 15) - np.int16(15)  # two dice: bell-shaped enough, exact on every platform
        return Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))
