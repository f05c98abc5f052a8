# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU and pixel accuracy, for `evaluate.load`, which takes the class that it finds in a file."""

from unept_hf.evaluation.evaluate_modules import MeanIoU


__all__ = ["MeanIoU"]
