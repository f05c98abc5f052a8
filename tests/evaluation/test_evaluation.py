# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation in one process and in two, against a plain loop, and the report."""

import json
import math
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from spread_models import synthetic_scenes_model

from unept_hf import UneptImageProcessor
from unept_hf.cli import main
from unept_hf.data.class_lists import class_list_from_data
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation import report
from unept_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.evaluation.metrics import boundary_f_scores, scores_from_confusion_matrix, trimap_confusion_matrices
from unept_hf.evaluation.report import (
    evaluate_and_report,
    results_figure,
    results_table,
    results_text,
    save_results,
)
from unept_hf.inference.segment import segment
from unept_hf.synthetic.scenes import SYNTHETIC_CLASSES


IMAGES = 5
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback interface, for gloo")
SLIDE = {"mode": "slide", "crop_size": 64, "stride": 32, "scales": (0.5, 1.0), "flip": True}


@pytest.fixture(scope="module")
def model():
    return synthetic_scenes_model()


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})


@pytest.fixture(scope="module")
def data():
    dataset, class_list = load_segmentation_dataset(
        "synthetic", split="validation", num_synthetic_scenes=IMAGES, synthetic_scene_size=80
    )
    return dataset, class_list


def numbers(results):
    """The metrics of label maps, without times and settings."""
    kept = {
        name: numbers(value) if name == "refined" else value
        for name, value in results.items()
        if name.startswith(("mean", "overall", "boundary", "trimap", "per_category", "refined", "num_images"))
    }
    return json.loads(json.dumps(kept))


def leaves(value, path=()):
    """Numbers in nested dictionaries, with NaN for what JSON calls null."""
    if not isinstance(value, dict):
        return {path: math.nan if value is None else value}
    return {name: one for key, inner in value.items() for name, one in leaves(inner, (*path, key)).items()}


