# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training tells about itself while it runs: a log and a curve."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from matplotlib.figure import Figure

from ..files import atomic_file


__all__ = ["TrainingLog"]


class TrainingLog:
    """
    Metrics as lines of JSON in a file, in the trackers, and as a curve. When training resumes from `first_step`, the
    lines of later steps, which are done again, are dropped.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, first_step: int):
        self.accelerator = accelerator
        self.file = output_dir / "training_log.jsonl"
        self.picture = output_dir / "loss_curve.png"
        self.lines: list[dict[str, Any]] = []
        if accelerator.is_main_process:
            if first_step and self.file.is_file():
                self.lines = [line for line in self._read() if line["step"] <= first_step]
            with atomic_file(self.file) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def _read(self) -> Iterator[dict[str, Any]]:
        """A killed run may have logged half a line."""
        for text in self.file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                return

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the values of a step."""
        self.accelerator.log(values, step=step)
        # JSON has no word for NaN and infinity.
        line = {"step": step} | {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.lines.append(line)
        if self.accelerator.is_main_process:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def draw(self) -> None:
        """Draws the loss and, where there were evaluations, the mean IoU over the steps."""
        if not self.accelerator.is_main_process:
            return
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        for key, label, color in (("loss", "training loss", "tab:blue"), ("eval/mean_iou", "mean IoU", "tab:orange")):
            points = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
            if not points:
                continue
            if key != "loss":
                axis = axis.twinx()
                axis.set_ylim(0, 1)
            axis.plot(*zip(*points), color=color, marker="." if key != "loss" else None)
            axis.set_xlabel("step")
            axis.set_ylabel(label, color=color)
        figure.savefig(self.picture, dpi=120)
