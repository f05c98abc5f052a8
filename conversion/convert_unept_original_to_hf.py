# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
r"""
Converts a checkpoint of the original UN-EPT (amazon-research/unified-ept) into a directory for `from_pretrained`:

    python conversion/convert_unept_original_to_hf.py --checkpoint model.pth --preset unept-deit-base \
        --id2label ade20k --output unept-deit-base-ade20k

The directory is read back and compared with the checkpoint before it takes its name. Exit code 0, 1 when the
checkpoint cannot be converted (nothing is written then), or 2 for unknown arguments.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from original_state_dict import (
    add_shared_arguments,
    check_converted,
    convert_unept_state_dict,
    image_size,
    infer_sizes,
    load_config,
    run,
)
from torch import Tensor

from unept_hf import UneptConfig, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import load_class_list
from unept_hf.files import atomic_directory
from unept_hf.model.backbone_unept import read_state_dict


MAX_DIFFERENCE = 1e-4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_arguments(parser)
    parser.add_argument(
        "--id2label",
        required=True,
        help="classes: ade20k, cityscapes, pascal_context_59, pascal_context_60 or a JSON file",
    )
    parser.add_argument(
        "--decoder_self_attention",
        choices=("pointwise", "dense", "batch"),
        help="pointwise: the original's result for one image; dense: every query sees every query, with the "
        "original's weights; batch: pointwise, and in training over the batch, as in the original. Default: "
        "pointwise, or as in the file of --config",
    )
    parser.add_argument("--push_to_hub", metavar="REPOSITORY", help="also upload to this repository of the Hub")
    return parser.parse_args(argv)


def adopt_sizes(config: UneptConfig, sizes: dict, source: str | Path) -> None:
    """Gives `config`, which comes from `source`, the grid and image size of the checkpoint, and prints differences."""
    note = "{} is {} in the checkpoint, but {} in {}: the checkpoint's is taken."
    grid = tuple(config.query_grid_size)
    if grid != sizes["query_grid_size"]:
        print(note.format("query_grid_size", sizes["query_grid_size"], grid, source))
        config.query_grid_size = sizes["query_grid_size"]
    size = image_size(config)
    if size is not None and "img_size" in sizes and size != (sizes["img_size"],) * 2:
        print(note.format("img_size of the backbone", (sizes["img_size"],) * 2, size, source))
        model_args = getattr(config.backbone_config, "model_args", None) or {}
        config.backbone_config.model_args = {**model_args, "img_size": sizes["img_size"]}


def sample_weights(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Some weights of the original, at least one for each way in which names and layouts change, under their new names.
    They are spelled out here, without the rules of `original_state_dict` that they check.
    """
    queries = original["query_embed.weight"]
    side = math.isqrt(queries.shape[0])
    in_proj = original["context_branch.decoder.layers.0.self_attn.in_proj_weight"]
    samples = {
        "model.query_embeddings": queries.reshape(1, side, side, -1).permute(0, 3, 1, 2),
        "model.decoder_layers.0.self_attn.v_proj.weight": in_proj[-in_proj.shape[1] :],
    }
    for name, key in {
        "model.backbone._backbone.bn1.running_var": "backbone.stem.7.running_var",
        "model.backbone._backbone.conv1.4.weight": "backbone.stem.4.weight",
        "model.backbone._backbone.layer4.2.conv3.weight": "backbone.layer4.2.conv3.weight",
        "model.backbone._backbone.model.dist_token": "backbone.dist_token",
        "model.backbone._backbone.model.blocks.11.mlp.fc2.weight": "backbone.blocks.11.mlp.fc2.weight",
        "model.input_projections.2.weight": "layers.2.weight",
        "model.level_embed": "context_branch.level_embed",
        "model.encoder_layers.0.self_attn.sampling_offsets.bias": (
            "context_branch.encoder.layers.0.self_attn.sampling_offsets.bias"
        ),
        "model.encoder_layers.1.self_attn_layer_norm.weight": "context_branch.encoder.layers.1.norm1.weight",
        "model.encoder_layers.1.final_layer_norm.bias": "context_branch.encoder.layers.1.norm2.bias",
        "model.encoder_layers.1.mlp.fc1.weight": "context_branch.encoder.layers.1.linear1.weight",
        "model.decoder_layers.0.self_attn.out_proj.bias": "context_branch.decoder.layers.0.self_attn.out_proj.bias",
        "model.decoder_layers.0.self_attn_layer_norm.weight": "context_branch.decoder.layers.0.norm2.weight",
        "model.decoder_layers.0.cross_attn_layer_norm.weight": "context_branch.decoder.layers.0.norm1.weight",
        "model.decoder_layers.0.final_layer_norm.weight": "context_branch.decoder.layers.0.norm3.weight",
        "model.decoder_layers.1.mlp.fc2.weight": "context_branch.decoder.layers.1.linear2.weight",
        "model.spatial_branch.convolutions.0.weight": "spatial_branch.convblock1.conv1.weight",
        "model.spatial_branch.normalizations.2.running_mean": "spatial_branch.convblock3.bn.running_mean",
        "classifier.weight": "cls.weight",
        "classifier.bias": "cls.bias",
        "boundary_head.3.weight": "mask_head.3.weight",
        "direction_head.1.bias": "dir_head.1.bias",
    }.items():
        if key in original:
            samples[name] = original[key]
    return samples


