"""The recipes of the paper, compared with the values that the paper and the original code state."""

import re
from pathlib import Path

import pytest

from unept_hf.arguments import read_options
from unept_hf.data.class_lists import load_class_list
from unept_hf.training import building
from unept_hf.training.arguments import parse_arguments


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "configs"

# Where a value comes from. Files are those of github.com/amazon-science/unified-ept; "copy" is an earlier state of
# that code, github.com/yzc1122333/UN-EPT. EPT is the model before it had boundary heads.
RESNET = "configs/res50_unept_ade20k.py"
DEIT = "configs/deit_unept_ade20k.py"
CONTEXT = "configs/deit_unept_pcontext.py"
CITIES = "copy, commit d6706d7: configs/UNEPT_80k_citys.py"
LOSS = "models/UN_EPT.py, losses"
EPT = "copy, commit a0b4726: models/EPT.py"
DEIT_EPT = "configs/deit_ept_ade20k.py, commit 84c4370"
README = "README.md, results"
MMCV = "MMCV, StepLrUpdaterHook"
ROWS = "paper, Table 5: the names of the rows"
TABLE_6 = "paper, Table 6 and its caption"
OURS = "not the paper's"


def both(source, **values):
    """The values of one source."""
    return {name: (value, source) for name, value in values.items()}


# All configurations of the original agree in these, apart from the number of points and levels of the ablations.
COMMON = {
    **both(
        f"{RESNET}, {DEIT}, {CONTEXT}",
        learning_rate=1e-4,
        backbone_lr_multiplier=0.1,
        weight_decay=1e-4,
        lr_scheduler_type="step",
        warmup_steps=0,
        max_grad_norm=0,
        ratio_range=[0.5, 2.0],
        cat_max_ratio=0.75,
        flip_probability=0.5,
        photometric_distortion=True,
        hidden_size=256,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=8,
        intermediate_size=2048,
        dropout=0.1,
        num_feature_levels=3,
        num_sampling_points=16,
    ),
    **both(f"{README}: batch size; samples_per_gpu=2 on 8 GPUs", train_batch_size=16),
    **both(MMCV, lr_gamma=0.1),
    **both("models/spatial_branch.py", spatial_branch_channels=[64, 128, 256], use_spatial_branch=True),
    **both("models/context_branch.py, for one image", decoder_self_attention="pointwise"),
    **both(
        LOSS,
        use_boundary_heads=True,
        segmentation_loss_weight=0.8,
        boundary_loss_weight=5,
        direction_loss_weight=0.6,
        refined_segmentation_loss_weight=1,
        max_boundary_distance=5,
        boundary_threshold=0.5,
    ),
}
RESNET_BACKBONE = both(
    f"{RESNET}: ResNetV1c-50, strides 1, 2, 1, 1; models/UN_EPT.py: all but the first stage",
    backbone="resnet50c",
    out_indices=[2, 3, 4],
    output_stride=8,
)
DEIT_BACKBONE = both(
    f"{DEIT}; models/vision_transformer.py: every fourth block",
    backbone="deit_base_distilled_patch16_384",
    out_indices=[3, 7, 11],
)
STEPS_160K = {"max_steps": 160_000, "lr_milestones": [126_000], "eval_steps": 10_000}
CROPS_480 = {"crop_size": 480, "query_grid_size": [60, 60]}
ADE20K = {"dataset_name": "ade20k", "num_labels": 150, "scale": [2048, 512], **CROPS_480, **STEPS_160K}
PASCAL = {"dataset_name": "pascal_context_60", "num_labels": 60, "scale": [520, 520], **CROPS_480, **STEPS_160K}
CITYSCAPES = {
    **both(
        CITIES,
        dataset_name="cityscapes",
        num_labels=19,
        scale=[2048, 1024],
        crop_size=768,
        query_grid_size=[96, 96],
        max_steps=80_000,
        lr_milestones=[64_000],
    ),
    **both(OURS, eval_steps=5_000),
}
NO_HEADS = both(f"{EPT}; {TABLE_6}", use_boundary_heads=False, segmentation_loss_weight=1)

