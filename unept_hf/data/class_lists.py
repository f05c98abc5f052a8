"""Class lists: the names, ids and colours of a segmentation data set, read from JSON files.

The lists of the well-known data sets are data files in ``unept_hf/data/classes``; a user's own list is
a JSON file anywhere. See :func:`load_class_list`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..palette import default_palette


__all__ = ["ClassList", "available_class_lists", "class_list_from_data", "load_class_list"]

_FOLDERS = (Path(__file__).parent / "classes", Path(__file__).parents[1] / "synthetic" / "classes")
_FORMATS = (
    'a list of names ["wall", "sky", ...], an id2label mapping {"0": "wall", "1": "sky", ...}, '
    'or {"classes": [...]} with names or with entries {"id": 0, "name": "wall", "color": [120, 120, 120]}'
)


@dataclass
class ClassList:
    """The classes of a data set, ids 0..n-1.

    Attributes:
        name: Name of the list.
        id2label: Class id to class name, in ascending id order.
        label2id: The inverse of ``id2label``.
        palette: One ``[R, G, B]`` (0..255) per class id. Colours need not be unique: ADE20K's are not.
        ignore_index: Label value of the pixels left out of the loss and the metrics.
        reduce_labels: Whether the annotation files store 0 for unlabelled and the classes from 1 on, so that
            labels must be lowered by one (0 becoming ``ignore_index``) before use.
        mask_colors: What each color of a color mask means: a class id, or ``ignore_index``. The stated colors of the
            classes, but for those that several classes share, and the entries of ``"mask_colors"`` in the file.
        extras: The remaining entries of the file as they stand there, for example ``"source"`` and, for
            Cityscapes, ``"label_id_to_train_id"`` (its keys are strings, as JSON requires).
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
        name_or_path: One of :func:`available_class_lists` (these win over a file of the same name), or the
            path of a JSON file in one of the forms that :func:`class_list_from_data` takes. A file that does
            not state a name gets its file name without the suffix.

    Returns:
        The class list.

    Raises:
        ValueError: If the name is unknown, the file is missing, it is not valid JSON, or its content is not
            a class list (see :func:`class_list_from_data`).
    """
    value = os.fspath(name_or_path)
    packaged = _packaged_files()
    if value in packaged:
        return _parse(packaged[value].read_text(encoding="utf-8"), value, f"class list '{value}'")

    path = Path(value).expanduser()
    if not path.is_file():
        choices = f"one of {', '.join(sorted(packaged))}"
        # A bare word is more likely a misspelt name than a file without a suffix.
        if path.suffix or path.name != value or isinstance(name_or_path, os.PathLike):
            raise ValueError(f"No class list file at '{value}'. Check the path, or use {choices}.")
        raise ValueError(f"Unknown class list '{value}'. Use {choices}, or the path of a JSON file.")
    try:
        # utf-8-sig: some editors put a byte order mark first, which json refuses.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Class list file '{value}' is not UTF-8 text ({error}). Save it as UTF-8 JSON.") from error
    return _parse(text, path.stem, f"class list file '{value}'")


def class_list_from_data(data: Any, name: str = "custom", where: str | None = None) -> ClassList:
    """Build a class list from decoded JSON or from Python values such as ``config.id2label``.

    Args:
        data: A list of names (their positions are the ids), an id2label mapping (ids as integers or as
            strings), or a mapping with ``"classes"``, a list of names or of ``{"id", "name", "color"}``, and
            optionally ``"name"``, ``"ignore_index"`` (255), ``"reduce_labels"`` (false), ``"mask_colors"`` (a list of
            ``{"color", "id"}`` for further colors in masks, with the id ``None`` for pixels to ignore) and anything
            else, which goes to ``extras``. Colours may be absent from all classes; up to 1,000 distinct ones are then
            made up, see :func:`unept_hf.palette.default_palette`.
        name: Name of the list where ``data`` does not state one.
        where: What to call the list in error messages.

    Returns:
        The class list.

    Raises:
        ValueError: If ``data`` has none of these forms, is empty, its ids are not 0..n-1, a name is blank or
            occurs twice, a colour is not three integers 0..255, only some classes have one, or
            ``ignore_index``, ``reduce_labels``, ``mask_colors`` or ``label_id_to_train_id`` is of the wrong type
            or ``ignore_index`` is the id of a class.
    """
    where = where or f"class list '{name}'"
    head: dict[str, Any] = {}
    colors: dict[int, Any] = {}
    if isinstance(data, Mapping) and "classes" in data:
        head = {key: value for key, value in data.items() if key != "classes"}
        pairs, colors = _read_entries(data["classes"], where)
    elif isinstance(data, Mapping):
        pairs = [(_to_id(key, where), label) for key, label in data.items()]
    elif isinstance(data, (list, tuple)):
        pairs = list(enumerate(data))
    else:
        raise ValueError(f"{where}: cannot read a {type(data).__name__} as classes. Give {_FORMATS}.")

    id2label = _check_ids(pairs, where)
    label2id = _invert(id2label, where)

    ignore_index = head.pop("ignore_index", 255)
    if not _is_int(ignore_index):
        raise ValueError(f"{where}: ignore_index is {ignore_index!r}. Make it an integer, such as 255.")
    if ignore_index in id2label:
        raise ValueError(
            f"{where}: ignore_index {ignore_index} is also the id of class '{id2label[ignore_index]}', which would "
            f'never be learned. Set "ignore_index" next to "classes" to a value outside 0..{len(id2label) - 1}.'
        )
    reduce_labels = head.pop("reduce_labels", False)
    if not isinstance(reduce_labels, bool):
        raise ValueError(f"{where}: reduce_labels is {reduce_labels!r}. Make it true or false.")
    mask_colors = head.pop("mask_colors", [])
    palette = _check_palette(colors, id2label, where)
    _check_table(head.get("label_id_to_train_id"), where)

    return ClassList(
        name=str(head.pop("name", name)),
        id2label=id2label,
        label2id=label2id,
        palette=palette,
        ignore_index=ignore_index,
        reduce_labels=reduce_labels,
        mask_colors=_read_mask_colors(mask_colors, colors, id2label, ignore_index, where),
        extras=head,
    )


def _packaged_files() -> dict[str, Path]:
    """The JSON files of class lists in this package, by name."""
    # macOS adds "._" files.
    return {file.stem: file for folder in _FOLDERS for file in folder.glob("[!.]*.json")}


def _parse(text: str, name: str, where: str) -> ClassList:
    def to_dict(pairs):
        # json keeps the last of equal keys, which would drop a class without a word.
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"{where}: key {', '.join(map(repr, twice))} occurs more than once. Keep one of each.")
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON: {error}. Fix the file at that place; "
            'strings and ids used as keys need double quotes ("0", not 0).'
        ) from error
    return class_list_from_data(data, name, where)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _to_id(value: Any, where: str) -> int:
    if _is_int(value):
        return value
    # Not int(value) alone: it would also take " 1", "1_0" and 1.7.
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    raise ValueError(f"{where}: {value!r} is not a class id. Use integers from 0; the file may be {_FORMATS}.")


def _read_entries(entries: Any, where: str) -> tuple[list[tuple[int, Any]], dict[int, Any]]:
    if not isinstance(entries, (list, tuple)):
        raise ValueError(
            f'{where}: "classes" is a {type(entries).__name__}. Make it a list; the forms are {_FORMATS}.'
        )
    if all(isinstance(entry, str) for entry in entries):
        return list(enumerate(entries)), {}
    pairs, colors = [], {}
    for entry in entries:
        if not isinstance(entry, Mapping) or "id" not in entry or "name" not in entry:
            raise ValueError(
                f'{where}: class entry {entry!r} lacks "id" or "name". Write {{"id": 0, "name": "wall"}}.'
            )
        class_id = _to_id(entry["id"], where)
        pairs.append((class_id, entry["name"]))
        if "color" in entry:
            colors[class_id] = entry["color"]
    return pairs, colors


def _check_ids(pairs: list[tuple[int, Any]], where: str) -> dict[int, str]:
    if not pairs:
        raise ValueError(f"{where} has no classes. Give {_FORMATS}.")
    ids = sorted(class_id for class_id, _ in pairs)
    if ids != list(range(len(ids))):
        problems = {
            "missing": sorted(set(range(len(ids))) - set(ids)),
            "out of range": sorted({i for i in ids if not 0 <= i < len(ids)}),
            "repeated": [i for i, count in Counter(ids).items() if count > 1],
        }
        found = ", ".join(f"{what} {_shorten(which)}" for what, which in problems.items() if which)
        raise ValueError(
            f"{where}: the ids of {len(ids)} classes must be 0..{len(ids) - 1}, each once ({found}). Renumber them."
        )
    return dict(sorted(pairs, key=lambda pair: pair[0]))


def _invert(id2label: dict[int, str], where: str) -> dict[str, int]:
    label2id: dict[str, int] = {}
    for class_id, label in id2label.items():
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{where}: the name of class {class_id} is {label!r}. Give it a non-blank string.")
        if label in label2id:
            raise ValueError(
                f"{where}: name '{label}' is used by classes {label2id[label]} and {class_id}, so it has no single "
                "id. Rename one of them."
            )
        label2id[label] = class_id
    return label2id


def _check_table(table: Any, where: str) -> None:
    if table is None:
        return
    if not isinstance(table, Mapping):
        raise ValueError(
            f'{where}: label_id_to_train_id is {table!r}. Map label ids to class ids, such as {{"0": 0, "255": 1}}.'
        )
    for label_id, train_id in table.items():
        # Label ids may be below 0: Cityscapes has -1.
        is_label_id = _is_int(label_id) or (isinstance(label_id, str) and re.fullmatch("-?[0-9]+", label_id))
        if not is_label_id or not _is_int(train_id):
            raise ValueError(
                f"{where}: label_id_to_train_id maps {label_id!r} to {train_id!r}. Both must be integers, the first "
                "one in quotes, the second one a class id or, for pixels to ignore, none."
            )


def _check_palette(colors: dict[int, Any], id2label: dict[int, str], where: str) -> list[list[int]]:
    if not colors:
        return default_palette(len(id2label)).tolist()
    without = [i for i in id2label if i not in colors]
    if without:
        raise ValueError(f"{where}: no color for class {_shorten(without)}. Give every class one, or none of them.")
    for class_id, color in colors.items():
        _check_color(color, f"{where}: the color of class {class_id}")
    return [list(colors[i]) for i in id2label]


def _check_color(color: Any, what: str) -> None:
    triple = isinstance(color, (list, tuple)) and len(color) == 3
    if not triple or not all(_is_int(value) and 0 <= value <= 255 for value in color):
        raise ValueError(f"{what} is {color!r}. Make it three integers 0..255, [R, G, B].")


def _read_mask_colors(
    entries: Any, colors: dict[int, Any], id2label: dict[int, str], ignore_index: int, where: str
) -> dict[tuple[int, int, int], int]:
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where}: mask_colors is a {type(entries).__name__}. Make it a list.")
    owners = Counter(map(tuple, colors.values()))
    mask_colors = {tuple(color): class_id for class_id, color in colors.items() if owners[tuple(color)] == 1}
    for entry in entries:
        is_entry = isinstance(entry, Mapping) and {"color", "id"} <= entry.keys()
        if not is_entry or not (entry["id"] is None or (_is_int(entry["id"]) and entry["id"] in id2label)):
            raise ValueError(
                f'{where}: mask_colors holds {entry!r}. Write {{"color": [0, 0, 0], "id": 0}}, with the id of a '
                "class, or null for pixels to ignore."
            )
        _check_color(entry["color"], f"{where}: a color of mask_colors")
        class_id = ignore_index if entry["id"] is None else entry["id"]
        if mask_colors.setdefault(tuple(entry["color"]), class_id) != class_id:
            raise ValueError(
                f"{where}: color {entry['color']} of mask_colors stands for another class already. Keep one of them."
            )
    return mask_colors


def _shorten(ids: list[int], most: int = 5) -> str:
    return ", ".join(map(str, ids[:most])) + (f" and {len(ids) - most} more" if len(ids) > most else "")
