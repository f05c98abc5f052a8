"""UneptConfig: presets, serialisation, and the message for every wrong combination."""

import logging

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, ResNetConfig, SwinConfig, TimmBackboneConfig

from unept_hf import UneptConfig
from unept_hf.model.configuration_unept import CONVENTIONS, PRESETS


@pytest.mark.floor
@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_saving(name, tmp_path):
    config = UneptConfig.from_preset(name, num_labels=19)
    assert config.num_labels == 19
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, UneptConfig)
    differences = {key for key, value in config.to_dict().items() if loaded.to_dict()[key] != value}
    assert differences <= {"_name_or_path", "transformers_version"}
    assert getattr(loaded.backbone_config, "model_args", None) == getattr(config.backbone_config, "model_args", None)


def test_defaults_are_those_of_the_paper_but_for_self_attention():
    config = UneptConfig()
    assert config.backbone_config.backbone == "resnet50c"
    assert (config.hidden_size, config.encoder_layers, config.decoder_layers) == (256, 2, 2)
    assert (config.num_attention_heads, config.num_feature_levels, config.num_sampling_points) == (8, 3, 16)
    assert (config.intermediate_size, config.dropout, config.activation_function) == (2048, 0.1, "relu")
    assert tuple(config.query_grid_size) == (60, 60)
    assert config.semantic_loss_ignore_index == 255
    # The paper's is "pointwise"; this one was better in our ablations.
    assert config.decoder_self_attention == "deformable"
    weights = ("segmentation", "boundary", "direction", "refined_segmentation")
    assert [getattr(config, f"{name}_loss_weight") for name in weights] == [0.8, 5.0, 0.6, 1.0]


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unept-large.*unept-deit-base, .*unept-resnet50, unept-tiny"):
        UneptConfig.from_preset("unept-large")


