# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Puts the Triton kernel and the layer for the Kernel Hub together.

    python kernel_hub/assemble.py unept-deformable-attention
"""

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path


HERE = Path(__file__).parent
KERNEL = HERE.parent / "unept_hf" / "kernels" / "triton"
# As kernel-builder writes it: names of operators that no other version of the kernel has.
OPS = '''import torch

ops = torch.ops.{namespace}


def add_op_namespace_prefix(op_name: str):
    """Prefix op by namespace."""
    return f"{namespace}::{{op_name}}"
'''


def assemble(folder: Path, backends: list[str]) -> None:
    """
    Writes a project for kernel-builder to a new folder, and a form that the kernels library can load under `build/`.

    Args:
        backends: "cuda", "rocm", or "cpu" where TRITON_INTERPRET=1 is set.
    """
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("assemble.py", "__pycache__"))
    name = re.search(r'^name = "(.*)"', (HERE / "build.toml").read_text(), re.M).group(1)
    package = folder / "torch-ext" / name.replace("-", "_")
    shutil.copytree(KERNEL, package / "triton_kernel", ignore=shutil.ignore_patterns("__pycache__"))

    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))).hexdigest()[:7]
    for backend in backends:
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(package, variant)
        namespace = f"_{package.name}_{backend}_{digest}"
        (variant / "_ops.py").write_text(OPS.format(namespace=namespace))
        metadata = {
            "name": name,
            "id": namespace,
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--backends", nargs="*", default=["cuda", "rocm"], choices=["cuda", "rocm", "cpu"])
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists already")
    assemble(arguments.folder, arguments.backends)


if __name__ == "__main__":
    main()
