# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
A page to try models on: upload a picture, see its classes, refine boundaries, look at sampling points.

    python examples/demo/app.py                      (the model of street photographs that ships with unept-hf)
    python examples/demo/app.py my-model owner/name  (your own models, to choose among)

docs/demo.md describes the page, and how to publish this directory as a Space.
"""

import base64
import contextlib
import html
import io
import math
import os
import reprlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import gradio as gr
import numpy as np
import PIL.Image
import torch
from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from torch.overrides import TorchFunctionMode
from transformers import HfArgumentParser

import unept_hf
from unept_hf.arguments import HubArguments
from unept_hf.cli.command_line import choose_device, load_model
from unept_hf.cli.segment import files_below
from unept_hf.data.class_lists import load_class_list
from unept_hf.inference.optimize import optimize_for_inference
from unept_hf.inference.options import PredictionOptions
from unept_hf.inference.scores_at import scores_at
from unept_hf.inference.segment import SegmentationResult, segment
from unept_hf.model.image_preprocessing import resize_label_map
from unept_hf.model.image_reading import LONGEST_SIDE, image_to_tensor
from unept_hf.synthetic.scenes import synthetic_scenes
from unept_hf.visualization.figures import draw_sampling_points, figure_to_image
from unept_hf.visualization.overlay import class_areas, class_palette, overlay, percent, shown_size
from unept_hf.visualization.sampling_points import sampling_points


# A public page opens files of strangers, so it uses only these decoders. PostScript, for example, would run programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
NOT_IN_BROWSERS = ("TIFF",)
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")  # of the others

STREET = Path(__file__).parents[2] / "docs" / "images" / "street.jpg"  # which a copy of this directory lacks
MOST_STEPS = 10
SHOWN_SCORES = 3
SHOWN_SIZE = 768  # pixels of the longer side of a picture on the page; small ones are enlarged to have thin lines
KEPT_SECONDS = 3600  # how long files of visitors stay on the disk
MOST_VISITORS = 32  # whose last results are kept, at a few bytes for each pixel
MESSAGE_SECONDS = 20
LONGEST_BODY = 2**20  # bytes of a request, without the file in it
SMALLEST_FILE = 2**13  # bytes on the disk, with its directory
DECODED_BYTES = 2**12  # bytes of a file that are decoded between two looks at the clock
MODES = {"Whole image": "whole", "Sliding windows": "slide"}

TITLE = "UN-EPT semantic segmentation"
EMPTY = '<p class="empty">Choose a picture and press <b>Segment</b>.</p>'
HINT = '<li class="hint">Point at the picture, or at a class.</li>'
NOT_CLICKED = (
    "Click a pixel to see the scores of its classes, and where the model looks when it decides on that pixel."
)

CSS = """
.empty { padding: 4rem 1rem; text-align: center; color: var(--body-text-color-subdued); }
.classes .picture { position: relative; margin: auto; }
.classes svg { display: block; width: 100%; }
.classes path { fill: transparent; shape-rendering: crispEdges; cursor: crosshair; }
.classes .name { display: none; position: absolute; left: 8px; bottom: 8px; padding: 4px 10px; border-radius: 6px;
    background: rgb(0 0 0 / 80%); color: white; font-weight: 600; pointer-events: none; }
