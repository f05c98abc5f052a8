# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported files, read by other programs: ONNX Runtime, and torch without unept_hf."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import unept_hf.export.graphs
from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.cli import main
from unept_hf.export.graphs import (
    LogitsOnly,
    export_aot_inductor,
    export_onnx,
    export_torch,
    largest_difference,
    quantize_onnx,
)
from unept_hf.export.hub import save_for_hub
from unept_hf.kernels import cpu
from unept_hf.model.boundary import boundary_targets


# Runs where unept_hf and transformers cannot be imported.
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
    options = {"num_labels": 5, "encoder_layers": 1, "decoder_layers": 1, "num_feature_levels": 2, **fields}
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


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    model.train()
    path = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    assert export_onnx(model, path, metadata={"image_mean": [0.5, 0.5, 0.5]}) < 1e-3
    assert model.training and model.model.encoder_layers[0].training
    model.eval()
    return path


def compare_in_onnx_runtime(path, model, close):
    """Calls `close(got, expected)` for the outputs of images of several sizes, and returns the file's metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 16, 200), (4, 3, 88, 56)):
        pixel_values = images(*shape)
        expected = outputs_of(model, pixel_values)
        got = session.run(list(expected), {"pixel_values": pixel_values.numpy()})
        for one, tensor in zip(got, expected.values()):
            close(torch.from_numpy(one), tensor)
    return session.get_modelmeta().custom_metadata_map


def test_onnx_in_onnx_runtime(onnx_file, model):
    metadata = compare_in_onnx_runtime(onnx_file, model, partial(torch.testing.assert_close, atol=1e-3, rtol=0))
    metadata = {name: json.loads(text) for name, text in metadata.items()}
    assert metadata["id2label"] == {str(index): name for index, name in model.config.id2label.items()}
    assert metadata["size_divisor"] == 8 and metadata["image_mean"] == [0.5, 0.5, 0.5]


def test_onnx_without_our_function(model):
    """PyTorch's own export takes the plain form of the attention too, without being told."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    program = torch.onnx.export(LogitsOnly(model).eval(), (images(1, 3, 64, 48),), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}


@pytest.mark.parametrize(
    ("name", "packages"),
    [("Onnx", ["onnxscript", "onnxruntime"]), ("OpenVINO", ["openvino"])],
    ids=["onnx", "openvino"],
)
def test_exporters_of_transformers(name, packages):
    """They begin with torch.export, and know no operator of ours."""
    for package in packages:
        pytest.importorskip(package)
    module = pytest.importorskip(
        f"transformers.exporters.exporter_{name.lower()}", reason="this version of transformers has no exporters"
    )
    model, pixel_values = make_model(), images(2, 3, 64, 96)
    exporter, config = getattr(module, f"{name}Exporter")(), getattr(module, f"{name}Config")()
    got = exporter.export(model, {"pixel_values": pixel_values}, config=config)(pixel_values=pixel_values)
    for key, tensor in outputs_of(model, pixel_values).items():
        # OpenVINO computes in bfloat16 where the processor can.
        assert (torch.as_tensor(got[key]) - tensor).norm() < (0.05 if name == "OpenVINO" else 1e-4) * tensor.norm()


