# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Damaged and unusual image files: `segment` and both image processors give a label map of the image's size, or one clear
error that names the file. They neither crash nor hang.

The files come from a seed, and are read in a process of their own that is killed when one of them takes too long.
"""

import asyncio
import base64
import contextlib
import faulthandler
import gzip
import http.server
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import PIL.features
import PIL.Image
import pytest
import torch

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, UneptImageProcessorPil
from unept_hf.inference.segment import segment
from unept_hf.model import image_reading
from unept_hf.model.image_reading import open_image


SECONDS = 120  # for one file
MEMORY = 12 * 2**30  # address space of the process that reads them, in bytes
SIZE = {"shortest_edge": 32, "longest_edge": 64}


# Images


def pixels(rng: random.Random, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Random pixels on a slope, so that they compress a little."""
    noise = np.frombuffer(rng.randbytes(width * height * channels), np.uint8).reshape(height, width, channels)
    return (noise // 4 + np.linspace(0, 190, width, dtype=np.uint8)[:, None]).squeeze()


def picture(rng: random.Random, mode: str, width: int, height: int) -> PIL.Image.Image:
    if mode == "1":
        return PIL.Image.fromarray(pixels(rng, width, height, 1).reshape(height, width)).convert("1")
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        factor = 1 if mode == "F" else 250  # floating point numbers are not scaled to 8 bit
        return PIL.Image.fromarray(pixels(rng, width, height, 1).reshape(height, width).astype(dtype) * factor)
    if mode in ("P", "PA"):
        image = PIL.Image.fromarray(pixels(rng, width, height).reshape(height, width, 3))
        return image.quantize(rng.choice([2, 16, 200]))
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels)
    array = pixels(rng, width, height, channels).reshape(shape if channels > 1 else shape[:2])
    return PIL.Image.frombytes(mode, (width, height), array.tobytes())


def save(images: "PIL.Image.Image | list[PIL.Image.Image]", form: str, **options) -> bytes:
    first, *more = images if isinstance(images, list) else [images]
    if more:
        options |= {"save_all": True, "append_images": more, "duration": 40}
    buffer = io.BytesIO()
    first.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = PIL.Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a photograph"
    return tags.tobytes()


# name: format, mode, options of the file, number of frames
FORMS = {
    "png": ("PNG", "RGB", {}, 1),
    "png-alpha": ("PNG", "RGBA", {}, 1),
    "png-gray": ("PNG", "L", {}, 1),
    "png-gray-alpha": ("PNG", "LA", {}, 1),
    "png-bit": ("PNG", "1", {}, 1),
    "png-16": ("PNG", "I;16", {}, 1),
    "png-palette": ("PNG", "P", {}, 1),
    "png-palette-transparent": ("PNG", "P", {"transparency": bytes([0, 128])}, 1),
    "png-animated": ("PNG", "RGBA", {}, 3),
    "jpeg": ("JPEG", "RGB", {"quality": 80}, 1),
    "jpeg-gray": ("JPEG", "L", {}, 1),
    "jpeg-cmyk": ("JPEG", "CMYK", {}, 1),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True, "restart_marker_rows": 1}, 1),
    "jpeg-turned": ("JPEG", "RGB", {"exif": 6}, 1),
    "mpo": ("MPO", "RGB", {}, 2),
    "gif": ("GIF", "P", {}, 1),
    "gif-transparent": ("GIF", "P", {"transparency": 1}, 1),
    "gif-animated": ("GIF", "P", {"disposal": 2}, 3),
    "webp": ("WEBP", "RGB", {}, 1),
    "webp-lossless": ("WEBP", "RGBA", {"lossless": True}, 1),
    "webp-animated": ("WEBP", "RGBA", {}, 3),
    "webp-turned": ("WEBP", "RGB", {"exif": 8}, 1),
    "avif": ("AVIF", "RGB", {"speed": 10}, 1),
    "avif-animated": ("AVIF", "RGBA", {"speed": 10}, 2),
    "jpeg2000": ("JPEG2000", "RGB", {}, 1),
    "tiff": ("TIFF", "RGB", {}, 1),
    "tiff-cmyk": ("TIFF", "CMYK", {"compression": "tiff_lzw"}, 1),
    "tiff-16": ("TIFF", "I;16", {}, 1),
    "tiff-32": ("TIFF", "I", {}, 1),
    "tiff-float": ("TIFF", "F", {}, 1),
    "tiff-lab": ("TIFF", "LAB", {}, 1),
    "tiff-deflate": ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}, 1),
    "tiff-fax": ("TIFF", "1", {"compression": "group4"}, 1),
    "tiff-jpeg": ("TIFF", "RGB", {"compression": "jpeg"}, 1),
    "tiff-pages": ("TIFF", "L", {}, 3),
    "bmp": ("BMP", "RGB", {}, 1),
    "bmp-palette": ("BMP", "P", {}, 1),
    "ppm": ("PPM", "RGB", {}, 1),
    "pgm-16": ("PPM", "I;16", {}, 1),
    "pfm": ("PPM", "F", {}, 1),
    "tga": ("TGA", "RGBA", {"compression": "tga_rle"}, 1),
    "pcx": ("PCX", "RGB", {}, 1),
    "ico": ("ICO", "RGBA", {"sizes": [(16, 16)]}, 1),
    "dds": ("DDS", "RGBA", {}, 1),
    "sgi": ("SGI", "RGB", {}, 1),
    "qoi": ("QOI", "RGB", {}, 1),
    "im": ("IM", "RGB", {}, 1),
    "xbm": ("XBM", "1", {}, 1),
    "msp": ("MSP", "1", {}, 1),
    "spider": ("SPIDER", "F", {}, 1),
}  # fmt: skip
FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
LIMITED = {"ico", "spider", "msp"}  # forms that are not written at every size


