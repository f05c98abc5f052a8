# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Painters of synthetic indoor scenes: a room in one-point perspective, what hangs on its wall, what stands in it.

Some classes look alike on purpose: a picture may show the view that a window has, and doors and cabinets are upright
boxes of wood. A new kind of thing is one painter and one line in `_HANGINGS` or `_FURNITURE`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import SceneCanvas, Stencil
from .streets import CLOTHES, LEAVES, SKIES, paint_person


__all__ = ["draw_room"]


_PLASTER = ((225, 218, 200), (205, 215, 215), (190, 200, 180), (215, 195, 185), (165, 180, 195), (230, 205, 150))
_CEILINGS = ((240, 240, 235), (225, 225, 225), (235, 228, 210))
_FLOORS = ((150, 110, 75), (120, 85, 60), (190, 160, 120), (140, 140, 145), (110, 60, 60), (85, 100, 95))
_WOODS = ((140, 95, 60), (95, 65, 45), (190, 150, 105), (225, 220, 210), (70, 75, 85), (150, 60, 45))
_FRAMES = ((50, 40, 35), (190, 155, 80), (235, 235, 230), (120, 120, 125))
_POTS = ((175, 95, 65), (230, 225, 215), (70, 90, 120), (60, 60, 65))
_CASTS = (1.0, 0.75, 0.55)  # brightness of what faces the viewer, lies aside, or lies below


@dataclass
class _Room:
    """The back wall's edges, and the vanishing point, in pixels."""

    left: float
    right: float
    top: float
    bottom: float
    vanishing_column: float
    vanishing_row: float


def _new_room(canvas: SceneCanvas) -> _Room:
    height, width = canvas.height, canvas.width
    left, right = width * canvas.between(-0.1, 0.2), width * canvas.between(0.8, 1.1)
    top, bottom = height * canvas.between(-0.1, 0.18), height * canvas.between(0.52, 0.68)
    return _Room(left, right, top, bottom, canvas.between(0.35, 0.65) * width, canvas.between(0.3, 0.45) * height)


def _paint_shell(canvas: SceneCanvas, room: _Room) -> None:
    """Ceiling, three walls and floor; papers, boards and tiles follow the perspective."""
    everything = canvas.whole()
    rows, columns = everything.rows, everything.columns
    up = (room.vanishing_row - rows) / (room.vanishing_row - room.top) if room.top < room.vanishing_row else rows * 0
    down = (rows - room.vanishing_row) / (room.bottom - room.vanishing_row)
    left = (room.vanishing_column - columns) / (room.vanishing_column - room.left)
    right = (columns - room.vanishing_column) / (room.right - room.vanishing_column)
    aside = np.maximum(left, right)
    paper = canvas.tone(_PLASTER)
    stripes = 1 - canvas.between(0, 0.1) * (np.floor(columns / (canvas.unit * canvas.between(0.03, 0.1))) % 2)
    papered = [1.0, stripes, 1 + 0.08 * np.sign(canvas.noise(0.06))][canvas.rng.integers(3)]
    canvas.paint(everything, "wall", paper, rough=0.03, bulge=0.1, pattern=papered)
    facing = np.broadcast_to(
        np.maximum(up, down) > 1, aside.shape if aside.ndim > 1 else (canvas.height, canvas.width)
    )
    reach = np.maximum(aside[None], np.maximum(up, down))
    sides = canvas.whole((aside[None] >= reach) & (aside[None] > 1))
    shade = np.where(columns < room.vanishing_column, canvas.between(0.7, 0.95), canvas.between(0.7, 0.95))
    canvas.paint(sides, "wall", paper, rough=0.03, bulge=0, pattern=shade / reach**0.3)
    ceiling = canvas.whole(facing & (up >= reach) & (up > 1))
    canvas.paint(ceiling, "ceiling", canvas.tone(_CEILINGS), rough=0.015, bulge=0.1)
    floor = canvas.whole(facing & (down >= reach) & (down > 1))
    boards = np.floor((columns - room.vanishing_column) / down.clip(0.2) / (canvas.unit * canvas.between(0.06, 0.15)))
    courses = np.floor(canvas.between(4, 8) / down.clip(0.2))
    laid = [1 - 0.1 * (boards % 2), 1 - 0.15 * ((boards + courses) % 2), 1.0][canvas.rng.integers(3)]
    canvas.paint(floor, "floor", canvas.tone(_FLOORS), rough=canvas.between(0.04, 0.12), bulge=0.1, pattern=laid)
    skirting = canvas.whole((down > 0.955) & (down <= 1) & (aside[None] <= 1))
    canvas.paint(skirting, "wall", canvas.tone(_CEILINGS) * 0.95, rough=0.01, bulge=0.05)


