"""The benchmarks on photographs, on a few noisy pictures in the layout of CamVid."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import yaml
from torch import nn

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.evaluation.metrics import confusion_matrix, scores_from_confusion_matrix


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablations  # noqa: E402
import camvid_data  # noqa: E402
import camvid_peers  # noqa: E402
import photograph_figure  # noqa: E402
import training_loop  # noqa: E402


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Pictures of 48 x 32 pixels, with all 11 classes and void in their label maps."""
    root, rng = tmp_path_factory.mktemp("CamVid"), np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for index in range(count):
            labels = rng.integers(0, 12, (4, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            for folder, array in ((split, pixels), (f"{split}annot", labels)):
                (root / folder).mkdir(exist_ok=True)
                PIL.Image.fromarray(array).save(root / folder / f"photograph{index}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a classifier, whose statistics are not those of a new one."""
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """The recipe for small photographs, with round numbers."""
    options = yaml.safe_load(camvid_data.RECIPE.read_text())
    options |= {"max_steps": 2000, "warmup_steps": 100, "ema_decay": 0.99, "scale": [96, 64]}
    monkeypatch.setattr(camvid_data, "RECIPE", tmp_path / "recipe.yaml")
    camvid_data.RECIPE.write_text(yaml.safe_dump(options))
    return options


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1.0)

    def batches(first_step):
        for step in range(first_step, 4):
            generator = torch.Generator().manual_seed(step)
            yield torch.randn(2, 3, 8, 8, generator=generator), torch.randint(5, (2, 8, 8), generator=generator)

    def run(seed, checkpoint, settings="same", stop_after=None):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
        taken = []

        def loss_of(model, images, labels):
            if len(taken) == stop_after:
                raise KeyboardInterrupt
            taken.append(images)
            return nn.functional.cross_entropy(model(images).float(), labels)

        results = training_loop.train(
            model, loss_of, batches, optimizer, scheduler, 4, 0.5, checkpoint, {"steps": settings}
        )
        return model.state_dict(), results["final_loss"], len(taken)

    whole, loss, _ = run(0, None)
    file = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(0, file, stop_after=2)
    with pytest.raises(ValueError, match=r"comes from settings .*same"):
        run(0, file, settings="others")
    resumed, resumed_loss, steps = run(1, file)
    assert steps == 2 and resumed_loss == loss
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_recipe_in_fewer_steps(photographs, recipe):
    data = camvid_data.CamvidData(photographs, None, steps=200, batch_size=2, crop_size=64, learning_rate=1e-3)
    assert data.run_args.warmup_steps == 10
    assert data.run_args.ema_decay == pytest.approx(0.9)  # the last 10 of 200 steps, as the last 100 of 2,000
    assert camvid_data.CamvidData(photographs, None, steps=2).run_args.ema_decay == 0
    assert data.processor.image_mean == data.processor.image_std == (0.5, 0.5, 0.5)

    model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    optimizer, scheduler = data.optimizer_and_scheduler(model, model["backbone"])
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    factor = recipe["backbone_lr_multiplier"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-3 * factor])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]

    first, second = (batch for batch, _ in zip(data.batches(0, 0), range(2)))
    assert first[0].shape == (2, 3, 64, 64) and first[1].shape == (2, 64, 64)
    assert not torch.equal(first[0], second[0])
    for resumed, value in zip(next(data.batches(0, 1)), second):
        assert torch.equal(resumed, value)
    ((name, image, labels),) = data.examples()
    assert (name, image.shape, labels.shape) == ("photograph0", (1, 3, 64, 96), (32, 48))


