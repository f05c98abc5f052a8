# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Both image processors compared: their options, files and processes."""

import json
import math
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CLASSES, blocks, photo
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor
from transformers.image_utils import ChannelDimension
from transformers.utils import TensorType

import unept_hf
from unept_hf.model.configuration_unept import UneptConfig
from unept_hf.model.image_processing_unept import UneptImageProcessor


RGB = photo(16, 32)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint16"])
def test_backends_agree(dtype):
    pytest.importorskip("edt")
    images = [photo(97, 150, 1), photo(300, 211, 2), photo(5, 3, 3)]
    maps = [blocks(*image.shape[:2]) for image in images]
    if dtype != "uint8":
        images = [(image * (257.0 if dtype == "uint16" else 1.0) + 0.4).astype(dtype) for image in images]
    kwargs = {"size": {"shortest_edge": 64, "longest_edge": 160}, "do_boundary_targets": True, "return_tensors": "pt"}
    inputs = [backend()(images, maps, **kwargs) for backend in CLASSES.values()]
    assert inputs[0].keys() == inputs[1].keys()
    for name in inputs[0].keys() - {"pixel_values"}:
        assert torch.equal(inputs[0][name], inputs[1][name])
    pixels = [one["pixel_values"] for one in inputs]
    torch.testing.assert_close(*pixels, atol=1e-1 if dtype != "float32" else 1e-4, rtol=1e-3)
    assert (pixels[0] - pixels[1]).abs().mean() <= 5e-3


NOISE = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)
PICTURES = {"smooth": photo(45, 61), "noise": NOISE, "enlarged": NOISE[:9, :13], "float": NOISE.astype(np.float32)}
PICTURES |= {"rgba": np.dstack([NOISE, photo(45, 61)[..., 0]]), "gray": NOISE[..., 0]}
FILTERS = list(Image.Resampling)

# What may be given for each option, and what may not.
GOOD = {
    "do_resize": [True, False, None],
    "size": [
        48, (48, 64), [48, 64], {"height": 48, "width": 64}, {"shortest_edge": 48},
        {"shortest_edge": 48, "longest_edge": 64}, {"shortest_edge": 64, "longest_edge": 48},
    ],
    "default_to_square": [True, False, None],
    "resample": [*FILTERS, *map(int, FILTERS), InterpolationMode.BICUBIC],
    "do_rescale": [True],
    "rescale_factor": [1 / 255, 1 / 300, 1e-30],
    "do_normalize": [True, False, None],
    "image_mean": [0.5, [0.1, 0.2, 0.3], (0.1, 0.2, 0.3), -0.5],
    "image_std": [0.5, [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)],
    "do_pad": [True],
    "pad_size": [96, (96, 112), {"height": 96, "width": 112}, None],
    "size_divisor": [1, 8, 16],
    "do_center_crop": [False, None],
    "crop_size": [16, {"height": 16, "width": 16}, None],
    "do_convert_rgb": [True],
    "do_reduce_labels": [True, False, None],
    "ignore_index": [255, 0, -100, 300],
    "do_boundary_targets": [True, False, None],
    "data_format": ["channels_first", ChannelDimension.FIRST, None],
    "input_data_format": ["channels_last", ChannelDimension.LAST, None],
    "return_tensors": ["pt", "np", None, TensorType.PYTORCH, TensorType.NUMPY],
    "device": ["cpu", torch.device("cpu"), None],
    "disable_grouping": [True, False, None],
    "image_seq_length": [3, None],
}  # fmt: skip
BAD = {
    "do_resize": ["yes"],
    "size": [
        0, -16, True, 48.0, "48", None, (64,), (32, 48, 64), (48.0, 64.0), {}, {"foo": 3}, {"height": 48},
        {"height": 0, "width": 16}, {"height": -16, "width": 16}, {"height": 48.0, "width": 64.0},
        {"shortest_edge": -48}, {"shortest_edge": 48.5}, {"shortest_edge": 48, "longest_edge": 0},
        {"longest_edge": 64}, {"max_height": 48, "max_width": 64}, {"min_pixels": 1000, "max_pixels": 4000},
    ],
    "resample": [-1, 99, None, "bilinear", [2], InterpolationMode.NEAREST],
    "do_rescale": ["yes"],
    "rescale_factor": [0.0, -1.0, math.inf, math.nan, None, "x", [1.0], 10**309],
    "do_normalize": ["yes"],
    "image_mean": [[], [0.1, 0.2], [0.5], math.nan, [math.inf] * 3, None, "x", [[0.1, 0.2, 0.3]]],
    "image_std": [[], [0.1, 0.2], [0.5], math.nan, [math.inf] * 3, None, "x", 0.0, [0.0, 1.0, 1.0], -0.5],
    "do_pad": ["yes"],
    "pad_size": [0, -16, 97, (96, 112, 3), {"height": 96}, {"shortest_edge": 96}, {"height": 96.0, "width": 112}],
    "size_divisor": [0, -1, 1.5, None, "16"],
    "do_center_crop": [True],
    "crop_size": ["x", (1, 2, 3)],
    "do_convert_rgb": ["yes"],
    "do_reduce_labels": ["yes"],
    "ignore_index": [1.5, "x", None],
    "do_boundary_targets": ["yes"],
    "data_format": ["channels_last", ChannelDimension.LAST, "first", 3],
    "input_data_format": ["first", "none", 3],
    "return_tensors": ["tf", "mlx", 1],
    "device": ["gpu", "cuda:99", "cuda:-1", -1],
    "disable_grouping": ["yes"],
    "default_to_square": ["yes"],
    "image_seq_length": ["x"],
}  # fmt: skip
# Options that are also checked if a class or its file gives them.
ALWAYS_CHECKED = {
    "size", "resample", "rescale_factor", "image_mean", "image_std", "pad_size", "crop_size", "size_divisor",
    "ignore_index", "data_format", "input_data_format", "do_center_crop", "device",
}  # fmt: skip


