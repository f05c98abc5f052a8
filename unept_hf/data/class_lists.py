# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Class lists: the names, ids and colors of a segmentation data set, read from JSON files.

The lists of the well-known data sets are in `unept_hf/data/classes`; a user's own list is a JSON file anywhere.
"""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..palette import default_palette


__all__ = ["ClassList", "available_class_lists", "class_list_from_data", "load_class_list", "shorten"]

_FOLDERS = (Path(__file__).parent / "classes", Path(__file__).parents[1] / "synthetic" / "classes")
_FORMATS = (
    'a list of names ["wall", "sky", ...], an id2label mapping {"0": "wall", "1": "sky", ...}, '
    'or {"classes": [...]} with names or with entries {"id": 0, "name": "wall", "color": [120, 120, 120]}'
)
_KEYS = ("classes", "name", "source", "ignore_index", "reduce_labels", "mask_colors", "label_id_to_train_id")


@dataclass
class ClassList:
    """The classes of a data set, ids 0..n-1.

    Attributes:
        name: Name of the list.
        id2label: Class id to class name, in ascending id order.
        label2id: The inverse of `id2label`.
        palette: One `[R, G, B]` (0..255) per class id. Colors need not be unique: ADE20K's are not.
        ignore_index: Label value of the pixels left out of the loss and the metrics.
        reduce_labels: Whether the annotation files store 0 for unlabeled and the classes from 1 on, so that labels
            must be lowered by one (0 becoming `ignore_index`) before use.
        mask_colors: What each color of a color mask means: a class id, or `ignore_index`. The stated colors of the
            classes, except for colors that several classes share, and the entries of `"mask_colors"` in the file.
        extras: The remaining entries of the file, for example `"source"` and, for Cityscapes,
            `"label_id_to_train_id"` (its keys are strings, as JSON requires).
    """

    name: str
    id2label: dict[int, str]
    label2id: dict[str, int]
    palette: list[list[int]]
    ignore_index: int = 255
    reduce_labels: bool = False
    mask_colors: dict[tuple[int, int, int], int] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id2label)


def available_class_lists() -> list[str]:
    """Names of the class lists that come with the package, sorted."""
    return sorted(_packaged_files())


def load_class_list(name_or_path: str | os.PathLike) -> ClassList:
    """Load a class list by name or from a JSON file.

    Args:
        name_or_path: One of `available_class_lists()` (a name wins over a file of the same name), or the path of a
            JSON file in one of the forms that `class_list_from_data` takes. A list without a name is named after its
            file, without the suffix.

    Returns:
        The class list.

    Raises:
        ValueError: If the name is unknown, or the file is missing, not UTF-8, not JSON, or not a class list. All
            problems of a class list are in one message.
    """
    value = os.fspath(name_or_path)
    packaged = _packaged_files()
    path = packaged.get(value) or Path(value).expanduser()
    where = f"class list '{value}'" if value in packaged else f"class list file '{value}'"
    if not path.is_file():
        choices = f"one of {', '.join(sorted(packaged))}"
        # A bare word is more likely a misspelled name than a file without a suffix.
        is_path = path.suffix or path.name != value or isinstance(name_or_path, os.PathLike)
        raise ValueError(
            f"No class list file at '{value}'. Check the path, or use {choices}."
            if is_path
            else f"Unknown class list '{value}'. Use {choices}, or the path of a JSON file."
        )
    repeated: list[str] = []

    def to_dict(pairs):
        # json keeps the last of equal keys, which would drop a class without a word.
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        # utf-8-sig: some editors put a byte order mark first, which json refuses.
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=to_dict)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{where} is not JSON in UTF-8: {error}. Fix the file at that place; strings, and ids used as keys, need "
            'double quotes ("0", not 0).'
        ) from error
    return _class_list(data, path.stem, where, [f"Key {key!r} occurs more than once." for key in repeated])


def class_list_from_data(data: Any, name: str = "custom") -> ClassList:
    """Build a class list from decoded JSON or from Python values such as `config.id2label`.

    Args:
        data: A list of names (their positions are the ids), an id2label mapping (ids as integers or as strings), or a
            mapping with `"classes"`, a list of names or of `{"id", "name", "color"}`, and optionally `"name"`,
            `"ignore_index"` (255), `"reduce_labels"` (false), `"mask_colors"` (a list of `{"color", "id"}` for
            further colors in masks, with the id `None` for pixels to ignore) and anything else, which goes to
            `extras` unless it looks like a misspelling of these. If no class has a color, up to 1,000 distinct colors
            are made up, see `unept_hf.palette.default_palette`.
        name: Name of the list where `data` does not state one.

    Returns:
        The class list.

    Raises:
        ValueError: If `data` has none of these forms, is empty, its ids are not 0..n-1, a name is blank or occurs
            twice, a color is not three integers 0..255, only some classes have a color, or another entry has the
            wrong type or names an unknown class. All problems are in one message.
    """
    return _class_list(data, name, f"class list '{name}'", [])


def _packaged_files() -> dict[str, Path]:
    """The JSON files of class lists in this package, by name."""
    # macOS adds "._" files.
    return {file.stem: file for folder in _FOLDERS for file in folder.glob("[!.]*.json")}


def _class_list(data: Any, name: str, where: str, problems: list[str]) -> ClassList:
    head: dict[str, Any] = {}
    if isinstance(data, Mapping) and "classes" in data:
        head = {key: value for key, value in data.items() if key != "classes"}
        problems += _misspelled(head, _KEYS)
        rows = _read_entries(data["classes"], problems)
    elif isinstance(data, Mapping):
        rows = [(_to_id(key, problems), label, None) for key, label in data.items()]
    elif isinstance(data, (list, tuple)):
        rows = [(index, label, None) for index, label in enumerate(data)]
    else:
        rows = []
        problems.append(f"A {type(data).__name__} cannot be read as classes. Give {_FORMATS}.")
    name, more_colors = str(head.pop("name", name)), head.pop("mask_colors", [])
    ignore_index, reduce_labels = head.pop("ignore_index", 255), head.pop("reduce_labels", False)
    id2label = {class_id: label for class_id, label, _ in sorted(rows, key=lambda row: row[0])}
    colors = {class_id: color for class_id, _, color in rows if color is not None}
    if not problems:
        ids = [class_id for class_id, _, _ in rows]
        problems += _problems(ids, id2label, colors, ignore_index, reduce_labels, head.get("label_id_to_train_id"))
    mask_colors = {} if problems else _read_mask_colors(more_colors, colors, id2label, ignore_index, problems)
    if problems:
        raise ValueError(f"{where}: {' '.join(problems[:5])}{' And more.' if len(problems) > 5 else ''}")
    return ClassList(
        name=name,
        id2label=id2label,
        label2id={label: class_id for class_id, label in id2label.items()},
        palette=[list(colors[i]) for i in id2label] if colors else default_palette(len(id2label)).tolist(),
        ignore_index=ignore_index,
        reduce_labels=reduce_labels,
        mask_colors=mask_colors,
        extras=head,
    )


def _misspelled(keys: Iterable[Any], known: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        close = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.8)
        if close and key not in known:
            yield f"Key {key!r} is not known; did you mean {close[0]!r}?"


def _to_id(value: Any, problems: list[str]) -> int:
    # Not int(value) alone: it would also take " 1", "1_0" and 1.7.
    if type(value) is int or (isinstance(value, str) and value.isascii() and value.isdigit()):
        return int(value)
    problems.append(f"{value!r} is not a class id. Use integers from 0; the file may be {_FORMATS}.")
    return -1


def _read_entries(entries: Any, problems: list[str]) -> list[tuple[int, Any, Any]]:
    """Id, name and color of each entry of `"classes"`."""
    if not isinstance(entries, (list, tuple)):
        problems.append(f'"classes" is a {type(entries).__name__}. Make it a list; the forms are {_FORMATS}.')
        return []
    if all(isinstance(entry, str) for entry in entries):
        return [(index, name, None) for index, name in enumerate(entries)]
    rows = []
    for entry in entries:
        if isinstance(entry, Mapping) and {"id", "name"} <= entry.keys():
            rows.append((_to_id(entry["id"], problems), entry["name"], entry.get("color")))
            problems += _misspelled(entry, ("id", "name", "color"))
        else:
            problems.append(f'Class entry {entry!r} lacks "id" or "name". Write {{"id": 0, "name": "wall"}}.')
    return rows


def _problems(
    ids: list[int], id2label: dict[int, Any], colors: dict[int, Any], ignore_index: Any, reduce_labels: Any, table: Any
) -> Iterator[str]:
    count = len(ids)
    if not ids:
        yield f"It has no classes. Give {_FORMATS}."
    elif sorted(ids) != list(range(count)):
        kinds = {
            "missing": sorted(set(range(count)) - set(ids)),
            "out of range": sorted({i for i in ids if not 0 <= i < count}),
            "repeated": [i for i, occurrences in Counter(ids).items() if occurrences > 1],
        }
        found = ", ".join(f"{kind} {shorten(which)}" for kind, which in kinds.items() if which)
        yield f"The ids of {count} classes must be 0..{count - 1}, each once ({found}). Renumber them."
    owners: dict[str, int] = {}
    for class_id, label in id2label.items():
        if not isinstance(label, str) or not label.strip():
            yield f"The name of class {class_id} is {label!r}. Give it a non-blank string."
        elif owners.setdefault(label, class_id) != class_id:
            yield f"Name '{label}' is used by classes {owners[label]} and {class_id}. Rename one of them."
    without = [class_id for class_id in id2label if class_id not in colors]
    if colors and without:
        yield f"There is no color for class {shorten(without)}. Give every class a color, or none of them."
    for class_id, color in colors.items():
        if not _is_color(color):
            yield f"The color of class {class_id} is {color!r}. Make it three integers 0..255, [R, G, B]."
    if type(ignore_index) is not int:
        yield f"ignore_index is {ignore_index!r}. Make it an integer, such as 255."
    elif ignore_index in id2label:
        yield (
            f"ignore_index {ignore_index} is also the id of class '{id2label[ignore_index]}', which would never be "
            f'learned. Set "ignore_index" next to "classes" to a value outside 0..{len(id2label) - 1}.'
        )
    if not isinstance(reduce_labels, bool):
        yield f"reduce_labels is {reduce_labels!r}. Make it true or false."
    if not isinstance(table, Mapping | None):
        yield f'label_id_to_train_id is {table!r}. Map label ids to class ids, such as {{"0": 0, "255": 1}}.'
        return
    for label_id, train_id in (table or {}).items():
        # Label ids may be below 0: Cityscapes has -1.
        if not re.fullmatch("-?[0-9]+", str(label_id)) or type(train_id) is not int:
            yield (
                f"label_id_to_train_id maps {label_id!r} to {train_id!r}. Both must be integers, the first in quotes, "
                "the second a class id or, for pixels to ignore, any other integer."
            )


def _is_color(color: Any) -> bool:
    is_triple = isinstance(color, (list, tuple)) and len(color) == 3
    return is_triple and all(type(value) is int and 0 <= value <= 255 for value in color)


def _read_mask_colors(
    entries: Any, colors: dict[int, Any], id2label: dict[int, str], ignore_index: int, problems: list[str]
) -> dict[tuple[int, int, int], int]:
    owners = Counter(map(tuple, colors.values()))
    mask_colors = {tuple(color): class_id for class_id, color in colors.items() if owners[tuple(color)] == 1}
    if not isinstance(entries, (list, tuple)):
        problems.append(f"mask_colors is a {type(entries).__name__}. Make it a list.")
        return {}
    color: Any
    for entry in entries:
        color, class_id = (entry.get("color"), entry.get("id", "")) if isinstance(entry, Mapping) else ("", "")
        class_id = ignore_index if class_id is None else class_id
        if not _is_color(color) or type(class_id) is not int or class_id not in (*id2label, ignore_index):
            problems.append(
                f'mask_colors holds {entry!r}. Write {{"color": [0, 0, 0], "id": 0}}, with three integers 0..255 and '
                "the id of a class, or null for pixels to ignore."
            )
        elif mask_colors.setdefault(tuple(color), class_id) != class_id:
            problems.append(f"Color {color} of mask_colors already stands for another class. Keep one of them.")
    return mask_colors


def shorten(items: list, most: int = 5) -> str:
    """The first items, and the number of the others, for messages."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")