def _box(left: float, top: float, right: float, bottom: float) -> tuple:
    return "rectangle", [(left, top), (right, bottom)]


def _landscape(canvas: SceneCanvas, stencil: Stencil, name: str, light: float) -> None:
    """Sky over hills and a meadow: the view from a window, and the subject of many a picture."""
    rows = (stencil.rows - stencil.top) / len(stencil.rows)
    zenith, low = np.array(SKIES[canvas.rng.integers(len(SKIES))], np.float32)
    sky = zenith + (low - zenith) * rows[..., None]
    skyline = canvas.between(0.45, 0.75) + 0.15 * canvas.relief[stencil.box][:1]
    land = np.broadcast_to(canvas.tone(LEAVES), sky.shape)
    color = np.where((rows > skyline)[..., None], land, sky)
    canvas.paint(stencil, name, color * light, rough=0.03, bulge=0)


def _paint_window(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """A light frame with a cross and a sill, and a bright view."""
    half, tall = unit * canvas.between(0.14, 0.24), unit * canvas.between(0.3, 0.42)
    frame, top, bottom = unit * 0.02, y - tall / 2, y + tall / 2
    white = canvas.tone(((235, 235, 232), (215, 212, 205)))
    sill = _box(x - 1.15 * half, bottom, x + 1.15 * half, bottom + frame)
    canvas.paint(canvas.stencil(_box(x - half, top, x + half, bottom), sill), "window", white, rough=0.01, bulge=0.05)
    view = canvas.stencil(_box(x - half + frame, top + frame, x + half - frame, bottom - frame))
    _landscape(canvas, view, "window", canvas.between(1.1, 1.35))
    bars = [_box(x - frame / 3, top, x + frame / 3, bottom)]
    if canvas.chance(0.6):
        bars.append(_box(x - half, y - frame / 3, x + half, y + frame / 3))
    canvas.paint(canvas.stencil(*bars), "window", white, rough=0.01, bulge=0.05)


def _paint_picture(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """A frame, often with a mat, around a landscape, a portrait or an abstract."""
    half, tall = unit * canvas.between(0.08, 0.2), unit * canvas.between(0.16, 0.36)
    rim, kind = unit * canvas.between(0.012, 0.03), canvas.rng.integers(3)
    left, right, top, bottom = x - half, x + half, y - tall / 2, y + tall / 2
    canvas.paint(canvas.stencil(_box(left, top, right, bottom)), "picture", canvas.tone(_FRAMES), rough=0.04)
    if canvas.chance(0.5):
        mat = canvas.stencil(_box(left + rim, top + rim, right - rim, bottom - rim))
        canvas.paint(mat, "picture", np.array((232, 228, 218), np.float32), rough=0.02, bulge=0)
        rim += unit * 0.02
    sheet = canvas.stencil(_box(left + rim, top + rim, right - rim, bottom - rim))
    if kind == 0:
        _landscape(canvas, sheet, "picture", canvas.between(0.7, 0.95))
        return
    canvas.paint(sheet, "picture", canvas.tone(CLOTHES) * 0.7, rough=0.1, bulge=0)
    if kind == 1:
        bust = canvas.stencil(
            ("ellipse", [(x - 0.25 * half, y - 0.28 * tall), (x + 0.25 * half, y)]),
            ("ellipse", [(x - 0.5 * half, y), (x + 0.5 * half, bottom - rim)]),
        )
        canvas.paint(bust & sheet, "picture", canvas.tone(CLOTHES), rough=0.05)
    else:
        for _ in range(3):
            column, row = canvas.between(left, right), canvas.between(top, bottom)
            patch = _box(column - half / 2, row - tall / 4, column + half / 2, row + tall / 4)
            canvas.paint(canvas.stencil(patch) & sheet, "picture", canvas.tone(CLOTHES), rough=0.05, bulge=0)


def _paint_door(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """From the floor up, with panels and a handle on one side."""
    half, tall = unit * canvas.between(0.11, 0.15), (room.bottom - room.top) * canvas.between(0.7, 0.85)
    top, wood, rim = room.bottom - tall, canvas.tone(_WOODS), unit * 0.015
    frame = canvas.stencil(_box(x - half - rim, top - rim, x + half + rim, room.bottom))
    canvas.paint(frame, "door", canvas.tone(_WOODS), rough=0.02, bulge=0.05)
    canvas.paint(canvas.stencil(_box(x - half, top, x + half, room.bottom)), "door", wood, rough=0.05, bulge=0.1)
    panels = [
        _box(
            x + side * half * 0.5 - 0.33 * half,
            top + at * tall,
            x + side * half * 0.5 + 0.33 * half,
            top + (at + 0.36) * tall,
        )
        for side in (-1, 1)
        for at in (0.08, 0.52)
    ]
    canvas.paint(canvas.stencil(*panels), "door", wood * canvas.between(0.8, 0.92), rough=0.05, bulge=0.1)
    knob, side = unit * 0.014, 1 if canvas.chance(0.5) else -1
    handle = x + side * 0.82 * half, top + 0.5 * tall
    disk = ("ellipse", [(handle[0] - knob, handle[1] - knob), (handle[0] + knob, handle[1] + knob)])
    canvas.paint(canvas.stencil(disk), "door", np.array((205, 185, 120), np.float32), rough=0)


def _paint_cabinet(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """A wardrobe with two leaves, a chest of drawers, or a shelf of books."""
    half, tall = unit * canvas.between(0.14, 0.26), unit * canvas.between(0.3, 0.62)
    top, wood, kind = y - tall, canvas.tone(_WOODS), canvas.rng.integers(3)
    canvas.shade(
        canvas.stencil(("ellipse", [(x - 1.1 * half, y - 0.05 * unit), (x + 1.1 * half, y + 0.05 * unit)])), ("floor",)
    )
    canvas.paint(canvas.stencil(_box(x - half, top, x + half, y)), "cabinet", wood, rough=0.05, bulge=0.1)
    seam = max(unit * 0.006, 0.5)
    if kind == 0:
        seams = [
            _box(x - seam, top, x + seam, y - 0.04 * tall),
            _box(x - half, y - 0.05 * tall, x + half, y - 0.04 * tall),
        ]
        knobs = [
            _box(x + side * 0.12 * half - seam, y - 0.55 * tall, x + side * 0.12 * half + seam, y - 0.45 * tall)
            for side in (-1, 1)
        ]
        canvas.paint(canvas.stencil(*seams, *knobs), "cabinet", wood * 0.5, rough=0)
        return
    boards = canvas.rng.integers(3, 6)
    for board in range(boards):
        low, high = top + tall * (board + 0.9) / boards, top + tall * (board + 0.12) / boards
        if kind == 1:
            drawer = canvas.stencil(_box(x - 0.92 * half, high, x + 0.92 * half, low))
            canvas.paint(drawer, "cabinet", wood * 1.12, rough=0.05, bulge=0.1)
            pull = _box(x - 0.15 * half, (low + high) / 2 - seam, x + 0.15 * half, (low + high) / 2 + seam)
            canvas.paint(canvas.stencil(pull), "cabinet", wood * 0.45, rough=0)
        else:
            inside = canvas.stencil(_box(x - 0.92 * half, high, x + 0.92 * half, low))
            canvas.paint(inside, "cabinet", wood * 0.45, rough=0.03, bulge=0)
            at = x - 0.9 * half
            while at < x + canvas.between(0.3, 0.85) * half:
                thick, height = unit * canvas.between(0.012, 0.03), (low - high) * canvas.between(0.6, 0.95)
                book = canvas.stencil(_box(at, low - height, min(at + thick, x + 0.9 * half), low))
                canvas.paint(book, "cabinet", canvas.tone(CLOTHES), rough=0.03)
                at += thick + 1


def _paint_table(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """A top seen a little from above on four legs."""
    half, tall, deep = (
        unit * canvas.between(0.22, 0.36),
        unit * canvas.between(0.22, 0.3),
        unit * canvas.between(0.05, 0.1),
    )
    top, leg, wood = y - tall, unit * canvas.between(0.013, 0.022), canvas.tone(_WOODS)
    lean = (room.vanishing_column - x) / canvas.width * deep
    canvas.shade(canvas.stencil(("ellipse", [(x - half, y - deep), (x + half, y + 0.2 * deep)])), ("floor",), 0.75)
    legs = [
        _box(x + at * half + shift - leg, top, x + at * half + shift + leg, y - back)
        for at, shift, back in ((-0.9, 0, 0), (0.9, 0, 0), (-0.72, lean, deep), (0.72, lean, deep))
    ]
    canvas.paint(canvas.stencil(*legs), "table", wood * 0.75, rough=0.04)
    plate = [
        (x - half, top),
        (x + half, top),
        (x + 0.8 * half + lean, top - deep),
        (x - 0.8 * half + lean, top - deep),
    ]
    canvas.paint(canvas.stencil(("polygon", plate)), "table", wood * 1.1, rough=0.05, bulge=0.1)
    canvas.paint(canvas.stencil(_box(x - half, top, x + half, top + 1.6 * leg)), "table", wood * 0.85, rough=0.04)


def _paint_chair(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """Four legs, a seat, and a back of slats or of cloth."""
    half, seat, tall = (
        unit * canvas.between(0.08, 0.12),
        unit * canvas.between(0.15, 0.19),
        unit * canvas.between(0.34, 0.42),
    )
    leg, deep, wood, side = (
        unit * canvas.between(0.011, 0.018),
        0.3 * half,
        canvas.tone(_WOODS),
        1 if canvas.chance(0.5) else -1,
    )
    canvas.shade(
        canvas.stencil(("ellipse", [(x - 1.2 * half, y - deep), (x + 1.2 * half, y + 0.3 * deep)])), ("floor",), 0.75
    )
    posts = [
        _box(x + at * half + shift - leg, y - seat, x + at * half + shift + leg, y - back)
        for at, shift, back in ((-0.9, 0, 0), (0.9, 0, 0), (-0.9, side * deep, deep), (0.9, side * deep, deep))
    ]
    canvas.paint(canvas.stencil(*posts), "chair", wood * 0.8, rough=0.04)
    rear = x + side * deep
    if canvas.chance(0.5):
        slats = [
            _box(rear + at * half - leg, y - tall, rear + at * half + leg, y - seat) for at in (-0.9, -0.3, 0.3, 0.9)
        ]
        rail = _box(rear - half, y - tall, rear + half, y - tall + 2.5 * leg)
        canvas.paint(canvas.stencil(*slats, rail), "chair", wood, rough=0.04)
    else:
        canvas.paint(
            canvas.stencil(_box(rear - half, y - tall, rear + half, y - seat)),
            "chair",
            canvas.tone(CLOTHES),
            rough=0.1,
        )
    cushion = [
        (x - half, y - seat + 2 * leg),
        (x + half, y - seat + 2 * leg),
        (rear + half, y - seat - deep),
        (rear - half, y - seat - deep),
    ]
    canvas.paint(canvas.stencil(("polygon", cushion)), "chair", wood * 1.15, rough=0.05)


def _paint_plant(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    """Leaves like those of a tree over a pot."""
    pot, wide, tall = (
        unit * canvas.between(0.06, 0.1),
        unit * canvas.between(0.1, 0.17),
        unit * canvas.between(0.2, 0.4),
    )
    canvas.shade(
        canvas.stencil(("ellipse", [(x - 1.3 * pot, y - 0.3 * pot), (x + 1.3 * pot, y + 0.3 * pot)])), ("floor",)
    )
    lobes = [(x, y - pot - 0.5 * tall, 0.7 * wide, 0.6 * tall)]
    for _ in range(canvas.rng.integers(2, 5)):
        lobes.append(
            (
                x + wide * canvas.between(-0.7, 0.7),
                y - pot - tall * canvas.between(0.3, 1.0),
                wide * canvas.between(0.3, 0.5),
                wide * canvas.between(0.3, 0.6),
            )
        )
    canvas.paint(canvas.blob(*lobes, ragged=0.45), "plant", canvas.tone(LEAVES[:3]), rough=0.22, bulge=0.3)
    vessel = [(x - pot, y - 1.5 * pot), (x + pot, y - 1.5 * pot), (x + 0.75 * pot, y), (x - 0.75 * pot, y)]
    canvas.paint(canvas.stencil(("polygon", vessel)), "plant", canvas.tone(_POTS), rough=0.04, bulge=0.3)


def _paint_guest(canvas: SceneCanvas, room: _Room, x: float, y: float, unit: float) -> None:
    tall = unit * canvas.between(0.5, 0.62)
    canvas.shade(
        canvas.stencil(("ellipse", [(x - tall / 6, y - tall / 30), (x + tall / 6, y + tall / 30)])), ("floor",)
    )
    paint_person(canvas, x, y, tall)


@dataclass(frozen=True)
class _Piece:
    """How often a painter runs, and where its foot may stand (0 at the back wall, 1 at the lower edge)."""

    paint: Callable[[SceneCanvas, _Room, float, float, float], None]
    most: int
    far: float = 0.0
    near: float = 0.0


_HANGINGS = (_Piece(_paint_window, 2), _Piece(_paint_picture, 3), _Piece(_paint_door, 1))
_FURNITURE = (
    _Piece(_paint_cabinet, 2, 0.02, 0.2),
    _Piece(_paint_table, 1, 0.2, 0.9),
    _Piece(_paint_chair, 2, 0.15, 0.95),
    _Piece(_paint_plant, 2, 0.05, 0.9),
    _Piece(_paint_guest, 2, 0.1, 0.9),
)


def draw_room(canvas: SceneCanvas) -> None:
    """The empty room, then its wall side by side, then its furniture from far to near."""
    room = _new_room(canvas)
    _paint_shell(canvas, room)
    hangings = [piece for piece in _HANGINGS for _ in range(canvas.rng.integers(piece.most + 1))]
    width = min(room.right, canvas.width) - max(room.left, 0)
    for slot, at in enumerate(canvas.rng.permutation(len(hangings))):
        x = max(room.left, 0) + width * (slot + canvas.between(0.35, 0.65)) / len(hangings)
        y = room.top + (room.bottom - room.top) * canvas.between(0.35, 0.5)
        hangings[at].paint(canvas, room, x, y, canvas.unit)
    plan = [
        (canvas.between(piece.far, piece.near), canvas.between(0.05, 0.95) * canvas.width, piece.paint)
        for piece in _FURNITURE
        for _ in range(round(canvas.rng.integers(piece.most + 1) * canvas.width / canvas.unit))
    ]
    for depth, x, paint in sorted(plan, key=operator.itemgetter(0)):
        paint(
            canvas, room, x, room.bottom + depth * (canvas.height - 1 - room.bottom), canvas.unit * (0.8 + 0.6 * depth)
        )
