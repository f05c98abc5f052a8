# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How good are the checkpoints that ship with the package, on images that they were not trained on, and how fast?

    python benchmarks/shipped_checkpoint.py
    python benchmarks/shipped_checkpoint.py --checkpoint street_photos --data_dir CamVid
"""

import argparse
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from transformers import pipeline

import unept_hf
from unept_hf import evaluate_model
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset


METRICS = {
    "mean_iou": "mean IoU",
    "overall_accuracy": "pixel accuracy",
    "boundary_f1_1px": "boundary F1, 1 px",
    "boundary_f1_3px": "boundary F1, 3 px",
}
PLAIN, REFINED, VIEWS = "plain", "with boundary refinement", "with scales 0.75, 1 and 1.25, and flips"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=["synthetic_scenes", "street_photos"], default="synthetic_scenes")
    parser.add_argument("--data_dir", help="street_photos: the directory of CamVid")
    parser.add_argument("--scenes", type=int, default=200, help="synthetic_scenes: held-out scenes")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    segmenter = pipeline("image-segmentation", model=getattr(unept_hf, arguments.checkpoint.upper()))
    if arguments.checkpoint == "street_photos":
        name, title, images = "street_photos-cpu", "The checkpoint of street photographs", "test photograph"
        dataset, classes = load_segmentation_dataset("camvid", "test", data_dir=arguments.data_dir)
    else:
        name, title, images = "shipped_checkpoint-cpu", "The checkpoint of drawn scenes", "held-out scene"
        dataset, classes = load_segmentation_dataset("synthetic", "validation", num_synthetic_scenes=arguments.scenes)
    image, _ = decode_example(dataset[0], classes)
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        segmenter(image)
        seconds.append(time.perf_counter() - start)

    def evaluate(**options) -> dict:
        return evaluate_model(
            segmenter.model,
            segmenter.image_processor,
            dataset,
            classes,
            boundary_tolerances=(1, 3),
            trimap_widths=(),
            **options,
        )

    plain = evaluate(refine_boundaries="both")
    results = {PLAIN: plain, REFINED: plain.pop("refined")}
    if arguments.checkpoint == "street_photos":
        results[VIEWS] = evaluate(scales=[0.75, 1.0, 1.25], flip=True)

    columns = " | ".join(results)
    marks = " ---: |" * len(results)
    rows = [
        f"| {shown} | " + " | ".join(f"{found[metric]:.3f}" for found in results.values()) + " |"
        for metric, shown in METRICS.items()
    ]
    class_rows = [
        f"| {label} | " + " | ".join(f"{found['per_category'][label]['iou']:.3f}" for found in results.values()) + " |"
        for label in plain["per_category"]
    ]
    lines = [
        f"| metric | {columns} |",
        f"| --- |{marks}",
        *rows,
        "",
        f"One {image.width} x {image.height} {images} through `pipeline`: {min(seconds):.3f} seconds, the fastest of "
        f"{arguments.repeats}.",
        "",
        f"| IoU of | {columns} |",
        f"| --- |{marks}",
        *class_rows,
    ]
    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        f"{images}s": len(dataset),
    }
    kept = {shown: {key: found[key] for key in (*METRICS, "per_category")} for shown, found in results.items()}
    # As in earlier files.
    kept = {**kept.pop(PLAIN), "refined": kept.pop(REFINED), **kept}
    write_results(arguments.output, name, title, facts, lines, results=kept, pipeline_seconds=min(seconds))


if __name__ == "__main__":
    main()
