# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The pages are correct: their Python runs, their links resolve, their commands parse, and their English is plain.

The Python blocks of a page run in order, as one program, in a folder with the files that they name. A block below
`<!-- not run: reason -->` does not run. The notebook runs in the same way.
"""

import ast
import contextlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
import urllib.parse
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, cli
from unept_hf.data.class_lists import load_class_list
from unept_hf.export.hub import save_for_hub
from unept_hf.synthetic.scenes import synthetic_scene


ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/upstream/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(ROOT.glob("kernel_hub/*.md")),
]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
TRAINER = "examples/run_semantic_segmentation.py"
SLOW = {"docs/export.md", "docs/training.md"}
# What takes the network or minutes, and what takes its place.
STAND_INS = {
    '"unept-resnet50"': '"unept-tiny"',
    "use_pretrained_backbone=True": "use_pretrained_backbone=False",
    '"nvidia/segformer-b0-finetuned-ade-512-512"': '"segformer"',
    "num_synthetic_scenes=20)": "num_synthetic_scenes=3)",
    "num_synthetic_scenes=64)": "num_synthetic_scenes=8)",
    "num_synthetic_scenes=8)": "num_synthetic_scenes=2)",
    # The photograph of a page is a scene here.
    'load_class_list("camvid")': 'load_class_list("synthetic")',
    "point=(320, 190)": "point=(60, 40)",
}
NOTEBOOK_STAND_INS = {
    "STEPS = 120": "STEPS = 2",
    "TRAIN_SCENES = 300": "TRAIN_SCENES = 8",
    "EVAL_SCENES = 30": "EVAL_SCENES = 2",
    "https://raw.githubusercontent.com/unept-hf/unept-hf/main/docs/images/street.jpg": "photo.jpg",
    "point=(320, 190)": "point=(60, 40)",
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The blocks of a page that are to run, with the lines that they begin in."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.M | re.S):
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2].strip()
        marker = re.fullmatch(r"<!-- not run: (.+) -->", above)
        if marker is None:
            indent, code = match.groups()
            blocks.append((text[: match.start()].count("\n") + 2, re.sub(f"^{indent}", "", code, flags=re.M)))
    return blocks


def notebook_blocks(path: Path) -> list[tuple[int, str]]:
    """The code cells of a notebook by their number, without the lines for the shell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    blocks = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            blocks.append((number, "".join(line for line in cell["source"] if not line.startswith(("%", "!")))))
    return blocks


# The program that runs them


def prepare(folder: Path) -> dict:
    """Writes what the pages take for given, and returns the variables that they do."""
    torch.manual_seed(0)
    classes = load_class_list("synthetic")
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny",
        encoder_layers=1,
        decoder_layers=1,
        id2label=classes.id2label,
        label2id=classes.label2id,
    ).eval()
    save_for_hub(model, UneptImageProcessor(size={"shortest_edge": 128, "longest_edge": 512}), folder / "my-model")
    (folder / "quickstart_output").mkdir()
    shutil.copytree(folder / "my-model", folder / "quickstart_output" / "model")
    image, labels = synthetic_scene(0, size=(96, 128))
    for name in ("image.jpg", "photo.jpg"):
        Image.fromarray(np.asarray(image)).save(folder / name)
    Image.fromarray(np.asarray(labels, np.uint8)).save(folder / "annotation.png")
    os.symlink(ROOT / "unept_hf", folder / "unept_hf")
    config = SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, decoder_hidden_size=8, num_labels=150)
    SegformerForSemanticSegmentation(config).save_pretrained(folder / "segformer")
    SegformerImageProcessor(size=64).save_pretrained(folder / "segformer")
    reference = np.asarray(labels, np.int64) % 6
    return {
        "model": model,
        "images": [image] * 2,
        "label_maps": [np.asarray(labels) % 2] * 2,
        "pairs": [(reference, reference)],
        "torch": torch,
    }


