# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Painters of synthetic harbour scenes, whose classes no other scene has: something new to fine-tune a model on."""

import operator

import numpy as np

from .canvas import SceneCanvas, Stencil
from .streets import paint_sky


__all__ = ["draw_harbour"]


_WATERS = ((45, 85, 120), (60, 110, 120), (80, 105, 115), (35, 65, 85))
_SANDS = ((210, 185, 140), (190, 170, 135), (165, 150, 125))
_ROCKS = ((95, 90, 90), (120, 105, 95), (75, 80, 85))
_HULLS = ((170, 40, 40), (35, 60, 110), (235, 235, 230), (40, 45, 50), (50, 110, 90))
_SAILS = ((240, 238, 230), (205, 70, 55), (225, 205, 160))
_BUOYS = ((215, 50, 35), (235, 190, 40), (40, 140, 70))


def _paint_boat(canvas: SceneCanvas, x: float, y: float, unit: float) -> None:
    """A hull with a cabin, or with a mast and two sails."""
    half, deep, side = (
        unit * canvas.between(0.2, 0.34),
        unit * canvas.between(0.07, 0.11),
        1 if canvas.chance(0.5) else -1,
    )
    hull = canvas.tone(_HULLS)
    if canvas.chance(0.6):
        tall, mast = unit * canvas.between(0.45, 0.7), max(unit * 0.012, 0.5)
        canvas.paint(canvas.stencil(("rectangle", [(x - mast, y - tall), (x + mast, y)])), "boat", hull * 0.5)
        sails = [
            (
                "polygon",
                [
                    (x + side * 2 * mast, y - 0.97 * tall),
                    (x + side * 2 * mast, y - deep),
                    (x + side * 0.85 * half, y - deep),
                ],
            ),
            (
                "polygon",
                [
                    (x - side * 2 * mast, y - 0.8 * tall),
                    (x - side * 2 * mast, y - deep),
                    (x - side * 0.6 * half, y - deep),
                ],
            ),
        ]
        canvas.paint(canvas.stencil(*sails), "boat", canvas.tone(_SAILS), rough=0.03, bulge=0.25)
    else:
        cabin = canvas.stencil(("rectangle", [(x - 0.5 * half, y - 2.4 * deep), (x + 0.2 * half, y - 0.5 * deep)]))
        canvas.paint(cabin, "boat", canvas.tone(_SAILS[:1]), rough=0.03)
        panes = [
            ("rectangle", [(x + at * half, y - 2 * deep), (x + (at + 0.14) * half, y - 1.5 * deep)])
            for at in (-0.42, -0.2, 0.02)
        ]
        canvas.paint(canvas.stencil(*panes), "boat", np.array((50, 70, 85), np.float32), rough=0.02)
    shell = [
        (x - half, y - deep),
        (x + side * 0.25 * half + half, y - deep),
        (x + 0.75 * half, y),
        (x - 0.75 * half, y),
    ]
    canvas.paint(canvas.stencil(("polygon", shell)), "boat", hull, rough=0.04, bulge=0.25)
    mirror = canvas.stencil(
        (
            "polygon",
            [
                (x - 0.7 * half, y),
                (x + 0.7 * half, y),
                (x + 0.5 * half, y + 0.7 * deep),
                (x - 0.5 * half, y + 0.7 * deep),
            ],
        )
    )
    canvas.shade(mirror, ("sea",), 0.7)


def _paint_lighthouse(canvas: SceneCanvas, x: float, y: float, unit: float) -> None:
    """A tapered tower in bands, with a lantern, on a rock."""
    tall, foot, neck = unit * canvas.between(0.55, 0.8), unit * canvas.between(0.07, 0.1), unit * 0.045
    rock = canvas.blob((x, y, 3 * foot, 0.09 * unit), (x + foot, y - 0.03 * unit, 1.5 * foot, 0.08 * unit))
    canvas.paint(rock, "rock", canvas.tone(_ROCKS), rough=0.2, bulge=0.3)
    tower = canvas.stencil(("polygon", [(x - foot, y), (x - neck, y - tall), (x + neck, y - tall), (x + foot, y)]))
    bands = np.floor((tower.rows - y) / (0.13 * unit)) % 2 == 0
    color = np.where(bands[..., None], np.array((238, 236, 230), np.float32), canvas.tone(_BUOYS[:1]))
    canvas.paint(tower, "lighthouse", color, rough=0.04, bulge=0.35)
    lantern = ("rectangle", [(x - 0.8 * neck, y - tall - 0.08 * unit), (x + 0.8 * neck, y - tall)])
    canvas.paint(canvas.stencil(lantern), "lighthouse", canvas.tone(((240, 225, 150), (60, 70, 80))), rough=0.02)
    cap = (
        "polygon",
        [
            (x - 1.2 * neck, y - tall - 0.08 * unit),
            (x, y - tall - 0.13 * unit),
            (x + 1.2 * neck, y - tall - 0.08 * unit),
        ],
    )
    canvas.paint(canvas.stencil(cap), "lighthouse", np.array((150, 45, 40), np.float32), rough=0.04)


