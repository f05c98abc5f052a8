# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures: what they show, number by number, and that they stay legible."""

import io
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import color_sequences
from matplotlib.patches import Wedge
from skimage.color import deltaE_ciede2000, rgb2lab
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import load_class_list
from unept_hf.evaluation.metrics import scores_from_calibration
from unept_hf.model.boundary import DIRECTIONS
from unept_hf.palette import COLOR_BLINDNESS, OKABE_ITO, default_palette
from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.visualization.figures import (
    DIRECTION_COLORS,
    draw_boundaries,
    draw_comparison,
    draw_overlay,
    draw_refinement,
    draw_samples,
    draw_sampling_points,
    figure_to_image,
)
from unept_hf.visualization.metric_figures import draw_calibration, draw_confusion_matrix
from unept_hf.visualization.overlay import class_areas, color_label_map, overlay, percent
from unept_hf.visualization.sampling_points import sampling_points


CLASSES = load_class_list("synthetic")
NAMES, PALETTE = CLASSES.id2label, [tuple(color) for color in CLASSES.palette]
# Vienot, Brettel and Mollon, 1999: another simulation of color blindness (red, green) than the palette's own.
VIENOT = (
    ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
    ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
)


def smallest_difference(palette):
    """CIEDE2000 of the two colors that are nearest to each other, in any of three kinds of vision."""
    colors = np.asarray(palette) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    differences = []
    for matrix in (np.eye(3), *VIENOT):
        seen = (linear @ np.array(matrix).T).clip(0, 1)
        lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
        between = deltaE_ciede2000(lab[:, None], lab[None])
        differences.append(between[~np.eye(len(lab), dtype=bool)].min())
    return min(differences)


@pytest.fixture(scope="module")
def scene():
    image, label_map = synthetic_scene(3, size=(96, 128))
    return image, np.array(label_map).astype(np.int64)


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def shown(axis):
    return np.asarray(axis.images[0].get_array())


def test_palette_is_distinct_and_stable():
    palette = default_palette(150)
    assert palette.shape == (150, 3) and palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == 150
    np.testing.assert_array_equal(palette[:20], default_palette(20))
    np.testing.assert_array_equal(palette[:7], OKABE_ITO)
    many = default_palette(1500)
    assert len(np.unique(many, axis=0)) == 1000
    np.testing.assert_array_equal(many[1000:], many[:500])
    assert default_palette(1).shape == (1, 3)


def test_palette_is_safe_for_the_color_blind():
    for length in (10, 20):
        assert smallest_difference(default_palette(length)) > 5
    assert smallest_difference(default_palette(20)) > 3 * smallest_difference(np.array(color_sequences["tab20"]) * 255)
    # Gray looks gray to everybody.
    np.testing.assert_allclose(np.sum(COLOR_BLINDNESS, axis=-1), 1, atol=2e-6)
    assert smallest_difference(DIRECTION_COLORS) > 5


def test_overlay_pixel_by_pixel():
    image = np.array([[[10, 10, 10], [250, 0, 0]], [[0, 0, 250], [30, 30, 30]]], dtype=np.uint8)
    label_map = np.array([[0, 1], [0, 255]])
    palette = [[100, 0, 200], [0, 50, 0]]
    result = np.asarray(overlay(image, label_map, palette, opacity=0.5, outlines=False)).astype(int)
    gray = [299 * 250 / 1000, 114 * 250 / 1000]  # of red and of blue, by ITU-R 601
    expected = [
        [[(10 + 100) / 2, 5, 105], [gray[0] / 2, (gray[0] + 50) / 2, gray[0] / 2]],
        [[(gray[1] + 100) / 2, gray[1] / 2, (gray[1] + 200) / 2], [30, 30, 30]],
    ]
    assert np.abs(result - np.array(expected)).max() <= 1
    outlined = np.asarray(overlay(image, label_map, palette))
    assert (outlined[0, 0] == 255).all() and (outlined[0, 1] == 255).all() and (outlined[1, 0] == 255).all()
    assert (outlined[1, 1] == 30).all()
    assert (np.asarray(overlay(image, np.zeros((2, 2), dtype=int), palette, opacity=1)) == palette[0]).all()


