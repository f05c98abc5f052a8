# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Which numbers of queries and warps per program are the fastest on this GPU?

The script times every configuration of the Triton kernels at the shapes of `deformable_attention.py`, with two images,
and marks the configuration that the launcher chooses.

    python benchmarks/triton_tuning.py --shapes "UN-EPT encoder"
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
import triton
from deformable_attention import SHAPES, make_arguments
from results_file import RESULTS, today, versions, write_results

from unept_hf.kernels import triton as kernels


def configurations(value, positions, backward):
    """The launcher's choice, and those whose threads access each corner of a tile half a time to four times."""
    constants = kernels.constants(value, positions, backward)
    tile = constants["BLOCK_POINTS"] * constants["BLOCK_DIM"] * (4 if backward else value.itemsize)
    yield constants["BLOCK_QUERIES"], constants["num_warps"]
    for queries, warps in itertools.product((1, 2, 4, 8, 16, 32), (1, 2, 4, 8)):
        if 0.5 <= queries * tile / (warps * kernels._WARP_SIZE * 16) <= 4:
            yield queries, warps


def measure(shape, dtype):
    """Milliseconds of each pass with each configuration; None where it does not run."""
    arguments = make_arguments(*SHAPES[shape], dtype, torch.device("cuda"), batch=2)
    value, positions = arguments[0], arguments[3]
    grad_output = torch.ones_like(kernels.forward(*arguments))
    passes = {
        "forward": lambda chosen: kernels.forward(*arguments, configuration=chosen),
        "backward": lambda chosen: kernels.backward(grad_output, *arguments, configuration=chosen),
    }
    for name, function in passes.items():
        default, *others = dict.fromkeys(configurations(value, positions, name == "backward"))
        for chosen in (default, *others):
            row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "pass": name}
            try:
                milliseconds = triton.testing.do_bench(lambda: function(chosen), warmup=5, rep=30)  # noqa: B023
            except triton.runtime.errors.OutOfResources:
                milliseconds = None
            yield row | {
                "queries": chosen[0],
                "warps": chosen[1],
                "default": chosen == default,
                "milliseconds": milliseconds,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no GPU")

    rows = []
    for shape, dtype in itertools.product(arguments.shapes, arguments.dtypes):
        for row in measure(shape, getattr(torch, dtype)):
            rows.append(row)
            print(json.dumps(row), flush=True)

    facts = {"device": torch.cuda.get_device_name(), "date": today(), **versions("torch", "triton")}
    lines = [
        "| shape | dtype | pass | fastest: queries, warps | ms | by itself: queries, warps | ms |",
        "| --- | --- | --- | --- | ---: | --- | ---: |",
    ]
    key = ("shape", "dtype", "pass")
    for case, group in itertools.groupby(rows, lambda row: tuple(row[name] for name in key)):
        group = [row for row in group if row["milliseconds"] is not None]
        best = min(group, key=lambda row: row["milliseconds"])
        cells = [*case]
        for row in (best, next(row for row in group if row["default"])):
            cells += [f"{row['queries']}, {row['warps']}", f"{row['milliseconds']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    title = "Configurations of the Triton kernels"
    write_results(arguments.output, "triton_tuning", title, facts, lines, rows=rows)


if __name__ == "__main__":
    main()
