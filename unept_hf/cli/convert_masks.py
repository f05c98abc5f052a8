# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf convert_masks`: masks from the polygons of COCO, CVAT, Labelme or Roboflow, ready for training."""

import argparse
import sys


__all__ = ["EXAMPLES", "add_arguments", "run"]

USAGE = "SOURCE OUTPUT --format FORMAT"
OPTIONS = ()
EXAMPLES = """\
examples:
  unept-hf convert_masks annotations/instances_val2017.json my_data --format coco --image_dir val2017 --split val
  unept-hf convert_masks annotations.xml my_data --format cvat --image_dir images
  unept-hf convert_masks labelme_folder my_data --format labelme
  unept-hf convert_masks roboflow_export my_data --format roboflow

It needs pycocotools: pip install "unept-hf[annotations]" """


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("source", metavar="SOURCE", help="File of the annotations; for labelme and roboflow a folder.")
    add("output", metavar="OUTPUT", help="Folder for images, masks and classes.json.")
    add("--format", required=True, choices=["coco", "cvat", "labelme", "roboflow"], help="Format of the annotations.")
    add("--image_dir", help="Folder of the images, if they are not beside the annotations.")
    add("--split", default="train", help="Name of the split to write; roboflow has its own.")
    add("--class_list", help="Name or JSON file of the classes; by default OUTPUT/classes.json, or the labels found.")
    add(
        "--unlabeled",
        default="background",
        choices=["background", "ignore"],
        help="What pixels outside of all regions are: a class, or ignored.",
    )
    add("--ignored_labels", nargs="+", default=[], help="Labels whose regions are ignored.")
    add("--skip_missing", action="store_true", help="Leave images out that do not exist, with a warning.")


def run(arguments: argparse.Namespace) -> int:
    """Converts annotations."""
    from ..data.mask_conversion import convert_masks

    counts = convert_masks(
        arguments.source,
        arguments.output,
        arguments.format,
        image_dir=arguments.image_dir,
        split=arguments.split,
        class_list=arguments.class_list,
        unlabeled=arguments.unlabeled,
        ignored_labels=arguments.ignored_labels,
        skip_missing=arguments.skip_missing,
        progress=sys.stderr.isatty(),
    )
    written = ", ".join(f"{count} images and masks in {arguments.output}/{split}" for split, count in counts.items())
    print(f"{written}; the classes are in {arguments.output}/classes.json")
    return 0
