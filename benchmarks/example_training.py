# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How long does the first training of docs/training.md take, and how good is the model?

One run of `examples/configs/synthetic_harbour.yaml`, from the command to its end. --pictures copies the curve and the
last predictions for that page.

    python benchmarks/example_training.py --pictures docs/images
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results


EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = EXAMPLES / "configs" / "synthetic_harbour.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, help="instead of the number in the configuration")
    parser.add_argument("--pictures", type=Path, help="folder to copy the pictures to")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, EXAMPLES / "run_semantic_segmentation.py", CONFIG, "--output_dir", folder]
        if arguments.max_steps is not None:
            command += ["--max_steps", str(arguments.max_steps)]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        minutes, seconds = divmod(round(time.perf_counter() - start), 60)
        log = [json.loads(line) for line in (Path(folder) / "training_log.jsonl").read_text().splitlines()]
        evaluations = [entry for entry in log if "eval/mean_iou" in entry]
        if arguments.pictures is not None:
            last = Path(folder) / "predictions" / f"step_{evaluations[-1]['step']}.png"
            shutil.copyfile(last, arguments.pictures / "training_predictions.png")
            shutil.copyfile(Path(folder) / "loss_curve.png", arguments.pictures / "training_loss_curve.png")
    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "transformers", "timm"),
        "date": today(),
        "configuration": CONFIG.name,
    }
    lines = [
        f"From start to end, evaluations on {evaluations[-1]['eval/num_images']} held-out scenes included: "
        f"{minutes} minutes {seconds} seconds.",
        "",
        "| step | mean IoU | pixel accuracy |",
        "| --- | ---: | ---: |",
        *(f"| {e['step']} | {e['eval/mean_iou']:.3f} | {e['eval/overall_accuracy']:.3f} |" for e in evaluations),
    ]
    results = {"minutes": minutes, "seconds": seconds, "log": log}
    title = "Training with the example trainer"
    write_results(arguments.output, "example_training-cpu", title, facts, lines, **results)


if __name__ == "__main__":
    main()
