# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How long does a UN-EPT take for one image on the CPU in ONNX Runtime, and how long in PyTorch?

Each preset, with random weights, runs in PyTorch with our kernel, and as exported by `export_onnx` and `quantize_onnx`
in ONNX Runtime, with the same number of threads. Logits are compared before anything is timed. Exported files are kept
in `--exports` and used again, because an export takes a minute.

    python benchmarks/onnx_latency.py --repeats 7
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from results_file import RESULTS, cpu_device, today, versions, write_results

from unept_hf import UneptConfig, UneptForSemanticSegmentation
from unept_hf.export.graphs import export_onnx, quantize_onnx


PRESETS = ("unept-tiny", "unept-resnet50", "unept-deit-base")
OURS = "PyTorch, our kernel, float32"
REST = 0.3  # seconds; the threads of the previous library spin for a while
LIMITS = {"ONNX Runtime, float32": 1e-4, "ONNX Runtime, int8": 0.1}  # relative errors of the logits


def exported(model, preset: str, folder: Path) -> dict[str, Path]:
    """The ONNX files of a model, by their names in the table."""
    folder.mkdir(parents=True, exist_ok=True)
    plain, quantized = folder / f"{preset}.onnx", folder / f"{preset}-int8.onnx"
    if not plain.exists():
        export_onnx(model, plain)
    if not quantized.exists():
        quantize_onnx(plain, quantized)
    return {"ONNX Runtime, float32": plain, "ONNX Runtime, int8": quantized}


def in_onnx_runtime(file: Path, threads: int):
    """A function from pixel values to logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0]


def in_pytorch(model):
    def run(pixel_values):
        with torch.inference_mode():
            return model(pixel_values).logits.numpy()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--exports", type=Path, default=Path("runs/onnx_exports"), help="Folder of exported files.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows = []
    for preset in arguments.presets:
        torch.manual_seed(0)
        model = UneptForSemanticSegmentation(UneptConfig.from_preset(preset, num_labels=150)).eval()
        image = torch.randn(1, 3, arguments.size, arguments.size)
        functions = {OURS: in_pytorch(model)}
        for name, file in exported(model, preset, arguments.exports).items():
            functions[name] = in_onnx_runtime(file, arguments.threads)

        logits = {name: function(image) for name, function in functions.items()}
        expected = logits[OURS]
        errors = {
            name: float(np.linalg.norm(got - expected) / np.linalg.norm(expected)) for name, got in logits.items()
        }
        assert all(errors[name] < limit for name, limit in LIMITS.items()), errors
        times = {name: [] for name in functions}
        for _ in range(arguments.repeats):
            for name, function in functions.items():
                time.sleep(REST)
                start = time.perf_counter()
                function(image)
                times[name].append(time.perf_counter() - start)
        ours = min(times[OURS])
        for name, seconds in times.items():
            row = {"preset": preset, "runs in": name, "seconds": min(seconds), "ratio": min(seconds) / ours}
            rows.append(row | {"relative error": errors[name], "repeats": seconds})
            print(f"{preset}, {name}: {min(seconds):.3f} s", flush=True)

    facts = {
        "device": cpu_device(),
        "threads": arguments.threads,
        **versions("torch", "onnxruntime", "transformers", "timm"),
        "date": today(),
        "size": arguments.size,
        "repeats": arguments.repeats,
    }
    table = [
        "Seconds: the fastest of the repeats, which are interleaved. Ratio: to the time of ours; below 1 is faster.",
        "Relative error: of the logits, to ours.",
        "",
        "| preset | runs in | seconds | ratio | relative error |",
        "| --- | --- | ---: | ---: | ---: |",
        *[
            f"| {row['preset']} | {row['runs in']} | {row['seconds']:.3f} | {row['ratio']:.2f} | "
            f"{row['relative error']:.1e} |"
            for row in rows
        ],
    ]
    title = "UN-EPT for one image in ONNX Runtime and here"
    write_results(arguments.output, "onnx_latency-cpu", title, facts, table, rows=rows)


if __name__ == "__main__":
    main()
