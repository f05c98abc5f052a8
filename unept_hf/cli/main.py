# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The command `unept-hf`: segment, evaluate, export, benchmark, env. docs/command-line.md describes it."""

import argparse
import contextlib
import glob
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

from ..arguments import HubArguments, ModelArguments, read_options, words_of_options
from ..evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from ..inference.loading import load_model_and_processor
from ..inference.options import PredictionOptions
from ..model.configuration_unept import PRESETS, UneptConfig
from .segmentation_arguments import SegmentationArguments


# What can not be imported without cost (pictures, data sets, exporters) is imported by the command that needs it.

HUB_PREFIX = "hf://"
# Options of how to predict that can be wrong.
CHECKED = tuple(
    field.name for field in fields(PredictionOptions) if field.name not in ("do_resize", "refine_boundaries")
)
SUFFIXES = {"label_maps": ".png", "overlays": ".png", "areas": ".json", "boundaries": ".png", "refinement": ".png"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and leaves out defaults that say nothing."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator where there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name} is none that PyTorch knows: use auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
        raise ValueError(f"--device {name} can not be used: PyTorch finds {accelerator or 'only the cpu'} here.")
    if device.index is not None and device.type != "cpu" and device.index >= torch.accelerator.device_count():
        raise ValueError(f"--device {name} can not be used: there are {torch.accelerator.device_count()} devices.")
    return device


def load_model(name: str, arguments: argparse.Namespace, allow_preset: bool = False) -> tuple:
    """A model in evaluation mode and its image processor, from a folder or the Hub, or of a preset's name."""
    if allow_preset and name in PRESETS and not Path(name).exists():
        from .. import UneptForSemanticSegmentation, UneptImageProcessor

        model = UneptForSemanticSegmentation.from_preset(name)
        return model.eval(), UneptImageProcessor(**model.image_processor_options())
    path = Path(name).expanduser()
    if path.exists():
        name = str(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{name} is no folder of a model: it has no config.json.")
    elif name.startswith((".", "~", os.sep)) or name.count("/") != 1:
        raise FileNotFoundError(f"There is no folder {name}, and models on the Hub are named owner/model.")
    options = {option: getattr(arguments, option) for option in ("revision", "token", "trust_remote_code")}
    return load_model_and_processor(name, **options)


# segment


def files_below(folder: Path) -> Iterator[Path]:
    """What is in a folder and those in it, linked ones too, but none twice."""
    visited = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()  # a link to where we come from
            continue
        visited.add(real)
        yield from (Path(path, name) for name in names if not name.startswith("._"))  # what macOS adds


def files_of(name: str) -> tuple[list[Path], Path | None]:
    """The image files that a name stands for, and the folder to name their results from, if it is one."""
    import PIL.Image

    path = Path(name).expanduser()
    if path.is_dir():
        known = {suffix for suffix, one in PIL.Image.registered_extensions().items() if one in PIL.Image.OPEN}
        found = sorted(file for file in files_below(path) if file.suffix.lower() in known and file.is_file())
        if not found:
            raise FileNotFoundError("there is no image in this folder")
        return found, path
    if path.is_file():
        return [path], None
    found = [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if file.is_file()]
    if not found:
        raise FileNotFoundError("no file matches" if glob.has_magic(name) else "there is no such file or folder")
    return found, None


def find_images(names: Sequence[str], output_dir: Path) -> tuple[list[tuple[str, PurePath]], list[tuple[str, str]]]:
    """
    The images that files, folders (with all in them), globs and addresses stand for.

    Returns:
        Pairs of an image and the path to name its results after: its own from the folder that all have in common,
        without the suffix unless that tells two images apart. And pairs of a name that stands for none, and why.
    """
    written = [(output_dir / kind).resolve() for kind in SUFFIXES]
    files, addresses, problems = {}, {}, []
    for name in names:
        if is_address(name):
            parts = urlsplit(name)
            steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".", "..")]
            addresses[name] = PurePath(parts.netloc.replace(":", "_"), *steps)
            continue
        try:
            found, folder = files_of(name)
        except FileNotFoundError as error:
            problems.append((name, str(error)))
            continue
        for file in found:
            resolved = file.resolve()
            # Earlier results in a folder are no images of it.
            if folder is None or not any(parent in resolved.parents for parent in written):
                files.setdefault(resolved, (str(file), Path(os.path.abspath(file)), folder or file.parent))

    places = []
    for drive in dict.fromkeys(path.drive for _, path, _ in files.values()):  # more than one on Windows
        here = [(name, path, os.path.abspath(folder)) for name, path, folder in files.values() if path.drive == drive]
        common = os.path.commonpath([folder for _, _, folder in here])
        places += [(name, path.relative_to(common)) for name, path, _ in here]
    places += addresses.items()

    def key(place):
        return str(place).casefold()

    stems = Counter(key(place.with_suffix("")) for _, place in places)
    images, taken = [], set()
    for name, place in places:
        result = place.with_suffix("") if stems[key(place.with_suffix(""))] == 1 else place
        number = 2
        while key(result) in taken:
            result, number = place.with_name(f"{place.name}-{number}"), number + 1
        taken.add(key(result))
        images.append((name, result))
    return images, problems


