# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The trainer, from its options to the model that it uploads."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation, pipeline

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import available_class_lists, class_list_from_data, load_class_list
from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.training import building, trainer
from unept_hf.training.arguments import RunArguments, TrainingModelArguments, parse_arguments
from unept_hf.training.checkpoints import list_checkpoints, read_checkpoint
from unept_hf.training.processes import Interruption
from unept_hf.training.run import command, main


EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted((EXAMPLES / "configs").glob("*.yaml"))

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


class Poison:
    """Unpickled without checks, it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def assert_same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    different = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert not different


def new_state() -> None:
    """As in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def new_accelerate_state():
    yield
    new_state()


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already, so that a real kill costs no half minute."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = []
    # Without this, the preloading finds nothing and says nothing.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

    def start(arguments: list[str], errors: Path | None = None, **environment: str) -> multiprocessing.Process:
        """With a file for errors it runs as from a shell."""
        process = context.Process(target=run_in_process, args=(arguments, environment, errors))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


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


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--save_total_limit", "-1"], "save_total_limit must be at least 0, got -1"),
        (["--max_eval_images", "0"], "max_eval_images must be at least 1, got 0"),
        (["--lr_scheduler_kwargs", "{"], "lr_scheduler_kwargs is not JSON"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--dataset_name", "synthetic", "--output_dir", "runs", *option])


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="fields that UneptConfig does not know: hiden_size"):
        run(tmp_path, config_overrides='{"hiden_size": 3}')
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs .* does not fit lr_scheduler_type cosine"):
        run(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs='{"power": 0.9}')


def run_as_command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["folder/train.py", *words])
    return command()


def test_errors_of_a_user_are_one_line(tmp_path, monkeypatch, capsys):
    """Whatever lines the message has."""
    (tmp_path / "options.yaml").write_text("dataset_name: synthetic\nlerning_rate: 1\n")
    for words, message in (
        ([str(tmp_path / "options.yaml")], "options.yaml has unknown options: lerning_rate. --help lists"),
        (arguments(tmp_path, lerning_rate=1), "['--lerning_rate', '1']"),
        (arguments(tmp_path, dataset_name="ade20k", data_dir="nowhere"), "There is no folder 'nowhere"),
        (arguments(tmp_path, config_overrides={"hidden_size": 33}), "num_attention_heads=4 does not divide"),
        (arguments(tmp_path, config_overrides={"hidden_size": "x"}), "'hidden_size' expected int, got str"),
        (arguments(tmp_path, eval_split="nowhere"), "That was the evaluation set."),
    ):
        assert run_as_command(monkeypatch, *words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("train.py: error: ") and message in line
        new_state()
    with pytest.raises(ValueError, match="unknown options"):
        run_as_command(monkeypatch, str(tmp_path / "options.yaml"), "--traceback")
    with pytest.raises(SystemExit) as status:
        run_as_command(monkeypatch, *arguments(tmp_path, max_steps="many"))
    assert status.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage == "usage: train.py [OPTIONS.yaml] [--option value ...]"
    assert "invalid int value: 'many'" in line


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise raised

    monkeypatch.setattr(trainer, "load_data", fail)
    raised = AttributeError("a mistake")
    with pytest.raises(AttributeError, match="a mistake"):
        run_as_command(monkeypatch, *arguments(tmp_path))
    new_state()
    raised = KeyboardInterrupt()
    assert run_as_command(monkeypatch, *arguments(tmp_path)) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"


def test_a_command_that_ends_well(tmp_path, monkeypatch, capsys):
    assert run_as_command(monkeypatch, *arguments(tmp_path, max_steps=1, evaluate=False), "--traceback") == 0
    assert "traceback" not in read_checkpoint(tmp_path / "checkpoint-1")["options"]


def told_errors(file: Path) -> list[str]:
    """The errors that processes printed, all of them in one line."""
    text = file.read_text()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("train.py: ")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "train.py: error: max_steps must be at least 1"),
        ({"train_batch_size": 3}, "train.py: error (process 0): train_batch_size=3 cannot be shared"),
        ({"dataset_name": "ade20k", "data_dir": "nowhere"}, "train.py: error (process 0): There is no folder"),
    ],
    ids=["options", "batch", "data"],
)
def test_one_of_two_processes_tells_of_an_error(options, message, processes, tmp_path):
    errors = tmp_path / "errors"
    for process in start_together(processes, 2, arguments(tmp_path / "run", **options), errors=errors):
        process.join(60)
        assert process.exitcode == 1
    (line,) = told_errors(errors)
    assert line.startswith(message)


def test_the_other_process_has_no_traceback(processes, tmp_path):
    """One meets a bad mask, and the other one loses the connection."""
    write_image_folders(tmp_path / "data")
    save_image(np.full(scene(3)[1].shape, 40, dtype=np.uint8), tmp_path / "data" / "masks" / "3.png")
    options = {"dataset_name": "image_folders", "data_dir": tmp_path / "data", "evaluate": False}
    options |= {"class_list": tmp_path / "data" / "classes.json", "train_batch_size": 2}
    errors = tmp_path / "errors"
    for process in start_together(processes, 2, arguments(tmp_path / "run", **options), errors=errors):
        process.join(60)
        assert process.exitcode == 1
    lines = told_errors(errors)
    assert all(line.startswith("train.py: error (process ") for line in lines)
    assert any(str(tmp_path / "data" / "masks" / "3.png") in line for line in lines)


def test_models_of_an_earlier_training_stay(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"has results \(model\): name another output_dir"):
        run(tmp_path)


def test_a_failing_evaluation_costs_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a broken image")

    monkeypatch.setattr(trainer, "evaluate_model", fail)
    with pytest.raises(ValueError, match="a broken image"):
        run(tmp_path, max_steps=2, eval_steps=1, save_steps=0)
    assert read_checkpoint(list_checkpoints(tmp_path)[-1])["step"] == 1
    monkeypatch.undo()
    run(tmp_path, max_steps=2, eval_steps=1, save_steps=0, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step")[-1] == 2


def test_without_a_mean_iou_the_last_model_is_the_final_one(tmp_path, monkeypatch):
    nothing = dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy", "seconds"), float("nan"))
    monkeypatch.setattr(trainer, "evaluate_model", lambda *args, **kwargs: {**nothing, "num_images": 1})
    run(tmp_path, max_steps=1, load_best_model_at_end=True)
    # As JSON, which has no NaN.
    assert '"eval/mean_iou": null' in (tmp_path / "training_log.jsonl").read_text()
    assert "NaN" not in (tmp_path / "training_log.jsonl").read_text()
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "best_model").exists()


