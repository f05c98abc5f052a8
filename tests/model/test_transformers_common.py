# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
transformers' own tests of models, configurations and image processors, applied to UN-EPT.

They are part of transformers' source distribution, not of the installed package. To run them:

    pip download --no-deps --no-binary :all: transformers==<installed version>, and unpack it
    UNEPT_TRANSFORMERS_SOURCE=transformers-<installed version> pytest tests/model/test_transformers_common.py
"""

import copy
import importlib
import os
import re
import sys
import textwrap
import types
import unittest
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import ResNetConfig
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto import modeling_auto

import unept_hf
from unept_hf import (
    UneptConfig,
    UneptForSemanticSegmentation,
    UneptImageProcessor,
    UneptImageProcessorPil,
    UneptModel,
)


SOURCE = Path(os.environ.get("UNEPT_TRANSFORMERS_SOURCE", ""))


def source_problem() -> str | None:
    """Why transformers' tests cannot be loaded from `SOURCE`, or `None`."""
    if "UNEPT_TRANSFORMERS_SOURCE" not in os.environ:
        return "UNEPT_TRANSFORMERS_SOURCE does not name an unpacked source distribution of transformers"
    if not (SOURCE / "tests" / "test_modeling_common.py").is_file():
        return f"UNEPT_TRANSFORMERS_SOURCE={SOURCE} has no tests/test_modeling_common.py"
    init = (SOURCE / "src" / "transformers" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', init, re.MULTILINE)[1]
    if version != transformers.__version__:
        return f"UNEPT_TRANSFORMERS_SOURCE={SOURCE} is version {version}, not {transformers.__version__}"
    return None


def load_transformers_tests() -> tuple[types.ModuleType, ...]:
    """The modules with transformers' model, configuration and image processor tests, as a package of another name."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(SOURCE / "tests")]
    # What these modules import, but the source distribution leaves out: tests of other things.
    absent = {
        "transformers_tests.exporters": {},
        "transformers_tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        "transformers_tests.generation": {},
        "transformers_tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "transformers_tests.utils": {},
        "transformers_tests.utils.test_configuration_utils": {"config_common_kwargs": {}},
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
    }
    sys.modules[package.__name__] = package
    for name, attributes in absent.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    # It executes an `__init__.py` beside the tests, which the source distribution leaves out too.
    with mock.patch("transformers.utils.direct_transformers_import"):
        return tuple(
            importlib.import_module(f"{package.__name__}.test_{name}_common")
            for name in ("modeling", "configuration", "image_processing")
        )


problem = source_problem()
if problem is not None:
    pytest.skip(problem, allow_module_level=True)
modeling_common, configuration_common, image_processing_common = load_transformers_tests()


class UneptModelTester:
    def __init__(self, parent, **config):
        self.parent = parent
        self.batch_size = 2
        self.is_training = True
        self.image_size = 64
        self.num_channels = 3
        self.num_labels = 3
        self.hidden_size = 32
        self.num_attention_heads = 4
        self.num_feature_levels = 3
        self.num_sampling_points = 2
        # One encoder and one decoder layer.
        self.num_hidden_layers = 2
        self.config = config

    def get_config(self):
        config = {
            "hidden_size": self.hidden_size,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "num_attention_heads": self.num_attention_heads,
            "num_feature_levels": self.num_feature_levels,
            "num_sampling_points": self.num_sampling_points,
            "intermediate_size": 37,
            "query_grid_size": (self.image_size // 8, self.image_size // 8),
            "spatial_branch_channels": (8, 16, self.hidden_size),
            "num_channels": self.num_channels,
            "num_labels": self.num_labels,
        }
        return UneptConfig.from_preset("unept-tiny", **config, **copy.deepcopy(self.config))

    @property
    def level_sizes(self):
        """Height and width of the levels of the pyramid."""
        if self.get_config().backbone_config.model_type == "timm_backbone":
            return [self.image_size // 8] * 3
        return [self.image_size // stride for stride in (8, 16, 32)]

    @property
    def seq_length(self):
        return sum(size**2 for size in self.level_sizes)

    @property
    def num_queries(self):
        return (self.image_size // 8) ** 2

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": modeling_common.floats_tensor(shape)}


class UneptModelTesterMixin(modeling_common.ModelTesterMixin):
    all_model_classes = (UneptModel, UneptForSemanticSegmentation)
    test_resize_embeddings = False
    tester_kwargs: ClassVar[dict] = {}

    def setUp(self):
        self.model_tester = UneptModelTester(self, **self.tester_kwargs)
        self.config_tester = configuration_common.ConfigTester(
            self,
            config_class=UneptConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers", "num_channels"],
            hidden_size=64,
            spatial_branch_channels=[16, 64],
        )
        decoder_self_attention = self.model_tester.get_config().decoder_self_attention
        if "eager_matches_sdpa" in self._testMethodName and decoder_self_attention != "dense":
            self.skipTest("Only the dense decoder self-attention goes through transformers' attention interface.")
        # Where the tests look up which models of transformers have a head, and of which kind.
        for mapping, name in (
            (modeling_auto.MODEL_MAPPING_NAMES, "UneptModel"),
            (modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, "UneptForSemanticSegmentation"),
        ):
            patch = mock.patch.dict(mapping, {"unept": name})
            patch.start()
            self.addCleanup(patch.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if "labels" in inputs_dict:
            # Two classes, for the losses that learn from their boundary.
            inputs_dict["labels"][..., self.model_tester.image_size // 2 :] = 1
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_for_semantic_segmentation(self):
        config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
        model = UneptForSemanticSegmentation(config).eval()
        outputs = model(**self._prepare_for_class(inputs_dict, type(model), return_labels=True))
        side = self.model_tester.image_size // 8
        self.assertEqual(outputs.logits.shape, (self.model_tester.batch_size, config.num_labels, side, side))
        self.assertTrue(outputs.loss.isfinite())

    def test_model_get_set_embeddings(self):
        # As for every vision model: what is put in is not a table of token embeddings.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_attention_outputs(self):
        # As for Deformable DETR: the weights are those of the samples, not of the tokens.
        config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
        tester = self.model_tester
        samples = [tester.num_attention_heads, tester.num_feature_levels, tester.num_sampling_points]
        expected = [[tester.seq_length, *samples], [tester.num_queries, *samples]]
        if config.decoder_self_attention == "deformable":
            expected.insert(1, [tester.num_queries, tester.num_attention_heads, 1, tester.num_sampling_points])
        for model_class in self.all_model_classes:
            model = model_class._from_config(config, attn_implementation="eager").eval()
            inputs = self._prepare_for_class(inputs_dict, model_class)
            with torch.no_grad():
                plain_outputs = model(**inputs)
                outputs = model(**inputs, output_attentions=True)
                model.config.output_attentions = True
                config_outputs = model(**inputs)
                all_outputs = model(**inputs, output_hidden_states=True)
                model.config.output_attentions = False
            self.assertNotIn("attentions", plain_outputs)
            for attentions in (outputs.attentions, config_outputs.attentions, all_outputs.attentions):
                self.assertEqual([list(weights.shape[1:]) for weights in attentions], expected)
                for weights in attentions:
                    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(weights.shape[:-2]))
            self.assertEqual(len(all_outputs), len(outputs) + 1)
            torch.testing.assert_close(outputs[0], plain_outputs[0])


class UneptModelTest(UneptModelTesterMixin, unittest.TestCase):
    """A timm backbone, and the decoder self-attention of the presets."""


class UneptDenseModelTest(UneptModelTesterMixin, unittest.TestCase):
    """A timm backbone, and the decoder self-attention that goes through the attention interface."""

    tester_kwargs: ClassVar[dict] = {"decoder_self_attention": "dense"}


class UneptResNetModelTest(UneptModelTesterMixin, unittest.TestCase):
    """A backbone of transformers, the deformable self-attention, and none of the parts that can be left out."""

    tester_kwargs: ClassVar[dict] = {
        "backbone_config": ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 12, 16, 20],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_indices=[2, 3, 4],
        ),
        "decoder_self_attention": "deformable",
        "use_spatial_branch": False,
        "use_boundary_heads": False,
    }


IMAGE_PROCESSORS = {"torchvision": UneptImageProcessor, "pil": UneptImageProcessorPil}

# A process of its own does not know our classes, so this stands before the script that transformers' test runs there.
# The package's own `__init__` is left out: it imports timm, which needs torchvision.
REGISTRATION = f"""
import sys
import types
sys.modules["torchvision"] = None
package = types.ModuleType("unept_hf")
package.__path__ = {list(unept_hf.__path__)!r}
sys.modules["unept_hf"] = package
from transformers import AutoImageProcessor
from unept_hf.model.configuration_unept import UneptConfig
from unept_hf.model.image_processing_pil_unept import UneptImageProcessorPil
AutoImageProcessor.register(UneptConfig, image_processor_classes={{"pil": UneptImageProcessorPil}})
"""


def image_size(image) -> tuple[int, int]:
    """(height, width) of the images that transformers' tests make: NumPy has channels last, PyTorch first."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[:2] if isinstance(image, np.ndarray) else tuple(image.shape[1:])


class UneptImageProcessingTester(image_processing_common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        # Not through the constructor of the base class, which is another one in transformers 5.17.
        self.parent = parent
        self.image_processing_classes = IMAGE_PROCESSORS
        self.batch_size = 7
        self.num_channels = 3
        self.min_resolution = 30
        self.max_resolution = 400
        self.num_labels = 5
        self.size = {"height": 32, "width": 48}
        self.size_divisor = 16
        self.do_resize = True
        self.do_rescale = True
        self.do_normalize = True
        self.image_mean = [0.5, 0.5, 0.5]
        self.image_std = [0.5, 0.5, 0.5]
        self.do_pad = True
        self.do_reduce_labels = False
        for key, value in kwargs.items():
            setattr(self, key, value)

    def prepare_image_processor_dict(self):
        valid = UneptImageProcessor.valid_kwargs.__annotations__
        return {key: value for key, value in vars(self).items() if key in valid}

    def expected_output_image_shape(self, images):
        if "height" in self.size:
            return self.num_channels, self.size["height"], self.size["width"]
        sides = []
        for image in images:
            height, width = image_size(image)
            scale = min(
                self.size["shortest_edge"] / min(height, width), self.size["longest_edge"] / max(height, width)
            )
            sides.append([max(1, np.floor(side * scale / 16 + 0.5)) * 16 for side in (height, width)])
        return self.num_channels, *np.max(sides, axis=0)

    def prepare_post_process_semantic_segmentation_inputs(self):
        expected = {"num_labels": self.num_labels, "height": 24, "width": 36}
        logits = torch.randn(self.batch_size, *expected.values())
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, expected


class UneptImageProcessingTest(
    image_processing_common.ImageProcessingTestMixin,
    image_processing_common.PostProcessSemanticSegmentationTestMixin,
    unittest.TestCase,
):
    image_processor_tester_class = UneptImageProcessingTester
    image_processor_tester_kwargs: ClassVar[dict] = {}
    test_cast_dtype = torch.float32

    def setUp(self):
        self.image_processor_tester = self.image_processor_tester_class(self, **self.image_processor_tester_kwargs)

    # Both were attributes set by `setUp` in transformers 5.17 and are properties in 5.23.
    image_processing_classes = IMAGE_PROCESSORS

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()

    def test_call_numpy_4_channels(self):
        # The test of transformers 5.17 takes it for granted that processors leave four channels alone.
        self.image_processor_tester.do_convert_rgb = False
        super().test_call_numpy_4_channels()

    # transformers loads a photograph from the Hub. A smooth picture of its size does as well, without a network.
    def test_backends_equivalence(self):
        rows, columns = np.mgrid[:480, :640]
        waves = [np.sin(rows / a + columns / b) for a, b in ((17, 40), (90, 23), (31, -55))]
        image = Image.fromarray((127.5 * (np.stack(waves, -1) + 1)).astype(np.uint8))
        with mock.patch.object(image_processing_common, "load_test_image", return_value=image):
            super().test_backends_equivalence()

    def test_pil_can_run_without_torchvision(self):
        test = getattr(image_processing_common.ImageProcessingTestMixin, self._testMethodName, None)
        if test is None:
            self.skipTest("transformers 5.17 has no such test.")
        run = image_processing_common.subprocess.run

        def run_registered(command, **kwargs):
            executable, flag, script, *arguments = command
            return run([executable, flag, textwrap.dedent(REGISTRATION) + script, *arguments], **kwargs)

        # What is below transformers' `slow`, which would skip it: it takes a few seconds.
        with mock.patch.object(image_processing_common.subprocess, "run", run_registered):
            getattr(test, "__wrapped__", test)(self)


class UneptImageProcessingShortestEdgeTest(UneptImageProcessingTest):
    image_processor_tester_kwargs: ClassVar[dict] = {"size": {"shortest_edge": 48, "longest_edge": 100}}