def test_rows_start_from_the_same_weights(photographs, weights):
    data = camvid_data.CamvidData(photographs, weights, steps=1, crop_size=64)
    ablations.set_seed(0)
    full = data.make_unept(**ablations.CAMVID_BASE)
    expected = torch.load(weights)["blocks.2.0.bn1.running_mean"]
    assert torch.equal(full.model.backbone.state_dict()["_backbone.blocks.2.0.bn1.running_mean"], expected)
    assert full.config.num_sampling_points == 16 and full.config.decoder_self_attention == "pointwise"
    other = ablations.make_camvid_model("+ spatial branch", data, 0)
    assert not other.config.use_boundary_heads
    states = full.state_dict(), other.state_dict()
    assert states[1].keys() < states[0].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_peers_are_tuned_on_validation_and_tested_once(photographs, weights, tmp_path, monkeypatch):
    made = []

    def run_all(folder, commands, jobs):
        folder.mkdir(exist_ok=True)
        for name, command in commands.items():
            made.append(name)
            (options,) = camvid_peers.HfArgumentParser(camvid_peers.Arguments).parse_args_into_dataclasses(
                [*command, "--models", "UN-EPT"]
            )
            camvid_peers.run(options.worker, options)

    monkeypatch.setattr(camvid_peers, "run_all", run_all)
    options = f"--data_dir {photographs} --backbone_checkpoint {weights} --models UN-EPT --learning_rates 1e-3 3e-2"
    options += f" --steps 1 --batch_size 2 --crop_size 64 --runs {tmp_path / 'runs'} --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["camvid_peers.py", *options.split()])
    camvid_peers.main()
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    scores = {rate: results["runs"][f"train UN-EPT {rate} 0"]["mean_iou"] for rate in ("0.001", "0.03")}
    best = max(scores, key=scores.get)
    assert results["chosen"] == {"UN-EPT": float(best)}
    assert made == ["train UN-EPT 0.001 0", "train UN-EPT 0.03 0", f"test UN-EPT {best} 0"]

    matrix = np.zeros((11, 11), np.int64)
    for file in sorted((photographs / "testannot").iterdir()):
        truth = np.asarray(PIL.Image.open(file)).astype(int)
        prediction = np.asarray(PIL.Image.open(tmp_path / "runs" / f"test_UN-EPT_{best}_0" / file.name))
        matrix += confusion_matrix(prediction, np.where(truth == 11, 255, truth), 11)
    tested = results["runs"][f"test UN-EPT {best} 0"]
    assert tested["mean_iou"] == pytest.approx(scores_from_confusion_matrix(matrix)["mean_iou"])
    table = next(tmp_path.glob("*.md")).read_text()
    assert "| UN-EPT |" in table and "| UN-EPT, boundaries refined |" in table

    made.clear()
    camvid_peers.main()
    assert not made


def test_peers_have_the_backbone_of_timm(photographs, weights):
    pytest.importorskip("segmentation_models_pytorch")
    data = camvid_data.CamvidData(photographs, weights, steps=1, crop_size=64)
    classifier = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    classifier.load_state_dict(torch.load(weights), strict=False)
    images = torch.randn(1, 3, 64, 96)
    for name in ("FPN", "Unet"):
        model = camvid_peers.make_model(name, data).eval()
        with torch.no_grad():
            for found, expected in zip(model.encoder(images)[1:], classifier(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            labels = torch.randint(11, (1, 64, 96))
            assert camvid_peers.peer_loss_of(None, model, images, labels) > 0
            assert camvid_peers.peer_label_maps_of(model, images, (30, 50))[""].shape == (1, 30, 50)


def test_photographs_of_the_figure_follow_a_rule():
    assert photograph_figure.evenly_spread(233, 6) == [19, 58, 97, 135, 174, 213]
    assert photograph_figure.evenly_spread(2, 6) == [0, 1]
    truth, label_map = np.array([[0, 1, 255]]), np.array([[0, 2, 3]])
    expected = [[[255, 255, 255], photograph_figure.WRONG, [0, 0, 0]]]
    assert np.array_equal(photograph_figure.error_map(label_map, truth), expected)


def test_figure_of_photographs(photographs, tmp_path, monkeypatch):
    make_model = partial(UneptForSemanticSegmentation.from_preset, "unept-tiny")
    make_model(num_labels=11).save_pretrained(tmp_path / "model")
    UneptImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}).save_pretrained(tmp_path / "model")
    options = f"--data_dir {photographs} --model_name_or_path {tmp_path / 'model'} --predictions {tmp_path} --peer FPN"
    options += f" --count 2 --output {tmp_path / 'figure.png'}"
    monkeypatch.setattr(sys, "argv", ["photograph_figure.py", *options.split()])
    with pytest.raises(ValueError, match=r"photograph0\.png does not exist"):
        photograph_figure.main()
    for index in range(2):
        PIL.Image.new("L", (48, 32), 3).save(tmp_path / f"photograph{index}.png")
    drawn = []
    draw = photograph_figure.draw
    monkeypatch.setattr(photograph_figure, "draw", lambda rows: drawn.append(rows) or draw(rows))
    photograph_figure.main()
    (rows,) = drawn
    assert [len(row) for row in rows] == [6, 6]
    truth = np.asarray(PIL.Image.open(photographs / "testannot" / "photograph1.png"))
    assert (rows[1]["ground truth"][truth == 11] == 0).all()
    errors = rows[1]["errors of FPN"]
    assert (errors[truth == 3] == 255).all() and (errors[truth == 11] == 0).all()
    assert PIL.Image.open(tmp_path / "figure.png").width > 1000
    make_model(num_labels=5).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has 5 classes"):
        photograph_figure.main()
