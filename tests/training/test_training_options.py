# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of the trainer, from files and command lines, and what they build."""

import json
import os

import numpy as np
import pytest
import timm
import torch
import yaml
from timm.optim import param_groups_layer_decay
from training_runs import EXAMPLES, TINY_MODEL, arguments, run
from transformers import ResNetConfig

from unept_hf import UneptConfig, UneptForSemanticSegmentation
from unept_hf.data.class_lists import available_class_lists, class_list_from_data, load_class_list
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.data.statistics import class_weights
from unept_hf.model.configuration_unept import CONVENTIONS
from unept_hf.training import building
from unept_hf.training.arguments import RunArguments, TrainingModelArguments, common_splits, parse_arguments


CONFIGS = sorted((EXAMPLES / "configs").glob("*.yaml"))


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="fields that UneptConfig does not know: hiden_size"):
        run(tmp_path, config_overrides='{"hiden_size": 3}')
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs .* does not fit lr_scheduler_type cosine"):
        run(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs='{"power": 0.9}')


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


def test_config_overrides_win_over_conventions(tmp_path):
    (tmp_path / "options.yaml").write_text(
        "dataset_name: synthetic\noutput_dir: runs\npreset: unept-tiny\nconventions: original\n"
        "config_overrides: {decoder_self_attention: pointwise}\n"
    )
    words = [str(tmp_path / "options.yaml"), "--config_overrides", '{"min_boundary_class_pixels": 7}']
    config = building.make_config(parse_arguments(words)[0], 32, class_list_from_data(["a", "b"]))
    overrides = {"decoder_self_attention": "pointwise", "min_boundary_class_pixels": 7}
    expected = {**CONVENTIONS["original"], **overrides}
    assert {name: getattr(config, name) for name in expected} == expected
    corrected = parse_arguments([*words, "--conventions", "corrected"])[0]
    config = building.make_config(corrected, 32, class_list_from_data(["a", "b"]))
    expected = {**CONVENTIONS["corrected"], **overrides}
    assert {name: getattr(config, name) for name in expected} == expected


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


@pytest.mark.parametrize(
    ("in_file", "words", "expected"),
    [
        ({"backbone": "a"}, ["--backbone", "b"], ("b", None, {"dropout": 0.0})),
        ({"backbone": "a"}, ["--preset", "unept-tiny"], (None, None, {"dropout": 0.0})),
        ({"backbone": "a"}, ["--model_name_or_path", "m"], (None, "m", {"dropout": 0.0})),
        ({"model_name_or_path": "m"}, ["--backbone", "b"], ("b", None, {"dropout": 0.0})),
        (
            {
                "config_overrides": {
                    "dropout": 0.0,
                    "backbone_config": {"backbone": "a", "model_args": {"img_size": 480}},
                }
            },
            ["--backbone", "b", "--config_overrides", '{"hidden_size": 64}'],
            ("b", None, {"dropout": 0.0, "hidden_size": 64}),
        ),
    ],
)
def test_the_backbone_of_the_command_line_wins(in_file, words, expected, tmp_path):
    file = tmp_path / "options.yaml"
    options = {"dataset_name": "synthetic", "output_dir": "runs", "config_overrides": {"dropout": 0.0}}
    file.write_text(yaml.safe_dump({**options, **in_file}))
    args = parse_arguments([str(file), *words])[0]
    assert (args.backbone, args.model_name_or_path, args.config_overrides) == expected


@pytest.mark.parametrize(
    ("name", "overrides", "indices"),
    [
        ("vit_tiny_patch16_224", {}, [3, 7, 11]),
        ("vit_tiny_patch16_224", {"num_feature_levels": 1}, [11]),
        ("vit_tiny_patch16_224", {"backbone_config": {"model_args": {"depth": 6}}}, [1, 3, 5]),
        ("convnext_atto", {}, [1, 2, 3]),
        ("convnext_atto", {"backbone_config": {"out_indices": [0, 1, 2]}}, [0, 1, 2]),
    ],
)
def test_backbone_in_place_of_that_of_a_preset(name, overrides, indices):
    model_args = TrainingModelArguments(preset="unept-tiny", backbone=name, config_overrides=overrides)
    config = building.make_config(model_args, 64, class_list_from_data(["a", "b"]))
    backbone = config.backbone_config
    assert (backbone.backbone, list(backbone.out_indices), config.hidden_size) == (name, indices, 64)
    assert getattr(backbone, "output_stride", None) is None  # the preset's
    assert (backbone.to_dict().get("model_args") or {}) == overrides.get("backbone_config", {}).get("model_args", {})


