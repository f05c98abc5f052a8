# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Painters of synthetic outdoor scenes: a road and its pavement towards a vanishing point, and what stands there.

Some classes look alike on purpose: a statue is a person of stone, bare branches cross the sky like wires, and road
and sidewalk are both gray. A new kind of thing is one painter and one line in `_THINGS`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .canvas import SceneCanvas, Stencil, smooth_noise


__all__ = ["CLOTHES", "LEAVES", "SKIES", "draw_street", "paint_person", "paint_sky"]


SKIES = (((70, 130, 205), (190, 215, 235)), ((150, 165, 180), (205, 208, 212)), ((95, 105, 160), (240, 190, 150)))
LEAVES = ((55, 100, 45), (80, 120, 50), (40, 80, 55), (175, 115, 45), (130, 125, 50))
SKINS = ((235, 195, 165), (195, 145, 110), (140, 95, 70), (90, 60, 45))
CLOTHES = ((190, 40, 45), (40, 70, 150), (235, 230, 225), (40, 40, 45), (225, 165, 40), (110, 60, 130), (40, 130, 90))
GLASS = ((45, 55, 70), (90, 120, 145), (225, 205, 140))
_MEADOWS = ((105, 135, 70), (85, 110, 60), (130, 140, 75), (150, 140, 90))
_ASPHALT = ((95, 95, 100), (120, 118, 116), (80, 82, 90))
_SLABS = ((140, 136, 130), (115, 112, 112), (165, 155, 145))
_WALLS = ((165, 90, 70), (190, 175, 150), (140, 145, 150), (215, 205, 190), (115, 130, 150), (175, 150, 95))
_ROOFS = ((95, 60, 55), (70, 72, 80), (140, 75, 55), (60, 80, 80))
_BARK = ((85, 65, 50), (70, 60, 55), (110, 90, 70))
_STONE = ((150, 150, 145), (120, 125, 120), (175, 170, 155), (95, 115, 105))
_METALS = ((75, 78, 82), (165, 168, 172), (50, 60, 55), (120, 90, 65))
_SIGNS = ((200, 35, 40), (30, 80, 170), (245, 200, 40), (235, 235, 235))
_PAINTS = ((170, 35, 40), (40, 75, 140), (225, 225, 225), (45, 48, 52), (150, 155, 160), (60, 110, 80), (220, 180, 60))
_PLANKS = ((215, 210, 200), (120, 90, 65), (95, 75, 60), (80, 95, 85))
_GROUNDS = ("road", "sidewalk", "grass")


_Row = TypeVar("_Row", float, np.ndarray)


@dataclass
class _Street:
    """Where the ground begins and how the road runs over it."""

    horizon: np.ndarray  # (width,) the first ground row of each column
    vanishing_row: float
    vanishing_column: float
    near_column: float  # the middle of the road at the lower edge
    half_width: float  # of the road at the lower edge, 0 for a meadow without a road

    def depth(self, row: _Row, height: int) -> _Row:
        """0 at the horizon, 1 at the lower edge."""
        return (row - self.vanishing_row) / (height - self.vanishing_row)

    def middle(self, depth: _Row) -> _Row:
        return self.vanishing_column + depth * (self.near_column - self.vanishing_column)


