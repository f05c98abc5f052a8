# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How does UN-EPT compare with other segmentation models on photographs, with the same backbone?

UN-EPT and five decoders of the package segmentation_models_pytorch start from the same ImageNet weights of
EfficientNet-Lite0, and train on CamVid by the same recipe (see camvid_data.py). The learning rate of each model is the
one with the best mean IoU on the 101 validation photographs, with the first seed; the 233 test photographs measure
that choice alone.

Every run has its own process with one thread. Finished runs and the states of unfinished runs are kept in --runs, so
the command can be stopped and started again. --latency times the models, interleaved in one process, on a machine that
does nothing else; run it when the trainings are done.

    pip install segmentation_models_pytorch
    python benchmarks/camvid_peers.py --jobs 2 --data_dir CamVid \\
        --backbone_checkpoint efficientnet-lite0-57934424.pth
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from ablations import label_maps_of as unept_label_maps_of
from ablations import loss_of as unept_loss_of
from camvid_data import CLASSES, CamvidData
from results_file import RESULTS, cpu_device, mean_and_spread, today, versions, write_results
from safetensors.torch import load_file, save_file
from separate_runs import check_counts, checkpoint_file, read_result, result_file, run_all, write_result
from torch import Tensor, nn
from torch.nn import functional as F
from training_loop import best_classes, measure, train
from transformers import HfArgumentParser, set_seed


OURS = "UN-EPT"
# Classes of segmentation_models_pytorch, with its default decoders.
PEERS = {
    "DeepLabV3+": "DeepLabV3Plus",
    "UPerNet": "UPerNet",
    "FPN": "FPN",
    "Unet": "Unet",
    "SegFormer head": "Segformer",
}
MODELS = (OURS, *PEERS)
TOLERANCES = (1.0, 3.0)
PHOTOGRAPH = (360, 480)
METRICS = {
    "mean_iou": "test mIoU",
    "overall_accuracy": "pixel accuracy",
    "boundary_f1_1px": "boundary F1, 1 px",
    "boundary_f1_3px": "boundary F1, 3 px",
}


def make_model(name: str, data: CamvidData) -> nn.Module:
    """A new model with the ImageNet weights in its backbone, which are the same tensors for all."""
    unept = data.make_unept()
    if name == OURS:
        return unept
    import segmentation_models_pytorch as smp

    backbone = unept.model.backbone
    encoder = f"tu-{backbone.config.backbone}"
    model = getattr(smp, PEERS[name])(encoder_name=encoder, encoder_weights=None, classes=len(CLASSES))
    weights = {key.replace("_backbone.", "model.", 1): value for key, value in backbone.state_dict().items()}
    model.encoder.load_state_dict(weights)
    return model


def backbone_of(name: str, model: nn.Module) -> nn.Module:
    return model.model.backbone if name == OURS else model.encoder