.classes ul { display: flex; flex-wrap: wrap; gap: 6px; margin: 10px 0 0; padding: 0; list-style: none; }
.classes li { display: flex; align-items: center; gap: 8px; padding: 3px 10px; border-radius: 6px; cursor: default;
    border: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.classes li:hover { background: var(--background-fill-secondary); }
.classes i { width: 14px; height: 14px; border-radius: 3px; border: 1px solid rgb(0 0 0 / 40%); }
.classes li.hint { border: none; background: none; color: var(--body-text-color-subdued); }
.classes small { color: var(--body-text-color-subdued); }
"""


@dataclass(kw_only=True)
class DemoArguments(HubArguments):
    """Options of the page."""

    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 or mps."})
    max_megapixels: float = field(default=16, metadata={"help": "Largest picture, in millions of pixels."})
    max_megabytes: int = field(default=20, metadata={"help": "Largest file, in MB (2**20 bytes)."})
    max_total_megabytes: int = field(
        default=2000, metadata={"help": "MB of the files of all visitors together. The oldest are deleted."}
    )
    class_list: str | None = field(
        default=None,
        metadata={"help": "Name or JSON file of the classes, for their colors; by default those of each model."},
    )
    examples: list[str] = field(
        default_factory=list,
        metadata={"help": "Pictures, or directories of pictures, to offer as examples instead of our own."},
    )
    time_limit: float = field(default=60, metadata={"help": "Seconds for an upload, and then for its results."})
    server_name: str | None = field(
        default=None, metadata={"help": "Address to listen at: 0.0.0.0 admits other machines."}
    )
    server_port: int | None = field(
        default=None, metadata={"help": "Port to listen at: the first free one from 7860 on by default."}
    )

    def __post_init__(self):
        least = 2 * self.max_megabytes + 2
        if self.max_total_megabytes < least:
            raise ValueError(
                f"--max_total_megabytes {self.max_total_megabytes} leaves no room for uploads of --max_megabytes "
                f"{self.max_megabytes}: pass at least {least}."
            )


@dataclass
class Segmentation:
    """The last picture of a visitor, kept to refine its boundaries and to look into the model."""

    file: Path
    model_name: str
    options: PredictionOptions
    shown: PIL.Image.Image
    result: SegmentationResult  # not refined, with integers and booleans of one byte where possible
    seconds: float


def problem(message: str) -> gr.Error:
    """A message of HTML on the page."""
    return gr.Error(message, duration=MESSAGE_SECONDS, print_exception=False)


def unknown(what: str, value, remedy: str) -> gr.Error:
    """A message about a value that the page does not offer, but a request can contain."""
    return problem(f"{what} cannot be {html.escape(reprlib.repr(value))}: {remedy}.")


class TimeLimit(TorchFunctionMode):
    """
    Stops a request when its time is up: in the block that this spans, before each operation of PyTorch (of models and
    of the code around them), and wherever `check` is called.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise problem(
                f"That took longer than the limit of {self.seconds:g} seconds. Choose a smaller picture, or let the "
                "model see the whole image."
            )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.check()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[TimeLimit]:
    """Limits the time of a block, and turns the errors in it into messages on the page."""
    try:
        with TimeLimit(seconds) as limit:
            yield limit
    except gr.Error:  # a kind of ValueError
        raise
    except torch.OutOfMemoryError as error:
        raise problem("The picture does not fit into memory. Choose a smaller one.") from error
    except ValueError as error:
        raise problem(html.escape(str(error))) from error


class Storage:
    """
    Gradio's directory of uploads and of files for visitors.

    Args:
        most_bytes: largest size of all files together.
    """

    def __init__(self, most_bytes: int):
        self.folder = Path(os.path.abspath(get_upload_folder()))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.most_bytes = most_bytes
        self.permanent: set[Path] = set()

    def files(self) -> set[Path]:
        return {Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names}

    def find(self, upload) -> Path:
        """
        The file that a request names. Gradio trusts requests without `meta`.

        Args:
            upload: value in the request: a dictionary with a `path`, if it is from the page.

        Returns:
            A regular file within the directory, without links in its path.

        Raises:
            gr.Error: for anything else, always with the same words, which tell nothing about other files.
        """
        with contextlib.suppress(OSError, RuntimeError, TypeError, ValueError):
            path = upload["path"]
            # Asking the disk about places outside could already block.
            Path(os.path.abspath(path)).relative_to(self.folder)
            file = Path(path).resolve(strict=True)
            file.relative_to(self.folder.resolve())
            if file.is_file():
                return file
        raise problem(
            "The picture is gone: the server keeps files for an hour, or less if it gets many. Upload it again."
        )

    def make_room(self, needed: int) -> None:
        """Deletes files that are older than an hour, and the oldest others until `needed` bytes are free."""
        found = []
        for file in self.files() - self.permanent:
            with contextlib.suppress(FileNotFoundError):
                status = file.lstat()
                found.append((status.st_mtime, max(status.st_size, SMALLEST_FILE), file))
        total = sum(size for _, size, _ in found)
        for modified, size, file in sorted(found):
            if total + needed <= self.most_bytes and modified > time.time() - KEPT_SECONDS:
                break
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                file.parent.rmdir()
            total -= size

    def save(self, pixels: np.ndarray, name: str) -> str:
        """Writes pixels, uint8 or uint16, to a new PNG file, and returns its path."""
        self.make_room(pixels.nbytes + LONGEST_BODY)
        file = Path(tempfile.mkdtemp(dir=self.folder), name)
        PIL.Image.fromarray(pixels).save(file)
        return str(file)


class Border:
    """
    ASGI middleware that bounds the length of each request and the time that it takes to arrive, and the size of all
    uploads together.

    Args:
        app: the application behind it.
        storage: where uploads go.
        max_file_size: largest size of a file in bytes.
        time_limit: seconds for the body of a request. Without it, a visitor whose connection stalls would occupy
            the room for an upload.
    """

    def __init__(self, app, storage: Storage, max_file_size: int, time_limit: float):
        self.app = app
        self.storage = storage
        self.max_file_size = max_file_size
        self.time_limit = time_limit
        self.uploads = 0  # in progress

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        most = LONGEST_BODY + is_upload * self.max_file_size
        left = most
        end = anyio.current_time() + self.time_limit

        async def receive_bounded():
            nonlocal left, end
            try:
                with anyio.fail_after(end - anyio.current_time()):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"The request took longer than the limit of {self.time_limit:g} seconds. "
                    "Try again, or send a smaller picture.",
                    {"Connection": "close"},
                ) from error
            if not message.get("more_body", False):
                end = math.inf  # what follows is the end of the connection, which answers may wait for
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"The request is too long: the limit is {most} bytes. Send one picture.")
            return message

        if not is_upload:
            await self.app(scope, receive_bounded, send)
            return
        if (self.uploads + 1) * most > self.storage.most_bytes:
            response = PlainTextResponse("The server is getting many pictures. Wait a moment, and try again.", 503)
            await response(scope, receive, send)
            return
        self.uploads += 1
        try:
            await anyio.to_thread.run_sync(self.storage.make_room, self.uploads * most)
            await self.app(scope, receive_bounded, send)
        finally:
            self.uploads -= 1


