"""The real command on the main job, and everything hostile that people feed it."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from collapsible.cli import main
from collapsible.cli.app import app
from collapsible.imaging import picture_info


@pytest.fixture
def run(graphs):
    """Runs ``collapsible upscale`` in this process with the stand-in network."""

    def call(*arguments, scale=2):
        given = [str(a) for a in arguments]
        if not any(a.startswith("--model") for a in given):
            given += ["--model", str(graphs[scale])]
        return CliRunner().invoke(app, ["upscale", *given, "--scale", str(scale)])

    return call


def subprocess_run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "collapsible", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def picture(path: Path, mode: str = "RGB", size=(21, 17), seed: int = 0, **options) -> Path:
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode != "P" else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    image = Image.fromarray(
        pixels.squeeze(2) if bands == 1 else pixels, "L" if mode == "P" else mode
    )
    (image.convert("P") if mode == "P" else image).save(path, **options)
    return path


def opened(path: Path) -> Image.Image:
    """The picture, decoded, its file closed."""
    with Image.open(path) as image:
        image.load()
        return image.copy() if image.format == "GIF" else image


def one_line(result) -> str:
    text = result.stderr.strip()
    assert text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    return text


def test_the_command_itself(tmp_path, graphs):
    photo = picture(tmp_path / "photo.png")
    done = subprocess_run("upscale", photo, "--model", graphs[2], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pictures"][0]["size"] == [42, 34]
    assert report["engine"] == "openvino"
    assert opened(tmp_path / "photo_x2.png").size == (42, 34)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
def test_png_of_every_kind(run, tmp_path, mode, scale):
    if mode == "1":
        Image.fromarray(np.eye(17, 21, dtype=bool)).save(tmp_path / "in.png")
    else:
        picture(tmp_path / "in.png", mode)
    result = run(tmp_path / "in.png", "-o", tmp_path / "out.png", scale=scale)
    assert result.exit_code == 0, result.stderr
    large = opened(tmp_path / "out.png")
    assert large.size == (21 * scale, 17 * scale)
    assert large.mode == {"P": "L", "1": "L"}.get(mode, mode) or mode == "P"


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "bmp"])
def test_other_formats(run, tmp_path, suffix):
    picture(tmp_path / f"in.{suffix}")
    result = run(tmp_path / f"in.{suffix}")
    assert result.exit_code == 0, result.stderr
    assert opened(tmp_path / f"in_x2.{suffix}").size == (42, 34)


def test_sixteen_bits_stay(run, tmp_path):
    ramp = np.linspace(0, 65535, 30 * 20).astype(np.uint16).reshape(20, 30)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert run(tmp_path / "deep.png").exit_code == 0
    large = np.asarray(opened(tmp_path / "deep_x2.png"))
    assert large.dtype == np.uint16
    assert len(np.unique(large)) > 600


def test_jpeg_comes_upright_with_its_profile(run, tmp_path):
    """EXIF orientation 6 turns the picture a quarter clockwise; the result needs no turning."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.full((20, 40, 3), 250, np.uint8)
    pixels[:, :20] = 5  # the left half is dark; upright, that is the top half
    source = tmp_path / "in.jpg"
    Image.fromarray(pixels).save(source, exif=exif, icc_profile=profile, quality=95)
    assert run(source).exit_code == 0
    large = opened(tmp_path / "in_x2.jpg")
    assert large.size == (40, 80)
    assert np.asarray(large)[:30].mean() < 60 < 200 < np.asarray(large)[50:].mean()
    assert large.getexif().get(0x0112, 1) == 1
    assert large.getexif()[0x010F] == "Camera"
    assert large.info["icc_profile"] == profile


def test_animated_pictures_ask_for_a_frame(run, tmp_path):
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    refused = run(tmp_path / "a.gif")
    assert refused.exit_code == 1
    assert "3 frames" in one_line(refused)
    assert run(tmp_path / "a.gif", "--frame", 1).exit_code == 0
    assert opened(tmp_path / "a_x2.png").size == (16, 16)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (5, 5)])
