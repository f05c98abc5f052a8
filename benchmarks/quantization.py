# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How does int8 change the speed and the mean IoU?

A trained model is evaluated on synthetic scenes, and timed for one image, in float32 and in int8: in ONNX Runtime,
and, if the packages are installed, loaded by transformers through torchao and bitsandbytes. Beside the mean IoU, the
table gives the share of pixels with the same class as in PyTorch with float32. A preset has random weights, and is
only timed.

    python benchmarks/quantization.py --repeats 9
    python benchmarks/quantization.py --repeats 9 --preset unept-deit-base
"""

import argparse
import importlib.util
import logging
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BitsAndBytesConfig,
    TorchAoConfig,
)

import unept_hf
from unept_hf import UneptForSemanticSegmentation, evaluate_model, segment
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.export.graphs import export_onnx, quantize_onnx


REFERENCE = "PyTorch, float32"
COMPARED = 20  # images whose label maps are compared pixel by pixel
REST = 0.3  # seconds; the threads of the previous library spin for a while


class OnnxModel(nn.Module):
    """Takes the place of a model in `segment` and `evaluate_model`."""

    def __init__(self, file: Path, config, threads: int):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(()))  # gives the model a device and a dtype

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        outputs = self.session.run(names, {"pixel_values": pixel_values.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs)}


def contestants(name: str, folder: Path, threads: int) -> dict[str, tuple[nn.Module, float]]:
    """Models by their names in the table, with the size of their file in MB."""

    def load(**options):
        model = AutoModelForSemanticSegmentation.from_pretrained(name, **options).eval()
        file = folder / "weights.pt"
        torch.save(model.state_dict(), file)
        return model, file.stat().st_size / 1e6

    models = {REFERENCE: load()}
    model = models[REFERENCE][0]
    plain, quantized = folder / "float32.onnx", folder / "int8.onnx"
    export_onnx(model, plain)
    quantize_onnx(plain, quantized, tolerance=float("inf"))
    for label, file in (("ONNX Runtime, float32", plain), ("ONNX Runtime, int8", quantized)):
        models[label] = OnnxModel(file, model.config, threads), file.stat().st_size / 1e6
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        models["torchao, int8"] = load(quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))
    if importlib.util.find_spec("bitsandbytes") is not None:
        # It warns at every product that its inputs are rounded.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        models["bitsandbytes, int8"] = load(quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    return models


def measure_seconds(models: dict, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each model for one image, in interleaved repeats."""
    pixel_values = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    seconds = {name: [] for name in models}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, (model, _) in models.items():
                time.sleep(REST)
                start = time.perf_counter()
                model(pixel_values=pixel_values)
                if repeat > 0:  # the first run is a warm-up
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_accuracy(models: dict, processor, scenes: int) -> dict[str, dict[str, float]]:
    """Mean IoU on held-out scenes, and the share of pixels with the same class as in the reference."""
    dataset, class_list = load_segmentation_dataset("synthetic", split="validation", num_synthetic_scenes=scenes)
    images = [decode_example(dataset[index], class_list)[0] for index in range(min(COMPARED, scenes))]
    accuracy, expected = {}, None
    for name, (model, _) in models.items():
        metrics = evaluate_model(model, processor, dataset, class_list, boundary_f1=False, progress=False)
        label_maps = [segment(model, processor, image).label_map for image in images]
        expected = expected or label_maps
        same = [(one == other).float().mean().item() for one, other in zip(label_maps, expected)]
        accuracy[name] = {"mean_iou": metrics["mean_iou"], "same pixels": sum(same) / len(same)}
        print(name, accuracy[name], flush=True)
    return accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=unept_hf.SYNTHETIC_SCENES, help="Folder of a model of synthetic scenes.")
    parser.add_argument("--preset", help="Time this preset instead.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    accuracy = {}
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model
        if arguments.preset:
            torch.manual_seed(0)
            name = str(Path(folder, "model"))
            UneptForSemanticSegmentation.from_preset(arguments.preset, num_labels=150).save_pretrained(name)
        models = contestants(name, Path(folder), arguments.threads)
        if arguments.preset and "torchao, int8" in models:
            model, megabytes = models["torchao, int8"]
            models["torchao, int8, compiled"] = torch.compile(model), megabytes
        seconds = measure_seconds(models, arguments.size, arguments.repeats)
        if not arguments.preset:
            processor = AutoImageProcessor.from_pretrained(arguments.model)
            accuracy = measure_accuracy(models, processor, arguments.scenes)
    rows = [
        {
            "runs in": name,
            "megabytes": megabytes,
            "seconds": min(seconds[name]),
            "speed-up": min(seconds[REFERENCE]) / min(seconds[name]),
            **accuracy.get(name, {}),
            "repeats": seconds[name],
        }
        for name, (_, megabytes) in models.items()
    ]

    packages = [name for name in ("torchao", "bitsandbytes") if importlib.util.find_spec(name) is not None]
    facts = {
        "device": cpu_device(),
        "threads": arguments.threads,
        **versions("torch", "onnxruntime", "transformers", *packages),
        "date": today(),
        "model": arguments.preset or Path(arguments.model).name,
        **({} if arguments.preset else {"scenes": arguments.scenes}),
        "size": arguments.size,
        "repeats": arguments.repeats,
    }
    lines = [
        f"Seconds: for one image of {arguments.size} x {arguments.size}, the fastest of the repeats, which are "
        "interleaved."
    ]
    heads, columns = ["runs in", "MB", "seconds", "speed-up"], ["---", "---:", "---:", "---:"]
    if accuracy:
        lines[0] += (
            f" Mean IoU: on {arguments.scenes} held-out synthetic scenes. Same pixels: whose class is that of "
            f"{REFERENCE}, on {min(COMPARED, arguments.scenes)} of them."
        )
        heads, columns = [*heads, "mean IoU", "same pixels"], [*columns, "---:", "---:"]
    cells = [heads, columns]
    for row in rows:
        cells.append([row["runs in"], f"{row['megabytes']:.1f}", f"{row['seconds']:.4f}", f"{row['speed-up']:.2f}"])
        if accuracy:
            cells[-1] += [f"{row['mean_iou']:.4f}", f"{100 * row['same pixels']:.2f} %"]
    lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
    file = "quantization_latency-cpu" if arguments.preset else "quantization-cpu"
    write_results(arguments.output, file, "UN-EPT in int8", facts, lines, rows=rows)


if __name__ == "__main__":
    main()
