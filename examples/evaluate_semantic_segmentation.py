# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluates a semantic segmentation model: prints a table, and writes results.json, results.md and results.png.

    python examples/evaluate_semantic_segmentation.py --model_name_or_path quickstart_output/model \
        --dataset_name synthetic --refine_boundaries both
    accelerate launch examples/evaluate_semantic_segmentation.py evaluation.yaml

The second form reads the same options from a YAML or JSON file; options that follow it replace its own.
docs/evaluation.md has the protocol of the paper.
"""

import sys

from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser

import unept_hf  # noqa: F401  (registers UN-EPT with the Auto classes)
from unept_hf.command_arguments import DataArguments, EvaluationArguments, ModelArguments, options_of_file
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation import evaluate_model, results_table, save_results


def main(args: list[str] | None = None) -> dict:
    """Runs the evaluation and returns its results."""
    args = sys.argv[1:] if args is None else args
    parser = HfArgumentParser((ModelArguments, DataArguments, EvaluationArguments))
    if args and args[0].endswith((".yaml", ".yml", ".json")):
        args = [*options_of_file(args[0]), *args[1:]]
    model_arguments, data_arguments, evaluation_arguments = parser.parse_args_into_dataclasses(args)

    accelerator = Accelerator()
    hub = {name: getattr(model_arguments, name) for name in ("revision", "token", "trust_remote_code")}
    processor = AutoImageProcessor.from_pretrained(model_arguments.model_name_or_path, **hub)
    model = AutoModelForSemanticSegmentation.from_pretrained(model_arguments.model_name_or_path, **hub)
    model.to(accelerator.device)

    data_options = dict(vars(data_arguments))
    max_images = data_options.pop("max_images")
    # One process prepares the cache, the others read it.
    with accelerator.main_process_first():
        dataset, class_list = load_segmentation_dataset(**data_options)

    options = dict(vars(evaluation_arguments))
    output_dir = options.pop("output_dir")
    options["refine_boundaries"] = {"no": False, "yes": True, "both": "both"}[options["refine_boundaries"]]
    options["boundary_f1"] = options.pop("boundary_metrics")
    results = evaluate_model(
        model, processor, dataset, class_list, accelerator=accelerator, max_images=max_images, **options
    )
    results["model"], results["dataset"] = model_arguments.model_name_or_path, data_arguments.dataset_name
    if accelerator.is_main_process:
        save_results(results, class_list, output_dir)
        print(results_table(results))
        print(f"results.json, results.md and results.png are in {output_dir}")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
