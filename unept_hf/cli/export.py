# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf export`: a model as ONNX, torch.export or AOTInductor, or as a directory or repository for the Hub."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from ..arguments import HubArguments, read_options
from .command_line import DeviceArguments, choose_device, load_model, positive_integer


__all__ = ["EXAMPLES", "add_arguments", "run"]

USAGE = "model output"
OPTIONS = (DeviceArguments, HubArguments)
EXAMPLES = """\
examples:
  unept-hf export my-model my-model.onnx
  unept-hf export my-model my-model.pt2                    (torch.export)
  unept-hf export my-model my-model.pt2 --format aot       (compiled by AOTInductor)
  unept-hf export my-model my-model-int8.onnx --quantize int8
  unept-hf export my-model my-model-for-the-hub            (a directory with its code)
  unept-hf export my-model hf://owner/my-model --evaluation results.json --example_image photo.jpg"""

HUB_PREFIX = "hf://"


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("model", help="Directory or Hub name of the model, or a preset for random weights.")
    add("output", help="File ending in .onnx or .pt2, a directory for the Hub, or hf://owner/name to upload.")
    add("--format", choices=["onnx", "torch", "aot", "hub"], help="What to write, if OUTPUT does not tell.")
    add("--overwrite", action="store_true", help="Replace existing results.")
    add("--size_divisor", type=positive_integer, help="Sides are multiples of it; by default the model's own.")
    add("--tolerance", type=float, default=1e-3, help="Largest difference of outputs from the model's.")
    add("--opset", type=positive_integer, help="Version of ONNX's operators; by default PyTorch's choice.")
    add(
        "--keep_kernel",
        action="store_true",
        help="For torch.export: keep the package's operator, which is faster and needs unept_hf to load the file.",
    )
    add("--quantize", choices=["int8"], help="For ONNX: matrix products in int8, quantized at run time.")
    add("--license", help="For the Hub: license of the weights, in its spelling; none by default.")
    add("--evaluation", metavar="FILE", help="For the Hub: results.json of an evaluation, for the model card.")
    add("--training_options", metavar="FILE", help="For the Hub: YAML or JSON of options, for the model card.")
    add("--example_image", metavar="FILE", help="For the Hub: an image for the widget of the page.")
    add("--private", action="store_true", help="For hf://: make a new repository private.")


def run(arguments: argparse.Namespace) -> int:
    """Exports a model."""
    is_upload = arguments.output.startswith(HUB_PREFIX)
    output = Path(arguments.output).expanduser()
    suffix = "" if is_upload else output.suffix
    form: Any = arguments.format or {".onnx": "onnx", ".pt2": "torch", "": "hub"}.get(suffix)
    problem = None
    if form is None:
        problem = f"{output} does not say what to write; end it in .onnx or .pt2, or pass --format."
    elif is_upload and (form != "hub" or arguments.output.removeprefix(HUB_PREFIX).count("/") != 1):
        problem = f"{arguments.output} must be hf://owner/name, without another --format."
    elif form != "hub" and output.exists() and not arguments.overwrite:
        problem = f"{output} exists already; pass --overwrite, or name another file."
    elif arguments.quantize and form != "onnx":
        problem = "--quantize is for ONNX alone; name a file that ends in .onnx."
    if problem is not None:
        raise ValueError(problem)
    model, processor = load_model(arguments.model, arguments, allow_preset=True)
    model.to(choose_device(arguments.device))
    if form == "hub":
        _export_for_hub(model, processor, output, arguments)
    else:
        _export_file(model, processor, form, output, arguments)
    return 0


def _export_for_hub(model, processor, output: Path, arguments: argparse.Namespace) -> None:
    from ..export.hub import push_to_hub, save_for_hub
    from ..export.model_card import default_model_card, describe_backbone

    repository = arguments.output.removeprefix(HUB_PREFIX)
    is_upload = repository != arguments.output
    name = repository if is_upload else output.resolve().name
    evaluation, training_options = (
        None if file is None else read_options(file) for file in (arguments.evaluation, arguments.training_options)
    )
    model_card = default_model_card(
        name,
        model.config.num_labels,
        license=arguments.license,
        backbone=describe_backbone(model.config),
        training_options=training_options,
        evaluation=evaluation,
    )
    options = {"model_card": model_card, "example_image": arguments.example_image}
    if is_upload:
        private = arguments.private or None
        commit = push_to_hub(model, processor, name, private=private, token=arguments.token, **options)
        print(f"Uploaded to {commit.commit_url.partition('/commit/')[0]}")
    else:
        save_for_hub(model, processor, output, overwrite=arguments.overwrite, **options)
        print(f"Wrote {output}: hf upload <user>/{name} {output}")


def _export_file(model, processor, form: str, output: Path, arguments: argparse.Namespace) -> None:
    from ..export.graphs import export_aot_inductor, export_onnx, export_torch, quantize_onnx

    start, change = time.perf_counter(), None
    checks = {"size_divisor": arguments.size_divisor, "tolerance": arguments.tolerance}
    if form == "onnx":
        metadata = {name: getattr(processor, name, None) for name in ("image_mean", "image_std", "size")}
        metadata["size"] = {name: value for name, value in dict(metadata["size"] or {}).items() if value}
        options = {"opset_version": arguments.opset, "metadata": metadata, **checks}
        if arguments.quantize:
            with tempfile.TemporaryDirectory() as directory:
                difference = export_onnx(model, Path(directory, "float32.onnx"), **options)
                change = quantize_onnx(Path(directory, "float32.onnx"), output)
        else:
            difference = export_onnx(model, output, **options)
    elif form == "torch":
        difference = export_torch(model, output, keep_kernel=arguments.keep_kernel, **checks)
    else:
        difference = export_aot_inductor(model, output, **checks)
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB, in {time.perf_counter() - start:.0f} s.")
    if difference is None:
        print("Its outputs were not compared with the model's, which needs ONNX Runtime: pip install onnxruntime")
    elif change is not None:
        print(
            f"In float32 its outputs differ from the model's by at most {difference:.1e}; int8 changes them by "
            f"{100 * change:.1f} % more, on random images."
        )
    else:
        print(
            f"Its outputs differ from the model's by at most {difference:.1e} (tolerance {arguments.tolerance:.1e})."
        )
