"""``tools/draw_pictures.py``: what is drawn to train on beside photographs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collapsible.imaging import psnr, resize

TOOL = Path(__file__).parents[2] / "tools" / "draw_pictures.py"


def drawn(folder: Path, *options: str) -> list[np.ndarray]:
    command = [sys.executable, str(TOOL), str(folder), "--count", "3", "--side", "128", *options]
    subprocess.run(command, check=True)
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("options", [(), ("--pages",)])
def test_the_same_seed_draws_the_same_and_another_one_others(tmp_path, options):
    first, again = (drawn(tmp_path / name, *options) for name in ("a", "b"))
    other = drawn(tmp_path / "c", *options, "--seed", "1")
    assert [a.shape[:2] for a in first] == [(128, 128)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a in first for b in other)


def test_pages_are_text_that_bicubic_enlargement_misses(tmp_path):
    misses = []
    for page in drawn(tmp_path, "--pages"):
        assert page.ndim == 2
        assert np.bincount(page.ravel()).max() < 0.95 * page.size
        misses.append(psnr(page, resize(resize(page, scale=0.5), scale=2.0), crop=2))
    # Of photographs such as Set14's it leaves 30 dB.
    assert np.median(misses) < 28
