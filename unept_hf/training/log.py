# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training tells about itself while it runs: a log, a curve, and pictures of predictions."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from matplotlib.figure import Figure

from ..data.class_lists import ClassList
from ..files import atomic_file
from ..visualization.figures import color_label_map


__all__ = ["TrainingLog", "draw_predictions"]


class TrainingLog:
    """
    Metrics as lines of JSON in a file, in the trackers, and as a curve.

    Args:
        accelerator: Its main process writes the files.
        output_dir: Folder of the files.
        first_step: The step that the training resumes from. Lines of later steps, which are done again, are dropped.
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


def draw_predictions(samples: list[dict[str, Any]], class_list: ClassList, path: Path) -> None:
    """
    Draws a row of image, ground truth and prediction for each sample; nothing without samples.

    Args:
        samples: As `evaluate_model` returns them.
        class_list: The classes, for their colors.
        path: The picture to write.
    """
    if not samples:
        return
    black = (0, 0, 0)  # of pixels without a label
    figure = Figure(figsize=(9, 3.2 * len(samples)), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples):
        panels = {
            "image": sample["image"],
            "ground truth": color_label_map(sample["reference"], class_list.palette, black),
            "prediction": color_label_map(sample["prediction"], class_list.palette, black),
        }
        for axis, (title, panel) in zip(row, panels.items()):
            axis.imshow(panel)
            axis.set_title(title)
            axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
