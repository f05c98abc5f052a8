# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The processes of a training: their devices, their errors, their signals, and the workers of their data loaders."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from .arguments import RunArguments, refuse


__all__ = ["Interruption", "end_workers", "ignore_signals", "main_process_leads", "make_accelerator"]


def make_accelerator(run_args: RunArguments) -> Accelerator:
    """
    The object that knows the processes and their devices. A `ValueError` tells where Accelerate's launcher or
    configuration asks for something else than the options, or where trackers are not installed.
    """
    names = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    asked = next((name for name in names if parse_flag_from_env(f"ACCELERATE_USE_{name}")), None)
    on_cpu = run_args.cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    why = "cpu: true keeps the training off them" if on_cpu else "PyTorch finds none"
    refuse(
        asked is not None
        and (on_cpu or not torch.accelerator.is_available())
        and f"Accelerate's launcher or configuration asks for {asked}, which needs GPUs, but {why}: "
        f"{'drop cpu, or ' if on_cpu else ''}launch without {asked}."
    )
    accelerator = Accelerator(
        cpu=run_args.cpu,
        mixed_precision=run_args.mixed_precision,
        gradient_accumulation_steps=run_args.gradient_accumulation_steps,
        log_with=run_args.report_to or None,
        project_dir=run_args.output_dir,
        step_scheduler_with_optimizer=False,
    )
    steps = run_args.gradient_accumulation_steps
    trackers = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    missing = [name for name in run_args.report_to if name not in trackers]
    pieces = accelerator.num_processes * steps
    with main_process_leads(accelerator):
        refuse(
            accelerator.gradient_accumulation_steps != steps
            and f"gradient_accumulation_steps={steps}, but Accelerate's launcher or configuration says "
            f"{accelerator.gradient_accumulation_steps}: set both to the same value.",
            run_args.train_batch_size % pieces != 0
            and f"train_batch_size={run_args.train_batch_size} cannot be shared by {accelerator.num_processes} "
            f"process(es) with gradient_accumulation_steps={steps}: make it a multiple of {pieces}.",
            run_args.ema_decay > 0
            and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
            and "ema_decay needs whole weights in each process: use DDP, or set ema_decay=0.",
            bool(missing) and f"report_to={missing}: not installed. Try: pip install {' '.join(missing)}",
        )
    return accelerator


@contextmanager
def main_process_leads(accelerator: Accelerator) -> Iterator[None]:
    """
    The main process runs the block first, and the others after it. An error of the main process ends the others
    without a message, because they would meet the same error, or wait for the main process in vain.
    """
    if accelerator.is_main_process:
        try:
            yield
        except BaseException:
            broadcast_object_list([True])
            raise
        broadcast_object_list([False])
    else:
        if broadcast_object_list([None])[0]:
            sys.exit(1)
        yield


class Interruption:
    """Notes the first SIGTERM or SIGINT, so that training can stop after the step. A second one acts as usual."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: str | None = None

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._receive) for number in self.signals}
        return self

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def ignore_signals(worker_id: int) -> None:
    """Keeps a data loader worker alive for the step that is being finished. `end_workers` ends it."""
    for number in Interruption.signals:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kills data loader workers that an error has left. Python would send a signal that they ignore, and wait."""
    workers = multiprocessing.active_children()
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for each
    for worker in workers:
        worker.kill()