def pairs_of(options: dict[str, list]):
    return [pytest.param(name, value, id=f"{name}-{value}") for name, values in options.items() for value in values]


def assert_backends_agree(pictures, options: dict, of_class: dict | None = None, tolerance: float = 0.05):
    """Compares what both image processors make of pictures, one after the other, on the scale of the results."""
    options = {"return_tensors": "pt"} | options
    size = {"size": {"shortest_edge": 32, "longest_edge": 128}} | (of_class or {})
    processors = [backend(**size) for backend in CLASSES.values()]
    for name in pictures:
        picture = PICTURES[name]
        labels = blocks(*picture.shape[:2])
        inputs, others = (processor(picture, labels, **options) for processor in processors)
        assert inputs.keys() == others.keys()
        for key, values in inputs.items():
            for value, other in zip(values, others[key]):
                value, other = torch.as_tensor(value), torch.as_tensor(other)
                assert value.shape == other.shape and value.dtype == other.dtype, (name, key)
                atol = tolerance if key == "pixel_values" else 0
                assert value.isfinite().all(), (name, key)
                assert (value - other).abs().max() <= atol, (name, key)


def test_every_option_is_compared():
    assert GOOD.keys() == BAD.keys() == UneptImageProcessor.valid_kwargs.__annotations__.keys()


@pytest.mark.parametrize(("name", "value"), pairs_of(GOOD))
def test_options_mean_the_same(name, value):
    pytest.importorskip("edt")
    pictures = ["smooth"] if name in ("data_format", "input_data_format") else PICTURES
    pictures = [one for one in pictures if name != "input_data_format" or PICTURES[one].ndim == 3]
    assert_backends_agree(pictures, {name: value})
    if value is not None and name not in ("return_tensors", "device"):
        assert_backends_agree(pictures, {}, {name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False},
        {"do_rescale": None},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1.0, "do_normalize": False},
        {"rescale_factor": 2.0, "image_mean": 100.0, "image_std": 3.0},
        {"do_rescale": False, "rescale_factor": None},
        {"do_normalize": False, "image_mean": None, "image_std": None},
    ],
    ids=str,
)
def test_options_mean_the_same_on_the_scale_of_8_bits(options):
    """Where pixels are not rescaled, the rounding of one is as large as their unit in the results."""
    unit = options.get("rescale_factor") or 1.0
    std = 1.0 if options.get("do_normalize") is False else np.min(options.get("image_std", 0.224))
    assert_backends_agree(PICTURES, options, tolerance=1.05 * unit / std)


@pytest.mark.parametrize(
    "options", [{"rescale_factor": 2}, {"image_mean": [1, 2, 3]}, {"image_std": [1, 2, 3]}], ids=str
)
def test_whole_numbers_of_a_file(options):
    """Configurations hold 1 for 1.0."""
    floats = {name: float(it) if isinstance(it, int) else [*map(float, it)] for name, it in options.items()}
    for backend in CLASSES.values():
        pixels, expected = (
            backend(**each, do_resize=False)(RGB, return_tensors="pt")["pixel_values"] for each in (options, floats)
        )
        assert torch.equal(pixels, expected)


def test_numbers_in_arrays():
    for kind in (np.array, torch.tensor):
        assert_backends_agree(["noise"], {}, {"image_mean": kind([0.1, 0.2, 0.3]), "image_std": kind([0.5, 0.6, 0.7])})


