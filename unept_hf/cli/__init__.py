# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The command `unept-hf`, with a file for each of its commands. docs/command-line.md describes it."""

import argparse
import os
import sys
from collections.abc import Sequence

from transformers import HfArgumentParser
from transformers.utils import logging

from ..arguments import read_options, words_of_options
from ..version import __version__
from . import benchmark, convert_masks, data, env, evaluate, export, segment, train
from .command_line import add_command, message_of


__all__ = ["main"]

COMMANDS = (segment, convert_masks, data, train, evaluate, export, benchmark, env)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="unept-hf",
        description="UN-EPT semantic segmentation.",
        epilog="unept-hf <command> --help shows examples.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=HfArgumentParser)
    for command in COMMANDS:
        if command is train:  # which has a parser of its own
            commands.add_parser("train", add_help=False, help="training of a model on a data set")
        else:
            add_command(commands, command)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    args = list(sys.argv[1:] if args is None else args)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if args[:1] == ["train"]:
        return train.run(args[1:])
    try:
        readers = {"evaluate": read_options, "data": data.options_of_data}
        if args[1:] and args[0] in readers and args[1].endswith((".yaml", ".yml", ".json")):
            args[1:2] = words_of_options(readers[args[0]](args[1]))
        arguments = make_parser().parse_args(args)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"unept-hf {args[0]}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has closed it; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--traceback" in args:
            raise
        print(f"unept-hf {args[0]}: {message_of(error)}", file=sys.stderr)
        return 1
