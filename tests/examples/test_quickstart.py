"""The quickstart, from a folder of the user's. CI runs it in full and looks at its mIoU."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from transformers import AutoModelForSemanticSegmentation

import unept_hf  # noqa: F401
from unept_hf.data.class_lists import load_class_list


QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_quickstart(tmp_path):
    photograph = tmp_path / "photograph.png"
    Image.new("RGB", (90, 60), "skyblue").save(photograph)
    arguments = ["--steps", "3", "--train_scenes", "8", "--test_scenes", "2", "--image", str(photograph)]
    result = subprocess.run(
        [sys.executable, QUICKSTART, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "mIoU" in result.stdout
    assert "not supported" not in result.stderr
    output = tmp_path / "quickstart_output"
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 < metrics["mean_iou"] < 1
    assert 0 < metrics["overall_accuracy"] < 1
    for name in ("street.png", "harbour_before.png", "harbour_after.png"):
        assert Image.open(output / name).width > 300
    model = AutoModelForSemanticSegmentation.from_pretrained(output / "model")
    assert model.config.id2label == load_class_list("synthetic_harbour").id2label