@pytest.mark.parametrize(("name", "value"), pairs_of(BAD))
def test_bad_options_are_refused_alike(name, value):
    def refuse(make, options):
        with pytest.raises(ValueError) as caught:
            make()("there is no such file", **{"return_tensors": "pt"} | options)
        return str(caught.value)

    messages = {refuse(backend, {name: value}) for backend in CLASSES.values()}
    assert len(messages) == 1
    if name in ALWAYS_CHECKED and value is not None:  # which stands for the default there
        assert len({refuse(partial(backend, **{name: value}), {}) for backend in CLASSES.values()}) == 1


def test_numpy_arrays_are_on_no_device():
    for backend in CLASSES.values():
        with pytest.raises(ValueError, match="return_tensors='pt'"):
            backend()("there is no such file", device="meta", return_tensors="np")


@pytest.mark.slow
@settings(deadline=None, max_examples=500, derandomize=True)
@given(data=st.data())
def test_combined_options_mean_the_same(data):
    options = {}
    for name, values in GOOD.items():
        values = [value for value in values if value is not None or name in ("pad_size", "crop_size")]
        if data.draw(st.booleans()):
            options[name] = data.draw(st.sampled_from(values), label=name)
    if options.get("do_resize", True) and options.get("size_divisor") == 1:
        options.pop("pad_size", None)
    name = data.draw(st.sampled_from(["smooth", "noise", "enlarged", "float", "rgba"]))
    std = np.min(options.get("image_std", 0.224)) if options.get("do_normalize", True) else 1.0
    assert_backends_agree([name], options, tolerance=max(0.05, 1.05 * options.get("rescale_factor", 1 / 255) / std))


def test_grouping_changes_nothing():
    images = [photo(40, 60, 1), photo(60, 40, 2), photo(40, 60, 3)]
    processor = UneptImageProcessor(size={"shortest_edge": 32})
    grouped, alone = (processor(images, disable_grouping=off, return_tensors="pt") for off in (False, True))
    torch.testing.assert_close(grouped["pixel_values"], alone["pixel_values"])


def test_devices():
    """Everything goes to `device`. The meta device stands for an accelerator where there is none."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    for backend in CLASSES.values():
        inputs = backend()(
            photo(32, 32), blocks(32, 32), do_resize=device == "cuda", device=device, return_tensors="pt"
        )
        assert {value.device.type for value in inputs.values()} == {device}


@pytest.mark.parametrize("backend", CLASSES)
def test_save_and_load(backend, tmp_path):
    AutoImageProcessor.register(UneptConfig, image_processor_classes=CLASSES, exist_ok=True)
    kwargs = {"size": {"height": 64, "width": 32}, "size_divisor": 32, "do_reduce_labels": True, "do_pad": False}
    processor = CLASSES[backend](**kwargs, do_boundary_targets=True, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    for other in CLASSES:
        for loaded in (
            CLASSES[other].from_pretrained(tmp_path),
            AutoImageProcessor.from_pretrained(tmp_path, backend=other),
        ):
            assert type(loaded) is CLASSES[other]
            assert loaded.backend == other
            assert loaded.to_dict() == processor.to_dict()
            assert loaded.size_divisor == 32
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is UneptImageProcessor
    changed = CLASSES[backend].from_pretrained(tmp_path, size={"shortest_edge": 96}, do_pad=True)
    assert changed(photo(30, 30))["image_sizes"] == [(96, 96)]


@pytest.fixture(scope="module")
def alone() -> dict:
    """
    The findings of a process without torchvision, in which `unept_hf` is a package without `__init__`, which
    would need torchvision, and its memory would blur the measurement.
    """
    script = f"""
    import json, resource, sys, types
    package = types.ModuleType("unept_hf")
    package.__path__ = {list(unept_hf.__path__)!r}
    sys.modules["unept_hf"] = package
    sys.modules["torchvision"] = None
    import numpy as np
    import torch
    from unept_hf.model.image_processing_pil_unept import UneptImageProcessorPil
    from unept_hf.model.image_processing_unept import UneptImageProcessor
    image = np.zeros((20, 30, 3), np.uint8)
    found = dict(labels=UneptImageProcessorPil()(image, image[..., 0], return_tensors="pt")["labels"].shape)
    try:
        UneptImageProcessor()
    except ImportError as error:
        found["error"] = str(error)
    def peak_megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outputs = dict(logits=torch.randn(1, 150, 128, 256))
    post_process = UneptImageProcessorPil.post_process_semantic_segmentation
    post_process(outputs, [(64, 64)])
    before = peak_megabytes()
    found["large"] = post_process(outputs, [(1024, 2048)])[0].shape
    found["megabytes"] = peak_megabytes() - before
    print(json.dumps(found))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_without_torchvision(alone):
    assert alone["labels"] == [1, 512, 768]
    assert "torchvision" in alone["error"].lower()


def test_memory_of_a_large_image(alone):
    """150 classes at 1024x2048 are 1.2 GB of scores, which must not exist unless they are asked for."""
    assert alone["large"] == [1024, 2048]
    assert alone["megabytes"] < 300