def assert_same(got, expected):
    assert leaves(numbers(got)) == pytest.approx(leaves(numbers(expected)), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("options", [{}, SLIDE, {"refine_boundaries": True, "boundary_steps": 2}])
def test_equals_a_plain_loop(model, processor, data, options):
    dataset, class_list = data
    results = evaluate_model(model, processor, dataset, class_list, batch_size=3, progress=False, **options)
    pairs, f_scores, trimaps, losses, confidences = [], [], 0, [], []
    for scene in datasets.Dataset.cast_column(dataset, "image", datasets.Image()).cast_column(
        "label", datasets.Image()
    ):
        prediction = segment(model, processor, scene["image"], **options).label_map.numpy()
        reference = np.array(scene["label"])
        assert prediction.shape == reference.shape
        pairs.append((reference.ravel(), prediction.ravel()))
        f_scores.append(boundary_f_scores(prediction, reference, len(class_list)))
        scored = segment(model, processor, scene["image"], **options, return_scores=True)
        confidences.append(scored.scores.amax(0).numpy().ravel())
        scored = segment(
            model, processor, scene["image"], **options | {"refine_boundaries": False}, return_scores=True
        )
        losses.append(-np.log(np.take_along_axis(scored.scores.numpy(), reference[None].astype(int), 0)).ravel())
        trimaps = trimaps + trimap_confusion_matrices(prediction, reference, len(class_list))
    matrix = sklearn_confusion_matrix(*(np.concatenate(one) for one in zip(*pairs)), labels=range(len(class_list)))
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    iou[matrix.sum(1) == 0] = np.nan
    assert results["confusion_matrix"] == matrix.tolist()
    assert results["loss"] == pytest.approx(np.mean(np.concatenate(losses)), rel=1e-5)
    confidence, right = np.concatenate(confidences), np.concatenate([true == found for true, found in pairs])
    bins = [(m / 15 < confidence) & (confidence <= (m + 1) / 15) for m in range(15)]
    gaps = [abs(right[one].mean() - confidence[one].mean()) * one.mean() for one in bins if one.any()]
    assert results["expected_calibration_error"] == pytest.approx(sum(gaps), abs=1e-4)
    assert results["mean_iou"] == pytest.approx(np.nanmean(iou))
    assert results["overall_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    for index, (label, one) in enumerate(results["per_category"].items()):
        assert label == SYNTHETIC_CLASSES[index]
        assert one["iou"] == pytest.approx(iou[index], nan_ok=True)
        assert one["pixels"] == matrix[index].sum()
        assert one["images"] == sum((true == index).any() for true, _ in pairs)
        expected = np.nan if one["pixels"] == 0 else np.nanmean(f_scores, axis=0)[1, index]
        assert one["boundary_f1_3px"] == pytest.approx(expected, nan_ok=True)
    means = np.nanmean(f_scores, axis=0)[0]
    assert results["boundary_f1_1px"] == pytest.approx(np.nanmean(means[matrix.sum(1) > 0]))
    for width, trimap in zip(("1", "3", "5", "10", "20"), trimaps):
        expected = scores_from_confusion_matrix(trimap, only_referenced=True)["mean_iou"]
        assert results["trimap_mean_iou"][width] == pytest.approx(expected)
    assert results["num_images"] == IMAGES


def test_both_variants_come_from_one_forward(model, processor, data):
    calls = []
    handle = model.register_forward_hook(lambda *args: calls.append(1))
    both = evaluate_model(model, processor, *data, refine_boundaries="both", progress=False)
    handle.remove()
    assert len(calls) == IMAGES
    plain = evaluate_model(model, processor, *data, progress=False)
    refined = evaluate_model(model, processor, *data, refine_boundaries=True, progress=False)
    assert_same(both["refined"], {name: value for name, value in numbers(refined).items() if name != "num_images"})
    both.pop("refined")
    assert_same(both, plain)
    assert plain["mean_iou"] != refined["mean_iou"]


def test_fast_metrics_are_the_same(model, processor, data):
    fast = evaluate_model(model, processor, *data, boundary_f1=False, progress=False, batch_size=2)
    full = evaluate_model(model, processor, *data, progress=False)
    assert "trimap_mean_iou" not in fast and "boundary_f1_1px" not in fast
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert fast[name] == full[name]


def test_streams_and_limits(model, processor, data):
    dataset, class_list = data
    expected = evaluate_model(model, processor, dataset.select(range(3)), class_list, progress=False)
    assert_same(evaluate_model(model, processor, dataset, class_list, max_images=3, progress=False), expected)
    stream = dataset.to_iterable_dataset(num_shards=2)
    assert_same(evaluate_model(model, processor, stream, class_list, max_images=3, progress=False), expected)


def test_model_keeps_its_mode(model, processor, data):
    model.train()
    evaluate_model(model, processor, *data, max_images=1, progress=False)
    assert model.training and model.classifier.training
    model.eval()


def test_errors(model, processor, data):
    dataset, class_list = data
    with pytest.raises(ValueError, match=f"The model has {len(class_list)} classes but class list 'two' has 2"):
        evaluate_model(model, processor, dataset, class_list_from_data(["a", "b"], "two"))
    with pytest.raises(ValueError, match="There are no images"):
        evaluate_model(model, processor, dataset.select([]), class_list, progress=False)
    broken = datasets.Dataset.from_dict({"image": [{"path": "no/such.png", "bytes": None}], "label": [None]})
    with pytest.raises(ValueError, match=r"no/such\.png"):
        evaluate_model(model, processor, broken, class_list, progress=False)


def test_warns_of_other_class_names(model, processor, data, monkeypatch, caplog):
    dataset, class_list = data
    options = {"max_images": 1, "boundary_f1": False, "progress": False}
    evaluate_model(model, processor, dataset, class_list, **options)
    monkeypatch.setattr(model.config, "id2label", {index: f"LABEL_{index}" for index in range(len(class_list))})
    evaluate_model(model, processor, dataset, class_list, **options)
    assert not [message for message in caplog.messages if message.startswith("Class ")]
    names = list(SYNTHETIC_CLASSES)
    names[2], names[4] = names[4], names[2]
    monkeypatch.setattr(model.config, "id2label", dict(reversed(list(enumerate(names)))))
    evaluate_model(model, processor, dataset, class_list, **options)
    (message,) = (message for message in caplog.messages if message.startswith("Class "))
    assert f"Class 2 is '{SYNTHETIC_CLASSES[4]}' in the model but '{SYNTHETIC_CLASSES[2]}' in class list" in message


def label_map_set(*label_maps):
    """A data set of gray images with these label maps."""
    maps = [Image.fromarray(np.array(label_map, dtype=np.uint8)) for label_map in label_maps]
    return datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", one.size) for one in maps], "label": maps},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Image()}),
    )


def test_warns_of_classes_without_a_reference(model, processor, caplog):
    names = [f"class {index}" for index in range(model.config.num_labels)]
    all_of_them = np.arange(model.config.num_labels)[None].repeat(32, axis=0)
    options = {"boundary_f1": False, "progress": False, "do_resize": False}

    def messages(label_maps, name):
        caplog.clear()
        class_list = class_list_from_data(names, name)
        for _ in range(2):
            evaluate_model(model, processor, label_map_set(*label_maps), class_list, **options)
        return [message for message in caplog.messages if message.startswith("The reference")]

    assert not messages([all_of_them], "all")
    (message,) = messages([np.where(all_of_them == 1, 255, all_of_them)], "all but one")
    assert f"no pixel of 1 of {len(names)} classes of class list 'all but one' (class 1). They have no IoU" in message
    (message,) = messages([np.full((32, 32), 255)], "none")
    assert "no pixel of any class of class list 'none': all are ignored" in message


def test_names_are_no_formulas(tmp_path):
    names = ["$\\frac$", "$x$ €"]
    class_list = class_list_from_data(names, "prices")
    results = {"mean_iou": 0.5, "num_images": 1, "seconds": 1.0, "images_per_second": 1.0}
    results["settings"] = {"refine_boundaries": False}
    results["per_category"] = {name: {"iou": 0.5, "pixels": 8, "images": 1} for name in names}
    results["confusion_matrix"] = [[4, 4], [4, 4]]
    label_map = np.zeros((4, 4), np.uint8)
    sample = {
        "name": "$\\oops$.png",
        "image": Image.new("RGB", (4, 4)),
        "reference": label_map,
        "prediction": label_map,
        "wrong": 0.5,
    }
    results["samples"] = [sample]
    save_results(results, class_list, tmp_path)
    assert "| $x$ € |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    figure = results_figure(results)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names


def test_report(model, processor, data, tmp_path):
    dataset, class_list = data
    # The last class does not occur.
    label_maps = [np.zeros((40, 50), np.uint8), np.tile(np.arange(50, dtype=np.uint8) // 10, (40, 1))]
    images = [Image.fromarray(np.stack([label_map * 50] * 3, axis=-1)) for label_map in label_maps]
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": [Image.fromarray(one) for one in label_maps], "name": ["first", "second"]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
        ),
    )
    results = evaluate_model(
        model, processor, dataset, class_list, refine_boundaries="both", num_samples=3, num_worst=1, progress=False
    )
    assert [sample["name"] for sample in results["samples"]] == ["first", "second"]
    assert results["samples"][1]["refined"].shape == (40, 50)
    save_results(results, class_list, tmp_path)

    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["mean_iou"] == results["mean_iou"]
    assert saved["per_category"]["pole"]["accuracy"] is None
    assert saved["refined"]["trimap_mean_iou"]["5"] == results["refined"]["trimap_mean_iou"]["5"]
    assert saved["per_category"]["pole"]["iou"] is None and saved["per_category"]["pole"]["pixels"] == 0
    assert saved["settings"]["mode"] == "whole" and "samples" not in saved and "confusion_matrix" not in saved
    wrong = {sample["name"]: sample["wrong"] for sample in results["samples"]}
    assert saved["worst"] == [{"name": max(wrong, key=wrong.get), "wrong": max(wrong.values())}]
    matrices = json.loads((tmp_path / "confusion_matrix.json").read_text())
    assert matrices["classes"] == list(class_list.label2id)
    assert [sum(row) for row in matrices["pixels"]["refined"]] == [
        2400,
        400,
        400,
        400,
        400,
        *[0] * (len(class_list) - 5),
    ]
    for name in ("confusion_matrix", "calibration", "predictions", "worst"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    table = (tmp_path / "results.md").read_text()
    assert table == results_table(results)
    assert f"| mean_iou | {results['mean_iou']:.4f} | {results['refined']['mean_iou']:.4f} |" in table
    assert "| tree |" in table and "2 images in" in table
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width > 1000 and np.ptp(np.asarray(picture)) == 255


def test_a_predicted_class_without_reference_is_not_zero(model, processor):
    """One pixel of it must not move the mean IoU."""
    absent = np.full((32, 32), 255, np.uint8)
    results = evaluate_model(model, processor, label_map_set(absent), classes_like(model), progress=False)
    assert math.isnan(results["mean_iou"]) and math.isnan(results["loss"]) and results["num_images"] == 1
    predicted = segment(model, processor, Image.new("RGB", (32, 32))).label_map.numpy()
    first = int(predicted[0, 0])
    # The reference has another class than all predictions.
    other = next(index for index in range(model.config.num_labels) if index not in predicted)
    results = evaluate_model(
        model, processor, label_map_set(np.full((32, 32), other)), classes_like(model), progress=False
    )
    scores = results["per_category"][f"class {first}"]
    assert all(math.isnan(scores[name]) for name in ("iou", "accuracy", "boundary_f1_3px"))
    assert results["per_category"][f"class {other}"]["iou"] == results["mean_iou"] == 0
    lines = results_text(results | {"settings": {"refine_boundaries": False}}).splitlines()
    (line,) = (line for line in lines if line.startswith(f"class {first} "))
    assert line.split()[2:] == ["-"] * 5 + ["0", "0"]
    assert f"The means are over the 1 of {model.config.num_labels} classes that have reference pixels." in lines


def classes_like(model):
    return class_list_from_data([f"class {index}" for index in range(model.config.num_labels)])


@pytest.mark.parametrize("refine_boundaries", [False, "both"])
def test_text_fits_a_terminal(refine_boundaries):
    names = ["a very long name of a class, which has synonyms", "n" * 40]
    scores = dict.fromkeys(("iou", "accuracy", *(f"boundary_f1_{width}px" for width in (1, 3, 5))), 0.1234567)
    results = {"mean_iou": 0.5, "boundary_f1_1px": 0.5, "trimap_mean_iou": {"20": 0.5}, "loss": 0.1}
    results["per_category"] = {name: scores | {"pixels": 10**11, "images": 10**5} for name in names}
    results["confusion_matrix"] = [[10**11, 5], [10**10, 10**11]]
    if refine_boundaries:
        results["refined"] = dict(results)
        del results["refined"]["loss"]
    results |= {"num_images": 10**6, "seconds": 1e5, "images_per_second": 10.0}
    results["settings"] = {"refine_boundaries": refine_boundaries}
    lines = results_text(results).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("0.123" in line and "100000000000" in line for line in lines)
    assert lines[-2].split()[0] == "9.1%", "the most frequent confusion comes first"


def test_pictures_are_of_images_spread_over_the_data(model, processor, data):
    dataset, class_list = data
    options = {"boundary_f1": False, "progress": False, "batch_size": 2}
    results = evaluate_model(model, processor, dataset, class_list, num_samples=3, num_worst=2, **options)
    names = dataset["name"]
    assert [sample["name"] for sample in results["samples"]] == [names[0], names[2], names[4]]
    alone = {
        name: evaluate_model(model, processor, dataset.select([index]), class_list, **options)["overall_accuracy"]
        for index, name in enumerate(names)
    }
    worst = sorted(names, key=alone.get)[:2]
    assert [sample["name"] for sample in results["worst"]] == worst
    assert [sample["wrong"] for sample in results["worst"]] == pytest.approx([1 - alone[name] for name in worst])


@pytest.fixture(scope="module")
def folders(model, processor, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    dataset, class_list = data
    dataset.save_to_disk(folder / "data")
    (folder / "classes.json").write_text(json.dumps(list(class_list.label2id)))
    return folder


# Run by two processes, which get three and two of five images, one and none of one, ...
PROCESSES_SCRIPT = """
import json
import sys

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.cli import main
from unept_hf.evaluation import evaluate as evaluation
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.evaluate import evaluate_model

torch.set_num_threads(1)
folder = sys.argv[1]
accelerator = Accelerator()
assert accelerator.num_processes == 2
processor = UneptImageProcessor.from_pretrained(folder + "/model")
model = UneptForSemanticSegmentation.from_pretrained(folder + "/model").train()
dataset, class_list = load_segmentation_dataset(folder + "/data", class_list=folder + "/classes.json")
options = {"accelerator": accelerator, "progress": False}
slide = {"mode": "slide", "crop_size": 64, "stride": 32, "scales": (0.5, 1.0), "flip": True}
wrapped = accelerator.prepare(model)
assert wrapped is not model
results = {
    "whole": evaluate_model(wrapped, processor, dataset, class_list, refine_boundaries="both", **options),
    "slide": evaluate_model(wrapped, processor, dataset, class_list, **slide, **options),
    "stream": evaluate_model(wrapped, processor, dataset.to_iterable_dataset(3), class_list, **options),
    "one": evaluate_model(wrapped, processor, dataset, class_list, max_images=1, **options),
}
assert model.training

# Sharded weights, which each forward gathers from both processes.
sharded = UneptForSemanticSegmentation.from_pretrained(folder + "/model")
for layer in [*sharded.model.encoder_layers, *sharded.model.decoder_layers]:
    fully_shard(layer)
fully_shard(sharded)
evaluation._is_sharded = lambda accelerator: True
results["sharded"] = evaluate_model(sharded, processor, dataset, class_list, batch_size=1, **options)
results["sharded_one"] = evaluate_model(sharded, processor, dataset, class_list, max_images=1, **options)
with open(f"{folder}/results-{accelerator.process_index}.json", "w") as file:
    json.dump(results, file)

assert main(["evaluate", folder + "/evaluation.yaml"]) == 0
"""


@pytest.fixture(scope="module")
def two_processes(folders):
    """What two processes wrote and printed: the results of each, and those of the command."""
    (folders / "script.py").write_text(PROCESSES_SCRIPT)
    options = {
        "model_name_or_path": str(folders / "model"),
        "dataset_name": str(folders / "data"),
        "class_list": str(folders / "classes.json"),
        "split": "train",
        "refine_boundaries": "both",
        "output_dir": str(folders / "results"),
        "num_samples": 2,
    }
    (folders / "evaluation.yaml").write_text("\n".join(f"{name}: {value}" for name, value in options.items()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        [*command, "script.py", str(folders)],
        cwd=folders,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads((folders / f"results-{rank}.json").read_text()) for rank in (0, 1)], result.stdout


@linux_only
def test_two_processes_give_the_metrics_of_one(model, processor, data, two_processes):
    expected = {
        "whole": evaluate_model(model, processor, *data, refine_boundaries="both", progress=False),
        "slide": evaluate_model(model, processor, *data, progress=False, **SLIDE),
        "one": evaluate_model(model, processor, *data, max_images=1, progress=False),
    }
    expected["stream"] = expected["sharded"] = {
        name: value for name, value in expected["whole"].items() if name != "refined"
    }
    expected["sharded_one"] = expected["one"]
    for results in two_processes[0]:
        for name, one in expected.items():
            assert_same(results[name], one)
            assert results[name]["confusion_matrix"] == one["confusion_matrix"]
            # Probabilities depend on the number of threads, in their last bits.
            for measured in ("loss", "expected_calibration_error"):
                assert results[name][measured] == pytest.approx(one[measured], abs=1e-4)
            assert results[name]["settings"]["processes"] == 2


@linux_only
def test_command_with_two_processes(model, processor, data, folders, two_processes):
    assert two_processes[1].count("\nmean_iou  ") == 1  # from the main process alone
    expected = evaluate_model(model, processor, *data, refine_boundaries="both", progress=False)
    assert_same(json.loads((folders / "results" / "results.json").read_text()), expected)
    assert (folders / "results" / "results.png").is_file()


@pytest.mark.parametrize(("written", "used"), [("yes", True), ("no", False), ("true", True)])
def test_command_with_options_after_the_file(folders, tmp_path, monkeypatch, written, used):
    calls = {}

    def load(**options):
        calls["data"] = options
        return None, None

    def evaluate(model, processor, dataset, class_list, options, refine_boundaries, **kwargs):
        calls["options"], calls["refine_boundaries"] = options, refine_boundaries
        return {}

    monkeypatch.setattr(report, "load_segmentation_dataset", load)
    monkeypatch.setattr(report, "evaluate_model", evaluate)
    monkeypatch.setattr(report, "save_results", lambda *args: None)
    monkeypatch.setattr(report, "results_text", lambda *args: "")
    file = tmp_path / "evaluation.yaml"
    file.write_text(
        f"model_name_or_path: {folders / 'model'}\ndataset_name: synthetic\nrefine_boundaries: {written}\n"
        "flip: yes\nscales: [0.5, 1]\nbatch_size: 2\nnum_synthetic_scenes: 7\nsynthetic_scene_size: 64\n"
    )
    try:
        main(["evaluate", str(file), "--batch_size", "3", "--scales", "2", "--dataset_config_name", "full"])
        with pytest.raises(SystemExit):
            main(["evaluate", str(file), "--mode", "half"])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    options = calls["options"]
    assert calls["refine_boundaries"] is used and options.flip is True
    assert options.batch_size == 3 and options.scales == [2.0]
    data = calls["data"]
    assert (data["num_synthetic_scenes"], data["synthetic_scene_size"], data["dataset_config_name"]) == (7, 64, "full")


def test_a_share_that_a_training_has_held_out(model, processor, data, tmp_path, monkeypatch):
    """The same images that the trainer's split leaves out, in the colors of the model."""
    dataset, class_list = data
    drawn, draw_samples = [], report.draw_samples

    def note(samples, palette, *others):
        drawn.append(palette)
        return draw_samples(samples, palette, *others)

    monkeypatch.setattr(report, "draw_samples", note)
    monkeypatch.setattr(model.config, "class_colors", ["#0102fa"] * len(class_list))
    dataset.save_to_disk(tmp_path / "data")
    (tmp_path / "classes.json").write_text(json.dumps(list(class_list.label2id)))
    source = {"dataset_name": str(tmp_path / "data"), "class_list": str(tmp_path / "classes.json")}
    arguments = EvaluationDataArguments(**source, eval_fraction=0.4, seed=5)
    options = EvaluationArguments(output_dir=str(tmp_path / "results"), num_samples=9)
    results = evaluate_and_report(model, processor, arguments, options, "a model", progress=False)
    expected = dataset.train_test_split(0.4, seed=5)["test"]
    numbers_of = [name.removeprefix("validation-") for name in expected["name"]]
    assert [sample["name"].removeprefix("train-") for sample in results["samples"]] == numbers_of
    assert len(expected) == 2 and drawn == [model.config.class_colors] * 2
    assert_same(results, evaluate_model(model, processor, expected, class_list, progress=False))
    assert json.loads((tmp_path / "results" / "results.json").read_text())["model"] == "a model"
    assert (arguments.eval_split, EvaluationDataArguments(**source).eval_split) == ("train", "validation")
    assert results["split"] == "a held-out share of train"
    for wrong, message in (({"eval_fraction": 1.0}, "got 1.0"), ({"streaming": True}, "cannot split a stream")):
        with pytest.raises(ValueError, match=message):
            EvaluationDataArguments(**{**source, "eval_fraction": 0.4, **wrong})


def test_a_model_brings_the_classes_of_plain_masks(model, processor, data, tmp_path, caplog):
    """Image folders do not name their classes, but most models do."""
    _, class_list = data
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index, label_map in enumerate((np.zeros((32, 40), np.uint8), np.full((32, 40), 3, np.uint8))):
        Image.fromarray(np.stack([label_map * 50] * 3, axis=-1)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(label_map).save(tmp_path / "masks" / f"{index}.png")
    arguments = EvaluationDataArguments(dataset_name="image_folders", data_dir=str(tmp_path), eval_split="train")
    options = EvaluationArguments(output_dir=str(tmp_path / "results"), num_samples=0, num_worst=0)
    named = synthetic_scenes_model()
    named.config.id2label = dict(enumerate(SYNTHETIC_CLASSES))
    results = evaluate_and_report(named, processor, arguments, options, "a model", progress=False)
    assert list(results["per_category"]) == list(SYNTHETIC_CLASSES) and results["num_images"] == 2
    assert f"The {len(class_list)} classes are those of the model: masks must hold the ids 0 to" in caplog.text
    named.config.id2label = {index: f"LABEL_{index}" for index in range(len(class_list))}
    with pytest.raises(ValueError, match="image_folders' needs class_list"):
        evaluate_and_report(named, processor, arguments, options, "a model", progress=False)
