# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of a training on a directory of images and masks, where nothing else is said."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from ..arguments import read_options
from ..data.discovery import FoundDataset, find_dataset
from ..files import atomic_file, make_directory


__all__ = ["automatic_options"]

logger = logging.getLogger(__name__)

_OPTIONS_FILE = "options.yaml"
_SHIPPED_MODEL = Path(__file__).parents[1] / "checkpoints" / "street_photos"

# Bytes of a training step for each crop of 480 x 480, and for weights and optimizer, with a margin: the step of the
# ResNet-50 preset in float32 peaks at 4.3 GB with two crops.
_BYTES_OF_CROP = {"gpu": 2.2e9, "cpu": 0.9e9}
_BYTES_OF_MODEL = {"gpu": 1.5e9, "cpu": 0.5e9}


def automatic_options(
    data_dir: str,
    output_dir: str | None = None,
    use_cpu: bool = False,
    progress: bool = True,
    skip_unreadable: bool = False,
    **given: str | None,
) -> Path:
    """
    Chooses options for the data and this machine, logs each choice with its reason, and writes them to
    `output_dir/options.yaml`. If that file exists, it counts, so that a training can resume.

    Args:
        data_dir: Directory of images and masks, see `find_dataset`.
        output_dir: `runs/NAME` for the directory NAME by default.
        use_cpu: Whether to stay on the CPU where there is a GPU.
        progress: Whether to show progress bars on a terminal.
        skip_unreadable: Whether to pass over files that cannot be read.
        given: Options of the data set that are known, see `find_dataset`.

    Raises:
        ValueError: when the data set is not understood, when the file is of other data, and for trainings in several
            processes, which need a file of options to share.
    """
    folder = Path(output_dir or Path("runs") / Path(data_dir).expanduser().resolve().name).expanduser()
    file = folder / _OPTIONS_FILE
    if file.is_file():
        other = str(read_options(file).get("data_dir"))
        if Path(other).expanduser().resolve() != Path(data_dir).expanduser().resolve():
            raise ValueError(
                f"{file} has the options of other data, {other}: choose another output_dir than {folder}, or delete "
                "the file."
            )
        logger.info(f"The options are those of {file}: delete it to have them chosen again.")
        return file
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "Several processes cannot choose their options together: run `unept-hf train --data_dir ... --dry_run` "
            f"once, and launch the processes with {file}."
        )
    data = find_dataset(data_dir, progress, skip_unreadable, **given)
    if data.num_images < 2 and not data.num_evaluation_images:
        raise ValueError(f"{data_dir} has one image with a mask: add more, because some are needed to evaluate on.")
    is_gpu = torch.cuda.is_available() and not use_cpu
    chosen, reasons = _options_for(data, is_gpu)
    options = {**data.save_class_list(make_directory(folder)), **chosen, "output_dir": str(folder)}
    for line in (*data.findings, *reasons):
        logger.info(line)
    with atomic_file(file) as path:
        comments = "".join(f"# {line}\n" for line in (*data.findings, *reasons))
        path.write_text(comments + yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    logger.info(f"These options are in {file}: change them there, and train with `unept-hf train {file}`.")
    return file


def _options_for(data: FoundDataset, is_gpu: bool) -> tuple[dict[str, Any], list[str]]:
    """Options beside those of the data set, and a reason for each choice."""
    options: dict[str, Any] = {}
    reasons = []
    if is_gpu:
        options |= {"preset": "unept-resnet50", "use_pretrained_backbone": True}
        options["mixed_precision"] = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        reasons.append("There is a GPU: a ResNet-50 from timm's ImageNet weights, which are downloaded once.")
    else:
        options["model_name_or_path"] = str(_SHIPPED_MODEL)
        reasons.append("There is no GPU: the small model of street photographs that ships with unept-hf is the start.")
    if not data.num_evaluation_images:
        options["eval_fraction"] = 0.1 if data.num_images >= 20 else 0.2
        reasons.append(f"No split is for evaluation: a share of {options['eval_fraction']} of the images is held out.")

    height, width = data.size
    shorter = min(max(min(height, width), 256), 512 if is_gpu else 384)
    longer = math.ceil(shorter * max(height, width) / min(height, width))
    crop = min(480 if is_gpu else 320, shorter) // 32 * 32
    options |= {"scale": [4 * longer, shorter], "crop_size": crop}
    reasons.append(
        f"Images are resized to a shorter side of {shorter}, a step sees crops of {crop} x {crop}: finer details need "
        "more of both (scale, crop_size), and more memory and time."
    )

    batch = 16 if is_gpu else 8
    place = "gpu" if is_gpu else "cpu"
    free = torch.cuda.mem_get_info()[0] if is_gpu else psutil.virtual_memory().available
    crops = (0.8 * free - _BYTES_OF_MODEL[place]) / (_BYTES_OF_CROP[place] * (crop / 480) ** 2)
    pieces = next(pieces for pieces in (1, 2, 4, 8, 16) if pieces == batch or batch / pieces <= crops)
    options |= {"train_batch_size": batch, "gradient_accumulation_steps": pieces}
    reasons.append(f"{batch} crops in a step, {batch // pieces} at once, for {free / 1e9:.0f} GB of free memory.")

    epochs, most = (80, 20_000) if is_gpu else (40, 2_000)
    steps = min(max(round(epochs * data.num_images / batch), 300), most)
    options |= {
        "max_steps": steps,
        "warmup_steps": steps // 20,
        "learning_rate": 1e-4 if is_gpu else 5e-4,
        "backbone_lr_multiplier": 0.1 if is_gpu else 0.3,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 0.9},
        "eval_steps": max(steps // 5, 1),
        "save_steps": max(steps // 20, 1),
        "logging_steps": max(steps // 100, 1),
        "load_best_model_at_end": True,
    }
    reasons.append(f"{steps} steps see each image about {steps * batch / data.num_images:.0f} times.")
    return options, reasons
