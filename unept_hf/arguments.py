# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Options of commands and examples: dataclasses that they share, and files of options."""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


__all__ = [
    "HubArguments",
    "ModelArguments",
    "check_model_name",
    "merge_options",
    "option",
    "read_options",
    "words_of_options",
]


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass of options, with its help text and what else `add_argument` takes."""
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class HubArguments:
    """How to get a model from the Hub."""

    revision: str = option("main", "Branch, tag or commit of the model on the Hub.")
    token: str | None = option(None, "Access token of the Hub.")
    trust_remote_code: bool = option(False, "Whether to run code that comes with the model. Read it before.")


@dataclass(kw_only=True)
class ModelArguments(HubArguments):
    """Which model to use."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the model and its image processor."})


def check_model_name(name: str) -> None:
    """
    Checks that a name is that of a model directory, or could be one on the Hub, where a slip would be looked up.

    Raises:
        FileNotFoundError: if it is neither.
    """
    path = Path(name).expanduser()
    is_hub_name = not path.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
    if not is_hub_name and not (path / "config.json").is_file():
        reason = "" if path.exists() else ": it does not exist"
        raise FileNotFoundError(
            f"{name} is not a model directory (with a config.json), nor owner/name on the Hub{reason}."
        )


def read_options(path: str | os.PathLike) -> dict[str, Any]:
    """
    Options from a YAML or JSON file of names and values. A file of YAML that holds nothing has none. A value that is
    the text of a JSON object, as on a command line, stands for that object.

    The name `base` stands for another such file, relative to the folder of the first one, whose options come first:
    those of the first file replace them, and mappings are merged.

    Raises:
        ValueError: for a file that cannot be read or holds anything else, and for files that are bases of each other.
    """
    options: dict[str, Any] = {}
    file: Path | None = Path(path).expanduser()
    files: list[Path] = []
    while file is not None:
        values = _read_mapping(file)
        if file.resolve() in files:
            raise ValueError(f"{path} cannot be read: its base files lead back to {file}.")
        files.append(file.resolve())
        base = values.pop("base", None)
        options = merge_options(values, options)
        file = None if base is None else file.parent / Path(str(base)).expanduser()
    return options


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} must hold names of options and their values.")
    return {name: _json_object_or_text(value) for name, value in (values or {}).items()}


def _json_object_or_text(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):  # braces may also be part of a path
            return json.loads(value)
    return value


def merge_options(options: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All names of both, with the values of `overrides` where both have one; mappings among these are merged too."""
    merged = dict(options)
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge_options(merged[name], value) if both else value
    return merged


def words_of_options(options: Mapping[str, Any]) -> list[str]:
    """Options as typed on a command line. Options without a value, and empty lists, are left out."""

    def word(value):
        # To YAML, yes and no are booleans; here they are choices of an option, and good for boolean ones too.
        if isinstance(value, bool):
            return "yes" if value else "no"
        return json.dumps(value) if isinstance(value, dict) else str(value)

    words = []
    for name, value in options.items():
        if value is not None and value != []:
            words += [f"--{name}", *map(word, value if isinstance(value, list) else [value])]
    return words
