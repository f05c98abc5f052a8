# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf segment`: label maps, areas and pictures of images and videos."""

import argparse
import contextlib
import glob
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..arguments import HubArguments, option
from ..data.class_lists import load_class_list
from ..files import atomic_file, make_directory
from ..inference.options import PredictionOptions
from ..visualization.video_files import VIDEO_SUFFIXES
from .command_line import DeviceArguments, choose_device, load_model, message_of, options_from, usage_errors


__all__ = ["EXAMPLES", "SegmentationArguments", "add_arguments", "files_below", "find_images", "run"]

USAGE = "model images [images ...]"
EXAMPLES = """\
examples:
  unept-hf segment my-model photo.jpg
  unept-hf segment my-model photos/ "more/*.png" --output_dir results --class_list ade20k
  unept-hf segment my-model big.tif --mode slide --do_resize false --refine_boundaries --save label_maps refinement
  unept-hf segment my-model photos/ --unknown_below 0.5 --save label_maps confidence
  unept-hf segment my-model photos/ --existing skip        (continues after an interruption)
  unept-hf segment my-model drive.mp4 --save overlays --smoothing 0.7
  unept-hf segment my-model leftImg8bit/test --do_resize false --save cityscapes_label_ids
  unept-hf segment segformer photos/ --refine_with my-model
  unept-hf segment my-model photos/ --label_maps their_label_maps/ --save label_maps refinement

Exit status: 0 if all images were segmented, 1 if some were not (each is reported), 2 for wrong options."""

SUFFIXES = {
    "label_maps": ".png",
    "overlays": ".png",
    "full_overlays": ".png",
    "areas": ".json",
    "confidence": ".png",
    "boundaries": ".png",
    "refinement": ".png",
    "cityscapes_label_ids": ".png",
}
OF_VIDEOS = {"label_maps": "", "overlays": ".mp4"}  # a directory, and a file


