# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much time and memory does a large image take in sliding windows, and does the batch size change the label map?

Peak memory is that of the process, less what it was after a single batch of windows: the image, the label map, and
what `segment` holds meanwhile. On a GPU, that of the device is printed too. Linux only.

    python benchmarks/large_image.py --size 8192 --batch-sizes 1 8
"""

import argparse
import resource
import time

import numpy as np
import torch

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.inference.segment import segment
from unept_hf.synthetic.scenes import synthetic_scene


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="unept-tiny")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--num-labels", type=int, default=150)
    parser.add_argument("--crop-size", type=int, default=480)
    parser.add_argument("--stride", type=int, default=320)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--refine-boundaries", action="store_true")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    def peak_memory():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset(arguments.preset, num_labels=arguments.num_labels).eval()
    with torch.no_grad():  # otherwise all pixels have the same class
        model.classifier.weight.normal_()
    model.to(arguments.device)
    processor = UneptImageProcessor()
    options = {
        "mode": "slide",
        "crop_size": arguments.crop_size,
        "stride": arguments.stride,
        "flip": arguments.flip,
        "refine_boundaries": arguments.refine_boundaries,
        "do_resize": False,
    }
    window = synthetic_scene(0, size=(arguments.crop_size, arguments.crop_size * max(arguments.batch_sizes)))[0]
    segment(model, processor, window, batch_size=max(arguments.batch_sizes), **options)
    own = peak_memory()
    # Drawing a scene of that size would take more memory than segmenting it.
    tile = torch.from_numpy(np.array(synthetic_scene(1, size=(512, 512))[0])).permute(2, 0, 1)
    repeats = -(-arguments.size // 512)
    image = tile.repeat(1, repeats, repeats)[:, : arguments.size, : arguments.size].contiguous()

    expected = None
    print(f"{arguments.preset}, {arguments.num_labels} classes, {arguments.size} x {arguments.size}, {options}")
    print(f"peak of the model itself: {own:.2f} GiB")
    for batch_size in arguments.batch_sizes:
        if arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        label_map = segment(model, processor, image, batch_size=batch_size, progress=True, **options).label_map
        seconds = time.perf_counter() - start
        print(f"batch size {batch_size}: {seconds:.0f} s, peak {peak_memory() - own:.2f} GiB above its own so far")
        if arguments.device == "cuda":
            print(f"    device peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
        print(f"    {int((label_map.flatten().bincount() > 0).sum())} classes predicted")
        label_map = label_map.to(torch.int16)
        if expected is not None:
            print(f"    {int((label_map != expected).sum())} pixels differ from the first")
        expected = label_map if expected is None else expected


if __name__ == "__main__":
    main()