def _paint_rock(canvas: SceneCanvas, x: float, y: float, unit: float) -> None:
    size = unit * canvas.between(0.08, 0.16)
    rock = canvas.blob((x, y, 1.5 * size, 0.7 * size), (x + 0.7 * size, y, size, 0.5 * size), ragged=0.3)
    canvas.paint(rock, "rock", canvas.tone(_ROCKS), rough=0.2, bulge=0.3)


def _paint_buoy(canvas: SceneCanvas, x: float, y: float, unit: float) -> None:
    """A cone or a ball with a light stripe."""
    size, color = unit * canvas.between(0.06, 0.09), canvas.tone(_BUOYS)
    shape = (
        (
            "polygon",
            [(x - size, y), (x - 0.2 * size, y - 2.6 * size), (x + 0.2 * size, y - 2.6 * size), (x + size, y)],
        ),
        ("ellipse", [(x - size, y - 1.8 * size), (x + size, y + 0.2 * size)]),
    )[canvas.rng.integers(2)]
    buoy = canvas.stencil(shape)
    stripe = np.abs(buoy.rows - y + 0.8 * size) < 0.2 * size
    tinted = np.where(stripe[..., None], np.array((235, 235, 230), np.float32), color)
    canvas.paint(buoy, "buoy", tinted, rough=0.04, bulge=0.4)
    canvas.shade(canvas.stencil(("ellipse", [(x - size, y), (x + size, y + 0.5 * size)])), ("sea",))


def draw_harbour(canvas: SceneCanvas) -> None:
    """Sky and sea, a beach with a ragged edge, then what swims or stands in the water from far to near."""
    height, width, unit = canvas.height, canvas.width, canvas.unit
    horizon = int(height * canvas.between(0.35, 0.5))
    paint_sky(canvas, Stencil(0, 0, np.ones((horizon, width), bool)), "sky")
    sea = Stencil(horizon, 0, np.ones((height - horizon, width), bool))
    waves = 1 + 0.12 * canvas.noise(0.03)[sea.box] * (0.3 + (sea.rows - horizon) / (height - horizon))
    canvas.paint(sea, "sea", canvas.tone(_WATERS), rough=canvas.between(0.02, 0.08), bulge=0.1, pattern=waves)
    shore = height * canvas.between(0.72, 1.05) + unit * canvas.between(-0.3, 0.3) * (sea.columns / width - 0.5)
    shore = shore + 0.05 * unit * canvas.noise(0.3)[0]
    beach = Stencil(
        horizon, 0, sea.rows > np.maximum(shore, horizon + 0.2 * unit) + 0.008 * unit * canvas.relief[sea.box]
    )
    canvas.paint(beach, "beach", canvas.tone(_SANDS), rough=0.1, bulge=0.05)
    painters = (
        (_paint_lighthouse, 1, 0.02, 0.3),
        (_paint_boat, 3, 0.05, 0.6),
        (_paint_rock, 2, 0.1, 0.9),
        (_paint_buoy, 3, 0.1, 0.7),
    )
    plan = [
        (canvas.between(far, near), canvas.between(0, width - 1), paint)
        for paint, most, far, near in painters
        for _ in range(round(canvas.rng.integers(most + 1) * width / unit))
    ]
    for depth, x, paint in sorted(plan, key=operator.itemgetter(0)):
        paint(canvas, x, horizon + depth * (height - 1 - horizon), unit * (0.5 + 0.7 * depth))
