# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Export of a model as one file that runs without this package: ONNX, torch.export, or compiled by AOTInductor.

Batch size, height and width stay free; height and width must be multiples of the model's stride. All forms take
`pixel_values`, as the image processor makes them, and return `logits`, and `boundary_logits` and `direction_logits`
if the model has boundary heads. `unept_hf.export.hub` writes whole directories for the Hub.
"""

import contextlib
import importlib.util
import json
import logging
import math
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import atomic_file
from ..inference.segment import evaluation_mode
from ..model.deformable_attention import attention_backend
from ..model.modeling_unept import UneptForSemanticSegmentation


__all__ = ["LogitsOnly", "export_aot_inductor", "export_onnx", "export_torch", "largest_difference", "quantize_onnx"]

OUTPUTS = ("logits", "boundary_logits", "direction_logits")
LONGEST_SIDE = 8192  # in pixels
LARGEST_BATCH = 64
TRIED_GRIDS = ((9, 5), (8, 6), (4, 11))  # rows and columns, in strides, of the images that test an export


class LogitsOnly(nn.Module):
    """A model that returns a plain dictionary of its logits, which no class is needed to read."""

    def __init__(self, model: UneptForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        outputs = self.model(pixel_values=pixel_values, return_dict=True)
        return {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}


def _example(model: UneptForSemanticSegmentation, batch: int, rows: int, columns: int, divisor: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, model.config.num_channels, rows * divisor, columns * divisor)
    return torch.randn(shape, generator=generator).to(model.device, model.dtype)


def _dynamic_shapes(divisor: int) -> dict:
    height, width = (
        divisor * torch.export.Dim(name, min=2, max=LONGEST_SIDE // divisor) for name in ("height", "width")
    )
    return {"pixel_values": {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH), 2: height, 3: width}}


_exporting = threading.RLock()


@contextlib.contextmanager
def _export() -> Iterator[None]:
    """One export at a time, because PyTorch's exporters share state, and without their remarks on their workings."""
    with _exporting, warnings.catch_warnings():
        threshold = logging.root.manager.disable
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(threshold)


def largest_difference(
    model: UneptForSemanticSegmentation, run: Callable[[Tensor], dict[str, Tensor]], size_divisor: int
) -> float:
    """
    The largest absolute difference between the outputs of a model and of its export `run`, over images of random
    pixels of several sizes and batch sizes; infinite if shapes differ, or for NaN.
    """
    largest = 0.0
    with evaluation_mode(model), attention_backend("torch"):
        for batch, (rows, columns) in enumerate(TRIED_GRIDS, start=1):
            pixel_values = _example(model, batch, rows, columns, size_divisor)
            expected, got = LogitsOnly(model)(pixel_values), run(pixel_values)
            for name, tensor in expected.items():
                is_same = got[name].shape == tensor.shape
                difference = (got[name].to(tensor) - tensor).abs().max().item() if is_same else math.inf
                # `max` of Python does not see a NaN.
                largest = max(largest, math.inf if math.isnan(difference) else difference)
    return largest


def _verify(model, run, size_divisor, tolerance, what) -> float:
    difference = largest_difference(model, run, size_divisor)
    if difference > tolerance:
        raise RuntimeError(
            f"{what} differs from the model by up to {difference:.1e}, more than the tolerance of {tolerance:.1e}; "
            "the file was not kept."
        )
    return difference


def _check_packages(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'ONNX needs {" and ".join(missing)}; pip install {" ".join(missing)}, or pip install "unept-hf[export]".'
        )