def test_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "dataset_name: ade20k\noutput_dir: runs\nmax_steps: 100\nlearning_rate: 2e-4\nscale: [1024, 256]\n"
        "config_overrides: {num_feature_levels: 1}\nphotometric_distortion: false\nclass_list: null\n"
    )
    model_args, data_args, run_args = parse_arguments([str(file), "--max_steps", "5", "--scale", "64", "32"])
    assert (run_args.max_steps, run_args.learning_rate, run_args.output_dir) == (5, 2e-4, "runs")
    assert (data_args.scale, data_args.photometric_distortion, data_args.class_list) == ([64, 32], False, None)
    assert model_args.config_overrides == {"num_feature_levels": 1}
    assert parse_arguments([str(file)])[2].max_steps == 100
    file.with_suffix(".json").write_text(json.dumps({"dataset_name": "synthetic", "output_dir": "x", "seed": 3}))
    assert parse_arguments([str(file.with_suffix(".json"))])[2].seed == 3


@pytest.mark.parametrize("as_text", [False, True], ids=["mapping", "JSON"])
def test_overrides_of_file_and_command_line_are_merged(as_text, tmp_path):
    overrides = {"decoder_self_attention": "pointwise", "backbone_config": {"model_type": "x", "backbone": "a"}}
    options = {"config_overrides": json.dumps(overrides) if as_text else overrides, "output_dir": "runs"}
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump({**options, "dataset_name": "synthetic"}))
    more = '{"num_sampling_points": 4, "backbone_config": {"backbone": "b"}}'
    for words in (["--config_overrides", more], [f"--config-overrides={more}"]):
        assert parse_arguments([str(file), *words])[0].config_overrides == {
            "decoder_self_attention": "pointwise",
            "backbone_config": {"model_type": "x", "backbone": "b"},
            "num_sampling_points": 4,
        }
    with pytest.raises(ValueError, match="config_overrides is not JSON"):
        parse_arguments([str(file), "--config_overrides", "{"])


