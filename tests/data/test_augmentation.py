# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Training augmentation against straightforward computations, and its statistics."""

import colorsys
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from torchvision import tv_tensors

from unept_hf import UneptConfig, UneptImageProcessor
from unept_hf.data.augmentation import (
    PhotometricDistortion,
    RandomCropWithMaxRatio,
    RandomRatioResize,
    TrainingAugmentation,
)
from unept_hf.model.boundary import angle_to_direction_map, boundary_targets, distance_to_boundary_map


FIXTURES = Path(__file__).parents[1] / "fixtures"

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {
    "scale": None,
    "cat_max_ratio": 1.0,
    "flip_probability": 0.0,
    "photometric_distortion": False,
    "boundary_targets": False,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def photo(height, width, seed=0):
    """Smooth colors, as resampling is compared on it."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def blocks(height, width, classes=5, seed=0):
    """Rectangles of classes, and some unlabelled pixels."""
    values = np.random.default_rng(seed).integers(0, classes, (7, 9)).astype(np.uint8)
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    label_map = values[rows][:, columns]
    label_map[: height // 10, : width // 10] = 255
    return label_map


def pixels_of(example):
    """8 bit pixels (height, width, 3) from normalised ones."""
    pixels = example["pixel_values"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return (pixels * 255).permute(1, 2, 0).numpy()


# The whole way


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_chance(ratio, flip):
    """Every step has one outcome only, so a few lines of Pillow and NumPy can follow."""
    image, label_map = photo(90, 140), blocks(90, 140)
    augmentation = TrainingAugmentation(
        **{**PLAIN, "scale": (400, 100), "flip_probability": flip}, crop_size=(256, 304), ratio_range=(ratio, ratio)
    )
    example = augmentation(image, label_map)

    height, width = int(100 * ratio + 0.5), int(140 * 100 * ratio / 90 + 0.5)
    expected = np.zeros((256, 304, 3))
    expected_labels = np.full((256, 304), 255)
    resized = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR), dtype=float)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in ((height, 90), (width, 140)))
    resized_labels = label_map[rows][:, columns]
    if flip:
        resized, resized_labels = resized[:, ::-1], resized_labels[:, ::-1]
    expected[:height, :width] = (resized / 255 - MEAN) / STD
    expected_labels[:height, :width] = resized_labels
    assert example["pixel_values"].dtype == torch.float32
    assert example["labels"].dtype == torch.int64
    # One grey level is 1 / 255 / 0.224 = 0.018.
    np.testing.assert_allclose(example["pixel_values"].permute(1, 2, 0).numpy(), expected, atol=0.02)
    assert np.array_equal(example["labels"].numpy(), expected_labels)
    assert (example["pixel_values"][:, height:] == 0).all()
    assert (example["pixel_values"][:, :, width:] == 0).all()


def test_image_and_labels_stay_together():
    """The image is white where the label is 1, so that half of its range tells the label, at any scale."""
    label_map = (blocks(120, 160, seed=3) % 2).astype(np.uint8)
    image = PIL.Image.fromarray(np.repeat(label_map[..., None] * 255, 3, axis=2))
    augmentation = TrainingAugmentation(
        crop_size=128, scale=(512, 128), image_mean=(0, 0, 0), image_std=(1, 1, 1), photometric_distortion=False
    )
    wrong, count = 0, 0
    for _ in range(50):
        example = augmentation(image, label_map)
        known = example["labels"] != 255
        assert set(example["labels"].unique().tolist()) <= {0, 1, 255}
        wrong += ((example["pixel_values"][1] > 0.5) != (example["labels"] == 1))[known].sum().item()
        count += known.sum().item()
    assert wrong < 0.003 * count


def test_crops_are_exact_and_everywhere():
    """Pixels tell where they come from. All offsets are equally likely."""
    height, width, side = 12, 15, 8
    rows, columns = np.mgrid[:height, :width]
    image = PIL.Image.fromarray(np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8))
    label_map = (rows * width + columns).astype(np.uint8)
    augmentation = TrainingAugmentation(crop_size=side, **PLAIN)
    counts = np.zeros((height - side + 1, width - side + 1))
    draws = 2000
    for _ in range(draws):
        example = augmentation(image, label_map)
        pixels = pixels_of(example).round().astype(int)
        top, left = pixels[0, 0, :2]
        assert np.array_equal(pixels[..., 0], rows[top : top + side, left : left + side])
        assert np.array_equal(pixels[..., 1], columns[top : top + side, left : left + side])
        assert np.array_equal(example["labels"].numpy(), label_map[top : top + side, left : left + side])
        counts[top, left] += 1
    expected = draws / counts.size
    # Chi-squared with 39 degrees of freedom exceeds 73 once in a thousand times.
    assert ((counts - expected) ** 2 / expected).sum() < 73


def test_flips():
    image, label_map = photo(32, 32), blocks(32, 32)
    augmentation = TrainingAugmentation(crop_size=32, **{**PLAIN, "flip_probability": 0.3})
    plain = TrainingAugmentation(crop_size=32, **PLAIN)(image, label_map)
    flips = 0
    for _ in range(1000):
        example = augmentation(image, label_map)
        is_flipped = not torch.equal(example["pixel_values"], plain["pixel_values"])
        flips += is_flipped
        expected = {name: value.flip(-1) if is_flipped else value for name, value in plain.items()}
        assert torch.equal(example["pixel_values"], expected["pixel_values"])
        assert torch.equal(example["labels"], expected["labels"])
    assert abs(flips / 1000 - 0.3) < 0.05  # 3.4 standard deviations


def test_the_defaults_are_those_of_the_paper():
    example = TrainingAugmentation()(photo(512, 683), blocks(512, 683))
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "pixel_values": (3, 480, 480),
        "labels": (480, 480),
        "boundary_map": (480, 480),
        "direction_map": (480, 480),
    }
    assert all(value.dtype == torch.int64 for name, value in example.items() if name != "pixel_values")
    resize, crop, flip, distortion, _, normalize = TrainingAugmentation().transforms.transforms
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.size, crop.max_ratio, crop.ignore_index) == ((480, 480), 0.75, 255)
    assert flip.p == 0.5
    assert (distortion.brightness, distortion.contrast, distortion.saturation) == (32, (0.5, 1.5), (0.5, 1.5))
    assert distortion.hue == 36  # 18 of OpenCV's 180 steps
    assert (tuple(normalize.mean), tuple(normalize.std)) == (MEAN, STD)


def test_seeds():
    image, label_map = photo(60, 80), blocks(60, 80)
    augmentation = TrainingAugmentation(crop_size=48, scale=(256, 64))

    def draw(seed):
        torch.manual_seed(seed)
        return [augmentation(image, label_map) for _ in range(3)]

    first, again, other = draw(1), draw(1), draw(2)
    for example, same in zip(first, again):
        assert all(torch.equal(example[name], same[name]) for name in example)
    assert not torch.equal(first[0]["pixel_values"], first[1]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], other[0]["pixel_values"])


def test_the_inputs_are_left_alone():
    image, label_map = photo(40, 50), blocks(40, 50)
    pixels, labels = np.array(image), label_map.copy()
    label_map.flags.writeable = False
    for _ in range(10):
        TrainingAugmentation(crop_size=64, scale=(200, 50))(image, label_map)
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(label_map, labels)


def test_workers_can_have_a_copy():
    augmentation = TrainingAugmentation(crop_size=32, scale=(128, 32))
    copy = pickle.loads(pickle.dumps(augmentation))
    image, label_map = photo(40, 50), blocks(40, 50)
    torch.manual_seed(1)
    expected = augmentation(image, label_map)
    torch.manual_seed(1)
    assert torch.equal(copy(image, label_map)["pixel_values"], expected["pixel_values"])


# What the paper does not have


@pytest.mark.parametrize(("dtype", "ignore_index"), [(np.uint8, 255), (np.int32, -100)])
def test_rotation(dtype, ignore_index):
    """Image and labels turn together; beyond the image are the mean color and the ignored label."""
    label_map = (blocks(80, 80, seed=3) % 2).astype(dtype)
    image = PIL.Image.fromarray(np.repeat(label_map[..., None].astype(np.uint8) * 255, 3, axis=2))
    options = {**PLAIN, "rotation_degrees": 30.0, "ignore_index": ignore_index}
    augmentation = TrainingAugmentation(crop_size=80, image_mean=(0.2, 0.4, 0.6), image_std=(1, 1, 1), **options)
    shares, turned = [], 0
    for _ in range(40):
        example = augmentation(image, label_map)
        outside = example["labels"] == ignore_index
        shares.append(outside.float().mean().item())
        assert set(example["labels"].unique().tolist()) <= {0, 1, ignore_index}
        green = example["pixel_values"][1] + 0.4
        assert ((green > 0.5) != (example["labels"] == 1))[~outside].float().mean() < 0.02
        if outside[:5, :5].all():
            turned += 1
            assert example["pixel_values"][:, :3, :3].abs().max() < 1e-3
    # Turned by 30 degrees, a square leaves 15% of its place.
    assert turned > 10 and min(shares) < 0.06 and 0.12 < max(shares) < 0.17


def test_blur():
    label_map = blocks(64, 64)
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain = TrainingAugmentation(crop_size=64, **PLAIN)
    blurred = TrainingAugmentation(crop_size=64, blur_probability=0.5, **PLAIN)
    expected = plain(noise, label_map)
    ratios = []
    for _ in range(60):
        example = blurred(noise, label_map)
        assert torch.equal(example["labels"], expected["labels"])
        ratios.append((example["pixel_values"].std() / expected["pixel_values"].std()).item())
    assert 15 <= ratios.count(1.0) <= 45 and max(ratios) <= 1 and min(ratios) < 0.5
    flat = PIL.Image.new("RGB", (64, 64), (9, 90, 190))
    torch.testing.assert_close(blurred(flat, label_map), plain(flat, label_map))


@pytest.mark.parametrize(("strength", "factors"), [(0.5, (0.75, 1.25)), (2.0, (0.0, 2.0))])
def test_photometric_strength(strength, factors):
    distortion = TrainingAugmentation(photometric_strength=strength).transforms.transforms[3]
    assert (distortion.brightness, distortion.hue) == (32 * strength, 36 * strength)
    assert distortion.contrast == distortion.saturation == factors


# Unusual images


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (20, 30), (700, 90)])
def test_sizes(height, width):
    augmentation = TrainingAugmentation(crop_size=(64, 48), scale=(256, 64))
    for seed in range(5):
        torch.manual_seed(seed)
        example = augmentation(photo(height, width), np.full((height, width), 3, dtype=np.uint8))
        assert example["pixel_values"].shape == (3, 64, 48)
        assert example["pixel_values"].isfinite().all()
        padding = example["labels"] == 255
        assert set(example["labels"].unique().tolist()) <= {3, 255}
        assert not padding.all()
        assert (example["pixel_values"][:, padding] == 0).all()


@pytest.mark.parametrize("value", [0, 255])
def test_one_class_and_nothing_labelled(value):
    example = TrainingAugmentation(crop_size=32, scale=(128, 32))(photo(40, 50), np.full((40, 50), value, np.uint8))
    assert set(example["labels"].unique().tolist()) <= {value, 255}
    assert set(example["boundary_map"].unique().tolist()) <= {0, 255}
    assert (example["direction_map"] == 255).all()


def test_labels_that_do_not_fit_in_bytes():
    label_map = blocks(40, 50).astype(np.int32) + 1000
    label_map[:5] = -100
    augmentation = TrainingAugmentation(crop_size=64, scale=(160, 40), ignore_index=-100)
    for _ in range(5):
        labels = augmentation(photo(40, 50), label_map)["labels"]
        assert set(labels.unique().tolist()) <= {*np.unique(label_map).tolist(), -100}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size"),
        ({"boundary_targets_from": "images"}, "boundary_targets_from"),
        ({"scale": (2048, 0)}, "scale"),
        ({"ratio_range": (2.0, 0.5)}, "ratio_range"),
        ({"ratio_range": (0.0, 0.5)}, "ratio_range"),
        ({"cat_max_ratio": 1.5}, "cat_max_ratio"),
        ({"flip_probability": -0.1}, "flip_probability"),
        ({"rotation_degrees": 181.0}, "rotation_degrees"),
        ({"rotation_degrees": 1.0, "boundary_targets_from": "image"}, "rotation_degrees"),
        ({"blur_probability": 1.1}, "blur_probability"),
        ({"photometric_strength": float("nan")}, "photometric_strength"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message} must .*got"):
        TrainingAugmentation(**options)


def test_all_arguments_out_of_range_in_one_message():
    with pytest.raises(ValueError, match=r"^crop_size must .* got \(0, 8\)\. flip_probability must .* got 2\.$"):
        TrainingAugmentation(crop_size=(0, 8), flip_probability=2)


# Boundary targets


def test_boundary_targets_are_those_of_the_crop():
    config = UneptConfig.from_preset(
        "unept-tiny",
        num_labels=5,
        max_boundary_distance=2,
        ignore_unlabelled_boundaries=False,
        min_boundary_class_pixels=60,
        semantic_loss_ignore_index=77,
    )
    processor = UneptImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    augmentation = TrainingAugmentation.from_config(config, processor, crop_size=48, scale=(256, 64))
    label_map = blocks(60, 80)
    label_map[label_map == 255] = 77
    label_map[20:40, 30:50] = 77  # in every crop
    for _ in range(5):
        example = augmentation(photo(60, 80), label_map)
        boundary, direction = boundary_targets(
            example["labels"], ignore_index=77, max_distance=2, ignore_unlabelled=False, min_class_pixels=60
        )
        assert torch.equal(example["boundary_map"], boundary)
        assert torch.equal(example["direction_map"], direction)
    normalize = augmentation.transforms.transforms[-1]
    assert (list(normalize.mean), list(normalize.std)) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])


def original_augmentation(**kwargs):
    config = UneptConfig.from_preset("unept-tiny", num_labels=5, conventions="original")
    options = {"scale": None, "cat_max_ratio": 1.0, "flip_probability": 0.0, "photometric_distortion": False}
    return TrainingAugmentation.from_config(config, UneptImageProcessor(), **{**options, **kwargs})


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_original_boundary_targets_are_resized_and_flipped_with_the_label_map(flip):
    """The boundary gets wider with the image, and a flip keeps the values of directions, in the original."""
    label_map = np.zeros((40, 64), dtype=np.uint8)
    label_map[:, 32:] = 1
    resize = {"scale": (128, 80), "ratio_range": (1.0, 1.0)}
    augmentation = original_augmentation(crop_size=(88, 136), flip_probability=flip, **resize)
    example = augmentation(photo(40, 64), label_map)
    # Five pixels on each side of the boundary become ten, and padding is not a boundary.
    boundary = [0] * 54 + [1] * 20 + [0] * 54 + [0] * 8
    assert example["boundary_map"][40].tolist() == boundary
    assert (example["boundary_map"][80:] == 0).all() and (example["direction_map"][80:] == 0).all()
    # Where the image ends, the gradient of the distance is another one.
    left, right = example["direction_map"][8:72, 8:64], example["direction_map"][8:72, 64:120]
    assert (left == (4 if flip else 0)).all() and (right == (0 if flip else 4)).all()
    assert (example["labels"][:80, :64] == (1 if flip else 0)).all()

    default = TrainingAugmentation(crop_size=(88, 136), flip_probability=flip, **resize)(photo(40, 64), label_map)
    assert default["boundary_map"][40].tolist() == [0] * 59 + [1] * 10 + [0] * 59 + [255] * 8


@pytest.mark.parametrize("name", ["below_and_at_100_pixels", "blocky_with_ignore", "all_ignore"])
def test_original_boundary_targets_of_a_crop_are_cut_from_those_of_the_image(name):
    """As the original's generator recorded them: classes are counted in the image, and nothing in it is padding."""
    tensors = load_file(FIXTURES / "boundary_targets.safetensors")
    label_map = tensors[f"{name}.label"].numpy()
    expected = {
        "labels": torch.from_numpy(label_map),
        "boundary_map": distance_to_boundary_map(tensors[f"{name}.distance"]),
        "direction_map": angle_to_direction_map(tensors[f"{name}.angle_float"]),
    }
    height, width = label_map.shape
    rows, columns = np.mgrid[:height, :width]
    image = PIL.Image.fromarray(np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8))
    augmentation = original_augmentation(crop_size=24)
    for _ in range(5):
        example = augmentation(image, label_map)
        top, left = pixels_of(example).round().astype(int)[0, 0, :2]
        cut = {key: value[top : top + 24, left : left + 24] for key, value in expected.items()}
        assert torch.equal(example["labels"], cut["labels"].long())
        assert torch.equal(example["boundary_map"], cut["boundary_map"])
        # Where the gradient is zero the original has direction 4, and ours has none.
        known = example["direction_map"] != 255
        assert known.float().mean() > 0.9
        assert torch.equal(example["direction_map"][known], cut["direction_map"][known])


