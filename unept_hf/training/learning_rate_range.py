# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The learning rate range test: a short training whose learning rate rises exponentially, to see where the loss falls.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", section 3.3, with an exponential rise.
"""

import csv

import numpy as np
from accelerate.logging import get_logger
from matplotlib.figure import Figure
from tqdm import tqdm

from ..files import atomic_file
from .trainer import SegmentationTrainer


__all__ = ["learning_rate_range"]

logger = get_logger(__name__)

_LOWEST, _HIGHEST = 1e-6, 1e-1
_STEPS = 100
_SMOOTHING = 0.9  # of an exponential moving average
_DIVERGED = 4  # times the lowest loss


def learning_rate_range(trainer: SegmentationTrainer) -> float:
    """
    Trains up to 100 steps of a new trainer, whatever its `max_steps`, and writes `learning_rate_range.csv` and `.png`
    into its `output_dir`.

    Returns:
        A tenth of the learning rate at which the smoothed loss is lowest. The rate at which it falls fastest depends
        more on noise.

    Raises:
        ValueError: when the loss is not finite, or has diverged, before it could fall.
    """
    groups = trainer.optimizer.param_groups
    # Not the present rates, which are 0 at the start of a warm-up.
    shares = [group["initial_lr"] for group in groups]
    shares = [share / max(shares) for share in shares]
    trainer.run_args.max_steps = max(trainer.run_args.max_steps, trainer.step + _STEPS)
    rates, losses, smoothed = [], [], []
    average = 0.0
    batches = trainer.batches()
    trainer.set_to_training()
    for step in tqdm(range(_STEPS), desc="Learning rates", disable=trainer.run_args.disable_tqdm or None):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        for group, share in zip(groups, shares):
            group["lr"] = rate * share
        try:
            loss, _ = trainer.train_step(batches)
        except FloatingPointError:
            break
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - _SMOOTHING ** (step + 1)))
        if smoothed[-1] > _DIVERGED * min(smoothed):
            break
    if len(smoothed) < 3:
        raise ValueError(
            f"The loss is not finite, or has diverged, after {len(smoothed)} steps at learning rates below "
            f"{rate:.1e}: check the data."
        )
    lowest = int(np.argmin(smoothed))
    if trainer.accelerator.is_main_process:
        _write(trainer, rates, losses, smoothed, lowest)
    if lowest == _STEPS - 1:
        logger.warning(f"The loss still falls at {_HIGHEST:g}, the highest learning rate: is the data learned at all?")
    logger.info(
        f"The loss is lowest at a learning rate of {rates[lowest]:.1e}; the curve is in "
        f"{trainer.output_dir / 'learning_rate_range.png'}. A usual choice is a tenth, learning_rate="
        f"{rates[lowest] / 10:.0e}, with warmup_steps."
    )
    return rates[lowest] / 10


def _write(
    trainer: SegmentationTrainer, rates: list[float], losses: list[float], smoothed: list[float], lowest: int
) -> None:
    with atomic_file(trainer.output_dir / "learning_rate_range.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["learning_rate", "loss", "smoothed_loss"])
        writer.writerows(zip(rates, losses, smoothed))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, color="0.75", linewidth=1, label="loss of a step")
    axis.plot(rates, smoothed, color="tab:blue", label="smoothed")
    axis.plot(rates[lowest], smoothed[lowest], "o", color="tab:orange", label=f"lowest: {rates[lowest]:.1e}")
    axis.axvline(rates[lowest] / 10, color="tab:orange", linestyle=":", label=f"a tenth: {rates[lowest] / 10:.1e}")
    axis.set_xscale("log")
    axis.set_ylim(top=1.1 * max(losses[: max(lowest, 1)]), bottom=0.9 * min(losses))
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    axis.legend(frameon=False)
    figure.savefig(trainer.output_dir / "learning_rate_range.png", dpi=120)
