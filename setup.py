# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
What setup.cfg cannot say: the CPU kernel, and the README as PyPI shows it.

The CPU kernel is plain shared libraries, one for each instruction set, that know neither Python nor torch. The package
works without them, only slower, so a missing compiler does not stop the installation.
"""

import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


REPOSITORY = "https://github.com/unept-hf/unept-hf"
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
        # A wheel that was built without a compiler is no match for one of this platform, and must not look like it.
        libraries = self.get_finalized_command("build_ext").get_outputs()
        self.root_is_pure = not any(Path(library).exists() for library in libraries)
        return "py3", "none", super().get_tag()[2]


def readme():
    """The README with absolute links, because its files are not on PyPI."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    # The pictures come as files, other targets as pages of the repository.
    for before, kind in ((r"(?<!!)(\[[^][]*\]\()", "blob"), (r"(!\[[^][]*\]\()", "raw")):
        text = re.sub(before + r"(?!https?:|#)", rf"\1{REPOSITORY}/{kind}/main/", text)
    return text


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
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