def test_conventions():
    corrected, original = CONVENTIONS["corrected"], CONVENTIONS["original"]
    assert original.keys() - corrected.keys() == {"decoder_self_attention"}
    default = UneptConfig.from_preset("unept-tiny", num_labels=5)
    assert default.to_dict() == UneptConfig(**PRESETS["unept-tiny"], num_labels=5).to_dict()
    assert {name: getattr(default, name) for name in corrected} == corrected
    config = UneptConfig.from_preset("unept-tiny", conventions="original", num_labels=5)
    differences = {name: value for name, value in config.to_dict().items() if default.to_dict()[name] != value}
    assert differences == {name: value for name, value in original.items() if getattr(default, name) != value}
    # What is given beside them wins over them.
    config = UneptConfig.from_preset(
        "unept-tiny", conventions="original", decoder_self_attention="pointwise", loss_reduction="valid"
    )
    assert (config.decoder_self_attention, config.loss_reduction) == ("pointwise", "valid")
    assert config.refinement_score == "logit"
    with pytest.raises(ValueError, match=r"^Unknown conventions '2021'; the choices are corrected, original\.$"):
        UneptConfig.from_preset("unept-tiny", conventions="2021")
    with pytest.raises(ValueError, match=r"use UneptConfig\.from_preset\(name, conventions=\.\.\.\)"):
        UneptConfig(conventions="original")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_attention_heads": 7}, "num_attention_heads=7 does not divide hidden_size=256"),
        ({"hidden_size": 128}, "spatial_branch_channels=.* must be positive widths that end with hidden_size=128"),
        ({"hidden_size": 6, "num_attention_heads": 2, "spatial_branch_channels": (6,)}, "multiple of 4"),
        ({"num_feature_levels": 4}, "num_feature_levels=4, but backbone_config gives 3"),
        ({"use_spatial_branch": False}, "use_boundary_heads=False or use_spatial_branch=True"),
        ({"num_labels": 300}, "semantic_loss_ignore_index=255 is one of the 300 classes"),
        ({"num_feature_levels": 4, "dropout": 1.0}, r"(?s)dropout must lie.*num_feature_levels=4"),
        ({"activation_function": "rellu"}, "activation_function"),
        ({"num_sampling_points": 0}, "num_sampling_points must be at least 1"),
        ({"encoder_layers": -1}, "encoder_layers must be a finite number of at least 0, got -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"query_grid_size": (60,)}, "query_grid_size must be a positive height and width"),
        ({"query_grid_size": (0, 60)}, "query_grid_size must be a positive height and width"),
        ({"spatial_branch_channels": ()}, "spatial_branch_channels"),
        ({"num_channels": 4}, "num_channels=4, but backbone_config takes 3"),
        ({"backbone_config": {"backbone": "resnet50c"}}, "backbone_config has no model_type"),
        ({"backbone_config": {"model_type": "resnett"}}, "resnett"),
        ({"backbone_config": {"model_type": "bert"}}, "is not a backbone"),
        ({"use_pretrained_backbone": True}, "load_pretrained_backbone"),
        (
            {"backbone": "resnet18", "use_timm_backbone": True},
            "backbone='resnet18': .* backbone_config={'model_type': 'timm_backbone', 'backbone': 'resnet18'",
        ),
        ({"use_timm_backbone": True}, "does not take use_timm_backbone=True"),
        ({"num_labels": 0}, "num_labels must be at least 1, got 0"),
        ({"boundary_loss_weight": -3.0}, "boundary_loss_weight must be a finite number of at least 0, got -3.0"),
        ({"direction_loss_weight": float("nan")}, "direction_loss_weight must be a finite number"),
        ({"boundary_threshold": 2.0}, r"boundary_threshold is a probability within \[0, 1\], got 2.0"),
        ({"num_labels": 3, "class_weights": [1, 2]}, "class_weights has 2 weights, but there are 3 classes"),
        ({"num_labels": 2, "class_weights": [1, -2]}, r"class_weights must be .* at least 0, got \[1, -2\]"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"ohem_threshold": 0}, r"ohem_threshold is a probability within \(0, 1\], got 0"),
        ({"ohem_min_pixels": -1}, "ohem_min_pixels must be a finite number of at least 0, got -1"),
        ({"dice_loss_weight": -1}, "dice_loss_weight must be a finite number of at least 0, got -1"),
        ({"num_labels": 2, "class_colors": ["#000000"]}, "class_colors has 1 colors for 2 classes"),
        ({"id2label": {0: "a", 1: "b"}, "class_colors": []}, "class_colors has 0 colors for 2 classes"),
        ({"num_labels": 1, "class_colors": ["red"]}, r"class_colors\[0\] is 'red': give '#rrggbb'"),
        ({"num_labels": 2, "class_colors": ["#0000ff", [0, 0, 256]]}, r"class_colors\[1\] is \[0, 0, 256\]"),
        ({"num_labels": 1, "class_colors": [[0, 0, True]]}, r"class_colors\[0\] is \[0, 0, True\]"),
    ],
)
def test_wrong_combinations_name_the_field_and_the_remedy(fields, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        UneptConfig(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": "256"}, "hidden_size"),
        ({"use_spatial_branch": "yes"}, "use_spatial_branch"),
        ({"encoder_layers": 2.5}, "encoder_layers"),
        ({"decoder_self_attention": "sparse"}, "(?s)decoder_self_attention.*'pointwise', 'dense', 'deformable'"),
        ({"loss_reduction": "sum"}, "(?s)loss_reduction.*'valid', 'all'.*'?sum"),
        ({"direction_loss_region": "all"}, "(?s)direction_loss_region.*'predicted', 'target'"),
        ({"refinement_score": "softmax"}, "(?s)refinement_score.*'probability', 'logit'"),
    ],
)
def test_wrong_types_and_choices(fields, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        UneptConfig(**fields)


def test_class_weights_belong_to_the_classes():
    saved = UneptConfig.from_preset("unept-tiny", num_labels=2, class_weights=[1, 2]).to_dict()
    assert UneptConfig.from_dict(saved).class_weights == [1, 2]
    assert UneptConfig.from_dict(saved, num_labels=3).class_weights is None
    assert UneptConfig.from_dict(saved, num_labels=3, class_weights=[1, 2, 3]).class_weights == [1, 2, 3]
    config = UneptConfig.from_dict(saved)
    config.num_labels = 3
    assert config.class_weights is None
    config.class_colors = [[0, 0, 255]] * 3
    assert config.class_colors == ["#0000ff"] * 3


def test_a_misspelt_field_is_pointed_out(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        UneptConfig(num_sampling_point=8)
        assert "did you mean 'num_sampling_points'" in caplog.text
        caplog.clear()
        UneptConfig.from_dict(UneptConfig.from_preset("unept-tiny").to_dict())
        assert "did you mean" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_class_colors_are_those_of_their_classes(tmp_path):
    assert UneptConfig().class_colors is None
    names = {0: "sky", 1: "road"}
    config = UneptConfig.from_preset("unept-tiny", id2label=names, class_colors=["#86B4E9", (128, 64, 128)])
    assert config.class_colors == ["#86b4e9", "#804080"]
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).class_colors == config.class_colors
    assert UneptConfig.from_pretrained(tmp_path, class_colors=["#000000"] * 2).class_colors == ["#000000"] * 2
    # Other classes are not drawn in the colors of these, and can be saved.
    assert UneptConfig.from_pretrained(tmp_path, num_labels=3).class_colors is None
    assert UneptConfig.from_pretrained(tmp_path, id2label={0: "cat", 1: "dog"}).class_colors is None
    config.id2label = {1: "road", 0: "sky"}
    assert config.class_colors == ["#86b4e9", "#804080"]
    config.num_labels = 19
    assert config.class_colors is None
    config.save_pretrained(tmp_path)


def test_backbones_of_transformers(tmp_path):
    for backbone_config in (
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_indices=[2, 3, 4]),
        SwinConfig(out_indices=[1, 2, 3]),
        TimmBackboneConfig(backbone="resnet18", out_indices=[2, 3, 4]),
    ):
        config = UneptConfig(backbone_config=backbone_config)
        config.save_pretrained(tmp_path)
        assert type(UneptConfig.from_pretrained(tmp_path).backbone_config) is type(backbone_config)