def max_difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between tensors of the same name; NaN if a tensor holds any."""
    # The tensors' maximum keeps NaN, that of Python does not.
    return torch.stack([(actual[name] - value).abs().max() for name, value in expected.items()]).max().item()


@torch.no_grad()
def verify(model: UneptForSemanticSegmentation, original: dict[str, Tensor], folder: Path) -> None:
    """
    Reads the written directory back, and compares its outputs for one image with those of `model`, and some of its
    weights with the original checkpoint.

    Raises:
        ValueError: when an output or weight differs by more than `MAX_DIFFERENCE`.
    """
    reloaded = UneptForSemanticSegmentation.from_pretrained(folder, local_files_only=True).eval()
    weights = reloaded.state_dict()
    samples = sample_weights(original)
    weight_difference = max_difference(samples, weights)

    config = model.config
    # The size that it was trained on.
    shape = [config.num_channels, *(config.query_stride * size for size in config.query_grid_size)]
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    output_difference = max_difference(model(image), reloaded(image))
    print(
        f"Read back: the outputs for a random image of {shape[1]} x {shape[2]} differ by at most "
        f"{output_difference:.2g}, a sample of {len(samples)} weights from the checkpoint's by at most "
        f"{weight_difference:.2g}."
    )
    # NaN is not a success either.
    if not (output_difference <= MAX_DIFFERENCE and weight_difference <= MAX_DIFFERENCE):
        raise ValueError(
            f"The written model, read back, differs by more than {MAX_DIFFERENCE}: by {output_difference:.2g} in its "
            f"outputs, by {weight_difference:.2g} in its weights. Nothing was kept."
        )


def convert(args: argparse.Namespace) -> None:
    """
    Raises:
        OSError: when a file is missing, or the output cannot be written or uploaded.
        ValueError: when the checkpoint, the configuration and the class list do not fit together.
    """
    with atomic_directory(args.output, args.overwrite) as folder:
        class_list = load_class_list(args.id2label)
        config = load_config(args.preset, args.config, id2label=class_list.id2label, label2id=class_list.label2id)
        if args.decoder_self_attention is not None:
            config.decoder_self_attention = args.decoder_self_attention
        original = read_state_dict(args.checkpoint)
        sizes = infer_sizes(original)
        if sizes["num_labels"] != len(class_list):
            raise ValueError(
                f"{args.checkpoint} has {sizes['num_labels']} classes (cls.weight), but --id2label {args.id2label} "
                f"has {len(class_list)}; name the class list of its training."
            )
        adopt_sizes(config, sizes, args.preset or args.config)

        model = UneptForSemanticSegmentation(config).eval()
        converted, dropped = convert_unept_state_dict(original, config)
        check_converted(converted, model.state_dict())
        model.load_state_dict(converted, strict=False)
        for reason, keys in dropped.items():
            print(f"Left out: {', '.join(keys)}. Reason: {reason}.")

        processor = UneptImageProcessor(
            size_divisor=model.model.size_divisor, do_reduce_labels=class_list.reduce_labels
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        verify(model, original, folder)
    print(f"Wrote {args.output}: {model.num_parameters():,} parameters, {len(class_list)} classes.")
    if args.push_to_hub is not None:
        model.push_to_hub(args.push_to_hub)
        processor.push_to_hub(args.push_to_hub)
        print(f"Uploaded to {args.push_to_hub}.")


def main(argv: list[str] | None = None) -> int:
    return run(convert, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