@pytest.mark.parametrize(
    ("in_file", "words", "expected"),
    [
        ("use_pretrained_backbone: true", ["--backbone_checkpoint", "b.pth"], (False, "b.pth", None)),
        ("backbone_checkpoint: b.pth", ["--use_pretrained_backbone"], (True, None, None)),
        ("backbone_checkpoint: b.pth", ["--use_pretrained_backbone", "no"], (False, "b.pth", None)),
        ("use_pretrained_backbone: true", ["--model_name_or_path", "model"], (False, None, "model")),
        ("backbone_checkpoint: b.pth", ["--model_name_or_path", "model"], (False, None, "model")),
        ("model_name_or_path: model", ["--backbone_checkpoint", "b.pth"], (False, "b.pth", None)),
        ("model_name_or_path: model", ["--preset", "unept-tiny"], (False, None, None)),
        ("model_name_or_path: model", ["--seed", "1"], (False, None, "model")),
    ],
)
def test_what_a_model_starts_from_on_the_command_line_wins(in_file, words, expected, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(f"dataset_name: synthetic\noutput_dir: runs\n{in_file}\n")
    args = parse_arguments([str(file), *words])[0]
    assert (args.use_pretrained_backbone, args.backbone_checkpoint, args.model_name_or_path) == expected


def test_two_things_to_start_from_exclude_each_other(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("dataset_name: a\noutput_dir: b\nuse_pretrained_backbone: true\nbackbone_checkpoint: c\n")
    for words in ([str(file)], arguments(tmp_path, use_pretrained_backbone="yes", backbone_checkpoint="c")):
        with pytest.raises(ValueError, match="exclude each other"):
            parse_arguments(words)


def test_paths_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ("output_dir", "data_dir", "image_dir", "label_dir", "class_list", "resume_from_checkpoint")
    options = {name: f"~/{name}" for name in (*names, "dataset_name")}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    for more in ("model_name_or_path", "backbone_checkpoint"):
        parsed = parse_arguments(["~/options.yaml", f"--{more}=~/{more}"])
        found = {key: value for one in parsed for key, value in vars(one).items()}
        for name in (*options, more):
            assert found[name] == os.path.join(tmp_path, name)


def test_unknown_option_in_a_file(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("dataset_name: ade20k\noutput_dir: runs\nlerning_rate: 1\n")
    with pytest.raises(ValueError, match=r"options\.yaml has unknown options: lerning_rate"):
        parse_arguments([str(file)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision must be"),
        ({"evaluation_mode": "tiles"}, "evaluation_mode must be"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"scale": [512]}, "scale must be two positive numbers"),
        ({"config_overrides": "{"}, "config_overrides is not JSON"),
        ({"config_overrides": "[1]"}, "config_overrides must be a JSON object"),
        ({"eval_fraction": 0.5, "streaming": True}, "eval_fraction cannot split a stream"),
        ({"model_name_or_path": "x", "use_pretrained_backbone": True}, "brings its own backbone"),
        ({"evaluate": False, "load_best_model_at_end": True}, "load_best_model_at_end needs evaluate"),
        ({"crop_size": -64}, r"crop_size must be .* such as 480, got -64"),
        ({"ratio_range": [0.5, "inf"]}, r"ratio_range must be two positive numbers, got \[0\.5, inf\]"),
        ({"scale": [512, 0]}, "scale must be two positive numbers"),
        ({"learning_rate": "nan"}, r"learning_rate must be a finite number from 0 on, such as 0\.0001, got nan"),
        ({"max_grad_norm": "inf"}, "max_grad_norm must be a finite number"),
        ({"lr_gamma": -0.1}, r"lr_gamma must be a finite number from 0 on, such as 0\.1, got -0\.1"),
        (
            {"torch_compile": True, "torch_compile_backend": "foo"},
            "torch_compile_backend 'foo' is not one of .*inductor",
        ),
    ],
)
def test_options_that_can_not_be(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_arguments(arguments(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_batch_size": 5, "gradient_accumulation_steps": 2}, "train_batch_size=5 cannot be shared"),
        ({"crop_size": 36}, "crop_size=36 must be a multiple of 8"),
        ({"report_to": ["trackio"]}, r"report_to=\['trackio'\]: not installed"),
        ({"dataset_name": "ade20k", "data_dir": "nowhere"}, "nowhere"),
        ({"resume_from_checkpoint": "nowhere"}, r"nowhere is not a checkpoint.* Name a folder checkpoint-<step>"),
        ({"dataset_name": "image_folders", "data_dir": "."}, "needs class_list"),
        ({"output_dir": __file__}, rf"{__file__} cannot be a directory, because {__file__} is a file"),
        ({"output_dir": f"{__file__}/runs/a"}, rf"runs/a cannot be a directory, because {__file__} is a file"),
        ({"model_name_or_path": "/nope"}, r"/nope is not a model directory .*nor owner/name on the Hub: it does not"),
    ],
)
def test_runs_that_can_not_start(options, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        run(**{"output_dir": tmp_path, **options})


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize("cpu", [True, False])
def test_what_shares_weights_is_not_for_the_cpu(name, cpu, tmp_path, monkeypatch):
    """Accelerate trains without it, and says nothing."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cpu)
    why = "cpu: true keeps the training off them: drop cpu, or" if cpu else "PyTorch finds none:"
    with pytest.raises(ValueError, match=f"asks for {name}, which needs GPUs, but {why} launch without {name}"):
        run(tmp_path, cpu=cpu, max_steps=1, evaluate=False)


def test_there_is_a_config_for_every_row_of_the_paper():
    names = {path.stem for path in CONFIGS}
    rows = {"ade20k_{}_160k", "cityscapes_{}_80k", "pascal_context_59_{}_160k"}
    assert {row.format(backbone) for row in rows for backbone in ("resnet50", "deit")} < names
    assert sum(name.startswith("ablation_table5_") for name in names) == 4
    assert sum(name.startswith("ablation_table6_") for name in names) == 6
    assert {"small_gpu", "synthetic_harbour", "synthetic_scenes_checkpoint"} < names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_make_models(path):
    model_args, data_args, run_args = parse_arguments([str(path)])
    if data_args.dataset_name in available_class_lists():
        class_list = load_class_list(data_args.dataset_name)
    else:
        class_list = class_list_from_data(["a", "b", "c"])
    config = building.make_config(model_args, data_args.crop_size, class_list)
    with torch.device("meta"):
        model = UneptForSemanticSegmentation(config)
    assert data_args.crop_size % model.model.size_divisor == 0
    assert model.classifier.out_channels == len(class_list)
    assert tuple(config.query_grid_size) == (data_args.crop_size // config.query_stride,) * 2
    assert run_args.train_batch_size % run_args.gradient_accumulation_steps == 0
    scheduler = building.make_scheduler(building.make_optimizer(model, run_args), run_args)
    assert scheduler.get_last_lr()[0] <= run_args.learning_rate
    # What the published results were measured with.
    is_of_the_paper = path.stem.startswith(("ablation", "ade20k", "cityscapes", "pascal_context"))
    assert config.decoder_self_attention == "pointwise" or not is_of_the_paper
    if "ablation" in path.stem:
        name, overrides = path.stem, model_args.config_overrides
        row = int(name.split("table5_")[1][0]) if "table5" in name else 4
        assert overrides["num_feature_levels"] == (1 if row == 1 or "levels1" in name else 3)
        assert (config.use_spatial_branch, config.use_boundary_heads) == (row >= 3, row == 4)
        if "table6" in name:
            assert name.endswith(f"points{config.num_sampling_points}")


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_feature_levels": 1, "use_spatial_branch": False, "use_boundary_heads": False},
        {"use_spatial_branch": False, "use_boundary_heads": False},
        {"use_boundary_heads": False},
        {},
        {"decoder_self_attention": "dense"},
        {"decoder_self_attention": "pointwise"},
    ],
)
def test_every_parameter_is_used(overrides):
    """Otherwise data parallel training would wait for its gradient."""
    model_args = TrainingModelArguments(preset="unept-tiny", config_overrides={**TINY_MODEL, **overrides})
    model = UneptForSemanticSegmentation(building.make_config(model_args, 32, class_list_from_data(["a", "b"])))
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 1
    model(pixel_values=torch.randn(2, 3, 32, 32), labels=labels).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_learning_rates():
    model = UneptForSemanticSegmentation.from_preset("unept-tiny", **TINY_MODEL)
    run_args = RunArguments(
        output_dir="x", max_steps=100, learning_rate=1e-3, warmup_steps=4, lr_milestones=[10, 20], weight_decay=0.02
    )
    optimizer = building.make_optimizer(model, run_args)
    in_backbone = {name for name, _ in model.named_parameters() if name.startswith("model.backbone.")}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others, backbone = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert backbone == in_backbone
    assert others | backbone == set(names.values())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}

    scheduler = building.make_scheduler(optimizer, run_args)
    rates = []
    for _ in range(25):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    expected = [0.25e-3, 0.5e-3, 0.75e-3] + [1e-3] * 7 + [1e-4] * 10 + [1e-5] * 5
    np.testing.assert_allclose([rate for rate, _ in rates], expected)
    np.testing.assert_allclose([rate for _, rate in rates], np.array(expected) / 10)


def test_interruption_notes_the_first_signal_only():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (interruption.received, seen) == ("SIGTERM", [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        with Interruption() as interruption:
            assert interruption.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, previous)


# ---- training ------------------------------------------------------------------------------------------------------


def test_it_learns(tmp_path):
    """And leaves a model that pipelines take, pictures and a log. Ten minutes of it: docs/training.md."""
    metrics = run(
        tmp_path,
        dataset_name="synthetic_harbour",
        num_synthetic_scenes=150,
        num_synthetic_eval_scenes=40,
        synthetic_scene_size=64,
        crop_size=64,
        scale=[256, 64],
        ratio_range=[1.0, 1.0],
        photometric_distortion=False,
        config_overrides={
            "encoder_layers": 1,
            "decoder_layers": 1,
            "spatial_branch_channels": [32, 64],
            "dropout": 0.0,
        },
        max_steps=80,
        train_batch_size=8,
        learning_rate=3e-3,
        backbone_lr_multiplier=1.0,
        logging_steps=10,
        eval_steps=40,
        max_eval_images=None,
        num_prediction_images=2,
    )
    losses = log_of(tmp_path)
    assert len(losses) == 8
    assert losses[-1] < 0.75 * losses[0]
    scores = log_of(tmp_path, "eval/mean_iou")
    assert len(scores) == 2
    assert scores[-1] == metrics["mean_iou"] > 0.4
    for name in ("predictions/step_40.png", "predictions/step_80.png", "loss_curve.png"):
        assert Image.open(tmp_path / name).width > 500
    # They show the user's data, and these folders are for others.
    assert not any(list((tmp_path / folder).glob("*.png")) for folder in ("model", "best_model"))
    segmenter = pipeline("image-segmentation", model=str(tmp_path / "best_model"))
    image, label_map = synthetic_scene(2**31, size=(64, 64), theme="synthetic_harbour")
    masks = {segment["label"]: np.array(segment["mask"]) > 0 for segment in segmenter(image)}
    assert (masks["sky"] == (np.array(label_map) == 0)).mean() > 0.8


@pytest.mark.parametrize(
    "through_launcher", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["processes", "launcher"]
)
def test_two_processes_with_half_batches_are_one_with_the_whole(processes, tmp_path, through_launcher):
    """Over 20 steps, with evaluation of a number of images that does not divide."""
    options = {
        "max_steps": 20,
        "freeze_batch_norm": True,
        "config_overrides": {**TINY_MODEL, "dropout": 0.0},
        "eval_steps": 10,
        "max_eval_images": 7,
        "dataloader_num_workers": 1,
    }
    if through_launcher:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        result = subprocess.run(
            [
                *(*launcher, "--master_port", str(free_port()), EXAMPLES / "run_semantic_segmentation.py"),
                *arguments(tmp_path / "two", **options),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    else:
        for process in start_together(processes, 2, arguments(tmp_path / "two", **options)):
            process.join()
            assert process.exitcode == 0
    run(tmp_path / "one", **options)
    for key in ("loss", "gradient_norm", "eval/mean_iou", "eval/overall_accuracy"):
        one, two = log_of(tmp_path / "one", key), log_of(tmp_path / "two", key)
        assert len(one) == len(two) == (2 if "eval" in key else 20)
        # Pixels that just pass the threshold of the direction loss make the gradient jump.
        rtol = 1e-2 if key == "gradient_norm" else 1e-4
        np.testing.assert_allclose(two, one, rtol=rtol)
    assert read_checkpoint(tmp_path / "two" / "checkpoint-20")["num_processes"] == 2
    assert (tmp_path / "two" / "checkpoint-20" / "random_states_1.pkl").is_file()


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


def test_accumulated_pieces_are_the_whole_batch(tmp_path):
    """Exactly so where each piece has as many labelled pixels, and without losses that balance classes."""
    options = {
        "config_overrides": {**TINY_MODEL, "dropout": 0.0, "use_boundary_heads": False},
        "ratio_range": [1.0, 1.0],
        "freeze_batch_norm": True,
        "evaluate": False,
    }
    run(tmp_path / "whole", **options)
    run(tmp_path / "pieces", **options, gradient_accumulation_steps=2)
    for key in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(log_of(tmp_path / "pieces", key), log_of(tmp_path / "whole", key), rtol=1e-4)
    assert not (tmp_path / "whole" / "best_model").exists()


def test_batch_norm_statistics_can_stay(tmp_path):
    run(tmp_path / "frozen", freeze_batch_norm=True, evaluate=False, max_steps=2)
    run(tmp_path / "free", evaluate=False, max_steps=2)
    frozen, free = (weights_of(tmp_path / name / "model") for name in ("frozen", "free"))
    statistics = [name for name in frozen if name.endswith("running_mean")]
    assert all(not frozen[name].any() and free[name].any() for name in statistics)
    affine = "model.spatial_branch.normalizations.0.weight"
    assert not torch.equal(frozen[affine], torch.ones_like(frozen[affine]))


def test_average_of_the_weights(tmp_path):
    """Recomputed from the weights after each step."""
    run(tmp_path, ema_decay=0.7, save_steps=1, save_total_limit=0)
    checkpoints = list_checkpoints(tmp_path)
    assert len(checkpoints) == 4
    average = None
    for checkpoint in checkpoints:
        weights = {name: tensor.double() for name, tensor in weights_of(checkpoint).items()}
        if average is None:
            average = weights
        average = {name: 0.7 * average[name] + 0.3 * weights[name] for name in weights}
        saved = weights_of(checkpoint, "average.safetensors")
        for name, tensor in saved.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-6)
    assert_same(weights_of(tmp_path / "model"), saved)


def test_memory_savers_and_trackers(tmp_path, recwarn):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(
        tmp_path,
        mixed_precision="bf16",
        gradient_checkpointing=True,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        report_to=["tensorboard"],
        max_steps=2,
        eval_steps=1,
        load_best_model_at_end=True,
    )
    assert not [warning for warning in recwarn if "gradient_checkpointing_enable" in str(warning.message)]
    assert all(np.isfinite(log_of(tmp_path)))
    assert weights_of(tmp_path / "model")["classifier.weight"].dtype == torch.float32
    assert_same(weights_of(tmp_path / "model"), weights_of(tmp_path / "best_model"))
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents*")).parent)).Reload()
    assert {"loss", "eval/mean_iou"} <= set(events.Tags()["scalars"])


def test_from_a_trained_model_to_other_classes(tmp_path, caplog):
    run(tmp_path / "first", max_steps=1, evaluate=False)
    first = weights_of(tmp_path / "first" / "model")
    write_image_folders(tmp_path / "data")
    run(
        tmp_path / "second",
        model_name_or_path=tmp_path / "first" / "model",
        config_overrides=None,
        dataset_name="image_folders",
        data_dir=tmp_path / "data",
        class_list=tmp_path / "data" / "classes.json",
        eval_fraction=0.25,
        learning_rate=0.0,
        weight_decay=0.0,
        lr_scheduler_type="step",
        max_steps=1,
    )
    assert "config_overrides" not in caplog.text
    second = weights_of(tmp_path / "second" / "model")
    assert second["classifier.weight"].shape[0] == 3
    assert torch.equal(first["model.query_embeddings"], second["model.query_embeddings"])
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "second" / "model").config.id2label[1] == "cat"


def test_pixels_are_normalized_as_the_model_knows_them(tmp_path):
    run(tmp_path / "new", max_steps=1, evaluate=False)
    new = UneptImageProcessor.from_pretrained(tmp_path / "new" / "model")
    assert (new.image_mean, new.image_std) == ((0.5,) * 3, (0.5,) * 3), "as timm has it for the backbone"
    new.image_mean = [0.1, 0.2, 0.3]
    new.save_pretrained(tmp_path / "new" / "model")
    trained = {"model_name_or_path": tmp_path / "new" / "model", "config_overrides": None}
    run(tmp_path / "again", max_steps=1, evaluate=False, **trained)
    again = UneptImageProcessor.from_pretrained(tmp_path / "again" / "model")
    assert (again.image_mean, again.image_std) == ((0.1, 0.2, 0.3), (0.5,) * 3)


def test_a_training_goes_on_with_its_normalization(tmp_path):
    """Checkpoints of earlier versions do not name it: their trainings normalized as for ImageNet."""
    options = {"evaluate": False, "resume_from_checkpoint": "latest"}
    for step, names_it, expected in ((1, True, 0.5), (2, True, 0.5), (3, False, 0.485), (4, True, 0.485)):
        if not names_it:
            checkpoint = tmp_path / f"checkpoint-{step - 1}" / "checkpoint.json"
            content = json.loads(checkpoint.read_text())
            del content["image_mean"], content["image_std"]
            checkpoint.write_text(json.dumps(content))
        run(tmp_path, max_steps=step, **options)
        assert UneptImageProcessor.from_pretrained(tmp_path / "model").image_mean[0] == expected


def test_overrides_that_change_a_trained_model_are_told(tmp_path, caplog):
    UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=2).save_pretrained(tmp_path)
    model_args = TrainingModelArguments(
        model_name_or_path=str(tmp_path), config_overrides={"decoder_self_attention": "pointwise"}
    )
    PartialState()  # its loggers ask for it
    building.load_model(model_args, 32, class_list_from_data(["a", "b"]), is_resumed=False)
    unused, new = (record.message for record in caplog.records if "config_overrides" in record.message)
    assert f"16 weights of {tmp_path} are not used: model.decoder_layers.0.self_attn.attention" in unused
    assert f"8 weights that {tmp_path} does not have start new: model.decoder_layers.0.self_attn.out_proj" in new


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r"At step 3 the loss is .*checkpoint-2") as error:
        run(tmp_path, learning_rate=1e30, warmup_steps=1, max_steps=10, save_steps=1, evaluate=False)
    assert "learning_rate" in str(error.value)
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path / "checkpoint-1").values())


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_killed_ten_times(processes, tmp_path):
    """At random moments, while steps are made and checkpoints written: the same bits as without."""
    options = {"max_steps": 24, "save_steps": 2, "ema_decay": 0.9, "seed": 5, "evaluate": False}
    whole = processes(arguments(tmp_path / "whole", **options))
    whole.join()
    assert whole.exitcode == 0
    killed = tmp_path / "killed"
    options.update(resume_from_checkpoint="latest", dataloader_num_workers=1)
    generator = random.Random()
    moments = []
    for _ in range(10):
        done = max([read_checkpoint(path)["step"] for path in list_checkpoints(killed)], default=0)
        step, delay = min(done + generator.randint(1, 4), 23), generator.uniform(0, 0.08)
        moments.append((step, round(delay, 3)))
        process = processes(arguments(killed, **options))
        wait_for_step(process, killed, step)
        time.sleep(delay)
        process.kill()
        process.join()
    last = processes(arguments(killed, **options))
    last.join()
    assert last.exitcode == 0, moments
    for name in ("model/model.safetensors", "checkpoint-24/model.safetensors", "checkpoint-24/average.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (name, moments)
    assert log_of(killed) == log_of(tmp_path / "whole"), moments
    assert log_of(killed, "step") == list(range(1, 25))
    assert [path.name for path in list_checkpoints(killed)] == ["checkpoint-22", "checkpoint-24"]


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(processes, tmp_path):
    """One of two processes gets the signal; both finish the step, and the training goes on as if nothing had been."""
    options = {"max_steps": 16, "eval_steps": 8, "max_eval_images": 1}

    def start(output_dir, world_size=2, **more):
        return start_together(processes, world_size, arguments(output_dir, **options, **more))

    stopped = start(tmp_path / "stopped")
    wait_for_step(stopped[0], tmp_path / "stopped", 4)
    os.kill(stopped[1].pid, signal.SIGTERM)
    for process in stopped:
        process.join()
        assert process.exitcode == 0
    (checkpoint,) = list_checkpoints(tmp_path / "stopped")
    step = read_checkpoint(checkpoint)["step"]
    assert 4 <= step < 16
    assert not (tmp_path / "stopped" / "model").exists()
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")

    # One pair after the other: with four processes on two cores, most of the time goes to waiting.
    for name, resumed in (("stopped", {"resume_from_checkpoint": "latest"}), ("whole", {})):
        for process in start(tmp_path / name, **resumed):
            process.join()
            assert process.exitcode == 0
    assert_same(weights_of(tmp_path / "stopped" / "model"), weights_of(tmp_path / "whole" / "model"))
    for key in ("loss", "eval/mean_iou"):
        assert log_of(tmp_path / "stopped", key) == log_of(tmp_path / "whole", key)

    # One process goes on from the checkpoint of two, with the same crops; dropout differs.
    (process,) = start(tmp_path / "alone", world_size=1, resume_from_checkpoint="latest")
    process.join()
    assert process.exitcode == 0
    np.testing.assert_allclose(
        log_of(tmp_path / "alone")[step : step + 2], log_of(tmp_path / "whole")[step : step + 2], rtol=0.1
    )


@pytest.mark.floor
def test_resume(tmp_path, caplog):
    options = {"save_steps": 2, "eval_steps": 2}
    run(tmp_path, **options)
    with pytest.raises(ValueError, match=r"has results \(checkpoint-4, model, best_model\): name another"):
        run(tmp_path, **options)
    options["resume_from_checkpoint"] = "latest"
    with pytest.raises(ValueError, match=r"train_batch_size was 4, now 8; seed was 0, now 1") as error:
        run(tmp_path, **options, train_batch_size=8, seed=1, logging_steps=2)
    assert "logging_steps" not in str(error.value)
    with pytest.raises(
        ValueError, match="num_synthetic_scenes was 10, now 12; the training set had 10 examples, now 12"
    ):
        run(tmp_path, **options, num_synthetic_scenes=12)
    with pytest.raises(ValueError, match="config_overrides was"):
        run(tmp_path, **options, config_overrides={**TINY_MODEL, "decoder_layers": 2})
    for name in (tmp_path / "checkpoint-2", "checkpoint-2"):
        with pytest.raises(ValueError, match=r"has other results \(checkpoint-4\)"):
            run(tmp_path, **{**options, "resume_from_checkpoint": name})
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3 is not a checkpoint .* Resume from checkpoint-4"):
        run(tmp_path, **{**options, "resume_from_checkpoint": "checkpoint-3"})
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"has other results \(checkpoint-4\)"):
        run(tmp_path, **{**options, "resume_from_checkpoint": tmp_path / "other" / "checkpoint-4"})

    # Finished: nothing is left to do but to write the model again, with what was measured.
    assert run(tmp_path, **options)["mean_iou"] == log_of(tmp_path, "eval/mean_iou")[-1]
    assert len(log_of(tmp_path)) == 4
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(tmp_path, **options, max_steps=6)
    assert "max_steps was 4, now 6" in caplog.text
    assert log_of(tmp_path, "step") == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    # Polynomial to 1e-7, at first over four steps and then over six.
    expected = [1e-3 - (1e-3 - 1e-7) * step / (4 if step < 4 else 6) for step in range(6)]
    np.testing.assert_allclose(log_of(tmp_path, "learning_rate"), expected)

    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoint-6 is damaged; remove it and resume from checkpoint-4"):
        run(tmp_path, **options, max_steps=8)


@pytest.mark.parametrize("file", ["optimizer.bin", "scheduler.bin"])
def test_a_checkpoint_that_would_run_code(file, tmp_path):
    """Its list of hashes fits."""
    options = {"evaluate": False, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options)
    checkpoint = tmp_path / "checkpoint-4"
    torch.save(Poison(), checkpoint / file)
    content = (checkpoint / file).read_bytes()
    description = json.loads((checkpoint / "checkpoint.json").read_text())
    description["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"checkpoint-4 .* cannot be loaded safely") as error:
        run(tmp_path, **options, max_steps=5)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


def test_a_trained_model_that_would_run_code(tmp_path):
    folder = tmp_path / "poisoned"
    UneptConfig.from_preset("unept-tiny", **TINY_MODEL, num_labels=3).save_pretrained(folder)
    torch.save({"classifier.bias": Poison()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"poisoned .* cannot be loaded safely") as error:
        run(tmp_path / "run", model_name_or_path=folder, config_overrides=None)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


def test_two_trainings_in_one_folder(processes, tmp_path):
    first = processes(arguments(tmp_path, max_steps=1000, evaluate=False, save_steps=2))
    wait_for_step(first, tmp_path, 1)
    with pytest.raises(BlockingIOError, match=rf"in use by another training, process {first.pid} on "):
        run(tmp_path, resume_from_checkpoint="latest")
    assert first.exitcode is None
    wait_for_step(first, tmp_path, log_of(tmp_path, "step")[-1] + 3)
    first.kill()
    first.join()
    step = read_checkpoint(list_checkpoints(tmp_path)[-1])["step"]
    run(tmp_path, max_steps=step + 1, evaluate=False, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step") == list(range(1, step + 2))


def change_random_states(checkpoint: Path, change) -> None:
    """As if they had been saved like this: with their hash."""
    file = checkpoint / "random_states_0.pkl"
    change(file)
    content = json.loads((checkpoint / "checkpoint.json").read_text())
    if file.is_file():
        data = file.read_bytes()
        content["files"][file.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        del content["files"][file.name]
    (checkpoint / "checkpoint.json").write_text(json.dumps(content))


def drop_numpy(file: Path) -> None:
    states = torch.load(file, weights_only=False)
    del states["numpy_random_seed"]
    torch.save(states, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "FileNotFoundError"),
        (lambda file: file.write_bytes(b"nothing"), "Error: "),
        (drop_numpy, "KeyError: 'numpy_random_seed'"),
    ],
    ids=["missing", "broken", "incomplete"],
)
def test_random_states_that_are_not_restored(change, reason, tmp_path, caplog):
    options = {"max_steps": 1, "evaluate": False, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options)
    run(tmp_path, **options)
    message = "Process 0 cannot restore the random states of "
    assert message not in caplog.text
    change_random_states(tmp_path / "checkpoint-1", change)
    run(tmp_path, **options)
    (line,) = (record.message for record in caplog.records if message in record.message)
    assert reason in line and "dropout draws other numbers" in line


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("accelerate.checkpointing.save", OSError(errno.ENOSPC, "No space left on device")),
        ("accelerate.checkpointing.save", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        ("unept_hf.training.checkpoints._sync", OSError(errno.EDQUOT, "Disk quota exceeded")),
        ("matplotlib.figure.Figure.savefig", OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=["checkpoint", "weights", "optimizer", "quota", "picture"],
)
def test_full_disk(target, error, tmp_path, monkeypatch):
    run(tmp_path, max_steps=1, evaluate=False)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(target, fail)
    message = (
        rf"No space left on the disk \(.*MB are free in .*The last whole checkpoint is {tmp_path}/checkpoint-\d\. "
    )
    with pytest.raises(OSError, match=message) as raised:
        run(tmp_path, max_steps=2, evaluate=False, resume_from_checkpoint="latest")
    assert raised.value.__cause__ is error
    assert not list(tmp_path.glob(".unfinished*"))
    monkeypatch.undo()
    run(tmp_path, max_steps=2, evaluate=False, resume_from_checkpoint="latest")
    assert log_of(tmp_path, "step") == [1, 2]


def test_killed_while_models_are_written(tmp_path, monkeypatch):
    """The best model is found again, what was half written goes, and the final model is there as a whole or not."""
    options = {"max_steps": 2, "load_best_model_at_end": True, "resume_from_checkpoint": "latest"}

    def copy_half(source, target, **kwargs):
        shutil.copy(source / "config.json", target)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(trainer.shutil, "copytree", copy_half)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **options)
    assert not (tmp_path / "model").exists()
    best = weights_of(tmp_path / "best_model")
    leftover = tmp_path / ".best_model.abc"
    leftover.mkdir()
    shutil.copytree(tmp_path / "best_model", leftover / "replaced")
    (tmp_path / "best_model").rename(leftover / "written")
    (tmp_path / ".model.abc" / "written").mkdir(parents=True)
    run(tmp_path, **options)
    assert not list(tmp_path.glob(".*"))
    for name in ("best_model", "model"):
        assert_same(weights_of(tmp_path / name), best)


def test_latest_without_a_checkpoint_starts_anew(tmp_path):
    run(tmp_path, resume_from_checkpoint="latest", max_steps=1, evaluate=False)
    assert log_of(tmp_path, "step") == [1]


# ---- data sets -----------------------------------------------------------------------------------------------------


def scene(index: int) -> tuple[Image.Image, np.ndarray]:
    """A scene of one of three sizes, and its label map with values 0 to 5."""
    image, label_map = synthetic_scene(index, size=((40, 48), (48, 40), (64, 56))[index % 3])
    return image, np.array(label_map) % 6


def save_image(image: "Image.Image | np.ndarray", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def write_ade20k(folder: Path) -> None:
    for split, name in (("training", "train"), ("validation", "val")):
        for index in range(4):
            image, label_map = scene(index)
            save_image(image, folder / "images" / split / f"ADE_{name}_{index:08d}.jpg")
            save_image(label_map * 20, folder / "annotations" / split / f"ADE_{name}_{index:08d}.png")


def write_cityscapes(folder: Path) -> None:
    for split in ("train", "val"):
        for index in range(4):
            image, label_map = scene(index)
            name = f"aachen/aachen_{index:06d}_000019"
            save_image(image, folder / "leftImg8bit" / split / f"{name}_leftImg8bit.png")
            save_image(label_map + np.uint8(4), folder / "gtFine" / split / f"{name}_gtFine_labelIds.png")
            save_image(label_map, folder / "gtFine" / split / f"{name}_gtFine_color.png")


def write_pascal_context(folder: Path) -> None:
    for index in range(8):
        image, label_map = scene(index)
        save_image(image, folder / "JPEGImages" / f"2008_{index:06d}.jpg")
        save_image(label_map * 9, folder / "SegmentationClassContext" / f"2008_{index:06d}.png")
    for split, indices in (("train", range(4)), ("val", range(4, 8))):
        listing = folder / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"2008_{index:06d}\n" for index in indices))


def write_image_folders(folder: Path) -> None:
    for index in range(8):
        image, label_map = scene(index)
        save_image(image, folder / "images" / f"{index}.jpg")
        save_image(label_map % 3, folder / "masks" / f"{index}.png")
    (folder / "classes.json").write_text('["background", "cat", "dog"]')


@pytest.mark.parametrize(
    ("dataset_name", "write", "num_labels"),
    [
        ("ade20k", write_ade20k, 150),
        ("cityscapes", write_cityscapes, 19),
        ("pascal_context_59", write_pascal_context, 59),
        ("pascal_context_60", write_pascal_context, 60),
    ],
)
def test_official_layouts_train_and_evaluate(dataset_name, write, num_labels, tmp_path):
    """Small trees in the layout of the releases, with whole images and with windows."""
    write(tmp_path / "data")
    options = {"dataset_name": dataset_name, "data_dir": tmp_path / "data", "max_steps": 2, "max_eval_images": None}
    for mode in ("whole", "slide"):
        metrics = run(tmp_path / mode, **options, evaluation_mode=mode)
        assert 0 <= metrics["mean_iou"] <= 1
        assert 0 <= metrics["overall_accuracy"] <= 1
        assert len(log_of(tmp_path / mode)) == 2
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "whole" / "model").config
    assert config.num_labels == num_labels
    assert config.id2label == load_class_list(dataset_name).id2label


def test_image_folders_need_something_to_evaluate_on(tmp_path):
    write_image_folders(tmp_path / "data")
    options = {
        "dataset_name": "image_folders",
        "data_dir": tmp_path / "data",
        "class_list": tmp_path / "data" / "classes.json",
        "max_steps": 1,
    }
    with pytest.raises(ValueError, match="eval_fraction takes a share of the training set"):
        run(tmp_path / "run", **options)
    run(tmp_path / "run", **options, eval_fraction=0.25)
    assert read_checkpoint(tmp_path / "run" / "checkpoint-1")["num_examples"] == 6
    assert run(tmp_path / "run", **options, eval_fraction=0.25, resume_from_checkpoint="latest")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "a held-out share" in card
    assert card == (tmp_path / "run" / "best_model" / "README.md").read_text() and "\n# run\n" in card
    assert str(tmp_path) not in card and "classes.json" not in card
    assert (
        "of a private data set" in card
        and "Evaluated on a private data set (split `a held-out share of train`), 2 images" in card
    )
    results = ModelCard(card).data.eval_results
    assert {(one.dataset_name, one.dataset_type) for one in results} == {("a private data set",) * 2}
    assert {one.dataset_split for one in results} == {"a held-out share of train"}


def test_replaced_data_is_noticed(tmp_path, caplog):
    write_image_folders(tmp_path / "data")
    options = {
        "dataset_name": "image_folders",
        "data_dir": tmp_path / "data",
        "class_list": tmp_path / "data" / "classes.json",
        "max_steps": 1,
        "evaluate": False,
        "resume_from_checkpoint": "latest",
    }

    def warnings_of_a_resume() -> list[str]:
        caplog.clear()
        run(tmp_path / "run", **options)
        return [record.message for record in caplog.records if "the data was replaced" in record.message]

    assert not warnings_of_a_resume()
    assert not warnings_of_a_resume()
    checkpoint = tmp_path / "run" / "checkpoint-1" / "checkpoint.json"
    written = checkpoint.read_text()

    # The same data in another place is not other data.
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    options["data_dir"] = tmp_path / "moved"
    assert not warnings_of_a_resume()
    for folder, name in (("images", "7.jpg"), ("masks", "7.png")):
        path = tmp_path / "moved" / folder / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0")
        (message,) = warnings_of_a_resume()
        assert "its files have other sizes. If" in message
        path.write_bytes(whole)
    for path in (*(tmp_path / "moved" / "images").glob("7.*"), *(tmp_path / "moved" / "masks").glob("7.*")):
        path.rename(path.with_stem("8"))
    (message,) = warnings_of_a_resume()
    assert "its files have other names. If" in message

    # Checkpoints of earlier versions do not know.
    content = json.loads(written)
    del content["data_fingerprint"]
    checkpoint.write_text(json.dumps(content))
    assert not warnings_of_a_resume()


def test_a_bad_mask_ends_the_process(processes, tmp_path):
    """Its data loader workers ignore signals, and Python waits for them. The error is one line all the same."""
    write_image_folders(tmp_path / "data")
    for index in range(6):
        save_image(np.full((64, 64), 40 + index, dtype=np.uint8), tmp_path / "data" / "masks" / f"{index}.png")
        save_image(np.zeros((64, 64, 3), dtype=np.uint8), tmp_path / "data" / "images" / f"{index}.jpg")
    options = {"dataset_name": "image_folders", "data_dir": tmp_path / "data", "evaluate": False}
    class_list = tmp_path / "data" / "classes.json"
    options = arguments(tmp_path / "run", **options, class_list=class_list, dataloader_num_workers=2)
    process = processes(options, errors=tmp_path / "errors")
    process.join(60)
    assert process.exitcode == 1
    (line,) = told_errors(tmp_path / "errors")
    assert line.startswith("train.py: error: ")
    assert str(tmp_path / "data" / "masks") in line


def test_streaming(tmp_path):
    """A data set on the disk, resumed: as if in one go."""
    columns = {"picture": [], "annotation": []}
    for index in range(6):
        image, label_map = scene(index)
        columns["picture"].append(image)
        columns["annotation"].append(Image.fromarray(label_map % 3))
    features = datasets.Features({name: datasets.Image() for name in columns})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "data")
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    options = {
        "dataset_name": tmp_path / "data",
        "image_column": "picture",
        "label_column": "annotation",
        "class_list": tmp_path / "classes.json",
        "eval_split": "train",
        "streaming": True,
        "shuffle_buffer_size": 4,
    }
    run(tmp_path / "whole", **options)
    run(tmp_path / "parts", **options, max_steps=2, lr_scheduler_type="step")
    run(tmp_path / "other", **options, lr_scheduler_type="step")
    run(tmp_path / "parts", **options, lr_scheduler_type="step", resume_from_checkpoint="latest")
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "other")
    assert log_of(tmp_path / "whole")[0] == log_of(tmp_path / "parts")[0]


def test_documented_trainer(monkeypatch, tmp_path):
    """transformers' own, as docs/training.md shows it."""
    text = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = (block.split("```")[0] for block in text.split("```python\n")[1:])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "training.md", "exec"), names)
    assert 0 < names["metrics"]["mean_iou"] < 1
    assert names["trainer"].state.global_step == 5


# ---- the Hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pictures", [None, True], ids=["default", "pictures"])
def test_push_to_hub(pictures, monkeypatch, tmp_path):
    uploads = []
    created = type("Url", (), {"repo_id": "someone/scenes"})
    monkeypatch.setattr(trainer, "whoami", lambda: {"name": "someone"})
    monkeypatch.setattr(trainer, "create_repo", lambda name, **kwargs: uploads.append((name, kwargs)) or created)
    monkeypatch.setattr(trainer, "upload_folder", lambda **kwargs: uploads.append(kwargs))
    metrics = run(
        tmp_path / "run",
        max_steps=2,
        push_to_hub=True,
        hub_model_id="someone/scenes",
        hub_private_repo=True,
        hub_prediction_pictures=pictures,
        license="mit" if pictures else None,
        seed=7,
    )
    (name, options), upload = uploads
    assert (name, options) == ("someone/scenes", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("someone/scenes", tmp_path / "run" / "model")
    folder = upload["folder_path"]
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_unept.py"} < files
    card = ModelCard.load(folder / "README.md")
    assert ("predictions.png" in files) == ("](predictions.png)" in card.text) == bool(pictures)
    assert card.data.license == ("mit" if pictures else None)
    assert (tmp_path / "run" / "predictions" / "step_2.png").is_file()
    assert "timm `test_resnet`, which started from random weights" in card.text
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "transformers"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["mean_iou"] == round(metrics["mean_iou"], 4)
    assert {(one.dataset_name, one.dataset_split) for one in card.data.eval_results} == {("synthetic", "validation")}
    text = card.text
    assert "Evaluated on synthetic (split `validation`), 3 images with mode whole" in text
    assert 'repository = "someone/scenes"' in text
    assert f"| mean IoU | {metrics['mean_iou']:.4f} |" in text
    assert "Trained for 2 steps of 4 crops (32 x 32)" in text
    options = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert options["seed"] == 7
    assert options["config_overrides"] == TINY_MODEL
    assert str(tmp_path) not in text


def test_pictures_and_license_are_those_of_the_run_that_finishes(tmp_path):
    """Not those of the run that wrote the best model."""
    options = {"load_best_model_at_end": True, "resume_from_checkpoint": "latest"}
    run(tmp_path, **options, hub_prediction_pictures=True, license="mit")
    best, card = tmp_path / "best_model", (tmp_path / "model" / "README.md").read_text()
    assert (tmp_path / "model" / "predictions.png").is_file()
    assert card == (best / "README.md").read_text() and "](predictions.png)" in card and "license: mit" in card
    run(tmp_path, **options)
    assert (best / "predictions.png").is_file()
    assert not (tmp_path / "model" / "predictions.png").exists()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "predictions.png" not in card and "license: mit" not in card and "Evaluated on synthetic" in card


def test_cards_say_what_the_backbone_started_from(tmp_path, monkeypatch):
    def started_from(folder):
        card = (folder / "model" / "README.md").read_text()
        assert str(tmp_path) not in card and "secret" not in card
        return card.partition("which started from ")[2].partition(".\n")[0]

    options = {"max_steps": 1, "evaluate": False}
    config = UneptConfig.from_preset("unept-tiny", **TINY_MODEL, num_labels=3)
    model = UneptForSemanticSegmentation(config)
    model.model.backbone.save_pretrained(tmp_path / "secret")
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "file", **options, backbone_checkpoint="secret")
    assert started_from(tmp_path / "file") == "a checkpoint file"
    # A run that goes on need not name it again.
    run(tmp_path / "file", **options | {"max_steps": 2}, resume_from_checkpoint="latest")
    run(tmp_path / "file", **options | {"max_steps": 3}, resume_from_checkpoint="latest")
    assert started_from(tmp_path / "file") == "a checkpoint file"
    model.save_pretrained(tmp_path / "secret")
    run(tmp_path / "trained", **options, model_name_or_path="secret", config_overrides=None)
    assert started_from(tmp_path / "trained") == "a trained model"
    # Elsewhere, the name of its folder could be taken for one on the Hub.
    options |= {"config_overrides": None}
    (tmp_path / "elsewhere").mkdir()
    preset = UneptForSemanticSegmentation.from_preset("unept-tiny", query_grid_size=(4, 4), num_labels=3)
    preset.save_pretrained(tmp_path / "secret" / "model")
    run(tmp_path / "moved", **options, model_name_or_path="secret/model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(tmp_path / "moved", **options | {"max_steps": 2}, resume_from_checkpoint="latest")
    assert started_from(tmp_path / "moved") == "a trained model"
    weights = model.model.backbone.state_dict()
    monkeypatch.setattr(UneptForSemanticSegmentation, "load_pretrained_backbone", lambda *_: weights)
    run(tmp_path / "timm", **options, use_pretrained_backbone=True)
    assert started_from(tmp_path / "timm") == "timm's pretrained weights"


def test_push_to_hub_asks_for_a_login_first(monkeypatch, tmp_path):
    def whoami():
        raise OSError("not logged in")

    monkeypatch.setattr(trainer, "whoami", whoami)
    with pytest.raises(OSError, match="not logged in"):
        run(tmp_path, push_to_hub=True)
    assert not list(tmp_path.rglob("*.jsonl"))
