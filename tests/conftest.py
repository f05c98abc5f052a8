"""Settings of the whole suite."""

import logging

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models of the tests are so small that a second thread costs more than it brings."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def deprecations_in_logs():
    """Transformers calls some things deprecated in its log; pyproject.toml has the warnings that fail a test."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    handler.addFilter(lambda record: "deprecat" in record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "timm")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)
    assert not found