def _new_street(canvas: SceneCanvas) -> _Street:
    height, width, unit = canvas.height, canvas.width, canvas.unit
    hills = smooth_noise(canvas.rng, 1, width, max(unit // 2, 1))[0]
    bend = np.linspace(-1, 1, width) ** 2 * canvas.between(-0.5, 0.5)  # a hill or a hollow as broad as the picture
    row = height * canvas.between(0.42, 0.58)
    return _Street(
        horizon=np.rint(row + unit * (0.03 * hills + 0.12 * bend)).astype(int),
        vanishing_row=row + 0.02 * unit,
        vanishing_column=width * canvas.between(0.2, 0.8),
        near_column=width * canvas.between(0.1, 0.9),
        half_width=unit * canvas.between(0.3, 0.55) * canvas.chance(0.8),
    )


def paint_sky(canvas: SceneCanvas, stencil: Stencil, name: str) -> None:
    """A gradient from zenith to horizon with soft clouds."""
    zenith, low = np.array(SKIES[canvas.rng.integers(len(SKIES))], np.float32) + canvas.rng.integers(
        -12, 13, 3
    ).astype(np.float32)
    fall = np.linspace(0, 1.4, len(stencil.rows), dtype=np.float32)[:, None, None].clip(0, 1)
    clouds = canvas.noise(0.2)[stencil.box] + 0.2 * canvas.relief[stencil.box]
    cover = (clouds * 1.5 + canvas.between(-0.8, 0.4)).clip(0, 0.8)[..., None]
    color = zenith + (low - zenith) * fall
    canvas.paint(stencil, name, color + (np.array((235, 235, 238), np.float32) - color) * cover, rough=0.01, bulge=0.1)


def _paint_ground(canvas: SceneCanvas, street: _Street) -> None:
    """A meadow in two patched tones below the horizon, and over it the road between its sidewalks."""
    top = int(street.horizon.min())
    ground = Stencil(top, 0, np.arange(top, canvas.height)[:, None] >= street.horizon)
    patches = canvas.noise(0.25)[ground.box] > canvas.between(-0.2, 0.8)
    meadow = np.where(patches[..., None], canvas.tone(_MEADOWS), canvas.tone(_MEADOWS))
    canvas.paint(ground, "grass", meadow, rough=canvas.between(0.08, 0.16), bulge=0.05)
    if not street.half_width:
        return
    depth = street.depth(ground.rows, canvas.height).clip(1e-3)
    away = (ground.columns - street.middle(depth)) / (street.half_width * depth + 1)  # the road is within -1 and 1
    below = ground.mask & (ground.rows > street.vanishing_row)
    pavement = canvas.between(1.25, 1.6)
    slabs = (np.floor(1.6 / depth) % 2 == np.floor(away * 8) % 2) * 0.12 + 0.94
    sides = Stencil(top, 0, below & (np.abs(away) < pavement))
    canvas.paint(sides, "sidewalk", canvas.tone(_SLABS), rough=0.05, bulge=0.05, pattern=slabs)
    kerb = Stencil(top, 0, below & (np.abs(away) < 1.05))
    canvas.paint(kerb, "sidewalk", canvas.tone(_SLABS) * 1.15, rough=0.03, bulge=0)
    road = Stencil(top, 0, below & (np.abs(away) < 1))
    canvas.paint(road, "road", canvas.tone(_ASPHALT), rough=canvas.between(0.04, 0.1), bulge=0.05)
    dashes = Stencil(top, 0, road.mask & (np.abs(away) < 0.03) & (np.floor(1.2 / depth) % 2 == 0))
    canvas.paint(dashes, "road", np.array((215, 212, 200), np.float32), bulge=0)


def _paint_treeline(canvas: SceneCanvas, street: _Street) -> None:
    """Far trees along a part of the horizon."""
    x, width = canvas.between(0, canvas.width), canvas.between(0.1, 0.4) * canvas.width
    lobes = []
    for step in range(6):
        column = x + (step / 2.5 - 1) * width
        row = street.horizon[min(max(int(column), 0), canvas.width - 1)]
        lobes.append((column, row, width / 3, canvas.unit * canvas.between(0.03, 0.08)))
    crowns = canvas.blob(*lobes)
    crowns.mask &= crowns.rows < street.horizon[crowns.box[1]] + 1
    canvas.paint(crowns, "tree", canvas.tone(LEAVES) * 0.5 + np.array((85, 95, 105), np.float32), rough=0.12)


def _shadow(canvas: SceneCanvas, x: float, y: float, reach: float) -> None:
    """Darken the ground on the side of (x, y) away from the sun."""
    tip = x - np.copysign(2 * reach, canvas.sun)
    ellipse = ("ellipse", [(min(x, tip), y - reach / 4), (max(x, tip), y + reach / 4)])
    canvas.shade(canvas.stencil(ellipse), _GROUNDS)


def _paint_building(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """A wall with a flat, gabled or domed roof and a grid of windows."""
    half, top = unit * canvas.between(0.2, 0.45), y - unit * canvas.between(0.4, 1.0)
    span = street.horizon[max(round(x - half), 0) : max(round(x + half) + 1, 1)]
    base = max(y, span.max(initial=0))  # no sky may show below a wall on a slope
    rise = unit * canvas.between(0.08, 0.2)
    roof = (
        ("rectangle", [(x - half, top - rise / 4), (x + half, top)]),
        ("polygon", [(x - 1.12 * half, top), (x, top - rise), (x + 1.12 * half, top)]),
        ("ellipse", [(x - half, top - rise), (x + half, top + rise)]),
    )[canvas.rng.integers(3)]
    canvas.paint(canvas.stencil(roof), "building", canvas.tone(_ROOFS))
    wall = canvas.stencil(("rectangle", [(x - half, top), (x + half, base)]))
    canvas.paint(wall, "building", canvas.tone(_WALLS), rough=0.04, bulge=0.15, pattern=1 - 0.1 * (wall.rows % 3 == 0))
    step, pane = unit * canvas.between(0.12, 0.18), unit * canvas.between(0.028, 0.042)
    columns = np.arange(x - half + step / 2, x + half - pane, step)
    rows = np.arange(top + step / 2, base - step / 2, step * 1.2)
    panes = [("rectangle", [(c - pane, r - pane), (c + pane, r + 1.5 * pane)]) for r in rows for c in columns]
    if panes:
        canvas.paint(canvas.stencil(*panes), "building", canvas.tone(GLASS))


def _paint_tree(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """A tapered trunk under a round crown, a conifer's cone, or bare branches."""
    tall, wide = unit * canvas.between(0.6, 1.0), unit * canvas.between(0.17, 0.26)
    foot, neck = 0.035 * unit, 0.02 * unit
    fork, kind = y - tall * 0.5, canvas.rng.integers(4)
    _shadow(canvas, x, y, wide)
    trunk = ("polygon", [(x - foot, y), (x - neck, fork), (x + neck, fork), (x + foot, y)])
    bark = canvas.tone(_BARK)
    canvas.paint(canvas.stencil(trunk), "tree", bark, rough=0.15)
    if kind == 0:
        twigs = []
        for _ in range(canvas.rng.integers(6, 12)):
            start, reach = fork + tall * canvas.between(-0.25, 0.1), wide * canvas.between(-1.2, 1.2)
            elbow = x + 0.5 * reach, start - tall * canvas.between(0.1, 0.2)
            twigs.append(("line", [(x, start), elbow, (x + reach, elbow[1] - tall * canvas.between(0.02, 0.2))]))
        twigs.append(("line", [(x, fork), (x + 0.1 * wide, y - tall)]))
        canvas.paint(canvas.stencil(*twigs, thickness=max(round(0.016 * unit), 1)), "tree", bark, rough=0.1)
        return
    if kind == 1:
        crown = canvas.stencil(
            ("polygon", [(x - 0.8 * wide, y - 0.15 * tall), (x, y - 1.1 * tall), (x + 0.8 * wide, y - 0.15 * tall)])
        )
        crown.mask = crown.mask & (canvas.relief[crown.box] > -0.9)
    else:
        lobes = [(x, y - 0.7 * tall, wide, wide)]
        for _ in range(canvas.rng.integers(1, 4)):
            size = wide * canvas.between(0.5, 0.8)
            lobes.append((x + wide * canvas.between(-0.7, 0.7), y - tall * canvas.between(0.55, 0.85), size, size))
        crown = canvas.blob(*lobes)
    depth = 1.15 - 0.4 * ((crown.rows - y + tall) / tall).clip(0, 1)  # its underside gets less light
    canvas.paint(crown, "tree", canvas.tone(LEAVES), rough=0.22, bulge=0.3, pattern=depth)


def _limb(x: float, y: float, end_x: float, end_y: float, half: float) -> tuple:
    return "polygon", [(x - half, y), (x + half, y), (end_x + half, end_y), (end_x - half, end_y)]


def _figure(canvas: SceneCanvas, x: float, y: float, tall: float) -> tuple[Stencil, Stencil, Stencil]:
    """Stencils of the legs, the arms with the torso, and the head of someone who walks."""
    thick, stride, swing = (tall * canvas.between(*span) for span in ((0.05, 0.065), (0.06, 0.17), (0.13, 0.22)))
    hip, neck = y - 0.46 * tall, y - 0.83 * tall
    legs = [_limb(x + side * thick, hip, x + side * stride, y, thick) for side in (-1, 1)]
    arms = [_limb(x + side * 1.6 * thick, neck, x + side * swing, hip, thick * 0.7) for side in (-1, 1)]
    chest, waist, skull = 2.3 * thick, 1.9 * thick, 0.08 * tall
    torso = "polygon", [(x - chest, neck), (x + chest, neck), (x + waist, hip), (x - waist, hip)]
    head = "ellipse", [(x - skull, y - tall), (x + skull, neck)]
    return canvas.stencil(*legs), canvas.stencil(*arms, torso), canvas.stencil(head)


def paint_person(canvas: SceneCanvas, x: float, y: float, tall: float) -> None:
    """Someone in trousers and a top of different colors, `tall` pixels high."""
    legs, top, head = _figure(canvas, x, y, tall)
    canvas.paint(legs, "person", canvas.tone(CLOTHES))
    canvas.paint(top, "person", canvas.tone(CLOTHES), bulge=0.3)
    canvas.paint(head, "person", canvas.tone(SKINS))


def _paint_walker(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    tall = unit * canvas.between(0.34, 0.46)
    _shadow(canvas, x, y, tall / 4)
    paint_person(canvas, x, y, tall)


def _paint_statue(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """The shape of a person in one tone of weathered stone, on a plinth or without."""
    tall, plinth = unit * canvas.between(0.34, 0.46), unit * canvas.between(0, 0.15)
    stone = canvas.tone(_STONE)
    _shadow(canvas, x, y, tall / 4)
    block = ("rectangle", [(x - 0.27 * tall, y - plinth), (x + 0.27 * tall, y)])
    canvas.paint(canvas.stencil(block), "statue", stone * 0.9, rough=0.12)
    for part in _figure(canvas, x, y - plinth, tall):
        canvas.paint(part, "statue", stone, rough=0.16, bulge=0.35)


def _paint_car(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """From the side or from behind, on the road where there is one."""
    if street.half_width:
        depth = street.depth(y, canvas.height)
        x = street.middle(depth) + canvas.between(-0.6, 0.6) * street.half_width * depth
    behind = canvas.chance(0.4)
    half, tall = (
        unit * (canvas.between(0.15, 0.18) if behind else canvas.between(0.26, 0.36)),
        unit * canvas.between(0.2, 0.25),
    )
    wheel, sill = 0.27 * tall, y - 0.2 * tall
    waist, roof = y - 0.62 * tall, y - tall
    paint, glass = canvas.tone(_PAINTS), canvas.tone(GLASS[:2])
    slant, cabin = (0.12, 0.75) if behind else (0.18, 0.6)
    _shadow(canvas, x, y, half)
    canvas.shade(canvas.stencil(("ellipse", [(x - half, sill), (x + half, y + 0.3 * wheel)])), _GROUNDS, 0.4)
    shell = (
        ("rectangle", [(x - half, waist), (x + half, sill)]),
        (
            "polygon",
            [
                (x - cabin * half, waist),
                (x - (cabin - slant) * half, roof),
                (x + (cabin - slant) * half, roof),
                (x + cabin * half, waist),
            ],
        ),
    )
    tyres = [(-0.78, 0.3), (0.78, 0.3)] if behind else [(-0.58, 1), (0.58, 1)]
    treads = [
        ("ellipse", [(x + at * half - broad * wheel, y - 2 * wheel), (x + at * half + broad * wheel, y)])
        for at, broad in tyres
    ]
    canvas.paint(canvas.stencil(*treads), "car", np.array((38, 38, 42), np.float32))
    canvas.paint(canvas.stencil(*shell), "car", paint, rough=0.02, bulge=0.25)
    inner, pane = cabin - slant, waist - 0.05 * tall
    panes = [
        (
            "polygon",
            [
                (x - (cabin - 0.07) * half, pane),
                (x - (inner - 0.03) * half, roof + 0.08 * tall),
                (x + (inner - 0.03) * half, roof + 0.08 * tall),
                (x + (cabin - 0.07) * half, pane),
            ],
        )
    ]
    canvas.paint(canvas.stencil(*panes), "car", glass, rough=0.02)
    lights = [
        (
            "rectangle",
            [
                (x + side * half * 0.95 - 0.05 * half, waist + 0.08 * tall),
                (x + side * half * 0.95 + 0.05 * half, waist + 0.2 * tall),
            ],
        )
        for side in (-1, 1)
    ]
    canvas.paint(canvas.stencil(*lights), "car", canvas.tone(((210, 40, 35), (245, 235, 200))), rough=0.0)


def _paint_pole(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """A thin post that carries a round sign, a board, or a lamp on an arm."""
    tall, thin = unit * canvas.between(0.6, 1.1), max(round(unit * canvas.between(0.026, 0.042)), 1) - 1
    left, top, size = round(x - thin / 2), y - tall, unit * canvas.between(0.06, 0.09)
    side = 1 if canvas.chance(0.5) else -1
    _shadow(canvas, x, y, unit * 0.06)
    metal = canvas.tone(_METALS)
    canvas.paint(canvas.stencil(("rectangle", [(left, top), (left + thin, y)])), "pole", metal)
    if canvas.chance(0.4):
        tip = x + side * 3 * size
        arm = ("rectangle", [(min(x, tip), top), (max(x, tip), top + thin)])
        canvas.paint(canvas.stencil(arm), "pole", metal)
        lamp = ("ellipse", [(tip - size, top - size / 3), (tip + size, top + size)])
        canvas.paint(canvas.stencil(lamp), "pole", canvas.tone(GLASS[-1:]))
    else:
        shape = "ellipse" if canvas.chance(0.5) else "rectangle"
        for rim, colors in ((1, _METALS), (0.75, _SIGNS)):
            corners = [(x - size * rim, top - size * rim), (x + size * rim, top + size * rim)]
            canvas.paint(canvas.stencil((shape, corners)), "pole", canvas.tone(colors))


def _paint_wires(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """Two to four lines from one side of the picture to the other, sagging as parabolas."""
    left, right = canvas.between(0.05, 0.35) * canvas.height, canvas.between(0.05, 0.35) * canvas.height
    sag, lines = canvas.unit * canvas.between(0.02, 0.12), []
    gap = canvas.unit * canvas.between(0.03, 0.06)
    at = np.linspace(0, 1, 13)
    for wire in range(canvas.rng.integers(2, 5)):
        rows = left + (right - left) * at + 4 * sag * at * (1 - at) + gap * wire
        lines.append(("line", list(zip(at * (canvas.width - 1), rows))))
    thickness = max(round(canvas.unit * 0.011), 1)
    canvas.paint(
        canvas.stencil(*lines, thickness=thickness), "wire", canvas.tone(((35, 35, 40), (60, 58, 55))), rough=0
    )


def _paint_fence(canvas: SceneCanvas, street: _Street, x: float, y: float, unit: float) -> None:
    """Pickets on two rails, with what is behind showing between them."""
    half, tall = unit * canvas.between(0.35, 0.8), unit * canvas.between(0.17, 0.26)
    slope = canvas.between(-0.12, 0.12)  # it runs a little towards or away from the viewer
    picket, step = max(unit * canvas.between(0.016, 0.024), 1), unit * canvas.between(0.06, 0.09)
    shapes = [
        (
            "polygon",
            [
                (x - half, y - half * slope + dy),
                (x + half, y + half * slope + dy),
                (x + half, y + half * slope + dy + picket),
                (x - half, y - half * slope + dy + picket),
            ],
        )
        for dy in (-0.75 * tall, -0.3 * tall)
    ]
    for column in np.arange(x - half, x + half, step):
        foot = y + (column - x) * slope
        shapes.append(
            (
                "polygon",
                [
                    (column - picket, foot),
                    (column - picket, foot - tall),
                    (column, foot - 1.15 * tall),
                    (column + picket, foot - tall),
                    (column + picket, foot),
                ],
            )
        )
    canvas.paint(canvas.stencil(*shapes), "fence", canvas.tone(_PLANKS), rough=0.08)


@dataclass(frozen=True)
class _Thing:
    """How often a painter runs, and how near to the viewer (0 at the horizon, 1 at the lower edge)."""

    paint: Callable[[SceneCanvas, _Street, float, float, float], None]
    most: int
    far: float
    near: float


_THINGS = (
    _Thing(_paint_building, most=3, far=0.0, near=0.15),
    _Thing(_paint_tree, most=2, far=0.05, near=0.6),
    _Thing(_paint_car, most=2, far=0.15, near=0.8),
    _Thing(_paint_walker, most=3, far=0.2, near=0.95),
    _Thing(_paint_statue, most=2, far=0.2, near=0.9),
    _Thing(_paint_pole, most=3, far=0.15, near=0.9),
    _Thing(_paint_fence, most=2, far=0.1, near=0.9),
    _Thing(_paint_wires, most=1, far=0.0, near=0.3),
)


def draw_street(canvas: SceneCanvas) -> None:
    """Sky, ground and road, then the things of one scene from far to near, so that nearer ones cover farther ones."""
    street = _new_street(canvas)
    bottom = min(int(street.horizon.max()) + 1, canvas.height)
    paint_sky(canvas, Stencil(0, 0, np.ones((bottom, canvas.width), bool)), "sky")
    _paint_ground(canvas, street)
    if canvas.chance(0.5):
        _paint_treeline(canvas, street)
    plan = [
        (canvas.between(thing.far, thing.near), canvas.between(0, canvas.width - 1), thing.paint)
        for thing in _THINGS
        for _ in range(round(canvas.rng.integers(thing.most + 1) * canvas.width / canvas.unit))
    ]
    for depth, x, paint in sorted(plan, key=operator.itemgetter(0)):
        ground = street.horizon[int(x)]
        paint(canvas, street, x, ground + depth * (canvas.height - 1 - ground), canvas.unit * (0.4 + 0.7 * depth))
