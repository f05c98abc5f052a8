# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The model with what people use it with: Accelerate, PEFT, Trainer, pipelines, and transformers' own options."""

import accelerate
import numpy as np
import peft
import pytest
import torch
import transformers
from transformers import (
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from unept_hf import UneptConfig, UneptForSemanticSegmentation


BACKBONES = {
    "timm-resnet": {
        "model_type": "timm_backbone",
        "backbone": "test_resnet",
        "out_indices": [2, 3, 4],
        "output_stride": 8,
    },
    "timm-vit": {"model_type": "timm_backbone", "backbone": "test_vit", "out_indices": [1, 3, 5]},
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    ).to_dict(),
    "convnext": ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_indices=[2, 3, 4]).to_dict(),
}


def make_model(**kwargs) -> UneptForSemanticSegmentation:
    """A model with random weights that is small enough for a test, in evaluation mode."""
    set_seed(0)
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_sampling_points": 2,
        "query_grid_size": (8, 8),
        "spatial_branch_channels": (8, 16, 32),
        "num_labels": 4,
    }
    return UneptForSemanticSegmentation(UneptConfig.from_preset("unept-tiny", **{**config, **kwargs})).eval()


def make_batch(batch_size: int = 2, size: tuple[int, int] = (64, 96)) -> dict[str, torch.Tensor]:
    """Random images; labels in four quadrants, with an unlabeled frame."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    rows = (torch.arange(height) >= height // 2).long()
    columns = (torch.arange(width) >= width // 2).long()
    labels = rows[:, None] * 2 + columns
    labels[:4] = labels[:, :4] = 255
    return {
        "pixel_values": torch.randn(batch_size, 3, height, width, generator=generator),
        "labels": labels.expand(batch_size, -1, -1).clone(),
    }


@pytest.mark.floor
@pytest.mark.parametrize("backbone", BACKBONES)
def test_save_and_load_with_device_map(backbone, tmp_path):
    model = make_model(backbone_config=BACKBONES[backbone])
    batch = make_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, device_map="auto")
    assert type(loaded) is UneptForSemanticSegmentation
    with torch.no_grad():
        expected, outputs = model(**batch), loaded(**batch)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0, atol=0)


# Not for vision transformers of timm: its feature extraction calls them past the hooks that fetch what is offloaded.
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")
@pytest.mark.parametrize("share_in_memory", [0.3, 0.9])
@pytest.mark.parametrize("backbone", ["timm-resnet", "resnet", "convnext"])
def test_layers_on_the_disk(backbone, share_in_memory, tmp_path):
    model = make_model(backbone_config=BACKBONES[backbone], decoder_self_attention="dense")
    batch = make_batch()
    model.save_pretrained(tmp_path)
    max_memory = int(share_in_memory * accelerate.utils.compute_module_sizes(model)[""])
    loaded = UneptForSemanticSegmentation.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": max_memory}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    with torch.no_grad():
        expected, outputs = model(**batch), loaded(**batch)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs.direction_logits, expected.direction_logits, rtol=0, atol=0)


@pytest.mark.floor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    model = make_model(decoder_self_attention="dense")
    batch = make_batch()
    model.save_pretrained(tmp_path)
    loaded = UneptForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    with torch.no_grad():
        expected, outputs = model(**batch), loaded(**batch)
    assert outputs.logits.dtype == dtype
    assert (outputs.logits.float() - expected.logits).norm() < 0.05 * expected.logits.norm()
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.05, atol=0)


@pytest.mark.floor
def test_tuple_outputs():
    model = make_model()
    batch = make_batch()
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        values = model(**batch, output_hidden_states=True, output_attentions=True, return_dict=False)
        model.config.return_dict = False
        config_values = model(**batch, output_hidden_states=True, output_attentions=True)
    assert isinstance(values, tuple)
    assert len(values) == len(config_values) == len(outputs.to_tuple())
    torch.testing.assert_close(values[0], outputs.loss)
    torch.testing.assert_close(values[1], outputs.logits)
    torch.testing.assert_close(config_values[1], outputs.logits)


@pytest.mark.floor
@pytest.mark.parametrize("backbone", BACKBONES)
def test_recording_outputs_changes_none(backbone):
    model = make_model(backbone_config=BACKBONES[backbone])
    batch = make_batch()
    with torch.no_grad():
        before = model(**batch)
        recording = model(**batch, output_hidden_states=True, output_attentions=True)
        after = model(**batch)
    assert len(recording.hidden_states) == 1 + model.config.num_hidden_layers
    assert len(recording.attentions) == model.config.encoder_layers + 2 * model.config.decoder_layers
    torch.testing.assert_close(recording.logits, before.logits)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0)


@pytest.mark.floor
def test_other_number_of_labels(tmp_path):
    model = make_model()
    batch = make_batch()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        UneptForSemanticSegmentation.from_pretrained(tmp_path, num_labels=7)
    loaded, info = UneptForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert loaded.config.num_labels == 7
    # A new classifier starts as the constructor would have it: PyTorch's uniform bound, 1 / sqrt(fan in).
    for parameter in loaded.classifier.parameters():
        assert parameter.isfinite().all()
        assert 0 < parameter.abs().max() <= 32**-0.5
    weights = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if not name.startswith("classifier."):
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert loaded(**batch).loss.isfinite()


@pytest.mark.floor
def test_eager_and_sdpa_attention_agree():
    model = make_model(decoder_self_attention="dense")
    batch = make_batch()
    outputs = {}
    gradients = {}
    for attn_implementation in ("eager", "sdpa"):
        model.set_attn_implementation(attn_implementation)
        assert model.config._attn_implementation == attn_implementation
        model.zero_grad()
        outputs[attn_implementation] = model(**batch)
        outputs[attn_implementation].loss.backward()
        gradients[attn_implementation] = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(outputs["sdpa"].logits, outputs["eager"].logits)
    torch.testing.assert_close(gradients["sdpa"], gradients["eager"], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_flex_attention_agrees():
    model = make_model(decoder_self_attention="dense")
    batch = make_batch()
    # A plain "flex_attention" asks it of the backbone too, and that of timm refuses.
    model.set_attn_implementation({"": "flex_attention"})
    assert model.config._attn_implementation == "flex_attention"
    with torch.no_grad():
        flex = model(**batch).logits
        model.set_attn_implementation({"": "eager"})
        eager = model(**batch).logits
    torch.testing.assert_close(flex, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.floor
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("decoder_self_attention", ["pointwise", "dense", "deformable"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_checkpointing(backbone, decoder_self_attention, use_reentrant):
    model = make_model(backbone_config=BACKBONES[backbone], decoder_self_attention=decoder_self_attention).train()
    batch = make_batch()

    def gradients():
        set_seed(1)
        model.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        return outputs.loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected_loss, expected = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
        {"use_reentrant": use_reentrant}
    )
    assert getattr(model, "is_activation_checkpointing", False) or model.is_gradient_checkpointing
    loss, actual = gradients()
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


LORA_TARGETS = ["value_proj", "output_proj", "v_proj", "out_proj"]


def test_deprecated_uses_fail_tests(deprecations_in_logs):
    model = make_model()
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable"):
        with pytest.raises(FutureWarning, match="gradient_checkpointing_enable"):
            model.gradient_checkpointing_enable()
    assert model.config.torch_dtype == model.config.dtype
    assert any("torch_dtype" in message for message in deprecations_in_logs)
    deprecations_in_logs.clear()


# PEFT asks models by the old name.
peft_asks = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@peft_asks
@pytest.mark.floor
@pytest.mark.parametrize("decoder_self_attention", ["pointwise", "dense", "deformable"])
def test_lora(decoder_self_attention, tmp_path):
    base = make_model(decoder_self_attention=decoder_self_attention)
    batch = make_batch()
    base.save_pretrained(tmp_path / "base")
    # Running statistics follow the images, frozen or not, so they must be saved with the adapter.
    normalizations = [name for name, module in base.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    config = peft.LoraConfig(target_modules=LORA_TARGETS, modules_to_save=["classifier", *normalizations])
    model = peft.get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name or "modules_to_save" in name), name

    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = UneptForSemanticSegmentation.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, expected)
        merged = loaded.merge_and_unload()
        assert type(merged) is UneptForSemanticSegmentation
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)


@peft_asks
@pytest.mark.floor
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_lora_with_gradient_checkpointing(use_reentrant):
    model = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=LORA_TARGETS)).train()
    # The first name is that of transformers 5.24 and later.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
        {"use_reentrant": use_reentrant}
    )
    model.enable_input_require_grads()
    model(**make_batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None and parameter.grad.any(), name


class Dataset(torch.utils.data.Dataset):
    """Five images with their labels, in a batch of which the last image stands alone."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        batch = make_batch(len(self))
        return {"image_sizes": torch.tensor([60, 90]), **{name: tensor[index] for name, tensor in batch.items()}}


@pytest.mark.floor
def test_trainer(tmp_path):
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        logging_steps=1,
        load_best_model_at_end=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )

    def compute_metrics(prediction):
        assert prediction.label_ids.shape == (5, 64, 96)
        return {"accuracy": np.mean(prediction.predictions.argmax(1) == prediction.label_ids[:, 4::8, 4::8])}

    trainer = Trainer(
        make_model(),
        arguments,
        train_dataset=Dataset(),
        eval_dataset=Dataset(),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    # The loss of accumulated batches is their mean, not their sum.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(metrics["eval_loss"], rel=0.3)
    assert trainer.predict(Dataset()).predictions.shape == (5, 4, 8, 12)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_is_chosen_for_the_decoder(attn_implementation, tmp_path):
    """By name for the whole model, whatever the backbone has: a ResNet has no attention at all."""
    backbone_config = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_indices=[2, 3, 4])
    for fields in ({}, {"backbone_config": backbone_config}):
        config = UneptConfig.from_preset("unept-tiny", decoder_self_attention="dense", **fields)
        UneptForSemanticSegmentation(config).save_pretrained(tmp_path)
        model = UneptForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation=attn_implementation)
        assert model.config._attn_implementation == attn_implementation
