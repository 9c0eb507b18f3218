"""The loop learns, resumes bit for bit, stops on NaN, and works on several processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from collapsible.errors import TrainingError, UsageError, WeightsError
from collapsible.training import SuperResolution, build_network, read_recipe, train
from collapsible.training.checkpoints import list_checkpoints, load_checkpoint


def losses(folder: Path) -> list[tuple[int, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return [(int(s), value) for s, name, value in csv.reader(file) if name == "loss"]


def run(recipe_path: Path, pictures: Path, folder: Path, **options):
    recipe = read_recipe(recipe_path)
    task = SuperResolution(recipe, [pictures], {"own": pictures})
    return train(build_network(recipe), task, recipe, folder, **options)


def test_a_run_leaves_weights_logs_and_whole_checkpoints(recipe_file, pictures, tmp_path):
    seen = []
    report = run(recipe_file(), pictures, tmp_path / "run", on_step=seen.append)
    assert [p.step for p in seen] == list(range(1, 13))
    assert report.steps == 12
    assert set(report.metrics) == {"own"}
    assert 5 < report.metrics["own"] < 60
    assert len(losses(tmp_path / "run")) == 12
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == [
        "step-00000008",
        "step-00000012",
    ]
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    again = build_network(read_recipe(recipe_file()), report.weights)
    average = load_checkpoint(report.checkpoint).average
    assert all(torch.equal(v, average[n]) for n, v in again.state_dict().items())
    assert "dB (measured)" in report.table()


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "adam"), ("bf16", "adam"), ("fp32", "soap")]
)
def test_a_stopped_run_goes_on_bit_for_bit(recipe_file, pictures, tmp_path, precision, kind):
    # SOAP turns its basis every tenth step: once before the stop, and once after.
    steps, stop = (24, 12) if kind == "soap" else (12, 6)
    file = recipe_file(extra="")
    text = file.read_text().replace("steps = 12", f'steps = {steps}\nprecision = "{precision}"')
    file.write_text(text.replace("[optimiser]", f'[optimiser]\nkind = "{kind}"'))
    run(file, pictures, tmp_path / "whole")
    run(file, pictures, tmp_path / "parts", stop_after=stop)
    run(file, pictures, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ends = [load_checkpoint(list_checkpoints(tmp_path / n)[-1]) for n in ("whole", "parts")]
    for a, b in ((e.average for e in ends), (e.model for e in ends)):
        assert all(torch.equal(a[name], b[name]) for name in a)


def command(recipe: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "collapsible",
        "train",
        str(recipe),
        "--data",
        str(pictures),
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.slow
def test_after_kill_9_the_losses_are_the_same_bit_for_bit(recipe_file, pictures, tmp_path):
    file = recipe_file(steps=400, every=50)
    subprocess.run(command(file, pictures, tmp_path / "whole"), check=True, capture_output=True)
    killed = subprocess.Popen(
        command(file, pictures, tmp_path / "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (at,) = {int(p.name[5:]) for p in list_checkpoints(tmp_path / "killed")[-1:]}
    assert at < 400, "the run ended before it could be killed"
    subprocess.run(
        command(file, pictures, tmp_path / "killed", "--resume"), check=True, capture_output=True
    )
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    ends = [tmp_path / name / "weights.safetensors" for name in ("whole", "killed")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(recipe_file, pictures, tmp_path):
    """torchrun with gloo: the same batches, divided, give the same run up to rounding."""
    file = recipe_file(steps=8, every=8)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"),
            *command(file, pictures, tmp_path / "two")[2:],
        ],
        check=True,
        capture_output=True,
        env=environment,
        timeout=240,
    )
    run(file, pictures, tmp_path / "one")
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [s for s, _ in two] == [s for s, _ in one]
    for (_, a), (_, b) in zip(two, one, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-4)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(recipe_file, pictures, tmp_path):
    recipe = read_recipe(recipe_file())
    task = SuperResolution(recipe, [pictures], {})

    class Poisoned:
        def batch(self, step, places):
            low, high = task.batch(step, places)
            return (low * float("nan"), high) if step == 6 else (low, high)

        loss, validate = staticmethod(task.loss), staticmethod(task.validate)

    with pytest.raises(TrainingError, match=r"became nan at step 7; .*step-00000004"):
        train(build_network(recipe), Poisoned(), recipe, tmp_path / "run")
    good = load_checkpoint(list_checkpoints(tmp_path / "run")[-1])
    assert all(value.isfinite().all() for value in good.model.values())


def test_runs_are_not_mixed_up(recipe_file, pictures, tmp_path):
    run(recipe_file(), pictures, tmp_path / "run", stop_after=4)
    with pytest.raises(UsageError, match="holds a run already: --resume"):
        run(recipe_file(), pictures, tmp_path / "run")
    with pytest.raises(UsageError, match="comes from another recipe"):
        run(recipe_file(rate=2e-3), pictures, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused_not_unpickled(recipe_file, pictures, tmp_path):
    run(recipe_file(), pictures, tmp_path / "run", stop_after=4)
    (checkpoint,) = list_checkpoints(tmp_path / "run")

    class Payload:
        def __reduce__(self):
            return os.system, ("exit 1",)

    torch.save({"optimiser": Payload(), "random": 0}, checkpoint / "state.pt")
    with pytest.raises(WeightsError, match="not a usable checkpoint"):
        run(recipe_file(), pictures, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_short_training_on_real_pictures_beats_bicubic(shared_data, recipe_file, tmp_path):
    """Published bicubic on Set5 x2 is 33.66 dB; 300 small steps on 91 pictures must pass it."""
    file = recipe_file(steps=300, every=300, rate=2e-3)
    text = file.read_text().replace("patch = 16\nbatch = 4", "patch = 32\nbatch = 16")
    text = text.replace("average = 0.9", "average = 0.98").replace("features = 8, ", "")
    file.write_text(text)
    recipe = read_recipe(file)
    data = shared_data / "sr"
    task = SuperResolution(recipe, [data / "train/T91"], {"Set5": data / "Set5/HR"})
    report = train(build_network(recipe), task, recipe, tmp_path / "run")
    assert report.metrics["Set5"] > 34.2


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_validation_is_what_evaluate_prints(shared_data, recipe_file, name):
    """The curve of a run and the figure of ``collapsible evaluate`` are one measure.

    Set14 has a grey picture, whose values are its luma.
    """
    from collapsible.evaluation import evaluate_luma, read_pairs
    from collapsible.evaluation.networks import luma_function

    recipe = read_recipe(recipe_file())
    pictures = shared_data / "sr" / name / "HR"
    network = build_network(recipe).eval()
    task = SuperResolution(recipe, [pictures], {name: pictures})
    scores = evaluate_luma(luma_function(network), read_pairs(pictures, 2), 2)
    assert task.validate(network)[name] == pytest.approx(
        sum(psnr for psnr, _ in scores) / len(scores), abs=2e-3
    )
