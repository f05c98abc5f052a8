"""Figures in the documentation come from files that a benchmark wrote."""

import json
import re
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import plot_results  # noqa: E402
import quote_results  # noqa: E402


@pytest.mark.parametrize("page", quote_results.pages(), ids=lambda page: page.stem)
def test_pages_quote_the_results_as_they_are(page):
    text = page.read_text(encoding="utf-8")
    assert quote_results.with_results(text) == text, "run python benchmarks/quote_results.py"


def test_the_results_page_has_no_table_of_its_own():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(quote_results.MARK.findall(text)) >= 4
    assert not re.search(r"^\|", quote_results.MARK.sub("", text), re.MULTILINE)


def test_a_changed_figure_is_noticed():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = re.findall(r"\| (\d+\.\d+) \|", text)
    assert len(figures) > 20
    tampered = text.replace(f"| {figures[7]} |", "| 99.9 |", 1)
    assert quote_results.with_results(tampered) == text != tampered


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_tables_come_with_their_machine(file):
    assert file.with_suffix(".md").exists()
    machine = json.loads(file.read_text())["machine"]
    assert {"date", "torch"} <= set(machine)
    assert machine["date"] in file.stem


@pytest.mark.parametrize("name", plot_results.FIGURES)
def test_pictures_are_drawn_from_the_results(name, tmp_path):
    figure = plot_results.FIGURES[name]()
    assert all(axis.has_data() for axis in figure.axes)
    figure.savefig(tmp_path / "picture.png")
    assert (ROOT / "docs" / "images" / f"{name}.png").exists(), "run python benchmarks/plot_results.py"
    assert f"images/{name}.png" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