def run_blocks(blocks: list[tuple[int, str]], where: str, stand_ins: dict, variables: dict) -> "str | None":
    """Runs blocks one after the other, and returns the first error."""
    for place, code in blocks:
        for text, other in stand_ins.items():
            code = code.replace(text, other)
        try:
            # Lines in stack traces are those of the page.
            exec(compile("\n" * (place - 1) + code, where, "exec"), variables)
        except Exception:
            return f"The block at {place} of {where}:\n{traceback.format_exc()}"
    return None


def run_documents(folder: str, *names: str) -> None:
    """Runs pages and notebooks in a folder, and prints what went wrong with each as JSON."""
    import matplotlib

    matplotlib.use("Agg")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    errors = {}
    for name in names:
        place = Path(folder, name.replace("/", "-"))
        place.mkdir()
        os.chdir(place)
        variables = {"__name__": "__main__", **prepare(place)}
        with contextlib.redirect_stdout(io.StringIO()):
            if name.endswith(".ipynb"):
                errors[name] = run_blocks(notebook_blocks(ROOT / name), name, NOTEBOOK_STAND_INS, variables)
            else:
                errors[name] = run_blocks(python_blocks(ROOT / name), name, STAND_INS, variables)
    print(json.dumps(errors))


def errors_of(folder: Path, names: list[str]) -> dict[str, "str | None"]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, __file__, str(folder), *names], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