class Page(gr.Blocks):
    """Blocks that check the values in a request before Gradio reads them: it would fetch addresses, for example."""

    def __init__(self, storage: Storage, **kwargs):
        super().__init__(**kwargs)
        self.storage = storage

    async def process_api(self, block_fn, inputs, *args, event_data=None, **kwargs):
        pending = [inputs, event_data and event_data._data]
        while pending:
            value = pending.pop()
            if isinstance(value, dict) and "path" in value:
                self.storage.find(value)
            if isinstance(value, (dict, list)):
                pending += value.values() if isinstance(value, dict) else value
        return await super().process_api(block_fn, inputs, *args, event_data=event_data, **kwargs)

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        # Components raise errors of any kind for values that no page sends.
        except Exception as error:
            raise problem("The server does not understand the request. Reload the page, and try again.") from error


class PictureFile(io.BufferedReader):
    """A file that cannot be read after the time limit. Some take hours to decode, few bytes at a time."""

    def __init__(self, file: Path, limit: TimeLimit):
        super().__init__(io.FileIO(file))
        self.limit = limit

    def read(self, size=-1):
        self.limit.check()
        return super().read(size)


def read_picture(file: Path, max_megapixels: float, limit: TimeLimit) -> tuple[PIL.Image.Image, str]:
    """
    The picture in an uploaded file.

    Returns:
        An RGB image, upright and without transparency, and the format of the file.

    Raises:
        gr.Error: for files that are missing, of another kind, damaged, too large or too slow, with the remedy.
    """
    too_large = problem(
        f"The picture is too large: the limits are {max_megapixels:g} million pixels, and {LONGEST_SIDE} on a side. "
        "Make it smaller, and upload it again."
    )
    try:
        with PictureFile(file, limit) as opened, PIL.Image.open(opened, formats=FORMATS) as picture:
            if picture.width * picture.height > max_megapixels * 1e6 or max(picture.size) > LONGEST_SIDE:
                raise too_large
            file_format = picture.format
            picture.decodermaxblock = DECODED_BYTES
            pixels = image_to_tensor(picture)
    except gr.Error:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise too_large from error
    except PIL.UnidentifiedImageError as error:
        raise problem(
            "This is not a picture that the page can read. Upload a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."
        ) from error
    # Decoders raise errors of any kind for damaged files.
    except Exception as error:
        limit.check()  # decoders hide this error
        raise problem(
            "The picture is damaged: its file cannot be read to the end. Upload it again, or save it again as PNG."
        ) from error
    if pixels.dtype != torch.uint8:
        raise problem("The pixels are floating-point numbers. Save the picture with 8 or 16 bits per color.")
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy()), file_format