def test_presets_are_not_shared():
    first = UneptConfig.from_preset("unept-deit-base")
    first.backbone_config.model_args["img_size"] = 224
    assert UneptConfig.from_preset("unept-deit-base").backbone_config.model_args["img_size"] == 480


@pytest.mark.parametrize(
    "fields",
    [
        {"num_feature_levels": 1},
        {"use_boundary_heads": False},
        {"use_spatial_branch": False, "use_boundary_heads": False},
    ],
)
def test_the_switches_of_the_ablation(fields):
    config = UneptConfig.from_preset("unept-resnet50", **fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


def test_overrides_are_checked_together(tmp_path):
    UneptConfig.from_preset("unept-tiny", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).save_pretrained(
        tmp_path
    )
    assert UneptConfig.from_pretrained(tmp_path).id2label == {0: "a", 1: "b"}
    assert UneptConfig.from_pretrained(tmp_path, num_labels=2).id2label == {0: "a", 1: "b"}
    config = UneptConfig.from_pretrained(tmp_path, num_labels=300, semantic_loss_ignore_index=-100)
    assert config.num_labels == 300
    renamed = UneptConfig.from_pretrained(
        tmp_path, id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2}
    )
    assert renamed.num_labels == 3
    for fields, message in (
        ({"loss_reduction": "mean"}, "loss_reduction"),
        ({"semantic_loss_ignore_index": 1}, "is one of the 2 classes"),
        ({"num_attention_heads": 7}, "does not divide"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            UneptConfig.from_pretrained(tmp_path, **fields)
    config, unused = UneptConfig.from_pretrained(tmp_path, dropout=0.0, other=1, return_unused_kwargs=True)
    assert (config.dropout, unused) == (0.0, {"other": 1})


@pytest.mark.parametrize(
    "given",
    [
        {"id2label": {"0": "road", "1": "car", "2": "sky"}},
        {"id2label": {2: "sky", 0: "road", 1: "car"}},
        {"label2id": {"road": 0, "car": 1, "sky": 2}},
        {"id2label": {0: "road", 1: "car", 2: "sky"}, "label2id": {"road": 2, "car": 1, "tree": 0}},
    ],
    ids=["string keys", "another order", "label2id alone", "contradiction"],
)
def test_labels_are_numbers_and_names_both_ways(given, tmp_path):
    id2label, label2id = {0: "road", 1: "car", 2: "sky"}, {"road": 0, "car": 1, "sky": 2}
    UneptConfig.from_preset("unept-tiny", num_labels=7).save_pretrained(tmp_path)
    for config in (
        UneptConfig.from_preset("unept-tiny", **given),
        UneptConfig.from_pretrained(tmp_path, **given),
        UneptConfig.from_pretrained(tmp_path, num_labels=3, **given),
    ):
        assert (config.num_labels, config.id2label, config.label2id) == (3, id2label, label2id)
        assert list(config.id2label) == [0, 1, 2]


@pytest.mark.parametrize(
    "id2label, message",
    [
        ({1: "road", 2: "car"}, r"keys 0\.\.1 for its 2 classes, got 1, 2: count from 0"),
        ({0: "road", 2: "car"}, "got 0, 2"),
        ({"0": "road", "seven": "car"}, "got 0, seven"),
        ({-1: "void", 0: "road"}, "got -1, 0"),
        ({index + 1: "x" for index in range(150)}, "got 1, 2, 3, 4, 5, 6, 7, 8, 9, 10: "),
    ],
    ids=["from 1", "gap", "word", "negative", "many"],
)
def test_labels_that_are_not_0_to_n(id2label, message, tmp_path):
    UneptConfig.from_preset("unept-tiny").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        UneptConfig.from_preset("unept-tiny", id2label=id2label)
    with pytest.raises(ValueError, match=message):
        UneptConfig.from_pretrained(tmp_path, id2label=id2label)


def test_number_of_labels_that_contradicts_their_names():
    with pytest.raises(ValueError, match="num_labels=5, but id2label names 2 classes"):
        UneptConfig.from_preset("unept-tiny", num_labels=5, id2label={0: "road", 1: "car"})