@pytest.mark.parametrize("kind", ["array", "tensor", "pil", "float", "path"])
def test_kinds_of_images_and_label_maps(scene, kind, tmp_path):
    image, label_map = scene
    expected = np.asarray(overlay(image, label_map))
    image.save(tmp_path / "image.png")
    images = {
        "array": np.array(image),
        "tensor": torch.from_numpy(np.array(image)).permute(2, 0, 1),
        "pil": image,
        "float": np.array(image) / 255,
        "path": tmp_path / "image.png",
    }
    maps = {
        "array": label_map.astype(np.uint16),
        "tensor": torch.from_numpy(label_map),
        "pil": PIL.Image.fromarray(label_map.astype(np.uint8)),
        "float": label_map.astype(np.int32),
        "path": label_map,
    }
    np.testing.assert_array_equal(np.asarray(overlay(images[kind], maps[kind])), expected)
    assert class_areas(maps[kind]) == class_areas(label_map)


def test_bad_input(scene):
    image, label_map = scene
    with pytest.raises(ValueError, match=r"label_map has shape \(48, 128\)"):
        overlay(image, label_map[::2])
    with pytest.raises(ValueError, match="reference has shape"):
        draw_comparison(image, label_map[::2], label_map)
    with pytest.raises(ValueError, match=r"\(2,2\) \(96,128\)"):
        draw_boundaries(image, np.zeros((2, 2)), label_map)


def test_names_are_plain_text(scene):
    image, label_map = scene
    names = {index: rf"${name[:4]}\frac{{a}}{{$" for index, name in NAMES.items()} | {0: "_$x^2$_"}
    figure = draw_overlay(image, label_map, names, title=r"$\frac{a}{$")
    comparison = draw_comparison(image, label_map, label_map, names)
    refinement = draw_refinement(image, label_map, label_map, names)
    for one in (figure, comparison, refinement):
        figure_to_image(one, dpi=30)
    (axis,) = figure.axes
    assert axis.texts and {text.get_text() for text in axis.texts} <= set(names.values())
    expected = {names[index] for index in np.unique(label_map)}
    for one in (figure, comparison):
        assert {text.rpartition("  ")[0] for text in legend_texts(one)} == expected
    texts = [axis.title, *axis.texts, *(text for one in (figure, comparison) for text in one.legends[0].get_texts())]
    assert not any(text.get_parse_math() for text in texts)


def test_color_label_map():
    label_map = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    palette = [[1, 2, 3], [4, 5, 6]]
    white, black = [255] * 3, [0] * 3
    colors = color_label_map(label_map, palette)
    assert colors.dtype == np.uint8 and colors.tolist() == [[palette[0], palette[1]], [white, white]]
    assert color_label_map(torch.from_numpy(label_map), palette, black).tolist() == [palette, [black, black]]
    # A byte counts to as many as there are colors.
    assert color_label_map(PIL.Image.fromarray(label_map), default_palette(256))[1, 1].tolist() != white
    assert (color_label_map(label_map)[0] == OKABE_ITO[:2]).all()
    assert color_label_map(np.array([[-1]]), palette).tolist() == [[white]]


def test_colors_of_a_configuration():
    colors = color_label_map(np.array([[0, 1]]), ["#0102ff", "#A0b0c0"])
    assert colors.tolist() == [[[1, 2, 255], [160, 176, 192]]]


def test_shares():
    assert [percent(share) for share in (0, 1e-9, 0.00099, 0.001, 0.1234, 1)] == [
        "0.0%", "< 0.1%", "< 0.1%", "0.1%", "12.3%", "100.0%",
    ]  # fmt: skip
    assert [percent(share, 2) for share in (0, 0.00009, 0.0001)] == ["0.00%", "< 0.01%", "0.01%"]
    label_map = np.zeros((50, 50), int)
    label_map[0, 0] = 1
    figure = draw_overlay(np.zeros((50, 50, 3), np.uint8), label_map, {0: "sky", 1: "bird"})
    assert legend_texts(figure) == ["sky  100.0%", "bird  < 0.1%"]


