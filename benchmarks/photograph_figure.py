# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
A picture of test photographs of CamVid in rows: photograph, ground truth, UN-EPT, another model, and the errors of
both. It takes the photographs at even distances in the order of their names, so nobody picks them.

The predictions of the other model are those that benchmarks/camvid_peers.py kept.

    python benchmarks/photograph_figure.py --data_dir CamVid \\
        --model_name_or_path runs/camvid_efficientnet_lite0/model \\
        --peer DeepLabV3+ --predictions runs/camvid_peers/test_DeepLabV3+_0.001_0
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from camvid_data import CLASSES
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from quote_results import ROOT
from transformers import HfArgumentParser

from unept_hf import segment
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.inference.loading import load_model_and_processor
from unept_hf.palette import OKABE_ITO
from unept_hf.visualization.overlay import color_label_map


VOID = (0, 0, 0)
WRONG = OKABE_ITO[4]


def evenly_spread(length: int, count: int) -> list[int]:
    """Indices of the middles of `count` equal parts of a list, or of all its items if there are fewer."""
    count = min(count, length)
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def error_map(label_map: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """White where the label map is right, vermilion where it is wrong, black at void. uint8 `(height, width, 3)`."""
    pixels = np.full((*truth.shape, 3), 255, np.uint8)
    pixels[label_map != truth] = WRONG
    pixels[truth == CLASSES.ignore_index] = VOID
    return pixels


def draw(rows: list[dict[str, np.ndarray]]) -> Figure:
    """A figure of pictures, uint8 `(height, width, 3)`, by their titles, the same in each row."""
    titles = list(rows[0])
    height, width = rows[0][titles[0]].shape[:2]
    panel = 2.4  # inches
    figure = Figure(
        figsize=(panel * len(titles), panel * height / width * len(rows) + 1.0), dpi=150, layout="constrained"
    )
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row in zip(axes, rows):
        for axis, title in zip(line, titles):
            axis.imshow(row[title])
            axis.set_axis_off()
            if row is rows[0]:
                axis.set_title(title, fontsize=10)
    entries = [(name, CLASSES.palette[index]) for index, name in CLASSES.id2label.items()]
    entries += [("void", VOID), ("right", (255, 255, 255)), ("wrong", WRONG)]
    handles = [
        Patch(facecolor=[channel / 255 for channel in color], edgecolor="0.4", linewidth=0.5, label=name)
        for name, color in entries
    ]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=7)
    return figure


@dataclass
class Arguments:
    """What to draw."""

    data_dir: Path = field(metadata={"help": "Folder of the photographs, with test and testannot."})
    model_name_or_path: str = field(metadata={"help": "Directory of a trained UN-EPT."})
    predictions: Path = field(metadata={"help": "Folder of the label maps of the other model, named as photographs."})
    peer: str = field(metadata={"help": "Name of the other model."})
    refine_boundaries: bool = field(default=False, metadata={"help": "Refine the boundaries of UN-EPT."})
    count: int = field(default=6, metadata={"help": "Number of photographs."})
    output: Path = field(
        default=ROOT / "docs" / "images" / "camvid_predictions.jpg", metadata={"help": "File of the picture."}
    )


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    model, processor = load_model_and_processor(arguments.model_name_or_path)
    if model.config.num_labels != len(CLASSES):
        raise ValueError(
            f"{arguments.model_name_or_path} has {model.config.num_labels} classes, CamVid {len(CLASSES)}: "
            "--model_name_or_path needs a model that was trained on CamVid."
        )
    dataset, _ = load_segmentation_dataset("camvid", "test", data_dir=str(arguments.data_dir))
    by_name = np.argsort(dataset["name"])
    rows = []
    for place in evenly_spread(len(dataset), arguments.count):
        example = dataset[int(by_name[place])]
        image, truth = decode_example(example, CLASSES)
        ours = segment(model, processor, image, refine_boundaries=arguments.refine_boundaries).label_map.numpy()
        file = arguments.predictions / f"{example['name']}.png"
        if not file.exists():
            raise ValueError(f"{file} does not exist: --predictions needs a folder that camvid_peers.py wrote.")
        theirs = np.asarray(PIL.Image.open(file))
        rows.append(
            {
                "photograph": np.asarray(image),
                "ground truth": color_label_map(truth, CLASSES.palette, unlabeled=VOID),
                "UN-EPT": color_label_map(ours, CLASSES.palette),
                arguments.peer: color_label_map(theirs, CLASSES.palette),
                "errors of UN-EPT": error_map(ours, truth),
                f"errors of {arguments.peer}": error_map(theirs, truth),
            }
        )
    draw(rows).savefig(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
