# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Videos: what is read, what is written, and what is said about files that are none."""

import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from spread_models import synthetic_scenes_model

from unept_hf import UneptImageProcessor, segment, segment_video
from unept_hf.cli import main
from unept_hf.palette import default_palette
from unept_hf.synthetic.scenes import synthetic_scene
from unept_hf.visualization import segment_video as module
from unept_hf.visualization import video_files
from unept_hf.visualization.overlay import overlay
from unept_hf.visualization.video_files import VideoReader, VideoWriter


av = pytest.importorskip("av", reason='PyAV is not installed: pip install -e ".[video]"')

SIZE = (48, 80)
RATE = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def model():
    return synthetic_scenes_model()


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 48, "longest_edge": 256})


def make_frames(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """A scene that changes to another one half way."""
    scenes = [np.array(synthetic_scene(seed, size=size)[0].convert("RGB")) for seed in (0, 5)]
    return [scenes[2 * index // count] for index in range(count)]


def write_video(path, frames, rate=RATE, times=None):
    with VideoWriter(path, frames[0].shape[:2], rate, 1 / rate) as writer:
        for index, frame in enumerate(frames):
            writer.write(times[index] if times else index / rate, frame)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "drive.mp4", make_frames(6))


def read(path) -> tuple[list[Fraction], list[np.ndarray]]:
    with VideoReader(path) as reader:
        times, frames = zip(*reader)
    return list(times), list(frames)


def stream_of(path):
    with av.open(str(path)) as container:
        [stream] = container.streams
        return SimpleNamespace(codec=stream.codec_context.name, rate=stream.average_rate, frames=stream.frames)


def test_frames_get_the_label_maps_of_images(model, processor, video, tmp_path):
    output, maps = tmp_path / "out" / "drive.mp4", tmp_path / "out" / "drive"
    assert segment_video(model, processor, video, output, label_maps=maps, batch_size=4) == 6
    times, frames = read(video)
    assert times == [index / RATE for index in range(6)]
    new_times, new_frames = read(output)
    assert new_times == times and stream_of(output).rate == RATE
    assert stream_of(output).codec == "h264"
    palette = default_palette(model.config.num_labels)
    assert sorted(path.name for path in maps.iterdir()) == [f"{index:06}.png" for index in range(6)]
    for index, (frame, new_frame) in enumerate(zip(frames, new_frames)):
        expected = segment(model, processor, Image.fromarray(frame)).label_map
        label_map = Image.open(maps / f"{index:06}.png")
        assert label_map.mode == "P" and label_map.size == (80, 48)
        np.testing.assert_array_equal(np.array(label_map), expected)
        np.testing.assert_array_equal(np.array(label_map.convert("RGB")), palette[expected])
        drawn = np.asarray(overlay(frame, expected, palette), np.int16)
        assert np.abs(new_frame - drawn).mean() < 12, "but for what the compression loses"
    assert sorted(path.name for path in output.parent.iterdir()) == ["drive", "drive.mp4"]


def test_smoothing_averages_the_scores(model, processor, video, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SCORE_BYTES", 2 * 4 * model.config.num_labels * 48 * 80)  # two frames at once
    maps, options = tmp_path / "maps", {"mode": "whole", "refine_boundaries": True}
    segment_video(model, processor, video, None, label_maps=maps, smoothing=0.6, **options)
    plain = []
    average = None
    for index, frame in enumerate(read(video)[1]):
        result = segment(model, processor, Image.fromarray(frame), return_scores=True, **options)
        plain.append(result.label_map)
        average = result.scores if average is None else 0.6 * average + 0.4 * result.scores
        label_map = torch.from_numpy(np.array(Image.open(maps / f"{index:06}.png")))
        best = average.topk(2, dim=0).values
        clear = best[0] - best[1] > 1e-5
        assert clear.float().mean() > 0.99 and (label_map == average.argmax(0))[clear].all()
        if index == 3:  # the first frame of the second scene
            assert (label_map != plain[3]).float().mean() > 0.05
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="smoothing must be at least 0 and below 1"):
            segment_video(model, processor, video, None, smoothing=smoothing)


@pytest.mark.parametrize("encoder", video_files.ENCODERS)
def test_sizes_and_encoders(encoder, tmp_path, monkeypatch):
    if encoder not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {encoder}")
    monkeypatch.setattr(video_files, "ENCODERS", (encoder, "mpeg4"))
    for size in ((48, 80), (51, 77)):
        frames = make_frames(4, size)
        path = write_video(tmp_path / "video.mp4", frames)
        times, got = read(path)
        is_h264 = encoder == "libx264" or (encoder == "libopenh264" and size == (48, 80))
        assert stream_of(path).codec == ("h264" if is_h264 else "mpeg4")
        assert len(got) == 4 and stream_of(path).rate == RATE
        assert times == [index / RATE for index in range(4)]
        for frame, other in zip(frames, got):
            assert frame.shape == other.shape and np.abs(frame.astype(np.int16) - other).mean() < 12


def test_times_of_frames_are_kept(model, processor, tmp_path):
    # Phones take fewer frames in the dark.
    times = [Fraction(time, 1000) for time in (0, 33, 66, 166, 266)]
    frames = make_frames(5)
    with VideoWriter(tmp_path / "phone.mkv", SIZE, Fraction(20), Fraction(1, 1000)) as writer:
        for time, frame in zip(times, frames):
            writer.write(time, frame)
    segment_video(model, processor, tmp_path / "phone.mkv", tmp_path / "out.mp4")
    assert read(tmp_path / "phone.mkv")[0] == read(tmp_path / "out.mp4")[0] == times


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_videos_become_upright(video, tmp_path, turns):
    # The matrix of the track's header, in 16.16 fixed point: turns by 90 degrees clockwise.
    content = bytearray(video.read_bytes())
    start = content.index(b"tkhd") + 44
    one, minus_one, zero = (number.to_bytes(4, "big", signed=True) for number in (1 << 16, -1 << 16, 0))
    a, b, c, d = {
        1: (zero, one, minus_one, zero),
        2: (minus_one, zero, zero, minus_one),
        3: (zero, minus_one, one, zero),
    }[turns]
    content[start : start + 20] = a + b + zero + c + d
    (tmp_path / "turned.mp4").write_bytes(content)
    for frame, turned in zip(read(video)[1], read(tmp_path / "turned.mp4")[1], strict=True):
        np.testing.assert_array_equal(turned, np.rot90(frame, -turns))


def bad_videos(folder, video):
    """Files that are no usable videos, and what is said about each."""
    content = video.read_bytes()
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    shutil.copy(video, folder / "next.mp4")
    contents = {
        "text.mp4": b"This is not a video.\n" * 20,
        "empty.mp4": b"",
        "cut.mp4": content[: len(content) // 2],
        "no_frames.mp4": content.replace(b"stsz", b"skip"),
        # Playlists would make FFmpeg read other files.
        "list.mp4": b"ffconcat version 1.0\nfile next.mp4\n",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nnext.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {
        **dict.fromkeys(contents, "cannot be read"),
        "sound.mp4": "it has no video",
        "missing.mp4": "There is no file",
    }


def test_bad_videos_get_one_message(model, processor, video, tmp_path, capfd):
    for name, said in bad_videos(tmp_path, video).items():
        with pytest.raises(OSError, match=said) as error:
            segment_video(
                model, processor, tmp_path / name, tmp_path / "out" / "a.mp4", label_maps=tmp_path / "out" / "a"
            )
        assert name in str(error.value) and "\n" not in str(error.value)
    assert not any((tmp_path / "out").glob("**/*")), "nothing is left"
    assert capfd.readouterr().err == "", "FFmpeg itself says nothing"


def test_frames_that_are_too_large(tmp_path, monkeypatch):
    path = write_video(tmp_path / "large.mp4", make_frames(2, (64, 96)))
    monkeypatch.setattr(video_files, "_MOST_PIXELS", 32 * 96)
    with pytest.raises(OSError, match=r"large\.mp4 cannot be read"):
        read(path)


def test_interruptions_leave_nothing(model, processor, video, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    output, maps = tmp_path / "out.mp4", tmp_path / "maps"
    output.write_bytes(b"old")
    monkeypatch.setattr(module, "overlay", interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment_video(model, processor, video, output, label_maps=maps)
    assert output.read_bytes() == b"old" and list(tmp_path.iterdir()) == [output]


def test_what_is_not_overwritten(model, processor, video, tmp_path):
    shutil.copy(video, tmp_path / "drive.mp4")
    with pytest.raises(ValueError, match="is the video itself"):
        segment_video(model, processor, tmp_path / "drive.mp4", tmp_path / "." / "drive.mp4")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "thesis.txt").write_text("mine")
    for overwrite, said in ((False, "is not empty"), (True, "is not a directory of label maps .* or no 000000.png")):
        with pytest.raises(FileExistsError, match=said):
            segment_video(model, processor, video, None, label_maps=tmp_path / "maps", overwrite=overwrite)
    with pytest.raises(OSError, match=r"out.txt cannot be written .*name a file that ends with .mp4"):
        segment_video(model, processor, video, tmp_path / "out.txt")


def test_without_pyav(model, processor, video, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r'Videos need PyAV: pip install "unept-hf\[video\]"'):
        segment_video(model, processor, video, "out.mp4")


def test_the_command(model, processor, video, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    processor.save_pretrained("model")
    capsys.readouterr()
    shutil.copy(video, "drive.MP4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = ["segment", "model", "drive.MP4", "broken.mp4", "--device", "cpu"]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out.startswith("1 segmented, 1 failed in ")
    assert output.err.count("\n") == 1 and "broken.mp4 cannot be read" in output.err
    written = sorted(path.relative_to("segmented").as_posix() for path in Path("segmented").glob("**/*.*"))
    assert written == [*(f"label_maps/drive/{index:06}.png" for index in range(6)), "overlays/drive.mp4"]
    assert main(arguments[:3]) == 1 and "exists already, as do 1 other results" in capsys.readouterr().err
    assert main([*arguments[:3], "--existing", "skip"]) == 0 and "1 skipped" in capsys.readouterr().out
    (tmp_path / "segmented" / "overlays" / "drive.mp4").unlink()
    assert main([*arguments[:3], "--existing", "skip"]) == 0 and "1 segmented" in capsys.readouterr().out
    assert main([*arguments[:3], "--save", "areas"]) == 1
    assert "drive.MP4 is a video, of which --save can write label_maps and overlays" in capsys.readouterr().err
    assert main([*arguments[:3], "--refine_with", "model", "--output_dir", "other"]) == 1
    assert "and --unknown_below are for images; leave out drive.MP4" in capsys.readouterr().err
