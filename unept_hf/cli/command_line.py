# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""What the commands share: their parsers, the choice of a device and a model, and the messages of errors."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..arguments import HubArguments, check_model_name, option
from ..inference.loading import load_model_and_processor
from ..model.configuration_unept import PRESETS


__all__ = [
    "DeviceArguments",
    "add_command",
    "choose_device",
    "load_model",
    "message_of",
    "options_from",
    "positive_integer",
    "usage_errors",
]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and leaves out defaults that say nothing."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


@dataclass
class DeviceArguments:
    """Where a model runs."""

    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")


def add_command(commands, module: Any) -> None:
    """
    Adds the command that a module describes: by its docstring, `USAGE`, `EXAMPLES`, `OPTIONS` (dataclasses), `run`
    and, for arguments beside the options, `add_arguments`.
    """
    name = module.__name__.rpartition(".")[2]
    description = module.__doc__.partition(": ")[2]
    parser = commands.add_parser(
        name,
        usage=f"%(prog)s {module.USAGE} [options]".replace("  ", " "),
        help=description.rstrip("."),
        description=f"{description[0].upper()}{description[1:]}",
        epilog=module.EXAMPLES,
        formatter_class=_HelpFormatter,
        dataclass_types=module.OPTIONS,
    )
    parser.set_defaults(run=module.run)
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser.add_argument)
    parser.add_argument("--traceback", action="store_true", help="Show the traceback of errors.")


def options_from(dataclass, arguments: argparse.Namespace):
    """The fields of a dataclass from parsed options."""
    with usage_errors(arguments):
        return dataclass(**{field.name: getattr(arguments, field.name) for field in fields(dataclass)})


@contextlib.contextmanager
def usage_errors(arguments: argparse.Namespace) -> Iterator[None]:
    """Ends the command with status 2 where a check of its options raises a `ValueError`."""
    try:
        yield
    except ValueError as error:
        print(f"unept-hf {arguments.command}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def positive_integer(text: str) -> int:
    """The type of an argument."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator where the machine has one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    usable = ["cpu"]
    if accelerator is not None:
        usable += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in usable:
        raise ValueError(f"--device {name} cannot be used here; use auto, {', '.join(usable)}.")
    return torch.device(name)


def load_model(name: str, arguments: argparse.Namespace, allow_preset: bool = False) -> tuple[Any, Any]:
    """A model in evaluation mode and its image processor, from a directory, the Hub, or a preset's name."""
    if allow_preset and name in PRESETS and not Path(name).exists():
        from .. import UneptForSemanticSegmentation, UneptImageProcessor

        model = UneptForSemanticSegmentation.from_preset(name)
        return model.eval(), UneptImageProcessor(**model.image_processor_options())
    check_model_name(name)
    options = {field.name: getattr(arguments, field.name) for field in fields(HubArguments)}
    return load_model_and_processor(name, **options)


def message_of(error: Exception) -> str:
    """The text of an error, with the name of errors whose text alone says too little."""
    says_enough = isinstance(error, (ValueError, OSError, ImportError, RuntimeError, TypeError)) and str(error)
    return str(error) if says_enough else f"{type(error).__name__}: {error}"
