# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf evaluate`: metrics of a model on a data set, as a table, results.json, results.md and results.png."""

import argparse
import sys

from ..arguments import ModelArguments
from ..evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from .command_line import DeviceArguments, choose_device, load_model, options_from, usage_errors


__all__ = ["EXAMPLES", "OPTIONS", "run"]

USAGE = "--model_name_or_path MODEL --dataset_name DATASET"
OPTIONS = (DeviceArguments, ModelArguments, EvaluationDataArguments, EvaluationArguments)
EXAMPLES = """\
examples:
  unept-hf evaluate --model_name_or_path my-model --dataset_name ade20k --data_dir ADEChallengeData2016
  unept-hf evaluate --model_name_or_path my-model --dataset_name synthetic --refine_boundaries both
  unept-hf evaluate evaluation.yaml                            (the same options from a file; more may follow)
  accelerate launch -m unept_hf.cli evaluate evaluation.yaml   (on several GPUs)"""


def run(arguments: argparse.Namespace) -> int:
    """Evaluates a model on a data set."""
    from accelerate import Accelerator

    from ..evaluation.report import evaluate_and_report

    data, options = (options_from(one, arguments) for one in (EvaluationDataArguments, EvaluationArguments))
    # Accelerate knows of other processes, and takes the accelerator where the machine has one.
    accelerator = Accelerator() if arguments.device == "auto" else None
    device = accelerator.device if accelerator is not None else choose_device(arguments.device)
    model, processor = load_model(arguments.model_name_or_path, arguments)
    with usage_errors(arguments):
        options.check_model(model)
    evaluate_and_report(
        model.to(device),
        processor,
        data,
        options,
        model_name=arguments.model_name_or_path,
        accelerator=accelerator,
        progress=sys.stderr.isatty(),
    )
    if accelerator is not None:
        accelerator.end_training()
    return 0
