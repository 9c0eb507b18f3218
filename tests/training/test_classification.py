"""Classifiers train by the same loop: they learn, resume bit for bit, say what is wrong."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import DropPath  # pyright: ignore[reportPrivateImportUsage]

from collapsible.errors import PictureError, UsageError, WeightsError
from collapsible.evaluation import evaluate_classifier
from collapsible.evaluation.labelled import find_labelled
from collapsible.models import create_classifier, load_classifier
from collapsible.models.registry import save_weights
from collapsible.training import (
    Classification,
    build_classifier,
    read_recipe,
    train_classifier,
)
from collapsible.training.checkpoints import list_checkpoints, load_checkpoint
from collapsible.training.decoded import DecodedPictures
from collapsible.training.loop import build_optimiser


def losses(folder: Path) -> list[tuple[int, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return [(int(s), value) for s, name, value in csv.reader(file) if name == "loss"]


def run(recipe: Path, data: Path, folder: Path, **options):
    return train_classifier(read_recipe(recipe), data, folder, **options)[0]


def test_a_run_leaves_a_classifier_that_loads_by_its_path(class_recipe, classes, tmp_path):
    report = run(class_recipe(), classes, tmp_path / "run")
    assert set(report.metrics) == {"val/top1", "val/top5"}
    assert "% (measured)" in report.table()
    network, card = load_classifier(report.weights)
    assert card.classes == ("ant", "bee", "cat")
    assert card.recipe == "tiny-classes"
    assert card.preprocessing.size == 32
    assert card.metrics == report.metrics
    assert not network.training
    average = load_checkpoint(report.checkpoint).average
    assert all(torch.equal(v, average[n]) for n, v in network.state_dict().items())
    # The curve of the run and the command's figure are one measure.
    measured = evaluate_classifier(report.weights, classes)
    assert measured.top1 == report.metrics["val/top1"]
    assert measured.top5 == report.metrics["val/top5"] == 100


def test_it_learns_what_a_colour_tells(class_recipe, classes, tmp_path):
    file = class_recipe(
        steps=60,
        every=60,
        mild=('rand_augment = "rand-m9-mstd0.5-inc1"\nmixup = 0.8\ncutmix = 1.0\n', ""),
        path=("drop_path_rate = 0.3", "ls_init_value = 0.1"),
    )
    assert run(file, classes, tmp_path / "run").metrics["val/top1"] >= 90


@pytest.mark.parametrize("network", ["timm:convnext_atto", "timm:resnet10t"])
def test_a_stopped_run_goes_on_bit_for_bit(class_recipe, classes, tmp_path, network):
    """With drop path, whose draws are the network's own, and batch norm's running means."""
    changes = {}
    if network == "timm:resnet10t":
        changes["name"] = ("timm:convnext_atto", network)
        changes["options"] = (
            "depths = [1, 1, 2, 1], dims = [8, 16, 24, 32]",
            "channels = [8, 16, 24, 32], stem_width = 4",
        )
    file = class_recipe(**changes)
    run(file, classes, tmp_path / "whole")
    run(file, classes, tmp_path / "parts", stop_after=4)
    torch.rand(7)
    np.random.rand(3)
    run(file, classes, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ends = [load_checkpoint(list_checkpoints(tmp_path / n)[-1]) for n in ("whole", "parts")]
    for a, b in ((e.average for e in ends), (e.model for e in ends)):
        assert all(torch.equal(a[name], b[name]) for name in a)


def command(recipe: Path, data: Path, out: Path, *more: str) -> list[str]:
    paths = ["--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "collapsible", "train", str(recipe), *paths, *more]


@pytest.mark.slow
def test_processes_that_draw_ahead_change_nothing(class_recipe, classes, tmp_path):
    file = class_recipe(steps=4)
    # Each in a process of its own: this one may hold libraries that object to being forked.
    for name, workers in (("thread", "0"), ("workers", "2")):
        given = command(file, classes, tmp_path / name, "--workers", workers)
        done = subprocess.run(given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "workers") == losses(tmp_path / "thread")


@pytest.mark.slow
def test_after_kill_9_the_losses_are_the_same_bit_for_bit(class_recipe, classes, tmp_path):
    file = class_recipe(steps=80, every=10)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def finish(name: str, *more: str) -> None:
        line = command(file, classes, tmp_path / name, *more)
        subprocess.run(line, check=True, capture_output=True, env=environment)

    finish("whole")
    killed = subprocess.Popen(
        command(file, classes, tmp_path / "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (at,) = {int(p.name[5:]) for p in list_checkpoints(tmp_path / "killed")[-1:]}
    assert at < 80, "the run ended before it could be killed"
    finish("killed", "--resume")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    ends = [tmp_path / name / "weights.safetensors" for name in ("whole", "killed")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(class_recipe, classes, tmp_path):
    """torchrun with gloo: the same pictures, mixed alike, give the same run up to rounding."""
    file = class_recipe(steps=4, every=4, still=("drop_path_rate = 0.3", "drop_path_rate = 0.0"))
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [*line, *command(file, classes, tmp_path / "two")[2:]],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    run(file, classes, tmp_path / "one")
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [s for s, _ in two] == [s for s, _ in one]
    for (_, a), (_, b) in zip(two, one, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-4)
    assert load_classifier(tmp_path / "two" / "weights.safetensors")[1].classes[0] == "ant"


def test_batches_are_epochs_and_divide_among_processes(class_recipe, classes):
    task = Classification(read_recipe(class_recipe()), classes)
    whole = task.batch(3, range(8))
    halves = [task.batch(3, range(0, 4)), task.batch(3, range(4, 8))]
    for part in (0, 1):
        assert torch.equal(whole[part], torch.cat([half[part] for half in halves]))
    assert torch.allclose(whole[1].sum(1), torch.ones(8))
    plain = class_recipe(mild=("mixup = 0.8\ncutmix = 1.0", ""))
    task = Classification(read_recipe(plain), classes)
    # 18 pictures are 2.25 batches: the first 18 draws are each of them once.
    labels = torch.cat([task.batch(step, range(8))[1].argmax(1) for step in range(3)])[:18]
    assert sorted(labels.tolist()) == [0] * 6 + [1] * 6 + [2] * 6


def test_drop_path_drops(class_recipe, classes):
    """The published training script takes the flag and drops nothing; here blocks are skipped."""
    task = Classification(read_recipe(class_recipe()), classes)
    network = build_classifier(task.recipe)
    rates = [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]
    # Linear from 0, where timm leaves the module out, to the recipe's rate.
    assert rates == pytest.approx([0.3 * place / 4 for place in range(1, 5)])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
    x = torch.rand(4, 3, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_layer_scale_and_weight_decay_are_the_recipes(class_recipe, classes):
    recipe = read_recipe(class_recipe())
    network = build_classifier(Classification(recipe, classes).recipe)
    gammas = [p for n, p in network.named_parameters() if n.endswith("gamma")]
    assert gammas
    assert all(torch.allclose(g, torch.full_like(g, 1e-6)) for g in gammas)
    groups = build_optimiser(network, recipe.optimiser).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        vector = name.endswith(("bias", "gamma")) or "norm" in name
        assert decay[id(parameter)] == (0 if vector or parameter.ndim < 2 else 0.05), name


def test_the_loss_is_the_fields(class_recipe, classes):
    """torch's smoothing against timm's mixed and smoothed targets."""
    from timm.data.mixup import mixup_target
    from timm.loss import SoftTargetCrossEntropy

    task = Classification(read_recipe(class_recipe()), classes)
    labels = torch.tensor([0, 2, 1, 1])
    timm_targets = mixup_target(labels, 3, lam=0.7, smoothing=0.1)
    hard = torch.nn.functional.one_hot(labels, 3).float()
    scores = torch.randn(4, 3)
    ours = task.loss(scores, 0.7 * hard + 0.3 * hard.flip(0))
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(scores, timm_targets))


def test_pictures_are_decoded_once_within_a_bound(classes, monkeypatch):
    source = find_labelled(classes / "train")
    sizes = [source.read(i).size for i in range(len(source))]
    bound = sum(sizes[:4])
    kept = DecodedPictures(source, bound=bound)
    assert (kept.folder / "pixels.bin").stat().st_size <= bound
    again = DecodedPictures(source, bound=bound)
    pixels = [source.read(i) for i in range(len(source))]
    assert all(np.array_equal(again.read(i), pixels[i]) for i in range(len(source)))
    reads = []
    monkeypatch.setattr(
        type(source), "read", lambda self, index: reads.append(index) or pixels[index]
    )
    for index in range(len(source)):
        again.read(index)
    assert reads == [int(place) for place, start, *_ in again.table if start < 0]
    assert len(reads) == len(source) - 4


def test_unreadable_pictures_are_named_and_skipped_or_refused(class_recipe, classes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(classes / "train", data)
    good = (data / "ant" / "0.jpg").read_bytes()
    (data / "ant" / "0.jpg").write_bytes(good[: len(good) // 2])
    (data / "bee" / "x.png").write_text("no picture")
    task = Classification(read_recipe(class_recipe()), data)
    assert [Path(name).name for name, _ in task.skipped] == ["0.jpg", "x.png"]
    assert len(task.pictures) == 17
    with pytest.raises(PictureError, match=r"2 of 19 pictures cannot be read; .*0\.jpg"):
        Classification(read_recipe(class_recipe()), data, strict=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d), "no folder of labelled pictures"),
        (lambda d: [shutil.rmtree(p) for p in d.iterdir()], "holds no class folders"),
        (lambda d: [p.unlink() for p in d.rglob("*.*")], "class folders hold no pictures"),
        (lambda d: [shutil.rmtree(d / n) for n in ("ant", "bee")], "only class cat has readable"),
        (lambda d: [p.unlink() for p in (d / "bee").iterdir()], "no pictures in class bee"),
        (
            lambda d: [p.write_text("") for n in ("ant", "bee") for p in (d / n).iterdir()],
            r"only class cat has readable pictures \(12 of 18 could not be read\)",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on(class_recipe, classes, tmp_path, spoil, message):
    data = tmp_path / "data"
    shutil.copytree(classes / "train", data)
    spoil(data)
    with pytest.raises(UsageError, match=message):
        Classification(read_recipe(class_recipe()), data)


def test_validation_with_unknown_classes_is_refused(class_recipe, classes, tmp_path):
    (tmp_path / "val" / "dog").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "val" / "dog" / "1.png")
    with pytest.raises(UsageError, match=r"classes that are not known: dog; known are ant, bee"):
        Classification(read_recipe(class_recipe()), classes / "train", {"own": tmp_path / "val"})


def test_wrong_numbers_of_classes_are_named(class_recipe, classes, tmp_path):
    fixed = class_recipe(n=("drop_path_rate = 0.3", "num_classes = 7"))
    with pytest.raises(UsageError, match=r"num_classes = 7, but the data have 3 classes \(ant"):
        Classification(read_recipe(fixed), classes)
    report = run(class_recipe(steps=2), classes, tmp_path / "run", stop_after=1)
    fewer = tmp_path / "fewer"
    shutil.copytree(classes, fewer)
    for part in ("train", "val"):
        shutil.rmtree(fewer / part / "cat")
    two = class_recipe(steps=2)
    with pytest.raises(UsageError, match=r"data\.classes was \['ant', 'bee', 'cat'\], now \['an"):
        run(two, fewer, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match=r"knows 3 classes \(ant, bee, cat\); the data have 2"):
        run(two, fewer, tmp_path / "new", start=report.weights)
    report.weights.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match="is a classifier of 3 classes; the data have 2"):
        run(two, fewer, tmp_path / "new", start=report.weights)


def test_weights_of_another_network_are_refused(class_recipe, classes, tmp_path):
    other = create_classifier("timm:resnet10t", 3, channels=[8, 8, 8, 8], stem_width=4)
    save_weights(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit ConvNeXt"):
        run(class_recipe(), classes, tmp_path / "run", start=tmp_path / "other.safetensors")
    run(class_recipe(), classes, tmp_path / "run", stop_after=2)
    changed = class_recipe(dims=("dims = [8, 16, 24, 32]", "dims = [8, 16, 24, 40]"))
    with pytest.raises(UsageError, match=r"network\.options was .* now .*40"):
        run(changed, classes, tmp_path / "run", resume=True)


def test_what_is_no_classifier_is_said(class_recipe, classes):
    for old, new, message in (
        ("timm:convnext_atto", "sesr_m2", "sesr_m2"),
        ("drop_path_rate = 0.3", "nonsense = 1", "nonsense"),
        ("depths = [1, 1, 2, 1]", "patch_size = 64", "does not take 32x32"),
    ):
        recipe = read_recipe(class_recipe(change=(old, new)))
        with pytest.raises(UsageError, match=message):
            Classification(recipe, classes)