def test_class_areas():
    label_map = torch.tensor([[1, 1, 1, 255], [0, 0, 7, 7]])
    assert class_areas(label_map, {0: "sky", 1: "road"}, ignore_index=255) == [
        {"id": 1, "label": "road", "pixels": 3, "fraction": 3 / 7},
        {"id": 0, "label": "sky", "pixels": 2, "fraction": 2 / 7},
        {"id": 7, "label": "no class (7)", "pixels": 2, "fraction": 2 / 7},
    ]
    assert class_areas(np.full((2, 2), 255), ignore_index=255) == []
    assert class_areas(np.full((2, 2), 3.0))[0]["label"] == "class 3"
    assert class_areas(np.ones((2, 2)), {0: "sky", 1: 7})[0]["label"] == "7"
    for fractions in (np.full((2, 2), 1.5), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"label_map holds the label (1.5|nan)"):
            class_areas(fractions)


@pytest.mark.floor
def test_overlay_with_legend(scene):
    image, label_map = scene
    figure = draw_overlay(image, label_map, NAMES, PALETTE, title="a scene")
    draw_overlay(image, label_map, dict.fromkeys(NAMES, 2026))  # names that YAML took for numbers
    areas = class_areas(label_map, NAMES)
    assert legend_texts(figure) == [f"{area['label']}  {area['fraction']:.1%}" for area in areas]
    assert len(areas) < len(NAMES), "a scene without one of the classes is wanted"
    colors = [tuple(np.rint(np.array(patch.get_facecolor()[:3]) * 255)) for patch in figure.legends[0].get_patches()]
    assert colors == [PALETTE[area["id"]] for area in areas]
    (axis,) = figure.axes
    assert axis.get_title() == "a scene"
    # Enlarged, with lines that stay thin.
    large, pixels = np.kron(label_map, np.ones((4, 4), int)), np.array(image).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(shown(axis), np.asarray(overlay(pixels, large, PALETTE)))
    assert axis.texts
    for text in axis.texts:
        column, row = text.get_position()
        assert NAMES[large[row, column]] == text.get_text()
    assert not draw_overlay(image, label_map, NAMES, name_regions=False).axes[0].texts


@pytest.mark.parametrize("size", [(300, 400), (900, 150), (100, 900)])
def test_many_classes_stay_legible(size):
    classes = load_class_list("ade20k")
    # Class n has about n + 1 cells of the image, so all 150 have another area.
    cells = np.repeat(np.arange(150), np.arange(1, 151))
    label_map = np.resize(cells, size)
    figure = draw_overlay(np.full((*size, 3), 128, np.uint8), label_map, classes.id2label)
    texts = legend_texts(figure)
    assert 20 <= len(texts) < 151
    assert texts[-1].startswith(f"{150 - len(texts) + 1} more")
    shares = [float(text.rpartition("  ")[2].rstrip("%")) for text in texts]
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))
    figure.draw_without_rendering()
    legend, axis = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x0 >= axis.x1
    assert legend.x1 <= figure.bbox.x1 and legend.y0 >= 0 and legend.y1 <= figure.bbox.y1
    figure = draw_comparison(np.full((*size, 3), 128, np.uint8), label_map, label_map, classes.id2label)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
    assert all(legend.y1 <= axis.get_window_extent().y0 for axis in figure.axes)


def test_comparison(scene):
    image, reference = scene
    reference = reference.copy()
    reference[:10, :10] = 255
    prediction = reference.copy()
    prediction[:20, :20] = 5
    figure = draw_comparison(image, reference, prediction, NAMES, PALETTE)
    wrong = (reference != 255) & (prediction != reference)
    truth, predicted, errors = (shown(axis) for axis in figure.axes[1:])
    np.testing.assert_array_equal((errors == OKABE_ITO[4]).all(-1), wrong)
    assert (errors[:10, :10] == 255).all() and (truth[:10, :10] == 255).all()
    np.testing.assert_array_equal(predicted, np.array(PALETTE)[prediction])
    share = wrong.sum() / (96 * 128 - 100)
    assert figure.axes[3].get_title() == f"wrong: {share:.1%} of {96 * 128 - 100:,} labeled pixels"
    counts = {name: (reference == index).sum() / (96 * 128 - 100) for index, name in NAMES.items()}
    assert set(legend_texts(figure)) >= {f"{name}  {share:.1%}" for name, share in counts.items() if share > 0}
    assert "labeled" in draw_comparison(image, np.full_like(reference, 255), prediction).axes[3].get_title()


