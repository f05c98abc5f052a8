# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training tells about itself while it runs: a log, a table, a curve and pictures."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from matplotlib.figure import Figure

from ..files import atomic_file


__all__ = ["TrainingLog"]


class TrainingLog:
    """
    Metrics as lines of JSON in a file, in the trackers, as a table, and as a curve. When training resumes from
    `first_step`, the lines of later steps, which are done again, are dropped.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, first_step: int):
        self.accelerator = accelerator
        self.file = output_dir / "training_log.jsonl"
        self.table = output_dir / "training_log.csv"
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

    def show(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        """Sends a picture to the trackers that take pictures."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "trackio":  # whose adapter in Accelerate has no method for pictures
                import trackio

                tracker.log({name: trackio.Image(picture)}, step=step)
            elif hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, **options)

    def summarize(self) -> None:
        """Writes the table, with one row for each step, and draws the curve."""
        if self.accelerator.is_main_process:
            self._write_table()
            self._draw()

    def _write_table(self) -> None:
        rows: dict[int, dict[str, Any]] = {}
        for line in self.lines:
            rows.setdefault(line["step"], {}).update(line)
        columns = dict.fromkeys(key for line in self.lines for key in line)
        with atomic_file(self.table) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", *(name for name in columns if name != "step")])
            writer.writeheader()
            writer.writerows(rows.values())

    def _draw(self) -> None:
        """The losses and, where there were evaluations, the mean IoU over the steps."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        mean_iou = axis.twinx()
        for key, label, axes, color in (
            ("loss", "training loss", axis, "tab:blue"),
            ("loss/segmentation", "cross entropy in training", axis, "tab:cyan"),
            ("eval/loss", "cross entropy in evaluation", axis, "tab:green"),
            ("eval/mean_iou", "mean IoU", mean_iou, "tab:orange"),
        ):
            points = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
            if points:
                marker = "." if key.startswith("eval/") else None
                axes.plot(*zip(*points), label=label, color=color, marker=marker)
        axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
        if mean_iou.lines:
            mean_iou.set_ylim(0, 1)
            mean_iou.set_ylabel("mean IoU", color="tab:orange")
        else:
            mean_iou.set_axis_off()
        if axis.lines or mean_iou.lines:
            figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
        with atomic_file(self.picture) as part:
            figure.savefig(part, dpi=120)
