"""Figures in the documentation come from files that a benchmark wrote."""

import json
import re
import statistics
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import plot_results  # noqa: E402
import quote_results  # noqa: E402


@pytest.mark.parametrize("page", quote_results.pages(), ids=lambda page: page.stem)
def test_pages_quote_the_results_as_they_are(page):
    text = page.read_text(encoding="utf-8")
    assert quote_results.with_results(text) == text, "run python benchmarks/quote_results.py"


PAPER = re.compile(r"^## The paper's tables\n.*?(?=^## )", re.DOTALL | re.MULTILINE)


def test_the_results_page_has_no_table_of_its_own():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(quote_results.MARK.findall(text)) >= 4
    assert not re.search(r"^\|", PAPER.sub("", quote_results.MARK.sub("", text)), re.MULTILINE)


def test_numbers_of_the_paper_have_a_source_and_a_recipe():
    section = PAPER.search((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))[0]
    assert "are the paper's, not ours" in section
    rows = [
        row.strip("| ").split(" | ") for row in section.splitlines() if re.match(r"\| (?!---).*(?<!source) \|$", row)
    ]
    assert len(rows) == 9
    for *values, name, source in rows:
        assert source.startswith(("paper", "README"))
        recipe = (ROOT / "examples" / "configs" / f"{name.strip('`')}.yaml").read_text(encoding="utf-8")
        mean_iou = min(re.findall(r"\d\d\.\d", " ".join(values)))  # below the accuracy; the memory has one digit
        assert f"{mean_iou} mIoU" in recipe


