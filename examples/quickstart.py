"""
UN-EPT in two minutes: segments a scene with the checkpoint that comes with the package, then fine-tunes that model on
harbours, whose classes it has never seen, and shows it before and after.

    python examples/quickstart.py
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import trange
from transformers import HfArgumentParser, set_seed

from unept_hf import SYNTHETIC_SCENES, UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.data.class_lists import ClassList, load_class_list
from unept_hf.evaluation.evaluate import evaluate_model
from unept_hf.inference.segment import segment
from unept_hf.synthetic.scenes import synthetic_scene, synthetic_scenes
from unept_hf.visualization.figures import draw_comparison, draw_overlay


@dataclass
class Arguments:
    """Arguments of the quickstart."""

    output_dir: str = field(default="quickstart_output", metadata={"help": "Folder for the model and the pictures."})
    image: str | None = field(default=None, metadata={"help": "A photograph of yours to segment as well."})
    train_scenes: int = field(default=400, metadata={"help": "Number of harbours to train on."})
    test_scenes: int = field(default=60, metadata={"help": "Number of held-out harbours to measure on."})
    steps: int = field(default=200, metadata={"help": "Number of training steps."})
    batch_size: int = field(default=8, metadata={"help": "Number of scenes in a training step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of the schedule."})
    seed: int = field(default=0, metadata={"help": "Seed of the new weights and the batches."})


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


def picture_options(classes: ClassList) -> dict:
    return {"id2label": classes.id2label, "palette": classes.palette}


def main(args: list[str] | None = None) -> dict[str, float]:
    """Runs the quickstart and returns the metrics of the fine-tuned model on held-out harbours."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args)
    set_seed(arguments.seed)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    # The model that comes with the package, on a scene of the kind that it was trained on.
    model = UneptForSemanticSegmentation.from_pretrained(SYNTHETIC_SCENES)
    processor = UneptImageProcessor.from_pretrained(SYNTHETIC_SCENES)
    scene, truth = synthetic_scene(2**31)  # where the held-out scenes begin
    classes = load_class_list("synthetic")
    start = time.perf_counter()
    label_map = segment(model, processor, scene).label_map
    seconds = time.perf_counter() - start
    figure = draw_comparison(scene, truth, label_map, **picture_options(classes))
    figure.savefig(output_dir / "scene.png")
    print(f"Segmented a scene into {len(label_map.unique())} classes in {seconds:.2f} s: {output_dir / 'scene.png'}")
    if arguments.image:
        label_map = segment(model, processor, arguments.image).label_map
        figure = draw_overlay(arguments.image, label_map, **picture_options(classes))
        figure.savefig(output_dir / "photograph.png")
        print(f"It never saw a photograph, but tried yours: {output_dir / 'photograph.png'}")

    # The same weights, but for the classifier, learn other classes on smaller scenes.
    harbour_classes = load_class_list("synthetic_harbour")
    harbours = {"theme": "synthetic_harbour", "size": (128, 128)}
    train_scenes = synthetic_scenes(arguments.train_scenes, **harbours)
    test_scenes = synthetic_scenes(arguments.test_scenes, split="validation", **harbours)
    size = {"shortest_edge": 128, "longest_edge": 512}
    processor = UneptImageProcessor.from_pretrained(SYNTHETIC_SCENES, size=size, do_boundary_targets=True)
    before = segment(model, processor, test_scenes[0]["image"]).label_map
    model = UneptForSemanticSegmentation.from_pretrained(
        SYNTHETIC_SCENES,
        id2label=harbour_classes.id2label,
        label2id=harbour_classes.label2id,
        ignore_mismatched_sizes=True,
    )
    train(model, prepare(train_scenes, processor), arguments)
    model.save_pretrained(output_dir / "model")
    processor.save_pretrained(output_dir / "model")

    results = evaluate_model(model, processor, test_scenes, harbour_classes, boundary_f1=False)
    metrics = {name: results[name] for name in ("mean_iou", "overall_accuracy")}
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    image, truth = test_scenes[0]["image"], test_scenes[0]["label"]
    figure = draw_overlay(image, before, title="before, in the classes it knew", **picture_options(classes))
    figure.savefig(output_dir / "harbour_before.png")
    after = segment(model, processor, image).label_map
    figure = draw_comparison(image, truth, after, **picture_options(harbour_classes))
    figure.savefig(output_dir / "harbour_after.png")
    print(f"\n{arguments.test_scenes} held-out harbours, intersection over union:")
    for name, scores in results["per_category"].items():
        print(f"  {name:10} {scores['iou']:.3f}")
    print(f"mIoU {metrics['mean_iou']:.3f}, pixel accuracy {metrics['overall_accuracy']:.3f}")
    print(f"Everything is in {output_dir}: model/, scene.png, harbour_before.png, harbour_after.png, metrics.json")
    return metrics


if __name__ == "__main__":
    main()
