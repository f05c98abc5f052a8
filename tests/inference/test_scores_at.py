# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The scores of one pixel are those of the whole image."""

import pytest
import torch
from spread_models import synthetic_scenes_model

from unept_hf import UneptImageProcessor, segment
from unept_hf.inference.scores_at import scores_at
from unept_hf.synthetic.scenes import synthetic_scene


def test_scores_of_a_pixel():
    model, processor = synthetic_scenes_model(), UneptImageProcessor(size={"shortest_edge": 64})
    image = synthetic_scene(2, size=(90, 130))[0]
    slide = {"mode": "slide", "crop_size": 64, "stride": 32, "do_resize": False}
    for options in ({}, slide, {**slide, "flip": ["horizontal", "vertical"], "scales": [0.5, 1.0]}):
        scores = segment(model, processor, image, return_scores=True, **options).scores
        for x, y in ((0, 0), (129, 89), (70, 31)):
            found = scores_at(model, processor, image, (x, y), **options)
            torch.testing.assert_close(found, scores[:, y, x], rtol=0, atol=1e-6)
    for point in ((130, 0), (0, 90), (-1, 0)):
        with pytest.raises(ValueError, match=r"lies outside the image of 130 x 90 pixels"):
            scores_at(model, processor, image, point)
