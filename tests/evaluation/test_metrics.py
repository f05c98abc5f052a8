# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics against scikit-learn, recorded results of `evaluate`'s own mean_iou, and literal recomputation."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import jaccard_score, recall_score

from unept_hf.evaluation import evaluate_modules
from unept_hf.evaluation.metrics import (
    boundary_f_scores,
    calibration_counts,
    confusion_matrix,
    scores_from_calibration,
    scores_from_confusion_matrix,
    trimap_confusion_matrices,
)


FOLDER = Path(evaluate_modules.__file__).parent


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def load(name, **kwargs):
    return evaluate.load(str(FOLDER / name), **kwargs)


def blobs(seed, size, classes, ignored=0.1):
    """A prediction and a reference of coarse cells, which agree in part; 255 is ignored."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, classes, (-(-size[0] // 5), -(-size[1] // 5)))
    reference = np.kron(cells, np.ones((5, 5), int))[: size[0], : size[1]]
    prediction = np.where(rng.random(size) < 0.2, rng.integers(0, classes, size), np.roll(reference, 2, axis=1))
    reference = np.where(
        np.kron(rng.random(cells.shape), np.ones((5, 5)))[: size[0], : size[1]] < ignored, 255, reference
    )
    return prediction.astype(np.int64), reference.astype(np.uint8)


class TestMeanIou:
    @pytest.mark.floor
    def test_recorded_example_of_evaluate(self):
        """The example in the documentation of `evaluate`'s mean_iou, with its result."""
        predictions = [
            np.array([[1, 2], [3, 4], [5, 255]]),
            np.array([[2, 7], [9, 2], [3, 6]]),
            np.array([[2, 2, 3], [8, 2, 4], [3, 255, 2]]),
        ]
        references = [
            np.array([[0, 3], [5, 4], [6, 255]]),
            np.array([[1, 7], [9, 2], [3, 6]]),
            np.array([[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
        ]
        results = load("mean_iou").compute(
            predictions=predictions, references=references, num_labels=10, ignore_index=255, reduce_labels=False
        )
        assert results["mean_iou"] == pytest.approx(0.4775)
        assert results["mean_accuracy"] == pytest.approx(0.5916666666666666)
        assert results["overall_accuracy"] == pytest.approx(0.5263157894736842)
        np.testing.assert_allclose(results["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
        np.testing.assert_allclose(
            results["per_category_accuracy"], [0, 0, 0.75, 0.66666667, 1, 0, 0.5, 1, 1, 1], atol=1e-8
        )

    def test_equals_scikit_learn(self):
        metric = load("mean_iou", num_labels=7)
        pairs = [blobs(seed, size, 7) for seed, size in enumerate([(40, 30), (17, 50), (1, 9)])]
        for prediction, reference in pairs:
            metric.add_batch(predictions=[torch.from_numpy(prediction)], references=[reference])
        results = metric.compute()
        prediction, reference = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        counted = reference != 255
        assert 0 < counted.sum() < len(counted)
        prediction, reference = prediction[counted], reference[counted]
        np.testing.assert_allclose(results["per_category_iou"], jaccard_score(reference, prediction, average=None))
        np.testing.assert_allclose(results["per_category_accuracy"], recall_score(reference, prediction, average=None))
        assert results["overall_accuracy"] == pytest.approx((prediction == reference).mean())
        assert results["mean_iou"] == pytest.approx(jaccard_score(reference, prediction, average="macro"))

    @pytest.mark.parametrize(("ignore_index", "dtype"), [(255, np.uint8), (-100, np.int32), (0, np.int16)])
    def test_confusion_matrix_equals_scikit_learn(self, ignore_index, dtype):
        prediction, reference = blobs(3, (30, 41), 5)
        reference = np.where(reference == 255, ignore_index, reference.astype(int)).astype(dtype)
        matrix = confusion_matrix(prediction.astype(dtype), reference, 5, ignore_index)
        counted = reference != ignore_index
        expected = sklearn_confusion_matrix(reference[counted], prediction[counted], labels=range(5))
        np.testing.assert_array_equal(matrix, expected)

    def test_absent_classes_are_left_out(self):
        # Class 2 is only predicted, class 3 only in the reference, class 4 nowhere, class 5 where nothing counts.
        prediction, reference = np.array([[0, 1, 2, 0, 5]]), np.array([[0, 1, 1, 3, 255]])
        metric = load("mean_iou", num_labels=6)
        metric.add(prediction=prediction, reference=reference)
        results = metric.compute()
        np.testing.assert_allclose(results["per_category_iou"], [1 / 2, 1 / 2, 0, 0, np.nan, np.nan])
        np.testing.assert_allclose(results["per_category_accuracy"], [1, 1 / 2, np.nan, 0, np.nan, np.nan])
        assert results["mean_iou"] == pytest.approx(1 / 4)
        assert results["mean_accuracy"] == pytest.approx(1 / 2)
        metric.add(prediction=prediction, reference=reference)
        assert metric.compute(nan_to_num=0)["per_category_iou"].tolist() == [0.5, 0.5, 0, 0, 0, 0]

    def test_nothing_counted(self):
        results = scores_from_confusion_matrix(confusion_matrix(np.zeros((2, 2), int), np.full((2, 2), 255), 3))
        assert all(np.isnan(value).all() for value in results.values())

    def test_only_referenced_classes(self):
        matrix = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
        assert scores_from_confusion_matrix(matrix)["mean_iou"] == pytest.approx((6 / 8 + 0) / 2)
        results = scores_from_confusion_matrix(matrix, only_referenced=True)
        assert results["mean_iou"] == pytest.approx(6 / 8)
        np.testing.assert_array_equal(results["per_category_iou"], [6 / 8, np.nan, np.nan])

    def test_reduce_labels(self):
        prediction, reference = blobs(1, (30, 30), 4)
        stored = np.where(reference == 255, 0, reference + 1).astype(np.uint8)
        stored[:3] = 255
        reference[:3] = 255
        np.testing.assert_array_equal(
            confusion_matrix(prediction, stored, 4, reduce_labels=True), confusion_matrix(prediction, reference, 4)
        )

    def test_batches_add_up_and_nothing_is_stored(self, tmp_path):
        predictions, references = map(np.stack, zip(*(blobs(seed, (20, 30), 5) for seed in range(7))))
        expected = load("mean_iou", num_labels=5).compute(predictions=predictions, references=references)
        for batch in (1, 2, 7):
            metric = load("mean_iou", num_labels=5)
            for start in range(0, 7, batch):
                stop = start + batch
                metric.add_batch(predictions=predictions[start:stop], references=references[start:stop])
            assert len(metric) == 0 and metric.counts.shape == (5, 5)
            for name, value in metric.compute().items():
                np.testing.assert_array_equal(value, expected[name])
        assert not list(tmp_path.rglob("*.arrow"))

    def test_compute_starts_anew(self):
        metric = load("mean_iou", num_labels=2)
        metric.add(prediction=np.zeros((2, 2), int), reference=np.ones((2, 2), int))
        assert metric.compute()["overall_accuracy"] == 0
        metric.add(prediction=np.ones((2, 2), int), reference=np.ones((2, 2), int))
        assert metric.compute()["overall_accuracy"] == 1
        with pytest.raises(ValueError, match="There are no images"):
            metric.compute()

    def test_errors(self):
        metric = load("mean_iou", num_labels=3)
        ones = np.ones((2, 3), int)
        with pytest.raises(IndexError):
            metric.add(prediction=ones, reference=ones.T)
        with pytest.raises(ValueError, match="reference holds the class 7, but there are 3"):
            metric.add(prediction=ones, reference=ones * 7)
        with pytest.raises(ValueError, match="prediction holds the class -1"):
            metric.add(prediction=-ones, reference=ones)
        with pytest.raises(TypeError, match="float64"):
            metric.add(prediction=ones / 2, reference=ones)
        with pytest.raises(ValueError, match="zip"):
            metric.add_batch(predictions=[ones, ones], references=[ones])
        metric.add_batch(predictions=[], references=[])
        with pytest.raises(ValueError, match="There are no images"):
            metric.compute()
        metric.add(prediction=ones, reference=ones)
        with pytest.raises(ValueError, match=r"Images were added without {'ignore_index': 0}"):
            metric.compute(ignore_index=0)
        assert metric.compute(ignore_index=255)["overall_accuracy"] == 1
        with pytest.raises(TypeError, match="label_map"):
            metric.compute(predictions=[ones], references=[ones], label_map={})
        assert metric.options.keys() == {"num_labels", "ignore_index", "reduce_labels"}
        with pytest.raises(TypeError, match="num_labels"):
            load("mean_iou").add(prediction=ones, reference=ones)
        with pytest.raises(ValueError, match="num_process=1"):
            load("mean_iou", num_process=2, process_id=0)


def literal_boundary(label_map, counted):
    """Pixel by pixel, as defined."""
    height, width = label_map.shape
    boundary = np.zeros(label_map.shape, bool)
    for row in range(height):
        for column in range(width):
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < height and 0 <= c < width and counted[row, column] and counted[r, c]:
                    boundary[row, column] |= label_map[row, column] != label_map[r, c]
    return boundary


def literal_f_score(prediction, reference, label, ignore_index, tolerance):
    counted = reference != ignore_index
    points = [
        np.argwhere(literal_boundary(label_map, counted) & (label_map == label))
        for label_map in (prediction, reference)
    ]
    if not len(points[0]) and not len(points[1]):
        return np.nan
    if not len(points[0]) or not len(points[1]):
        return 0.0
    distance = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    precision, recall = (distance.min(1) <= tolerance).mean(), (distance.min(0) <= tolerance).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class TestBoundaryF1:
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_definition(self, seed):
        prediction, reference = blobs(seed, (23, 31), 4)
        tolerances = (0, 1, 1.5, 3, 5)
        got = boundary_f_scores(prediction, reference, 6, tolerances=tolerances)
        expected = [
            [literal_f_score(prediction, reference, label, 255, tolerance) for label in range(6)]
            for tolerance in tolerances
        ]
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert len(np.unique(got[:, :4])) > 8

    def test_moved_square(self):
        reference, prediction = np.zeros((40, 40), int), np.zeros((40, 40), int)
        reference[10:30, 10:30] = 1
        prediction[10:30, 12:32] = 1
        scores = boundary_f_scores(prediction, reference, 3, tolerances=(1, 3, 5))
        assert (scores[1:, :2] == 1).all()
        # 19 pixels of the upper and of the lower side, and 2 of the left one beside these, have one within 1 px.
        assert scores[0, 1] == pytest.approx(40 / 76)
        assert np.isnan(scores[:, 2]).all()
        assert (boundary_f_scores(reference, reference, 2) == 1).all()

    def test_one_sided_and_ignored(self):
        reference, prediction = np.zeros((9, 9), int), np.zeros((9, 9), int)
        prediction[4:, :] = 1
        np.testing.assert_array_equal(boundary_f_scores(prediction, reference, 2), np.zeros((3, 2)))
        reference[3:6] = 255
        assert np.isnan(boundary_f_scores(prediction, reference, 2)).all()

    def test_module_averages_over_images_and_classes(self):
        pairs = [blobs(seed, (20 + seed, 30), 4) for seed in range(3)]
        pairs.append((np.zeros((5, 5), int), np.zeros((5, 5), int)))
        metric = load("boundary_f1", num_labels=5, tolerances=(1, 2.5))
        metric.add_batch(predictions=[pair[0] for pair in pairs[:2]], references=[pair[1] for pair in pairs[:2]])
        for prediction, reference in pairs[2:]:
            metric.add(prediction=prediction, reference=torch.from_numpy(reference))
        results = metric.compute()
        for tolerance, name in ((1, "boundary_f1_1px"), (2.5, "boundary_f1_2.5px")):
            scores = [[literal_f_score(*pair, label, 255, tolerance) for label in range(4)] for pair in pairs[:3]]
            expected = np.nanmean(scores, axis=0)
            np.testing.assert_allclose(results[f"per_category_{name}"], [*expected, np.nan])
            assert results[name] == pytest.approx(expected.mean())
        with pytest.raises(ValueError, match="There are no images"):
            metric.compute()

    def test_compute_alone(self):
        prediction, reference = blobs(0, (20, 30), 4)
        results = load("boundary_f1").compute(
            predictions=[prediction], references=[reference], num_labels=4, tolerances=(3,)
        )
        expected = boundary_f_scores(prediction, reference, 4, tolerances=(3,))
        np.testing.assert_allclose(results["per_category_boundary_f1_3px"], expected[0])
        assert set(results) == {"boundary_f1_3px", "per_category_boundary_f1_3px"}

    def test_errors(self):
        label_map = np.array([[0, 1], [1, 1]])
        with pytest.raises(ValueError, match="holds the class 1, but there are 1"):
            boundary_f_scores(label_map, label_map, 1)


class TestTrimap:
    def test_equals_the_definition(self):
        prediction, reference = blobs(5, (25, 31), 3)
        widths = (1, 2, 3.5, 8)
        matrices = trimap_confusion_matrices(prediction, reference, 3, widths=widths)
        points = np.argwhere(literal_boundary(reference, reference != 255))
        pixels = np.stack(np.mgrid[:25, :31], axis=-1).reshape(-1, 1, 2)
        distance = np.linalg.norm(pixels - points[None], axis=-1).min(1).reshape(25, 31)
        for width, matrix in zip(widths, matrices):
            band = (distance < width) & (reference != 255)
            expected = sklearn_confusion_matrix(reference[band], prediction[band], labels=range(3))
            np.testing.assert_array_equal(matrix, expected)
        assert matrices[0].sum() < matrices[-1].sum()

    def test_without_boundary(self):
        flat = np.zeros((4, 4), int)
        assert trimap_confusion_matrices(flat, flat, 2).sum() == 0


class TestCalibration:
    def test_equals_torchmetrics(self):
        """The number is that of MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1", ignore_index=255)."""
        generator = np.random.default_rng(3)
        logits = torch.tensor(generator.normal(size=(2, 5, 12, 10)) * 2)
        references = generator.integers(0, 5, (2, 12, 10))
        references[:, 0, :4] = 255
        counts = 0
        for scores, reference in zip(logits.softmax(1), references):
            confidence, prediction = scores.max(0)
            counts = counts + calibration_counts(prediction.numpy(), reference, confidence.numpy())
        results = scores_from_calibration(counts)
        assert results["expected_calibration_error"] == pytest.approx(0.48435094952583313, abs=1e-6)
        assert sum(results["calibration"]["pixels"]) == (references != 255).sum()

    def test_borders_of_bins_and_nothing_counted(self):
        zeros = np.zeros((1, 4), int)
        counts = calibration_counts(zeros, zeros, np.array([[0.0, 0.5, 0.75, 1.0]], np.float32), bins=4)
        assert counts[0].tolist() == [1, 1, 1, 1] and counts[2].tolist() == [1, 1, 1, 1]
        nothing = scores_from_calibration(calibration_counts(zeros, zeros + 255, np.ones((1, 4))))
        assert np.isnan(nothing["expected_calibration_error"])
