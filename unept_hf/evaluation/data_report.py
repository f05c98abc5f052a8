# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The report on a data set before a training: what its splits hold, as a table, a picture and a JSON file."""

import json
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers.utils import logging

from ..data.arguments import DatasetArguments
from ..data.class_lists import ClassList
from ..data.discovery import find_dataset
from ..data.label_maps import decode_example
from ..data.segmentation_datasets import load_segmentation_dataset
from ..data.statistics import read_contents
from ..files import atomic_file
from ..model.image_preprocessing import resize_label_map
from ..visualization.overlay import color_label_map, percent, shown_size
from .arguments import DataReportArguments


__all__ = ["data_figure", "data_table", "inspect_split", "report_data"]

logger = logging.get_logger(__name__)

_SPLITS = ("train", "validation", "test")
_MESSAGES_SHOWN = 5  # of each kind of problem
_PICTURE_SIZE = 640  # pixels of the longer side


def inspect_split(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    class_list: ClassList,
    max_images: int | None = None,
    num_samples: int = 4,
    progress: bool = True,
    description: str = "Reading images and masks",
) -> dict[str, Any]:
    """
    Reads a data set and counts what it holds.

    Args:
        dataset: As `load_segmentation_dataset` returns it.
        class_list: Its classes.
        max_images, progress, description: See `read_contents`.
        num_samples: How many examples to return for pictures, evenly spaced; of a stream, the first.

    Returns:
        `images` (how many were read), `total` (how many there are; `None` for a stream), `sizes` (a list of height,
        width and the number of images of that size, the most frequent first), `unlabeled_share` of all pixels,
        `classes` (for each class its `name`, `pixels`, `share` of the labeled pixels, `images` that show it and
        `image_share` among the usable images), `problems` (for each example that cannot be used its `name`, the `kind`
        of problem and the `message`), and `samples` (`name`, `image` and `reference` of each). Shares of nothing are
        `None`.
    """
    total = len(dataset) if isinstance(dataset, datasets.Dataset) else None
    count = min(total, max_images or total) if total is not None else num_samples
    # An odd example leaves its place to the next one.
    due = [int(count * (place + 0.5) / num_samples) for place in range(num_samples)]
    images, sizes = 0, Counter[tuple[int, int]]()
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    pixels, shown = np.zeros((2, len(class_list)), np.int64)
    unlabeled = 0
    for row, content in read_contents(dataset, class_list, max_images, progress, description):
        if content.size is None:
            kind = getattr(content.problem, "kind", "not usable")
            problems.append({"name": content.name, "kind": kind, "message": str(content.problem)})
        else:
            sizes[content.size] += 1
            pixels += content.pixels
            shown += content.pixels > 0
            unlabeled += content.unlabeled
            if len(rows) < num_samples and images >= due[len(rows)]:
                rows.append(row)
        images += 1
    usable, labeled = images - len(problems), int(pixels.sum())
    return {
        "images": images,
        "total": total,
        "sizes": [[*size, count] for size, count in sizes.most_common()],
        "unlabeled_share": _share(unlabeled, labeled + unlabeled),
        "classes": [
            {
                "name": name,
                "pixels": int(pixels[index]),
                "share": _share(int(pixels[index]), labeled),
                "images": int(shown[index]),
                "image_share": _share(int(shown[index]), usable),
            }
            for index, name in class_list.id2label.items()
        ],
        "problems": problems,
        "samples": [_sample(row, class_list) for row in rows],
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _sample(row: dict[str, Any], class_list: ClassList) -> dict[str, Any]:
    image, label_map = decode_example(row, class_list)
    size = shown_size(label_map.shape, _PICTURE_SIZE)
    labels = torch.from_numpy(label_map.astype(np.int64))
    return {
        "name": row["name"] if len(row["name"]) <= 20 else f"…{row['name'][-19:]}",
        "image": np.asarray(image.resize(size[::-1])),
        "reference": resize_label_map(labels, size).numpy(),
    }


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return percent(share, 2 if share < 0.1 else 1) if share else "0%"


def _sizes(sizes: list[list[int]]) -> str:
    """The one size, or the smallest and the largest by their area, and the most frequent."""
    if not sizes:
        return "-"
    if len(sizes) == 1:
        return f"{sizes[0][0]} x {sizes[0][1]}"
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    (low, high), most = (ordered[0], ordered[-1]), sizes[0]
    return (
        f"{low[0]} x {low[1]} to {high[0]} x {high[1]}, {len(sizes)} different, "
        f"most often {most[0]} x {most[1]} ({most[2]})"
    )


def _plain(text: str) -> str:
    """Text as a cell of a Markdown table, whatever names of classes and files hold."""
    return " ".join(text.replace("|", "\\|").split())


def data_table(contents: dict[str, dict[str, Any]], dataset_name: str, class_list: ClassList) -> str:
    """
    The report as Markdown.

    Args:
        contents: What `inspect_split` returns, by the name of the split.
        dataset_name: What the report calls the data set.
        class_list: The classes.
    """

    def table(heads, rows):
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)

    def read(one):
        return (
            f"{one['images']} of {one['total']}" if one["total"] not in (None, one["images"]) else str(one["images"])
        )

    splits = contents.values()
    rows = [
        ["images read", *map(read, splits)],
        ["images that cannot be used", *(str(len(one["problems"])) for one in splits)],
        ["height x width", *(_sizes(one["sizes"]) for one in splits)],
        ["unlabeled pixels", *(_percent(one["unlabeled_share"]) for one in splits)],
    ]
    parts = [f"# {dataset_name}", table(["", *contents], rows)]
    heads = ["class", *(f"{split}: {what}" for split in contents for what in ("pixels", "images"))]
    rows = []
    for index, name in class_list.id2label.items():
        row = [f"{index} {name}"]
        for one in splits:
            counts = one["classes"][index]
            row += [_percent(counts["share"]), f"{counts['images']} ({_percent(counts['image_share'])})"]
        rows.append(row)
    parts.append("Shares of the labeled pixels, and images that show the class:\n\n" + table(heads, rows))
    for split, one in contents.items():
        absent = [_plain(counts["name"]) for counts in one["classes"] if not counts["images"]]
        if absent:
            parts.append(f"**{split}:** no image that was read shows {', '.join(absent)}.")
    for split, one in contents.items():
        kinds = Counter(problem["kind"] for problem in one["problems"])
        for kind, count in kinds.most_common():
            messages = [problem["message"] for problem in one["problems"] if problem["kind"] == kind]
            lines = [f"- {' '.join(message.split())}" for message in messages[:_MESSAGES_SHOWN]]
            if count > _MESSAGES_SHOWN:
                lines.append(f"- {count - _MESSAGES_SHOWN} more: see data.json")
            parts.append(f"**{split}, {kind}: {count} of {one['images']}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def data_figure(contents: dict[str, dict[str, Any]], class_list: ClassList) -> Figure:
    """The shares of the classes, beside their colors, and examples of each split. Arguments as of `data_table`."""
    drawn = [(split, one["samples"]) for split, one in contents.items() if one["samples"]]
    if len(drawn) == 1 and len(drawn[0][1]) > 1:  # in two columns, as two splits are
        [(split, samples)] = drawn
        drawn = [(split, samples[0::2]), (split, samples[1::2])]
    count = len(class_list)
    heights = [max(3.0, 0.19 * count + 1.1)]
    if drawn:
        panel_width = 10 / len(drawn) / 2
        rows = max(len(samples) for _, samples in drawn)
        aspect = np.median([sample["reference"].shape[0] / sample["reference"].shape[1] for sample in drawn[0][1]])
        heights.append(rows * (panel_width * float(np.clip(aspect, 0.4, 1.5)) + 0.3) + 0.4)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]

    axes = parts[0].subplots(1, 2, sharey=True)
    positions, colors = np.arange(count), np.array(class_list.palette) / 255
    titles = {"share": "share of the labeled pixels", "image_share": "share of the images that show the class"}
    for axis, (key, title) in zip(axes, titles.items()):
        for place, (split, one) in enumerate(contents.items()):
            values = [counts[key] or 0.0 for counts in one["classes"]]
            if place == 0:
                axis.barh(positions, values, 0.8, color=colors, edgecolor="0.4", linewidth=0.5, label=f"bars: {split}")
            else:
                marker, fill = ("D", "black") if place == 1 else ("o", "white")
                axis.scatter(
                    values, positions, 16, color=fill, edgecolors="black", linewidths=0.7, marker=marker, label=split
                )
        axis.set_title(title, fontsize=10)
        axis.set_ylim(count - 0.4, -0.6)
        axis.tick_params("x", labelsize=8)
    # Shares of pixels differ by a thousand times.
    axes[0].set_xscale("symlog", linthresh=1e-4)
    axes[0].set_xlim(0, 1)
    axes[0].set_xticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["0", "0.01%", "0.1%", "1%", "10%", "100%"])
    axes[1].set_xlim(0, 1.02)
    axes[1].xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    # The colors of absent classes too.
    axes[0].scatter(
        np.full(count, -0.03), positions, 60, color=colors, marker="s", edgecolors="0.4", linewidths=0.5,
        transform=axes[0].get_yaxis_transform(), clip_on=False,
    )  # fmt: skip
    names = [name if len(name) <= 32 else f"{name[:31]}…" for name in class_list.id2label.values()]
    axes[0].set_yticks(positions, names, parse_math=False)
    axes[0].tick_params("y", labelsize=8, length=0, pad=14)
    axes[1].tick_params("y", length=0)
    if len(contents) > 1:
        parts[0].legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

    if drawn:
        columns = parts[1].subfigures(1, len(drawn), squeeze=False)[0]
        for column, (split, samples) in zip(columns, drawn):
            column.suptitle(f"{split} (unlabeled pixels are black)", fontsize=10, parse_math=False)
            for row, sample in zip(column.subplots(len(samples), 2, squeeze=False), samples):
                mask = color_label_map(sample["reference"], class_list.palette, unlabeled=(0, 0, 0))
                for axis, pixels, title in zip(row, (sample["image"], mask), (sample["name"], "mask")):
                    axis.imshow(pixels)
                    axis.set_title(title, fontsize=8, parse_math=False)
                    axis.set_axis_off()
    return figure