class Logits(torch.nn.Module):
    """Returns a tuple, which every version of `torch.jit.trace` takes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        outputs = self.model(*inputs, return_dict=False)
        return outputs[:1] if len(inputs) > 1 else outputs


# That torch.jit is deprecated is said by all versions from 2.14 on; tracing asks each property of the model.
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.floor
class TestTracing:
    @pytest.mark.parametrize(
        ("decoder_self_attention", "training"), [("deformable", False), ("deformable", True), ("dense", False)]
    )
    def test_other_sizes(self, decoder_self_attention, training):
        model = make_model(decoder_self_attention=decoder_self_attention, dropout=0.0, attention_dropout=0.0)
        model.train(training)
        buffer = io.BytesIO()
        with torch.set_grad_enabled(training):
            torch.jit.save(torch.jit.trace(Logits(model), (images(2, 3, 64, 96),), check_trace=False), buffer)
        buffer.seek(0)
        traced = torch.jit.load(buffer)
        for shape in ((2, 3, 64, 96), (1, 3, 128, 64), (3, 3, 40, 72)):
            pixel_values = images(*shape)
            with torch.no_grad():
                torch.testing.assert_close(traced(pixel_values), Logits(model)(pixel_values), atol=1e-4, rtol=0)
        if not training:
            return
        gradients = []
        for function, module in ((Logits(model), model), (traced, traced.model)):
            sum(output.square().mean() for output in function(images(1, 3, 128, 64))).backward()
            gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)

    def test_loss(self):
        model = make_model(dropout=0.0, attention_dropout=0.0).train()
        labels = torch.arange(96).div(20, rounding_mode="floor").expand(2, 64, 96).contiguous()
        with pytest.raises(ValueError, match="pass boundary_map and direction_map"):
            torch.jit.trace(Logits(model), (images(2, 3, 64, 96), labels))
        inputs = (images(2, 3, 64, 96), labels, *boundary_targets(labels))
        traced = torch.jit.trace(Logits(model), inputs, check_trace=False)
        others = (images(1, 3, 32, 64), *(tensor[:1, 16:48, 20:84] for tensor in inputs[1:]))
        torch.testing.assert_close(traced(*others), Logits(model)(*others), atol=1e-4, rtol=0)


def test_int8(onnx_file, model, tmp_path):
    import onnx

    path = tmp_path / "new" / "int8.onnx"
    assert 1e-4 < quantize_onnx(onnx_file, path) < 0.1

    # Every product with a weight is an integer one, and nothing else is.
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert kinds.count("MatMulInteger") == len(weights) > 5 and "ConvInteger" not in kinds
    assert path.stat().st_size < onnx_file.stat().st_size - 2 * sum(weight.numel() for weight in weights)

    def close(got, expected):
        assert 0 < (got - expected).norm() < 0.1 * expected.norm()

    metadata = compare_in_onnx_runtime(path, model, close)
    assert json.loads(metadata["image_mean"]) == [0.5, 0.5, 0.5] and "id2label" in metadata

    before, there = path.read_bytes(), sorted(path.parent.iterdir())
    with pytest.raises(RuntimeError, match=r"int8 differ from those in float32 by 0\.0.* tolerance of 0\.00"):
        quantize_onnx(onnx_file, path, tolerance=1e-4)
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == there
    other = onnx.load(onnx_file)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx has no size_divisor"):
        quantize_onnx(tmp_path / "other.onnx", path)


def test_int8_command(onnx_file, model, tmp_path, monkeypatch, capsys):
    save_for_hub(model, UneptImageProcessor(size_divisor=8), tmp_path / "model")

    def export_once(model, path, **options):
        shutil.copyfile(onnx_file, path)
        return 2e-6

    monkeypatch.setattr(unept_hf.export.graphs, "export_onnx", export_once)
    file = tmp_path / "int8.onnx"
    assert main(["export", str(tmp_path / "model"), str(file), "--quantize", "int8", "--device", "cpu"]) == 0
    assert re.search(r"at most 2\.0e-06; int8 changes them by [0-9]\.[0-9] % more", capsys.readouterr().out)
    assert file.stat().st_size < onnx_file.stat().st_size
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "a.pt2"), "--quantize", "int8"]) == 1
    assert "--quantize is for ONNX alone" in capsys.readouterr().err


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
    monkeypatch.setattr(unept_hf.export.graphs, "_exported_program", lambda *arguments: program)
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


def test_a_kernel_that_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_missing", "nothing was built")
    with pytest.raises(RuntimeError, match="'cpu' cannot run: nothing was built"):
        export_torch(make_model(), tmp_path / "model.pt2", keep_kernel=True)


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
    assert largest_difference(model, short, 8) == float("inf")


@pytest.mark.parametrize(("function", "suffix"), [(export_onnx, ".onnx"), (export_torch, ".pt2")])
def test_bad_input(model, tmp_path, function, suffix):
    if function is export_onnx:
        pytest.importorskip("onnxscript", reason="needs the extra 'export'")
        with pytest.raises(ValueError, match="float32, but the model is in"):
            function(make_model().to(torch.bfloat16), tmp_path / "model.onnx")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(FileExistsError, match="is a directory"):
        function(model, tmp_path / f"folder{suffix}")


def test_missing_packages(model, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match="ONNX needs onnxscript; pip install onnxscript"):
        export_onnx(model, tmp_path / "model.onnx")
