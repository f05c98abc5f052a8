# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported files, read by other programs: ONNX Runtime, and torch without unept_hf."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import unept_hf.export
from unept_hf import UneptForSemanticSegmentation, UneptModel
from unept_hf.export import export_aot_inductor, export_onnx, export_torch, largest_difference


# Runs where unept_hf and transformers can not be imported.
LOAD_WITH_TORCH_ALONE = """
import sys
sys.modules["unept_hf"] = sys.modules["transformers"] = None
import torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
outputs = program(load_file(sys.argv[2])["pixel_values"])
save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, sys.argv[3])
"""


def make_model(**fields):
    torch.manual_seed(0)
    options = {"num_labels": 5, "encoder_layers": 1, "decoder_layers": 1, "num_feature_levels": 1, **fields}
    model = UneptForSemanticSegmentation.from_preset("unept-tiny", **options)
    with torch.no_grad():
        # New weights look at fixed points with equal weights; these do not.
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def outputs_of(model, pixel_values):
    with torch.no_grad():
        outputs = model(pixel_values)
    return {name: outputs[name] for name in ("logits", "boundary_logits", "direction_logits")}


def test_onnx_in_onnx_runtime(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    model.train()
    path = tmp_path / "new" / "model.onnx"
    assert export_onnx(model, path, metadata={"image_mean": [0.5, 0.5, 0.5]}) < 1e-3
    assert model.training and model.model.encoder_layers[0].training
    model.eval()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 16, 200), (4, 3, 88, 56)):
        pixel_values = images(*shape)
        expected = outputs_of(model, pixel_values)
        got = session.run(list(expected), {"pixel_values": pixel_values.numpy()})
        for one, tensor in zip(got, expected.values()):
            torch.testing.assert_close(torch.from_numpy(one), tensor, atol=1e-3, rtol=0)
    metadata = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["id2label"] == {str(index): name for index, name in model.config.id2label.items()}
    assert metadata["size_divisor"] == 8 and metadata["image_mean"] == [0.5, 0.5, 0.5]


def test_torch_export_without_this_package(model, tmp_path, monkeypatch):
    assert export_torch(model, tmp_path / "model.pt2") < 1e-3
    pixel_values = images(3, 3, 64, 120)
    save_file({"pixel_values": pixel_values}, tmp_path / "in.safetensors")
    files = [str(tmp_path / name) for name in ("model.pt2", "in.safetensors", "out.safetensors")]
    subprocess.run([sys.executable, "-c", LOAD_WITH_TORCH_ALONE, *files], check=True, capture_output=True)
    got, expected = load_file(files[2]), outputs_of(model, pixel_values)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-3, rtol=0)

    # What is there is kept when a new file turns out to be wrong.
    path = tmp_path / "model.pt2"
    program, before, there = torch.export.load(path), path.read_bytes(), sorted(tmp_path.iterdir())
    monkeypatch.setattr(unept_hf.export, "_exported_program", lambda *arguments: program)
    with pytest.raises(RuntimeError, match=r"differs from the model by up to .* tolerance of 1\.0e-03"):
        export_torch(make_model(decoder_layers=0), path)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == there


def test_torch_export_with_the_kernel(tmp_path):
    model = make_model(use_boundary_heads=False)
    assert export_torch(model, tmp_path / "model.pt2", size_divisor=16, keep_kernel=True) < 1e-3
    program = torch.export.load(tmp_path / "model.pt2")
    operators = {str(node.target) for node in program.graph.nodes}
    assert "unept_hf.deformable_attention.default" in operators
    pixel_values = images(1, 3, 96, 160)
    got = program.module()(pixel_values)
    assert list(got) == ["logits"]
    with torch.no_grad():
        torch.testing.assert_close(got["logits"], model(pixel_values).logits, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_aot_inductor(model, tmp_path):
    assert export_aot_inductor(model, tmp_path / "model.pt2") < 1e-3
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    pixel_values = images(1, 3, 64, 96)
    for name, tensor in outputs_of(model, pixel_values).items():
        torch.testing.assert_close(loaded(pixel_values)[name], tensor, atol=1e-3, rtol=0)


def test_differences_are_found(model):
    def off(pixel_values):
        outputs = outputs_of(model, pixel_values)
        outputs["direction_logits"][-1, 3, 2, 1] += 0.25
        return outputs

    def nan(pixel_values):
        return {**outputs_of(model, pixel_values), "logits": outputs_of(model, pixel_values)["logits"] * float("nan")}

    def short(pixel_values):
        return outputs_of(model, pixel_values[:1])

    assert largest_difference(model, off, 8) == pytest.approx(0.25, abs=1e-3)
    assert largest_difference(model, nan, 8) == float("inf")
    with pytest.raises(RuntimeError, match=r"gives logits of \(1, 5, .* instead of \(2, 5"):
        largest_difference(model, short, 8)


@pytest.mark.parametrize(("export", "suffix"), [(export_onnx, ".onnx"), (export_torch, ".pt2")])
def test_bad_input(model, tmp_path, export, suffix):
    if export is export_onnx:
        pytest.importorskip("onnxscript", reason="needs the extra 'export'")
        with pytest.raises(ValueError, match="float32, but the model is in"):
            export(make_model().to(torch.bfloat16), tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="UneptModel"):
        export(UneptModel(model.config), tmp_path / f"model{suffix}")
    with pytest.raises(ValueError, match=rf"end in \{suffix}.*model\.zip"):
        export(model, tmp_path / "model.zip")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        export(model, tmp_path / f"folder{suffix}")


def test_missing_packages(model, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match="pip install onnxscript"):
        export_onnx(model, tmp_path / "model.onnx")
