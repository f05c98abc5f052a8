# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training learns, from which data, and the models that it writes and uploads."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import PartialState
from huggingface_hub import ModelCard
from PIL import Image
from training_runs import (
    EXAMPLES,
    TINY_MODEL,
    assert_same,
    log_of,
    new_state,
    run,
    save_image,
    scene,
    weights_of,
    write_image_folders,
)
from transformers import AutoModelForSemanticSegmentation, pipeline

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import class_list_from_data, load_class_list
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.evaluation.metrics import scores_from_confusion_matrix
from unept_hf.model.configuration_unept import CONVENTIONS
from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.training import building, trainer
from unept_hf.training.arguments import TrainingModelArguments
from unept_hf.training.checkpoints import list_checkpoints, read_checkpoint


def test_without_a_mean_iou_the_last_model_is_the_final_one(tmp_path, monkeypatch):
    nothing = dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy", "seconds"), float("nan"))
    nothing |= {"loss": float("nan"), "num_images": 1, "per_category": {"sky": {"iou": float("nan")}}}
    monkeypatch.setattr(trainer, "evaluate_model", lambda *args, **kwargs: nothing)
    run(tmp_path, max_steps=1, load_best_model_at_end=True)
    # As JSON, which has no NaN.
    assert '"eval/mean_iou": null' in (tmp_path / "training_log.jsonl").read_text()
    assert '"eval/iou/sky": null' in (tmp_path / "training_log.jsonl").read_text()
    assert "NaN" not in (tmp_path / "training_log.jsonl").read_text()
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "best_model").exists()


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
    # The cross entropy falls in evaluation as in training, and each class has its IoU.
    evaluated, trained = (log_of(tmp_path, key) for key in ("eval/loss", "loss/segmentation"))
    assert evaluated[1] < evaluated[0] < trained[0] and len(trained) == 8
    assert log_of(tmp_path, "eval/loss")[1] == pytest.approx(trained[-1], rel=0.5)
    names = load_class_list("synthetic_harbour").label2id
    by_class = [log_of(tmp_path, f"eval/iou/{name}")[1] for name in names]
    assert np.mean(by_class) == pytest.approx(scores[-1])
    with (tmp_path / "training_log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "30", "40", "50", "60", "70", "80"]
    assert float(rows[3]["eval/loss"]) == evaluated[0] and float(rows[3]["loss"]) == losses[3]
    assert rows[0]["eval/loss"] == "" and float(rows[0]["learning_rate"]) > float(rows[-1]["learning_rate"])
    for name in ("predictions/step_40.png", "predictions/step_80.png", "loss_curve.png"):
        assert Image.open(tmp_path / name).width > 500
    # They show the user's data, and these folders are for others.
    assert not any(list((tmp_path / folder).glob("*.png")) for folder in ("model", "best_model"))
    segmenter = pipeline("image-segmentation", model=str(tmp_path / "best_model"))
    image, label_map = synthetic_scene(2**31, size=(64, 64), theme="synthetic_harbour")
    masks = {segment["label"]: np.array(segment["mask"]) > 0 for segment in segmenter(image)}
    assert (masks["sky"] == (np.array(label_map) == 0)).mean() > 0.8


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
    assert {"loss", "loss/boundary", "eval/mean_iou", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [picture.step for picture in events.Images("predictions")] == [1, 2]
    assert events.Images("predictions")[0].width == Image.open(tmp_path / "predictions" / "step_1.png").width


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


def test_original_conventions(tmp_path, caplog):
    """In a new model, and in one that is trained on; the default keeps what that one has."""
    overrides = {**TINY_MODEL, "loss_reduction": "valid"}
    options = {"evaluate": False, "max_steps": 1, "conventions": "original"}
    run(tmp_path / "new", config_overrides=overrides, **options)
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (chosen,) = [message for message in messages if "conventions" in message]
    assert "loss_reduction='all', but config_overrides set 'valid', which counts" in chosen
    (crops,) = [message for message in messages if "'batch'" in message]
    assert "the 4 crop(s) that a process takes at once attend to each other. The original takes 2" in crops
    config = UneptConfig.from_pretrained(tmp_path / "new" / "model")
    assert {name: getattr(config, name) for name in CONVENTIONS["original"]} == {
        **CONVENTIONS["original"],
        "loss_reduction": "valid",
    }

    caplog.clear()
    trained = {"model_name_or_path": tmp_path / "new" / "model", "config_overrides": None, "train_batch_size": 2}
    for conventions, reduction, pixels in (
        (None, "valid", 100),
        ("original", "all", 100),
        ("corrected", "valid", 0),
    ):
        new_state()
        output_dir = tmp_path / str(conventions)
        run(output_dir, **{**options, **trained, "conventions": conventions})
        config = UneptConfig.from_pretrained(output_dir / "model")
        found = (config.decoder_self_attention, config.loss_reduction, config.min_boundary_class_pixels)
        assert found == ("batch", reduction, pixels)
    assert not [record.message for record in caplog.records if "attend to each other" in record.message]


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r"At step 3 the loss is .*checkpoint-2") as error:
        run(tmp_path, learning_rate=1e30, warmup_steps=1, max_steps=10, save_steps=1, evaluate=False)
    assert "learning_rate" in str(error.value)
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path / "checkpoint-1").values())


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
    class_list = load_class_list(dataset_name)
    assert config.id2label == class_list.id2label
    assert config.class_colors == ["#{:02x}{:02x}{:02x}".format(*color) for color in class_list.palette]