def region_path(mask: np.ndarray) -> str:
    """The pixels of a mask `(height, width)` as an SVG path: a rectangle for each run of pixels in a row."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    lengths = np.nonzero(edges == -1)[1] - starts
    runs = zip(starts.tolist(), rows.tolist(), lengths.tolist())
    return "".join(f"M{x} {y}h{length}v1h-{length}z" for x, y, length in runs)


def class_view(picture: PIL.Image.Image, labels: np.ndarray, areas: list[dict], palette: np.ndarray) -> str:
    """
    A picture with a list of its classes, as HTML, in which the class under the pointer is named and highlighted.

    Args:
        picture: the classes over the image.
        labels: integers `(height, width)`, of the size of `picture`.
        areas: as `class_areas` returns them.
        palette: uint8 `(num_labels, 3)`.
    """
    regions, names, items, rules = [], [], [], []
    for area in areas:
        key, label = f"class-{area['id']}", html.escape(str(area["label"]))
        share = html.escape(percent(area["fraction"]))
        color = "#{:02x}{:02x}{:02x}".format(*palette[area["id"]])
        regions.append(f'<path class="{key}" d="{region_path(labels == area["id"])}"/>')
        names.append(f'<span class="name {key}">{label} · {share}</span>')
        items.append(f'<li class="{key}"><i style="background: {color}"></i>{label} <small>{share}</small></li>')
        hovered = f".classes:has(path.{key}:hover, li.{key}:hover)"
        rules.append(f"{hovered} .name.{key} {{display: block}} {hovered} path:not(.{key}) {{fill: #fffa}}")
    height, width = labels.shape
    buffer = io.BytesIO()
    picture.save(buffer, format="webp", quality=90)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<div class="classes"><style>{"".join(rules)}</style>'
        f'<div class="picture" style="width: min(100%, {60 * width / height:.2f}vh)">'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Classes over the picture">'
        f'<image href="{address}" width="{width}" height="{height}"/>{"".join(regions)}</svg>'
        f"{''.join(names)}</div><ul>{''.join(items)}{HINT}</ul></div>"
    )


class Demo:
    """
    The functions of the page.

    Args:
        models: name on the page -> a model and its image processor.
        arguments: limits.
    """

    def __init__(self, models: dict[str, tuple], arguments: DemoArguments):
        self.models = models
        self.arguments = arguments
        self.storage = Storage(arguments.max_total_megabytes * 2**20)

    def check(self, upload: dict | None):
        """Checks a new picture, and removes it with a message if it cannot be used."""
        if upload is None:
            return None
        try:
            with limited(self.arguments.time_limit) as limit:
                file = self.storage.find(upload)
                picture, file_format = read_picture(file, self.arguments.max_megapixels, limit)
                if file_format not in NOT_IN_BROWSERS:
                    return gr.skip()
                shown = self.storage.save(np.asarray(picture), f"{file.stem}.png")
                limit.check()
                return shown
        except gr.Error as error:
            gr.Warning(error.message, duration=MESSAGE_SECONDS)
            return None

    def segment(self, upload: dict | None, model_name: str, mode: str, steps: int) -> tuple:
        """
        Segments a picture.

        Returns:
            The kept segmentation, whether it can be refined, the hint and the empty picture of the sampling points,
            and the outputs of `show`.
        """
        if upload is None:
            raise problem("There is no picture yet. Upload one, take one with the webcam, or choose an example.")
        # Lists, because some values of a request cannot be looked up in a dictionary.
        if model_name not in list(self.models):
            raise unknown("The model", model_name, "choose one of the list")
        if mode not in list(MODES.values()):
            raise unknown("What the model sees", mode, "choose the whole image or sliding windows")
        self.check_steps(steps)
        file = self.storage.find(upload)
        model, processor = self.models[model_name]
        config = model.config
        has_boundaries = getattr(config, "use_boundary_heads", False)
        options = PredictionOptions(mode=mode)
        if config.model_type == "unept":
            # The windows that the model was trained on, a third of a window apart as in the paper.
            crop_size = [cells * config.query_stride for cells in config.query_grid_size]
            options = replace(options, crop_size=crop_size, stride=[max(1, side // 3) for side in crop_size])
        with limited(self.arguments.time_limit) as limit:
            picture, _ = read_picture(file, self.arguments.max_megapixels, limit)
            start = time.perf_counter()
            result = segment(model, processor, picture, options, return_boundaries=has_boundaries, progress=False)
            seconds = time.perf_counter() - start
            result.label_map = result.label_map.to(torch.uint8 if config.num_labels <= 256 else torch.int32)
            if has_boundaries:
                result = replace(
                    result,
                    boundary_probability=result.boundary_probability > options.boundary_threshold,
                    direction_map=result.direction_map.byte(),
                    direction_probability=None,
                )
            shown = picture.resize(shown_size(picture.size, SHOWN_SIZE, SHOWN_SIZE), PIL.Image.Resampling.BOX)
            kept = Segmentation(file, model_name, options, shown, result, seconds)
            results = self.draw(kept, steps, limit)
        return kept, gr.Slider(interactive=has_boundaries), shown, NOT_CLICKED, gr.Image(visible=False), *results

    def show(self, kept: Segmentation | None, steps: int) -> tuple:
        """Summary, classes, pictures without and with refinement, and the label map as a file, for `steps`."""
        if kept is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        self.check_steps(steps)
        with limited(self.arguments.time_limit) as limit:
            return self.draw(kept, steps, limit)

    def check_steps(self, steps: int) -> None:
        if steps not in range(MOST_STEPS + 1):
            raise unknown("Boundary refinement", steps, f"choose a whole number of steps up to {MOST_STEPS}")

    def draw(self, kept: Segmentation, steps: int, limit: TimeLimit) -> tuple:
        """The outputs of `show`."""
        model, _ = self.models[kept.model_name]
        palette = class_palette(getattr(model.config, "class_colors", None), model.config.id2label)
        unrefined = label_map = kept.result.label_map
        has_boundaries = kept.result.boundary_probability is not None
        if steps > 0 and has_boundaries:
            label_map = kept.result.refined(steps=int(steps)).label_map

        size = kept.shown.size[::-1]
        before, after = (resize_label_map(labels, size).numpy() for labels in (unrefined, label_map))
        pictures = tuple(overlay(kept.shown, labels, palette) for labels in (before, after))
        limit.check()
        areas = class_areas(label_map, model.config.id2label)
        limit.check()

        height, width = label_map.shape
        changed = (label_map != unrefined).double().mean().item()
        refinement = f"refinement changed {percent(changed, 2)} of the pixels" if steps > 0 else "without refinement"
        if not has_boundaries:
            refinement = "this model predicts no boundaries to refine"
        classes = "1 class" if len(areas) == 1 else f"{len(areas)} classes"
        summary = f"**{width} x {height} pixels, {classes}** in {kept.seconds:.2f} s; {refinement}."

        view = class_view(pictures[1], after, areas, palette)
        limit.check()
        dtype = np.uint8 if model.config.num_labels <= 256 else np.uint16
        file = self.storage.save(label_map.numpy().astype(dtype), f"{kept.file.stem}_label_map.png")
        limit.check()
        return summary, view, pictures, gr.DownloadButton(value=file, interactive=True)

    def look(self, kept: Segmentation | None, event: gr.EventData) -> tuple:
        """The best scores and the sampling points of the clicked pixel."""
        if kept is None:
            return gr.skip(), gr.skip()
        data = event._data if isinstance(event._data, dict) else {}
        match data.get("index"):
            case [int() | float() as column, int() | float() as row] if (
                0 <= column < kept.shown.width and 0 <= row < kept.shown.height
            ):
                pass
            case index:
                raise unknown("The pixel", index, "click within the picture")
        model, processor = self.models[kept.model_name]
        with limited(self.arguments.time_limit) as limit:
            file = self.storage.find({"path": kept.file})
            picture, _ = read_picture(file, self.arguments.max_megapixels, limit)
            # From the center of a pixel on the page to a pixel of the image.
            x, y = (
                min(int((place + 0.5) * side / shown), side - 1)
                for place, side, shown in zip((column, row), picture.size, kept.shown.size)
            )
            scores = scores_at(model, processor, picture, (x, y), kept.options)
            limit.check()
            points = sampling_points(model, processor, picture, (x, y))
            figure = draw_sampling_points(picture, points)
            limit.check()
            image = figure_to_image(figure)
            limit.check()
        best = scores.topk(min(SHOWN_SCORES, len(scores)))
        names = [html.escape(str(model.config.id2label[index])) for index in best.indices.tolist()]
        shares = [html.escape(percent(score)) for score in best.values.tolist()]
        listed = ", ".join(f"<b>{name}</b> {share}" for name, share in zip(names, shares))
        text = f"Pixel ({x}, {y}), scores before refinement: {listed}. A larger point counts more."
        return text, gr.Image(image, format="png", visible=True)


def chosen_examples(arguments: DemoArguments) -> list[str]:
    """
    The pictures that `--examples` names.

    Raises:
        ValueError: for files that the page could not segment, or a browser not show, and for directories without any.
    """
    files: list[Path] = []
    for name in arguments.examples:
        path = Path(name).expanduser()
        found = (
            sorted(file for file in files_below(path) if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        if not found:
            raise ValueError(f"--examples {name} has no pictures ({', '.join(SUFFIXES)}).")
        files += found
    for file in files:
        try:
            _, file_format = read_picture(file, arguments.max_megapixels, TimeLimit(arguments.time_limit))
        except gr.Error as error:
            raise ValueError(f"--examples {file}: {error.message}") from error
        if file_format in NOT_IN_BROWSERS:
            raise ValueError(f"--examples {file}: browsers do not show {file_format}; save the picture as PNG.")
    return [str(file) for file in files]


def example_pictures(folder: str, models: list[str]) -> list[str]:
    """Files of pictures to try: a street photograph and, for models of your own, drawn scenes as well."""
    photographs = [str(STREET)] if STREET.is_file() else []
    if photographs and models == [short_name(unept_hf.STREET_PHOTOS)]:
        return photographs
    files = [Path(folder) / f"scene_{number}.png" for number in range(1, 5)]
    for file, scene in zip(files, synthetic_scenes(len(files), size=(288, 384), split="validation")):
        scene["image"].save(file)
    return [*photographs, *map(str, files)]


def build_page(demo: Demo, chosen: list[str]) -> gr.Blocks:
    """The page, not launched yet, with the chosen examples or our own."""
    arguments, storage, names = demo.arguments, demo.storage, list(demo.models)
    cleaning = (KEPT_SECONDS // 6, KEPT_SECONDS)
    with Page(storage, title=TITLE, analytics_enabled=False, delete_cache=cleaning, fill_width=True) as page:
        gr.Markdown(
            f"# {TITLE}\n"
            "Choose a picture to see the class of each pixel. Pictures can have up to "
            f"{arguments.max_megapixels:g} million pixels and {arguments.max_megabytes} MB; they are kept for at most "
            "an hour."
        )
        kept = gr.State(time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "webcam", "clipboard"],
                    format="png",
                    height=220,
                    buttons=[],
                    elem_id="picture",
                )
                # Gradio copies these files.
                with tempfile.TemporaryDirectory() as folder:
                    before = storage.files()
                    examples = gr.Examples(
                        chosen or example_pictures(folder, names),
                        picture,
                        label="Examples (a click segments them)",
                    )
                    storage.permanent = storage.files() - before
                with gr.Group():
                    model_name = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                    mode = gr.Radio(list(MODES.items()), value="whole", label="The model sees", elem_id="mode")
                run = gr.Button("Segment", variant="primary", elem_id="run")
                steps = gr.Slider(
                    0,
                    MOST_STEPS,
                    value=0,
                    step=1,
                    label="Boundary refinement",
                    info="Steps from a boundary into the object; 0 is off.",
                    buttons=[],
                    elem_id="steps",
                )
                download = gr.DownloadButton("Download the label map (PNG)", interactive=False, elem_id="download")
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Classes"):
                        classes = gr.HTML(EMPTY, apply_default_css=False, elem_id="classes")
                    with gr.Tab("Boundary refinement"):
                        both = gr.ImageSlider(
                            label="Without (left) and with refinement (right)",
                            type="pil",
                            interactive=False,
                            buttons=["fullscreen"],
                            elem_id="both",
                        )
                    with gr.Tab("Scores and sampling points"):
                        where = gr.HTML(NOT_CLICKED, elem_id="where")
                        shown = gr.Image(show_label=False, interactive=False, height=300, buttons=[], elem_id="shown")
                        points = gr.Image(
                            show_label=False,
                            format="png",
                            interactive=False,
                            visible=False,
                            buttons=["download", "fullscreen"],
                            elem_id="points",
                        )
                summary = gr.Markdown(elem_id="summary")

        results = [summary, classes, both, download]
        # One prediction at a time, for all visitors.
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        # Gradio itself would open an upload before we can tell what is wrong with it. Without its preprocessing, we
        # get the values in the request, and must check all of them.
        unopened = {"preprocess": False, "api_visibility": "private"}
        segmentation = {
            "fn": demo.segment,
            "inputs": [picture, model_name, mode, steps],
            "outputs": [kept, steps, shown, where, points, *results],
            "show_progress_on": [classes, both, shown],
        }
        segmentation |= one_at_a_time | unopened
        picture.upload(demo.check, picture, picture, show_progress="hidden", **unopened)
        run.click(**segmentation)
        examples.load_input_event.then(**segmentation)
        steps.input(
            demo.show,
            [kept, steps],
            results,
            trigger_mode="always_last",
            show_progress="minimal",
            show_progress_on=[classes, both],
            **unopened,
        )
        shown.select(demo.look, kept, [where, points], show_progress_on=points, **one_at_a_time)
    return page


def model_names(names: list[str]) -> list[str]:
    """The models to offer: `names`, those of the variable (a Space has no command line), or our own."""
    return names or os.environ.get("UNEPT_DEMO_MODELS", "").split() or [unept_hf.STREET_PHOTOS]


def short_name(name: str) -> str:
    """The last two parts of the name of a model."""
    return "/".join(Path(name).parts[-2:])


def load_models(names: list[str], arguments: DemoArguments) -> dict[str, tuple]:
    """The models and their image processors, by their short names."""
    device = choose_device(arguments.device)
    classes = None if arguments.class_list is None else load_class_list(arguments.class_list)
    models = {}
    for name in names:
        short = short_name(name)
        if short in models:
            raise ValueError(f"Two models would both be called {short}: rename one of their directories.")
        model, processor = load_model(name, arguments)
        if classes is not None:
            if len(classes) != model.config.num_labels:
                raise ValueError(
                    f"--class_list {arguments.class_list} has {len(classes)} classes, but {short} has "
                    f"{model.config.num_labels}."
                )
            model.config.class_colors = classes.palette
        model.to(device)
        if model.config.model_type == "unept":
            optimize_for_inference(model)
        models[short] = model, processor
    return models


def main() -> None:
    parser = HfArgumentParser(DemoArguments, description="A page to try models on.")
    parser.add_argument("models", nargs="*", help="Directories or Hub names of models.")
    try:
        arguments, others = parser.parse_args_into_dataclasses()
        chosen = chosen_examples(arguments)
        models = load_models(model_names(others.models), arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(f"app.py: {error}") from error
    # A directory of our own: all Gradio pages on the machine share Gradio's.
    parent = Path(get_upload_folder()).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        demo = Demo(models, arguments)
        page = build_page(demo, chosen)
        max_file_size = arguments.max_megabytes * 2**20
        page.queue(max_size=MOST_VISITORS, api_open=False)  # nobody gets past the queue
        page.launch(
            server_name=arguments.server_name,
            server_port=arguments.server_port,
            share=False,
            max_file_size=max_file_size,
            app_kwargs={"middleware": [Middleware(Border, demo.storage, max_file_size, arguments.time_limit)]},
            state_session_capacity=MOST_VISITORS,
            theme=gr.themes.Default(primary_hue="blue").set(body_text_color_subdued="*neutral_500"),
            css=CSS,
            footer_links=["gradio"],
            run_history=False,
            ssr_mode=False,
        )


if __name__ == "__main__":
    main()