def test_a_changed_figure_is_noticed():
    text = PAPER.sub("", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
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


def operator_forward(name):
    rows = plot_results.results_of("deformable_attention-cpu")["rows"]
    return next(
        row["forward_ms"]
        for row in rows
        if (row["shape"], row["dtype"], row["name"]) == ("UN-EPT encoder", "float32", name)
    )


def model_speed_up(mode):
    rows = plot_results.results_of("model_latency-cpu")["rows"]
    return next(row["speed-up"] for row in rows if (row["preset"], row["mode"]) == ("unept-resnet50", mode))


def ablation(row, metric, file="ablations-cpu"):
    """Mean over the seeds: in percent, or seconds."""
    values = [one[metric] for one in plot_results.results_of(file)["rows"][row]]
    return statistics.fmean(values) * (1 if "seconds" in metric else 100)


def latency(model):
    return plot_results.results_of("peers_latency-cpu")["runs"][f"{model} 480x480"]["forward"]


def best_training(model):
    runs = plot_results.results_of("peers_training-cpu")["runs"]
    return max((runs[name] for name in runs if name.rpartition(" ")[0] == model), key=lambda run: run["mean_iou"])


def memory(row, kind="peak", size=480):
    """Counted gigabytes."""
    return plot_results.results_of("attention_memory")["counted"][f"{row} {size}"][kind] / 1e9


def sentences():
    """Sentences of the README and the results page, with the figures of the result files."""
    fused = operator_forward("transformers") / operator_forward("ours, fused")
    kernel = model_speed_up("float32, our kernel")
    fast = model_speed_up("bfloat16, channels_last, our kernel, compiled")
    yield f"One layer runs {fused:.0f} times faster than transformers' fallback"
    yield (
        f"a whole ResNet-50 UN-EPT runs {kernel:.1f} times faster, and {fast:.1f} times faster in the documented fast "
        "mode"
    )

    full, full_f1, seconds = (ablation("full", name) for name in ("mean_iou", "boundary_f1_1px", "train_seconds"))
    refined, refined_f1 = (ablation("full", f"refined {name}") for name in ("mean_iou", "boundary_f1_1px"))
    yield (
        f"In the full model, it adds {refined_f1 - full_f1:.1f} points of boundary F1 and {refined - full:.1f} points "
        "of mean IoU, averaged over the three seeds"
    )
    dense = [100 * one["mean_iou"] for one in plot_results.results_of("ablations-cpu")["rows"]["dense attention"]]
    yield (
        f"by {full - statistics.fmean(dense):.1f} points of mean IoU, at about the same cost; the standard deviation "
        f"of the dense model over the seeds is {statistics.stdev(dense):.1f} points"
    )
    without_heads = ablation("+ spatial branch", "boundary_f1_1px")
    yield f"the full model and {refined_f1 - without_heads:.1f} points less boundary F1 than the refined model"
    shipped = plot_results.results_of("shipped_checkpoint-cpu")["results"]
    yield f"but costs {100 * (shipped['mean_iou'] - shipped['refined']['mean_iou']):.1f} points of mean IoU"
    deformable = "deformable self-attention"
    more_time = 100 * (ablation(deformable, "train_seconds") / seconds - 1)
    yield f"by {ablation(deformable, 'mean_iou') - full:.1f} points for {more_time:.0f}% more training time"
    yield f"gains nothing and takes {ablation('dense self-attention', 'train_seconds') / seconds:.0f} times as long"
    later = [ablation(row, "mean_iou", "ablations_long-cpu") for row in (deformable, "full")]
    yield f"the lead is {later[0] - later[1]:.1f} points"

    study = {
        tuple((row["setting"] or {}).values()): row for row in plot_results.results_of("refinement_study-cpu")["rows"]
    }
    none, long, inside = study[()], study[0.5, 3, 0.0, False], study[0.7, 3, 0.0, True]
    yield (
        f"lower the mean IoU from {100 * none['mean_iou']:.1f} to {100 * long['mean_iou']:.1f}, and the IoU of poles "
        f"from {100 * none['iou pole']:.1f} to {100 * long['iou pole']:.1f}"
    )
    yield (
        f"keep the mean IoU at {100 * inside['mean_iou']:.1f}, and raise the boundary F1 at 1 pixel from "
        f"{100 * none['boundary_f1_1px']:.1f} to {100 * inside['boundary_f1_1px']:.1f}"
    )

    deit = latency("UN-EPT DeiT-B")
    yield (
        f"a forward pass of UN-EPT with DeiT-B is {latency('UperNet Swin-B') / deit:.1f} times as fast as one of "
        f"UperNet and {latency('Mask2Former Swin-B') / deit:.1f} times as fast as one of Mask2Former"
    )
    unept, eomt, upernet = (best_training(model) for model in ("UN-EPT", "EoMT", "UperNet"))
    others = [
        best_training(model)["boundary_f1_1px"] for model in ("EoMT", "UperNet", "Mask2Former", "SegFormer", "DPT")
    ]
    yield f"{100 * (unept['boundary_f1_1px'] - max(others)):.1f} points above the best other model"
    points = [f"{100 * run['mean_iou']:.1f}" for run in (unept, eomt, upernet)]
    yield f"UN-EPT ({points[0]}), EoMT ({points[1]}) and UperNet ({points[2]})"
    eomt, upernet = (run["train_seconds"] / unept["train_seconds"] for run in (eomt, upernet))
    yield f"EoMT takes {eomt:.1f} times as long to train as UN-EPT, and **UperNet {upernet:.1f} times as long**"

    ours, strided, kept = "deformable (ours)", "strided (Sparse Transformer)", "saved_in_attentions"
    yield f"**Dense attention needs {memory('dense') / memory(ours):.1f} times the memory of ours** at 480 x 480"
    yield (
        f"its peak grows by a factor of {memory('dense', size=1024) / memory('dense'):.0f}, and ours by "
        f"{memory(ours, size=1024) / memory(ours):.1f},"
    )
    yield (
        f"keeps {memory(strided, kept) / memory(ours, kept):.1f} times as much in its layers, and Reformer's hashing "
        f"{memory('hashing (Reformer)', kept) / memory(ours, kept):.1f} times as much"
    )
    yield (
        f"**Our counted peak is {memory(ours) / 7.0:.0%} of the README's figure** with ResNet-50, and "
        f"{memory(f'{ours}, DeiT-B') / 8.5:.0%} with DeiT-B"
    )
    rest = memory(ours, "saved") - memory(ours, kept)
    yield (
        f"{rest:.2f} GB of the {memory(ours, 'saved'):.2f} GB that our model keeps do not belong to the context "
        f"attention, so strided attention needs only {memory(strided) / memory(ours) - 1:.1%} more at the peak"
    )
    yield (
        "**Fused dense attention needs slightly less memory than ours** "
        f"({memory('dense, fused'):.2f} GB against {memory(ours):.2f} GB)"
    )


@pytest.mark.parametrize("sentence", list(sentences()))
def test_sentences_have_the_figures_of_the_results(sentence):
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/results.md")]
    assert sentence in " ".join(" ".join(pages).split())


@pytest.mark.parametrize("size", [480, 768, 1024])
def test_our_attention_needs_the_least_of_those_that_keep_their_weights(size):
    rows = ["dense", "strided (Sparse Transformer)", "window and global (Longformer)", "hashing (Reformer)"]
    rows += ["criss-cross (CCNet)", "pooled keys (ANL)", "dense at stride 16 (SETR)"]
    assert memory("deformable (ours)", size=size) < min(memory(row, size=size) for row in rows)


def test_registers_are_those_of_the_compiled_kernels():
    registers = {}
    for row in plot_results.results_of("triton_compilation")["rows"]:
        if (row["shape"], row["form"]) == ("UN-EPT", "fused"):
            direction, *kind = row["kernel"].split(", ")
            registers[row["target"], ", ".join([direction, row["dtype"], *kind])] = row["registers"]
    page = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ((?:for|back)ward, .+?) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(table) == 5
    targets = ("NVIDIA sm_80", "NVIDIA sm_90", "AMD gfx942")
    for name, *numbers in table:
        assert [registers[target, name] for target in targets] == [int(number) for number in numbers]
    kept = re.search(r"\(kept\) \| (\d+) \|", page)
    assert int(kept[1]) == registers["NVIDIA sm_90", "backward, bfloat16"]


def test_quoting_some_rows():
    body = "\n".join(
        ["Text.", "", "| a | b |", "| --- | --- |", "| x | 1 |", "| y | 2 |", "", "| c |", "| --- |", "| y |"]
    )
    expected = "\n".join(["Text.", "", "| a | b |", "| --- | --- |", "| y | 2 |", "", "| c |", "| --- |", "| y |"])
    assert quote_results.with_rows(body, "y") == expected