def peer_loss_of(class_weights: list[float] | None, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    weight = None if class_weights is None else torch.tensor(class_weights)
    return F.cross_entropy(model(images).float(), labels, weight, ignore_index=CLASSES.ignore_index)


def peer_label_maps_of(model: nn.Module, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    return {"": best_classes(model(images), size)}


def loss_function(name: str, data: CamvidData) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The loss of UN-EPT, or the cross entropy with the same class weights."""
    if name == OURS:
        return unept_loss_of
    return partial(peer_loss_of, data.settings()["config_overrides"].get("class_weights"))


def label_maps_function(name: str) -> Callable[[nn.Module, Tensor, tuple[int, int]], dict[str, Tensor]]:
    return unept_label_maps_of if name == OURS else peer_label_maps_of


@dataclass
class Arguments:
    """What to train, and how much."""

    data_dir: Path = field(metadata={"help": "Folder of the photographs: train, trainannot, val, valannot, ..."})
    backbone_checkpoint: Path = field(metadata={"help": "ImageNet weights of EfficientNet-Lite0."})
    models: list[str] = field(default_factory=lambda: list(MODELS), metadata={"help": "Models to run."})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Runs of each model. The first one chooses the learning rate."}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-4, 1e-3, 3e-3], metadata={"help": "Highest learning rates to choose from."}
    )
    steps: int = field(default=200, metadata={"help": "Training steps."})
    batch_size: int = field(default=8, metadata={"help": "Crops in a step."})
    crop_size: int = field(default=256, metadata={"help": "Height and width of the crops, a multiple of 32."})
    jobs: int = field(default=1, metadata={"help": "Runs at the same time."})
    latency: bool = field(
        default=False, metadata={"help": "Time the models afterwards, which needs an otherwise idle machine."}
    )
    repeats: int = field(default=7, metadata={"help": "latency: number of runs, of which the fastest counts."})
    runs: Path = field(default=Path("runs/camvid_peers"), metadata={"help": "Folder of finished runs."})
    output: Path = field(default=RESULTS, metadata={"help": "Folder of the tables."})
    worker: str | None = field(default=None, metadata={"help": "Make one run, of this name, in this process."})

    def __post_init__(self):
        check_counts({name: getattr(self, name) for name in ("steps", "batch_size", "crop_size", "jobs", "repeats")})
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(f"There is no model {', '.join(unknown)}: the models are {', '.join(MODELS)}.")
        if self.crop_size % 32:
            raise ValueError(f"crop_size must be a multiple of 32, got {self.crop_size}.")
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < max(len(values), 1):
                raise ValueError(f"{name} must be at least one, and all different, got {values}.")
        if set(self.models) & set(PEERS) and importlib.util.find_spec("segmentation_models_pytorch") is None:
            raise ValueError(f"Models other than {OURS} need: pip install segmentation_models_pytorch.")

    def data(self, learning_rate: float | None = None) -> CamvidData:
        return CamvidData(
            self.data_dir, self.backbone_checkpoint, self.steps, self.batch_size, self.crop_size, learning_rate
        )

    def options(self) -> list[str]:
        """What a run must know, as words of a command line."""
        names = ("data_dir", "backbone_checkpoint", "steps", "batch_size", "crop_size", "runs")
        return [f"--{name}={getattr(self, name)}" for name in names]


def run_name(part: str, model: str, rate: float, seed: int) -> str:
    return f"{part} {model} {rate:g} {seed}"


def run(name: str, arguments: Arguments) -> None:
    """Makes the run "train <model> <rate> <seed>" or, after it, "test <model> <rate> <seed>"; stores its results."""
    torch.set_num_threads(1)
    part, rest = name.split(" ", 1)
    model_name, rate, seed = rest.rsplit(" ", 2)
    data = arguments.data(float(rate))
    settings = data.settings()
    weights = result_file(arguments.runs, f"train {rest}").with_suffix(".safetensors")
    set_seed(int(seed))
    model = make_model(model_name, data)
    if part == "train":
        checkpoint = checkpoint_file(arguments.runs, name)
        results = train(
            model,
            loss_function(model_name, data),
            partial(data.batches, int(seed)),
            *data.optimizer_and_scheduler(model, backbone_of(model_name, model)),
            arguments.steps,
            data.run_args.ema_decay,
            checkpoint,
            settings,
        )
        results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        save_file(model.state_dict(), weights)
        results |= measure(model, label_maps_function(model_name), data.examples(), CLASSES, TOLERANCES)
        write_result(arguments.runs, name, settings, results)
        checkpoint.unlink()
    else:
        model.load_state_dict(load_file(weights))
        predictions = result_file(arguments.runs, name).with_suffix("")
        results = measure(
            model.eval(), label_maps_function(model_name), data.examples("test"), CLASSES, TOLERANCES, predictions
        )
        write_result(arguments.runs, name, settings, results)


def make_runs(names: Sequence[str], arguments: Arguments, settings: dict) -> dict[str, dict]:
    """The results of runs, of which those that are not finished are made."""
    commands = {
        name: [f"--worker={name}", *arguments.options()]
        for name in names
        if read_result(arguments.runs, name, settings) is None
    }
    run_all(arguments.runs, commands, arguments.jobs)
    return {name: read_result(arguments.runs, name, settings) for name in names}


def measure_latency(arguments: Arguments) -> dict[str, dict[str, float]]:
    """
    The fastest seconds of each model: `forward` from one photograph, resized and normalized, to its label map, in
    float32, and `training step`. Rounds are interleaved, so that other work on the machine hits all models alike.
    """
    data = arguments.data()
    _, photograph, _ = next(data.examples())
    images, labels = next(data.batches(0, 0))
    functions: dict[tuple[str, str], Callable[[], object]] = {}

    def add(name: str) -> None:
        set_seed(0)
        model = make_model(name, data)

        @torch.inference_mode()
        def forward(refine_boundaries: bool = False):
            model.eval()
            if name != OURS:
                return peer_label_maps_of(model, photograph, PHOTOGRAPH)
            outputs = model(pixel_values=photograph)
            return data.processor.post_process_semantic_segmentation(
                outputs, target_sizes=[PHOTOGRAPH], refine_boundaries=refine_boundaries
            )

        def training_step():
            model.train()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_function(name, data)(model, images, labels)
            loss.backward()
            model.zero_grad()

        functions[name, "forward"] = forward
        if name == OURS:
            functions[name, "refined forward"] = partial(forward, refine_boundaries=True)
        functions[name, "training step"] = training_step

    for name in arguments.models:
        add(name)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
    for _ in range(arguments.repeats + 1):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[key].append(time.perf_counter() - start)
    results: dict[str, dict[str, float]] = {name: {} for name in arguments.models}
    for (name, kind), values in seconds.items():
        results[name][kind] = min(values[1:])  # the first one warms up
    return results


def table(
    chosen: dict[str, float], trained: dict[str, list[dict]], tested: dict[str, list[dict]], latency: dict | None
) -> list[str]:
    """Rows of Markdown, two for UN-EPT: without and with boundary refinement."""
    names = ["parameters, M", "learning rate", "validation mIoU", *METRICS.values()]
    names += ["one photograph, s", "training step, s"] if latency is not None else []
    lines = ["| model | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for name, rate in chosen.items():
        for kind in ("", "refined ") if name == OURS else ("",):
            cells = [f"{trained[name][0]['parameters'] / 1e6:.2f}", f"{rate:g}"]
            cells.append(mean_and_spread([100 * one[f"{kind}mean_iou"] for one in trained[name]]))
            cells += [mean_and_spread([100 * one[kind + metric] for one in tested[name]]) for metric in METRICS]
            if latency is not None:
                times = latency.get(name, {})
                cells += [f"{times[key]:.3f}" if key in times else "-" for key in (f"{kind}forward", "training step")]
            title = f"{name}, boundaries refined" if kind else name
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.worker:
        return run(arguments.worker, arguments)
    settings = arguments.data().settings()
    first, *others = arguments.seeds
    tuning = make_runs(
        [run_name("train", model, rate, first) for rate in arguments.learning_rates for model in arguments.models],
        arguments,
        settings,
    )

    def validation_score(model: str, rate: float) -> float:
        return tuning[run_name("train", model, rate, first)]["mean_iou"]

    chosen = {model: max(arguments.learning_rates, key=partial(validation_score, model)) for model in arguments.models}
    found = tuning | make_runs(
        [run_name("train", model, rate, seed) for seed in others for model, rate in chosen.items()],
        arguments,
        settings,
    )
    found |= make_runs(
        [run_name("test", model, rate, seed) for seed in arguments.seeds for model, rate in chosen.items()],
        arguments,
        settings,
    )
    if arguments.latency:
        times = measure_latency(arguments) | {"threads": torch.get_num_threads()}
        write_result(arguments.runs, "latency", settings, times)
    latency = read_result(arguments.runs, "latency", settings)

    packages = ["torch", "transformers", "timm"]
    packages += ["segmentation_models_pytorch"] if set(chosen) & set(PEERS) else []
    facts = {
        "device": cpu_device(),
        "threads": 1,
        **versions(*packages),
        "date": today(),
        **settings,
        "learning_rates": arguments.learning_rates,
        "seeds": len(arguments.seeds),
    }
    trained, tested = (
        {
            model: [found[run_name(part, model, rate, seed)] for seed in arguments.seeds]
            for model, rate in chosen.items()
        }
        for part in ("train", "test")
    )
    lines = [
        "All models start from the same ImageNet weights of EfficientNet-Lite0 and train on the 367 training "
        "photographs of CamVid by one recipe. Of the learning rates, the one with the best mean IoU on the 101 "
        "validation photographs; test figures are of the 233 test photographs, 480 x 360, 11 classes, void left out."
        + (" Mean ± standard deviation over the seeds." if others else "")
    ]
    if latency is not None:
        lines.append(
            f"Times are seconds of {latency['threads']} threads, the fastest of the repeats, which are interleaved. "
            "One photograph: in float32, from resized pixels to the label map. Training step: forward and backward of "
            "a batch, in bfloat16."
        )
    lines += ["", *table(chosen, trained, tested, latency)]
    title = "Segmentation models on CamVid"
    results = {"chosen": chosen, "runs": found, "latency": latency}
    write_results(arguments.output, "camvid_peers-cpu", title, facts, lines, **results)


if __name__ == "__main__":
    main()
