# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What pip and PyPI are told: the oldest versions of the dependencies, the README, and the tag of a wheel."""

import configparser
import re
from pathlib import Path

import pytest
import setuptools

from unept_hf.cli import main
from unept_hf.export.model_card import TEMPLATE
from unept_hf.kernels import cpu


ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/unept-hf/unept-hf"


def floors() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return dict(line.split(">=") for line in setup["options"]["install_requires"].split())


def test_the_oldest_versions_are_the_ones_that_are_tested():
    lines = (ROOT / "requirements" / "minimum.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, floor in floors().items():
        # The oldest release that a floor such as 2.11 admits.
        parts = pinned.pop(name).split(".")
        assert [*floor.split("."), "0", "0"][: len(parts)] == parts, name
    assert not pinned


def test_model_cards_name_the_oldest_versions():
    named = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', TEMPLATE.read_text(encoding="utf-8")))
    assert named == {name: floors()[name] for name in ("torch", "transformers", "timm")}


@pytest.fixture
def distribution(monkeypatch):
    monkeypatch.chdir(ROOT)
    return setuptools.distutils.core.run_setup("setup.py", stop_after="config")


def test_links_of_the_readme_work_on_pypi(distribution):
    text = distribution.metadata.long_description
    targets = re.findall(r"(!?)\[[^][]*\]\(([^)\s]+)\)", text)
    assert targets and text.count("](") == len(targets)
    for is_picture, target in targets:
        assert target.startswith(("https://", "#")), target
        if target.startswith(REPOSITORY):
            kind, branch, path = target.removeprefix(f"{REPOSITORY}/").split("/", 2)
            assert (kind, branch) == ("raw" if is_picture else "blob", "main"), target
            assert (ROOT / path.partition("#")[0]).exists(), target


def test_a_wheel_without_libraries_is_not_one_of_the_platform(distribution, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("CXX", "false")
    build = distribution.get_command_obj("build_ext")
    build.build_lib = build.build_temp = str(tmp_path)
    build.ensure_finalized()
    build.run()
    wheel = distribution.get_command_obj("bdist_wheel")
    wheel.ensure_finalized()
    assert wheel.get_tag() == ("py3", "none", "any") and wheel.root_is_pure
    library = Path(build.get_outputs()[0])
    library.parent.mkdir(parents=True)
    library.touch()
    python, abi, platform = wheel.get_tag()
    assert (python, abi) == ("py3", "none") and platform != "any" and not wheel.root_is_pure


def test_env_says_how_to_get_the_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "__init__.py"))
    library, missing = cpu._load_library()
    monkeypatch.setattr(cpu, "_library", library)
    monkeypatch.setattr(cpu, "_missing", missing)
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "cpu on cpu: does not run: " in text and "chosen on cpu: torch" in text
    assert "pip install --no-cache-dir --force-reinstall --no-deps --no-binary unept-hf unept-hf" in text
    monkeypatch.undo()
    if cpu._library is not None:
        assert main(["env"]) == 0
        text = capsys.readouterr().out
        assert "chosen on cpu: cpu" in text and "library of the cpu backend: deformable_attention_" in text