def test_backbone_that_timm_does_not_know():
    with pytest.raises(ValueError, match=r"backbone=convnext_tinny .*Did you mean convnext_tiny.*timm\.list_models"):
        building.make_config(TrainingModelArguments(backbone="convnext_tinny"), 64, class_list_from_data(["a", "b"]))


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


def test_split_is_another_word_for_eval_split(tmp_path):
    (tmp_path / "options.yaml").write_text("split: test\n")
    _, data_args, _ = parse_arguments([str(tmp_path / "options.yaml"), *arguments(tmp_path)])
    assert data_args.eval_split == "test"
    _, data_args, _ = parse_arguments(arguments(tmp_path, split="val"))
    assert data_args.eval_split == "val"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision must be"),
        ({"evaluation_mode": "tiles"}, "evaluation_mode must be"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"save_total_limit": -1}, "save_total_limit must be at least 0, got -1"),
        ({"max_eval_images": 0}, "max_eval_images must be at least 1, got 0"),
        ({"early_stopping_patience": 0, "eval_steps": 5}, "early_stopping_patience must be at least 1, got 0"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs evaluate and eval_steps above 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"scale": [512]}, "scale must be two positive numbers"),
        ({"config_overrides": "{"}, "config_overrides is not JSON"),
        ({"config_overrides": "[1]"}, "config_overrides must be a JSON object"),
        ({"conventions": "2021"}, "conventions must be corrected or original, got '2021'"),
        ({"eval_fraction": 0.5, "streaming": True}, "eval_fraction cannot split a stream"),
        ({"model_name_or_path": "x", "use_pretrained_backbone": True}, "brings its own backbone"),
        ({"evaluate": False, "load_best_model_at_end": True}, "load_best_model_at_end needs evaluate"),
        (
            {"train_split": "train+val", "load_best_model_at_end": True},
            r"load_best_model_at_end needs images to choose .* train_split=train\+val takes the validation images",
        ),
        ({"train_split": "train+"}, r"split='train\+' must name each split once"),
        ({"crop_size": -64}, r"crop_size must be .* such as 480, got -64"),
        ({"ratio_range": [0.5, "inf"]}, r"ratio_range must be two positive numbers, got \[0\.5, inf\]"),
        ({"class_balanced_sampling": 1.5}, r"class_balanced_sampling must lie in \[0, 1\], got 1\.5"),
        ({"class_balanced_sampling": 0.1, "streaming": True}, "which a stream cannot"),
        ({"scale": [512, 0]}, "scale must be two positive numbers"),
        ({"learning_rate": "nan"}, r"learning_rate must be a finite number from 0 on, such as 0\.0001, got nan"),
        ({"max_grad_norm": "inf"}, "max_grad_norm must be a finite number"),
        ({"layer_decay": 0}, r"layer_decay must lie in \(0, 1\], got 0"),
        ({"model_name_or_path": "x", "backbone": "convnext_atto"}, "brings its own backbone"),
        (
            {"backbone": "convnext_atto", "config_overrides": {"backbone_config": {"backbone": "resnet18"}}},
            "backbone=convnext_atto and the backbone_config of config_overrides both name a backbone",
        ),
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
    ("options", "eval_split"),
    [
        ({}, "validation"),
        ({"train_split": "train[:50%]"}, "validation"),
        ({"train_split": "train+validation"}, None),
        ({"train_split": "train+val[:50%]"}, None),
        ({"train_split": "train+validation", "eval_split": "test"}, "test"),
        ({"train_split": "train+validation", "eval_split": "validation"}, "validation"),
    ],
)
def test_nothing_is_trained_and_evaluated_on_by_default(options, eval_split, tmp_path):
    assert parse_arguments(arguments(tmp_path, **options))[1].eval_split == eval_split


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        ("train", "validation", []),
        ("train+valid", "test+val", ["val"]),
        ("train[:90%]", "train[90%:]", []),
        ("train", "training[90%:]", ["training[90%:]"]),
        ("train[:9]", "train[:9]", ["train[:9]"]),
    ],
)
def test_common_splits(first, second, common):
    assert common_splits(first, second) == common


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


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_feature_levels": 1, "use_spatial_branch": False, "use_boundary_heads": False},
        {"use_spatial_branch": False, "use_boundary_heads": False},
        {"use_boundary_heads": False},
        {},
        {"decoder_self_attention": "dense"},
        {"decoder_self_attention": "pointwise"},
        {"decoder_self_attention": "batch"},
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


