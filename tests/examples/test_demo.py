# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo page: its functions, and the page itself in a headless Chromium, without a network.

As a program, this file takes the pictures of docs/demo.md: python tests/examples/test_demo.py docs/images
"""

import contextlib
import html
import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import zlib
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import anyio
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image, JpegImagePlugin

import unept_hf
from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor
from unept_hf.inference import segment as inference
from unept_hf.inference.optimize import optimize_for_inference
from unept_hf.inference.segment import SegmentationResult, segment
from unept_hf.palette import default_palette
from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.visualization.figures import draw_sampling_points, figure_to_image
from unept_hf.visualization.overlay import class_areas, percent
from unept_hf.visualization.sampling_points import sampling_points


gradio = pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[demo]"')

DEMO = Path(__file__).parents[2] / "examples" / "demo"
# Names that a model of somebody else may have for its classes.
CLASSES = (
    "sky & sea", "<b>ground</b>", "[building](/config)", "*tree* `oak` ~~elm~~", "$person$ \\(x\\)",
    "{{value}} ${value}",
)  # fmt: skip


def load_app():
    spec = importlib.util.spec_from_file_location("demo_app", DEMO / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


app = load_app()


def make_model(**kwargs) -> UneptForSemanticSegmentation:
    """A model with weights that make many regions of all classes."""
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset("unept-tiny", encoder_layers=1, decoder_layers=1, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 160, "longest_edge": 512})


@pytest.fixture(scope="module")
def model():
    """As the page uses it: another rounding could change a pixel."""
    return optimize_for_inference(make_tiny())


def make_tiny():
    return make_model(id2label=dict(enumerate(CLASSES)), label2id={name: index for index, name in enumerate(CLASSES)})


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "scene.png"
    synthetic_scene(5, size=(120, 200))[0].save(file)
    return file


@pytest.fixture
def demo(model, processor, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return app.Demo({"tiny": (model, processor)}, app.DemoArguments())


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bad_files(folder: Path, scene: Path) -> dict[str, tuple[Path, str]]:
    """Files that are not usable pictures, and the message of the page about each."""
    whole = scene.read_bytes()
    Image.open(scene).save(folder / "scene.jpg")
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    contents = {
        "text.png": b"This is not a picture.\n" * 20,
        "empty.png": b"",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (folder / "scene.jpg").read_bytes()[:2000],
        "huge.png": b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b""),
    }
    said = {"cut": "is damaged", "huge": "is too large"}
    files = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        files[name] = folder / name, said.get(name.split(".")[0], "not a picture")
    return files


def upload(file: Path) -> dict:
    """The value that the page sends for a file, after a copy to the place where Gradio puts it."""
    place = Path(os.environ["GRADIO_TEMP_DIR"], file.name)
    place.parent.mkdir(exist_ok=True)
    if file.exists():
        shutil.copy(file, place)
    return {"path": str(place)}


def said_of_scores(scores, x, y, escape=str, name="{}") -> str:
    """What the page says of the scores `(num_labels,)` of a pixel."""
    best = sorted(enumerate(scores.tolist()), key=lambda one: -one[1])[:3]
    listed = ", ".join(f"{name.format(escape(CLASSES[index]))} {escape(percent(score))}" for index, score in best)
    return f"Pixel ({x}, {y}), scores before refinement: {listed}. A larger point counts more."


def click(x, y) -> gradio.EventData:
    return gradio.EventData(None, {"index": [x, y]})


def read_png(file) -> np.ndarray:
    return np.array(Image.open(file))


# Its functions


def test_pictures_of_all_kinds(tmp_path):
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    deep = rng.integers(0, 2**16, (5, 7), dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    color.save(tmp_path / "color.png")
    color.convert("L").save(tmp_path / "gray.tiff")
    color.quantize(4).save(tmp_path / "palette.gif")
    color.convert("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    color.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = {
        "color.png": np.array(color),
        "gray.tiff": np.array(color.convert("L").convert("RGB")),
        "palette.gif": np.array(color.quantize(4).convert("RGB")),
        "alpha.webp": np.array(color),
        "turned.png": np.rot90(np.array(color), -1),
        "deep.png": np.repeat((deep / 257).round().astype(np.uint8)[..., None], 3, axis=-1),
    }
    for name, pixels in expected.items():
        got, file_format = app.read_picture(tmp_path / name, 1, app.TimeLimit(60))
        assert got.mode == "RGB"
        np.testing.assert_array_equal(np.array(got), pixels, err_msg=name)
        assert file_format.lower() == name.split(".")[1]


def test_bad_pictures_get_a_message(tmp_path, scene, demo, monkeypatch):
    files = bad_files(tmp_path, scene)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    files["float.tiff"] = tmp_path / "float.tiff", "floating-point"
    files["gone.png"] = tmp_path / "gone.png", "is gone"
    warnings = []
    monkeypatch.setattr(gradio, "Warning", lambda message, **kwargs: warnings.append(message))
    for name, (file, said) in files.items():
        with pytest.raises(gradio.Error) as error:
            demo.segment(upload(file), "tiny", "whole", 0)
        assert said in error.value.message, name
        assert str(tmp_path) not in error.value.message
        assert demo.check(upload(file)) is None, "the picture is taken away"
        assert warnings.pop() == error.value.message
    with pytest.raises(gradio.Error, match="no picture yet"):
        demo.segment(None, "tiny", "whole", 0)
    assert demo.check(None) is None


def test_limit_of_pixels(scene):
    assert app.read_picture(scene, 0.024, app.TimeLimit(60))[0].size == (200, 120)
    with pytest.raises(gradio.Error, match=r"too large: the limits are 0\.0239 million pixels"):
        app.read_picture(scene, 0.0239, app.TimeLimit(60))


def test_pictures_that_browsers_do_not_show_are_converted(tmp_path, scene, demo):
    assert demo.check(upload(scene)) == gradio.skip()
    Image.open(scene).save(tmp_path / "scene.tiff")
    converted = Path(demo.check(upload(tmp_path / "scene.tiff")))
    assert converted.name == "scene.png"
    np.testing.assert_array_equal(read_png(converted), read_png(scene))


def test_tiny_pictures(demo, tmp_path):
    for size in ((1, 1), (1, 300), (400, 3), (1000, 1)):
        Image.new("RGB", size, "red").save(tmp_path / "small.png")
        kept, *_ = demo.segment(upload(tmp_path / "small.png"), "tiny", "whole", 0)
        assert read_png(demo.show(kept, 2)[-1].value["path"]).shape == size[::-1]
        assert demo.look(kept, click(0, 0))[0].startswith("Pixel (0, 0), ")


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_label_maps_are_those_of_segment(demo, model, processor, scene, mode):
    kept, slider, shown, where, points, *results = demo.segment(upload(scene), "tiny", mode, 0)
    assert slider.interactive
    assert (shown.size, where, points.visible) == ((600, 360), app.NOT_CLICKED, False)
    options = {"mode": mode}
    if mode == "slide":  # the tiny preset's crop of 128, and a third of it
        options |= {"crop_size": 128, "stride": 42}
    assert results[0] == demo.show(kept, 0)[0]
    maps = []
    for steps in (0, 3):
        refinement = {"refine_boundaries": True, "boundary_steps": steps} if steps else {}
        expected = segment(model, processor, str(scene), **options, **refinement).label_map.numpy()
        summary, view, (before, after), download = demo.show(kept, steps)
        assert Path(download.value["path"]).name == "scene_label_map.png"
        maps.append(read_png(download.value["path"]))
        assert maps[-1].dtype == np.uint8
        np.testing.assert_array_equal(maps[-1], expected)
        assert summary.startswith(f"**200 x 120 pixels, {len(np.unique(expected))} classes**")
        assert before.size == after.size == shown.size
        assert (before != after) == bool(steps)
        for area in class_areas(expected):
            assert f"class-{area['id']}" in view
    changed = (maps[0] != maps[1]).mean()
    assert changed > 0
    assert summary.endswith(f"refinement changed {changed:.2%} of the pixels.")


def test_more_than_256_classes(processor, scene, demo):
    many = make_model(num_labels=300, semantic_loss_ignore_index=-100)
    demo.models["many"] = many, processor
    kept, *_ = demo.segment(upload(scene), "many", "whole", 0)
    label_map = read_png(demo.show(kept, 0)[-1].value["path"])
    assert label_map.dtype == np.uint16
    np.testing.assert_array_equal(label_map, segment(many, processor, str(scene)).label_map.numpy())
    assert label_map.max() > 255


def test_model_without_boundary_heads(processor, scene, demo):
    demo.models["plain"] = make_model(num_labels=6, use_boundary_heads=False), processor
    kept, slider, *_ = demo.segment(upload(scene), "plain", "whole", 0)
    assert not slider.interactive
    summary, _, (before, after), _ = demo.show(kept, 4)
    assert "predicts no boundaries" in summary
    assert before == after


def test_region_paths_cover_their_pixels():
    rng = np.random.default_rng(0)
    for mask in (rng.random((9, 13)) < 0.4, np.ones((3, 4), bool), np.zeros((3, 4), bool)):
        drawn = np.zeros(mask.shape, dtype=int)
        path = app.region_path(mask)
        runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
        assert "".join(f"M{x} {y}h{length}v1h-{back}z" for x, y, length, back in runs) == path
        for x, y, length, back in (map(int, run) for run in runs):
            assert length == back
            drawn[y, x : x + length] += 1
        np.testing.assert_array_equal(drawn, mask)


def test_names_of_classes_are_escaped():
    labels = np.ones((20, 60), dtype=int)
    labels[0, 0] = 0
    areas = class_areas(labels, {0: '<img src=x onerror="alert(1)">', 1: "sky & sea"})
    view = app.class_view(Image.new("RGB", (60, 20)), labels, areas, default_palette(2))
    assert "<img" not in view
    assert "sky &amp; sea · 99.9%" in view
    assert "&lt; 0.1%" in view


def test_sampling_points_of_a_clicked_pixel(demo, model, processor, scene):
    kept, *_ = demo.segment(upload(scene), "tiny", "slide", 0)
    options = {"mode": "slide", "crop_size": 128, "stride": 42}
    scores = segment(model, processor, str(scene), return_scores=True, **options).scores
    # The page shows 3 x 3 pixels for one.
    for index, point in (((0, 0), (0, 0)), ((599, 359), (199, 119)), ((302, 151), (100, 50))):
        text, picture = demo.look(kept, click(*index))
        label = kept.result.label_map[point[1], point[0]].item()
        assert text.startswith(f"Pixel {point}, scores before refinement: <b>{html.escape(CLASSES[label])}</b> ")
        assert text == said_of_scores(scores[:, point[1], point[0]], *point, html.escape, "<b>{}</b>")
    points = sampling_points(model, processor, str(scene), point)
    expected = figure_to_image(draw_sampling_points(str(scene), points))
    np.testing.assert_array_equal(read_png(picture.value["path"]), np.array(expected))
    assert demo.look(None, click(0, 0)) == (gradio.skip(), gradio.skip())
    assert demo.show(None, 3) == (gradio.skip(),) * 4


def test_errors_of_a_model_become_messages(demo, scene, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("a < b")

    monkeypatch.setattr(app, "segment", refuse)
    with pytest.raises(gradio.Error, match="a &lt; b"):
        demo.segment(upload(scene), "tiny", "whole", 0)

    def fill_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(app, "segment", fill_memory)
    with pytest.raises(gradio.Error, match="does not fit into memory"):
        demo.segment(upload(scene), "tiny", "whole", 0)


def test_time_limit(demo, scene):
    kept, *_ = demo.segment(upload(scene), "tiny", "whole", 0)
    demo.arguments.time_limit = 0
    for predict in (
        lambda: demo.segment(upload(scene), "tiny", "slide", 0),
        lambda: demo.look(kept, click(0, 0)),
    ):
        with pytest.raises(gradio.Error) as error:
            predict()
        assert error.value.message.startswith("That took longer than the limit of 0 seconds")
    demo.arguments.time_limit = 60
    assert torch.equal(demo.segment(upload(scene), "tiny", "whole", 0)[0].result.label_map, kept.result.label_map)


@pytest.mark.parametrize(
    "module, slow",
    [
        (JpegImagePlugin.JpegImageFile, "load_read"),
        (app, "image_to_tensor"),
        (inference.View, "band"),
        (inference, "segment_views"),
        (SegmentationResult, "refined"),
        (app, "resize_label_map"),
        (app, "overlay"),
        (app, "class_areas"),
        (app, "class_view"),
        (Image.Image, "save"),
        (app, "scores_at"),
        (app, "sampling_points"),
        (app, "draw_sampling_points"),
        (app, "figure_to_image"),
    ],
)
def test_time_limit_covers_all_that_is_done(demo, scene, tmp_path, monkeypatch, module, slow):
    Image.open(scene).resize((400, 240)).save(tmp_path / "scene.jpg", quality=95)  # more than is decoded at once
    picture = upload(tmp_path / "scene.jpg")
    clock = [0.0]

    def read_clock():
        return clock[0]

    monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=read_clock, perf_counter=read_clock, time=time.time))
    kept, *_ = demo.segment(picture, "tiny", "whole", 1)
    original = getattr(module, slow)

    def take_a_minute(*args, **kwargs):
        result = original(*args, **kwargs)
        clock[0] += 61
        return result

    monkeypatch.setattr(module, slow, take_a_minute)
    said = []
    monkeypatch.setattr(gradio, "Warning", lambda message, **kwargs: said.append(message))
    demo.check(picture)
    for ask in (
        lambda: demo.segment(picture, "tiny", "whole", 1),
        lambda: demo.show(kept, 1),
        lambda: demo.look(kept, click(0, 0)),
    ):
        try:
            ask()
        except gradio.Error as error:
            said.append(error.message)
    assert said and all(message.startswith("That took longer than the limit of 60 seconds") for message in said)
    monkeypatch.undo()


def test_pictures_that_are_too_long(tmp_path):
    Image.new("1", (2**20 + 1, 1)).save(tmp_path / "long.png")
    with pytest.raises(gradio.Error, match=r"is too large: .* and 1048576 on a side"):
        app.read_picture(tmp_path / "long.png", 16, app.TimeLimit(60))


def test_oldest_files_make_room(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    storage = app.Storage(100_000)
    for age in range(10):
        file = storage.folder / f"folder_{age}" / "file"
        file.parent.mkdir()
        file.write_bytes(bytes(10_000 if age else 0))
        os.utime(file, (time.time() - age * 60,) * 2)
    left = lambda: {int(file.parent.name[7:]) for file in storage.files()}  # noqa: E731
    storage.permanent = {storage.folder / "folder_9" / "file"}
    storage.make_room(0)
    assert left() == set(range(10))
    storage.make_room(28_000)  # the empty file counts for 8,192 bytes, that of the examples for none
    assert left() == {0, 1, 2, 3, 4, 5, 6, 9}
    assert not (storage.folder / "folder_8").exists()
    os.utime(storage.folder / "folder_3" / "file", (time.time() - 3601,) * 2)
    storage.make_room(0)
    assert left() == {0, 1, 2, 4, 5, 6, 9}
    with pytest.raises(ValueError, match="pass at least 42"):
        app.DemoArguments(max_total_megabytes=41)


def test_models_to_choose_among(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("UNEPT_DEMO_MODELS", raising=False)
    assert app.model_names([]) == [unept_hf.STREET_PHOTOS]
    monkeypatch.setenv("UNEPT_DEMO_MODELS", "one/model another/model")
    assert app.model_names([]) == ["one/model", "another/model"]
    assert app.model_names(["given"]) == ["given"]

    arguments = app.DemoArguments(device="cpu")
    models = app.load_models([str(folder)], arguments)
    assert list(models) == [f"{folder.parent.name}/tiny"]
    copy = shutil.copytree(folder.parent, tmp_path / folder.parent.name) / "tiny"
    with pytest.raises(ValueError, match=f"both be called {folder.parent.name}/tiny"):
        app.load_models([str(folder), str(copy)], arguments)
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="nothing is not a model directory"):
        app.main()


def test_colors_of_a_class_list(folder, demo, scene, tmp_path):
    names = [{"id": index, "name": name, "color": [index, 0, 250]} for index, name in enumerate(CLASSES)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": names}))
    arguments = app.DemoArguments(device="cpu", class_list=str(tmp_path / "classes.json"))
    demo.models = app.load_models([str(folder)], arguments)
    _, _, _, _, _, _, view, *_ = demo.segment(upload(scene), *demo.models, "whole", 0)
    assert set(re.findall(r"<i style=\"background: #(..)00fa\">", view)) <= {
        f"{index:02x}" for index in range(len(names))
    }
    assert view.count("00fa") > 1
    with pytest.raises(ValueError, match=f"--class_list camvid has 11 classes, but {folder.parent.name}/tiny has 6"):
        app.load_models([str(folder)], app.DemoArguments(device="cpu", class_list="camvid"))


def test_chosen_examples(scene, tmp_path):
    for name in ("b.jpg", "deep/a.png", "note.txt", "scan.tiff"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(scene).save(tmp_path / "mine" / name, "PNG" if name.endswith("txt") else None)
    chosen = app.chosen_examples(app.DemoArguments(examples=[str(scene), str(tmp_path / "mine")]))
    assert chosen == [str(scene), str(tmp_path / "mine" / "b.jpg"), str(tmp_path / "mine" / "deep" / "a.png")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(scene.read_bytes()[:300])
    for name, said in (
        ("empty", "has no pictures"), ("missing.png", "missing.png: "), ("broken.png", "is damaged"),
        ("mine/scan.tiff", "browsers do not show TIFF"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            app.chosen_examples(app.DemoArguments(examples=[str(tmp_path / name)]))
    with pytest.raises(ValueError, match=r"too large: the limits are 0\.01 million"):
        app.chosen_examples(app.DemoArguments(examples=[str(scene)], max_megapixels=0.01))


def test_space_card():
    data = SpaceCard.load(DEMO / "README.md").data
    assert (data.sdk, data.license) == ("gradio", "apache-2.0")
    assert (DEMO / data.app_file).is_file()
    least = re.search(r"gradio>=([\d.]+)", (DEMO / "requirements.txt").read_text()).group(1)
    assert data.sdk_version.startswith(least)


# The page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The last two make a camera that shows a test picture.
CHROMIUM_OPTIONS = (
    "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip


MOST_MEGABYTES = 16  # that all files of the page may have


@contextlib.contextmanager
def running_app(*arguments: str):
    """The address of a page that is being served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, str(DEMO / "app.py"), *arguments, "--server_port", str(port), "--device", "cpu"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                with contextlib.suppress(URLError), urlopen(address):
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"The demo ended with status {process.returncode}:\n{log.read()}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def open_browser():
    """A browser whose pages share a cache."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        try:
            yield browser.new_context(viewport={"width": 1280, "height": 860})
        finally:
            browser.close()


@pytest.fixture(scope="module")
def address(folder):
    limits = {"--max_megapixels": "3", "--max_megabytes": "1", "--max_total_megabytes": str(MOST_MEGABYTES)}
    with running_app(str(folder), *itertools.chain(*limits.items())) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason='playwright is not installed: pip install -e ".[test]"')
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path: apt-get install chromium, or install Google Chrome")
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#run")
    yield page
    assert "Traceback" not in page.content()
    assert not errors
    hosts = {urlsplit(url).netloc for url in requests if url.startswith("http")}
    assert hosts == {urlsplit(address).netloc}, "the page needs no network"
    page.close()


def post(address: str, body: bytes, content_type: str):
    """The status and the answer of the page."""
    try:
        with urlopen(Request(address, body, {"Content-Type": content_type}), timeout=60) as response:
            return 200, json.load(response)
    except HTTPError as error:
        return error.code, error.read().decode()


def send_files(address: str, *contents: bytes, name: str = "scene.png"):
    """Uploads files as browsers do."""
    start = f'--border\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join(start + content + b"\r\n" for content in contents) + b"--border--\r\n"
    return post(f"{address}/gradio_api/upload", body, "multipart/form-data; boundary=border")


def ask(address: str, event: int, data: list, session: str | None = None, **more) -> tuple[list | None, list[str]]:
    """The outputs of an event for a request without a browser, and all messages to the visitor."""
    session = session or uuid.uuid4().hex
    body = json.dumps({"fn_index": event, "session_hash": session, "data": data, **more}).encode()
    status, answer = post(f"{address}/gradio_api/queue/join", body, "application/json")
    if status != 200:
        return None, [answer]
    said = []
    with urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream:
            message = json.loads(line[6:]) if line.startswith(b"data: ") else {"msg": None}
            if message["msg"] == "log":
                said.append(message["log"])
            if message["msg"] == "process_completed":
                output = message["output"]
                return output.get("data"), said if message["success"] else [*said, output["error"]]
    raise AssertionError("the page did not answer")


@pytest.fixture(scope="module")
def events(address):
    """The numbers of the events of the page, and how many inputs each has."""
    with urlopen(f"{address}/config") as response:
        return {event["id"]: len(event["inputs"]) for event in json.load(response)["dependencies"]}


EXAMPLE, CHECK, SEGMENT, SEGMENT_EXAMPLE, SHOW, LOOK = range(6)


def assert_segments(address: str, folder: Path, path: str, session: str | None = None) -> str:
    """The page is up: it segments a picture. Returns the session."""
    session = session or uuid.uuid4().hex
    data, said = ask(address, SEGMENT, [{"path": path}, f"{folder.parent.name}/tiny", "whole", 0], session)
    assert said == [] and data[5].startswith("**200 x 120 pixels")
    return session


@pytest.mark.parametrize("extra", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "meta"])
def test_requests_reach_no_file_but_uploads(address, events, folder, scene, tmp_path, extra):
    _, (uploaded,) = send_files(address, scene.read_bytes())
    files = Path(uploaded).parent.parent
    (files / "link.png").symlink_to(scene)
    (files / "folder").symlink_to(scene.parent)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(files / "pipe.png")
    paths = {
        str(scene), str(tmp_path / "nothing.png"), str(tmp_path / "pipe.png"), str(files / "pipe.png"),
        str(files / "link.png"), str(files / "folder" / scene.name), str(files), str(files / "nothing.png"),
        f"{files}/../{scene.name}", f"{files}/{os.path.relpath(scene, files)}", os.path.relpath(scene),
        f"{address}/gradio_api/file={uploaded}", f"file://{uploaded}", "", "\0", "a" * 5000, "\ud800",
    }  # fmt: skip
    try:
        for path in [*sorted(paths), None, 3, [uploaded], {"path": uploaded + "x"}]:
            for event, inputs in events.items():
                for place in range(inputs):
                    data = [None, f"{folder.parent.name}/tiny", "whole", 0][:inputs]
                    data[place] = {"path": path, **extra}
                    returned, said = ask(address, event, data, event_data={"index": [0, 0], "value": None})
                    assert returned in (None, [None])
                    assert len(said) == 1 and said[0].startswith("The picture is gone: "), (event, place, path, said)
            for event_data in ({"path": path, **extra}, {"index": [1, 1], "value": [{"path": path, **extra}]}):
                for event, inputs in events.items():
                    returned, said = ask(address, event, [None] * inputs, event_data=event_data)
                    assert returned is None
                    assert len(said) == 1 and said[0].startswith("The picture is gone: "), (event, event_data, said)
            nested = {"path": uploaded, "orig_name": [{"path": path, **extra}]}
            assert ask(address, CHECK, [nested])[1][0].startswith("The picture is gone: ")
    finally:
        for name in ("link.png", "folder", "pipe.png"):
            (files / name).unlink()
    assert_segments(address, folder, uploaded)
    assert ask(address, CHECK, [{"path": uploaded, **extra}])[1] == []


def test_requests_that_no_page_sends_get_a_message(address, events, folder, scene):
    _, (uploaded,) = send_files(address, scene.read_bytes())
    model = f"{folder.parent.name}/tiny"
    session = assert_segments(address, folder, uploaded)
    file = {"path": uploaded}
    strange = [None, -1, 11, 0.5, 10**400, 1e308, float("nan"), float("inf"), "3", "<b>x</b>", [], [1], {}, {"a": 1}]
    wrong = {
        (SEGMENT, "There is no picture yet"): [[None, model, "whole", 0]],
        (SEGMENT, "The model cannot be"): [[file, value, "whole", 0] for value in [*strange, "other", "x" * 10**5]],
        (SEGMENT, "What the model sees cannot be"): [[file, model, value, 0] for value in [*strange, "sideways"]],
        (SEGMENT, "Boundary refinement cannot be"): [[file, model, "whole", value] for value in strange],
        (SHOW, "Boundary refinement cannot be"): [[None, value] for value in strange],
        (SEGMENT, "The picture is gone"): [[value, model, "whole", 0] for value in ({}, {"url": "data:,a"})],
        (CHECK, "The picture is gone"): [[{}], [{"url": f"{address}/gradio_api/file={uploaded}"}]],
    }
    not_understood = {
        SEGMENT: [[], [file], ["a", model, "whole", 0], [[file], model, "whole", 0], [3, model, "whole", 0]],
        CHECK: [[], ["a"], [[file]], [1e308]],
        EXAMPLE: [[], [99], [-99], ["a"], [[0]], [{}]],
        SHOW: [[], [None]],
        LOOK: [[]],
    }
    wrong |= {(event, "The server does not understand the request"): data for event, data in not_understood.items()}
    for (event, message), requests in wrong.items():
        for data in requests:
            _, said = ask(address, event, data, session)
            assert len(said) == 1 and said[0].startswith(message), (event, data, said)
            assert len(said[0]) < 300 and "<b>x" not in said[0]
    outside = [[-1, 0], [0, -1e-9], [600, 0], [0, 360], [10**400, 0], [float("nan"), 0]]
    for index in (None, 5, "ab", [], [1], [1, 2, 3], ["1", "1"], *outside):
        for event_data in ({"index": index, "value": None}, index):
            _, said = ask(address, LOOK, [None], session, event_data=event_data)
            assert len(said) == 1 and said[0].startswith("The pixel cannot be"), (event_data, said)
    # A request cannot bring what is kept of a picture, nor get at that of another visitor.
    nothing = ask(address, SHOW, [None, 3])
    assert nothing[1] == [] and "pixels" not in json.dumps(nothing)
    for kept in ({"file": str(scene)}, "kept", 3):
        assert ask(address, SHOW, [kept, 3]) == nothing
    for event in (-1, max(events) + 1, 10**30, "segment", None):
        data, said = ask(address, event, [file, model, "whole", 0])
        assert data is None and len(said) == 1
    # One prediction at a time: no way leads past the queue.
    for route in ("run/segment", "api/segment", "run/predict", "api/predict", "run/look"):
        body = {"fn_index": SEGMENT, "session_hash": session, "data": [file, model, "whole", 0]}
        status, _ = post(f"{address}/gradio_api/{route}", json.dumps(body).encode(), "application/json")
        assert status in (401, 403, 404), (route, status)
    data, said = ask(address, LOOK, [None], session, event_data={"index": [0, 0], "value": None})
    assert said == [] and data[0].startswith("Pixel (0, 0), ")


def test_space_for_uploads_is_bounded(address, folder, scene):
    rng = np.random.default_rng(0)
    _, (first,) = send_files(address, scene.read_bytes(), name="first.png")
    files = Path(first).parent.parent
    assert_segments(address, folder, first)
    for _ in range(MOST_MEGABYTES + 1):
        status, _ = send_files(address, rng.bytes(1_000_000))
        assert status == 200
        names = {"street.jpg", *(f"scene_{number}.png" for number in range(1, 5))}
        examples = {file for file in files.rglob("*") if file.name in names}
        kept = [file.stat().st_size for file in files.rglob("*") if file.is_file() and file not in examples]
        assert sum(kept) <= MOST_MEGABYTES * 2**20
    _, said = ask(address, SEGMENT, [{"path": first}, f"{folder.parent.name}/tiny", "whole", 0])
    assert said[0].startswith("The picture is gone")
    # The examples stay.
    for number in range(5):
        (example,), said = ask(address, EXAMPLE, [number])
        assert said == [] and Path(example["value"]["path"]).is_file()
    status, answer = send_files(address, *[rng.bytes(900_000)] * 3)
    assert status == 413 and "too long" in answer
    status, answer = post(f"{address}/gradio_api/queue/join", b" " * (2**20 + 1), "application/json")
    assert status == 413 and "too long" in answer
    _, (last,) = send_files(address, scene.read_bytes())
    assert_segments(address, folder, last)


def test_stalled_uploads_are_given_up(folder, scene):
    # There is room for two uploads at a time.
    limits = {"--max_megabytes": "1", "--max_total_megabytes": "4", "--time_limit": "1"}
    start = b"POST /gradio_api/upload HTTP/1.1\r\nHost: demo\r\nContent-Length: 1000\r\n"
    start += b"Content-Type: multipart/form-data; boundary=border\r\n\r\n"
    part = b'--border\r\nContent-Disposition: form-data; name="files"; filename="scene.png"\r\n\r\n'
    with running_app(str(folder), *itertools.chain(*limits.items())) as address, contextlib.ExitStack() as stack:
        place = urlsplit(address)
        stalled = [socket.create_connection((place.hostname, place.port), timeout=30) for _ in range(2)]
        for connection, body in zip(stalled, (b"", part)):
            stack.enter_context(connection).sendall(start + body)
        for connection in stalled:
            # Up to the end of the connection.
            answer = stack.enter_context(connection.makefile("rb")).read().decode()
            assert answer.startswith("HTTP/1.1 408 ") and "took longer than the limit of 1 seconds" in answer
        assert send_files(address, scene.read_bytes())[0] == 200


def test_time_limit_is_that_of_the_whole_upload(tmp_path, monkeypatch):
    # Each byte arrives within the limit, but all of them together would take ten times as long.
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    left = 100

    async def receive():
        nonlocal left
        await anyio.sleep(0.05)
        left -= 1
        return {"type": "http.request", "body": b"x", "more_body": left > 0}

    async def read(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    border = app.Border(read, app.Storage(2**30), max_file_size=2**20, time_limit=0.5)
    with pytest.raises(app.HTTPException) as error:
        anyio.run(border, {"type": "http", "path": "/gradio_api/upload"}, receive, None)
    assert error.value.status_code == 408 and border.uploads == 0


def test_time_limit_of_a_request_ends_with_its_body():
    # While a visitor waits for results, the server waits for the end of the connection.
    async def receive():
        if received:
            await anyio.sleep(0.5)
        return {"type": "http.disconnect"} if received else {"type": "http.request", "body": b"{}"}

    async def read(scope, receive, send):
        for _ in range(2):
            received.append((await receive())["type"])

    received = []
    border = app.Border(read, None, max_file_size=2**20, time_limit=0.1)
    anyio.run(border, {"type": "http", "path": "/gradio_api/queue/data"}, receive, None)
    assert received == ["http.request", "http.disconnect"]


def choose_file(page, file) -> None:
    page.set_input_files("#picture input[type=file]", file)


def press_segment(page) -> None:
    """Presses the button, and waits for the results."""
    before = page.inner_text("#summary")
    page.click("#run")
    page.wait_for_function("before => document.querySelector('#summary').innerText != before", arg=before)


def set_steps(page, steps: int) -> None:
    before = page.inner_text("#summary")
    page.fill("#steps input[type=number]", str(steps))
    page.press("#steps input[type=number]", "Enter")
    page.wait_for_function("before => document.querySelector('#summary').innerText != before", arg=before)


def download_label_map(page) -> tuple[str, np.ndarray]:
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, read_png(download.value.path())


def test_page_upload_run_refine_download(page, model, processor, scene):
    assert "Choose a picture and press Segment." in page.inner_text("#classes")
    assert page.is_disabled("#download")
    choose_file(page, scene)
    page.wait_for_selector("#picture img")
    press_segment(page)
    plain = segment(model, processor, str(scene)).label_map.numpy()
    name, label_map = download_label_map(page)
    assert name == "scene_label_map.png"
    np.testing.assert_array_equal(label_map, plain)

    page.get_by_role("tab", name="Boundary refinement").click()
    sides = page.locator("#both img")
    assert sides.count() == 2
    addresses = [sides.nth(index).get_attribute("src") for index in range(2)]
    set_steps(page, 3)
    refined = segment(model, processor, str(scene), refine_boundaries=True, boundary_steps=3).label_map.numpy()
    assert f"changed {(refined != plain).mean():.2%} of the pixels" in page.inner_text("#summary")
    np.testing.assert_array_equal(download_label_map(page)[1], refined)
    assert sum(sides.nth(index).get_attribute("src") != addresses[index] for index in range(2)) == 1

    page.check("#mode input[value=slide]")
    press_segment(page)
    options = {"mode": "slide", "crop_size": 128, "stride": 42, "refine_boundaries": True, "boundary_steps": 3}
    slid = segment(model, processor, str(scene), **options).label_map.numpy()
    assert (slid != refined).any()
    np.testing.assert_array_equal(download_label_map(page)[1], slid)


def test_page_tells_of_pixels_by_pointing_and_clicking(page, model, processor, scene):
    choose_file(page, scene)
    press_segment(page)
    label_map = segment(model, processor, str(scene)).label_map.numpy()
    box = page.locator("#classes .picture svg").bounding_box()
    rng = np.random.default_rng(0)
    for x, y in zip(rng.integers(200, size=8).tolist(), rng.integers(120, size=8).tolist()):
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 200, box["y"] + (y + 0.5) * box["height"] / 120)
        (name,) = page.locator("#classes .name:visible").all_inner_texts()
        label = label_map[y, x]
        assert name == f"{CLASSES[label]} · {(label_map == label).mean():.1%}"
    # The other way round: of all regions, only the region of the class in the list keeps its color.
    label = label_map[0, 0]
    page.hover(f"#classes li.class-{label}")
    fills = page.eval_on_selector_all(
        "#classes .picture path", "paths => paths.map(path => [path.className.baseVal, getComputedStyle(path).fill])"
    )
    assert [name for name, fill in fills if fill == "rgba(0, 0, 0, 0)"] == [f"class-{label}"]

    scores = segment(model, processor, str(scene), return_scores=True).scores
    page.get_by_role("tab", name="Scores and sampling points").click()
    assert page.inner_text("#where") == app.NOT_CLICKED
    assert page.locator("#points img").count() == 0
    image = page.wait_for_selector("#shown img")
    width, height = page.evaluate("image => [image.naturalWidth, image.naturalHeight]", image)
    assert (width, height) == (600, 360)
    box = image.bounding_box()
    # The picture lies in the middle of its box, as large as fits.
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    for label in np.unique(label_map):
        y, x = (int(place[0]) for place in np.nonzero(label_map == label))
        image.click(position={"x": left + (3 * x + 1.5) * scale, "y": top + (3 * y + 1.5) * scale})
        page.locator("#where", has_text=f"Pixel ({x}, {y}), ").wait_for()
        assert page.inner_text("#where") == said_of_scores(scores[:, y, x], x, y)
    page.wait_for_selector("#points img")
    points = sampling_points(model, processor, str(scene), (x, y))
    expected = figure_to_image(draw_sampling_points(str(scene), points))
    with urlopen(page.get_attribute("#points img", "src")) as response:
        np.testing.assert_array_equal(read_png(response), np.array(expected))


def test_page_survives_bad_uploads(page, scene, tmp_path, model, processor):
    files = bad_files(tmp_path, scene)
    Image.new("L", (2000, 1501)).save(tmp_path / "large.png")
    files["large.png"] = tmp_path / "large.png", "the limits are 3 million pixels"
    (tmp_path / "heavy.png").write_bytes(scene.read_bytes() + bytes(2**20))
    files["heavy.png"] = tmp_path / "heavy.png", "exceed the maximum allowed size of 1.0"
    messages = page.locator(".toast-body")
    for name, (file, said) in files.items():
        choose_file(page, file)
        messages.filter(has_text=said).wait_for()
        text = messages.inner_text()
        assert "Traceback" not in text and str(tmp_path) not in text, name
        page.click(".toast-close")
        messages.wait_for(state="detached")
        page.wait_for_selector("#picture input[type=file]", state="attached")
    page.click("#run")
    messages.filter(has_text="There is no picture yet").wait_for()
    page.click(".toast-close")

    choose_file(page, scene)
    press_segment(page)
    np.testing.assert_array_equal(download_label_map(page)[1], segment(model, processor, str(scene)).label_map.numpy())


def test_page_segments_examples_and_the_webcam(page):
    page.locator("button.gallery-item").nth(2).click()
    page.wait_for_selector("#classes .picture")
    assert "384 x 288 pixels" in page.inner_text("#summary")
    name, label_map = download_label_map(page)
    assert (name, label_map.shape) == ("scene_2_label_map.png", (288, 384))

    page.click("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']")
    page.click("#picture button[aria-label='Capture from camera']")
    page.click("#picture [title='grant webcam access']")
    page.wait_for_function("() => document.querySelector('#picture video')?.videoWidth > 0")
    page.click("#picture button[aria-label='capture photo']")
    page.wait_for_selector("#picture img[src]")
    press_segment(page)
    assert "1920 x 1440 pixels" in page.inner_text("#summary")


# The pictures of docs/demo.md


def take_pictures(output_dir: str, *models: str) -> None:
    with running_app(*models) as address, open_browser() as browser:
        page = browser.new_page()
        page.goto(address)
        page.locator("button.gallery-item").first.click()
        page.wait_for_selector("#classes .picture")

        def take(name, **options):
            page.wait_for_timeout(1500)  # until all has faded in
            page.screenshot(path=Path(output_dir) / f"demo_{name}.png", **options)

        page.hover("#classes li >> nth=1")
        take("classes")
        page.get_by_role("tab", name="Boundary refinement").click()
        set_steps(page, 4)
        take("refinement")
        page.get_by_role("tab", name="Scores and sampling points").click()
        image = page.locator("#shown img")
        box = image.bounding_box()
        image.click(position={"x": 0.47 * box["width"], "y": 0.55 * box["height"]})
        page.wait_for_selector("#points img")
        take("sampling", full_page=True)


if __name__ == "__main__":
    take_pictures(*sys.argv[1:])
