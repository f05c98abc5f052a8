"""Procedural outdoor scenes with exact label maps, for the quickstart and for tests without a download.

A scene is an ordered list of painters: sky, ground, then things from far to near. Every painter calls
`_Scene.paint`, which writes image and label through one mask, so the two cannot disagree. A new kind of thing
is one painter and one line in `_THINGS`. Randomness is uniform integers and fractions, and geometry is elementary
arithmetic, to have every platform draw the same pixels.
"""

import io
import numbers
import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFilter


SYNTHETIC_CLASSES = ("sky", "ground", "building", "tree", "person", "pole")
"""Class names; the position is the label value, so `dict(enumerate(SYNTHETIC_CLASSES))` is an `id2label`."""

SYNTHETIC_PALETTE = ((86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0), (240, 228, 66))
"""One RGB colour (0 to 255) a class, from the colour-blind-safe set of Okabe and Ito."""

_SIDES = (32, 2**15)
_WORDS = (0, 2**32 - 1)  # seed and index are one word of the SeedSequence each, so no two pairs share a stream
_SPLIT_LENGTH = 2**31
_SPLIT_STARTS = {"train": 0, "validation": _SPLIT_LENGTH}

_SKIES = (((70, 130, 205), (190, 215, 235)), ((150, 165, 180), (205, 208, 212)), ((95, 105, 160), (240, 190, 150)))
_SOILS = ((105, 135, 70), (150, 130, 95), (115, 115, 120), (195, 175, 130), (85, 110, 60))
_WALLS = ((165, 90, 70), (190, 175, 150), (140, 145, 150), (215, 205, 190), (115, 130, 150), (175, 150, 95))
_ROOFS = ((95, 60, 55), (70, 72, 80), (140, 75, 55), (60, 80, 80))
_GLASS = ((45, 55, 70), (90, 120, 145), (225, 205, 140))
_LEAVES = ((55, 100, 45), (80, 120, 50), (40, 80, 55), (175, 115, 45), (130, 125, 50))
_BARK = ((85, 65, 50), (70, 60, 55), (110, 90, 70))
_SKINS = ((235, 195, 165), (195, 145, 110), (140, 95, 70), (90, 60, 45))
_CLOTHES = ((190, 40, 45), (40, 70, 150), (235, 230, 225), (40, 40, 45), (225, 165, 40), (110, 60, 130), (40, 130, 90))
_METALS = ((75, 78, 82), (165, 168, 172), (50, 60, 55), (120, 90, 65))
_SIGNS = ((200, 35, 40), (30, 80, 170), (245, 200, 40), (235, 235, 235))


@dataclass
class _Scene:
    """The canvas and what all painters share: randomness, light, and the noise that gives surfaces texture."""

    rng: np.random.Generator
    image: np.ndarray  # (height, width, 3) float32, 0 to 255
    label: np.ndarray  # (height, width) uint8
    horizon: np.ndarray  # (width,) the first ground row of each column
    sun: float  # brightness gained at an object's right edge and lost at its left, -1 to 1
    relief: np.ndarray  # (height, width) float32 in [-2, 2], fine plus coarser noise: surfaces and ragged outlines

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def tone(self, colours: tuple) -> np.ndarray:
        """One of `colours`, shifted a little so that no class can be told by exact values."""
        return np.float32(colours[self.rng.integers(len(colours))]) + np.float32(self.rng.integers(-16, 17, 3))

    def stencil(self, *shapes: tuple) -> np.ndarray:
        """The union of (ImageDraw method, coordinates) shapes as a boolean (height, width) mask, not antialiased."""
        canvas = Image.new("L", self.label.shape[::-1])
        draw = ImageDraw.Draw(canvas)
        for kind, points in shapes:
            getattr(draw, kind)([(round(x), round(y)) for x, y in points], fill=1)
        return np.asarray(canvas).view(bool)

    def paint(self, mask: np.ndarray, name: str, colour: np.ndarray, rough: float = 0.06, bulge: float = 0.2) -> None:
        """Write class `name` and its textured, side-lit `colour` (broadcast to the image) where `mask` is true."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            return
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        across = 2 * (np.arange(columns[-1] + 1 - columns[0], dtype=np.float32) / columns.size) - 1
        light = 1 + self.sun * bulge * across + rough * self.relief[box]
        surface = np.broadcast_to(np.asarray(colour, np.float32), self.image.shape)[box]
        np.copyto(self.image[box], surface * light[..., None], where=mask[box][..., None])
        self.label[box][mask[box]] = SYNTHETIC_CLASSES.index(name)

    def shadow(self, x: float, y: float, reach: float) -> None:
        """Darken the ground on the side of (x, y) away from the sun; a shadow keeps the label of what it falls on."""
        tip = x - np.copysign(2 * reach, self.sun)
        mask = self.stencil(("ellipse", [(min(x, tip), y - reach / 4), (max(x, tip), y + reach / 4)]))
        self.image[mask & (self.label == SYNTHETIC_CLASSES.index("ground"))] *= 0.65


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Noise in [-1, 1], float32 (height, width), with blobs about `cell` pixels broad."""
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 127.5 - 1


