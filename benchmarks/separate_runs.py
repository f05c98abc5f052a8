# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs of a benchmark in separate processes, whose results are kept, so that it can be stopped and started again."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm


def check_counts(values: Mapping[str, int]) -> None:
    """Raises a `ValueError` for an option that is not at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def result_file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_')}.json"


def checkpoint_file(folder: Path, name: str) -> Path:
    """Where the state of an unfinished run belongs."""
    return result_file(folder, name).with_suffix(".checkpoint")


def write_result(folder: Path, name: str, settings: Mapping, results: Mapping) -> None:
    """Stores a finished run in a temporary file, then renames it, so that an existing file is complete."""
    file = result_file(folder, name)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"name": name, "settings": settings, "results": results}, indent=1) + "\n")
    partial.replace(file)


def read_result(folder: Path, name: str, settings: Mapping) -> dict | None:
    """The results of a finished run, `None` if there are none.

    Raises:
        ValueError: if the run had other settings.
    """
    file = result_file(folder, name)
    if not file.exists():
        return None
    stored = json.loads(file.read_text())
    if stored["settings"] != settings:
        raise ValueError(f"{file} comes from settings {stored['settings']}: choose another folder for --runs.")
    return stored["results"]


def run_all(folder: Path, commands: Mapping[str, Sequence[str]], jobs: int = 1, may_fail: bool = False) -> None:
    """Starts this script again for each name, with its options; each has a log file beside its result.

    Raises:
        RuntimeError: when a run ended without success, unless `may_fail`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def start(name: str) -> None:
        log = result_file(folder, name).with_suffix(".log")
        with log.open("w") as stream:
            command = [sys.executable, sys.argv[0], *commands[name]]
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
        if done.returncode and not may_fail:
            raise RuntimeError(f"The run {name!r} failed: see {log}.")

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(commands), desc="Runs") as progress:
        for _ in pool.map(start, commands):
            progress.update()