RECIPES = {
    "ade20k_resnet50_160k": {**COMMON, **RESNET_BACKBONE, **both(RESNET, **ADE20K)},
    "ade20k_deit_160k": {**COMMON, **DEIT_BACKBONE, **both(DEIT, **ADE20K, img_size=480)},
    "pascal_context_60_resnet50_160k": {**COMMON, **RESNET_BACKBONE, **both(CONTEXT, **PASCAL)},
    "pascal_context_60_deit_160k": {**COMMON, **DEIT_BACKBONE, **both(CONTEXT, **PASCAL, img_size=480)},
    "cityscapes_resnet50_80k": {**COMMON, **RESNET_BACKBONE, **CITYSCAPES},
    "cityscapes_deit_80k": {**COMMON, **DEIT_BACKBONE, **CITYSCAPES, **both(CITIES, img_size=768)},
}
# What `conventions: original` stands for.
CONVENTIONS = {
    **both("the word for what follows", conventions="original"),
    **both(
        LOSS,
        direction_loss_region="predicted",
        refinement_score="logit",
        boundary_align_corners=True,
        balance_boundaries_per_process=True,
    ),
    **both("mmseg 0.11, models/losses/utils.py, weight_reduce_loss: the mean over all pixels", loss_reduction="all"),
    **both(f"{LOSS}: labels of -1, which do not occur", ignore_unlabelled_boundaries=False),
    **both("openseg's generator of distances and angles", min_boundary_class_pixels=100),
    **both("modified_mmseg/datasets/pipelines/loading.py: in seg_fields of the image", boundary_targets_from="image"),
    **both("models/context_branch.py, DecoderLayer: transposed to (batch, queries)", decoder_self_attention="batch"),
}
for name in list(RECIPES):
    RECIPES[f"{name}_original"] = {**RECIPES[name], **CONVENTIONS}
WITHOUT_BACKGROUND = both(OURS, dataset_name="pascal_context_59", num_labels=59)
for backbone in ("resnet50", "deit"):
    with_background = RECIPES[f"pascal_context_60_{backbone}_160k"]
    RECIPES[f"pascal_context_59_{backbone}_160k"] = {**with_background, **WITHOUT_BACKGROUND}
SPATIAL_PATH = {**RECIPES["ade20k_resnet50_160k"], **NO_HEADS}
PYRAMID = {**SPATIAL_PATH, **both(ROWS, use_spatial_branch=False)}
RECIPES |= {
    "ablation_table5_1_baseline": {**PYRAMID, **both(ROWS, num_feature_levels=1)},
    "ablation_table5_2_pyramid_features": PYRAMID,
    "ablation_table5_3_spatial_path": SPATIAL_PATH,
    "ablation_table5_4_stronger_backbone": {
        **RECIPES["ade20k_deit_160k"],
        **both(DEIT_EPT, use_boundary_heads=False, segmentation_loss_weight=1),
    },
}
for levels in (1, 3):
    for points in (4, 16, 64):
        grid = both(TABLE_6, num_feature_levels=levels, num_sampling_points=points)
        RECIPES[f"ablation_table6_levels{levels}_points{points}"] = {**SPATIAL_PATH, **grid}

# Options that say where things are, or under which others they stand.
PLACES = {"base", "data_dir", "output_dir", "preset", "model_type"} | {
    "config_overrides",
    "backbone_config",
    "model_args",
}


def values_of(name):
    """All options of a recipe, and all fields of the model that it makes, by name."""
    model_args, data_args, run_args = parse_arguments([str(CONFIGS / f"{name}.yaml")])
    config = building.make_config(model_args, data_args.crop_size, load_class_list(data_args.dataset_name))
    backbone = config.backbone_config.to_dict()
    values = {**backbone, **(backbone.pop("model_args", None) or {})}
    for one in (config, model_args, data_args, run_args):
        values |= vars(one)
    values["num_labels"] = config.num_labels
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def test_every_row_of_the_paper_has_its_file():
    prefixes = ("ablation_", "ade20k_", "cityscapes_", "pascal_context_")
    assert {path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(prefixes)} == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_values_of_their_sources(name):
    values = values_of(name)
    differences = {
        key: f"{values.get(key)!r}, but {expected!r} in {source}"
        for key, (expected, source) in RECIPES[name].items()
        if values.get(key) != expected
    }
    assert not differences


@pytest.mark.parametrize("name", RECIPES)
def test_no_setting_without_a_source_or_a_remark(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    settings = [(match[1], match[2]) for line in lines if (match := re.match(r" *(\w+):(.*)", line))]
    assert settings and lines[0].startswith("# ") and any(line.startswith("# Run by us: no.") for line in lines)
    bare = {key for key, rest in settings if "#" not in rest} - PLACES
    assert bare <= {key for key, (_, source) in RECIPES[name].items() if source != OURS}
    assert read_options(CONFIGS / f"{name}.yaml")["output_dir"] == f"runs/{name}"


def test_one_number_of_the_paper_is_one_model():
    """Table 5, row 3 and Table 6, L = 3 and N = 16 have the same numbers; Table 1 has them for the released code."""
    names = ("ablation_table5_3_spatial_path", "ablation_table6_levels3_points16", "ade20k_resnet50_160k")
    spatial_path, grid, released = (read_options(CONFIGS / f"{name}.yaml") for name in names)
    for options in (spatial_path, grid, released):
        del options["output_dir"]
    assert grid == spatial_path
    overrides = spatial_path["config_overrides"]
    assert (overrides.pop("use_boundary_heads"), overrides.pop("segmentation_loss_weight")) == (False, 1.0)
    assert spatial_path == released