def _find(arguments: DataReportArguments, progress: bool) -> DataReportArguments:
    """The options of a directory alone, as a training finds them."""
    given = {name: getattr(arguments, name) for name in ("image_dir", "label_dir", "label_suffix", "class_list")}
    found = find_dataset(str(arguments.data_dir), progress, skip_unreadable=True, **given)  # the report has them
    print("\n".join(found.findings), end="\n\n")
    return replace(arguments, **found.save_class_list(arguments.output_dir))


def _load_splits(arguments: DataReportArguments) -> tuple[dict[str, Any], ClassList]:
    source = {name: value for name, value in vars(arguments).items() if name in DatasetArguments.__dataclass_fields__}
    # Odd files are what the report is about.
    source |= {"skip_unreadable": False, "skip_unpaired": True}
    loaded: dict[str, Any] = {}
    errors: dict[str, ValueError] = {}
    class_list: ClassList | None = None
    for split in arguments.splits or _SPLITS:
        try:
            loaded[split], class_list = load_segmentation_dataset(split=split, **source)
        except ValueError as error:
            if arguments.splits:
                raise
            errors[split] = error
    if class_list is None:
        raise next(iter(errors.values()))
    for split, reason in errors.items():
        if split != "test":  # which few data sets have with masks
            logger.warning(f"The split {split} is left out: {reason}")
    return loaded, class_list