def encode(name: str, rng: random.Random, width: int, height: int) -> bytes:
    """A sound file of that form."""
    form, mode, options, frames = FORMS[name]
    if "exif" in options:
        options = {**options, "exif": exif(options["exif"])}
    images = [picture(rng, mode, width, height) for _ in range(frames)]
    return save(images if frames > 1 else images[0], form, **options)


# Damage


def mend_png(data: bytes) -> bytes:
    """Puts the checksums of a PNG right, so that its damage gets past them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        mended += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(mended + data[place:])


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 3, 10, 50])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 2, 4])):
        damaged[rng.randrange(min(64, len(damaged)))] = rng.randrange(256)
    return bytes(damaged)


def extreme_field(data: bytes, rng: random.Random) -> bytes:
    """A number in the header becomes very large, negative, or 0."""
    value = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0", b"\xff\xff"])
    place = rng.randrange(min(160, len(data)))
    return data[:place] + value + data[place + len(value) :]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 200) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randrange(1, 200)) + data[place:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 500)] * rng.randrange(2, 20) + data[start:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, byte = rng.randrange(len(data)), rng.choice([b"\0", b"\xff"])
    length = min(rng.randrange(1, 300), len(data) - start)
    return data[:start] + byte * length + data[start + length :]


DAMAGES = (truncate, flip, flip_header, extreme_field, cut_out, insert, repeat, overwrite)
MAGIC_NUMBERS = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"II*\0\x08\0\0\0", b"MM\0*", b"BM",
    b"P6\n9999999 9999999\n255\n", b"8BPS", b"\0\0\1\0\1\0", b"\0\0\0\x0cjP  \r\n\x87\n", b"qoif", b"DDS ",
    b"\0\0\0\x20ftypavif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"SIMPLE  =", b"\xd7\xcd\xc6\x9a",
)  # fmt: skip


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def huge(rng: random.Random) -> bytes:
    """A small file that says it holds more pixels than a memory."""
    width, height = rng.choice([(60000, 60000), (65535, 40000), (30000, 65535)])
    kind = rng.randrange(5)
    if kind == 0:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return MAGIC_NUMBERS[0] + header + chunk(b"IDAT", zlib.compress(bytes(99999))) + chunk(b"IEND", b"")
    if kind == 1:
        data = bytearray(encode("gif", rng, 8, 8))
        data[6:10] = struct.pack("<HH", width, height)
        return bytes(data)
    if kind == 2:
        data = bytearray(encode("bmp", rng, 8, 8))
        data[18:26] = struct.pack("<ii", width, height)
        return bytes(data)
    if kind == 3:
        return f"P6\n{width} {height}\n255\n".encode() + bytes(1000)
    data = encode("jpeg", rng, 8, 8)
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


TEXTS = (
    b"", b"\n", b"not an image", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", b"\xef\xbb\xbf\xff\xfe",
    b'{"error": "rate limited"}', b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', b"PK\3\4",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n", b"%PDF-1.7\n", bytes(1000), b"\0",
)  # fmt: skip


def make_file(folder: Path, seed: int, index: int) -> tuple[Path, "list[int] | str | None"]:
    """
    Writes a file.

    Returns:
        The file, and the expected outcome: the (height, width) of its label map, "error", or `None` for either.
    """
    rng = random.Random(f"{seed} {index}")
    available = [
        name for name, (form, *_) in FORMS.items() if form not in FEATURES or PIL.features.check(FEATURES[form])
    ]
    # Each form comes up again and again, with each damage.
    name = available[index % len(available)]
    width, height = rng.choice([(24, 18), (7, 33), (1, 1), (64, 48), (rng.randrange(1, 90), rng.randrange(1, 90))])
    kind = rng.choices(
        ["damaged", "damaged twice", "intact", "thin", "wrong header", "huge", "text"], [60, 9, 9, 5, 7, 5, 5]
    )[0]
    expected = None
    if kind == "thin":
        if name in LIMITED:
            name = "png"
        width, height = rng.choice([(1, 10000), (10000, 1)])
    if name in LIMITED:
        width, height = 24, 18
    data = encode(name, rng, width, height)
    if kind in ("intact", "thin"):
        expected = [width, height] if "turned" in name else [height, width]
        expected = [12, 16] if name == "ico" else expected
    elif kind == "huge":
        data, expected = huge(rng), "error"
    elif kind == "text":
        data, expected = rng.choice([*TEXTS, rng.randbytes(500)]), "error"
    elif kind == "wrong header":
        magic = rng.choice(MAGIC_NUMBERS)
        data = magic + data[rng.choice([0, len(magic)]) :]
    else:
        for _ in range(1 if kind == "damaged" else 2):
            data = rng.choice(DAMAGES)(data, rng)
        if rng.random() < 0.5:
            data = mend_png(data)
    suffix = rng.choice([f".{name.partition('-')[0]}", ".jpg", ".png", ""])
    file = folder / f"{index:04}-{name}-{kind.replace(' ', '-')}{suffix}"
    file.write_bytes(data)
    return file, expected


# Reading


def make_model():
    torch.manual_seed(0)
    model = UneptForSemanticSegmentation.from_preset(
        "unept-tiny", num_labels=3, encoder_layers=0, decoder_layers=1, num_feature_levels=1
    )
    return model.eval()


def make_processors():
    return {"torchvision": UneptImageProcessor(size=SIZE), "pil": UneptImageProcessorPil(size=SIZE)}


def declared_size(file: Path) -> list[int]:
    """(height, width) of an image, as its file says."""
    with PIL.Image.open(file) as image:
        is_turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return list(image.size if is_turned else image.size[::-1])


def read(model, processors, file: Path) -> dict[str, dict]:
    """What each reader makes of a file: the (height, width) of what it gives, or its error."""

    def label_map_size():
        size = list(segment(model, processors["torchvision"], file).label_map.shape)
        assert size == declared_size(file), f"a label map of {size}"
        return size

    def processed_size(processor):
        inputs = processor(file, return_tensors="pt")
        assert inputs["pixel_values"].isfinite().all(), "pixel_values are not finite"
        return inputs["image_sizes"][0].tolist()

    readers = {"segment": label_map_size}
    readers |= {name: partial(processed_size, processor) for name, processor in processors.items()}
    outcomes = {}
    for name, reader in readers.items():
        try:
            outcomes[name] = {"size": reader()}
        except Exception as error:
            is_clear = isinstance(error, (ValueError, OSError)) and str(file) in str(error)
            outcomes[name] = {"error": f"{type(error).__name__}: {error}", "is_clear": is_clear}
    return outcomes


def work(folder: str, seed: str, first: str, count: str) -> None:
    """The process that reads. Prints a line before and after each file."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, processors = make_model(), make_processors()
    for index in range(int(first), int(count)):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        file, expected = make_file(Path(folder), int(seed), index)
        print(json.dumps({"index": index, "file": file.name}), flush=True)
        outcomes = read(model, processors, file)
        file.unlink()
        print(json.dumps({"index": index, "expected": expected, "outcomes": outcomes}), flush=True)
    faulthandler.cancel_dump_traceback_later()