def test_image_folders_need_something_to_evaluate_on(tmp_path):
    options = write_image_folders(tmp_path / "data") | {"max_steps": 1}
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


def test_training_on_train_and_validation(tmp_path, caplog):
    """It evaluates on neither of them, and names the danger of test images."""
    for split, number in (("train", 3), ("validation", 2), ("test", 1)):
        for index in range(number):
            image, label_map = scene(index)
            save_image(image, tmp_path / "images" / split / f"{index}.jpg")
            save_image(label_map % 3, tmp_path / "masks" / split / f"{index}.png")
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    options = {"dataset_name": "image_folders", "data_dir": tmp_path, "class_list": tmp_path / "classes.json"}
    options |= {"train_split": "train+validation", "max_steps": 1}
    caplog.set_level("INFO")
    assert run(tmp_path / "plain", **options) == {}
    assert "No evaluation, because train_split=train+validation" in caplog.text
    assert read_checkpoint(tmp_path / "plain/checkpoint-1")["num_examples"] == 5
    assert not (tmp_path / "plain/best_model").exists()
    assert run(tmp_path / "test", **options, eval_split="test")["num_images"] == 1
    assert "eval_split=test: best_model is the one that is best on these test images" in caplog.text
    run(tmp_path / "known", **options, eval_split="val")
    assert "eval_split=val: the images of val are trained on too" in caplog.text


def test_documented_trainer(monkeypatch, tmp_path):
    """transformers' own, as docs/training.md shows it."""
    text = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = (block.split("```")[0] for block in text.split("```python\n")[1:])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "training.md", "exec"), names)
    assert 0 < names["metrics"]["mean_iou"] < 1
    assert names["trainer"].state.global_step == 5
    # Images of several sizes, each of which an evaluation of its own measures as well.
    rows = []
    for index, size in enumerate(((128, 128), (128, 192), (192, 128))):
        image, label_map = synthetic_scene(index, size=size)
        rows.append({"image": image, "label": label_map})
    features = datasets.Features({name: datasets.Image(decode=False) for name in ("image", "label")})
    mixed = datasets.Dataset.from_list(rows, features=features)
    found = names["trainer"].evaluate(mixed.with_transform(names["make_images"]))
    assert np.isfinite(found["eval_loss"])
    expected = evaluate_model(names["model"], names["processor"], mixed, names["class_list"], progress=False)
    # The padding changes little nearby. The module counts classes that are predicted alone as 0.
    mean_iou = scores_from_confusion_matrix(np.array(expected["confusion_matrix"]))["mean_iou"]
    assert found["eval_mean_iou"] == pytest.approx(mean_iou, abs=0.03)


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
