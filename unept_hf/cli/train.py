# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`unept-hf train`: training from a configuration file and options."""

from collections.abc import Sequence


__all__ = ["EXAMPLES", "run"]

EXAMPLES = """\
examples:
  unept-hf train examples/configs/synthetic_harbour.yaml --output_dir runs/harbour
  accelerate launch -m unept_hf.cli train examples/configs/ade20k_deit_160k.yaml --data_dir ADEChallengeData2016"""


def run(args: Sequence[str]) -> int:
    """Trains with the words of the command line that follow `train`."""
    from ..training.run import command

    return command(list(args), program="unept-hf train")
