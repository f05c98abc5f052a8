# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Do the Triton kernels compile for NVIDIA and AMD, and how many registers do they use and spill? Needs no GPU.

The script fails if a kernel does not compile, or if more than a few registers spill to memory.

    python benchmarks/triton_compilation.py --jobs 2
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from results_file import today, versions, write_results
from triton.backends.compiler import GPUTarget

from unept_hf.kernels import triton as kernels


TARGETS = {
    "NVIDIA sm_80": GPUTarget("cuda", 80, 32),
    "NVIDIA sm_90": GPUTarget("cuda", 90, 32),
    "AMD gfx942": GPUTarget("hip", "gfx942", 64),
}
# name: levels, points, channels; always 8 heads
SHAPES = {
    "UN-EPT": (3, 16, 32),
    "Deformable DETR": (4, 4, 32),
    "odd": (2, 5, 20),
    "wide": (1, 4, 128),
}
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# name: kernel, whether it sums in integers
PASSES = {
    "forward": (kernels.forward_kernel, False),
    "backward": (kernels.backward_kernel, False),
    "backward, deterministic": (kernels.backward_kernel, True),
}
# For one more program on a multiprocessor, ptxas may spill a number or two.
ACCEPTED_SPILL = 16
VECTOR_REGISTERS = {"cuda": 65536, "hip": 4 * 512 * 64}
WARPS = {"cuda": 64, "hip": 32}


def compile_kernel(target, shape, dtype, form, name):
    """The compiled kernel, as the launcher would have it."""
    kernel, exact = PASSES[name]
    levels, points, head_dim = SHAPES[shape]
    value = torch.empty(1, 1, 8, head_dim, dtype=getattr(torch, dtype), device="meta")
    positions = torch.empty(1, 1, 8, levels, points, 2, device="meta")
    constants = kernels.constants(value, positions, name != "forward", warp_size=target.warp_size)
    options = {"num_warps": constants.pop("num_warps"), "enable_fp_fusion": True}
    if form == "plain":
        constants["reference_points"] = None
    if not exact:
        constants["unit"] = None
    stored = f"*{TYPES[dtype]}"
    types = {
        **dict.fromkeys(("value", "output", "grad_output", "grad_scores", "scores"), stored),
        # Locations are float32 in any case.
        **dict.fromkeys(("positions", "grad_positions"), stored if form == "fused" else "*fp32"),
        **dict.fromkeys(("reference_points", "unit"), "*fp32"),
        "grad_value": "*i64" if exact else "*fp32",
        "sizes": ("fp32",) * (2 * levels),
        **dict.fromkeys(("queries", "cells", "reference_batch", "reference_query", "reference_level"), "i32"),
    }
    constants = {name: constant for name, constant in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    # torch aligns what it allocates.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if isinstance(signature[name], str) and signature[name].startswith("*")
    }
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options), constants, options


def resources(compiled, target):
    """Registers of a thread and bytes of its stack, where spilled registers go."""
    if target.backend == "hip":
        found = re.findall(r"\.(\w+):\s+(\d+)", compiled.asm["amdgcn"])
        found = {name: int(number) for name, number in found}
        spills = found["vgpr_spill_count"] + found["private_segment_fixed_size"]
        return found["vgpr_count"], spills
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def measure(case):
    target_name, shape, dtype, form, name = case
    target = TARGETS[target_name]
    compiled, constants, options = compile_kernel(target, shape, dtype, form, name)
    registers, spills = resources(compiled, target)
    # They are given out in eights.
    allocated = -(-registers // 8) * 8 * target.warp_size
    return {
        "target": target_name,
        "shape": shape,
        "dtype": dtype,
        "form": form,
        "kernel": name,
        "queries": constants["BLOCK_QUERIES"],
        "warps": options["num_warps"],
        "registers": registers,
        "spilled_bytes": spills,
        "shared_bytes": compiled.metadata.shared,
        "occupancy": min(1.0, VECTOR_REGISTERS[target.backend] // allocated / WARPS[target.backend]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for a table; without it, rows are printed only")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("there is nothing to compile with TRITON_INTERPRET=1: unset it")

    cases = list(
        itertools.product(arguments.targets, arguments.shapes, arguments.dtypes, ("fused", "plain"), list(PASSES))
    )
    rows = []
    # Threads of LLVM do not survive a fork.
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for row in map(measure, cases) if arguments.jobs == 1 else pool.map(measure, cases):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.output:
        write(rows, arguments.output)
    spilled = [row for row in rows if row["spilled_bytes"] > ACCEPTED_SPILL]
    if spilled:
        sys.exit(f"Registers spill in {len(spilled)} of {len(rows)} kernels: {spilled}")


def write(rows, folder):
    lines = [
        "Occupancy is the share of a multiprocessor's warps that registers leave room for.",
        "",
        f"| {' | '.join(name.removesuffix('_bytes') for name in rows[0])} |",
        f"|{5 * ' --- |'}{6 * ' ---: |'}",
    ]
    formats = {"occupancy": "{:.0%}", "spilled_bytes": "{} B", "shared_bytes": "{} B"}
    for row in rows:
        lines.append("| " + " | ".join(formats.get(name, "{}").format(row[name]) for name in row) + " |")
    facts = {"date": today(), **versions("triton", "torch")}
    write_results(folder, "triton_compilation", "The Triton kernels, compiled", facts, lines, rows=rows)


if __name__ == "__main__":
    main()