def read_all(worker: list[str], count: int) -> tuple[list[dict], list[str]]:
    """
    Runs a worker on files 0 to `count`, again from the next file on where it died.

    Returns:
        The lines that it printed after the files, and for each file that it did not survive the end of its stderr.
    """
    read, deaths, first = [], [], 0
    while first < count:
        process = subprocess.run([*worker, str(first), str(count)], capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        read += [line for line in lines if "outcomes" in line]
        if process.returncode == 0:
            assert lines[-1]["index"] == count - 1
            break
        assert lines, f"The process that reads did not start: {process.stderr[-2000:]}"
        deaths.append(f"{lines[-1].get('file')}: exit code {process.returncode}\n{process.stderr[-2000:]}")
        first = lines[-1]["index"] + 1
    return read, deaths


def faults(outcome: dict) -> list[str]:
    """What is wrong with what the readers made of a file."""
    expected, outcomes = outcome["expected"], outcome["outcomes"]
    found = [f"{name}: {one['error']}" for name, one in outcomes.items() if not one.get("is_clear", True)]
    if len({"error" in one for one in outcomes.values()}) > 1:
        found.append(f"the readers disagree: {outcomes}")
    if outcomes["torchvision"].get("size") != outcomes["pil"].get("size"):
        found.append(f"the image processors disagree: {outcomes}")
    if expected is not None and outcomes["segment"].get("size", "error") != expected:
        found.append(f"{expected} was expected: {outcomes}")
    return found


def check_files(folder: Path, seed: int, count: int) -> None:
    outcomes, deaths = read_all([sys.executable, __file__, str(folder), str(seed)], count)
    assert not deaths, "\n".join(deaths)
    assert [one["index"] for one in outcomes] == list(range(count))
    wrong = {one["index"]: found for one in outcomes if (found := faults(one))}
    assert not wrong, json.dumps(wrong, indent=1)
    # Otherwise the files test nothing.
    succeeded = sum("size" in one["outcomes"]["segment"] for one in outcomes)
    assert 0.2 * count < succeeded < 0.8 * count


def test_some_files(tmp_path):
    check_files(tmp_path, seed=1, count=150)


@pytest.mark.slow
def test_many_files(tmp_path):
    check_files(tmp_path, seed=0, count=2000)


def test_files_come_from_the_seed(tmp_path):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = [make_file(tmp_path / name, 5, index)[0] for index in range(20)]
        contents.append([(file.name, file.read_bytes()) for file in files])
    assert contents[0] == contents[1]


STUB = """
import json, os, sys, time, faulthandler
for index in range(int(sys.argv[1]), int(sys.argv[2])):
    print(json.dumps({"index": index, "file": f"file {index}"}), flush=True)
    faulthandler.dump_traceback_later(0.5, exit=True)
    if index == 1:
        os.abort()
    if index == 3:
        time.sleep(60)
    print(json.dumps({"index": index, "outcomes": {}}), flush=True)
    faulthandler.cancel_dump_traceback_later()
"""


def test_crashes_and_hangs_are_noticed():
    read, deaths = read_all([sys.executable, "-c", STUB], 6)
    assert [line["index"] for line in read] == [0, 2, 4, 5]
    assert [death.partition(":")[0] for death in deaths] == ["file 1", "file 3"]
    assert "Timeout" in deaths[1]

    clear = {"error": "OSError: a.png cannot be read", "is_clear": True}
    assert not faults({"expected": "error", "outcomes": dict.fromkeys(("segment", "torchvision", "pil"), clear)})
    sound = {"segment": {"size": [9, 8]}, "torchvision": {"size": [32, 32]}, "pil": {"size": [32, 32]}}
    assert not faults({"expected": [9, 8], "outcomes": sound}) and faults({"expected": [8, 9], "outcomes": sound})
    assert faults({"expected": None, "outcomes": sound | {"pil": clear}})
    assert faults({"expected": "error", "outcomes": sound})
    unclear = {name: {"error": "KeyError: 3", "is_clear": False} for name in sound}
    assert faults({"expected": None, "outcomes": unclear})


# Single files


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(params=["torchvision", "pil"])
def processor(request):
    return make_processors()[request.param]


def errors_of(model, processor, source) -> list[Exception]:
    """What `segment` and the processor raise."""
    errors = []
    for read in (partial(segment, model, processor), processor):
        with pytest.raises((OSError, ValueError)) as caught:
            read(source)
        errors.append(caught.value)
    return errors


def test_missing_files_and_folders(model, processor, tmp_path):
    for source in (tmp_path / "gone.png", str(tmp_path / "gone.png")):
        for error in errors_of(model, processor, source):
            assert isinstance(error, FileNotFoundError) and error.__cause__ is None and error.__context__ is None
            assert str(error).startswith(f"There is no file {tmp_path / 'gone.png'}: ")
    for error in errors_of(model, processor, tmp_path):
        assert isinstance(error, FileNotFoundError) and str(tmp_path) in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_not_waited_for(model, processor, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for error in errors_of(model, processor, tmp_path / "pipe"):
        assert isinstance(error, FileNotFoundError)


def test_files_without_permission(model, processor, tmp_path, monkeypatch):
    (tmp_path / "secret.png").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(PIL.Image, "open", refuse)
    for error in errors_of(model, processor, tmp_path / "secret.png"):
        assert isinstance(error, PermissionError) and "secret.png" in str(error)


def test_too_many_pixels(model, processor, tmp_path, monkeypatch):
    file = tmp_path / "large.png"
    PIL.Image.new("L", (60, 50)).save(file)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    for error in errors_of(model, processor, file):
        assert isinstance(error, OSError) and str(file) in str(error)
        assert "3000 pixels" in str(error) and "PIL.Image.MAX_IMAGE_PIXELS = None" in str(error)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert segment(model, processor, file).label_map.shape == (50, 60)


def test_unpacked_comments_are_limited(model, processor, tmp_path):
    sound = encode("png", random.Random(0), 8, 8)
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 10**8, 9))
    (tmp_path / "bomb.png").write_bytes(sound[:33] + comment + sound[33:])
    for error in errors_of(model, processor, tmp_path / "bomb.png"):
        assert "bomb.png" in str(error) and "too large" in str(error)


