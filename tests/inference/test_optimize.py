"""The optimized model: its numbers, what it folds, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unept_hf import UneptConfig, UneptForSemanticSegmentation, optimize_for_inference


def model_with_statistics(backbone: dict) -> UneptForSemanticSegmentation:
    """A small model whose batch norms change what they get."""
    torch.manual_seed(0)
    config = UneptConfig.from_preset("unept-tiny", backbone_config=backbone)
    model = UneptForSemanticSegmentation(config).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def timm_backbone(name: str) -> dict:
    return {"model_type": "timm_backbone", "backbone": name, "features_only": True, "out_indices": [-3, -2, -1]}


BACKBONES = {
    "activations after batch norms": timm_backbone("resnet18"),
    "activations within batch norms": timm_backbone("efficientnet_lite0"),
    "batch norms before convolutions": timm_backbone("densenet121"),
    "no batch norms": timm_backbone("convnext_atto"),
    "transformers": {
        "model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "embedding_size": 8,
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    },
}  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_same_numbers(backbone):
    model = model_with_statistics(BACKBONES[backbone])
    side = 3 * model.model.size_divisor
    pixel_values = torch.randn(2, 3, side, side + model.model.size_divisor)
    with torch.no_grad():
        expected = model(pixel_values)
        assert optimize_for_inference(model) is model
        outputs = model(pixel_values)
    for name in ("logits", "boundary_logits", "direction_logits"):
        scale = expected[name].abs().max()
        torch.testing.assert_close(outputs[name] / scale, expected[name] / scale, rtol=0, atol=1e-5)
    left = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    # Those of DenseNet stand before activations, after concatenations.
    assert bool(left) == (backbone == "batch norms before convolutions")


def test_half_precision():
    model = model_with_statistics(BACKBONES["activations after batch norms"]).bfloat16()
    pixel_values = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(pixel_values).logits.float()
        logits = optimize_for_inference(model)(pixel_values).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


def test_modules_that_are_called_twice_stay():
    model = model_with_statistics(BACKBONES["activations after batch norms"])
    convolution, *others = model.boundary_head
    model.boundary_head = nn.Sequential(convolution, others[0], convolution, *others)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values).boundary_logits
        outputs = optimize_for_inference(model)(pixel_values).boundary_logits
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_refusals(tmp_path):
    model = model_with_statistics(BACKBONES["activations after batch norms"])
    with pytest.raises(ValueError, match="training mode"):
        optimize_for_inference(model.train())
    with pytest.raises(ValueError, match="cannot be saved"):
        optimize_for_inference(model.eval()).save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