def result_files(output_dir: Path, place: PurePath, kinds: Sequence[str]) -> dict[str, Path]:
    """Where the results of an image go."""
    return {kind: output_dir / kind / place.with_name(place.name + SUFFIXES[kind]) for kind in kinds}


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path beside `file` that becomes it at the end, so that no half of a result is taken for one."""
    part = file.with_name(f".part-{os.getpid()}{file.suffix}")  # however long the name of the file is
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Makes a folder if need be, and raises an `OSError` where nothing can be written into it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def segment_one(model, processor, name: str, files: dict[str, Path], options: SegmentationArguments, palette) -> None:
    """Segments an image and writes its results."""
    import numpy as np
    import PIL.Image

    from ..inference.segment import refine, segment
    from ..model.image_processing_pil_unept import open_image, reading
    from ..visualization import figures as visualization

    image = open_image(name)
    with reading(name):
        image.load()
    needs_boundaries = options.refine_boundaries or not {"boundaries", "refinement"}.isdisjoint(files)
    result = segment(
        model,
        processor,
        image,
        do_resize=options.do_resize,
        return_boundaries=needs_boundaries,
        **{name: getattr(options, name) for name in CHECKED},
    )
    plain = label_map = result.label_map
    if options.refine_boundaries or "refinement" in files:
        is_boundary = result.boundary_probability > options.boundary_threshold
        refined, _ = refine(plain, is_boundary, result.direction_map, options.boundary_steps)
        label_map = refined if options.refine_boundaries else plain

    id2label = model.config.id2label

    def write(kind, file):
        if kind == "label_maps":
            dtype = np.uint8 if model.config.num_labels <= 256 else np.uint16
            PIL.Image.fromarray(label_map.numpy().astype(dtype)).save(file)
        elif kind == "areas":
            height, width = label_map.shape
            areas = visualization.class_areas(label_map, id2label)
            data = {"image": name, "height": height, "width": width, "classes": areas}
            file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        else:
            if kind == "overlays":
                figure = visualization.draw_overlay(
                    image, label_map, id2label, palette, options.opacity, max_size=options.picture_size
                )
            elif kind == "boundaries":
                figure = visualization.draw_boundaries(
                    image,
                    result.boundary_probability,
                    result.direction_map,
                    options.boundary_threshold,
                    max_size=options.picture_size,
                )
            else:
                figure = visualization.draw_refinement(
                    image, plain, refined, id2label, palette, max_size=options.picture_size
                )
            figure.savefig(file)

    for kind, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            write(kind, part)


def run_segment(arguments: argparse.Namespace) -> int:
    """Segments images, goes on after bad ones, and returns 1 if there were any."""
    from ..inference.segment import check_options

    options = from_namespace(SegmentationArguments, arguments)
    output_dir = Path(options.output_dir).expanduser()
    images, problems = find_images(arguments.images, output_dir)
    tasks = {name: result_files(output_dir, place, options.save) for name, place in images}
    inputs = {Path(name).resolve() for name in tasks if not is_address(name)}
    overwritten = [file for files in tasks.values() for file in files.values() if file.resolve() in inputs]
    if overwritten:
        raise FileExistsError(f"{overwritten[0]} is one of the images, and would be overwritten: change --output_dir.")
    existing = [file for files in tasks.values() for file in files.values() if file.exists()]
    if existing and options.existing == "error":
        raise FileExistsError(
            f"{existing[0]} exists already, as do {len(existing) - 1} other results: pass --existing skip or "
            "--existing overwrite, or change --output_dir."
        )
    skipped = 0
    if options.existing == "skip":
        done = [name for name, files in tasks.items() if all(file.exists() for file in files.values())]
        skipped = len(done)
        for name in done:
            del tasks[name]

    def report(name, reason):
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"unept-hf segment: {name}: {reason}", file=sys.stderr)

    for problem in problems:
        report(*problem)
    failures, start = len(problems), time.perf_counter()
    if tasks:
        palette = None
        if options.class_list is not None:
            from ..data.class_lists import load_class_list

            palette = load_class_list(options.class_list).palette
        device = choose_device(arguments.device)
        model, processor = load_model(arguments.model, arguments)
        model.to(device)
        if palette is not None and len(palette) != model.config.num_labels:
            raise ValueError(
                f"--class_list {options.class_list} has {len(palette)} classes, but the model "
                f"{model.config.num_labels}."
            )
        with wrong_options(arguments):
            check_options(model, **{name: getattr(options, name) for name in CHECKED})
        check_writable(output_dir)
        for name, files in tqdm(tasks.items(), desc="Segmenting", unit="image", disable=None):
            try:
                segment_one(model, processor, name, files, options, palette)
            # Whatever is wrong with one image, the others are still wanted.
            except Exception as error:
                failures += 1
                report(name, traceback.format_exc() if arguments.debug else message_of(error))
    succeeded = len(tasks) + len(problems) - failures
    counts = [f"{succeeded} segmented"]
    counts += [f"{count} {what}" for count, what in ((failures, "failed"), (skipped, "skipped")) if count]
    print(f"{', '.join(counts)} in {time.perf_counter() - start:.1f} s: {output_dir}")
    return 1 if failures else 0


# evaluate


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates a model on a data set."""
    from accelerate import Accelerator

    from ..evaluation.evaluate import evaluate_and_report
    from ..inference.segment import check_options

    # Accelerate knows of other processes, and takes the accelerator where there is one.
    accelerator = Accelerator() if arguments.device == "auto" else None
    device = accelerator.device if accelerator is not None else choose_device(arguments.device)
    data, evaluation = (from_namespace(one, arguments) for one in (EvaluationDataArguments, EvaluationArguments))
    model, processor = load_model(arguments.model_name_or_path, arguments)
    with wrong_options(arguments):
        check_options(model, **{name: getattr(evaluation, name) for name in CHECKED})
    evaluate_and_report(
        model.to(device),
        processor,
        data,
        evaluation,
        model_name=arguments.model_name_or_path,
        accelerator=accelerator,
        progress=sys.stderr.isatty(),
    )
    if accelerator is not None:
        accelerator.end_training()
    return 0


