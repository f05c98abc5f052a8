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
from transformers import HfArgumentParser

import unept_hf  # noqa: F401  (registers UN-EPT with the Auto classes)
from unept_hf.arguments import (
    ModelArguments,
    read_options,
    words_of_options,
)
from unept_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from unept_hf.evaluation.report import evaluate_and_report
from unept_hf.inference.loading import load_model_and_processor


def main(args: list[str] | None = None) -> dict:
    """Runs the evaluation and returns its results."""
    args = sys.argv[1:] if args is None else args
    parser = HfArgumentParser((ModelArguments, EvaluationDataArguments, EvaluationArguments))
    if args and args[0].endswith((".yaml", ".yml", ".json")):
        args = [*words_of_options(read_options(args[0])), *args[1:]]
    model_arguments, data_arguments, evaluation_arguments = parser.parse_args_into_dataclasses(args)

    accelerator = Accelerator()
    name = model_arguments.model_name_or_path
    hub = {option: getattr(model_arguments, option) for option in ("revision", "token", "trust_remote_code")}
    model, processor = load_model_and_processor(name, **hub)
    results = evaluate_and_report(
        model.to(accelerator.device),
        processor,
        data_arguments,
        evaluation_arguments,
        model_name=name,
        accelerator=accelerator,
    )
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