def test_tiny_pictures(run, tmp_path, size):
    picture(tmp_path / "in.png", size=size)
    assert run(tmp_path / "in.png").exit_code == 0
    assert opened(tmp_path / "in_x2.png").size == (2 * size[0], 2 * size[1])


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def broken(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.png", b""),
        ("text.png", b"this is no picture\n"),
        ("bomb.png", bomb()),
        *(
            (f"cut.{kind}", broken(kind)[: len(broken(kind)) // 2])
            for kind in ("png", "jpeg", "webp")
        ),
        ("cut.tiff", broken("tiff")[:5000]),
        ("cut.bmp", broken("bmp")[:5000]),
        ("spoilt.png", broken("png")[:200] + bytes(200) + broken("png")[400:]),
    ],
)
def test_bad_files_are_named_in_one_line(run, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    result = run(tmp_path / name, "-o", tmp_path / "out.png")
    assert result.exit_code == 1
    assert name in one_line(result)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_bad_file_among_good_ones(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        picture(folder / f"{name}.png")
    (folder / "b.jpg").write_bytes(b"nothing")
    result = run(folder, "--json")
    assert result.exit_code == 1
    assert "b.jpg" in result.stderr
    statuses = {
        Path(p["job"]["source"]).name: p["status"] for p in json.loads(result.stdout)["pictures"]
    }
    assert statuses == {"a.png": "done", "b.jpg": "failed", "c.png": "done"}
    assert sorted(p.name for p in (tmp_path / "in_x2").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sesr-n5"], "unknown model 'sesr-n5': did you mean 'sesr-m5'?"),
        (["--engine", "openvin"], "did you mean 'openvino'"),
        (["--tile", "big"], "--tile 'big': auto or a number of pixels"),
        (["--quality", "101"], "1 to 100 are accepted"),
        (["--format", "pgn"], "did you mean 'png'"),
        (["-o", "SELF"], "would be overwritten"),
        (["--frame", "5"], "frame"),
    ],
)
def test_wrong_use_exits_with_2(run, tmp_path, arguments, message):
    photo = picture(tmp_path / "photo.png")
    result = run(photo, *(photo if a == "SELF" else a for a in arguments))
    assert message in one_line(result)
    assert result.exit_code == (1 if "--frame" in arguments else 2)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_wrong_scale_and_missing_input(run, tmp_path, graphs):
    missing = run(tmp_path / "none.png")
    assert missing.exit_code == 2
    assert "no such file or folder" in one_line(missing)
    photo = picture(tmp_path / "photo.png")
    wrong = CliRunner().invoke(app, ["upscale", str(photo), "--scale", "5"])
    assert wrong.exit_code == 2
    assert "2, 3 and 4 are accepted" in one_line(wrong)


def test_an_output_that_cannot_be_written(run, tmp_path):
    photo = picture(tmp_path / "photo.png")
    (tmp_path / "file").write_text("not a folder")
    result = run(photo, "-o", tmp_path / "file" / "deeper" / "out.png")
    assert result.exit_code == 1
    assert "cannot write" in one_line(result)


def test_a_full_disk_leaves_nothing_behind(tmp_path, graphs):
    """The file size limit of a process stands in for a full disk: writing fails half way."""
    photo = picture(tmp_path / "photo.png", size=(200, 200))

    command = f"{sys.executable} -m collapsible upscale {photo} --model {graphs[2]}"
    # Not preexec_fn: it forks, and libraries loaded by other tests object to that.
    limited = f"ulimit -f 40; exec {command}"  # 40 blocks of 512 bytes
    result = subprocess.run(["sh", "-c", limited], capture_output=True, text=True)
    assert result.returncode == 1
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_interrupted_and_taken_up_again(tmp_path, graphs):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        picture(folder / f"{number:02}.png", size=(500, 400), seed=number)
    command = ["upscale", str(folder), "--model", str(graphs[2]), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "collapsible", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    target = tmp_path / "in_x2"
    deadline = time.monotonic() + 60
    while len(list(target.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    finished = sorted(target.iterdir())
    assert 3 <= len(finished) < 40, "the run ended before it could be interrupted"
    for path in finished:
        assert path.suffix == ".png"
        opened(path)
    times = {path: path.stat().st_mtime_ns for path in finished}
    again = subprocess_run(*command)
    assert again.returncode == 0
    assert len(list(target.iterdir())) == 40
    assert all(path.stat().st_mtime_ns == times[path] for path in finished)


def test_interrupted_before_the_command_begins(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("collapsible.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "collapsible: interrupted\n"


MEMORY = """
import pathlib, sys
from collapsible.cli import main
sys.argv[0] = "collapsible"
try:
    main()
finally:
    # Not getrusage: its peak is never below that of the process which started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_48_megapixels_fit_in_2_gigabytes(tmp_path, graphs, suffix):
    """8000x6000 to 16000x12000, output buffers and all libraries included."""
    row = np.arange(8000) // 7 % 256
    pixels = np.broadcast_to(row[None, :, None], (6000, 8000, 3)).astype(np.uint8)
    pixels[::50] = 200
    Image.fromarray(pixels).save(tmp_path / f"in.{suffix}", quality=90, compress_level=1)
    del pixels
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEMORY, "upscale", str(tmp_path / f"in.{suffix}")),
            *("--model", str(graphs[2])),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    info = picture_info(tmp_path / f"in_x2.{suffix}")
    assert (info.width, info.height) == (16000, 12000)
    kibibytes = int(done.stderr.split()[-1])
    assert kibibytes < 2 * 1000**3 / 1024


def test_debug_shows_the_traceback(run, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"x")
    photo = picture(tmp_path / "photo.png")
    result = run(photo, f"--model={tmp_path / 'bad.onnx'}", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_environment_has_no_say(tmp_path, graphs):
    """Output that nobody reads any more is no error worth a traceback."""
    photo = picture(tmp_path / "photo.png")
    command = f"{sys.executable} -m collapsible upscale {photo} --model {graphs[2]} --json | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ})
    assert "Traceback" not in done.stderr