def test_samples_of_mixed_sizes_have_a_legend_and_no_gaps():
    generator = np.random.default_rng(0)
    samples = []
    for size in ((60, 90), (90, 60)):
        reference = generator.integers(0, 3, size)
        reference[:, :10] = 255
        prediction = np.where(reference == 255, 0, np.where(reference == 2, 4, reference))
        wrong = float((reference == 2).mean())
        image = PIL.Image.new("RGB", size[::-1], "gray")
        samples.append({"name": "x", "image": image, "reference": reference, "prediction": prediction, "wrong": wrong})
    figure = draw_samples(samples, PALETTE, NAMES)
    names = {text.partition("  ")[0] for text in legend_texts(figure)}
    assert names == {NAMES[index] for index in (0, 1, 2, 4)}
    errors = shown(figure.axes[3])
    wrong = samples[0]["reference"] == 2
    np.testing.assert_array_equal((errors == OKABE_ITO[4]).all(-1), wrong)
    assert (errors[:, :10] == 0).all()
    assert figure.axes[3].get_title() == f"wrong: {samples[0]['wrong']:.1%}"
    figure.draw_without_rendering()
    # The images fill the width: what is left beside and between the four columns is a twentieth.
    for row in (figure.axes[:4], figure.axes[4:]):
        assert sum(axis.get_window_extent().width for axis in row) > 0.95 * figure.bbox.width


def test_confusion_matrix():
    matrix = np.array([[90, 10, 0], [0, 0, 0], [1, 0, 3]])
    figure = draw_confusion_matrix(matrix, ["a", "$b", "c"], "2 images")
    axis = figure.axes[0]
    np.testing.assert_allclose(
        axis.images[0].get_array().filled(np.nan) ** 2, [[0.9, 0.1, 0], [np.nan] * 3, [0.25, 0, 0.75]]
    )
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "90", (1, 0): "10", (0, 2): "25", (2, 2): "75"}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "$b", "c"]
    names = list(load_class_list("ade20k").label2id)
    figure = draw_confusion_matrix(np.eye(150, dtype=int), names)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()[:150]]  # those on the left
    # Each name stands beside its own row alone.
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    assert not figure.axes[0].texts


def test_calibration():
    counts = np.array([[0, 4, 6], [0, 2, 5.4], [0, 1, 6]])
    results = {name: scores_from_calibration(counts) for name in ("plain", "refined")}
    figure = draw_calibration(results)
    curve = figure.axes[0].lines[1]
    np.testing.assert_allclose(curve.get_xydata(), [[0.5, 0.25], [0.9, 1.0]])
    assert curve.get_label() == "plain: calibration error 16.0%"
    assert [bar.get_height() for bar in figure.axes[1].patches[:3]] == pytest.approx([0, 0.4, 0.6])


def test_boundaries(scene):
    image, _ = scene
    probability = torch.linspace(0, 1, 96 * 128).view(96, 128)
    direction = (torch.arange(96 * 128) % 9).view(96, 128)
    direction[direction == 8] = 255
    figure = draw_boundaries(image, probability, direction, threshold=0.25)
    axes = figure.axes
    np.testing.assert_array_equal(shown(axes[1]), probability.numpy())
    colors = shown(axes[3])
    visible = (probability > 0.25) & (direction != 255)
    np.testing.assert_array_equal(colors[visible], np.array(DIRECTION_COLORS)[direction[visible]])
    hidden = colors[~visible]
    assert (hidden == hidden[:, :1]).all(), "gray"
    wedges = [patch for patch in axes[4].patches if isinstance(patch, Wedge)]
    for (row, column), color, wedge in zip(DIRECTIONS, DIRECTION_COLORS, wedges, strict=True):
        angle = math.radians((wedge.theta1 + wedge.theta2) / 2)
        # On screen, rows go down and the figure's y goes up.
        assert math.cos(angle) * column - math.sin(angle) * row == pytest.approx(math.hypot(row, column))
        np.testing.assert_allclose(np.array(wedge.get_facecolor()[:3]) * 255, color, atol=0.5)