def test_no_boundary_targets_for_a_model_without_boundary_heads():
    config = UneptConfig.from_preset("unept-tiny", use_boundary_heads=False)
    augmentation = TrainingAugmentation.from_config(config, UneptImageProcessor(), crop_size=32)
    assert set(augmentation(photo(40, 50), blocks(40, 50))) == {"pixel_values", "labels"}


# Resize


def mmcv_size(height, width, scale, ratio):
    """mmcv.imrescale with a scale of two numbers, each cut to whole pixels after the ratio."""
    scale = [int(length * ratio) for length in scale]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return [int(height * factor + 0.5), int(width * factor + 0.5)]


@pytest.mark.parametrize(("height", "width"), [(512, 683), (683, 512), (100, 1000), (1024, 2048), (37, 37)])
@pytest.mark.parametrize("scale", [(2048, 512), (512, 2048), (520, 520)])
@pytest.mark.parametrize("ratio", [0.5, 0.77, 1.0, 2.0])
def test_sizes_after_resizing(height, width, scale, ratio):
    resize = RandomRatioResize(scale, (ratio, ratio))
    params = resize.make_params([tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))])
    assert params["size"] == mmcv_size(height, width, scale, ratio)


def test_known_sizes_after_resizing():
    assert mmcv_size(512, 683, (2048, 512), 1.0) == [512, 683]
    assert mmcv_size(100, 1000, (2048, 512), 1.0) == [205, 2048]


