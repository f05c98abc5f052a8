"""Boundary targets and refinement."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unept_hf.model.boundary import (
    DIRECTIONS,
    angle_to_direction_map,
    boundary_distance_and_angle,
    boundary_targets,
    follow_direction,
    refine_label_map,
)


FIXTURES = Path(__file__).parents[1] / "fixtures"
MAPS = ["blocky_with_ignore", "thin_lines", "single_pixels", "below_and_at_100_pixels", "all_ignore", "discs"]


@pytest.mark.floor
@pytest.mark.parametrize("name", [*MAPS, "long_strip_clip_at_250"])
def test_distance_and_angle_equal_the_original_generator(name):
    tensors = load_file(FIXTURES / "boundary_targets.safetensors")
    distance, angle = boundary_distance_and_angle(tensors[f"{name}.label"].numpy(), 255, min_class_pixels=100)
    torch.testing.assert_close(torch.from_numpy(distance), tensors[f"{name}.distance_float"], atol=1e-4, rtol=0)
    # Where the gradient is zero the original has the angle 0, and ours has none.
    angle = torch.from_numpy(np.nan_to_num(angle, nan=0.0))
    difference = (angle - tensors[f"{name}.angle_float"] + 180) % 360 - 180
    assert difference.abs().max() < 1e-3
    # The generator stored whole, clipped pixels and steps of two degrees.
    assert torch.equal(torch.from_numpy(distance).clamp(max=250).int(), tensors[f"{name}.distance"])


def test_one_class_has_neither_boundary_nor_direction():
    """The original's distance transform invents a boundary at the top left corner."""
    boundary, direction = boundary_targets(torch.full((40, 56), 8))
    assert (boundary == 0).all()
    assert (direction == 255).all()


def test_angles_and_directions_equal_the_original():
    tensors = load_file(FIXTURES / "deit_tiny.safetensors")
    assert torch.equal(angle_to_direction_map(tensors["fn.angle_in"]), tensors["fn.angle_bin"])
    assert tensors["fn.direction_vectors"].tolist() == [list(direction) for direction in DIRECTIONS]


def half_and_half(height=32, width=40):
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    return labels


def test_targets_of_two_halves():
    boundary, direction = boundary_targets(half_and_half())
    # Distances count from 1, so five pixels on each side are at a distance of at most 5.
    assert boundary[0].tolist() == [0] * 15 + [1] * 10 + [0] * 15
    # Away from the boundary: to the left in the left half (direction 0), to the right in the right half (4).
    middle = direction[4:-4, 4:-4]
    assert (middle[:, :16] == 0).all()
    assert (middle[:, 16:] == 4).all()


def test_directions_turn_with_a_flip():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.kron(rng.integers(0, 4, (5, 7)), np.ones((13, 11), dtype=np.int64)))
    boundary, direction = boundary_targets(labels)
    flipped_boundary, flipped_direction = boundary_targets(labels.flip(-1))
    assert torch.equal(flipped_boundary, boundary.flip(-1))
    mirrored = torch.tensor([DIRECTIONS.index((row, -column)) for row, column in DIRECTIONS])
    known = direction != 255
    assert known.float().mean() > 0.9
    same = flipped_direction.flip(-1)[known] == mirrored[direction[known]]
    # Angles on the edge of a bin may fall to either side.
    assert same.float().mean() > 0.98


def test_unlabeled_pixels_are_ignored_by_default_and_boundary_in_the_original():
    labels = half_and_half()
    labels[10:14, 3:7] = 255
    boundary, direction = boundary_targets(labels)
    assert (boundary[10:14, 3:7] == 255).all()
    assert (direction[10:14, 3:7] == 255).all()
    assert boundary[12, 2] == 1
    boundary, direction = boundary_targets(labels, ignore_unlabelled=False)
    assert (boundary[10:14, 3:7] == 1).all()
    assert (direction[10:14, 3:7] == 4).all()


def test_padding_makes_no_boundary():
    labels = half_and_half()
    padded = torch.full((48, 64), 255)
    padded[:32, :40] = labels
    boundary, direction = boundary_targets(padded)
    expected_boundary, expected_direction = boundary_targets(labels)
    assert torch.equal(boundary[:32, :40], expected_boundary)
    assert torch.equal(direction[:32, :40], expected_direction)
    assert (boundary[32:] == 255).all()
    assert (boundary[:, 40:] == 255).all()


@pytest.mark.parametrize("ignore_unlabelled", [True, False])
def test_nothing_labeled(ignore_unlabelled):
    boundary, direction = boundary_targets(torch.full((2, 16, 16), 255), ignore_unlabelled=ignore_unlabelled)
    assert boundary.shape == direction.shape == (2, 16, 16)
    assert set(boundary.unique().tolist()) <= {0, 255}


def test_batches_and_empty_batches():
    labels = torch.stack([half_and_half(), torch.zeros(32, 40, dtype=torch.int64)])
    boundary, direction = boundary_targets(labels)
    for index in range(2):
        expected = boundary_targets(labels[index])
        assert torch.equal(boundary[index], expected[0])
        assert torch.equal(direction[index], expected[1])
    assert boundary_targets(labels[:0])[0].shape == (0, 32, 40)


def test_edt_missing(monkeypatch):
    monkeypatch.setattr("unept_hf.model.boundary.edt", None)
    with pytest.raises(ImportError, match="pip install edt"):
        boundary_targets(half_and_half())


def test_shift_equals_the_original():
    tensors = load_file(FIXTURES / "deit_tiny.safetensors")
    directions = tensors["fn.rand_dir_logits"].argmax(1)
    source = follow_direction(tensors["fn.rand_mask_logits"][:, 1] > 0.5, directions)
    scores = tensors["fn.rand_x"]
    refined = scores.flatten(2).gather(2, source[:, None].expand(-1, scores.shape[1], -1)).view_as(scores)
    torch.testing.assert_close(refined, tensors["fn.rand_shifted"], atol=1e-5, rtol=0)


def test_refinement_walks_out_of_the_boundary():
    labels = half_and_half(8, 20)[:, :].clone()
    wrong = labels.clone()
    wrong[:, 8:10] = 1  # two columns too far to the left
    boundary, direction = boundary_targets(labels)
    probability = (boundary == 1).float()
    direction = torch.where(direction == 255, 0, direction)
    steps = [refine_label_map(wrong, probability, direction, steps=count) for count in (1, 2, 3)]
    errors = [(refined != labels).sum().item() for refined in steps]
    assert errors[0] < (wrong != labels).sum()
    assert errors[1] == errors[2] == 0


def test_refinement_stays_inside_the_image():
    boundary = torch.ones(3, 5, dtype=torch.bool)
    for direction in range(8):
        source = follow_direction(boundary, torch.full((3, 5), direction), steps=10)
        assert source.min() >= 0
        assert source.max() < 15


@pytest.mark.parametrize(
    ("steps", "moved", "inside_only"),
    [(1, [0, 2, 3, 4, 4, 5], [0, 1, 2, 4, 4, 5]), (2, [0, 3, 4, 4, 4, 5], [0, 1, 4, 4, 4, 5])],
)
def test_walks_that_end_at_a_boundary(steps, moved, inside_only):
    boundary = torch.tensor([[False, True, True, True, False, True]])
    direction = torch.full((1, 6), DIRECTIONS.index((0, 1)))
    assert follow_direction(boundary, direction, steps).tolist() == moved
    assert follow_direction(boundary, direction, steps, inside_only=True).tolist() == inside_only
