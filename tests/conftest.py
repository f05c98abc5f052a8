"""Settings of the whole suite."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models of the tests are so small that a second thread costs more than it brings."""
    torch.set_num_threads(1)
