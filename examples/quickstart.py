"""
UN-EPT from nothing to a segmented photograph: makes synthetic scenes, trains a tiny model on them for about a minute
on two CPU cores, saves it, loads it back through `pipeline`, and writes pictures of what it sees.

    python examples/quickstart.py
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from PIL import Image
from tqdm.auto import tqdm, trange
from transformers import HfArgumentParser, pipeline, set_seed

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.synthetic import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE, synthetic_scenes
from unept_hf.visualization import draw_comparison, draw_overlay


@dataclass
class Arguments:
    """Arguments of the quickstart."""

    output_dir: str = field(default="quickstart_output", metadata={"help": "Folder for the model and the pictures."})
    image: str | None = field(default=None, metadata={"help": "A photograph of yours to segment."})
    train_scenes: int = field(default=600, metadata={"help": "Number of scenes to train on."})
    test_scenes: int = field(default=60, metadata={"help": "Number of held-out scenes to measure on."})
    steps: int = field(default=300, metadata={"help": "Number of training steps."})
    batch_size: int = field(default=8, metadata={"help": "Number of scenes in a training step."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Highest learning rate of the schedule."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the batches and the scenes."})


def prepare(scenes, processor: UneptImageProcessor, chunk: int = 50) -> dict[str, torch.Tensor]:
    """Images, labels and boundary targets of all scenes, as tensors with one entry for each scene."""
    chunks = [
        processor(scenes[start : start + chunk]["image"], scenes[start : start + chunk]["label"], return_tensors="pt")
        for start in trange(0, len(scenes), chunk, desc="Preparing scenes")
    ]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def train(model: UneptForSemanticSegmentation, data: dict[str, torch.Tensor], arguments: Arguments) -> None:
    """Trains the model in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=arguments.learning_rate, total_steps=arguments.steps, pct_start=0.1
    )
    model.train()
    progress = trange(arguments.steps, desc="Training")
    for _ in progress:
        batch = torch.randint(len(data["labels"]), (arguments.batch_size,))
        loss = model(**{name: tensor[batch] for name, tensor in data.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()


def sample_photograph() -> Image.Image:
    """A rocket on its pad from scikit-image where that is installed, else the portrait that comes with matplotlib."""
    try:
        from skimage import data
    except ImportError:
        return Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    return Image.fromarray(data.rocket())


def segment(segmenter, image: Image.Image) -> np.ndarray:
    """Label map of an image, put together from the masks that the pipeline gives."""
    label_map = np.zeros((image.height, image.width), dtype=np.int64)
    for segment in segmenter(image):
        label_map[np.array(segment["mask"]) > 0] = segmenter.model.config.label2id[segment["label"]]
    return label_map


def main(args: list[str] | None = None) -> dict[str, float]:
    """Runs the quickstart and returns its metrics on the held-out scenes."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args)
    set_seed(arguments.seed)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    train_scenes = synthetic_scenes(arguments.train_scenes, seed=arguments.seed)
    test_scenes = synthetic_scenes(arguments.test_scenes, seed=arguments.seed, split="validation")
    processor = UneptImageProcessor(size={"shortest_edge": 128, "longest_edge": 512}, do_boundary_targets=True)
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny",
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,  # one minute is too short to overfit
        id2label=dict(enumerate(SYNTHETIC_CLASSES)),
        label2id={name: index for index, name in enumerate(SYNTHETIC_CLASSES)},
    )
    train(model, prepare(train_scenes, processor), arguments)
    model.save_pretrained(output_dir / "model")
    processor.save_pretrained(output_dir / "model")

    segmenter = pipeline("image-segmentation", model=str(output_dir / "model"))
    num_labels = len(SYNTHETIC_CLASSES)
    confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
    for scene in tqdm(test_scenes, desc="Evaluating"):
        pairs = np.array(scene["label"]).astype(np.int64) * num_labels + segment(segmenter, scene["image"])
        confusion += np.bincount(pairs.flatten(), minlength=num_labels**2).reshape(num_labels, num_labels)
    correct = confusion.diagonal()
    iou = correct / (confusion.sum(0) + confusion.sum(1) - correct)
    metrics = {"mean_iou": float(iou.mean()), "pixel_accuracy": float(correct.sum() / confusion.sum())}

    scene = test_scenes[0]
    classes = {"id2label": model.config.id2label, "palette": SYNTHETIC_PALETTE}
    figure = draw_comparison(scene["image"], scene["label"], segment(segmenter, scene["image"]), **classes)
    figure.savefig(output_dir / "scene.png")
    photograph = Image.open(arguments.image).convert("RGB") if arguments.image else sample_photograph()
    figure = draw_overlay(photograph, segment(segmenter, photograph), title="it never saw a photograph", **classes)
    figure.savefig(output_dir / "photograph.png")
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"\n{arguments.test_scenes} held-out scenes, intersection over union:")
    for name, value in zip(SYNTHETIC_CLASSES, iou):
        print(f"  {name:10} {value:.3f}")
    print(f"mIoU {metrics['mean_iou']:.3f}, pixel accuracy {metrics['pixel_accuracy']:.3f}")
    print(f"Everything is in {output_dir}: model/, scene.png, photograph.png, metrics.json")
    return metrics


if __name__ == "__main__":
    main()
