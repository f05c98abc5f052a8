# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Trains UN-EPT on ADE20K, CamVid, Cityscapes, PASCAL-Context, a data set of the Hub, or your own images and masks.

    python examples/run_semantic_segmentation.py examples/configs/synthetic_harbour.yaml
    accelerate launch --num_processes 8 examples/run_semantic_segmentation.py \
        examples/configs/ade20k_resnet50_160k.yaml --data_dir ADEChallengeData2016 --output_dir ade20k

Options come from a YAML or JSON file, from the command line, or from both: the command line wins. docs/training.md
explains them. `unept-hf train` is the same.

The steps are those of `unept_hf.training.run.main`: parse the options, make the `Accelerator`, lock the output folder,
build a `SegmentationTrainer`, train, write the model. The training loop is `SegmentationTrainer.train`, in
unept_hf/training/trainer.py.
"""

import sys

from unept_hf.training.run import command


if __name__ == "__main__":
    sys.exit(command())