def test_refinement(scene):
    image, reference = scene
    before, after = reference.copy(), reference.copy()
    before[80:90, 100:120] = (reference[80:90, 100:120] + 1) % 6
    after[5, :10] = (reference[5, :10] + 1) % 6
    figure = draw_refinement(image, before, after, NAMES, PALETTE, reference=reference)
    better, worse = np.zeros((2, 96, 128), dtype=bool)
    better[80:90, 100:120] = worse[5, :10] = True
    changes = shown(figure.axes[3])
    np.testing.assert_array_equal((changes == OKABE_ITO[6]).all(-1), better)
    np.testing.assert_array_equal((changes == OKABE_ITO[4]).all(-1), worse)
    pixels = 96 * 128
    expected = [f"now right  {200 / pixels:.2%}", f"now wrong  {10 / pixels:.2%}", "other change  0.00%"]
    assert legend_texts(figure) == expected
    assert figure.axes[3].get_title() == f"changed: {210 / pixels:.2%} of the pixels"
    # The enlarged part is 32 x 32 here, and holds all that got better.
    enlarged = shown(figure.axes[7])
    assert enlarged.shape == (32, 32, 3) and (enlarged == OKABE_ITO[6]).all(-1).sum() == 200
    plain = draw_refinement(image, before, after)
    assert legend_texts(plain) == [f"changed  {210 / pixels:.2%}"]
    same = draw_refinement(image, before, before)
    assert same.axes[3].get_title() == "changed: 0.00% of the pixels"


@pytest.fixture(scope="module")
def model():
    """With its first weights, heads look in fixed directions, and all samples count alike."""
    return UneptForSemanticSegmentation.from_preset("unept-tiny", decoder_self_attention="deformable")


@pytest.mark.parametrize("layer", [0, -2, -1])
def test_sampling_points_of_new_weights(model, layer):
    config = model.config
    # Neither side is a multiple of 16: the processor pads to 80 x 112, of which 70 x 100 are image.
    processor = UneptImageProcessor(do_resize=False, size_divisor=16)
    image = np.zeros((70, 100, 3), np.uint8)
    points = sampling_points(model, processor, image, (37, 50), layer=layer)
    levels = 1 if layer == -2 else config.num_feature_levels
    assert points.strides == (8.0,) * levels
    np.testing.assert_allclose(points.query, (4 * 8 + 3.5, 6 * 8 + 3.5))  # the cell of 8 pixels that has the point
    angles = np.arange(config.num_attention_heads) * 2 * np.pi / config.num_attention_heads
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ring /= np.abs(ring).max(-1, keepdims=True)
    steps = np.arange(1, config.num_sampling_points + 1)
    expected = np.array(points.query) + 8 * ring[:, None, None] * steps[:, None]
    np.testing.assert_allclose(points.locations, np.repeat(expected, levels, axis=1), atol=1e-3)
    np.testing.assert_allclose(points.weights, 1 / (levels * config.num_sampling_points), rtol=1e-5)
    kinds = {0: "encoder layer 1, self", -2: "decoder layer 2, self", -1: "decoder layer 2, cross"}
    assert points.layer == f"{kinds[layer]}-attention"


def test_sampling_points_of_a_resized_image(model):
    processor = UneptImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    image = PIL.Image.new("RGB", (256, 128), "gray")
    points = sampling_points(model, processor, image, (255, 0), layer=1, level=2)
    assert points.strides == (16.0,) * 3
    assert points.query == (255 - 7.5, 7.5)
    assert model.training is False or model.model.training
    points.locations[:] = points.query
    points.locations[0] = (-1000, 0)
    figure = draw_sampling_points(image, points)
    heads = model.config.num_attention_heads
    assert [axis.get_title() for axis in figure.axes[: heads + 1]] == [
        "all heads",
        *(f"head {i + 1}" for i in range(heads)),
    ]
    assert (
        figure.get_suptitle()
        == f"encoder layer 2, self-attention: {1 / heads:.0%} of the weight lies outside of the image"
    )


