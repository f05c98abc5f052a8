# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What tests of the image processors share."""

import pytest
from pictures import CLASSES


@pytest.fixture(params=list(CLASSES))
def processor(request):
    """A processor of each backend, with small images so that tests are quick."""
    return CLASSES[request.param](size={"shortest_edge": 32, "longest_edge": 128})
