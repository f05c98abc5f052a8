# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The exported folder, and that it works in a process without unept_hf."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, UneptImageProcessorPil
from unept_hf.export.hub import save_for_hub, source_files


# Packages that a user of an exported model must install. edt is not among them: only training needs it.
RUNTIME_PACKAGES = {"PIL", "huggingface_hub", "numpy", "safetensors", "timm", "torch", "torchvision", "transformers"}

# Run beside the exported folder "model", with nothing of unept_hf and without edt.
REMOTE_SCRIPT = """
import sys
sys.modules["unept_hf"] = sys.modules["edt"] = None

import json
import re
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

expected = torch.load("expected.pt")

def load(auto_class, folder="model", **kwargs):
    loaded = auto_class.from_pretrained(folder, trust_remote_code=True, **kwargs)
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    return loaded

def check(folder, backends):
    assert type(load(AutoConfig, folder)).__name__ == "UneptConfig"
    base, model = (load(auto_class, folder) for auto_class in (AutoModel, AutoModelForSemanticSegmentation))
    assert (type(base).__name__, type(model).__name__) == ("UneptModel", "UneptForSemanticSegmentation")
    with torch.no_grad():
        hidden_states = base(expected["pixel_values"]).last_hidden_state
        logits = model(expected["pixel_values"]).logits
    torch.testing.assert_close(hidden_states, expected["last_hidden_state"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    for kwargs, name in backends:
        image_processor = load(AutoImageProcessor, folder, **kwargs)
        assert type(image_processor).__name__ == name, (type(image_processor), kwargs)
        assert image_processor.size["shortest_edge"] == 32
        inputs = image_processor(Image.open("image.jpg"), return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 32, 48)
    return model

torchvision, pil = "UneptImageProcessor", "UneptImageProcessorPil"
backends = [({}, torchvision), ({"backend": "torchvision"}, torchvision), ({"backend": "pil"}, pil)]
model = check("model", backends)

segmenter = pipeline("image-segmentation", model="model", trust_remote_code=True)
segments = segmenter("image.jpg")
assert segments and all(segment["mask"].size == (70, 50) for segment in segments)

# What the model card tells users to do.
for code in re.findall("```python\\n(.*?)```", Path("model/README.md").read_text(), re.DOTALL):
    names = {}
    exec(code, names)
    assert "segmenter" in names or names["label_map"].shape == (50, 70)

# A model that was loaded this way takes its code with it when it is saved or pushed.
model.save_pretrained("saved")
load(AutoImageProcessor).save_pretrained("saved")
assert {file.name for file in Path("saved").glob("*.py")} == {file.name for file in Path("model").glob("*.py")}
check("saved", backends)

# Whichever backend is saved, both can be loaded from what it wrote, again and again.
folder = "model"
for kwargs, name in backends[1:] * 2:
    saved = f"{folder}_{kwargs['backend']}"
    load(AutoImageProcessor, folder, **kwargs).save_pretrained(saved)
    auto_maps = [json.loads(Path(one, "preprocessor_config.json").read_text())["auto_map"] for one in ("model", saved)]
    assert auto_maps[0] == auto_maps[1]
    for kwargs, name in backends:
        image_processor = load(AutoImageProcessor, saved, **kwargs)
        assert type(image_processor).__name__ == name, (type(image_processor), saved, kwargs)
        assert image_processor(Image.open("image.jpg"), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 48)
    folder = saved
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=5).eval()


@pytest.fixture
def image_processor():
    return UneptImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})


@pytest.mark.floor
def test_loads_without_the_package(model, image_processor, tmp_path):
    save_for_hub(model, image_processor, tmp_path / "model")
    Image.radial_gradient("L").resize((70, 50)).save(tmp_path / "image.jpg")
    pixel_values = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = {
            "pixel_values": pixel_values,
            "last_hidden_state": model.model(pixel_values).last_hidden_state,
            "logits": model(pixel_values).logits,
        }
    torch.save(expected, tmp_path / "expected.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", REMOTE_SCRIPT]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "is not supported for image-segmentation" not in result.stderr
    assert "many times slower" in result.stderr and "pip install unept-hf" in result.stderr


def test_loads_as_the_classes_of_the_package_where_that_is_imported(model, image_processor, tmp_path):
    folder = save_for_hub(model, image_processor, tmp_path / "model")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
    loaded_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(loaded) is UneptForSemanticSegmentation and type(loaded_processor) is UneptImageProcessorPil
    again = save_for_hub(loaded, loaded_processor, tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    for name in ("config.json", "preprocessor_config.json"):
        auto_maps = [json.loads((written / name).read_text())["auto_map"] for written in (folder, again)]
        assert auto_maps[0] == auto_maps[1]


def relative_imports(file: Path) -> set[str]:
    """What a module really imports from its package. In a flat package: `from .name import ...`, and nothing else."""
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    imports = [node for node in imports if node.level > 0]
    for node in imports:
        assert node.level == 1 and node.module and "." not in node.module, f"{file.name}, line {node.lineno}: not flat"
    return {node.module for node in imports}


def test_the_folder_of_the_model_is_the_list_of_source_files():
    """transformers looks for the files of the Auto classes and all their imports: no more, no less."""
    entries = {"configuration_unept", "modeling_unept", "image_processing_unept", "image_processing_pil_unept"}
    files = {file.stem: file for file in source_files()}
    imported = {Path(file).stem for entry in entries for file in get_relative_import_files(files[entry])}
    assert files.keys() == entries | imported


def test_source_files_are_closed_under_imports():
    shipped = {file.stem for file in source_files()}
    for file in source_files():
        assert relative_imports(file) <= shipped, file.name
        # transformers reads text, not Python: names in docstrings count, some forms of import do not.
        assert set(get_relative_imports(file)) == relative_imports(file), file.name


@pytest.mark.parametrize("file", source_files(), ids=lambda file: file.name)
def test_source_files_need_runtime_packages_only(file):
    assert set(get_imports(file)) - set(sys.stdlib_module_names) <= RUNTIME_PACKAGES


def test_content(model, image_processor, tmp_path):
    folder = save_for_hub(model, image_processor, tmp_path / "deep" / "model")
    assert folder == tmp_path / "deep" / "model"
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(os.listdir(folder)) == files | {file.name for file in source_files()}
    assert os.listdir(folder.parent) == ["model"]
    for file in source_files():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    state_dict = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_unept.UneptConfig",
        "AutoModel": "modeling_unept.UneptModel",
        "AutoModelForSemanticSegmentation": "modeling_unept.UneptForSemanticSegmentation",
    }
    assert json.loads((folder / "preprocessor_config.json").read_text())["auto_map"] == {
        "AutoImageProcessor": {
            "torchvision": "image_processing_unept.UneptImageProcessor",
            "pil": "image_processing_pil_unept.UneptImageProcessorPil",
        }
    }
    card = ModelCard.load(folder / "README.md")
    # No license: that of the weights is for their owner to choose.
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "unept"],
    }
    assert "5 classes" in card.text and "timm `test_resnet`" in card.text


def test_both_backends_export_the_same(model, image_processor, tmp_path):
    configs = []
    for processor in (image_processor, UneptImageProcessorPil(size=image_processor.size)):
        folder = save_for_hub(model, processor, tmp_path / type(processor).__name__)
        configs.append(json.loads((folder / "preprocessor_config.json").read_text()))
        configs[-1].pop("image_processor_type")
    assert configs[0] == configs[1]


def test_save_pretrained_stays_plain(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert set(os.listdir(tmp_path)) == {"config.json", "model.safetensors"}
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_save_pretrained_of_what_was_loaded_from_an_export_stays_plain(model, image_processor, tmp_path):
    folder = save_for_hub(model, image_processor, tmp_path / "model")
    for backend in ("torchvision", "pil"):
        AutoImageProcessor.from_pretrained(folder, backend=backend).save_pretrained(tmp_path / backend)
        assert os.listdir(tmp_path / backend) == ["preprocessor_config.json"]
        # With it but without the code, the folder would ask for trust_remote_code, and not load.
        assert "auto_map" not in json.loads((tmp_path / backend / "preprocessor_config.json").read_text())


def test_overwrite_replaces_everything(model, image_processor, tmp_path):
    folder = save_for_hub(model, image_processor, tmp_path / "model")
    (folder / "stale.py").touch()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_for_hub(model, image_processor, folder)
    image_processor.size = {"shortest_edge": 64}
    save_for_hub(model, image_processor, folder, overwrite=True)
    assert not (folder / "stale.py").exists()
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 64}
    assert os.listdir(tmp_path) == ["model"]


def test_an_empty_folder_and_a_link_are_filled(model, image_processor, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    assert save_for_hub(model, image_processor, tmp_path / "link") == tmp_path / "model"
    assert (tmp_path / "link" / "config.json").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_export_changes_nothing(model, image_processor, tmp_path, monkeypatch, overwrite):
    folder = tmp_path / "model"
    if overwrite:
        save_for_hub(model, image_processor, folder)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("model/*")}

    def fail(directory):
        assert (directory / "config.json").is_file()
        assert {file.name: file.read_bytes() for file in tmp_path.glob("model/*")} == before
        raise OSError("No space left on device")

    monkeypatch.setattr(image_processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_for_hub(model, image_processor, folder, overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("model/*")} == before
    assert os.listdir(tmp_path) == ["model"] * overwrite


def test_a_failed_rename_restores_the_old_folder(model, image_processor, tmp_path, monkeypatch):
    folder = save_for_hub(model, image_processor, tmp_path / "model")
    (folder / "old.txt").touch()
    rename = Path.rename

    def fail(self, target):
        if self.name == "written":
            raise OSError("denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="denied"):
        save_for_hub(model, image_processor, folder, overwrite=True)
    assert (folder / "old.txt").is_file() and os.listdir(tmp_path) == ["model"]


def test_folders_that_are_no_export_are_kept(model, image_processor, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "config.json").touch()
    for name in ("notes", "clone"):
        with pytest.raises(FileExistsError, match="is not a model directory"):
            save_for_hub(model, image_processor, tmp_path / name, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        save_for_hub(model, image_processor, tmp_path / "notes" / "notes.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileExistsError, match="current directory"):
        save_for_hub(model, image_processor, ".")
    assert sorted(os.listdir(tmp_path)) == ["clone", "empty", "notes"]


def test_a_processor_that_does_not_fit(model, image_processor, tmp_path):
    with pytest.raises(ValueError, match="set size_divisor=8"):
        save_for_hub(model, UneptImageProcessor(size_divisor=4), tmp_path / "model")
    assert not os.listdir(tmp_path)