def test_ratios_are_uniform():
    resize = RandomRatioResize((2048, 512), (0.5, 2.0))
    image = tv_tensors.Image(torch.zeros(3, 512, 512, dtype=torch.uint8))
    ratios = torch.tensor([resize.make_params([image])["size"][0] / 512 for _ in range(4000)])
    assert 0.5 <= ratios.min() < 0.51
    assert 1.99 < ratios.max() <= 2.0
    counts = ratios.histc(10, 0.5, 2.0)
    # Chi-squared with 9 degrees of freedom exceeds 28 once in a thousand times.
    assert ((counts - 400) ** 2 / 400).sum() < 28


# Crop


def crop_of(label_map, size, max_ratio, ignore_index=255):
    crop = RandomCropWithMaxRatio(size, max_ratio, ignore_index)
    return crop(tv_tensors.Mask(torch.from_numpy(label_map))).numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_crops_hold_more_than_one_class(dtype):
    """A window is bad with all of its tries with the probability of that of one try to the power of eleven."""
    label_map = np.zeros((1, 108), dtype=dtype)
    label_map[0, 98] = 1
    label_map[0, 99:] = 255

    def is_varied(window):
        counts = np.unique(window[window != 255], return_counts=True)[1]
        return len(counts) > 1 and counts.max() / counts.sum() < 0.95

    windows = [label_map[:, left : left + 10] for left in range(99)]
    share = np.mean([is_varied(window) for window in windows])
    assert 0.05 < share < 0.15
    draws = 1000
    failed = np.mean([not is_varied(crop_of(label_map, (1, 10), 0.95)) for _ in range(draws)])
    expected = (1 - share) ** 11
    assert abs(failed - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5
    plain = np.mean([is_varied(crop_of(label_map, (1, 10), 1.0)) for _ in range(draws)])
    assert abs(plain - share) < 4 * (share * (1 - share) / draws) ** 0.5


def test_windows_are_drawn_again_ten_times(monkeypatch):
    windows = []
    monkeypatch.setattr(RandomCropWithMaxRatio, "_is_varied", lambda self, window: bool(windows.append(window)))
    crop_of(blocks(20, 20), (8, 8), 0.75)
    assert len(windows) == 11


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([0, 0, 0, 1], False),  # exactly the ratio
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 0], False),
        ([0, 1, 255, 255], True),  # unlabelled pixels do not count
        ([0, 0, 255, 255], False),
        ([255, 255, 255, 255], False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_windows_that_are_varied(window, expected, dtype):
    assert RandomCropWithMaxRatio((1, 4), 0.75, 255)._is_varied(torch.tensor([window], dtype=dtype)) is expected


# Colours


def distort(image, **params):
    """One distortion with fixed parameters. `image` is float (height, width, 3) in [0, 1]."""
    params = {**dict.fromkeys(("brightness", "contrast", "saturation", "hue")), "contrast_first": True, **params}
    tensor = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).float())
    return PhotometricDistortion().transform(tensor, params).permute(1, 2, 0).numpy()