# export


def model_card_of(name: str, config: UneptConfig, arguments: argparse.Namespace) -> str:
    """The model card that the options describe."""
    import yaml

    from ..export.hub import default_model_card, describe_backbone

    facts = {}
    for option in ("evaluation", "training_options"):
        file = getattr(arguments, option)
        if file is not None:
            try:
                facts[option] = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))  # JSON is YAML too
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(f"--{option} {file} is no JSON or YAML file: {error}") from error
            if not isinstance(facts[option], dict):
                raise ValueError(f"--{option} {file} has to hold names and values.")
    return default_model_card(
        name, config.num_labels, license=arguments.license, backbone=describe_backbone(config), **facts
    )


def export_for_hub(model, processor, output: str, arguments: argparse.Namespace) -> None:
    """Writes a folder with its code and model card, or uploads one to `hf://owner/name`."""
    from ..export.hub import export, push_to_hub

    repository = output.removeprefix(HUB_PREFIX)
    name = repository if output.startswith(HUB_PREFIX) else Path(output).resolve().name
    options = {
        "model_card": model_card_of(name, model.config, arguments),
        "example_image": arguments.example_image,
    }
    if output.startswith(HUB_PREFIX):
        commit = push_to_hub(
            model, processor, repository, private=arguments.private or None, token=arguments.token, **options
        )
        print(f"Uploaded to {commit.commit_url.partition('/commit/')[0]}")
    else:
        export(model, processor, output, overwrite=arguments.overwrite, **options)
        print(f"Wrote {output}: hf upload <user>/{name} {output}")


