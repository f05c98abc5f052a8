# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared by the benchmarks: the facts of a machine, and files with results."""

import datetime
import importlib.metadata
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from unept_hf.cli.env import cpu_name


RESULTS = Path(__file__).parent / "results"


def cpu_device() -> str:
    """The processor, and the instructions that torch uses on it."""
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def today() -> str:
    return datetime.date.today().isoformat()


def mean_and_spread(values: Sequence[float]) -> str:
    """A cell of a table: mean ± standard deviation, with about three digits; "-" without values."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    digits = max(0, 2 - math.floor(math.log10(max(abs(mean), 1e-9)))) if mean < 10 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def write_results(folder: Path, name: str, title: str, facts: dict, lines: Sequence[str], **results) -> None:
    """
    Writes `<name>-<date>.json` with facts and results, `<name>-<date>.md` with the lines of tables, and prints those.

    Args:
        facts: of the machine and the run, `date` among them, by their names.
        lines: of Markdown, below the title and the facts.
    """
    head = [f"# {title}, {facts['date']}", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    text = "\n".join([*head, *lines]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{facts['date']}"
    stem.with_suffix(".json").write_text(json.dumps({"machine": facts, **results}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text, end="")