def export_onnx(
    model: UneptForSemanticSegmentation,
    path: str | os.PathLike,
    *,
    size_divisor: int | None = None,
    opset_version: int | None = None,
    metadata: dict | None = None,
    tolerance: float = 1e-3,
) -> float | None:
    """
    Writes a model as ONNX, with free batch size, height and width.

    If ONNX Runtime is installed, its outputs are compared with those of the model before the file takes its place.

    Args:
        model: the model, in float32.
        path: the file to write. An earlier one is replaced.
        size_divisor: height and width are multiples of it. `None` stands for the model's own.
        opset_version: version of ONNX's operators. `None` stands for PyTorch's recommendation.
        metadata: values to store as JSON beside `id2label` in the file's `metadata_props`.
        tolerance: largest difference of outputs.

    Returns:
        The largest absolute difference of the outputs, or `None` if ONNX Runtime is not installed.

    Raises:
        ValueError: for a model that is not in float32.
        ImportError: when `onnx` or `onnxscript` is missing.
        RuntimeError: when the outputs differ by more than the tolerance.
    """
    _check_packages("onnx", "onnxscript")
    if model.dtype != torch.float32:
        raise ValueError(f"ONNX is exported in float32, but the model is in {model.dtype}; load it in float32.")
    divisor = size_divisor or model.model.size_divisor
    with atomic_file(path) as file:
        with evaluation_mode(model), attention_backend("torch"), _export():
            example = _example(model, 2, 8, 6, divisor)
            names = list(LogitsOnly(model)(example))
            program: Any = torch.onnx.export(
                LogitsOnly(model),
                (example,),
                dynamic_shapes=_dynamic_shapes(divisor),
                input_names=["pixel_values"],
                output_names=names,
                opset_version=opset_version,
                dynamo=True,
                verbose=False,
            )
        properties = {"id2label": model.config.id2label, "size_divisor": divisor, **(metadata or {})}
        program.model.metadata_props.update({name: json.dumps(value) for name, value in properties.items()})
        program.save(file)
        if importlib.util.find_spec("onnxruntime") is None:
            return None
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(pixel_values):
            outputs = session.run(names, {"pixel_values": pixel_values.numpy(force=True)})
            return {name: torch.from_numpy(output) for name, output in zip(names, outputs)}

        return _verify(model, run, divisor, tolerance, "ONNX Runtime's output")


