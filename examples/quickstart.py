"""
UN-EPT in two minutes: segment a street photograph with the model that ships with the package, then fine-tune a smaller
model on drawn harbors, whose classes it has never seen, and compare it before and after.

    python examples/quickstart.py
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import trange
from transformers import HfArgumentParser, set_seed

from unept_hf import (
    STREET_PHOTOS,
    SYNTHETIC_SCENES,
    UneptForSemanticSegmentation,
    UneptImageProcessor,
    evaluate_model,
    segment,
)
from unept_hf.data.class_lists import load_class_list
from unept_hf.synthetic.scenes import synthetic_scenes
from unept_hf.visualization.figures import draw_comparison, draw_overlay


STREET = Path(__file__).parents[1] / "docs" / "images" / "street.jpg"  # a test photograph of CamVid


@dataclass
class Arguments:
    """Options of the quickstart."""

    output_dir: str = field(default="quickstart_output", metadata={"help": "Directory for model and pictures."})
    image: str = field(default=str(STREET), metadata={"help": "Street photograph to segment."})
    train_scenes: int = field(default=400, metadata={"help": "Number of harbors to train on."})
    test_scenes: int = field(default=60, metadata={"help": "Number of held-out harbors to evaluate on."})
    steps: int = field(default=200, metadata={"help": "Number of training steps."})
    batch_size: int = field(default=8, metadata={"help": "Number of scenes in a training step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of the schedule."})
    seed: int = field(default=0, metadata={"help": "Seed of the new weights and the batches."})


def prepare(scenes, processor: UneptImageProcessor, chunk: int = 50) -> dict[str, torch.Tensor]:
    """Images, labels and boundary targets of all scenes, as tensors with one entry per scene."""
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


def main(args: list[str] | None = None) -> dict[str, float]:
    """Runs the quickstart and returns the metrics of the fine-tuned model on held-out harbors."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args)
    set_seed(arguments.seed)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    # The model of street photographs that ships with the package.
    model = UneptForSemanticSegmentation.from_pretrained(STREET_PHOTOS)
    processor = UneptImageProcessor.from_pretrained(STREET_PHOTOS)
    start = time.perf_counter()
    label_map = segment(model, processor, arguments.image).label_map
    seconds = time.perf_counter() - start
    figure = draw_overlay(arguments.image, label_map, model.config.id2label, model.config.class_colors)
    figure.savefig(output_dir / "street.png")
    print(f"Found {len(label_map.unique())} classes in the photograph in {seconds:.2f} s: {output_dir / 'street.png'}")

    # The model of drawn scenes is small enough to train on a laptop. With a new classifier, its weights learn the
    # classes of harbors.
    classes = load_class_list("synthetic")
    harbor_classes = load_class_list("synthetic_harbour")
    harbors = {"theme": "synthetic_harbour", "size": (128, 128)}
    train_scenes = synthetic_scenes(arguments.train_scenes, **harbors)
    test_scenes = synthetic_scenes(arguments.test_scenes, split="validation", **harbors)
    size = {"shortest_edge": 128, "longest_edge": 512}
    processor = UneptImageProcessor.from_pretrained(SYNTHETIC_SCENES, size=size, do_boundary_targets=True)
    model = UneptForSemanticSegmentation.from_pretrained(SYNTHETIC_SCENES)
    before = segment(model, processor, test_scenes[0]["image"]).label_map
    model = UneptForSemanticSegmentation.from_pretrained(
        SYNTHETIC_SCENES,
        id2label=harbor_classes.id2label,
        label2id=harbor_classes.label2id,
        class_colors=harbor_classes.palette,
        ignore_mismatched_sizes=True,
    )
    train(model, prepare(train_scenes, processor), arguments)
    model.save_pretrained(output_dir / "model")
    processor.save_pretrained(output_dir / "model")

    results = evaluate_model(model, processor, test_scenes, harbor_classes, boundary_f1=False)
    metrics = {name: results[name] for name in ("mean_iou", "overall_accuracy")}
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    image, truth = test_scenes[0]["image"], test_scenes[0]["label"]
    figure = draw_overlay(image, before, classes.id2label, classes.palette, title="before, in the classes it knew")
    figure.savefig(output_dir / "harbour_before.png")
    after = segment(model, processor, image).label_map
    figure = draw_comparison(image, truth, after, harbor_classes.id2label, harbor_classes.palette)
    figure.savefig(output_dir / "harbour_after.png")
    print(f"\n{arguments.test_scenes} held-out harbors, intersection over union:")
    for name, scores in results["per_category"].items():
        print(f"  {name:10} {scores['iou']:.3f}")
    print(f"mIoU {metrics['mean_iou']:.3f}, pixel accuracy {metrics['overall_accuracy']:.3f}")
    print(f"Everything is in {output_dir}: model/, street.png, harbour_before.png, harbour_after.png, metrics.json")
    return metrics


if __name__ == "__main__":
    main()
