"""The checkpoints that come with the package. `benchmarks/shipped_checkpoint.py` measures them on whole data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, pipeline

from unept_hf import STREET_PHOTOS, SYNTHETIC_SCENES, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import load_class_list
from unept_hf.data.segmentation_datasets import load_segmentation_dataset
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.synthetic.scenes import synthetic_scene


STREET = Path(__file__).parents[2] / "docs" / "images" / "street.jpg"


@pytest.mark.floor
@pytest.mark.parametrize(
    ("checkpoint", "class_list", "megabytes"), [(SYNTHETIC_SCENES, "synthetic", 8), (STREET_PHOTOS, "camvid", 12)]
)
def test_it_is_small_and_complete(checkpoint, class_list, megabytes):
    folder = Path(checkpoint)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= megabytes * 1e6 + 100_000
    model, report = UneptForSemanticSegmentation.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values())
    assert model.dtype == torch.float32  # also where the file has half precision
    assert model.config.id2label == load_class_list(class_list).id2label
    assert isinstance(AutoImageProcessor.from_pretrained(checkpoint), UneptImageProcessor)
    # A folder with `auto_map` but without code would ask for trust_remote_code.
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())


@pytest.mark.floor
def test_pipeline_sees_a_street():
    segmenter = pipeline("image-segmentation", model=STREET_PHOTOS)
    masks = {segment["label"]: np.array(segment["mask"]) > 0 for segment in segmenter(str(STREET))}
    assert all(mask.shape == (360, 480) for mask in masks.values())
    assert masks["sky"][8:50, 240:290].mean() > 0.9
    assert masks["road"][250:350, 230:400].mean() > 0.9
    assert masks["pavement"][220:290, 10:140].mean() > 0.7
    assert masks["building"][60:180, 390:470].mean() > 0.9
    assert masks["pedestrian"].any() and masks["car"].any()


def test_pipeline_sees_a_held_out_scene():
    image, label_map = synthetic_scene(2**31)
    segmenter = pipeline("image-segmentation", model=SYNTHETIC_SCENES)
    found = np.full(label_map.size[::-1], 255)
    for segment in segmenter(image):
        found[np.array(segment["mask"]) > 0] = segmenter.model.config.label2id[segment["label"]]
    assert (found == np.array(label_map)).mean() > 0.8


def test_it_segments_scenes_that_it_was_not_trained_on():
    dataset, classes = load_segmentation_dataset("synthetic", "validation", num_synthetic_scenes=20)
    model = UneptForSemanticSegmentation.from_pretrained(SYNTHETIC_SCENES)
    processor = UneptImageProcessor.from_pretrained(SYNTHETIC_SCENES)
    results = evaluate_model(model, processor, dataset, classes, boundary_f1=False, progress=False)
    assert results["mean_iou"] > 0.65
    torch.manual_seed(0)
    untrained = UneptForSemanticSegmentation(model.config).eval()
    other = evaluate_model(untrained, processor, dataset, classes, boundary_f1=False, progress=False, max_images=5)
    assert other["mean_iou"] < 0.1