HAVE_PYTHON = (ROOT, ROOT / "docs", ROOT / "docs" / "upstream")
WITH_PYTHON = [name_of(page) for page in PAGES if page.parent in HAVE_PYTHON and python_blocks(page)]


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """What went wrong with the pages that are quick, in one process, which the libraries take seconds to load in."""
    return errors_of(tmp_path_factory.mktemp("pages"), [name for name in WITH_PYTHON if name not in SLOW])


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name not in SLOW])
def test_python(errors, name):
    assert errors[name] is None, errors[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_slow_python(tmp_path, name):
    error = errors_of(tmp_path, [name])[name]
    assert error is None, error


def test_notebook(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    code = "\n".join(code for _, code in notebook_blocks(NOTEBOOK))
    assert all(text in code for text in NOTEBOOK_STAND_INS)
    name = name_of(NOTEBOOK)
    error = errors_of(tmp_path, [name])[name]
    assert error is None, error


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_labels_to_ignore_come_from_the_class_list(page):
    """It may ignore others than 255, which the data of these pages do not show."""
    for place, code in python_blocks(page):
        for call in ast.walk(ast.parse(code)):
            if not isinstance(call, ast.Call):
                continue
            function = getattr(call.func, "attr", getattr(call.func, "id", ""))
            keywords = {keyword.arg for keyword in call.keywords}
            values = {ast.unparse(keyword.value) for keyword in call.keywords}
            if function in ("from_preset", "from_pretrained") and "class_list.id2label" in values:
                assert "semantic_loss_ignore_index" in keywords, (place, function)
            if function == "draw_comparison" or (function == "draw_refinement" and "reference" in keywords):
                assert "ignore_index" in keywords, (place, function)


def test_blocks_are_found_and_left_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n<!-- not run: needs the network -->\n```python\nb = 2\n```\n"
        "1. list\n   ```python\n   if a:\n       c = 3\n   ```\n```bash\npython\n```\n"
        "<!-- not run -->\n```python\nd()\n```\n"
    )
    blocks = python_blocks(page)
    assert blocks == [(2, "a = 1\n"), (10, "if a:\n    c = 3\n"), (18, "d()\n")]
    variables = {}
    error = run_blocks(blocks, "page.md", {"c = 3": "c = 4"}, variables)
    assert variables["c"] == 4 and "block at 18 of page.md" in error and 'File "page.md", line 18' in error


# Links


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """The names of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    names = []
    for heading in re.findall(r"^#+ +(.+)$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
        names.append(name if name not in names else f"{name}-{names.count(name)}")
    return set(names)


def broken_links(page: Path) -> list[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    broken = []
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = urllib.parse.unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One & two\n[x](b.md) [y](#one--two) [z](#three) ![p](p.png) `[q](no.md)` [w](https://a.b/c)"
    )
    assert broken_links(tmp_path / "a.md") == ["b.md", "#three", "p.png"]


def test_every_picture_is_shown():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert set((ROOT / "docs" / "images").iterdir()) <= shown


# Commands


def commands(text: str) -> list[list[str]]:
    """The commands of the ```bash blocks of a page, one list of words each."""
    found = []
    for block in re.findall(r"^ *```bash\n(.*?)^ *```$", text, re.M | re.S):
        block = re.sub(r"(^|\s+)# .*$", "", block, flags=re.M).replace("\\\n", " ")
        lexer = shlex.shlex(block, posix=True, punctuation_chars="&|;\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        words = list(lexer)
        for is_end, group in itertools.groupby(words, lambda word: set(word) <= set("&|;\n")):
            if not is_end:
                found.append(list(group))
    return found


def script_and_options(words: list[str], folder: Path = ROOT) -> "tuple[str, list[str]] | None":
    """
    The program of ours that a command starts (a file from the root or from `folder`, or `unept-hf`), and what it is
    given; `None` for others.
    """
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:1] == ["unept-hf"]:
        return "unept-hf", words[1:]
    if words[:1] and words[0] in ("python", "accelerate", "torchrun"):
        for index, word in enumerate(words):
            if word in ("unept_hf", "unept_hf.cli") and words[index - 1] == "-m":
                return "unept-hf", words[index + 1 :]
            if word.endswith(".py"):
                is_here = (folder / word).is_file() and not (ROOT / word).is_file()
                return name_of(folder / word) if is_here else word, words[index + 1 :]
    return None


_helps = {}


def help_of(script: str) -> str:
    """What `--help` of a script prints."""
    if script not in _helps:
        output, arguments, path = io.StringIO(), sys.argv, list(sys.path)
        sys.argv = [script, "--help"]
        sys.path.insert(0, str((ROOT / script).parent))
        try:
            with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as caught:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            sys.argv, sys.path[:] = arguments, path
        assert caught.value.code in (0, None), script
        _helps[script] = output.getvalue()
    return _helps[script]


def problem_with(words: list[str], folder: Path = ROOT) -> "str | None":
    """Why a command would not be understood, if it is one of ours."""
    found = script_and_options(words, folder)
    if found is None:
        return None
    script, options = found
    if (script, options[:1]) == ("unept-hf", ["train"]):
        script, options = TRAINER, options[1:]  # the same options, which are not in the parser of unept-hf
    if script == "unept-hf":
        if options[:1] == ["evaluate"] and options[1:] and options[1].endswith((".yaml", ".json")):
            options = [*options[:1], "--model_name_or_path", "x", "--dataset_name", "x", *options[2:]]
        output = io.StringIO()
        with contextlib.redirect_stderr(output):
            try:
                cli.make_parser().parse_args(options)
            except SystemExit:
                return output.getvalue()
        return None
    if not (ROOT / script).is_file():
        return f"there is no {script}"
    names = {word.partition("=")[0] for word in options if word.startswith("--")}
    unknown = {name for name in names if not re.search(rf"{name}\b(?!-)", help_of(script))} if names else None
    missing = [word for word in options if word.startswith("examples/") and not (ROOT / word).exists()]
    return f"{script} does not know {unknown or missing}" if unknown or missing else None


COMMANDS = [(page, words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
OURS = [(page, words) for page, words in COMMANDS if script_and_options(words)]


@pytest.mark.parametrize(
    ("page", "words"), OURS, ids=[f"{name_of(page)}-{' '.join(words)[:60]}" for page, words in OURS]
)
def test_commands(page, words):
    if any("demo" in word for word in words):
        pytest.importorskip("gradio", reason="needs the extra 'demo'")
    assert problem_with(words, page.parent) is None


def test_wrong_commands_are_found():
    text = (
        "```bash\n"
        "unept-hf segment model a.jpg --modus slide  # a comment\n"
        "python examples/quickstart.py --steps 3 && python examples/gone.py\n"
        "A=1 accelerate launch --num_processes 2 examples/quickstart.py \\\n    --epochs 3\n"
        "pip install x; python -m unept_hf.cli env\n"
        "torchrun -m unept_hf.cli train examples/configs/small_gpu.yaml --cpu\n"
        "unept-hf train examples/configs/gone.yaml; unept-hf train CONFIG.yaml --steps 3\n"
        'python -c "\nprint(1)"\n'
        "```\n"
    )
    found = commands(text)
    assert len(found) == 10 and found[0][-2:] == ["--modus", "slide"]
    problems = [problem_with(words) for words in found]
    assert "--modus" in problems[0] and "gone.py" in problems[2] and "--epochs" in problems[3]
    assert "gone.yaml" in problems[7] and "--steps" in problems[8]
    assert problems[1] is problems[4] is problems[5] is problems[6] is problems[9] is None