def in_hsv(image, function):
    """A function of hue, saturation and value, pixel by pixel."""
    pixels = [colorsys.hsv_to_rgb(*function(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
    return np.array(pixels).reshape(image.shape)


@pytest.fixture
def colors():
    colors = np.random.default_rng(0).random((12, 10, 3))
    colors[0] = np.linspace(0, 1, 10)[:, None]  # grey
    colors[1] = np.eye(3)[np.arange(10) % 3]  # pure
    return colors


@pytest.mark.parametrize("shift", [-32, 5.5, 32])
def test_brightness(colors, shift):
    np.testing.assert_allclose(distort(colors, brightness=shift), np.clip(colors + shift / 255, 0, 1), atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_contrast(colors, factor):
    np.testing.assert_allclose(distort(colors, contrast=factor), np.clip(colors * factor, 0, 1), atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation(colors, factor):
    expected = in_hsv(colors, lambda hue, saturation, value: (hue, min(saturation * factor, 1), value))
    np.testing.assert_allclose(distort(colors, saturation=factor), expected, atol=1e-5)


@pytest.mark.parametrize("turn", [-36, 10, 36])
def test_hue(colors, turn):
    expected = in_hsv(colors, lambda hue, saturation, value: ((hue + turn / 360) % 1, saturation, value))
    np.testing.assert_allclose(distort(colors, hue=turn), expected, atol=1e-5)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_order_of_distortions(colors, contrast_first):
    """Clipping makes the order matter."""
    params = {"brightness": 30, "contrast": 1.4, "saturation": 1.3, "hue": 20}
    steps = list(params)
    if not contrast_first:
        steps.append(steps.pop(1))
    expected = colors
    for step in steps:
        expected = distort(expected, **{step: params[step]})
    np.testing.assert_allclose(distort(colors, **params, contrast_first=contrast_first), expected, atol=1e-5)
    other = distort(colors, **params, contrast_first=not contrast_first)
    assert np.abs(other - expected).max() > 0.01


def test_distortions_are_drawn_as_told():
    distortion = PhotometricDistortion()
    draws = [distortion.make_params([]) for _ in range(2000)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -36, 36),
    ):
        values = np.array([draw[name] for draw in draws if draw[name] is not None])
        assert abs(len(values) / 2000 - 0.5) < 0.04
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        # Four standard errors of the mean of a uniform distribution.
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / 12**0.5 / len(values) ** 0.5
    assert abs(np.mean([draw["contrast_first"] for draw in draws]) - 0.5) < 0.05
    is_used = np.array(
        [[draw[name] is not None for name in ("brightness", "contrast", "saturation", "hue")] for draw in draws]
    )
    correlation = np.corrcoef(is_used.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.1


def test_distortion_leaves_labels_alone_and_keeps_the_range():
    distortion = PhotometricDistortion()
    image = tv_tensors.Image(torch.from_numpy(np.array(photo(32, 32))).permute(2, 0, 1))
    mask = tv_tensors.Mask(torch.from_numpy(blocks(32, 32)))
    for _ in range(50):
        distorted, same = distortion(image, mask)
        assert torch.equal(same, mask)
        assert distorted.dtype == torch.float32
        assert 0 <= distorted.min() <= distorted.max() <= 1
