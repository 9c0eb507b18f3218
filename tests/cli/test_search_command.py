"""``collapsible search ran-e`` as people type it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.reproduce.ran_search import draw_pictures

RECIPE = """
name = "tiny"
task = "classification"
steps = 3
[network]
name = "ignored"
[data]
size = 32
test_crop = 1.0
batch = 8
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path, tmp_path_factory, monkeypatch):
    # One cache for all: every test asks for the latencies of the same blocks.
    cache = tmp_path_factory.getbasetemp() / "search-command-cache"
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    draw_pictures(tmp_path / "data", 32)
    return tmp_path


BASE = ("search", "ran-e", "timm:mobilenetv2_035", "--data", "data", "--recipe", "tiny.toml")
BASE = (*BASE, "--target", "npu-4tops", "--input-size", "1,3,32,32", "--out", "run")


@pytest.mark.slow
def test_search_edit_and_follow(work):
    done = call(*BASE, "--search-steps", 3, "--budget", "0.95", "--plan", "p.toml", "--plan-only")
    assert done.exit_code == 0, done.stderr
    assert "budget" in done.stdout
    assert not (work / "run" / "finetune").exists()
    text = (work / "p.toml").read_text()
    place = text.index('name = "blocks.6.0"')
    line = text[place:].splitlines()[1]
    other = 'form = "dense"' if "keep" in line else 'form = "keep"'
    (work / "p.toml").write_text(text[:place] + text[place:].replace(line, other, 1))
    done = call(*BASE, "--plan", "p.toml", "--int8", "--json")
    assert done.exit_code == 0, done.stderr
    assert "is followed" in done.stderr
    record = json.loads(done.stdout)
    assert record["plan"]["changed"].get("blocks.6.0", "keep") in other
    assert record["collapse_error"] < 1e-9
    assert (work / "run" / "network.onnx").stat().st_size > 10_000
    assert (work / "run" / "network.tflite").read_bytes()[4:8] == b"TFL3"
    assert 0 <= record["int8"]["after"] <= 100
    assert record["int8"]["pictures"] == 48
    assert json.loads((work / "run" / "report.json").read_text())["int8"] == record["int8"]
    again = call(*BASE, "--plan", "p.toml")
    assert again.exit_code == 2
    assert "--resume" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--budget is needed"),
        (("--budget", "fast"), "budget 'fast'"),
        (("--budget", "1.5"), "at most 1"),
        (("--budget", "0.5", "--target", "ethos-u99"), "unknown target"),
        (("--budget", "0.5", "--steps", "0"), "--steps 0"),
        (("--budget", "0.5", "--search-steps", "0"), "search_steps=0"),
        (("--budget", "0.5", "--distil", "2"), "distil=2"),
        (("--budget", "0.5", "--input-size", "1,3,32"), "--input-size"),
        (("--budget", "0.5", "--plan", "none/p.toml"), "--plan"),
        (("--budget", "0.000001ms"), "the least is"),
        (("--budget", "0.5", "--int8-steps", "4"), "goes with --int8"),
        (("--budget", "0.5", "--int8", "--int8-steps", "1"), "0, or 2 and more"),
    ],
)
def test_wrong_use_is_one_line(work, arguments, said):
    done = call(*BASE, *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (work / "run" / "search").exists()


def test_a_network_without_bottlenecks_and_one_that_is_not_there(work):
    arguments = [*BASE, "--budget", "0.5"]
    arguments[2] = "timm:resnet10t"
    done = call(*arguments)
    assert done.exit_code == 2
    assert "Looked for" in done.stderr
    arguments[2] = "none.safetensors"
    done = call(*arguments)
    assert done.exit_code == 1
    assert "no classifier at" in done.stderr


def test_help_has_an_example():
    done = call("search", "ran-e", "--help")
    assert done.exit_code == 0
    assert "Example: collapsible search ran-e" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_trials_of_budgets_and_seeds(work):
    some = ("--search-steps", 2, "--budget", "0.95", "--seeds", 2)
    done = call(*BASE, *some)
    assert done.exit_code == 0, done.stderr
    record = json.loads((work / "run" / "trials.json").read_text())
    found = [(one["budget"], one["seed"]) for one in record["trials"]]
    assert found == [("0.95", 0), ("0.95", 1)]
    assert any(one["front"] for one in record["trials"])
    for one in record["trials"]:
        own = json.loads((work / one["folder"] / "report.json").read_text())
        assert own["after_ms"] == one["after_ms"] <= float(one["budget"]) * one["before_ms"]
        assert own["plan"]["changed"] == one["changed"]
        assert own["metrics_after"] == one["metrics_after"]
    # The seed is really used: other batches, other weights.
    weights = [work / "run" / f"0.95-{s}" / "finetune" / "weights.safetensors" for s in (0, 1)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    again = call(*BASE, *some)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    resumed = call(*BASE, *some, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    figures = ("budget", "seed", "after_ms", "changed", "metrics_after", "front")
    for one, other in zip(json.loads(resumed.stdout)["trials"], record["trials"], strict=True):
        assert {key: one[key] for key in figures} == {key: other[key] for key in figures}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "0.9,0.9"), "different budgets"),
        (("--budget", "0.9", "--seeds", "0"), "0 seeds"),
        (("--budget", "0.9,0.8", "--plan", "p.toml"), "without --plan"),
        (("--budget", "0.9,0.8", "--plan-only"), "without --plan"),
        (("--budget", "0.9,fast"), "budget 'fast'"),
    ],
)
def test_trials_that_cannot_be(work, arguments, said):
    done = call(*BASE, *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_trials_on_a_cluster(cluster, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from collapsible.search import trials

    class Runner:
        def __init__(self, setup):
            self.setup = setup

        def do(self, trial):
            report = SimpleNamespace(
                after_ms=float(trial.budget), int8=None, metrics_after={"top1": trial.seed}
            )
            return trials.TrialResult(trial, report)

    monkeypatch.setattr(trials, "TrialRunner", Runner)
    listed = trials.list_trials(["0.9", "0.8"], 2, tmp_path)
    report = trials.run_trials("setup", listed, ray=cluster)
    # In the order asked for, whichever was done first.
    assert [one.trial for one in report.results] == listed
    assert cluster.workers == 2
    assert [one.front for one in report.results] == [False, False, False, True]


def test_the_front_is_what_nothing_beats(tmp_path):
    from types import SimpleNamespace

    from collapsible.search.trials import Trial, TrialResult, mark_front

    def result(ms, top1):
        report = SimpleNamespace(after_ms=ms, int8=None, metrics_after={"val/top1": top1})
        return TrialResult(Trial("0.5", 0, tmp_path), report)

    given = [result(1.0, 50), result(2.0, 60), result(2.0, 59), result(3.0, 60), result(None, 99)]
    assert [one.front for one in mark_front(given)] == [True, True, False, False, False]
    same = [result(1.0, 50), result(1.0, 50)]
    assert all(one.front for one in mark_front(same))
