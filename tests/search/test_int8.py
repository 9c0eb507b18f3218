"""Classifiers in int8: the file's accuracy, training for it, what the search writes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from collapsible.deploy.litert import run_litert
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.models import RanE
from collapsible.models.ran_e import Site
from collapsible.reproduce.ran_search import draw_pictures
from collapsible.search.int8 import draw_calibration, make_int8, score_file, train_int8
from collapsible.search.plan import read_plan
from collapsible.search.restructure import restructure
from collapsible.search.restructure_report import RestructureSpec
from collapsible.search.restructuring import Restructuring, default_recipe
from collapsible.training import Classification

SITES = ((Site(False, 16, 3, 4, 2),), (Site(False, 16, 3, 4),))
SIZE = (1, 3, 32, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.getbasetemp() / "int8-cache"))


@pytest.fixture
def pictures(tmp_path) -> Path:
    return draw_pictures(tmp_path / "pictures", 32)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return RanE(SITES, stem=8, top=24, num_classes=3, drop_rate=0.0).eval()


@pytest.fixture
def task(pictures, network) -> Classification:
    made = default_recipe("tiny", 32, 4)
    data = dataclasses.replace(made.data, batch=16, test_crop=1.0)
    return Classification(
        dataclasses.replace(made, data=data, checkpoint_every=2), pictures, network=network
    )


@pytest.mark.slow
def test_a_file_is_scored_as_it_is_run_and_trained_before(task, network, tmp_path):
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    path = tmp_path / "net.tflite"
    report = make_int8(network, task, path, steps=4, calibration=6)
    (pictures,) = task.sets.values()
    from PIL import Image

    transform = task.preprocessing.transform()
    right = 0
    for place in range(len(pictures)):
        x = transform(Image.fromarray(pictures.read(place)))[None].numpy()
        right += int(run_litert(path, x).argmax()) == pictures.label(place)
    assert report.trained == pytest.approx(100 * right / 48)
    assert score_file(path, pictures, task.preprocessing).sum() == right
    assert (report.pictures, report.steps, report.file) == (48, 4, str(path))
    assert f"{report.after:.2f} %" in report.table()


def test_training_moves_weights_and_keeps_ranges_in_the_second_half(task, network, tmp_path):
    plain, form = train_int8(network, task, tmp_path / "int8", steps=4, calibration=6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    pairs = zip(plain.state_dict().values(), form.plain().state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    before = draw_calibration(task, 6)
    assert [one.shape for one in before] == [(3, 32, 32)] * 6
    with torch.no_grad():
        x = torch.from_numpy(np.stack(before))
        assert not torch.allclose(plain(x), network(x), atol=1e-6)
    # Asked again, what is finished is read.
    again, _ = train_int8(network, task, tmp_path / "int8", steps=4, calibration=6, resume=True)
    pairs = zip(plain.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(UsageError, match="steps=1: the least is 2"):
        train_int8(network, task, tmp_path / "other", steps=1)


def test_no_pictures_to_measure_on(task, network, tmp_path):
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    task.sets.clear()
    with pytest.raises(UsageError, match="no validation pictures"):
        make_int8(network, task, tmp_path / "net.tflite")


def test_latencies_of_another_size_than_the_pictures(task, network, tmp_path):
    job = Restructuring(network, task, "npu-4tops", folder=tmp_path, input_size=(1, 3, 48, 48))
    with pytest.raises(UsageError, match=r"int8: latencies are of \[1, 3, 48, 48\]"):
        job.write_int8(network, None)


@pytest.mark.slow
def test_the_search_measures_this_machine(task, network, tmp_path):
    """The target ``host``: latencies by the clock, so only what must hold of any is asked."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    made, report = restructure(
        network,
        task,
        "host",
        1.0,
        folder=tmp_path,
        spec=RestructureSpec(2),
        input_size=SIZE,
        cache=tmp_path / "cache",
    )
    assert report.plan.source.startswith("measured")
    assert all(block.keep_ms > 0 for block in report.plan.blocks)
    assert report.after_ms > 0
    assert report.cpu_operators == ()
    found = collapse(made)[0] if report.plan.changed else made
    assert found(torch.zeros(SIZE)).shape == (1, 3)


@pytest.mark.slow
def test_two_processes_search_to_the_end(tmp_path):
    """torchrun with gloo: the chain to its end."""
    draw_pictures(tmp_path / "data", 32)
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\ntask = "classification"\nsteps = 2\n[network]\nname = "x"\n'
        "[data]\nsize = 32\ntest_crop = 1.0\nbatch = 8\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: str, *launcher: str) -> Path:
        line = ["-m", "collapsible", "search", "ran-e", "timm:mobilenetv2_035", "--data", "data"]
        line += ["--recipe", "tiny.toml", "--target", "npu-4tops", "--input-size", "1,3,32,32"]
        line += ["--search-steps", "2", "--budget", "0.95", "--distil", "0.5", "--out", out]
        subprocess.run(
            [sys.executable, *launcher, *line],
            check=True,
            capture_output=True,
            env=environment,
            cwd=tmp_path,
            timeout=400,
        )
        return tmp_path / out

    two = run("two", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    one = run("one")
    plans = [read_plan(folder / "plan.toml") for folder in (two, one)]
    assert plans[0].before_ms == plans[1].before_ms
    assert plans[0].after_ms <= plans[0].budget_ms
    record = json.loads((two / "report.json").read_text())
    assert record["collapse_error"] < 1e-9