def quantize_onnx(path: str | os.PathLike, quantized_path: str | os.PathLike, *, tolerance: float = 0.25) -> float:
    """
    Writes a file of `export_onnx` again, with its matrix products in int8.

    Weights are stored as int8 with a scale for each output channel, and activations are quantized at run time (ONNX
    Runtime's dynamic quantization), so no calibration images are needed. Convolutions stay in float32: ONNX Runtime's
    int8 convolutions are slower on CPUs. `benchmarks/quantization.py` measures the gain and the cost.

    Args:
        path: the file to read.
        quantized_path: the file to write. An earlier one is replaced.
        tolerance: largest difference of logits, relative to those of `path`. More than a few percent means that int8
            is too coarse for a layer.

    Returns:
        The relative difference of the logits, ‖int8 − float32‖ / ‖float32‖, over images of random pixels.

    Raises:
        ValueError: for a file that `export_onnx` has not written.
        ImportError: when `onnx` or `onnxruntime` is missing.
        RuntimeError: when the logits differ by more than the tolerance.
    """
    _check_packages("onnx", "onnxruntime")
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = Path(path).expanduser()
    reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = reference.get_modelmeta().custom_metadata_map
    if "size_divisor" not in metadata:
        raise ValueError(f"{path} has no size_divisor in its metadata; pass a file that export_onnx wrote.")
    divisor = json.loads(metadata["size_divisor"])
    channels = reference.get_inputs()[0].shape[1]
    with atomic_file(quantized_path) as file:
        with _export():
            quantize_dynamic(
                path, file, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
        quantized = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        random, squares = np.random.default_rng(0), [0.0, 0.0]
        for rows, columns in TRIED_GRIDS:
            pixel_values = random.standard_normal((1, channels, rows * divisor, columns * divisor), np.float32)
            expected, got = (one.run(["logits"], {"pixel_values": pixel_values})[0] for one in (reference, quantized))
            squares[0] += float(np.square(got - expected, dtype=np.float64).sum())
            squares[1] += float(np.square(expected, dtype=np.float64).sum())
        relative = math.sqrt(squares[0] / squares[1])
        if not relative <= tolerance:
            raise RuntimeError(
                f"The logits in int8 differ from those in float32 by {relative:.2f} of their size, more than the "
                f"tolerance of {tolerance:.2f}; the file was not kept."
            )
    return relative


def _exported_program(model, size_divisor: int, keep_kernel: bool) -> torch.export.ExportedProgram:
    # By name, because whatever "auto" stands for gives way to plain PyTorch in exports.
    backend = {"cpu": "cpu", "cuda": "triton"}.get(model.device.type, "torch") if keep_kernel else "torch"
    with evaluation_mode(model), attention_backend(backend), _export():
        program = torch.export.export(
            LogitsOnly(model),
            (_example(model, 2, 8, 6, size_divisor),),
            dynamic_shapes=_dynamic_shapes(size_divisor),
        )
    _replace_ceil(program.graph)
    return program


def _replace_ceil(graph: torch.fx.Graph) -> None:
    """`ceil(a / b)` by `(a + b - 1) // b`: timm pads some layers with the former, which PyTorch cannot save."""
    for node in graph.find_nodes(op="call_function", target=math.ceil):
        (quotient,) = node.args
        if quotient.target is not operator.truediv or not isinstance(quotient.args[1], int):
            continue
        numerator, denominator = quotient.args
        with graph.inserting_before(node):
            raised = graph.call_function(operator.add, (numerator, denominator - 1))
            raised.meta["val"] = numerator.meta["val"] + denominator - 1
            floored = graph.call_function(operator.floordiv, (raised, denominator))
            floored.meta["val"] = raised.meta["val"] // denominator
        node.replace_all_uses_with(floored)
        graph.erase_node(node)
        if not quotient.users:
            graph.erase_node(quotient)


def export_torch(
    model: UneptForSemanticSegmentation,
    path: str | os.PathLike,
    *,
    size_divisor: int | None = None,
    keep_kernel: bool = False,
    tolerance: float = 1e-3,
) -> float:
    """
    Writes a model with `torch.export`, with free batch size, height and width. `torch.export.load(path).module()`
    takes `pixel_values` and returns a dictionary.

    Args:
        model: the model. Its dtype and device are part of the file.
        path, size_divisor, tolerance: see `export_onnx`. The name of the file must end in `.pt2`.
        keep_kernel: whether to keep our operator in the graph, with its fast kernel. The file must then be loaded
            after `import unept_hf`; otherwise it needs nothing but torch.

    Returns:
        The largest absolute difference of the outputs from those of the model in plain PyTorch.

    Raises:
        RuntimeError: when the outputs differ by more than the tolerance, or the kernel to keep cannot run.
    """
    divisor = size_divisor or model.model.size_divisor
    with atomic_file(path) as file:
        torch.export.save(_exported_program(model, divisor, keep_kernel), file)
        loaded = torch.export.load(file).module()
        return _verify(model, loaded, divisor, tolerance, "The exported program's output")


def export_aot_inductor(
    model: UneptForSemanticSegmentation,
    path: str | os.PathLike,
    *,
    size_divisor: int | None = None,
    tolerance: float = 1e-3,
) -> float:
    """
    Compiles a model ahead of time for this kind of machine, with free batch size, height and width.
    `torch._inductor.aoti_load_package(path)` takes `pixel_values` and returns a dictionary, and so does the C++ class
    `torch::inductor::AOTIModelPackageLoader` without Python.

    Args:
        model, path, size_divisor, tolerance: see `export_torch`.

    Returns:
        The largest absolute difference of the outputs from those of the model in plain PyTorch.

    Raises:
        RuntimeError: when the outputs differ by more than the tolerance, or the machine has no C++ compiler.
    """
    divisor = size_divisor or model.model.size_divisor
    with atomic_file(path) as file:
        program = _exported_program(model, divisor, keep_kernel=False)
        with _export():
            torch._inductor.aoti_compile_and_package(program, package_path=str(file))
        loaded = torch._inductor.aoti_load_package(str(file))
        return _verify(model, loaded, divisor, tolerance, "The compiled model's output")
