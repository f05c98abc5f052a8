# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How good is the checkpoint that ships with the package, on scenes that it was not trained on, and how fast?

    python benchmarks/shipped_checkpoint.py
"""

import argparse
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from transformers import pipeline

from unept_hf import SYNTHETIC_SCENES, evaluate_model
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset


METRICS = {
    "mean_iou": "mean IoU",
    "overall_accuracy": "pixel accuracy",
    "boundary_f1_1px": "boundary F1, 1 px",
    "boundary_f1_3px": "boundary F1, 3 px",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    segmenter = pipeline("image-segmentation", model=SYNTHETIC_SCENES)
    dataset, classes = load_segmentation_dataset("synthetic", "validation", num_synthetic_scenes=arguments.scenes)
    image, _ = decode_example(dataset[0], classes)
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        segmenter(image)
        seconds.append(time.perf_counter() - start)
    results = evaluate_model(
        segmenter.model,
        segmenter.image_processor,
        dataset,
        classes,
        refine_boundaries="both",
        boundary_tolerances=(1, 3),
        trimap_widths=(),
    )

    refined = results["refined"]
    rows = [f"| {title} | {results[name]:.3f} | {refined[name]:.3f} |" for name, title in METRICS.items()]
    class_rows = [
        f"| {name} | {scores['iou']:.3f} | {refined['per_category'][name]['iou']:.3f} |"
        for name, scores in results["per_category"].items()
    ]
    lines = [
        "| metric | plain | with boundary refinement |",
        "| --- | ---: | ---: |",
        *rows,
        "",
        f"One 256 x 256 scene through `pipeline`: {min(seconds):.3f} seconds, the fastest of {arguments.repeats}.",
        "",
        "| IoU of | plain | with boundary refinement |",
        "| --- | ---: | ---: |",
        *class_rows,
    ]
    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        "held-out scenes": arguments.scenes,
    }
    kept = {name: results[name] for name in (*METRICS, "per_category")}
    kept["refined"] = {name: refined[name] for name in (*METRICS, "per_category")}
    title = "The checkpoint that comes with the package"
    write_results(
        arguments.output, "shipped_checkpoint-cpu", title, facts, lines, results=kept, pipeline_seconds=min(seconds)
    )


if __name__ == "__main__":
    main()