def test_sampling_points_by_weight(model):
    processor = UneptImageProcessor(do_resize=False)
    image = np.zeros((64, 96, 3), np.uint8)
    points = sampling_points(model, processor, image, (10, 20))
    points.weights[:] = np.random.default_rng(0).random(points.weights.shape)
    figure = draw_sampling_points(image, points)
    for head, axis in enumerate(figure.axes[1 : 1 + len(points.weights)]):
        for level, scatter in enumerate(axis.collections):
            np.testing.assert_allclose(scatter.get_offsets(), points.locations[head, level])
            ratio = scatter.get_sizes() / points.weights[head, level]
            np.testing.assert_allclose(ratio, ratio[0])
    together = np.concatenate([scatter.get_offsets() for scatter in figure.axes[0].collections])
    assert len(together) == points.weights.size


def test_sampling_points_that_do_not_exist(model):
    arguments = UneptImageProcessor(), np.zeros((64, 96, 3), np.uint8)
    with pytest.raises(ValueError, match=r"point \(96, 0\) .* width 96 and height 64"):
        sampling_points(model, *arguments, (96, 0))
    for place in ({"layer": 6}, {"layer": 0, "level": 3}):
        with pytest.raises(IndexError):
            sampling_points(model, *arguments, (0, 0), **place)
    other = SegformerForSemanticSegmentation(SegformerConfig())
    with pytest.raises(ValueError, match="SegformerForSemanticSegmentation is not a UN-EPT model"):
        sampling_points(other, *arguments, (0, 0))


def test_figures_become_images(scene):
    figure = draw_overlay(*scene)
    image = figure_to_image(figure, dpi=50)
    assert image.mode == "RGB" and image.size == tuple(np.rint(figure.get_size_inches() * 50).astype(int))
    png = PIL.Image.open(io.BytesIO(figure._repr_png_()))  # what notebooks ask for
    assert png.format == "PNG"


def test_large_images_are_shown_small():
    figure = draw_overlay(np.zeros((1500, 3000, 3), np.uint8), np.arange(1500 * 3000).reshape(1500, 3000) // 2250000)
    assert shown(figure.axes[0]).shape == (512, 1024, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2)])
def test_images_of_extreme_shape(size):
    image, label_map = np.zeros((*size, 3), np.uint8), np.zeros(size, dtype=int)
    figures = [
        draw_overlay(image, label_map),
        draw_comparison(image, label_map, label_map),
        draw_boundaries(image, np.ones(size), label_map),
        draw_refinement(image, label_map, label_map),
    ]
    assert all(max(figure_to_image(figure, dpi=30).size) < 1000 for figure in figures)


def test_nothing_global_is_touched():
    code = (
        "import sys, unept_hf, numpy as np\n"
        "assert not {'matplotlib', 'unept_hf.visualization', 'unept_hf.cli', 'datasets'} & set(sys.modules)\n"
        "from unept_hf.visualization.figures import draw_overlay\n"
        "draw_overlay(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), int))._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_documentation_runs(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, label_map = scene
    size = (480, 360)  # of the street photograph, in which the page names a pixel
    image.resize(size).save("photo.jpg")
    PIL.Image.fromarray(label_map.astype(np.uint8)).resize(size, PIL.Image.Resampling.NEAREST).save("annotation.png")
    UneptForSemanticSegmentation.from_preset("unept-tiny", id2label=NAMES).save_pretrained("my-model")
    UneptImageProcessor(size={"shortest_edge": 64}).save_pretrained("my-model")
    page = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text()
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.S)), {})
    names = ("overlay", "pixels", "comparison", "boundaries", "refinement", "sampling")
    assert all(PIL.Image.open(f"{name}.png").width > 100 for name in names)
