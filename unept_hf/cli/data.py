# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf data`: the classes, sizes and odd files of a data set, as a table, data.json, data.md and data.png."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from ..arguments import read_options
from ..evaluation.arguments import DataReportArguments
from .command_line import options_from


__all__ = ["EXAMPLES", "OPTIONS", "add_arguments", "options_of_data", "run"]

USAGE = "DATASET"
OPTIONS = (DataReportArguments,)
EXAMPLES = """\
examples:
  unept-hf data camvid --data_dir CamVid
  unept-hf data --data_dir my_data               (what training on this directory alone finds in it)
  unept-hf data image_folders --data_dir my_data --class_list my_data/classes.json
  unept-hf data training.yaml --max_images 500   (the data set of a training or an evaluation)

The exit status is 1 if there are examples that cannot be used."""


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("dataset", nargs="?", metavar="DATASET", help="Name of the data set, or a YAML or JSON file of options.")


def options_of_data(path: str) -> dict[str, Any]:
    """The options of a training or an evaluation that name its data set."""
    options = read_options(path)
    known = {field.name for field in fields(DataReportArguments)} - {"max_images", "num_samples", "output_dir"}
    data = {name: value for name, value in options.items() if name in known}
    if options.get("split"):
        data["splits"] = [options["split"]]
    elif options.get("train_split") or options.get("eval_split"):
        data["splits"] = [options.get("train_split") or "train", options.get("eval_split") or "validation"]
    return data


def run(arguments: argparse.Namespace) -> int:
    """Reports on a data set."""
    from ..evaluation.data_report import report_data

    arguments.dataset_name = arguments.dataset or arguments.dataset_name
    contents = report_data(options_from(DataReportArguments, arguments), progress=sys.stderr.isatty())
    return 1 if any(one["problems"] for one in contents.values()) else 0
