# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Images and their annotated regions in the files of COCO, Roboflow, CVAT and Labelme, ready to be painted as masks.

COCO's own library reads its files and paints the outlines of all formats. The files of CVAT and Labelme are plain XML
and JSON, which no small library reads without losing the order of the regions.
"""

import base64
import contextlib
import io
import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import numpy as np
import PIL.Image


__all__ = ["IGNORED_LABEL", "READERS", "AnnotatedImage", "Annotations", "Regions"]

IGNORED_LABEL = "__ignore__"  # Labelme's name for regions without a class

# The label and the pixels, bool (height, width), of each region of an image, the lowest first.
Regions: TypeAlias = Iterator[tuple[str, np.ndarray]]

_CORNERS_OF_CIRCLES = 72


@dataclass
class AnnotatedImage:
    """
    An image with regions.

    Attributes:
        file: The image file, which may be missing.
        place: Its path below the folder of the images.
        size: Height and width that the annotation states, if it does.
        regions: Paints the regions for a height and a width. A `ValueError` names a region that cannot be painted.
    """

    file: Path
    place: PurePosixPath
    size: tuple[int, int] | None
    regions: Callable[[int, int], Regions]


@dataclass
class Annotations:
    """
    The content of annotation files.

    Attributes:
        labels: The labels in their order, without `IGNORED_LABEL`.
        images: The images.
        skipped: Number of shapes without an area, such as points, by their kind.
    """

    labels: list[str]
    images: list[AnnotatedImage]
    skipped: Counter[str] = field(default_factory=Counter)


def read_coco(source: Path, image_dir: Path | None) -> Annotations:
    """
    COCO's object instances: a JSON file, whose images are in `image_dir`, by default in the folder of the file.

    COCO gives regions no order, so small ones lie above large ones. Regions with `iscrowd` have no outline for each
    object: they are ignored, and lie below all others.
    """
    coco = _load_coco(source)
    names = {index: str(coco.cats[index]["name"]) for index in sorted(coco.cats)}
    return Annotations(list(dict.fromkeys(names.values())), _coco_images(coco, names, source, image_dir))


def read_roboflow(source: Path, image_dir: Path | None) -> Annotations:
    """
    A folder of Roboflow's export "COCO Segmentation": `_annotations.coco.json` beside its images. As `read_coco`, but
    without the category that only names the group of the others.
    """
    coco = _load_coco(source)
    groups = {category.get("supercategory") for category in coco.cats.values()}
    used = {annotation.get("category_id") for annotation in coco.anns.values()}
    names = {
        index: str(coco.cats[index]["name"])
        for index in sorted(coco.cats)
        if index in used or coco.cats[index]["name"] not in groups
    }
    return Annotations(list(dict.fromkeys(names.values())), _coco_images(coco, names, source, image_dir))


def _load_coco(source: Path) -> Any:
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            coco = COCO(str(source))
        images = coco.dataset["images"]
        is_named = all("name" in category for category in coco.cats.values())
        is_whole = is_named and all({"file_name", "height", "width"} <= image.keys() for image in images)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(
            f"{source} cannot be read as annotations of COCO ({type(error).__name__}: {error}): it must be JSON with "
            "images, categories and annotations."
        ) from error
    if not is_whole or len(coco.imgs) < len(images):
        raise ValueError(
            f"{source} must have categories with names, and images with an id each, file_name, height and width, as "
            "COCO does."
        )
    return coco


def _coco_images(coco: Any, names: dict[int, str], source: Path, image_dir: Path | None) -> list[AnnotatedImage]:
    folder = image_dir or source.parent
    for annotation in coco.anns.values():
        if annotation.get("category_id") not in names:
            raise ValueError(
                f"Annotation {annotation['id']} of {source} has category {annotation.get('category_id')}, which the "
                "file does not list."
            )
        if annotation.get("image_id") not in coco.imgs:
            raise ValueError(
                f"Annotation {annotation['id']} of {source} is of image {annotation.get('image_id')!r}, which the "
                "file does not list."
            )
    images = []
    for index, image in coco.imgs.items():
        file, place = _within(folder, folder, image["file_name"], source)
        size = (image["height"], image["width"])
        if not all(type(side) is int and side > 0 for side in size):
            raise ValueError(
                f"Image {image['file_name']} of {source} has height {size[0]!r} and width {size[1]!r}: both must be "
                "positive integers."
            )
        images.append(AnnotatedImage(file, place, size, partial(_coco_regions, coco, index, names, source)))
    return images


def _coco_regions(coco: Any, index: int, names: dict[int, str], source: Path, height: int, width: int) -> Regions:
    from pycocotools import mask

    regions = []
    for annotation in coco.imgToAnns[index]:
        where = f"Annotation {annotation['id']} of {source}"
        outline = annotation.get("segmentation")
        if not outline:
            raise ValueError(f"{where} has no segmentation: boxes alone are not enough. Export outlines or masks.")
        paint = _outline if isinstance(outline, list) else _runs
        rle = paint(outline, height, width, where)
        label = IGNORED_LABEL if annotation.get("iscrowd") else names[annotation["category_id"]]
        regions.append((label, rle))
    # Areas in the file are often wrong.
    regions.sort(key=lambda region: (region[0] != IGNORED_LABEL, -int(mask.area(region[1]))))
    for label, rle in regions:
        yield label, mask.decode(rle).astype(bool)


def _runs(outline: Any, height: int, width: int, where: str) -> Any:
    """A checked run-length code: pycocotools would show the memory beyond a short one."""
    from pycocotools import mask

    counts: Any = outline.get("counts") if isinstance(outline, dict) else None
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    is_list = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not is_list or sum(counts) != height * width or list(outline.get("size", [])) != [height, width]:
        raise ValueError(f"{where} has a run-length code that does not fit the image of {height} x {width} pixels.")
    return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _run_lengths(text: str) -> list[int]:
    """The numbers in a compressed run-length code, see `rleFrString` in COCO's maskApi.c."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:  # the last digit of a number, whose upper bit is the sign
            value -= (digit & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _outline(parts: Iterable[Any], height: int, width: int, where: str) -> Any:
    """The run-length code of polygons `[x, y, x, y, ...]` in pixels, all of which are filled."""
    from pycocotools import mask

    checked = []
    for part in parts:
        try:
            values = np.asarray(part, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.array([np.nan])
        # What lies far outside costs memory as if it were inside.
        if values.ndim != 1 or len(values) % 2 or not (np.abs(values) <= 10 * max(height, width)).all():
            raise ValueError(
                f"{where} has an outline that is not a list of x and y in pixels, near an image of {height} x {width} "
                "pixels."
            )
        if len(values) >= 6:  # less has no area
            checked.append(values.tolist())
    if not checked:
        return mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return mask.merge(mask.frPyObjects(checked, height, width))


def _fill(points: Iterable[Any], height: int, width: int, where: str) -> np.ndarray:
    from pycocotools import mask

    return mask.decode(_outline([[value for point in points for value in point]], height, width, where)).astype(bool)


def _ellipse(x: float, y: float, radii: tuple[float, float], degrees: float = 0.0) -> list[tuple[float, float]]:
    steps = (2 * math.pi * step / _CORNERS_OF_CIRCLES for step in range(_CORNERS_OF_CIRCLES))
    return _turned([(x + radii[0] * math.cos(a), y + radii[1] * math.sin(a)) for a in steps], (x, y), degrees)


def _turned(points, center: tuple[float, float], degrees: float) -> list[tuple[float, float]]:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    offsets = [(x - center[0], y - center[1]) for x, y in points]
    return [(center[0] + x * cosine - y * sine, center[1] + x * sine + y * cosine) for x, y in offsets]


class _TreeBuilder(ElementTree.TreeBuilder):
    def doctype(self, name, public_id, system_id):
        # It could define entities that grow without limit. CVAT writes none.
        raise ValueError("it has a document type")


def read_cvat(source: Path, image_dir: Path | None) -> Annotations:
    """
    CVAT's export "CVAT for images": `annotations.xml`, whose images are in `image_dir`, by default in the folder of
    the file. Regions lie in the order of `z_order`, and those of the same one in the order of the file.
    """
    try:
        root = ElementTree.parse(source, ElementTree.XMLParser(target=_TreeBuilder())).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{source} cannot be read as annotations of CVAT: {error}.") from error
    if root.find("image") is None:
        raise ValueError(f"{source} has no images: export the task from CVAT as 'CVAT for images 1.1', not for video.")
    folder = image_dir or source.parent
    labels = [element.text or "" for element in root.iterfind("meta//labels/label/name")]
    images, skipped = [], Counter[str]()
    for element in root.iterfind("image"):
        file, place = _within(folder, folder, element.get("name"), source)
        where = f"Image '{element.get('name')}' of {source}"
        with _located(where):
            size = (int(element.attrib["height"]), int(element.attrib["width"]))
            shapes = sorted(element, key=lambda shape: int(shape.get("z_order", 0)))
        drawn = [shape for shape in shapes if shape.tag in _CVAT_SHAPES]
        skipped.update(shape.tag for shape in shapes if shape.tag not in _CVAT_SHAPES)
        labels += [shape.get("label", "") for shape in drawn]
        images.append(AnnotatedImage(file, place, size, partial(_cvat_regions, drawn, where)))
    return Annotations(list(dict.fromkeys(label for label in labels if label)), images, skipped)


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Says where numbers are missing or are none."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} lacks something, or has it in another form: {error!r}.") from error
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}.") from error


