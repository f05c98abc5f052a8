# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the trainer share."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from training_runs import new_state, run_in_process


@pytest.fixture(autouse=True)
def new_accelerate_state():
    yield
    new_state()


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already, so that a real kill costs no half minute."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_in_process.__module__])
    started = []
    # Without this, the preloading finds nothing and says nothing.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

    def start(arguments: list[str], errors: Path | None = None, **environment: str) -> multiprocessing.Process:
        """With a file for errors it runs as from a shell."""
        process = context.Process(target=run_in_process, args=(arguments, environment, errors))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
