# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Training on a directory of which nothing is said: the choices, their file, and a dry run."""

import logging

import numpy as np
import PIL.Image
import pytest
import yaml
from training_runs import arguments

from unept_hf.training import automatic_options as automatic
from unept_hf.training.arguments import parse_arguments
from unept_hf.training.run import main


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """25 images of 96 x 72 pixels with two classes; working directory."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for index in range(25):
        mask = np.zeros((72, 96), np.uint8)
        top, left = generator.integers(0, 40, 2)
        mask[top : top + 30, left : left + 40] = 1
        pixels = np.where(mask[..., None] == 1, (200, 60, 40), (60, 120, 60)) + generator.integers(
            -20, 20, (72, 96, 3)
        )
        for folder, array in (("images", pixels.astype(np.uint8)), ("masks", mask)):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(tmp_path / "photos" / folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_directory_alone(photos, caplog):
    with caplog.at_level(logging.INFO):
        model_args, data_args, run_args = parse_arguments(["--data_dir", "photos", "--cpu", "--disable_tqdm"])
    assert model_args.model_name_or_path.endswith("street_photos")
    assert (data_args.dataset_name, data_args.eval_fraction) == ("image_folders", 0.1)
    assert (data_args.crop_size, min(data_args.scale)) == (256, 256)
    assert run_args.output_dir == "runs/photos"
    assert run_args.max_steps == 300 and run_args.load_best_model_at_end
    counts = "25 images to train on and none to evaluate on, of about 96 x 72"
    for words in (counts, "values in all masks", "300 steps"):
        assert words in caplog.text
    run = photos.parent / "runs" / "photos"
    written = yaml.safe_load((run / "options.yaml").read_text())
    assert written["crop_size"] == 256
    assert (run / "classes.json").is_file()

    # The file counts from now on, so that it can be changed, and words of the command line win over it.
    written["crop_size"] = 128
    (run / "options.yaml").write_text(yaml.safe_dump(written))
    words = ["--data_dir", "photos", "--preset", "unept-tiny", "--max_steps=7"]
    model_args, data_args, run_args = parse_arguments(words)
    assert (model_args.preset, model_args.model_name_or_path) == ("unept-tiny", None)
    assert (data_args.crop_size, run_args.max_steps) == (128, 7)


def test_options_of_other_data(photos):
    parse_arguments(["--data_dir", "photos", "--disable_tqdm"])
    photos.rename("elsewhere")
    with pytest.raises(ValueError, match=r"runs/photos/options\.yaml has the options of other data, photos"):
        parse_arguments(["--data_dir", "elsewhere", "--output_dir", "runs/photos"])
    with pytest.raises(ValueError, match="no_such_list"):
        parse_arguments(["--data_dir", "elsewhere", "--class_list", "no_such_list"])
    assert not (photos.parent / "runs" / "elsewhere").exists()


def test_choices_fit_the_machine(monkeypatch):
    found = automatic.FoundDataset({"dataset_name": "image_folders"}, None, 1000, 100, (1080, 1920), [])
    for free, pieces in ((64e9, 1), (8e9, 8), (1e9, 16)):
        monkeypatch.setattr(automatic.torch.cuda, "mem_get_info", lambda free=free: (free, 80e9))
        monkeypatch.setattr(automatic.torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        options, reasons = automatic._options_for(found, is_gpu=True)
        assert (options["train_batch_size"], options["gradient_accumulation_steps"]) == (16, pieces)
        assert options["preset"] == "unept-resnet50" and options["crop_size"] == 480
        assert "eval_fraction" not in options
        assert any(f"16 crops in a step, {16 // pieces} at once" in reason for reason in reasons)


def test_several_processes_share_a_file(photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"--dry_run. once, and launch the processes with runs/photos/options\.yaml"):
        parse_arguments(["--data_dir", "photos"])


def test_dry_run(photos):
    words = ["--data_dir", "photos", "--cpu", "--disable_tqdm", "--dataloader_num_workers", "0", "--max_steps", "2"]
    words += ["--train_batch_size", "2", "--gradient_accumulation_steps", "1", "--warmup_steps", "0"]
    words += ["--crop_size", "64", "--scale", "128", "64"]
    assert main([*words, "--dry_run"]) == {}
    run = photos.parent / "runs" / "photos"
    assert PIL.Image.open(run / "first_crops.png").width > 400
    assert not (run / "model").exists()
    assert main(words)["mean_iou"] > 0
    assert (run / "model" / "config.json").is_file()


def test_learning_rate_range(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        main(arguments(tmp_path, max_steps=4, lr_range_test=True, warmup_steps=2, train_batch_size=1))
    assert "The loss is lowest at a learning rate of" in caplog.text
    rows = np.genfromtxt(tmp_path / "learning_rate_range.csv", delimiter=",", names=True)
    rates, losses = rows["learning_rate"], rows["loss"]
    assert rates[0] == pytest.approx(1e-6)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e5 ** (1 / 99))
    assert rows["smoothed_loss"][1] == pytest.approx((0.9 * losses[0] + losses[1]) / 1.9)
    assert PIL.Image.open(tmp_path / "learning_rate_range.png").width > 500
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob("checkpoint-*"))