@dataclass
class SegmentationArguments(PredictionOptions):
    """How to predict, and what to write of each image."""

    output_dir: str = option("segmented", "Directory for the results.")
    save: list[str] = option(
        ["label_maps", "overlays", "areas"],
        "What to write, each into a directory of that name: label maps (PNG, one class number for each pixel), "
        "pictures of the classes over the image, the same at the full size of the image and without a legend, areas "
        "of the classes (JSON), probability of the class of each pixel (gray PNG, 255 for 1), pictures of the "
        "boundaries, pictures of the changes by the refinement, label maps "
        "(PNG) with the label ids that the test server of Cityscapes expects.",
        choices=list(SUFFIXES),
    )
    unknown_below: float = option(
        0.0,
        "Probability below which a pixel has no class: label maps give it the number that the model ignores in "
        "training, which is 255 unless the model says otherwise.",
    )
    existing: str = option(
        "error",
        "What to do about existing results: stop before any work, skip the images that have all of theirs, or "
        "overwrite them.",
        choices=["error", "skip", "overwrite"],
    )
    refine_with: str | None = option(
        None,
        "Directory or Hub name of a UN-EPT, whose boundary heads refine the label maps of the model; the model may be "
        "any for semantic segmentation.",
    )
    label_maps: str | None = option(
        None,
        "Directory of label maps of any other program, which the model refines instead of predicting its own. Named "
        "as the results: NAME.png for NAME.jpg.",
    )
    class_list: str | None = option(
        None,
        "Name or JSON file of the classes, for their colors; by default those of the model, or else colorblind-safe "
        "ones.",
    )
    palette_label_maps: bool = option(
        False,
        "Save label maps with the colors of the classes, which viewers show; the pixels still hold the class numbers.",
    )
    smoothing: float = option(
        0.0,
        "Of videos: weight of the earlier frames in the class scores, below 1. It steadies the classes, and delays "
        "changes by smoothing / (1 - smoothing) frames.",
    )
    num_workers: int = option(0, "Number of threads that read and prepare the next images while the model runs.")
    opacity: float = option(0.6, "Opacity of the colors in overlays, 0 to 1.")
    picture_size: int = option(1024, "Longer side of the pictures in pixels.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.opacity <= 1 or self.picture_size < 1:
            raise ValueError(
                f"opacity must lie in [0, 1] and picture_size must be at least 1, got {self.opacity} and "
                f"{self.picture_size}."
            )
        if not 0 <= self.unknown_below <= 1:
            raise ValueError(f"unknown_below must be a probability in [0, 1], got {self.unknown_below}.")
        if self.label_maps is not None and (self.unknown_below or "confidence" in self.save):
            raise ValueError(
                "--label_maps brings no probabilities of the classes, which --unknown_below and --save confidence "
                "need: drop one or the other."
            )
        if not 0 <= self.smoothing < 1 or self.num_workers < 0:
            raise ValueError(
                "smoothing must be at least 0 and below 1, and num_workers must be at least 0, got "
                f"{self.smoothing} and {self.num_workers}."
            )
        if self.refine_with is not None and self.label_maps is not None:
            raise ValueError("--refine_with and --label_maps are two ways to refine other label maps; pass one.")


OPTIONS = (DeviceArguments, HubArguments, SegmentationArguments)


def add_arguments(add) -> None:
    """Adds the arguments of the command."""
    add("model", help="Directory or Hub name of the model and its image processor.")
    add("images", nargs="+", help="Files, directories, globs (in quotes) or addresses of images; files of videos.")


def run(arguments: argparse.Namespace) -> int:
    """Segments images, goes on after bad ones, and returns 1 if there were any."""
    options = options_from(SegmentationArguments, arguments)
    output_dir = Path(options.output_dir).expanduser()
    images, problems = find_images(arguments.images, output_dir)
    tasks = {}
    for name, place in images:
        suffixes = OF_VIDEOS if _is_video(name) else SUFFIXES
        kinds = [kind for kind in options.save if kind in suffixes]
        tasks[name] = {kind: output_dir / kind / place.with_name(place.name + suffixes[kind]) for kind in kinds}
        if not kinds:
            raise ValueError(f"{name} is a video, of which --save can write {' and '.join(OF_VIDEOS)}; pass one.")
        if _is_video(name) and (options.refine_with or options.label_maps or options.unknown_below):
            raise ValueError(f"--refine_with, --label_maps and --unknown_below are for images; leave out {name}.")
    inputs = {Path(name).resolve() for name in tasks if not _is_address(name)}
    label_maps = {}
    if options.label_maps is not None:
        given = Path(options.label_maps).expanduser()
        label_maps = {name: given / place.with_name(f"{place.name}.png") for name, place in images}
        inputs |= {file.resolve() for file in label_maps.values()}
    results = [file for files in tasks.values() for file in files.values()]
    overwritten = [file for file in results if file.resolve() in inputs]
    if overwritten:
        raise FileExistsError(f"{overwritten[0]} is one of the inputs, and would be overwritten; change --output_dir.")
    existing = [file for file in results if file.exists()]
    if existing and options.existing == "error":
        raise FileExistsError(
            f"{existing[0]} exists already, as do {len(existing) - 1} other results; pass --existing skip or "
            "--existing overwrite, or change --output_dir."
        )
    skipped = set()
    if options.existing == "skip":
        skipped = {name for name, files in tasks.items() if all(file.exists() for file in files.values())}
    tasks = {name: files for name, files in tasks.items() if name not in skipped}

    def report(name, reason):
        tqdm.write(f"unept-hf segment: {name}: {reason}", file=sys.stderr)

    for problem in problems:
        report(*problem)
    failures, start = len(problems), time.perf_counter()
    if tasks:
        from ..inference.optimize import optimize_for_inference
        from ..inference.segment import check_boundary_heads

        classes, device = None, choose_device(arguments.device)
        if options.class_list is not None:
            classes = load_class_list(options.class_list)
        segmenter = refiner = load_model(arguments.model, arguments)
        if options.refine_with is not None:
            # --revision is that of the model.
            refiner = load_model(options.refine_with, argparse.Namespace(**vars(arguments) | {"revision": "main"}))
        for model, _ in (segmenter, refiner):
            model.to(device)
            with usage_errors(arguments):
                options.check_model(model)
            if model.config.model_type == "unept":
                optimize_for_inference(model)
        num_labels = segmenter[0].config.num_labels
        if options.palette_label_maps and num_labels > 256 and options.label_maps is None:
            raise ValueError(
                f"--palette_label_maps is for up to 256 classes, but the model has {num_labels}; leave it out."
            )
        if classes is not None and options.label_maps is None and len(classes) != num_labels:
            raise ValueError(
                f"--class_list {options.class_list} has {len(classes)} classes, but the model {num_labels}."
            )
        if options.refine_with is not None or options.label_maps is not None:
            check_boundary_heads(refiner[0])
        id2label, palette = segmenter[0].config.id2label, getattr(segmenter[0].config, "class_colors", None)
        if options.label_maps is not None:  # whose classes are not those of the model
            id2label, palette = None if classes is None else classes.id2label, None
        if "cityscapes_label_ids" in options.save:
            if id2label is None:
                raise ValueError(
                    "cityscapes_label_ids of --label_maps needs their classes; pass --class_list cityscapes."
                )
            _cityscapes_label_ids(id2label)  # other classes are one error, not one of each image
        if classes is not None:
            palette = classes.palette
        with tempfile.TemporaryFile(dir=make_directory(output_dir)):
            pass  # a directory that cannot be written is an error of its own, not of each image
        read = partial(_read, segmenter, refiner, options)
        bar = tqdm(tasks.items(), desc="Segmenting", unit="image", disable=None)
        with contextlib.closing(_read_ahead(read, tasks, options.num_workers)) as ahead:
            for (name, files), get_image in zip(bar, ahead):
                try:
                    if _is_video(name):
                        _segment_video(segmenter, name, files, options, palette)
                        continue
                    image, views = get_image()
                    _segment_one(
                        segmenter, refiner, name, image, views, label_maps.get(name), files, options, id2label, palette
                    )
                # Whatever is wrong with one image, the others are still wanted.
                except Exception as error:
                    failures += 1
                    report(name, traceback.format_exc() if arguments.traceback else message_of(error))
    succeeded = len(tasks) + len(problems) - failures
    counts = [f"{succeeded} segmented"]
    counts += [f"{count} {what}" for count, what in ((failures, "failed"), (len(skipped), "skipped")) if count]
    print(f"{', '.join(counts)} in {time.perf_counter() - start:.1f} s: {output_dir}")
    return 1 if failures else 0


def _cityscapes_label_ids(id2label: dict[int, str]) -> np.ndarray:
    """The label id of each class of a model, uint8 `(classes,)`: cityscapesScripts, helpers/labels.py."""
    classes = load_class_list("cityscapes")
    if unknown := [name for name in id2label.values() if name not in classes.label2id]:
        raise ValueError(
            "cityscapes_label_ids is for models with the classes of Cityscapes, but "
            f"{', '.join(map(repr, unknown[:5]))} are not among them: save label_maps, or give the model the names of "
            "the class list cityscapes."
        )
    label_ids = {train_id: int(label_id) for label_id, train_id in classes.extras["label_id_to_train_id"].items()}
    return np.array([label_ids[classes.label2id[id2label[index]]] for index in range(len(id2label))], np.uint8)


def _unknown_id(config: Any) -> int:
    """The label of pixels without a class: that of training, unless a class or no PNG can have it."""
    ignored = getattr(config, "semantic_loss_ignore_index", 255)
    return ignored if config.num_labels <= ignored < 2**16 else 2**16 - 1


def _read(
    segmenter: tuple[Any, Any], refiner: tuple[Any, Any], options: SegmentationArguments, name: str
) -> tuple[PIL.Image.Image, list[Any]]:
    """An image, and its views for the model, or for both models where another one refines."""
    from ..inference.windows import make_views

    image = _open(name)
    parts = [segmenter, refiner] if options.refine_with is not None else [segmenter]
    return image, [make_views(processor, image, options, None) for _, processor in parts]


def _read_ahead(
    read: Callable[[str], Any], names: Iterable[str], num_workers: int
) -> Generator[Callable[[], Any], None, None]:
    """For each name, in order, a function that gives what `read` returns or raises. Threads read the next images."""
    if num_workers == 0:
        yield from (partial(read, name) for name in names)
        return
    executor = ThreadPoolExecutor(num_workers)
    waiting: deque[Callable[[], Any]] = deque()
    try:
        for name in names:
            waiting.append((lambda: None) if _is_video(name) else executor.submit(read, name).result)
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft()
        yield from waiting
    finally:
        executor.shutdown(cancel_futures=True)


def _segment_video(
    segmenter: tuple[Any, Any], name: str, files: dict[str, Path], options: SegmentationArguments, palette: Any
) -> None:
    from ..visualization.segment_video import segment_video

    segment_video(
        *segmenter,
        name,
        files.get("overlays"),
        options,
        label_maps=files.get("label_maps"),
        overwrite=options.existing != "error",
        smoothing=options.smoothing,
        palette=palette,
        opacity=options.opacity,
    )


def _segment_one(
    segmenter: tuple[Any, Any],
    refiner: tuple[Any, Any],
    name: str,
    image: PIL.Image.Image,
    views: list[Any],
    label_map_file: Path | None,
    files: dict[str, Path],
    options: SegmentationArguments,
    id2label: dict[int, str] | None,
    palette: Any,
) -> None:
    from ..inference.segment import segment, segment_batch
    from ..visualization import figures
    from ..visualization.overlay import class_palette, label_map_to_image, overlay

    label_maps: list[Any] | None = None
    confidence, with_confidence = None, options.unknown_below > 0 or "confidence" in files
    if label_map_file is not None:
        label_maps = [_open(str(label_map_file))]
    elif options.refine_with is not None:
        first = segment(*segmenter, views[0], options, refine_boundaries=False, return_confidence=with_confidence)
        label_maps, confidence = [first.label_map], first.confidence
    refine_boundaries = options.refine_boundaries or label_maps is not None
    is_refined = refine_boundaries or "refinement" in files
    [plain] = segment_batch(
        *refiner,
        [views[-1]],
        options,
        refine_boundaries=False,
        return_boundaries=is_refined or "boundaries" in files,
        return_confidence=with_confidence,
        label_maps=label_maps,
    )
    if confidence is not None:
        plain.confidence = confidence  # of the model, whose label map the refiner got
    refined = plain.refined(**options.refinement) if is_refined else plain
    result = refined if refine_boundaries else plain
    label_map, confidence = result.label_map, result.confidence
    largest = segmenter[0].config.num_labels - 1 if label_map_file is None else int(label_map.max())
    if options.unknown_below and confidence is not None:
        unknown = _unknown_id(segmenter[0].config)
        label_map, largest = label_map.masked_fill(confidence < options.unknown_below, unknown), unknown
    shown = {"max_size": options.picture_size}
    colors = {"id2label": id2label, "palette": palette, **shown}
    for kind, file in files.items():
        with atomic_file(file) as part:
            if kind == "label_maps":
                label_colors = (
                    class_palette(palette, id2label, label_map.numpy()) if options.palette_label_maps else None
                )
                label_map_to_image(label_map, largest + 1, label_colors).save(part)
            elif kind == "cityscapes_label_ids":
                # The server takes no unknown pixels.
                PIL.Image.fromarray(_cityscapes_label_ids(id2label or {})[result.label_map.numpy()]).save(part)
            elif kind == "confidence":
                assert confidence is not None  # the options exclude label maps of other programs
                PIL.Image.fromarray((confidence * 255).round().byte().numpy()).save(part)
            elif kind == "areas":
                height, width = label_map.shape
                areas = figures.class_areas(label_map, id2label)
                data = {"image": name, "height": height, "width": width, "classes": areas}
                part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            elif kind == "overlays":
                figures.draw_overlay(image, label_map, opacity=options.opacity, **colors).savefig(part)
            elif kind == "full_overlays":
                overlay(image, label_map, class_palette(palette, id2label, label_map.numpy()), options.opacity).save(
                    part
                )
            elif kind == "boundaries":
                seen = (plain.boundary_probability, plain.direction_map, options.boundary_threshold)
                figures.draw_boundaries(image, *seen, **shown).savefig(part)
            else:
                figures.draw_refinement(image, plain.label_map, refined.label_map, **colors).savefig(part)


def _open(name: str) -> PIL.Image.Image:
    from ..model.image_reading import open_image, reading

    image = open_image(name)
    with reading(name):
        image.load()
    return image


def _is_video(name: str) -> bool:
    return not _is_address(name) and name.lower().endswith(VIDEO_SUFFIXES)


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def files_below(directory: Path) -> Iterator[Path]:
    """The files in a directory and its subdirectories, linked ones too, but none twice."""
    visited = set()
    for path, directories, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            directories.clear()  # a link to where we come from
            continue
        visited.add(real)
        yield from (Path(path, name) for name in names if not name.startswith("._"))  # macOS adds these


def find_images(names: Sequence[str], output_dir: Path) -> tuple[list[tuple[str, PurePath]], list[tuple[str, str]]]:
    """
    The images that files, directories (with all files in them), globs and addresses stand for.

    Returns:
        Pairs of an image and the path to name its results after: its path from the directory that all have in common,
        without the suffix unless the suffix tells two images apart. And pairs of a name that stands for no image, and
        why.
    """
    suffixes = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    written = [(output_dir / kind).resolve() for kind in SUFFIXES]
    files: dict[Path, tuple[str, Path, Path]] = {}
    addresses, problems = {}, []
    for name in names:
        if _is_address(name):
            parts = urlsplit(name)
            steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".", "..")]
            addresses[name] = PurePath(parts.netloc.replace(":", "_"), *steps)
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            found = [file for file in files_below(path) if file.suffix.lower() in suffixes and file.is_file()]
            found = [file for file in found if not _is_video(str(file))]  # which take long, so only if named
            problem = "the directory has no images"
        else:
            # A file may have a name that is also a pattern.
            matches = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
            found = [file for file in matches if file.is_file()]
            problem = "no file matches" if glob.has_magic(name) else "no such file or directory"
        if not found:
            problems.append((name, problem))
        for file in sorted(found):
            resolved = file.resolve()
            # Earlier results in a directory are not images of it.
            if not path.is_dir() or not any(parent in resolved.parents for parent in written):
                parent = path if path.is_dir() else file.parent
                files.setdefault(resolved, (str(file), Path(os.path.abspath(file)), parent))

    places: list[tuple[str, PurePath]] = []
    for drive in dict.fromkeys(path.drive for _, path, _ in files.values()):  # more than one on Windows
        here = [(name, path, os.path.abspath(parent)) for name, path, parent in files.values() if path.drive == drive]
        common = os.path.commonpath([parent for _, _, parent in here])
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