def report_data(arguments: DataReportArguments, progress: bool = True) -> dict[str, dict[str, Any]]:
    """
    Reads the splits of a data set, writes `data.json`, `data.md` and `data.png`, and prints the table. Of a directory
    alone, it first finds layout and classes, see `find_dataset`.

    Returns:
        What `inspect_split` returns, by the name of the split.

    Raises:
        ValueError: as `load_segmentation_dataset`, if that is so for all splits, or for one that `splits` names.
    """
    if not arguments.dataset_name:
        arguments = _find(arguments, progress)
    loaded, class_list = _load_splits(arguments)
    contents = {
        split: inspect_split(
            dataset, class_list, arguments.max_images, arguments.num_samples, progress, f"Reading {split}"
        )
        for split, dataset in loaded.items()
    }
    name = os.path.basename(os.path.normpath(arguments.dataset_name))
    table = data_table(contents, name, class_list)
    plain = {split: {key: value for key, value in one.items() if key != "samples"} for split, one in contents.items()}
    report = {"dataset": name, "classes": class_list.name, "splits": plain}
    with atomic_file(os.path.join(arguments.output_dir, "data.json")) as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        file.with_name("data.md").write_text(table, encoding="utf-8")
        data_figure(contents, class_list).savefig(file.with_name("data.png"), dpi=100)
    print(table)
    print(f"data.json, data.md and data.png are in {arguments.output_dir}")
    return contents