def _cvat_regions(shapes: list[ElementTree.Element], where: str, height: int, width: int) -> Regions:
    for shape in shapes:
        with _located(where):
            yield shape.attrib["label"], _CVAT_SHAPES[shape.tag](shape.attrib, height, width, where)


def _cvat_polygon(shape: dict[str, str], height: int, width: int, where: str) -> np.ndarray:
    points = [tuple(map(float, point.split(","))) for point in shape["points"].split(";")]
    return _fill(points, height, width, where)


def _cvat_box(shape: dict[str, str], height: int, width: int, where: str) -> np.ndarray:
    left, top, right, bottom = (float(shape[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    center = ((left + right) / 2, (top + bottom) / 2)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return _fill(_turned(corners, center, float(shape.get("rotation", 0))), height, width, where)


def _cvat_ellipse(shape: dict[str, str], height: int, width: int, where: str) -> np.ndarray:
    x, y, *radii = (float(shape[name]) for name in ("cx", "cy", "rx", "ry"))
    return _fill(_ellipse(x, y, (radii[0], radii[1]), float(shape.get("rotation", 0))), height, width, where)


def _cvat_mask(shape: dict[str, str], height: int, width: int, where: str) -> np.ndarray:
    left, top, columns, rows = (int(shape[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in shape["rle"].split(",")]
    is_inside = 0 <= left <= left + columns <= width and 0 <= top <= top + rows <= height
    if not is_inside or min(counts) < 0 or sum(counts) != rows * columns:
        raise ValueError(f"{where} has a mask that does not fit the image of {height} x {width} pixels.")
    region = np.zeros((height, width), bool)
    # The runs go along the rows, and the first one is outside.
    region[top : top + rows, left : left + columns] = (
        np.repeat(np.arange(len(counts)) % 2, counts).reshape(rows, columns).astype(bool)
    )
    return region


_CVAT_SHAPES = {"polygon": _cvat_polygon, "box": _cvat_box, "ellipse": _cvat_ellipse, "mask": _cvat_mask}
_LABELME_SHAPES = ("polygon", "rectangle", "circle", "mask")


def read_labelme(source: Path, image_dir: Path | None) -> Annotations:
    """
    Labelme's JSON files in a folder and its sub-folders, one for each image. The path of an image is relative to its
    JSON file, and must stay in the folder of all; in `image_dir`, only its name counts. Later shapes lie above earlier
    ones.
    """
    files = sorted(source.rglob("[!.]*.json"))
    if not files:
        raise ValueError(f"{source} is not a folder with JSON files of Labelme.")
    labels: list[str] = []
    images, skipped = [], Counter[str]()
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as annotations of Labelme: {error}.") from error
        with _located(str(file)):
            shapes = [dict(shape) for shape in content["shapes"]]
            if image_dir is None:
                image, place = _within(source, file.parent, content["imagePath"], file)
            else:
                image, place = _within(image_dir, image_dir, PureWindowsPath(content["imagePath"]).name, file)
            size = None
            if content.get("imageHeight") and content.get("imageWidth"):
                size = (int(content["imageHeight"]), int(content["imageWidth"]))
            kinds = [shape.get("shape_type") or "polygon" for shape in shapes]  # which old files do not state
            drawn = [shape | {"shape_type": kind} for shape, kind in zip(shapes, kinds) if kind in _LABELME_SHAPES]
            labels += [str(shape["label"]) for shape in drawn]
        skipped.update(kind for kind in kinds if kind not in _LABELME_SHAPES)
        images.append(AnnotatedImage(image, place, size, partial(_labelme_regions, drawn, str(file))))
    return Annotations(sorted(set(labels) - {IGNORED_LABEL}), images, skipped)


def _labelme_regions(shapes: list[dict[str, Any]], where: str, height: int, width: int) -> Regions:
    for shape in shapes:
        with _located(where):
            points, kind = shape["points"], shape["shape_type"]
            if kind == "mask":
                region = _labelme_mask(shape, height, width, where)
            else:
                if kind == "circle":
                    (x, y), edge = points
                    radius = math.dist((x, y), edge)
                    points = _ellipse(x, y, (radius, radius))
                elif kind == "rectangle":
                    (left, top), (right, bottom) = points
                    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
                region = _fill(points, height, width, where)
            yield str(shape["label"]), region


def _labelme_mask(shape: dict[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """A PNG of a part of the image, whose corner is the first point."""
    left, top = (round(value) for value in shape["points"][0])
    with PIL.Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
        is_inside = 0 <= left <= left + image.width <= width and 0 <= top <= top + image.height <= height
        if not is_inside:
            raise ValueError(f"{where} has a mask that does not fit the image of {height} x {width} pixels.")
        part = np.asarray(image.convert("L")) > 0
    region = np.zeros((height, width), bool)
    region[top : top + part.shape[0], left : left + part.shape[1]] = part
    return region


def _within(folder: Path, base: Path, name: Any, source: Path) -> tuple[Path, PurePosixPath]:
    """
    The file of a name that an annotation file gives, relative to `base`, and its path below `folder`.

    Raises:
        ValueError: for a name that leads out of `folder`, or names nothing in it.
    """
    # Labelme writes the separators of its system.
    path = PureWindowsPath(name) if isinstance(name, str) and "\0" not in name else PureWindowsPath("/")
    inside = "" if path.anchor else os.path.normpath(os.path.join(os.path.relpath(base, folder), *path.parts))
    if inside in ("", ".") or inside.split(os.sep)[0] == "..":
        raise ValueError(
            f"{source} names the image {name!r}, which does not lie below the folder of the images, {folder}. "
            "Correct the file, or name the folder with --image_dir."
        )
    return folder / inside, PurePosixPath(Path(inside).as_posix())


READERS = {"coco": read_coco, "cvat": read_cvat, "labelme": read_labelme, "roboflow": read_roboflow}
