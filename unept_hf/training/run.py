# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""A whole training: from the words of a command line to the model and its metrics."""

import errno
import logging
import multiprocessing.util
import os
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..files import make_directory
from .arguments import parse_arguments
from .checkpoints import latest_checkpoint, lock_folder
from .learning_rate_range import learning_rate_range
from .processes import end_workers, main_process_leads, make_accelerator
from .trainer import SegmentationTrainer


__all__ = ["command", "main"]

# Errors of options, files, disks and data, rather than of the code.
_USER_ERRORS = (
    ValueError, OSError, ImportError, FloatingPointError, SafetensorError, StrictDataclassError, torch.OutOfMemoryError
)  # fmt: skip


def main(args: list[str] | None = None, program: str | None = None) -> dict[str, Any]:
    """
    Trains, and returns the metrics of the last evaluation of this process.

    Args:
        args: Words of a command line; those of this process by default.
        program: Name of the command in messages and help; that of the running script by default.

    Raises:
        ValueError: for options that cannot be used, and for data or checkpoints that do not fit them.
        OSError: for files that cannot be read or written, and when the disk is full.
        FloatingPointError: when the loss is not finite.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    model_args, data_args, run_args = parse_arguments(sys.argv[1:] if args is None else args, program)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if run_args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    multiprocessing.util.Finalize(None, end_workers, exitpriority=0)  # before Python waits for them
    accelerator = make_accelerator(run_args)
    output_dir = Path(run_args.output_dir)
    with ExitStack() as stack:
        with main_process_leads(accelerator):
            if accelerator.is_main_process:
                stack.enter_context(lock_folder(make_directory(output_dir)))
        trainer = SegmentationTrainer(accelerator, model_args, data_args, run_args)
        if run_args.dry_run:
            trainer.draw_crops()
            accelerator.end_training()
            return {}
        try:
            if run_args.lr_range_test:
                learning_rate_range(trainer)
            elif trainer.train():
                trainer.finish()
        except Exception as error:
            if not _is_full_disk(error):
                raise
            newest, free = latest_checkpoint(output_dir), shutil.disk_usage(output_dir).free
            raise OSError(
                f"No space left on the disk ({error}). Without the unfinished files, {free / 1e6:.1f} MB are free in "
                f"{output_dir}. {f'The last whole checkpoint is {newest}' if newest else 'There is no checkpoint yet'}"
                ". Make room, and go on with --resume_from_checkpoint latest."
            ) from error
        accelerator.end_training()
    return trainer.metrics


def _is_full_disk(error: Exception) -> bool:
    """Whether there was no room to write. PyTorch and safetensors say so in their own words."""
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return is_full or "inline_container.cc" in str(error) or "(os error 28)" in str(error)


def _message_of(error: Exception) -> str:
    """The message of an error for a user, in one line."""
    # From a data loader worker it brings the worker's traceback, whose last line names the error.
    message = re.split(rf"\n(?:\S+\.)?{type(error).__name__}: ", str(error))[-1]
    return " ".join(message.split()) or type(error).__name__


def command(args: list[str] | None = None, program: str | None = None) -> int:
    """
    `main` for a shell, with its arguments. Errors of a user are one line, unless --traceback is among the words; all
    other errors are raised. Returns the exit status.
    """
    args = sys.argv[1:] if args is None else args
    name = program or Path(sys.argv[0]).name
    try:
        main(args, program)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # With gloo, a process tells so that another one has ended, which has said why.
        is_alone = "gloo/transport" in str(error)
        if "--traceback" in args or not (isinstance(error, _USER_ERRORS) or is_alone):
            raise
        is_connected = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Before they are connected, all processes of a machine meet the same error; and a loss belongs to all of them.
        is_common = not is_connected or isinstance(error, FloatingPointError)
        if not is_common or int(os.environ.get("LOCAL_RANK", 0)) <= 0:
            process = f" (process {torch.distributed.get_rank()})" if is_connected else ""
            print(f"{name}: error{process}: {_message_of(error)}", file=sys.stderr)
        return 1
    return 0