def _new_scene(rng: np.random.Generator, height: int, width: int) -> _Scene:
    unit = min(height, width)
    hills = _smooth_noise(rng, 1, width, max(unit // 2, 1))[0]
    bend = np.linspace(-1, 1, width) ** 2 * (rng.random() - 0.5)  # a hill or a hollow as broad as the picture
    horizon = np.rint(height * (0.5 + 0.16 * rng.random()) + unit * (0.05 * hills + 0.2 * bend)).astype(int)
    return _Scene(
        rng=rng,
        image=np.zeros((height, width, 3), np.float32),
        label=np.zeros((height, width), np.uint8),
        horizon=horizon,
        sun=2 * rng.random() - 1,
        relief=_smooth_noise(rng, height, width, max(unit // 20, 2)) + _smooth_noise(rng, height, width, 2),
    )


def _paint_sky(scene: _Scene) -> None:
    """A gradient from zenith to horizon with soft clouds."""
    height, width = scene.label.shape
    zenith, low = np.float32(_SKIES[scene.rng.integers(len(_SKIES))]) + np.float32(scene.rng.integers(-12, 13, 3))
    colour = zenith + (low - zenith) * np.linspace(0, 1.4, height, dtype=np.float32)[:, None, None].clip(0, 1)
    clouds = _smooth_noise(scene.rng, height, width, max(min(height, width) // 5, 2)) + 0.2 * scene.relief
    cover = (clouds * 1.5 + scene.between(-0.8, 0.4)).clip(0, 0.8)[..., None]
    colour = colour + (np.float32((235, 235, 238)) - colour) * cover
    scene.paint(np.ones_like(scene.label, bool), "sky", colour, rough=0.01, bulge=0.1)


def _paint_ground(scene: _Scene) -> None:
    """Everything below the curved horizon: two soils in patches, rougher than any wall."""
    height, width = scene.label.shape
    patches = _smooth_noise(scene.rng, height, width, max(min(height, width) // 4, 2))
    colour = np.where(patches[..., None] > scene.between(-0.2, 0.8), scene.tone(_SOILS), scene.tone(_SOILS))
    mask = np.arange(height)[:, None] >= scene.horizon
    scene.paint(mask, "ground", colour, rough=scene.between(0.06, 0.14), bulge=0.05)


def _paint_building(scene: _Scene, x: float, y: float, unit: float) -> None:
    """A wall with a flat, gabled or domed roof and a grid of windows."""
    half, top = unit * scene.between(0.13, 0.28), y - unit * scene.between(0.28, 0.6)
    span = scene.horizon[max(round(x - half), 0) : max(round(x + half) + 1, 1)]
    base = max(y, span.max(initial=0))  # no sky may show below a wall on a slope
    rise = unit * scene.between(0.06, 0.16)
    roof = (
        ("rectangle", [(x - half, top - rise / 4), (x + half, top)]),
        ("polygon", [(x - 1.12 * half, top), (x, top - rise), (x + 1.12 * half, top)]),
        ("ellipse", [(x - half, top - rise), (x + half, top + rise)]),
    )[scene.rng.integers(3)]
    scene.paint(scene.stencil(roof), "building", scene.tone(_ROOFS))
    wall = scene.stencil(("rectangle", [(x - half, top), (x + half, base)]))
    courses = np.float32(1 - 0.1 * (np.arange(wall.shape[0]) % 3 == 0))[:, None, None]
    scene.paint(wall, "building", scene.tone(_WALLS) * courses, rough=0.04, bulge=0.15)
    step, pane = unit * scene.between(0.085, 0.13), unit * scene.between(0.02, 0.03)
    columns = np.arange(x - half + step / 2, x + half - pane, step)
    rows = np.arange(top + step / 2, base - step / 2, step * 1.2)
    panes = [("rectangle", [(c - pane, r - pane), (c + pane, r + 1.5 * pane)]) for r in rows for c in columns]
    scene.paint(scene.stencil(*panes) & wall, "building", scene.tone(_GLASS))


def _paint_tree(scene: _Scene, x: float, y: float, unit: float) -> None:
    """A tapered trunk under a ragged crown of a few overlapping lobes."""
    tall, wide = unit * scene.between(0.45, 0.75), unit * scene.between(0.13, 0.2)
    foot, neck = 0.03 * unit, 0.018 * unit
    fork = y - tall * 0.6
    scene.shadow(x, y, wide)
    trunk = scene.stencil(("polygon", [(x - foot, y), (x - neck, fork), (x + neck, fork), (x + foot, y)]))
    scene.paint(trunk, "tree", scene.tone(_BARK), rough=0.15)
    rows, columns = np.float32(np.arange(scene.label.shape[0]))[:, None], np.float32(np.arange(scene.label.shape[1]))
    distance = np.full(scene.label.shape, np.inf, np.float32)
    for lobe in range(scene.rng.integers(2, 5)):  # squared distance to the nearest lobe, 1 on its outline
        size = wide * (1 if lobe == 0 else scene.between(0.5, 0.8))
        middle = x + wide * scene.between(-0.7, 0.7) * (lobe > 0), y - tall * scene.between(0.55, 0.85)
        np.minimum(distance, ((columns - middle[0]) / size) ** 2 + ((rows - middle[1]) / size) ** 2, out=distance)
    crown = distance + 0.35 * scene.relief < 1
    depth = 1.15 - 0.4 * ((np.arange(len(crown)) - y + tall) / tall).clip(0, 1)  # its underside gets less light
    scene.paint(crown, "tree", scene.tone(_LEAVES) * np.float32(depth)[:, None, None], rough=0.22, bulge=0.3)


def _limb(x: float, y: float, end_x: float, end_y: float, half: float) -> tuple:
    return "polygon", [(x - half, y), (x + half, y), (end_x + half, end_y), (end_x - half, end_y)]


def _paint_person(scene: _Scene, x: float, y: float, unit: float) -> None:
    """A walking figure: two legs apart, arms, torso and head."""
    tall = unit * scene.between(0.3, 0.42)
    thick, stride, swing = (tall * scene.between(*span) for span in ((0.045, 0.06), (0.06, 0.17), (0.13, 0.22)))
    hip, neck = y - 0.46 * tall, y - 0.83 * tall
    legs = [_limb(x + side * thick, hip, x + side * stride, y, thick) for side in (-1, 1)]
    arms = [_limb(x + side * 1.6 * thick, neck, x + side * swing, hip, thick * 0.7) for side in (-1, 1)]
    chest, waist = 2.3 * thick, 1.9 * thick
    torso = [(x - chest, neck), (x + chest, neck), (x + waist, hip), (x - waist, hip)]
    skull = 0.075 * tall
    scene.shadow(x, y, tall / 4)
    scene.paint(scene.stencil(*legs), "person", scene.tone(_CLOTHES))
    scene.paint(scene.stencil(*arms, ("polygon", torso)), "person", scene.tone(_CLOTHES), bulge=0.3)
    scene.paint(scene.stencil(("ellipse", [(x - skull, y - tall), (x + skull, neck)])), "person", scene.tone(_SKINS))


def _paint_pole(scene: _Scene, x: float, y: float, unit: float) -> None:
    """A post a few pixels thin that carries a round sign, a board, or a lamp on an arm."""
    tall, thin = unit * scene.between(0.45, 0.8), max(round(unit * scene.between(0.02, 0.034)), 1) - 1
    left, top, size = round(x - thin / 2), y - tall, unit * scene.between(0.045, 0.07)
    side = 1 if scene.rng.random() < 0.5 else -1
    scene.shadow(x, y, unit * 0.06)
    metal = scene.tone(_METALS)
    scene.paint(scene.stencil(("rectangle", [(left, top), (left + thin, y)])), "pole", metal)
    if scene.rng.random() < 0.4:
        tip = x + side * 3 * size
        arm = ("rectangle", [(min(x, tip), top), (max(x, tip), top + thin)])
        scene.paint(scene.stencil(arm), "pole", metal)
        lamp = ("ellipse", [(tip - size, top - size / 3), (tip + size, top + size)])
        scene.paint(scene.stencil(lamp), "pole", scene.tone(_GLASS[-1:]))
    else:
        shape = "ellipse" if scene.rng.random() < 0.5 else "rectangle"
        for rim, colours in ((1, _METALS), (0.75, _SIGNS)):
            corners = [(x - size * rim, top - size * rim), (x + size * rim, top + size * rim)]
            scene.paint(scene.stencil((shape, corners)), "pole", scene.tone(colours))


@dataclass(frozen=True)
class _Thing:
    """How often a painter runs, and how near to the viewer (0 at the horizon, 1 at the lower edge)."""

    paint: Callable[[_Scene, float, float, float], None]
    most: int
    far: float
    near: float


_BACKDROP = (_paint_sky, _paint_ground)
_THINGS = (
    _Thing(_paint_building, most=2, far=0.0, near=0.2),
    _Thing(_paint_tree, most=2, far=0.05, near=0.6),
    _Thing(_paint_person, most=3, far=0.25, near=0.95),
    _Thing(_paint_pole, most=3, far=0.15, near=0.9),
)


def _paint_things(scene: _Scene) -> None:
    """Place the things of one scene and paint them from far to near, so that nearer ones cover farther ones."""
    height, width = scene.label.shape
    unit = min(height, width)
    plan = [
        (scene.between(thing.far, thing.near), scene.between(0, width - 1), thing.paint)
        for thing in _THINGS
        for _ in range(round(scene.rng.integers(thing.most + 1) * width / unit))
    ]
    for depth, x, paint in sorted(plan, key=operator.itemgetter(0)):
        ground = scene.horizon[int(x)]
        paint(scene, x, ground + depth * (height - 1 - ground), unit * (0.75 + 0.5 * depth))


def _photograph(scene: _Scene) -> Image.Image:
    """The image as a camera gives it: exposure, colour cast, slight blur across edges, sensor noise."""
    cast = scene.between(0.75, 1.15) * (1 + 0.12 * (scene.rng.random(3, dtype=np.float32) - 0.5))
    sharp = Image.fromarray((scene.image * cast.astype(np.float32)).clip(0, 255).astype(np.uint8))
    blurred = sharp.filter(ImageFilter.Kernel((3, 3), (0, 1, 0, 1, 4, 1, 0, 1, 0)))
    byte = scene.rng.integers(0, 256, scene.image.shape, dtype=np.uint8)
    noise = (byte >> 4) + (byte & 15) - np.int16(15)  # two dice: bell-shaped enough, exact on every platform
    return Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))


def _integer(name: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return int(value)


def _sides(size: tuple[int, int]) -> list[int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size must be a (height, width) pair, got {size!r}")
    return [_integer("each side in size", side, *_SIDES) for side in size]


def synthetic_scene(index: int, seed: int = 0, size: tuple[int, int] = (128, 128)) -> tuple[Image.Image, Image.Image]:
    """Draw one outdoor scene and its label map.

    The same arguments give the same scene in any process, and on any platform with the same numpy and Pillow;
    different (seed, index) pairs draw from independent random streams.

    Args:
        index: Which scene, 0 to 2**32 - 1.
        seed: Which family of scenes, 0 to 2**32 - 1.
        size: (height, width) in pixels, each 32 to 32768. Things scale with the shorter side.

    Returns:
        The image (PIL, mode "RGB") and its label map (PIL, mode "L", values 0 to 5 as in `SYNTHETIC_CLASSES`; every
        pixel is labelled), both `size`. Edges are blurred over one pixel in the image and never in the label map.

    Raises:
        ValueError: An argument is not an integer or out of its range, or `size` is not a pair.
    """
    index, seed = _integer("index", index, *_WORDS), _integer("seed", seed, *_WORDS)
    height, width = _sides(size)
    scene = _new_scene(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,))), height, width)
    for paint in (*_BACKDROP, _paint_things):
        paint(scene)
    return _photograph(scene), Image.fromarray(scene.label)


def _png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # noise hardly compresses: do not try hard
    return {"bytes": buffer.getvalue(), "path": None}


def synthetic_scenes(
    num_scenes: int, seed: int = 0, size: tuple[int, int] = (128, 128), split: str = "train", offset: int = 0
) -> datasets.Dataset:
    """Draw `num_scenes` scenes into a data set held in memory.

    The splits of one seed share no scene, whatever their sizes: "train" holds scenes 0, 1, ... and "validation"
    holds scenes 2**31, 2**31 + 1, ... of `synthetic_scene`. Nothing is read from or written to a cache or any other
    file, so a change of this module shows at once. A scene of 128x128 takes about 35 kB.

    Args:
        num_scenes: How many, at least 1.
        seed: As for `synthetic_scene`.
        size: (height, width) in pixels, as for `synthetic_scene`.
        split: "train" or "validation".
        offset: How many scenes of the split to skip first, 0 or more.

    Returns:
        A `datasets.Dataset` with columns `image` (RGB) and `label` (mode "L"), both `datasets.Image` stored as PNG.

    Raises:
        ValueError: An argument is out of its range, or the split (2**31 scenes) does not reach that far.
    """
    if split not in tuple(_SPLIT_STARTS):
        raise ValueError(f"split must be one of {', '.join(_SPLIT_STARTS)}, got {split!r}")
    offset = _integer("offset", offset, 0, _SPLIT_LENGTH - 1)
    num_scenes = _integer("num_scenes", num_scenes, 1, _SPLIT_LENGTH - offset)
    first = _SPLIT_STARTS[split] + offset
    pairs = [tuple(map(_png, synthetic_scene(index, seed, size))) for index in range(first, first + num_scenes)]
    images, labels = map(list, zip(*pairs, strict=True))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
