# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Procedural scenes with exact label maps, for the quickstart, the benchmarks and tests without a download.

"synthetic" scenes are streets and rooms, one as often as the other, with 22 classes between them; "synthetic_harbour"
scenes have seven classes that a model of the others can be fine-tuned on. `docs/synthetic-scenes.md` is their card.
"""

import io
import json
import zlib
from importlib import resources

import datasets
import numpy as np
from PIL import Image

from .canvas import SceneCanvas
from .harbours import draw_harbour
from .rooms import draw_room
from .streets import draw_street


__all__ = ["SYNTHETIC_CLASSES", "SYNTHETIC_THEMES", "synthetic_scene", "synthetic_scenes"]


_PAINTERS = {"synthetic": (draw_street, draw_room), "synthetic_harbour": (draw_harbour,)}
SYNTHETIC_THEMES = tuple(_PAINTERS)
"""The kinds of scenes, which are also the names of their class lists."""

_CLASSES = {
    theme: tuple(entry["name"] for entry in json.loads(file.read_text(encoding="utf-8"))["classes"])
    for theme in _PAINTERS
    for file in [resources.files(__package__) / "classes" / f"{theme}.json"]
}
SYNTHETIC_CLASSES = _CLASSES["synthetic"]
"""Class names of the streets and rooms; the position is the label value."""
_SPLIT_STARTS = {"train": 0, "validation": 2**31}


def synthetic_scene(
    index: int, seed: int = 0, size: tuple[int, int] = (256, 256), theme: str = "synthetic"
) -> tuple[Image.Image, Image.Image]:
    """Draw one scene and its label map.

    The same arguments give the same scene in any process, and on any platform with the same numpy and Pillow;
    different (seed, index) pairs draw from independent random streams.

    Args:
        index: Which scene, 0 to 2**32 - 1.
        seed: Which family of scenes, 0 to 2**32 - 1.
        size: (height, width) in pixels, each 32 to 32768. Things scale with the shorter side.
        theme: One of `SYNTHETIC_THEMES`.

    Returns:
        The image (PIL, mode "RGB") and its label map (PIL, mode "L", values as in the class list; every pixel is
        labeled), both `size`. Edges are blurred over one pixel in the image and never in the label map.
    """
    # Seed and index are one word of the SeedSequence each, so no two pairs share a stream.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    canvas = SceneCanvas(rng, *size, _CLASSES[theme])
    painters = _PAINTERS[theme]
    painters[rng.integers(len(painters))](canvas)
    return canvas.photograph(), Image.fromarray(canvas.label)


def _png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # noise hardly compresses: do not try hard
    return {"bytes": buffer.getvalue(), "path": None}


def synthetic_scenes(
    num_scenes: int,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    split: str = "train",
    offset: int = 0,
    theme: str = "synthetic",
) -> datasets.Dataset:
    """Draw `num_scenes` scenes into a data set held in memory.

    The splits of one seed share no scene: "train" holds scenes 0, 1, ... and "validation"
    holds scenes 2**31, 2**31 + 1, ... of `synthetic_scene`. Nothing is read from or written to a cache or any other
    file, so a change of the painters shows at once. A scene of 256x256 takes about 140 kB.

    Args:
        num_scenes: How many, 1 or more.
        seed: As for `synthetic_scene`.
        size: (height, width) in pixels, as for `synthetic_scene`.
        split: "train" or "validation".
        offset: How many scenes of the split to skip first, 0 or more.
        theme: As for `synthetic_scene`.

    Returns:
        A `datasets.Dataset` with columns `image` (RGB) and `label` (mode "L"), both `datasets.Image` stored as PNG.
    """
    first = _SPLIT_STARTS[split] + offset
    scenes = (synthetic_scene(index, seed, size, theme) for index in range(first, first + num_scenes))
    images, labels = map(list, zip(*(map(_png, scene) for scene in scenes), strict=True))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
