# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of `unept-hf segment`."""

from dataclasses import dataclass, field

from ..inference.options import PredictionOptions


__all__ = ["SegmentationArguments"]


@dataclass
class SegmentationArguments(PredictionOptions):
    """How to predict, and what to write of each image."""

    output_dir: str = field(default="segmented", metadata={"help": "Folder for the results."})
    save: list[str] = field(
        default_factory=lambda: ["label_maps", "overlays", "areas"],
        metadata={
            "help": "What to write, each into a folder of that name: label maps (PNG, one class number for each "
            "pixel), pictures of the classes over the image, areas of the classes (JSON), pictures of the "
            "boundaries, pictures of what the refinement changes.",
            "choices": ["label_maps", "overlays", "areas", "boundaries", "refinement"],
        },
    )
    existing: str = field(
        default="error",
        metadata={
            "help": "What to do about results that are there already: stop before anything is done, skip the images "
            "that have all of theirs, or overwrite them.",
            "choices": ["error", "skip", "overwrite"],
        },
    )
    class_list: str | None = field(
        default=None,
        metadata={"help": "Name or JSON file of the classes, for their colours. Colour-blind-safe ones if not given."},
    )
    opacity: float = field(default=0.6, metadata={"help": "Of the colours in overlays, 0 to 1."})
    picture_size: int = field(default=1024, metadata={"help": "Pixels of the longer side in pictures."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity has to lie within 0 and 1, got {self.opacity}.")
        if self.picture_size < 1:
            raise ValueError(f"picture_size has to be at least 1 pixel, got {self.picture_size}.")
