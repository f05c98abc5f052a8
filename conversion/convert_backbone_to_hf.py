# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
r"""
Converts a pretrained DeiT (facebookresearch/deit) or ResNet-50-v1c (mmseg) into a backbone directory for
`model.load_pretrained_backbone`, to train a UN-EPT from:

    python conversion/convert_backbone_to_hf.py --checkpoint deit_base_distilled_patch16_384.pth \
        --preset unept-deit-base --output deit-base-480

Exit code 0, 1 when the checkpoint cannot be converted (nothing is written then), or 2 for unknown arguments.
"""

import argparse
import sys

import torch
from original_state_dict import (
    add_shared_arguments,
    check_converted,
    convert_backbone_state_dict,
    load_config,
    run,
)

from unept_hf import UneptModel
from unept_hf.files import atomic_directory
from unept_hf.model.backbone_unept import read_state_dict


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_arguments(parser)
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """
    Raises:
        OSError: when a file is missing, or the output cannot be written.
        ValueError: when the checkpoint does not fit the backbone of the preset or configuration.
    """
    with atomic_directory(args.output, args.overwrite) as folder:
        config = load_config(args.preset, args.config)
        original = read_state_dict(args.checkpoint)
        if "query_embed.weight" in original:
            raise ValueError(
                f"{args.checkpoint} is a whole UN-EPT, not a backbone; use convert_unept_original_to_hf.py."
            )
        model = UneptModel(config)
        converted, dropped = convert_backbone_state_dict(original, config)
        check_converted(converted, model.backbone.state_dict())
        model.backbone.load_state_dict(converted, strict=False)
        if "pos_embed" in original:
            before, after = original["pos_embed"].shape[1], converted["_backbone.model.pos_embed"].shape[1]
            if before != after:
                print(f"Resized the position embedding from {before} to {after} positions (bicubic).")
        for reason, keys in dropped.items():
            print(f"Left out: {', '.join(keys)}. Reason: {reason}.")

        model.backbone.save_pretrained(folder)
        model.load_pretrained_backbone(folder)
        weights = model.backbone.state_dict()
        changed = [key for key, value in converted.items() if not torch.equal(weights[key], value.to(weights[key]))]
        if changed:
            raise ValueError(f"The written backbone differs from the checkpoint in {', '.join(changed)}.")
    print(f"Wrote {args.output}: {model.backbone.num_parameters():,} parameters, read back without a difference.")


def main(argv: list[str] | None = None) -> int:
    return run(convert, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
