# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Which settings of boundary refinement help, and which hurt, on a data set?

One table over the thresholds, the steps, and the two options that leave pixels alone: mean IoU, boundary F1, and the
IoU of thin classes, which refinement erases first. Each image goes through the model once, and all settings apply to
that result. With --peer_label_maps, the label maps of another model are refined, and only the boundary heads run.

    python benchmarks/refinement_study.py MODEL_DIR --dataset_name camvid --data_dir CamVid --eval_split test
    python benchmarks/refinement_study.py MODEL_DIR --dataset_name camvid --data_dir CamVid --eval_split test \\
        --peer_label_maps segformer_label_maps --name refinement_study_segformer-cpu
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from tqdm import tqdm
from transformers import HfArgumentParser

from unept_hf.arguments import HubArguments
from unept_hf.cli.command_line import choose_device, load_model
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import hold_out, load_segmentation_dataset
from unept_hf.evaluation.arguments import EvaluationDataArguments
from unept_hf.evaluation.evaluate import MetricCounts
from unept_hf.inference.segment import segment_batch


TOLERANCES = (1, 3)  # of the boundary F1, in pixels


@dataclass
class StudyArguments:
    """The settings, and where the results go."""

    thresholds: list[float] = field(
        default_factory=lambda: [0.3, 0.5, 0.7, 0.9], metadata={"help": "Probabilities above which a pixel moves."}
    )
    steps: list[int] = field(default_factory=lambda: [1, 3, 5], metadata={"help": "Most pixels to walk."})
    direction_thresholds: list[float] = field(
        default_factory=lambda: [0.0, 0.3, 0.5],
        metadata={"help": "Probabilities of its direction below which a pixel keeps its label."},
    )
    thin_classes: list[str] = field(
        default_factory=lambda: ["pole", "sign symbol", "fence", "pedestrian", "bicyclist"],
        metadata={"help": "Names of the classes with an IoU of their own in the table."},
    )
    peer_label_maps: str | None = field(
        default=None,
        metadata={"help": "Directory of another model's label maps: NAME.png for the image NAME.jpg."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 or mps."})
    name: str = field(default="refinement_study-cpu", metadata={"help": "Beginning of the names of the results."})
    output: str = field(default=str(RESULTS), metadata={"help": "Directory for the results."})


def settings_of(arguments: StudyArguments) -> list[dict | None]:
    """The arguments of `SegmentationResult.refined`, one after the other; `None` for no refinement."""
    names = ("threshold", "steps", "direction_threshold", "inside_only")
    values = (arguments.thresholds, arguments.steps, arguments.direction_thresholds, (False, True))
    return [None, *(dict(zip(names, one)) for one in itertools.product(*values))]


def main() -> None:
    parser = HfArgumentParser(
        (EvaluationDataArguments, HubArguments, StudyArguments), description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("model", help="Directory or Hub name of a UN-EPT with boundary heads.")
    data, hub, study, extra = parser.parse_args_into_dataclasses()

    model, processor = load_model(extra.model, hub)
    model.to(choose_device(study.device))
    data_options = dict(vars(data))
    data_options["split"] = data_options.pop("eval_split")
    max_images, eval_fraction, seed = (data_options.pop(name) for name in ("max_images", "eval_fraction", "seed"))
    dataset, classes = load_segmentation_dataset(**data_options)
    if eval_fraction:
        _, dataset = hold_out(dataset, eval_fraction, seed)
    if max_images is not None:
        dataset = dataset.take(max_images)
    thin_classes = [name for name in study.thin_classes if name in classes.label2id]
    settings = settings_of(study)
    totals = [MetricCounts() for _ in settings]

    def measure(result, setting, reference):
        prediction = (result if setting is None else result.refined(**setting)).label_map.numpy()
        return MetricCounts.of_image(prediction, reference, len(classes), classes.ignore_index, TOLERANCES, ())

    num_images = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        for example in tqdm(dataset, unit="image"):
            image, reference = decode_example(example, classes)
            label_maps = None
            if study.peer_label_maps is not None:
                label_maps = [PIL.Image.open(Path(study.peer_label_maps, f"{Path(example['name']).name}.png"))]
            [result] = segment_batch(model, processor, [image], return_boundaries=True, label_maps=label_maps)
            counts = executor.map(lambda setting: measure(result, setting, reference), settings)  # noqa: B023
            totals = [total + count for total, count in zip(totals, counts)]
            num_images += 1

    rows, lines = [], ["| probability above | steps | direction from | inside only | mean IoU |"]
    lines[0] += "".join(f" F1 {tolerance} px |" for tolerance in TOLERANCES)
    lines[0] += "".join(f" {name} |" for name in thin_classes)
    lines.append("| --- | --- | --- | --- |" + " ---: |" * (1 + len(TOLERANCES) + len(thin_classes)))
    for setting, total in zip(settings, totals):
        metrics = total.metrics(classes, TOLERANCES, ())
        row = {
            "mean_iou": metrics["mean_iou"],
            **{f"boundary_f1_{tolerance}px": metrics[f"boundary_f1_{tolerance}px"] for tolerance in TOLERANCES},
            **{f"iou {name}": metrics["per_category"][name]["iou"] for name in thin_classes},
        }
        rows.append({"setting": setting, **row})
        words = ["no refinement", "", "", ""]
        if setting is not None:
            words = [
                f"{setting['threshold']:g}",
                f"{setting['steps']}",
                f"{setting['direction_threshold']:g}",
                "yes" if setting["inside_only"] else "no",
            ]
        lines.append("| " + " | ".join([*words, *(f"{100 * value:.2f}" for value in row.values())]) + " |")
    facts = {
        "device": cpu_device() if model.device.type == "cpu" else torch.cuda.get_device_name(model.device),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        "images": num_images,
        "data set": f"{data.dataset_name} {data.eval_split}",
        "label maps": "UN-EPT" if study.peer_label_maps is None else Path(study.peer_label_maps).name,
    }
    write_results(Path(study.output), study.name, "Settings of boundary refinement", facts, lines, rows=rows)


if __name__ == "__main__":
    main()