def run_export(arguments: argparse.Namespace) -> int:
    """Exports a model."""
    is_upload = arguments.output.startswith(HUB_PREFIX)
    output = Path(arguments.output).expanduser()
    suffix = "" if is_upload else output.suffix
    form = arguments.format or {".onnx": "onnx", ".pt2": "torch", "": "hub"}.get(suffix)
    if form is None:
        raise ValueError(f"{output} does not say what to write: end it in .onnx or .pt2, or pass --format.")
    if is_upload and (form != "hub" or arguments.output.removeprefix(HUB_PREFIX).count("/") != 1):
        raise ValueError(f"{arguments.output} has to be hf://owner/name, without another --format.")
    if form != "hub" and output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output} exists already: pass --overwrite, or name another file.")
    if arguments.quantize and form != "onnx":
        raise ValueError("--quantize is for ONNX alone: name a file that ends in .onnx.")
    model, processor = load_model(arguments.model, arguments, allow_preset=True)
    model.to(choose_device(arguments.device))
    start = time.perf_counter()
    if form == "hub":
        export_for_hub(model, processor, arguments.output if is_upload else str(output), arguments)
        return 0

    from ..export.graphs import export_aot_inductor, export_onnx, export_torch

    checks = {"size_divisor": arguments.size_divisor, "tolerance": arguments.tolerance}
    relative = None
    if form == "onnx":
        metadata = {name: getattr(processor, name, None) for name in ("image_mean", "image_std", "size")}
        metadata["size"] = {name: value for name, value in dict(metadata["size"] or {}).items() if value}
        options = {"opset_version": arguments.opset, "metadata": metadata, **checks}
        if arguments.quantize:
            from ..export.graphs import quantize_onnx

            with tempfile.TemporaryDirectory() as folder:
                difference = export_onnx(model, Path(folder, "float32.onnx"), **options)
                relative = quantize_onnx(Path(folder, "float32.onnx"), output)
        else:
            difference = export_onnx(model, output, **options)
    elif form == "torch":
        difference = export_torch(model, output, keep_kernel=arguments.keep_kernel, **checks)
    else:
        difference = export_aot_inductor(model, output, **checks)
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB, in {time.perf_counter() - start:.0f} s.")
    if difference is None:
        print("Its outputs were not compared with the model's, for lack of ONNX Runtime: pip install onnxruntime")
    elif relative is not None:
        print(
            f"In float32 its outputs differ from the model's by at most {difference:.1e}; int8 changes them by "
            f"{100 * relative:.1f} % more, on random images."
        )
    else:
        print(
            f"Its outputs differ from the model's by at most {difference:.1e} (tolerance {arguments.tolerance:.1e})."
        )
    return 0


# benchmark and env