def rates_of(backbone_config, **options):
    """The learning rate of each parameter that is trained, by its name."""
    with torch.device("meta"):
        model = UneptForSemanticSegmentation(UneptConfig.from_preset("unept-tiny", backbone_config=backbone_config))
    optimizer = building.make_optimizer(model, RunArguments(output_dir="x", **options))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return rates


@pytest.mark.parametrize(
    ("name", "model_args", "indices", "above"),
    [
        (
            "vit_tiny_patch16_224",
            {"depth": 3, "embed_dim": 24, "num_heads": 2},
            [0, 1, 2],
            {
                **{"model.blocks.2": 0, "model.blocks.1": 1, "model.blocks.0": 2},
                **{"model.cls_token": 3, "model.pos_embed": 3, "model.patch_embed": 3},
            },
        ),
        (
            "convnext_atto",
            {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]},
            [1, 2, 3],
            {
                **{"stages_3": 0, "stages_2.blocks.1": 1, "stages_2.blocks.0": 2, "stages_2.downsample": 2},
                **{"stages_1": 3, "stages_0": 4, "stem_0": 5, "stem_1": 5},
            },
        ),
    ],
    ids=["names below a prefix", "names with underscores"],
)
def test_learning_rates_of_layers(name, model_args, indices, above):
    """As in timm's own layer-wise decay, where a classifier is the layer above the last block."""
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": indices, "model_args": model_args}
    rates = rates_of(backbone, learning_rate=1e-2, backbone_lr_multiplier=0.5, layer_decay=0.1)
    expected = {}
    for parameter in rates:
        expected[parameter] = 1e-2
        if parameter.startswith(start := "model.backbone._backbone."):
            rest = parameter.removeprefix(start)
            (number,) = (number for prefix, number in above.items() if rest.startswith(f"{prefix}.") or rest == prefix)
            expected[parameter] = 0.5e-2 * 0.1**number
    assert rates == pytest.approx(expected)
    assert set(above.values()) == set(range(max(above.values()) + 1))
    groups = param_groups_layer_decay(timm.create_model(name, **model_args), layer_decay=0.1)
    scales = sorted({group["lr_scale"] for group in groups}, reverse=True)
    assert sorted(set(rates.values()), reverse=True) == pytest.approx([1e-2, *(0.05 * s for s in scales[1:])])


def test_layers_that_timm_does_not_name():
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_indices=[2, 3, 4])
    assert rates_of(backbone, layer_decay=1.0)
    with pytest.raises(ValueError, match=r"layer_decay needs the layers .* does not say which layer .* of resnet"):
        rates_of(backbone, layer_decay=0.8)


def test_class_weighting(tmp_path):
    options = {"class_weighting": "inverse_log", "max_steps": 1, "evaluate": False, "num_synthetic_scenes": 4}
    run(tmp_path, **options)
    weights = UneptForSemanticSegmentation.from_pretrained(tmp_path / "model").config.class_weights
    scenes, classes = load_segmentation_dataset("synthetic", num_synthetic_scenes=4, synthetic_scene_size=32)
    pixels = sum(np.bincount(decode_example(one, classes)[1].ravel(), minlength=256)[: len(classes)] for one in scenes)
    np.testing.assert_allclose(weights, 1 / np.log(1.02 + pixels / pixels.sum()))
    with pytest.raises(ValueError, match="exclude each other"):
        run(tmp_path / "both", **options, config_overrides={**TINY_MODEL, "class_weights": [1.0] * len(classes)})


def test_median_frequency():
    """Shares in the images that show a class: 12 of 20, 7 of 20, 1 of 10."""
    pixels = np.array([[6, 4, 0, 0], [6, 3, 1, 0]])
    assert class_weights(pixels, "median_frequency") == pytest.approx([0.35 / 0.6, 1, 3.5, 0])
    assert class_weights(0 * pixels, "median_frequency") == [0] * 4
