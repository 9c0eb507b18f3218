"""``collapsible evaluate`` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.imaging import write_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture = np.random.default_rng(0).integers(0, 256, (36, 38, 3), dtype=np.uint8)
    write_picture(tmp_path / "a.png", picture)
    return tmp_path


def test_json_has_the_promised_keys(folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "bicubic", "--data", str(folder), "--json"])
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert {
        "model",
        "scale",
        "data",
        "protocol",
        "psnr",
        "ssim",
        "psnr_picture",
        "ssim_picture",
        "pictures",
    } <= set(record)
    assert record["pictures"][0]["name"] == "a"


def test_table_ends_with_the_mean(folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "bicubic", "--data", str(folder)])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("mean")


def test_unknown_model_is_wrong_use(folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "sesr-m55", "--data", str(folder)])
    assert result.exit_code == 2
    assert "unknown model 'sesr-m55'" in result.stderr


def test_a_bad_picture_is_named(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"not a picture")
    result = CliRunner().invoke(app, ["evaluate", "bicubic", "--data", str(folder)])
    assert result.exit_code == 1
    assert "b.png" in result.stderr
    assert result.stdout == ""
