# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How many training crops a second does one core make, and where does the time go?

Synthetic pictures in the official layouts of ADE20K and Cityscapes, with ragged segments of 150 and 19 classes, pass
through the steps of training: reading files, the augmentation of the paper, boundary targets. Boundary targets are
also timed alone, on label maps with few and with many segments.

    python benchmarks/data_pipeline.py --repeats 5
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import edt
import numpy as np
import PIL.Image
import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from unept_hf.data.augmentation import TrainingAugmentation
from unept_hf.data.label_maps import decode_example
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.model.boundary import boundary_distance_and_angle, boundary_targets


DATA_SETS = {
    "ade20k": {"size": (512, 683), "crop_size": 480, "scale": (2048, 512), "values": range(1, 151)},
    "cityscapes": {
        "size": (1024, 2048),
        "crop_size": 768,
        "scale": (2048, 1024),
        "values": (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    },
}
# An image of ADE20K shows about 20 objects and parts of the scene.
SEGMENTS = (20, 60, 150, 600)


def noise(rng: np.random.Generator, size: tuple[int, int], grain: int) -> np.ndarray:
    """Smooth noise with a standard deviation of about 1."""
    height, width = size
    coarse = rng.standard_normal((height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))


def segments(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """A partition into cells around random points, with ragged outlines. int64 (height, width)."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    rows, columns = rows + 5 * noise(rng, size, 12), columns + 5 * noise(rng, size, 12)
    nearest, least = np.zeros(size, dtype=np.int64), np.full(size, np.inf, dtype=np.float32)
    for number, (row, column) in enumerate(rng.random((count, 2)) * size):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        nearest[distance < least] = number
        np.minimum(least, distance, out=least)
    return nearest


def picture(rng: np.random.Generator, cells: np.ndarray) -> PIL.Image.Image:
    """A photograph of the segments, as far as its encoding goes: edges, texture and shading."""
    colors = rng.integers(30, 226, (cells.max() + 1, 3))[cells]
    texture = 20 * noise(rng, cells.shape, 60) + 8 * noise(rng, cells.shape, 4) + 3 * noise(rng, cells.shape, 1)
    return PIL.Image.fromarray((colors + texture[..., None]).clip(0, 255).astype(np.uint8))


def write(root: Path, name: str, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        cells = segments(rng, DATA_SETS[name]["size"], int(rng.integers(10, 60)))
        mask = PIL.Image.fromarray(rng.choice(DATA_SETS[name]["values"], cells.max() + 1).astype(np.uint8)[cells])
        if name == "ade20k":
            files = root / f"images/training/{index}.jpg", root / f"annotations/training/{index}.png"
        else:
            stem = f"train/city/{index}"
            files = root / f"leftImg8bit/{stem}_leftImg8bit.png", root / f"gtFine/{stem}_gtFine_labelIds.png"
        for path, image in zip(files, (picture(rng, cells), mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)


def time_whole(data, class_list, augmentation) -> float:
    """Seconds a crop, as in training."""
    torch.manual_seed(0)
    start = time.perf_counter()
    for row in data:
        augmentation(*decode_example(row, class_list))
    return (time.perf_counter() - start) / len(data)


def time_steps(data, class_list, augmentation) -> dict[str, float]:
    """Seconds of each step for a crop. The same steps as in `TrainingAugmentation.__call__`, one by one."""
    torch.manual_seed(0)
    seconds: dict[str, float] = defaultdict(float)

    def timed(step, function, *args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[step] += (time.perf_counter() - start) / len(data)
        return result

    for row in data:
        image, label_map = timed("read and decode image and mask", decode_example, row, class_list)
        pixels = timed("to tensors", F.pil_to_tensor, image)
        inputs = tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(label_map))
        for transform in augmentation.transforms.transforms:
            inputs = timed(type(transform).__name__, transform, *inputs)
        pixels, mask = inputs
        padding = [0, 0, *(full - side for full, side in zip(augmentation.crop_size[::-1], mask.shape[::-1]))]
        timed("pad", F.pad, pixels, padding)
        labels = timed("pad", F.pad, mask, padding, fill=255).as_subclass(torch.Tensor)
        timed("boundary targets", boundary_targets, labels, **augmentation.boundary_options)
    return dict(seconds)


def time_boundaries(label_map: np.ndarray, repeats: int) -> dict[str, float]:
    """Seconds of boundary targets and of their parts."""
    labels, ids = torch.from_numpy(label_map.astype(np.int64)), label_map + np.uint8(1)
    functions = {
        "boundary targets": lambda: boundary_targets(labels),
        "distance and angle": lambda: boundary_distance_and_angle(label_map),
        "distance": lambda: edt.edt(ids, black_border=False, parallel=1),
    }
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    pipelines = []
    for name, settings in DATA_SETS.items():
        augmentation = TrainingAugmentation(settings["crop_size"], settings["scale"])
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), name, arguments.images)
            data, class_list = load_segmentation_dataset(name, data_dir=folder)
            whole, steps = [], []
            for _ in range(arguments.repeats):
                whole.append(time_whole(data, class_list, augmentation))
                steps.append(time_steps(data, class_list, augmentation))
        fastest = {step: min(run[step] for run in steps) for step in steps[0]}
        pipelines.append(
            {
                "data set": name,
                "image": "{}x{}".format(*settings["size"]),
                "crop": settings["crop_size"],
                "crops a second": 1 / min(whole),
                "milliseconds a crop": 1000 * min(whole),
                "milliseconds a step": {step: 1000 * value for step, value in fastest.items()},
            }
        )
        print(pipelines[-1], flush=True)

    boundaries = []
    for count in SEGMENTS:
        rng = np.random.default_rng(count)
        label_map = rng.permutation(np.arange(count) % 150).astype(np.uint8)[segments(rng, (480, 480), count)]
        seconds = time_boundaries(label_map, 20 * arguments.repeats)
        row = {"segments": count, "classes": len(np.unique(label_map))}
        boundaries.append(row | {name: 1000 * value for name, value in seconds.items()})
        print(boundaries[-1], flush=True)

    facts = {
        "device": cpu_device(),
        "threads": torch.get_num_threads(),
        **versions("torch", "torchvision", "datasets", "pillow", "edt", "numpy"),
        "date": today(),
        "images": arguments.images,
        "repeats": arguments.repeats,
    }
    names = [pipeline["data set"] for pipeline in pipelines]
    table = [
        "The fastest of the repeats, each a mean over the images. Made-up pictures in the official layouts.",
        "",
        "| data set | image | crop | crops a second | milliseconds a crop |",
        "| --- | ---: | ---: | ---: | ---: |",
        *[
            f"| {row['data set']} | {row['image']} | {row['crop']} | {row['crops a second']:.1f} | "
            f"{row['milliseconds a crop']:.1f} |"
            for row in pipelines
        ],
        "",
        "Where the time goes, in milliseconds a crop:",
        "",
        f"| step | {' | '.join(names)} |",
        f"| --- | {' | '.join('---:' for _ in names)} |",
        *[
            f"| {step} | {' | '.join(format(row['milliseconds a step'][step], '.2f') for row in pipelines)} |"
            for step in pipelines[0]["milliseconds a step"]
        ],
        "",
        "Boundary targets of a 480x480 crop, in milliseconds:",
        "",
        "| segments | classes | boundary targets | of that: distance and angle | of that: distance |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *[
            f"| {row['segments']} | {row['classes']} | {row['boundary targets']:.2f} | "
            f"{row['distance and angle']:.2f} | {row['distance']:.2f} |"
            for row in boundaries
        ],
    ]
    results = {"pipelines": pipelines, "boundary targets": boundaries}
    title = "The way of training data on one core"
    write_results(arguments.output, "data_pipeline-cpu", title, facts, table, **results)


if __name__ == "__main__":
    main()
