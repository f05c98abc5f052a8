# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of an evaluation, and of a report on a data set."""

from dataclasses import dataclass

from ..arguments import option
from ..data.arguments import DatasetArguments
from ..inference.options import PredictionOptions


__all__ = ["DataReportArguments", "EvaluationArguments", "EvaluationDataArguments"]


@dataclass(kw_only=True)
class EvaluationDataArguments(DatasetArguments):
    """Which data to evaluate on."""

    eval_split: str | None = option(
        None,
        "Split of the data set; validation by default, or train with --eval_fraction.",
        aliases=["--split"],
    )
    eval_fraction: float = option(
        0.0, "Take the share of the split that a training with this option and seed has left out."
    )
    seed: int = option(0, "With --eval_fraction: the seed of the training.")
    max_images: int | None = option(None, "Number of images to take; all by default.")

    def __post_init__(self):
        if not 0 <= self.eval_fraction < 1 or (self.eval_fraction and self.streaming):
            raise ValueError(
                f"eval_fraction must lie in [0, 1) and cannot split a stream, got {self.eval_fraction} with "
                f"streaming={self.streaming}."
            )
        if self.eval_split is None:
            self.eval_split = "train" if self.eval_fraction else "validation"


@dataclass
class EvaluationArguments(PredictionOptions):
    """How to predict, and what to write."""

    output_dir: str = option("outputs/evaluation", "Folder for the results.")
    # What a command line can say; `evaluate_and_report` translates it.
    refine_boundaries: str = option(  # type: ignore[assignment]
        "no", "Without boundary refinement, with it, or both.", choices=["no", "yes", "both"]
    )
    boundary_metrics: bool = option(True, "Whether to compute boundary F1 and the trimap curve.")
    num_samples: int = option(4, "How many predictions a picture shows, spread evenly over the data set.")
    num_worst: int = option(4, "How many of the worst predictions another picture shows.")


@dataclass(kw_only=True)
class DataReportArguments(DatasetArguments):
    """Which data set to look at, and what to write."""

    dataset_name: str = option("", "The same as DATASET. Without it, data_dir is searched, as for training.")
    splits: list[str] = option([], "Splits to look at; by default those of train, validation and test that exist.")
    max_images: int | None = option(None, "Number of images to read of each split, evenly spaced; all by default.")
    num_samples: int = option(4, "How many images of each split the picture shows.")
    output_dir: str = option("outputs/data", "Folder for the report.")

    def __post_init__(self):
        if not self.dataset_name and self.data_dir is None:
            raise ValueError("Name a data set, such as image_folders, a file of options, or a directory as data_dir.")
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images must be at least 1, got {self.max_images}.")
        if self.num_samples < 0:
            raise ValueError(f"num_samples must be at least 0, got {self.num_samples}.")