def test_long_sides(model, processor):
    """Resizing a line of a hundred million pixels took ten gigabytes."""
    line = np.broadcast_to(np.zeros(1, np.uint8), (1, 2**20 + 1))
    for image in (line, PIL.Image.new("L", (2**20 + 1, 1))):
        for error in errors_of(model, processor, image):
            assert "(1, 1048577" in str(error) and f"1 to {2**20} pixels" in str(error)
    assert segment(model, processor, line[:, :-1]).label_map.shape == (1, 2**20)


def test_programs_are_not_run(model, processor, tmp_path):
    (tmp_path / "loop.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    for error in errors_of(model, processor, tmp_path / "loop.jpg"):
        assert "loop.jpg is a PostScript program" in str(error)


@pytest.mark.parametrize("orientation", [9, 0])
def test_wrong_orientations_are_none(model, processor, tmp_path, orientation):
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg", exif=exif(orientation))
    assert segment(model, processor, tmp_path / "photo.jpg").label_map.shape == (10, 20)


def test_opened_images_name_their_file(processor, tmp_path):
    data = encode("jpeg", random.Random(0), 64, 48)
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    image = PIL.Image.open(tmp_path / "half.jpg")
    with pytest.raises(OSError, match=r"images\[1\] \(.*half\.jpg\) cannot be read.*truncated"):
        processor([PIL.Image.new("RGB", (9, 9)), image])
    image = PIL.Image.open(tmp_path / "half.jpg")
    with pytest.raises(OSError, match=r"segmentation_maps\[0\] \(.*half\.jpg\) cannot be read"):
        processor(PIL.Image.new("RGB", (64, 48)), image)


# Addresses


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on this machine, all of whose answers a function writes, and its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the reader has seen enough
                answer(self)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def send(handler, content: bytes, status: int = 200, **headers: str) -> None:
    headers = {"Content-Length": str(len(content))} | {name.replace("_", "-"): it for name, it in headers.items()}
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


SOUND = encode("png", random.Random(0), 20, 10)


@pytest.mark.usefixtures("online")
def test_addresses(model, processor):
    answers = {
        "/sound.png": partial(send, content=SOUND),
        "/page.png": partial(send, content=b"<html>404</html>"),
        "/moved.png": partial(send, content=b"moved", status=302, Location="sound.png"),
    }
    missing = partial(send, content=b"", status=404)
    with serving(lambda handler: answers.get(handler.path, missing)(handler)) as address:
        for name in ("sound.png", "moved.png"):
            assert segment(model, processor, f"{address}/{name}").label_map.shape == (10, 20)
        wrong = {
            "page.png": "cannot be read: it is not an image",
            "gone.png": "cannot be fetched (the server answers 404 Not Found)",
        }
        for name, said in wrong.items():
            for error in errors_of(model, processor, f"{address}/{name}"):
                assert str(error).startswith(f"{address}/{name} {said}")
    for error in errors_of(model, processor, f"{address}/sound.png"):  # nobody answers any more
        assert str(error).startswith(f"{address}/sound.png cannot be fetched (ConnectError: ")
    data = f"data:image/png;base64,{base64.b64encode(SOUND).decode()}"
    assert segment(model, processor, data).label_map.shape == (10, 20)
    for error in errors_of(model, processor, data[:40] + "A" * 10002):
        assert str(error).startswith("data:image/png;base64 cannot be read: it is not an image")


def send_forever(handler) -> None:
    """More and more bytes, of which the headers say nothing."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1000))


def drip(handler, beginning: bytes) -> None:
    """A byte now and then."""
    handler.wfile.write(beginning)
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.05)


def redirect(handler, location: str) -> None:
    send(handler, b"", 302, Location=location)


def redirect_with_much_to_say(handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/other")
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1000))


HOSTILE = {
    "endless": (send_forever, "it has more than the 100000 bytes that are read: make it smaller"),
    "large": (partial(send, content=bytes(100001)), "it has more than the 100000 bytes that are read"),
    "shorter than it says": (partial(send, content=SOUND, Content_Length="99999"), "RemoteProtocolError: .*complete"),
    "packed": (
        partial(send, content=gzip.compress(bytes(10**6)), Content_Encoding="gzip"),
        "the server compresses it with gzip: download and unpack it first",
    ),
    "packed error": (partial(send, content=b"?", status=404, Content_Encoding="gzip"), "the server answers 404"),
    "dripping content": (partial(drip, beginning=b"HTTP/1.0 200 OK\r\n\r\n"), "takes longer than 0.5 seconds"),
    "dripping headers": (partial(drip, beginning=b"HTTP/1.0 200 OK\r\nName: "), "takes longer than 0.5 seconds"),
    "silent": (lambda handler: time.sleep(2), "takes longer than 0.5 seconds"),
    "round and round": (partial(redirect, location="/"), "the server redirects more than 10 times"),
    "talkative redirects": (redirect_with_much_to_say, "the server redirects more than 10 times"),
    "to a file": (partial(redirect, location="file:///etc/hostname"), "UnsupportedProtocol: .*"),
    "to nowhere": (lambda handler: send(handler, b"", 302), "the server answers 302 Found"),
    "no HTTP": (lambda handler: handler.wfile.write(b"hello\r\n\r\n"), "RemoteProtocolError: .*"),
}


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_servers(monkeypatch, name):
    monkeypatch.setattr(image_reading, "_DOWNLOAD_BYTES", 100_000)
    answer, message = HOSTILE[name]
    if "0.5 seconds" in message:
        monkeypatch.setattr(image_reading, "_DOWNLOAD_SECONDS", 0.5)
    with (
        serving(answer) as address,
        pytest.raises(OSError, match=rf"^{address}/a\.png cannot be fetched \((the server )?{message}.*\)\.$"),
    ):
        open_image(f"{address}/a.png")


@pytest.mark.usefixtures("online")
def test_more_than_the_server_says_is_not_read(processor):
    with (
        serving(partial(send, content=SOUND, Content_Length=str(len(SOUND) - 80))) as address,
        pytest.raises(OSError, match=r"cannot be read: it is damaged or unusual \(.*truncated"),
    ):
        processor(address)


def test_nothing_is_fetched_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with serving(partial(send, content=SOUND)) as address, pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        open_image(address)


@pytest.mark.usefixtures("online")
def test_addresses_in_an_event_loop(processor):
    async def read():
        return processor(address)["image_sizes"]

    with serving(partial(send, content=SOUND)) as address:
        assert asyncio.run(read()) == [(32, 64)]


@pytest.mark.usefixtures("online")
def test_threads_read_the_same(tmp_path):
    """Sound and damaged files and addresses, read at the same time with different options."""
    processors = make_processors()
    files = [make_file(tmp_path, 3, index)[0] for index in range(24)]

    def read(source, name, **options):
        try:
            return processors[name](source, return_tensors="np", **options)["pixel_values"].tobytes()
        except (OSError, ValueError) as error:
            return str(error)

    with serving(partial(send, content=SOUND)) as address:
        tasks = [
            partial(read, source, name, **options)
            for source in [*files, address]
            for name in processors
            for options in ({}, {"do_resize": False}, {"resample": PIL.Image.Resampling.LANCZOS})
        ]
        expected = [task() for task in tasks]
        with ThreadPoolExecutor(8) as threads:
            assert [task.result() for task in [threads.submit(task) for task in tasks]] == expected
    assert {type(result) for result in expected} == {bytes, str}


if __name__ == "__main__":
    work(*sys.argv[1:])