def parse_size(text: str) -> tuple[int, int]:
    """`480` or `480x640` as (height, width)."""
    height, _, width = text.lower().partition("x")
    try:
        return positive(height), positive(width or height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 480, or 480x640 for height and width") from None


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns."""
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [heads, *rows]]
    return "\n".join(lines)


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Measures latency and memory of a model on this machine."""
    from ..machine_report import attention_backends, chosen_backend, devices, measure_latency

    device = choose_device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    model, _ = load_model(arguments.model, arguments, allow_preset=True)
    model.to(device, dtype)
    is_unept = model.config.model_type == "unept"
    reasons = attention_backends(device, dtype) if is_unept else {}
    chosen = chosen_backend(device, dtype) if is_unept else None
    names = [chosen]
    if is_unept and arguments.all_backends:
        names = [name for name, reason in reasons.items() if reason is None]
    machine = devices().get(str(device)) or devices().get(f"{device.type}:0") or str(device)
    print(f"{arguments.model} in {arguments.dtype} on {device}: {machine}")
    for name, reason in reasons.items():
        text = f"does not run: {reason}" if reason else "chosen" if name == chosen else "runs"
        print(f"  attention backend {name}: {text}")

    function = torch.compile(model) if arguments.compile else model
    rows = []
    sizes = [parse_size(size) if isinstance(size, str) else size for size in arguments.sizes]
    configurations = [(size, name) for size in sizes for name in names]
    for (height, width), name in tqdm(configurations, desc="Measuring", disable=None):
        shape = (arguments.batch_size, getattr(model.config, "num_channels", 3), height, width)
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        measured = measure_latency(function, pixel_values, name or "auto", arguments.repeats)
        settings = {"height": height, "width": width, "batch_size": arguments.batch_size, "attention": name}
        rows.append(settings | {"compiled": arguments.compile} | measured)
    lines = [
        [
            f"{row['height']} x {row['width']}",
            str(row["batch_size"]),
            row["attention"] or "-",
            f"{1000 * row['median_seconds']:.1f} ms",
            f"{1000 * row['fastest_seconds']:.1f} ms",
            f"{row['images_per_second']:.2f}",
            "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
        ]
        for row in rows
    ]
    heads = ["size", "batch", "attention", "median", "fastest", "images/s", "peak memory above the model"]
    print("\n" + table(heads, lines))
    if arguments.json is not None:
        report = {"model": arguments.model, "device": str(device), "machine": machine, "dtype": arguments.dtype}
        report |= {"backends": reasons, "chosen": chosen, "repeats": arguments.repeats, "results": rows}
        Path(arguments.json).expanduser().write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def run_env(arguments: argparse.Namespace) -> int:
    """Prints what a bug report should say."""
    from ..machine_report import environment

    report = environment()
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    for title, entries in report.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
    return 0


# The command itself


def from_namespace(dataclass, namespace: argparse.Namespace):
    """The fields of a dataclass from parsed options."""
    with wrong_options(namespace):
        return dataclass(**{field.name: getattr(namespace, field.name) for field in fields(dataclass)})


@contextlib.contextmanager
def wrong_options(namespace: argparse.Namespace) -> Iterator[None]:
    """Ends the command where a check of its options raises a `ValueError`."""
    try:
        yield
    except ValueError as error:
        print(f"unept-hf {namespace.command}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


EXAMPLES = {
    "segment": """\
examples:
  unept-hf segment my-model photo.jpg
  unept-hf segment my-model photos/ "more/*.png" --output_dir results --class_list ade20k
  unept-hf segment my-model big.tif --mode slide --do_resize false --refine_boundaries --save label_maps refinement
  unept-hf segment my-model photos/ --existing skip        (goes on after an interruption)

Exit status: 0 if all images were segmented, 1 if some were not (each is reported), 2 for wrong options.""",
    "evaluate": """\
examples:
  unept-hf evaluate --model_name_or_path my-model --dataset_name ade20k --data_dir ADEChallengeData2016
  unept-hf evaluate --model_name_or_path my-model --dataset_name synthetic --refine_boundaries both
  unept-hf evaluate evaluation.yaml                        (the same options from a file; more may follow)
  accelerate launch -m unept_hf evaluate evaluation.yaml   (on several GPUs)""",
    "export": """\
examples:
  unept-hf export my-model my-model.onnx
  unept-hf export my-model my-model.pt2                    (torch.export)
  unept-hf export my-model my-model.pt2 --format aot       (compiled by AOTInductor)
  unept-hf export my-model my-model-int8.onnx --quantize int8
  unept-hf export my-model my-model-for-the-hub            (a folder with its code)
  unept-hf export my-model hf://owner/my-model --evaluation results.json --example_image photo.jpg""",
    "benchmark": """\
examples:
  unept-hf benchmark my-model
  unept-hf benchmark unept-resnet50 --sizes 480 1024x2048 --all_backends --json latency.json

A preset's name stands for that model with random weights.""",
    "env": """\
examples:
  unept-hf env
  unept-hf env --json > environment.json""",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from ..version import __version__

    parser = argparse.ArgumentParser(
        prog="unept-hf",
        description="UN-EPT semantic segmentation.",
        epilog="unept-hf <command> --help has examples.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=HfArgumentParser)

    def add(name, run, usage, description, dataclass_types=(), has_device=True):
        one = commands.add_parser(
            name,
            usage=f"%(prog)s {usage} [options]".replace("  ", " "),
            help=description,
            description=f"{description[0].upper()}{description[1:]}.",
            epilog=EXAMPLES[name],
            formatter_class=HelpFormatter,
            dataclass_types=dataclass_types,
        )
        one.set_defaults(run=run)
        if has_device:
            one.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
        one.add_argument("--debug", action="store_true", help="Show where errors come from.")
        return one

    one = add(
        "segment",
        run_segment,
        "model images [images ...]",
        "label maps and pictures of images",
        (HubArguments, SegmentationArguments),
    )
    one.add_argument("model", help="Folder or Hub name of the model and its image processor.")
    one.add_argument("images", nargs="+", help="Files, folders, globs (in quotes) or addresses of images.")

    add(
        "evaluate",
        run_evaluate,
        "--model_name_or_path MODEL --dataset_name DATASET",
        "metrics of a model on a data set",
        (ModelArguments, EvaluationDataArguments, EvaluationArguments),
    )

    one = add("export", run_export, "model output", "a model for other programs", HubArguments)
    one.add_argument("model", help="Folder or Hub name of the model, or a preset for random weights.")
    one.add_argument("output", help="File ending in .onnx or .pt2, a folder for the Hub, or hf://owner/name on it.")
    one.add_argument("--format", choices=["onnx", "torch", "aot", "hub"], help="What to write, if not as OUTPUT says.")
    one.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    one.add_argument("--size_divisor", type=positive, help="What sides are multiples of. The model's own by default.")
    one.add_argument("--tolerance", type=float, default=1e-3, help="How far outputs may differ from the model's.")
    one.add_argument("--opset", type=positive, help="Version of ONNX's operators. PyTorch's choice by default.")
    one.add_argument(
        "--keep_kernel",
        action="store_true",
        help="For torch.export: keep our operator, which is faster and needs unept_hf where the file is loaded.",
    )
    one.add_argument("--quantize", choices=["int8"], help="For ONNX: matrix products in int8, quantised at run time.")
    one.add_argument("--license", help="For the Hub: license of the weights, in its spelling. None by default.")
    one.add_argument("--evaluation", metavar="FILE", help="For the Hub: results.json of an evaluation, to be shown.")
    one.add_argument("--training_options", metavar="FILE", help="For the Hub: YAML or JSON of options, to be shown.")
    one.add_argument("--example_image", metavar="FILE", help="For the Hub: an image for the widget of the page.")
    one.add_argument("--private", action="store_true", help="For hf://: make a new repository a private one.")

    one = add("benchmark", run_benchmark, "model", "latency and memory of a model on this machine", HubArguments)
    one.add_argument("model", help="Folder or Hub name of the model, or a preset for random weights.")
    one.add_argument("--sizes", nargs="+", type=parse_size, default=["480x480"], help="Such as 480, or 480x640.")
    one.add_argument("--batch_size", type=positive, default=1, help="Images at once.")
    one.add_argument("--repeats", type=positive, default=10, help="Timed runs.")
    one.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="Of the weights.")
    one.add_argument("--all_backends", action="store_true", help="Measure each attention backend that runs.")
    one.add_argument("--compile", action="store_true", help="Compile the model with torch.compile first.")
    one.add_argument("--json", metavar="FILE", help="Write the results to a file too.")

    one = add("env", run_env, "", "versions, devices and kernels, for bug reports", has_device=False)
    one.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def message_of(error: Exception) -> str:
    """What a user should read of an error."""
    # Other errors say too little without their name.
    spoken = isinstance(error, (ValueError, OSError, ImportError, RuntimeError, TypeError)) and str(error)
    return str(error) if spoken else f"{type(error).__name__}: {error}"


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    args = list(sys.argv[1:] if args is None else args)
    if len(args) > 1 and args[0] == "evaluate" and args[1].endswith((".yaml", ".yml", ".json")):
        try:
            args[1:2] = words_of_options(read_options(args[1]))
        except ValueError as error:
            raise SystemExit(f"unept-hf evaluate: {error}") from error
    arguments = make_parser().parse_args(args)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"unept-hf {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if arguments.debug:
            raise
        print(f"unept-hf {arguments.command}: {message_of(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
