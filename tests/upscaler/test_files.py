"""Planning and running jobs on files."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from collapsible.errors import UsageError
from collapsible.imaging import read_picture, write_picture
from collapsible.upscaler import Upscaler
from collapsible.upscaler import files as files_module
from collapsible.upscaler.files import plan_jobs, upscale_files


def save(path, height=12, width=10, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path, **options)
    return path


def targets(jobs, root):
    return [str(job.target.relative_to(root)) for job in jobs]


def test_where_results_go(tmp_path):
    photo, other = save(tmp_path / "photo.jpg"), save(tmp_path / "in" / "other.png")
    save(tmp_path / "in" / "deep" / "anim.gif", mode="L")
    folder = tmp_path / "in"
    out = tmp_path / "out"
    assert targets(plan_jobs([photo]), tmp_path) == ["photo_x2.jpg"]
    assert targets(plan_jobs([photo], scale=4), tmp_path) == ["photo_x4.jpg"]
    assert targets(plan_jobs([photo], tmp_path / "big.webp"), tmp_path) == ["big.webp"]
    assert targets(plan_jobs([photo], out), tmp_path) == ["out/photo.jpg"]
    assert targets(plan_jobs([photo, other], out, suffix=".png"), tmp_path) == [
        "out/photo.png",
        "out/other.png",
    ]
    assert targets(plan_jobs([folder]), tmp_path) == ["in_x2/other.png"]
    assert targets(plan_jobs([folder], out, recursive=True), tmp_path) == [
        "out/deep/anim.png",
        "out/other.png",
    ]
    # Results inside the input folder are not taken for inputs the next time.
    save(folder / "big" / "other.png")
    assert targets(plan_jobs([folder], folder / "big", recursive=True), tmp_path) == [
        "in/big/deep/anim.png",
        "in/big/other.png",
    ]


def test_impossible_plans_are_refused(tmp_path):
    photo = save(tmp_path / "a" / "photo.png")
    twin = save(tmp_path / "b" / "photo.png")
    with pytest.raises(UsageError, match="is an input: it would be overwritten"):
        plan_jobs([photo], photo)
    with pytest.raises(UsageError, match="would both become"):
        plan_jobs([photo, twin], tmp_path / "out")
    with pytest.raises(UsageError, match="is one file, but there are several pictures"):
        plan_jobs([photo, twin], tmp_path / "out.png")
    with pytest.raises(UsageError, match="no such file or folder"):
        plan_jobs([tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures in"):
        plan_jobs([tmp_path / "empty"])
    with pytest.raises(UsageError, match=r"suffix '\.xyz'"):
        plan_jobs([photo], tmp_path / "out.xyz")


def test_files_hold_what_the_network_gives(tmp_path, graphs):
    upscaler = Upscaler(graphs[2], precision="fp32")
    photo = save(tmp_path / "photo.png", 40, 31, dpi=(100, 100))
    (outcome,) = upscale_files(plan_jobs([photo]), upscaler)
    assert (outcome.status, outcome.size) == ("done", (62, 80))
    result = read_picture(tmp_path / "photo_x2.png")
    assert np.array_equal(result.pixels, upscaler(read_picture(photo).pixels))
    assert result.dpi == pytest.approx((200, 200), abs=0.1)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_large_pictures_take_another_way_to_the_same_result(tmp_path, graphs, monkeypatch, suffix):
    photo = save(tmp_path / f"photo{suffix}", 150, 170)
    upscaler = Upscaler(graphs[2], precision="fp32", tile=64)
    upscale_files(plan_jobs([photo], tmp_path / f"small{suffix}"), upscaler)
    monkeypatch.setattr(files_module, "_LARGE_BYTES", 100)
    upscale_files(plan_jobs([photo], tmp_path / f"large{suffix}"), upscaler)
    small, large = (read_picture(tmp_path / f"{n}{suffix}").pixels for n in ("small", "large"))
    assert np.array_equal(small, large)


def test_one_bad_file_does_not_stop_the_others(tmp_path, graphs):
    folder = tmp_path / "in"
    for name in ("a", "c", "d"):
        save(folder / f"{name}.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    outcomes = upscale_files(plan_jobs([folder]), Upscaler(graphs[2]))
    assert [o.status for o in outcomes] == ["done", "failed", "done", "done"]
    assert "b.png" in outcomes[1].error
    assert sorted(p.name for p in (tmp_path / "in_x2").iterdir()) == ["a.png", "c.png", "d.png"]


def test_what_exists_is_kept_unless_told(tmp_path, graphs):
    photo = save(tmp_path / "photo.png")
    target = tmp_path / "photo_x2.png"
    target.write_text("mine")
    (kept,) = upscale_files(plan_jobs([photo]), Upscaler(graphs[2]))
    assert kept.status == "kept"
    assert target.read_text() == "mine"
    (done,) = upscale_files(plan_jobs([photo]), Upscaler(graphs[2]), overwrite=True)
    assert done.status == "done"
    assert read_picture(target).pixels.shape == (24, 20, 3)


def test_more_pictures_than_the_queues_hold(tmp_path, graphs):
    for number in range(15):
        save(tmp_path / "in" / f"{number:02}.png", 10 + number, 20)
    outcomes = upscale_files(plan_jobs([tmp_path / "in"]), Upscaler(graphs[2]))
    assert [o.size for o in outcomes] == [(40, 20 + 2 * n) for n in range(15)]


def test_what_is_large_is_the_result(tmp_path, graphs, monkeypatch):
    """Of four pictures with as many pixels, those with the largest results go the other way."""
    kinds = {"grey": (1, np.uint8), "deep": (1, np.uint16), "rgb": (3, np.uint8)}
    for name, (channels, kind) in kinds.items():
        write_picture(tmp_path / f"{name}.png", np.zeros((10, 10, channels), kind))
    taken = []
    large = files_module._Pipeline.large
    monkeypatch.setattr(
        files_module._Pipeline,
        "large",
        lambda self, job: taken.append(job.source.stem) or large(self, job),
    )
    # x2 gives 400 bytes of grey, 800 of 16-bit grey, 1200 of RGB; x3 900, 1800, 2700.
    for scale, limit, expected in (
        (2, 799, ["deep", "rgb"]),
        (2, 800, ["rgb"]),
        (3, 1800, ["rgb"]),
    ):
        taken.clear()
        monkeypatch.setattr(files_module, "_LARGE_BYTES", limit)
        jobs = plan_jobs([tmp_path / f"{n}.png" for n in kinds], tmp_path / "out", scale=scale)
        outcomes = upscale_files(jobs, Upscaler(graphs[scale], scale=scale), overwrite=True)
        assert [o.status for o in outcomes] == ["done"] * 3
        assert taken == expected


def test_interrupted_while_it_reports(tmp_path, graphs):
    """When the interruption arrives at the caller, nothing is being written any more."""
    for number in range(8):
        save(tmp_path / "in" / f"{number}.png", 200, 200)

    def interrupt(_outcome):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt) as caught:
        upscale_files(plan_jobs([tmp_path / "in"]), Upscaler(graphs[2]), on_outcome=interrupt)
    assert caught.traceback  # which holds the frames, and all that they hold, alive
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(1)
    assert not any(thread.is_alive() for thread in left)
    written = list((tmp_path / "in_x2").iterdir())
    assert 1 <= len(written) < 8
    for path in written:
        assert read_picture(path).pixels.shape == (400, 400, 3)
