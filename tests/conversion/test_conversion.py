"""The conversion scripts, on checkpoints made by the rule of the fixtures (see tests/fixtures)."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import convert_backbone_to_hf
import convert_unept_original_to_hf
import pytest
import torch
from original_state_dict import convert_unept_state_dict
from reference_weights import reference_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor, UneptModel
from unept_hf.model.backbone_unept import read_state_dict


FIXTURES = Path(__file__).parents[1] / "fixtures"
# The fixture's model, but for the grid and the image size, which the script reads from the checkpoint.
DEIT_TINY = {
    "model_type": "unept",
    "backbone_config": {
        "model_type": "timm_backbone",
        "backbone": "deit_tiny_distilled_patch16_224",
        "out_indices": [3, 7, 11],
        "model_args": {"img_size": 480, "embed_dim": 48, "depth": 12, "num_heads": 3},
    },
    "decoder_self_attention": "pointwise",
    "num_sampling_points": 4,
    "intermediate_size": 128,
}
CLASSES = ["wall", "floor", "sky", "tree", "car", "person", "water"]
OUTPUTS = {"logits": "class_logits_low", "boundary_logits": "mask_map", "direction_logits": "dir_map"}


def load_fixture(name):
    return json.loads((FIXTURES / f"{name}.json").read_text()), load_file(FIXTURES / f"{name}.safetensors")


@pytest.fixture(scope="module")
def deit():
    meta, tensors = load_fixture("deit_tiny_batch1")
    return reference_state_dict(meta), tensors


@pytest.fixture(scope="module")
def resnet():
    meta, tensors = load_fixture("resnet50_batch1")
    return reference_state_dict(meta), tensors


def write_deit_tiny(folder, reduce_labels=False):
    """Writes what describes the small DeiT model and its classes; returns the arguments, with an output folder."""
    classes = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
    (folder / "config.json").write_text(json.dumps(DEIT_TINY))
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "reduce_labels": reduce_labels}))
    return {
        "--config": folder / "config.json",
        "--id2label": folder / "classes.json",
        "--output": folder / "out" / "model",
    }


@pytest.fixture
def deit_tiny(tmp_path):
    return write_deit_tiny(tmp_path)


@pytest.fixture
def without_verification(monkeypatch):
    """Saves its time where a test is about something else."""
    monkeypatch.setattr(convert_unept_original_to_hf, "verify", lambda *args: None)


def arguments(options):
    return [str(part) for option in options.items() for part in option if part is not True]


def convert(checkpoint, tmp_path, options, script=convert_unept_original_to_hf, **save_options):
    """Saves a checkpoint, unless it is the path of one, and converts it; returns the exit code."""
    path = checkpoint
    if not isinstance(checkpoint, Path):
        path = tmp_path / "model.pth"
        torch.save(checkpoint, path, **save_options)
    return script.main(arguments({"--checkpoint": path, **options}))


def assert_equals_fixture(folder, tensors):
    model = UneptForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(tensors["inputs.pixel_values"])
    for ours, original in OUTPUTS.items():
        torch.testing.assert_close(outputs[ours], tensors[f"eval.{original}"], atol=1e-4, rtol=0)
    return model


def backbone_of(state_dict):
    return {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}


def assert_refused(code, capsys, output, *parts):
    """The script failed with one line, or a list, that has all `parts`, and left nothing behind."""
    error = capsys.readouterr().err
    error = error[error.index("error: ") :]
    assert code == 1
    for part in parts:
        assert str(part) in error
    assert all(line.startswith("  ") for line in error.splitlines()[1:])
    assert not output.exists()
    assert not output.parent.exists() or not list(output.parent.iterdir())
    return error


@pytest.mark.parametrize("name", ["deit_tiny_batch1", "resnet50_batch1"])
def test_weight_rule(name):
    meta, _ = load_fixture(name)
    meta["weight_kinds"] = {key: meta["weight_kinds"][key] for key in meta["weight_sha256"]}
    state_dict = reference_state_dict(meta, meta["weight_seed"])
    digests = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in state_dict.items()}
    assert digests == meta["weight_sha256"]


def test_mmcv_checkpoint_of_a_preset(resnet, tmp_path, capsys):
    """ResNet-50, 19 classes, as mmcv saves it: parallel training, optimizer and metadata beside."""
    state_dict, tensors = resnet
    checkpoint = {
        "meta": {"mmseg_version": "0.11.0", "iter": 160000, "CLASSES": ("road", "sidewalk"), "PALETTE": [[1, 2, 3]]},
        "state_dict": {f"module.{key}": value for key, value in state_dict.items()},
        "optimizer": {
            "state": {0: {"step": 7, "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-4, "params": [0]}],
        },
    }
    options = {"--preset": "unept-resnet50", "--id2label": "cityscapes", "--output": tmp_path / "out"}
    assert convert(checkpoint, tmp_path, options) == 0

    output = capsys.readouterr().out
    assert "query_grid_size is (8, 8) in the checkpoint, but (60, 60) in unept-resnet50" in output
    assert "img_size" not in output
    assert "context_branch.decoder.layers.1.self_attn.in_proj_weight (first two thirds)" in output
    assert "Read back: the outputs for a random image of 64 x 64 differ by at most" in output
    model = assert_equals_fixture(tmp_path / "out", tensors)
    assert model.config.id2label[1] == "sidewalk" and model.config.label2id["bicycle"] == 18
    assert tuple(model.config.query_grid_size) == (8, 8)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size_divisor == 8


@pytest.fixture(scope="module")
def script_run(deit, tmp_path_factory):
    """The script as a user runs it, from another folder: the folder that it wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("script_run")
    torch.save(deit[0], folder / "model.pth")
    options = {"--checkpoint": "model.pth", **write_deit_tiny(folder, reduce_labels=True), "--output": "model"}
    finished = subprocess.run(
        [sys.executable, convert_unept_original_to_hf.__file__, *arguments(options)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "model", finished.stdout


@pytest.mark.floor
def test_converted_deit(script_run, deit):
    folder, output = script_run
    assert "query_grid_size is (8, 8) in the checkpoint, but (60, 60) in " in output
    assert "img_size of the backbone is (64, 64) in the checkpoint, but (480, 480) in " in output
    assert "Wrote model: " in output
    model = assert_equals_fixture(folder, deit[1])
    assert model.config.backbone_config.model_args["img_size"] == 64
    assert list(model.config.id2label.values()) == CLASSES
    image_processor = AutoImageProcessor.from_pretrained(folder)
    assert image_processor.do_reduce_labels is True
    assert image_processor.size_divisor == 16


@pytest.mark.parametrize("form", ["parallel training under 'model'", "old PyTorch", "float64"])
def test_forms_of_a_checkpoint(form, script_run, deit, deit_tiny, tmp_path):
    checkpoint, save_options = deit[0], {}
    if form == "parallel training under 'model'":
        checkpoint = {"model": {f"module.{key}": value for key, value in checkpoint.items()}}
    elif form == "old PyTorch":
        # No zip file, and no counters in the batch norms.
        checkpoint = {key: value for key, value in checkpoint.items() if not key.endswith("num_batches_tracked")}
        save_options = {"_use_new_zipfile_serialization": False}
    else:
        checkpoint = {key: value.double() for key, value in checkpoint.items()}
    assert convert(checkpoint, tmp_path, deit_tiny, **save_options) == 0
    expected = load_file(script_run[0] / "model.safetensors")
    actual = load_file(deit_tiny["--output"] / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_dense_decoder_self_attention(deit, deit_tiny, tmp_path, capsys):
    """With the weights that the original has for it, it is the original's layer, fed as (batch, queries)."""
    state_dict, _ = deit
    assert convert(state_dict, tmp_path, {**deit_tiny, "--decoder_self_attention": "dense"}) == 0
    assert "Left out" not in capsys.readouterr().out
    model = UneptForSemanticSegmentation.from_pretrained(deit_tiny["--output"]).eval()
    assert model.config.decoder_self_attention == "dense"
    original = nn.MultiheadAttention(256, 8, batch_first=True).eval()
    prefix = "context_branch.decoder.layers.1.self_attn."
    original.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    )
    hidden_states = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(hidden_states, hidden_states, hidden_states)[0]
        actual = model.model.decoder_layers[1].self_attn(hidden_states)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("script", [convert_unept_original_to_hf, convert_backbone_to_hf])
def test_checkpoint_of_another_backbone(script, deit, tmp_path, capsys):
    backbone = backbone_of(deit[0])
    options = {"--preset": "unept-resnet50", "--output": tmp_path / "out" / "model"}
    checkpoint, prefix = backbone, ""
    if script is convert_unept_original_to_hf:
        checkpoint = {**deit[0], "cls.weight": torch.zeros(19, 256, 1, 1), "cls.bias": torch.zeros(19)}
        options["--id2label"] = "cityscapes"
        prefix = "model.backbone."
    code = convert(checkpoint, tmp_path, options, script)
    error = assert_refused(
        code,
        capsys,
        options["--output"],
        f" missing: {prefix}_backbone.conv1.0.weight, ",
        " unexpected: ",
        " more",
    )
    assert len(error) < 1500


def test_deformable_decoder_self_attention_has_no_weights(deit, deit_tiny, tmp_path, capsys):
    deit_tiny["--config"].write_text(json.dumps({**DEIT_TINY, "decoder_self_attention": "deformable"}))
    code = convert(deit[0], tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], "deformable", "'pointwise', 'dense' or 'batch'")


def test_push_to_hub(deit, deit_tiny, without_verification, tmp_path, monkeypatch):
    pushed = []
    for cls in (UneptForSemanticSegmentation, UneptImageProcessor):
        monkeypatch.setattr(cls, "push_to_hub", lambda self, repository: pushed.append((type(self), repository)))
    assert convert(deit[0], tmp_path, {**deit_tiny, "--push_to_hub": "me/unept"}) == 0
    assert pushed == [(UneptForSemanticSegmentation, "me/unept"), (UneptImageProcessor, "me/unept")]
    assert deit_tiny["--output"].is_dir()


def test_missing_unexpected_and_misshapen_keys_are_counted(deit, deit_tiny, tmp_path, capsys):
    state_dict = dict(deit[0])
    missing = ["layers.1.bias", "layers.1.weight", "layers.2.bias", "layers.2.weight"]
    missing += ["backbone.blocks.3.norm1.weight", "spatial_branch.convblock1.bn.running_var"]
    for key in missing:
        del state_dict[key]
    # Old checkpoints have no counters.
    del state_dict["spatial_branch.convblock1.bn.num_batches_tracked"]
    state_dict["auxiliary_head.weight"] = torch.zeros(3)
    state_dict["backbone.blocks.12.norm1.weight"] = torch.zeros(48)
    state_dict["context_branch.encoder.layers.0.linear1.weight"] = torch.zeros(64, 256)
    state_dict["context_branch.decoder.layers.0.self_attn.in_proj_bias"] = torch.zeros(700)
    code = convert(state_dict, tmp_path, deit_tiny)
    error = assert_refused(
        code,
        capsys,
        deit_tiny["--output"],
        "6 missing: ",
        "model.backbone._backbone.model.blocks.3.norm1.weight, model.input_projections.1.weight, ",
        " and 1 more",
        "2 unexpected: model.backbone._backbone.model.blocks.12.norm1.weight, auxiliary_head.weight",
        "2 of another shape: model.encoder_layers.0.mlp.fc1.weight ((64, 256) instead of (128, 256)), "
        "model.decoder_layers.0.self_attn.v_proj.bias ((232,) instead of (256,))",
        "Check the preset",
    )
    assert len(error) < 1500


def test_number_of_classes_has_to_agree(deit, deit_tiny, tmp_path, capsys):
    code = convert(deit[0], tmp_path, {**deit_tiny, "--id2label": "cityscapes"})
    assert_refused(code, capsys, deit_tiny["--output"], "model.pth has 7 classes", "--id2label cityscapes has 19")


class Hook:
    """Something that mmcv may put beside the weights."""


class Poison:
    """Unpickled without checks, it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("script", [convert_unept_original_to_hf, convert_backbone_to_hf])
@pytest.mark.parametrize("case", ["missing", "truncated", "text", "empty", "object", "poison", "list", "no tensors"])
def test_unusable_checkpoints(case, script, deit, deit_tiny, tmp_path, capsys):
    path = tmp_path / "model.pth"
    expected = ["model.pth"]
    if case == "truncated":
        torch.save(deit[0], path)
        path.write_bytes(path.read_bytes()[:-1000])
        expected += ["incomplete", "Download it again"]
    elif case == "text":
        path.write_text("<html>Not found</html>")
        expected += ["cannot be loaded safely"]
    elif case == "empty":
        path.touch()
        expected += ["damaged or incomplete", "EOFError"]
    elif case == "object":
        torch.save({"state_dict": deit[0], "meta": {"hook": Hook()}}, path)
        expected += ["holds Python objects (test_conversion.Hook)", "Save its state dict alone"]
    elif case == "poison":
        torch.save({"state_dict": deit[0], "meta": Poison()}, path)
        expected += ["holds Python objects (", "system)"]
    elif case == "list":
        torch.save([1, 2], path)
        expected += ["does not hold a state dict"]
    elif case == "no tensors":
        torch.save({"epoch": 3, "lr": 0.1}, path)
        expected += ["does not hold a state dict", "it has epoch, lr"]
    if script is convert_backbone_to_hf:
        del deit_tiny["--id2label"]
    code = convert(path, tmp_path, deit_tiny, script)
    error = assert_refused(code, capsys, deit_tiny["--output"], *expected)
    # PyTorch's advice is to load it all the same.
    assert not any(word in error.lower() for word in ("weights_only", "weights only", "two options"))


def test_checkpoint_for_the_other_script(deit, deit_tiny, tmp_path, capsys):
    code = convert({"model": backbone_of(deit[0])}, tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], "no cls.weight", "convert_backbone_to_hf.py")
    del deit_tiny["--id2label"]
    code = convert(deit[0], tmp_path, deit_tiny, convert_backbone_to_hf)
    assert_refused(code, capsys, deit_tiny["--output"], "a whole UN-EPT", "convert_unept_original_to_hf.py")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (None, ["config.json cannot be read", "No such file"]),
        ("{", ["config.json cannot be read"]),
        ('{"model_type": "segformer"}', ["is not the configuration of a UN-EPT", "'segformer'"]),
        ('{"model_type": "unept", "hidden_size": "x"}', ["hidden_size", "expected int"]),
    ],
)
def test_unusable_configurations(config, parts, deit_tiny, tmp_path, capsys):
    deit_tiny["--config"].unlink()
    if config is not None:
        deit_tiny["--config"].write_text(config)
    code = convert({}, tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], *parts)


def test_unknown_class_list(deit_tiny, tmp_path, capsys):
    code = convert({}, tmp_path, {**deit_tiny, "--id2label": "ade"})
    assert_refused(code, capsys, deit_tiny["--output"], "Unknown class list 'ade'", "ade20k, camvid, cityscapes")


def test_query_embedding_that_is_no_square(deit, deit_tiny, tmp_path, capsys):
    state_dict = {**deit[0], "query_embed.weight": torch.zeros(60, 256)}
    code = convert(state_dict, tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], "60 queries")


def test_output_that_exists(deit, deit_tiny, without_verification, tmp_path, monkeypatch, capsys):
    output = deit_tiny["--output"]
    output.mkdir(parents=True)
    # An empty one is taken.
    assert convert(deit[0], tmp_path, deit_tiny) == 0
    (output / "README.md").write_text("old")
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}

    assert convert(deit[0], tmp_path, deit_tiny) == 1
    assert "is not empty" in (error := capsys.readouterr().err) and "--overwrite" in error
    # A run that fails leaves the old one.
    assert convert({"cls.weight": torch.zeros(3)}, tmp_path, {**deit_tiny, "--overwrite": True}) == 1
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert convert(deit[0], tmp_path, {**deit_tiny, "--overwrite": True}) == 0
    assert not (output / "README.md").exists()
    assert [path.name for path in output.parent.iterdir()] == ["model"]

    # --overwrite is not for folders that hold anything else than a model.
    (output / ".git").mkdir()
    assert convert(deit[0], tmp_path, {**deit_tiny, "--overwrite": True}) == 1
    (output / ".git").rmdir()
    (output / "config.json").unlink()
    assert convert(deit[0], tmp_path, {**deit_tiny, "--overwrite": True}) == 1
    assert (output / "model.safetensors").exists()
    assert convert(deit[0], tmp_path, {**deit_tiny, "--output": output / "model.safetensors"}) == 1
    assert "is a file" in capsys.readouterr().err
    monkeypatch.chdir(output)
    assert convert(deit[0], tmp_path, {**deit_tiny, "--output": "."}) == 1
    assert "is the current directory" in capsys.readouterr().err


def test_interrupted_run_leaves_nothing(deit, deit_tiny, tmp_path, monkeypatch):
    def interrupt(self, folder):
        assert (folder / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(UneptImageProcessor, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(deit[0], tmp_path, deit_tiny)
    assert not list(deit_tiny["--output"].parent.iterdir())


@pytest.mark.parametrize("fault", ["written", "mapping"])
def test_verification_finds_faults(fault, deit, deit_tiny, tmp_path, monkeypatch, capsys):
    if fault == "written":
        # What is on the disk differs from what is in memory.
        save_pretrained = UneptForSemanticSegmentation.save_pretrained

        def save_changed(self, folder):
            changed = UneptForSemanticSegmentation(self.config)
            changed.load_state_dict(self.state_dict())
            changed.classifier.bias.data += 0.001
            save_pretrained(changed, folder)

        monkeypatch.setattr(UneptForSemanticSegmentation, "save_pretrained", save_changed)
    else:

        def convert_wrongly(state_dict, config):
            converted, dropped = convert_unept_state_dict(state_dict, config)
            norms = "model.decoder_layers.0.{}_attn_layer_norm.weight"
            this, other = norms.format("self"), norms.format("cross")
            converted[this], converted[other] = converted[other], converted[this]
            return converted, dropped

        monkeypatch.setattr(convert_unept_original_to_hf, "convert_unept_state_dict", convert_wrongly)
    code = convert(deit[0], tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], "The written model, read back, differs by more than 0.0001")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cls.bias": torch.full((7,), float("nan"))}, "these weights hold NaN or infinite values: cls.bias"),
        ({1: torch.zeros(2)}, "does not hold a state dict"),
    ],
)
def test_weights_that_are_none(change, message, deit, deit_tiny, tmp_path, capsys):
    code = convert({**deit[0], **change}, tmp_path, deit_tiny)
    assert_refused(code, capsys, deit_tiny["--output"], message)


def assert_backbone_equals_fixture(config, folder, tensors, first):
    model = UneptModel(config).eval()
    model.load_pretrained_backbone(folder)
    with torch.no_grad():
        feature_maps = model.backbone(tensors["inputs.pixel_values"]).feature_maps
    assert len(feature_maps) == 3
    for index, feature_map in enumerate(feature_maps):
        torch.testing.assert_close(feature_map, tensors[f"eval.backbone.{index + first}"], atol=1e-4, rtol=0)


def test_resnet_backbone(resnet, tmp_path, capsys):
    state_dict, tensors = resnet
    checkpoint = {
        "meta": {"epoch": 100},
        "state_dict": {**backbone_of(state_dict), "fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)},
    }
    options = {"--preset": "unept-resnet50", "--output": tmp_path / "out"}
    assert convert(checkpoint, tmp_path, options, convert_backbone_to_hf) == 0
    assert "Left out: fc.weight, fc.bias. Reason: only a classifier uses them." in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert_backbone_equals_fixture(UneptConfig.from_preset("unept-resnet50"), tmp_path / "out", tensors, first=1)


@pytest.fixture
def deit_backbone(tmp_path):
    """Arguments for the backbone of the fixture's model, for images of 64 x 64."""
    model_args = {**DEIT_TINY["backbone_config"]["model_args"], "img_size": 64}
    config = {**DEIT_TINY, "backbone_config": {**DEIT_TINY["backbone_config"], "model_args": model_args}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return {"--config": tmp_path / "config.json", "--output": tmp_path / "out" / "backbone"}


@pytest.mark.floor
def test_deit_backbone(deit, deit_backbone, tmp_path, capsys):
    state_dict, tensors = deit
    checkpoint = {"model": {**backbone_of(state_dict), "norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}}
    for head in ("head", "head_dist"):
        checkpoint["model"][f"{head}.weight"] = torch.zeros(10, 48)
    assert convert(checkpoint, tmp_path, deit_backbone, convert_backbone_to_hf) == 0
    output = capsys.readouterr().out
    assert "Left out: norm.weight, norm.bias, head.weight, head_dist.weight. Reason" in output
    assert "Resized" not in output
    config = UneptConfig.from_pretrained(deit_backbone["--config"])
    assert_backbone_equals_fixture(config, deit_backbone["--output"], tensors, first=0)


def test_deit_backbone_of_another_image_size(deit, deit_backbone, tmp_path, capsys):
    functions = load_file(FIXTURES / "deit_tiny.safetensors")
    before, after = functions["fn.pos_embed_6x6_in"], functions["fn.pos_embed_4x4_out"]
    checkpoint = {**backbone_of(deit[0]), "pos_embed": before}
    assert convert(checkpoint, tmp_path, deit_backbone, convert_backbone_to_hf) == 0
    assert "Resized the position embedding from 38 to 18 positions" in capsys.readouterr().out
    weights = load_file(deit_backbone["--output"] / "model.safetensors")
    torch.testing.assert_close(weights["_backbone.model.pos_embed"], after, atol=1e-6, rtol=0)


def test_image_size_from_the_name_of_the_timm_model(deit, deit_backbone, tmp_path):
    """Where the configuration names no image size, it is that of the timm model."""
    backbone_config = {**DEIT_TINY["backbone_config"], "model_args": {"embed_dim": 48, "depth": 12, "num_heads": 3}}
    deit_backbone["--config"].write_text(json.dumps({**DEIT_TINY, "backbone_config": backbone_config}))
    assert convert(backbone_of(deit[0]), tmp_path, deit_backbone, convert_backbone_to_hf) == 0
    weights = load_file(deit_backbone["--output"] / "model.safetensors")
    assert weights["_backbone.model.pos_embed"].shape == (1, 2 + (224 // 16) ** 2, 48)


def test_deit_backbone_without_distillation_token(deit, deit_backbone, tmp_path, capsys):
    checkpoint = backbone_of(deit[0])
    del checkpoint["dist_token"]
    checkpoint["pos_embed"] = checkpoint["pos_embed"][:, 1:]
    code = convert(checkpoint, tmp_path, deit_backbone, convert_backbone_to_hf)
    assert_refused(
        code,
        capsys,
        deit_backbone["--output"],
        "1 missing: _backbone.model.dist_token",
        "1 of another shape: _backbone.model.pos_embed ((1, 17, 48) instead of (1, 18, 48))",
    )


def test_existing_output_of_the_backbone_script(deit, deit_backbone, tmp_path, capsys):
    deit_backbone["--output"].mkdir(parents=True)
    (deit_backbone["--output"] / "notes.txt").touch()
    assert convert(backbone_of(deit[0]), tmp_path, deit_backbone, convert_backbone_to_hf) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in deit_backbone["--output"].iterdir()] == ["notes.txt"]


def test_prefix_of_data_parallel_training_is_removed_once(tmp_path):
    torch.save({"module.module.weight": torch.ones(1)}, tmp_path / "model.pth")
    assert list(read_state_dict(tmp_path / "model.pth")) == ["module.weight"]
