"""``collapsible train`` and ``collapsible collapse`` as people type them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.models import create_model

RECIPE = """
name = "tiny"
task = "super-resolution"
steps = 3
[network]
name = "sesr_m2"
options = { features = 4, expansion = 8 }
[data]
patch = 8
batch = 2
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a recipe and pictures; the cache is its own."""
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "data" / "a.png")
    return tmp_path


def test_train_collapse_and_go_on(work):
    run = ("train", work / "tiny.toml", "--data", work / "data", "--out", work / "run")
    done = call(*run, "--validate", f"own={work / 'data'}", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 3
    own = report["metrics"]["own"]
    assert own > 0
    # Not a terminal, so no bar: a line for each validation, as a log file wants it.
    assert f"step 3 of 3: loss {report['loss']:.5f} own {own:.2f} dB" in done.stderr
    again = call(*run)
    assert again.exit_code == 2
    assert "holds a run already: --resume" in again.stderr
    resumed = call(*run, "--resume")
    assert resumed.exit_code == 0
    assert "steps       3 to 3" in resumed.stdout


def test_bad_pictures_are_named_and_training_goes_on(work):
    (work / "data" / "bad.jpg").write_text("nothing")
    done = call("train", work / "tiny.toml", "--data", work / "data", "--out", work / "run")
    assert done.exit_code == 0
    assert "left out" in done.stderr
    assert "bad.jpg" in done.stderr


def test_a_run_of_twice_the_width_teaches(work):
    """By the option as by the recipe's own table; without either the targets are others."""
    wide = (work / "tiny.toml").read_text().replace("features = 4", "features = 8")
    (work / "wide.toml").write_text(wide)
    made = call("train", work / "wide.toml", "--data", work / "data", "--out", work / "wide")
    assert made.exit_code == 0, made.stderr
    weights = work / "wide" / "weights.safetensors"
    (work / "taught.toml").write_text(f'{RECIPE}[teacher]\nmodel = "{weights}"\n')

    def loss(recipe, *options):
        out = work / f"run-{recipe}-{len(options)}"
        run = call(
            "train", work / recipe, "--data", work / "data", "--out", out, *options, "--json"
        )
        assert run.exit_code == 0, run.stderr
        return json.loads(run.stdout)["loss"]

    plain, taught = loss("tiny.toml"), loss("taught.toml")
    assert plain != taught
    assert loss("tiny.toml", "--teacher", weights) == taught
    assert loss("taught.toml", "--teacher", "") == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--teacher", "none.safetensors"], "teacher.model: no weights at none.safetensors"),
        (["--teacher", "sesr-m4"], "sesr-m4"),
        (["--steps", "0"], "--steps 0: the least is 1"),
        (["--validate", "Set5"], "expected NAME=FOLDER"),
        (["--data", "nowhere"], "no folder of pictures at nowhere"),
        (["--start", "none.safetensors"], "no weights to start from"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(work, change, message):
    base = ["train", work / "tiny.toml", "--data", work / "data", "--out", work / "run"]
    result = call(*base, *change)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_classifier_has_no_such_teacher(work):
    result = call("train", "classify-imagenette160", "--data", work, "--teacher", "sesr-m3")
    assert result.exit_code == 2
    assert "--teacher is for super-resolution" in result.stderr


def test_unknown_recipe_offers_the_nearest(work):
    result = call("train", "sesr-m5-x2z", "--data", work / "data")
    assert result.exit_code == 2
    assert "did you mean 'sesr-m5-x2'" in result.stderr


def test_collapse_writes_the_small_network(work):
    network = create_model("sesr_m3")
    from safetensors.torch import save_file

    save_file(network.state_dict(), work / "wide.safetensors")
    out = work / "narrow.safetensors"
    done = call("collapse", "sesr-m3", "--weights", work / "wide.safetensors", "-o", out, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["max_error_float64"] < 1e-9
    state = load_file(out)
    assert sum(v.numel() for v in state.values() if v.ndim == 4) == 8912
    loaded = create_model("sesr_m3", weights=out)
    x = torch.rand(1, 1, 9, 9)
    torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=1e-5)


def test_collapse_names_what_is_wrong(work):
    assert call("collapse", "sesr-m3", "--weights", work / "none.safetensors").exit_code == 1
    unknown = call("collapse", "sesr-q3")
    assert unknown.exit_code == 2
    assert "did you mean" in unknown.stderr