def test_training_is_a_command():
    assert "train" in cli.make_parser()._subparsers._group_actions[0].choices


def test_examples_of_the_command():
    lines = [
        line.partition("   ")[0].strip()
        for command in cli.COMMANDS
        for line in command.EXAMPLES.splitlines()
        if "unept" in line
    ]
    assert len(lines) > 10
    for line in lines:
        if line.startswith(("unept-hf", "accelerate")):
            assert problem_with(shlex.split(line.partition(" > ")[0])) is None, line


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=name_of)
def test_options_in_the_text(page):
    """`--options` that a page names between its commands are of one of our programs, or it says of which other."""
    parsers = cli.make_parser()._subparsers._group_actions[0].choices.values()
    known = {option for parser in parsers for option in parser._option_string_actions}
    scripts = {found[0] for _, words in COMMANDS if (found := script_and_options(words))} - {"unept-hf"} | {TRAINER}
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    named = set(re.findall(r"`(?:[^`\n]* )?(--\w+)[^`\n]*`", text))
    for code in re.findall(r"`([^`\n]+)`", text):  # a program and its options
        for script in re.findall(r"\S+\.py", code):
            if not set(re.findall(r"--\w+", code)) <= known and (ROOT / script).is_file():
                known |= set(re.findall(r"--\w+", help_of(script)))
    for script in sorted(scripts):
        if named - known and "demo" not in script and (ROOT / script).is_file():
            known |= set(re.findall(r"--\w+", help_of(script)))
    if page.name == "demo.md":
        pytest.importorskip("gradio", reason="needs the extra 'demo'")
        known |= set(re.findall(r"--\w+", help_of("examples/demo/app.py")))
    assert named <= known | {"--help"}


# Language

# Phrases that read as translated. "There is no X", "is no longer" and "can not only" are plain English.
NOT_PLAIN = re.compile(
    r"\bcan not\b(?! only)|\b(?:has|have) to\b"
    r"|(?<!there )\b(?:is|are) no\b(?! (?:longer|more|fewer|less|larger|smaller|different)\b)",
    re.I,
)
TEXTS = [
    *(page for page in PAGES if page.name != "CHANGELOG.md"),
    *sorted(ROOT.glob("tests/fixtures/*.md")),
    *sorted(ROOT.glob("unept_hf/**/*.md")),
    *sorted(ROOT.glob("unept_hf/**/*.py")),
]


def not_plain(text: str) -> list[str]:
    """Phrases in a page or a module that are not plain English, also across lines of prose, comments and messages."""
    text = re.sub(r"[\"']\s*\n\s*f?[\"']|\n\s*#", " ", text)
    text = " ".join(text.split())
    return [text[max(match.start() - 30, 0) : match.end() + 30] for match in NOT_PLAIN.finditer(text)]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_plain_english(path):
    found = not_plain(path.read_text(encoding="utf-8"))
    assert found == []


def test_phrases_that_are_not_plain_are_found():
    text = (
        "A x can\nnot fly.\n# They have\n# to swim.\nf'{y} is '\n    f'no fish.' Whales are no fish; it has\n to go."
    )
    assert len(not_plain(text)) == 5
    assert (
        not_plain("It is no longer there, can not only swim, and has tools. There are\nno whales: these are not.")
        == []
    )


if __name__ == "__main__":
    run_documents(*sys.argv[1:])
