"""The model itself: shapes, modes, losses, initialization, bad input, compilation and export."""

import copy
import math
import os
import traceback

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import ConvNextConfig, Dinov2Config, FocalNetConfig, PvtV2Config, ResNetConfig, SwinConfig

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor, UneptModel
from unept_hf.inference.segment import segment
from unept_hf.model.boundary import boundary_targets
from unept_hf.model.loss_unept import balanced_cross_entropy
from unept_hf.model.modeling_unept import UneptDeformableAttention, UneptMLP


def tiny_model(**fields):
    torch.manual_seed(0)
    return UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=5, **fields).eval()


def images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def blocks(batch=2, height=64, width=96, num_labels=5):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, num_labels, (batch, height // 16, width // 16), generator=generator)
    return labels.repeat_interleave(16, 1).repeat_interleave(16, 2)


@pytest.mark.parametrize("name, parameters", [("unept-resnet50", 31.5e6), ("unept-deit-base", 92.8e6)])
def test_presets_of_the_paper(name, parameters):
    with torch.device("meta"):
        model = UneptForSemanticSegmentation(UneptConfig.from_preset(name, num_labels=150))
        outputs = model.eval()(torch.empty(1, 3, 480, 480))
    assert outputs.logits.shape == (1, 150, 60, 60)
    assert outputs.boundary_logits.shape == (1, 2, 60, 60)
    assert outputs.direction_logits.shape == (1, 8, 60, 60)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize("fields, stride", [({}, 8), ({"spatial_branch_channels": (64, 128)}, 4)], ids=["1/8", "1/4"])
def test_preset_of_few_parameters(fields, stride):
    with torch.device("meta"):
        fields["query_grid_size"] = (384 // stride, 480 // stride)
        model = UneptForSemanticSegmentation(
            UneptConfig.from_preset("unept-efficientnet-lite0", num_labels=11, **fields)
        ).eval()
        outputs = model(torch.empty(1, 3, 384, 480))
        maps = model.model.backbone(torch.empty(1, 3, 384, 480)).feature_maps
    assert [384 // feature_map.shape[-2] for feature_map in maps] == [8, 16, 32]
    assert model.model.size_divisor == 32
    assert outputs.logits.shape == (1, 11, 384 // stride, 480 // stride)
    learned_queries = model.model.query_embeddings.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 4.0e6 < parameters - learned_queries < 4.5e6


@pytest.mark.parametrize(
    "name, divisor, mean, std",
    [
        ("unept-resnet50", 8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("unept-deit-base", 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("unept-efficientnet-lite0", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_image_processor_of_a_new_model(name, divisor, mean, std):
    with torch.device("meta"):
        model = UneptForSemanticSegmentation(UneptConfig.from_preset(name))
    processor = UneptImageProcessor(**model.image_processor_options())
    assert (processor.size_divisor, processor.image_mean, processor.image_std) == (divisor, mean, std)


def test_image_processor_of_a_backbone_of_transformers():
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_indices=[2, 3, 4])
    with torch.device("meta"):
        model = UneptForSemanticSegmentation(UneptConfig(backbone_config=backbone))
    assert model.image_processor_options() == {"size_divisor": 32}


@pytest.mark.floor
@pytest.mark.parametrize("mode", ["pointwise", "dense", "deformable", "batch"])
def test_forward_backward(mode):
    model = tiny_model(decoder_self_attention=mode).train()
    outputs = model(images(), labels=blocks())
    assert outputs.logits.shape == (2, 5, 8, 12)
    assert set(outputs.loss_dict) == {"segmentation", "boundary", "direction", "refined_segmentation"}
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_loss_is_the_weighted_sum_of_its_terms():
    model = tiny_model(direction_loss_weight=2.0)
    outputs = model(images(), labels=blocks())
    terms = outputs.loss_dict
    expected = 0.8 * terms["segmentation"] + 5 * terms["boundary"] + 2 * terms["direction"]
    torch.testing.assert_close(outputs.loss, expected + terms["refined_segmentation"])


def test_labels_alone_give_the_loss_of_precomputed_targets():
    model, labels = tiny_model(), blocks()
    boundary_map, direction_map = boundary_targets(labels)
    given = model(images(), labels=labels, boundary_map=boundary_map, direction_map=direction_map)
    torch.testing.assert_close(given.loss, model(images(), labels=labels).loss, atol=0, rtol=0)
    other = model(images(), labels=labels, boundary_map=1 - boundary_map, direction_map=direction_map)
    assert other.loss_dict["boundary"] != given.loss_dict["boundary"]


@pytest.mark.parametrize(
    "fields, terms",
    [
        ({"use_boundary_heads": False}, {"segmentation"}),
        ({"use_boundary_heads": False, "use_spatial_branch": False}, {"segmentation"}),
        ({"num_feature_levels": 1}, {"segmentation", "boundary", "direction", "refined_segmentation"}),
    ],
)
def test_the_switches_of_the_ablation(fields, terms):
    model = tiny_model(**fields)
    outputs = model(images(), labels=blocks())
    assert outputs.logits.shape == (2, 5, 8, 12)
    assert set(outputs.loss_dict) == terms
    assert (outputs.boundary_logits is None) == ("boundary" not in terms)
    outputs.loss.backward()


@pytest.mark.parametrize("region", ["predicted", "target"])
@pytest.mark.parametrize(
    "labels",
    [
        torch.full((2, 64, 96), 255),
        torch.full((2, 64, 96), 3),
        torch.stack([torch.full((64, 96), 255), torch.full((64, 96), 3)]),
        torch.arange(2).repeat_interleave(48).expand(2, 64, 96),
    ],
    ids=["all ignored", "one class", "one image ignored", "two classes"],
)
def test_losses_are_finite_without_anything_to_learn(labels, region):
    model = tiny_model(direction_loss_region=region)
    # No pixel is predicted to be a boundary: the original's direction loss, and so its loss, is NaN then.
    model.boundary_head.register_forward_hook(
        lambda module, args, output: output * 0 + torch.tensor([5.0, -5.0])[:, None, None]
    )
    outputs = model(images(), labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    if (labels == 255).all():
        assert outputs.loss == 0


def test_ignored_pixels_do_not_count():
    model, labels = tiny_model(), blocks()
    labels[:, :32] = 255
    terms = [model(images(), labels=labels).loss_dict["segmentation"]]
    logits = nn.functional.interpolate(model(images()).logits, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(terms[0], nn.functional.cross_entropy(logits, labels, ignore_index=255))
    model.config.loss_reduction = "all"
    torch.testing.assert_close(model(images(), labels=labels).loss_dict["segmentation"], terms[0] / 2)


def test_balanced_cross_entropy_weighs_by_frequency():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    labels[0] = 255
    frequency = torch.stack([(labels[1] == label).float().mean() for label in range(3)])
    expected = nn.functional.cross_entropy(logits, labels, weight=1 - frequency, ignore_index=255)
    torch.testing.assert_close(balanced_cross_entropy(logits, labels, 255), expected)


@pytest.mark.floor
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [True, False])
def test_gradient_of_the_spatial_branch_is_exact(batch, heads):
    """PyTorch's batch norm can give a wrong one for a batch of one on the CPU; see UneptSpatialBranch."""
    model = tiny_model(use_boundary_heads=heads, dropout=0.0, activation_function="gelu").double()
    pixel_values, labels = images(batch).double(), blocks(batch)
    bias = model.model.spatial_branch.normalizations[-1].bias
    model(pixel_values, labels=labels).loss.backward()
    direction = torch.randn_like(bias)
    losses = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            bias += step * direction
            losses.append(model(pixel_values, labels=labels).loss.item())
    assert (bias.grad @ direction).item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)


@pytest.mark.floor
@pytest.mark.parametrize("size", [(8, 8), (64, 96), (72, 40), (128, 128)])
def test_any_multiple_of_the_stride(size):
    with torch.no_grad():
        outputs = tiny_model()(images(1, *size))
    assert outputs.logits.shape == (1, 5, size[0] // 8, size[1] // 8)
    assert outputs.logits.isfinite().all()


def test_queries_of_another_size_are_interpolated():
    model = tiny_model().model
    grid = model.config.query_grid_size
    assert model.interpolate_query_embeddings(*grid) is model.query_embeddings
    larger = model.interpolate_query_embeddings(2 * grid[0], 2 * grid[1])
    smaller = nn.functional.interpolate(larger, scale_factor=0.5, mode="area")
    assert nn.functional.cosine_similarity(smaller.flatten(), model.query_embeddings.flatten(), dim=0) > 0.9


def test_an_output_does_not_depend_on_its_batch():
    model, pixel_values = tiny_model(decoder_self_attention="dense"), images(3)
    with torch.no_grad():
        alone = torch.cat([model(image[None]).logits for image in pixel_values])
        torch.testing.assert_close(model(pixel_values).logits, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.floor
def test_feed_forward_in_pieces():
    torch.manual_seed(0)
    mlp = UneptMLP(UneptConfig.from_preset("unept-tiny")).eval()
    hidden_states = torch.randn(2, 1100, mlp.fc1.in_features)
    sizes = []
    mlp.fc1.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:-1].numel()))
    whole = mlp(hidden_states)
    with torch.no_grad():
        torch.testing.assert_close(mlp(hidden_states), whole)
        copy.deepcopy(mlp).to("meta")(hidden_states.to("meta"))
        assert sizes == [2200, 1024, 1024, 152, 2200]
        # Graphs keep one matrix product, whatever the number of tokens.
        exported = torch.export.export(mlp, (hidden_states,))
    assert sum("linear" in str(node.target) for node in exported.graph.nodes) == 2


def test_only_dense_and_deformable_self_attention_mix_queries():
    """Moves one query before the decoder's self-attention and looks whether its far corner notices."""
    for mode, mixes in (("pointwise", False), ("dense", True), ("deformable", True)):
        self_attn = tiny_model(decoder_self_attention=mode).model.decoder_layers[0].self_attn
        queries = torch.randn(1, 96, 64)
        moved = queries.clone()
        moved[0, 40] += 1

        def attend(hidden_states, self_attn=self_attn):
            if isinstance(self_attn, UneptDeformableAttention):
                centers = torch.rand(1, 96, 1, 2)
                return self_attn(hidden_states, hidden_states, [(8, 12)], centers.fill_(0.5))[0]
            return self_attn(hidden_states)

        difference = (attend(moved) - attend(queries)).abs().amax(-1)[0]
        difference[40] = 0
        assert (difference.max() > 1e-6) == mixes, mode


def test_recorded_outputs():
    model, pixel_values = tiny_model(decoder_self_attention="deformable"), images()
    with torch.no_grad():
        plain = model(pixel_values)
        outputs = model(pixel_values, output_attentions=True, output_hidden_states=True)
    assert plain.attentions is plain.hidden_states is plain.sampling_locations is None
    torch.testing.assert_close(outputs.logits, plain.logits)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 288, 64)] * 3 + [(2, 96, 64)] * 2
    self_attention, cross_attention = (2, 96, 4, 1, 4), (2, 96, 4, 3, 4)
    expected = [(2, 288, 4, 3, 4)] * 2 + [self_attention, cross_attention] * 2
    assert [tuple(weights.shape) for weights in outputs.attentions] == expected
    assert [tuple(locations.shape) for locations in outputs.sampling_locations] == [(*shape, 2) for shape in expected]
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(weights.shape[:3]))
    for locations in outputs.sampling_locations:
        assert locations.dtype == torch.float32


def test_tuples():
    model = tiny_model()
    with torch.no_grad():
        outputs = model(images())
        logits, _, direction_logits = model(images(), return_dict=False)
    torch.testing.assert_close(logits, outputs.logits)
    torch.testing.assert_close(direction_logits, outputs.direction_logits)
    assert model(images(), labels=blocks(), return_dict=False)[0].shape == ()


def test_image_sizes_become_sizes_of_the_logits():
    sizes = tiny_model()(images(), image_sizes=torch.tensor([[64, 96], [48, 76]])).logits_sizes
    assert sizes.tolist() == [[8, 12], [6, 9.5]]


@pytest.mark.parametrize(
    "pixel_values, message",
    [
        (torch.zeros(1, 3, 60, 64), r"positive multiples of 8, .*got \(1, 3, 60, 64\).*size_divisor=8"),
        (torch.zeros(1, 3, 64, 0), r"got \(1, 3, 64, 0\)"),
        (torch.zeros(1, 1, 64, 64), r"\(batch, 3, height, width\).*got \(1, 1, 64, 64\)"),
        (torch.zeros(3, 64, 64), r"got \(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point dtype.*of torch.uint8"),
    ],
)
def test_wrong_pixel_values(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(pixel_values)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(2, 8, 12).long(), r"labels must be .* pixel_values \(2, 3, 64, 96\), got \(2, 8, 12\)"),
        (torch.zeros(2, 64, 96), "labels must be integers.*of torch.float32"),
        (
            torch.full((2, 64, 96), 5),
            r"Target 5 is .* labels must lie in 0\.\.4 or be 255.*check num_labels",
        ),
        (torch.full((2, 64, 96), -1), "Target -1 is out of bounds.*do_reduce_labels"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(images(), labels=labels)


def test_wrong_targets_do_not_pass_unseen():
    model, maps = tiny_model(direction_loss_region="target"), torch.ones(2, 64, 96).long()
    with pytest.raises(IndexError, match="Target 2 is out of bounds"):
        model(images(), labels=blocks(), boundary_map=2 * maps, direction_map=maps)
    with pytest.raises(IndexError, match="Target 8 is out of bounds"):
        model(images(), labels=blocks(), boundary_map=maps, direction_map=8 * maps)
    with pytest.raises(AssertionError, match="go together"):
        model(images(), labels=blocks(), boundary_map=maps)


class CountReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations that make a GPU wait: reading values on the host."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal"):
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


def test_the_loss_reads_no_value_on_the_host():
    """Each read would make the host wait for a GPU in every step."""
    model, labels = tiny_model(), blocks()
    boundary_map, direction_map = boundary_targets(labels)
    with CountReads() as mode:
        model(images(), labels=labels, boundary_map=boundary_map, direction_map=direction_map).loss.backward()
    assert not mode.reads


@pytest.mark.parametrize(
    "backbone_config, divisor",
    [
        ({"model_type": "timm_backbone", "backbone": "test_vit", "out_indices": [1, 3, 5]}, 16),
        ({"model_type": "timm_backbone", "backbone": "test_convnext", "out_indices": [1, 2, 3]}, 32),
        (ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_indices=[2, 3, 4]), 32),
        (SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_indices=[1, 2, 3]), 16),
    ],
    ids=["timm vit", "timm convnext", "resnet", "swin"],
)
def test_backbones(backbone_config, divisor, tmp_path):
    model = tiny_model(backbone_config=backbone_config)
    pixel_values = images(1, 128, 192)
    outputs = model(pixel_values, labels=blocks(1, 128, 192))
    assert outputs.logits.shape == (1, 5, 16, 24)
    outputs.loss.backward()
    with pytest.raises(ValueError, match="multiples"):
        model(images(1, 128 + divisor // 2, 192))
    model.save_pretrained(tmp_path)
    loaded = UneptForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.fixture
def one_process(tmp_path):
    """DistributedDataParallel needs a process group, if only of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


FOUR_STAGES = {"depths": [1] * 4, "out_indices": [2, 3, 4]}
TRANSFORMERS_BACKBONES = {
    "resnet": (ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, **FOUR_STAGES), 32),
    "swin": (SwinConfig(embed_dim=8, num_heads=[1] * 4, window_size=4, **FOUR_STAGES), 32),
    "dinov2": (
        Dinov2Config(
            hidden_size=8,
            num_hidden_layers=4,
            num_attention_heads=1,
            image_size=56,
            patch_size=14,
            out_indices=[1, 2, 3],
        ),
        56,
    ),
    "convnext": (ConvNextConfig(hidden_sizes=[8] * 4, **FOUR_STAGES), 32),
    "pvt": (
        PvtV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, out_indices=[1, 2, 3]),
        32,
    ),
}


@pytest.mark.floor
@pytest.mark.parametrize("name", list(TRANSFORMERS_BACKBONES))
def test_one_divisor_for_backbones_of_transformers(name):
    """An image of odd size comes out whole: each map has as many cells as there are strides in the image."""
    backbone_config, divisor = TRANSFORMERS_BACKBONES[name]
    model = tiny_model(backbone_config=copy.deepcopy(backbone_config))
    assert model.model.size_divisor == divisor
    with pytest.raises(ValueError, match=f"positive multiples of {divisor},.*size_divisor={divisor}"):
        model(torch.zeros(1, 3, 480, 648))

    processor = UneptImageProcessor(size_divisor=divisor, size={"shortest_edge": 2 * divisor, "longest_edge": 500})
    image = torch.randint(0, 256, (3, 2 * divisor + 5, 4 * divisor - 3), dtype=torch.uint8)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    shapes = []
    for projection in model.model.input_projections:
        projection.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[-2:]))
    with torch.no_grad():
        model(pixel_values)
    strides = {pixel_values.shape[-2] / rows for rows, _ in shapes} | {pixel_values.shape[-1] / c for _, c in shapes}
    assert strides == ({14} if name == "dinov2" else {8, 16, 32})
    assert segment(model, processor, image).label_map.shape == image.shape[1:]


@pytest.mark.parametrize("name", ["swin", "dinov2"])
def test_parameters_that_no_map_depends_on_are_frozen(name, one_process, tmp_path):
    """Without that, DistributedDataParallel raises at the second step."""
    backbone_config = copy.deepcopy(TRANSFORMERS_BACKBONES[name][0])
    model = tiny_model(backbone_config=backbone_config)
    model.save_pretrained(tmp_path / "model")
    for candidate in (model, UneptForSemanticSegmentation.from_pretrained(tmp_path / "model")):
        backbone = candidate.model.backbone
        frozen = {key for key, parameter in backbone.named_parameters() if not parameter.requires_grad}
        assert {"swin": "swin.layernorm.weight", "dinov2": "embeddings.mask_token"}[name] in frozen
        # Of the last layer of four, whose output nobody asked for.
        assert any(key.startswith("encoder.layer.3.") for key in frozen) == (name == "dinov2")
        assert not any(key.startswith("encoder.layer.2.") for key in frozen)
        parallel = DistributedDataParallel(candidate.train())
        for _ in range(3):
            parallel(images(2, 224, 224), labels=blocks(2, 224, 224)).loss.backward()


def timm_model(backbone, out_indices, **model_args):
    backbone_config = {"model_type": "timm_backbone", "backbone": backbone, "out_indices": out_indices}
    return tiny_model(backbone_config={**backbone_config, "model_args": model_args})


@pytest.mark.parametrize(
    "backbone, out_indices, divisor, model_args",
    [
        ("test_mambaout", [1, 2, 3], 32, {}),
        ("test_vit", [1, 3, 5], 16, {}),
        ("test_efficientnet", [2, 3, 4], 32, {}),
        (
            "swin_tiny_patch4_window7_224",
            [1, 2, 3],
            32,
            {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
        ),
        pytest.param("swinv2_tiny_window8_256", [1, 2, 3], 32, {}, marks=pytest.mark.slow),
        pytest.param("maxvit_pico_rw_256", [2, 3, 4], 256, {}, marks=pytest.mark.slow),
        pytest.param("xcit_nano_12_p8_224", [3, 7, 11], 8, {}, marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", [2, 3, 4], 32, {}, marks=pytest.mark.slow),
    ],
)
def test_families_of_timm(backbone, out_indices, divisor, model_args, one_process):
    """Channels-last maps, windows that must be full, and every parameter with a gradient."""
    model = timm_model(backbone, out_indices, **model_args)
    assert model.model.size_divisor == divisor
    side = math.ceil(64 / divisor) * divisor
    parallel = DistributedDataParallel(model.train())
    for _ in range(3):
        outputs = parallel(images(2, side, side), labels=blocks(2, side, side))
        assert outputs.logits.shape == (2, 5, side // 8, side // 8)
        assert outputs.loss.isfinite()
        outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        logits = model.eval()(images(1, side, side + divisor)).logits
    assert logits.shape == (1, 5, side // 8, (side + divisor) // 8)


def test_channels_last_maps_are_those_of_timm():
    """The maps are turned, not misread: equal to those of timm's own extractor for channels-first maps."""
    model = timm_model("test_mambaout", [1, 2, 3])
    weights = model.model.backbone._backbone
    seen = []
    model.model.input_projections[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(images(1, 64, 96))
        expected = weights(images(1, 64, 96))[0]
    assert expected.shape[-1] == seen[0].shape[1]
    torch.testing.assert_close(seen[0], torch.einsum("bhwc->bchw", expected))


def test_backbones_of_one_image_size():
    with pytest.raises(
        ValueError, match=r"'coat_lite_tiny' takes images of one size only.*'model_args': {'img_size': 448}"
    ):
        timm_model("coat_lite_tiny", [1, 2, 3])
    small = {"embed_dims": [16] * 4, "serial_depths": [1] * 4, "num_heads": 8}
    model = timm_model("coat_lite_tiny", [1, 2, 3], img_size=96, **small)
    assert (model.model.size_divisor, model.model.fixed_image_size) == (32, (96, 96))
    assert model(images(1, 96, 96)).logits.shape == (1, 5, 12, 12)
    with pytest.raises(ValueError, match=r"width 96 x 96,.*got .1, 3, 64, 96.*size={'height': 96, 'width': 96}"):
        model(images(1, 64, 96))
    with pytest.raises(ValueError, match="in multiples of 32"):
        timm_model("coat_lite_tiny", [1, 2, 3], img_size=72, **small)


def test_backbones_whose_maps_do_not_cover_the_image():
    with pytest.raises(ValueError, match=r"'inception_v3' do not fit: they are .* must cover an image evenly"):
        timm_model("inception_v3", [2, 3, 4])


def test_backbones_whose_maps_have_other_channels_than_they_say():
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = FocalNetConfig(embed_dim=8, hidden_sizes=[8, 16, 32, 64], depths=[1] * 4, out_features=stages)
    with pytest.raises(ValueError, match=r"'focalnet' do not fit: they have .* channels where its configuration says"):
        UneptForSemanticSegmentation(UneptConfig(backbone_config=backbone))


@pytest.mark.floor
def test_one_class_cannot_be_trained():
    model = UneptForSemanticSegmentation.from_preset("unept-tiny", num_labels=1).eval()
    assert model(images()).logits.shape == (2, 1, 8, 12)
    with pytest.raises(ValueError, match=r"num_labels=1 trains nothing.*num_labels=2"):
        model(images(), labels=torch.zeros(2, 64, 96).long())


def test_queries_start_at_their_own_place_on_every_level():
    """With offsets of zero a query samples its own cell center, on maps of any size."""
    model = tiny_model().model
    for layer in (*model.encoder_layers, *model.decoder_layers):
        attention = layer.cross_attn if hasattr(layer, "cross_attn") else layer.self_attn
        nn.init.zeros_(attention.sampling_offsets.weight)
        nn.init.zeros_(attention.sampling_offsets.bias)
    locations = model(images(1, 64, 96), output_attentions=True).sampling_locations[-1]
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    expected = torch.stack(((columns + 0.5) / 12, (rows + 0.5) / 8), dim=-1).flatten(0, 1)
    torch.testing.assert_close(locations, expected[None, :, None, None, None].expand_as(locations))


@pytest.mark.parametrize(
    "fields", [{"backbone": "nope"}, {"backbone": "test_resnet", "out_indices": [7, 8, 9]}], ids=["name", "indices"]
)
def test_backbones_that_timm_cannot_make(fields):
    backbone_config = {"model_type": "timm_backbone", "out_indices": [2, 3, 4], **fields}
    with pytest.raises(ValueError, match=r"timm cannot make the backbone_config.*timm.list_models"):
        tiny_model(backbone_config=backbone_config)


def test_initialization_is_that_of_the_original():
    model = tiny_model(hidden_size=256, spatial_branch_channels=(64, 128, 256), decoder_self_attention="dense").model
    attention = model.encoder_layers[0].self_attn
    assert attention.sampling_offsets.weight.abs().max() == 0
    assert attention.attention_weights.weight.abs().max() == attention.attention_weights.bias.abs().max() == 0
    # Deformable DETR's ring: four heads look right, down, left and up, point p at distance p + 1.
    ring = attention.sampling_offsets.bias.view(4, 3, 4, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(4):
        torch.testing.assert_close(ring[:, 1, point], expected * (point + 1), atol=1e-6, rtol=0)

    def assert_uniform(tensor, bound):
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    assert_uniform(attention.value_proj.weight, math.sqrt(6 / 512))
    assert attention.value_proj.bias.abs().max() == 0
    self_attention = model.decoder_layers[0].self_attn
    for projection in (self_attention.q_proj, self_attention.k_proj, self_attention.v_proj):
        assert_uniform(projection.weight, math.sqrt(6 / (256 + 3 * 256)))
        assert projection.bias.abs().max() == 0
    assert_uniform(self_attention.out_proj.weight, math.sqrt(6 / 512))
    mlp = model.encoder_layers[0].mlp
    assert_uniform(mlp.fc1.weight, math.sqrt(6 / (256 + 128)))
    assert_uniform(mlp.fc1.bias, 1 / 16)
    # PyTorch's default for convolutions.
    assert_uniform(model.spatial_branch.convolutions[1].weight, 1 / math.sqrt(64 * 9))
    assert model.query_embeddings.std().item() == pytest.approx(1, rel=0.05)
    assert model.level_embed.std().item() == pytest.approx(1, rel=0.1)


def test_the_backbone_keeps_the_initialization_of_timm():
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4), output_stride=8)
    got = tiny_model().model.backbone._backbone
    for (name, parameter), own in zip(expected.named_parameters(), got.parameters()):
        torch.testing.assert_close(own.std(), parameter.std(), atol=0.02, rtol=0.3, msg=name)


def test_pretrained_backbones(tmp_path):
    donor, model = tiny_model(), tiny_model()
    with torch.no_grad():
        for parameter in donor.model.backbone.parameters():
            parameter.normal_()
    donor.model.backbone.save_pretrained(tmp_path)
    before = model.classifier.weight.clone()
    model.load_pretrained_backbone(tmp_path)
    for own, expected in zip(model.model.backbone.parameters(), donor.model.backbone.parameters()):
        assert torch.equal(own, expected)
    assert torch.equal(model.classifier.weight, before)

    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.load_pretrained_backbone(tmp_path / "nowhere")
    state_dict = dict(donor.model.backbone.state_dict())
    state_dict["extra.weight"] = state_dict.pop("_backbone.conv1.0.weight")
    save_file(state_dict, tmp_path / "wrong.safetensors")
    message = r"1 missing: _backbone.conv1.0.weight; 1 unexpected: extra.weight\."
    with pytest.raises(ValueError, match=message):
        model.load_pretrained_backbone(tmp_path / "wrong.safetensors")


def random_classifier(name, **kwargs):
    """A classifier of timm whose statistics of batch norms are not those of a new one."""
    torch.manual_seed(1)
    classifier = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return classifier


def assert_backbone_has_weights_of(model, classifier, out_indices):
    """Each map is what the classifier itself makes of the image."""
    with torch.no_grad():
        maps = model.eval().model.backbone(images(1, 64, 64)).feature_maps
        expected = classifier.forward_intermediates(images(1, 64, 64), indices=out_indices, intermediates_only=True)
    for own, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "name, out_indices, kwargs",
    [
        ("test_efficientnet", [2, 3, 4], {}),
        ("test_convnext", [1, 2, 3], {"num_classes": 7}),
        ("test_vit", [1, 3, 5], {"img_size": 64}),
    ],
)
def test_pretrained_backbones_as_timm_writes_them(name, out_indices, kwargs, suffix, tmp_path):
    classifier, path = random_classifier(name, **kwargs), tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": classifier.state_dict()}, path)
    else:
        save_file(classifier.state_dict(), path)
    model_args = {"img_size": 64} if "img_size" in kwargs else {}
    model = timm_model(name, out_indices, **model_args)
    model.load_pretrained_backbone(path)
    assert_backbone_has_weights_of(model, classifier, out_indices)


def test_pretrained_backbones_of_other_names_in_the_order_of_timm(tmp_path):
    classifier = random_classifier("test_efficientnet")
    renamed = {
        f"_module{i}.{key.split('.')[-1]}": value for i, (key, value) in enumerate(classifier.state_dict().items())
    }
    torch.save(renamed, tmp_path / "model.pth")
    model = timm_model("test_efficientnet", [2, 3, 4])
    model.load_pretrained_backbone(tmp_path / "model.pth")
    assert_backbone_has_weights_of(model, classifier, [2, 3, 4])

    keys = list(renamed)
    # Two weights of one shape and other kinds, in the other order.
    index = next(index for index, key in enumerate(keys) if key.endswith(".running_mean"))
    keys[index], keys[index + 1] = keys[index + 1], keys[index]
    torch.save({key: renamed[key] for key in keys}, tmp_path / "model.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"The checkpoint has \d+ weights, the model \d+: \d+ missing: .* more"
    ) as error:
        model.load_pretrained_backbone(tmp_path / "model.pth")
    assert len(str(error.value)) < 1000
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pretrained_backbones_that_are_more_than_tensors(tmp_path):
    torch.save({"model": tiny_model()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth .*holds Python objects \(.*Save its state dict alone") as error:
        tiny_model().load_pretrained_backbone(tmp_path / "model.pth")
    assert "weights_only" not in str(error.value) and error.value.__cause__ is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or incomplete"):
        tiny_model().load_pretrained_backbone(tmp_path / "model.safetensors")


def test_pretrained_weights_of_timm(monkeypatch):
    """The weights come from timm at construction by name; without network the error says what to do."""
    asked = []
    create_model = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            asked.append(name)
            raise ConnectionError("no network")
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"'test_resnet'.*no network.*local file"):
        UneptForSemanticSegmentation.from_preset("unept-tiny", use_pretrained_backbone=True)
    assert asked == ["test_resnet"]

    def online(name, pretrained=False, **kwargs):
        model = create_model(name, **kwargs)
        if pretrained:
            nn.init.constant_(next(model.parameters()), 0.5)
            nn.init.constant_(model.bn1.running_mean, 0.25)
        return model

    monkeypatch.setattr(timm, "create_model", online)
    model = UneptModel.from_preset("unept-tiny", use_pretrained_backbone=True)
    assert (next(model.backbone.parameters()) == 0.5).all()
    assert (model.backbone._backbone.bn1.running_mean == 0.25).all()


class Poison:
    """Unpickled without checks, it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("content", ["object", "text"])
def test_weights_of_timm_that_would_run_code(content, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"conv1.0.weight": Poison()}, file)
    if content == "text":
        file.write_text("<html>Not found</html>")
    backbone = UneptConfig.from_preset("unept-tiny").backbone_config.to_dict()
    backbone["model_args"] = {"pretrained_cfg_overlay": {"file": str(file)}}
    model = tiny_model(backbone_config=backbone)
    with pytest.raises(OSError, match="'test_resnet' is not plain tensors, and cannot be loaded safely") as error:
        model.load_pretrained_backbone()
    # PyTorch's advice is to load it all the same.
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("mode", ["pointwise", "dense", "deformable"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(mode, backend, monkeypatch, tmp_path):
    """Without a graph break. The default backend takes most of a minute to build its code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CI", "1")  # Inductor is stricter there
    model, pixel_values = tiny_model(decoder_self_attention=mode), images()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)(pixel_values)
        torch.testing.assert_close(compiled.logits, model(pixel_values).logits, atol=1e-3, rtol=0)


@pytest.mark.floor
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_export_with_dynamic_height_and_width(backbone):
    fields = {"encoder_layers": 1, "decoder_layers": 1}
    if backbone == "test_vit":
        fields["backbone_config"] = {"model_type": "timm_backbone", "backbone": backbone, "out_indices": [1, 3, 5]}
    model = tiny_model(**fields)
    divisor = model.model.size_divisor
    height, width = (divisor * torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        model, (images(2, 128, 96),), dynamic_shapes=({0: batch, 2: height, 3: width},)
    ).module()
    for shape in ((1, 64, 192), (3, 128, 96), (2, 256, 256)):
        pixel_values = images(*shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(pixel_values).logits, model(pixel_values).logits, atol=1e-3, rtol=0)


def test_bfloat16():
    model, pixel_values = tiny_model(), images()
    with torch.no_grad():
        expected = model(pixel_values).logits
        logits = model.to(torch.bfloat16)(pixel_values).logits
        assert logits.dtype == torch.bfloat16
        assert nn.functional.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = tiny_model()(pixel_values, labels=blocks())
    assert outputs.loss.dtype == torch.float32
    assert outputs.loss.isfinite()
