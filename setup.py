# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Builds the CPU kernel: plain shared libraries, one for each instruction set, that know neither Python nor torch.

The package works without them, only slower, so a missing compiler does not stop the installation.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


SOURCE = "unept_hf/kernels/cpu/deformable_attention.cpp"
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-g0"]
INSTRUCTION_SETS = {"plain": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
    INSTRUCTION_SETS["avx512"] += ["-mprefer-vector-width=512"]


class BuildLibraries(build_ext):
    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext):
        return []

    def build_extension(self, ext):
        # The libraries share a source file, so each needs its own folder of object files.
        build_temp = self.build_temp
        self.build_temp = f"{build_temp}/{ext.name}"
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = build_temp


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    # Needs GCC or Clang.
    ext_modules=[]
    if sys.platform == "win32"
    else [
        Extension(
            f"unept_hf.kernels.cpu.deformable_attention_{name}",
            [SOURCE],
            extra_compile_args=FLAGS + flags,
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
