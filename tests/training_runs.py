# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainings of a tiny model, in this process and in others, and their data."""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.training.run import command, main


EXAMPLES = Path(__file__).parents[1] / "examples"

TINY_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 4,
    "num_sampling_points": 2,
    "spatial_branch_channels": [8, 16, 32],
}
# Runs in a second, dropout included.
TINY = {
    "preset": "unept-tiny",
    "config_overrides": TINY_MODEL,
    "dataset_name": "synthetic",
    "num_synthetic_scenes": 10,
    "num_synthetic_eval_scenes": 10,
    "synthetic_scene_size": 32,
    "crop_size": 32,
    "scale": [128, 32],
    "dataloader_num_workers": 0,
    "max_steps": 4,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "polynomial",
    "logging_steps": 1,
    "eval_steps": 0,
    "save_steps": 0,
    "max_eval_images": 3,
    "num_prediction_images": 1,
    "disable_tqdm": True,
    "cpu": True,
}


def arguments(output_dir: Path, **options) -> list[str]:
    """The words of a command line."""
    words = []
    for name, value in {**TINY, "output_dir": output_dir, **options}.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(output_dir: Path, **options) -> dict:
    return main(arguments(output_dir, **options))


def log_of(output_dir: Path, key: str = "loss") -> list:
    lines = map(json.loads, (output_dir / "training_log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def weights_of(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / file)


def assert_same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    different = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert not different


def new_state() -> None:
    """As in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_in_process(arguments: list[str], environment: dict[str, str], errors: Path | None) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # its data loader workers have imported everything too
    if errors is None:
        main(arguments)
        return
    sys.argv = ["train.py", *arguments]
    with errors.open("a") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(command())


def wait_for_step(process: multiprocessing.Process, output_dir: Path, step: int) -> None:
    """Until the process has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if log_of(output_dir, "step")[-1] >= step:
                return
        except (FileNotFoundError, IndexError, json.JSONDecodeError):
            pass
        assert process.exitcode is None, f"it ended with {process.exitcode} before step {step}"
        time.sleep(0.002)
    raise TimeoutError(f"no step {step} in two minutes")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_together(
    processes, world_size: int, arguments: list[str], errors: Path | None = None
) -> list[multiprocessing.Process]:
    """Processes of one training, as a launcher starts them."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return [processes(arguments, errors, **environment, **rank) for rank in ranks]


def scene(index: int) -> tuple[Image.Image, np.ndarray]:
    """A scene of one of three sizes, and its label map with values 0 to 5."""
    image, label_map = synthetic_scene(index, size=((40, 48), (48, 40), (64, 56))[index % 3])
    return image, np.array(label_map) % 6


def save_image(image: "Image.Image | np.ndarray", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def write_image_folders(folder: Path) -> dict:
    """Writes eight images with masks, and returns the options that name them."""
    for index in range(8):
        image, label_map = scene(index)
        save_image(image, folder / "images" / f"{index}.jpg")
        save_image(label_map % 3, folder / "masks" / f"{index}.png")
    class_list = folder / "classes.json"
    class_list.write_text('["background", "cat", "dog"]')
    return {"dataset_name": "image_folders", "data_dir": folder, "class_list": class_list}
