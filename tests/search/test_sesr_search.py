"""The search for SESR's shape: its supernet, its table, its choice, and all of it end to end."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.deploy.estimate import estimate
from collapsible.errors import BudgetError, UsageError
from collapsible.folding import collapse
from collapsible.imaging import write_picture
from collapsible.models import create_model
from collapsible.search.sesr_space import (
    M5,
    SesrLatencies,
    SesrShape,
    SesrSpace,
    kernel_name,
    measure_shapes,
    read_latencies,
)
from collapsible.search.sesr_supernet import SesrSupernet, ShapePressure, choose_shape
from collapsible.training import list_recipes, read_recipe
from collapsible.training.recipes import write_recipe

SPACE = SesrSpace(((3, 3), (2, 2), (1, 3), (5, 2)), (2, 3, 5), 3, ((5, 5), (3, 3), (2, 4)))


def latencies(seed: int = 0, space: SesrSpace = SPACE) -> SesrLatencies:
    """A table drawn by chance."""
    random = np.random.default_rng(seed)
    layers = {
        width: {kernel_name(k): float(random.uniform(0.5, 3)) for k in space.kernels}
        for width in space.widths
    }
    rest = {width: float(random.uniform(0.5, 1)) for width in space.widths}
    first, last = (
        {
            width: {kernel_name(k): float(random.uniform(0, 0.5)) for k in space.ends}
            for width in space.widths
        }
        for _ in range(2)
    )
    return SesrLatencies("nowhere", (1, 1, 8, 8), "drawn", 10.0, rest, layers, first, last)


def decided(shape: SesrShape, skipped: int | None = None, space: SesrSpace = SPACE) -> SesrSupernet:
    """A supernet whose choices are a shape, with a block left out where ``skipped`` says."""
    torch.manual_seed(1)
    network = SesrSupernet(space, expansion=7).double()
    chosen = list(shape.kernels)
    if skipped is not None:
        chosen.insert(skipped, space.kernels[0])
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.PReLU) or type(layer).__name__ == "FastPReLU":
                layer.weight.copy_(torch.rand_like(layer.weight))
        network.width_logits[list(space.widths).index(shape.features)] = 10.0
        network.first_logits[space.ends.index(shape.first)] = 10.0
        network.last_logits[space.ends.index(shape.last)] = 10.0
        for number, kernel in enumerate(chosen):
            network.kernel_logits[number, space.kernels.index(kernel)] = 10.0
            network.keep_logits[number] = -10.0 if number == skipped else 10.0
    return network


SHAPES = [
    (SesrShape(((3, 3), (2, 2), (5, 2)), 5), None),
    (SesrShape(((1, 3), (2, 2)), 3, (3, 3), (2, 4)), 1),
    (SesrShape(((5, 2), (3, 3)), 2, (5, 5), (3, 3)), 0),
]


@pytest.mark.parametrize(("shape", "skipped"), SHAPES)
def test_a_decided_supernet_is_the_network_of_its_shape(shape: SesrShape, skipped) -> None:
    """By torch's own convolutions, cut to the width, each padded by itself."""
    network, width = decided(shape, skipped), shape.features
    x = torch.rand(2, 1, 9, 7, dtype=torch.float64)
    there = [number for number in range(SPACE.blocks) if number != skipped]

    def conv(y: torch.Tensor, layer: torch.nn.Module, out: int) -> torch.Tensor:
        kernel, bias = layer.kernel_and_bias()
        high, wide = kernel.shape[2] - 1, kernel.shape[3] - 1
        # As torch's "same" has it, which warns of even kernels: the odd zero right and below.
        padded = F.pad(y, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(padded, kernel[:out, : y.shape[1]], bias[:out])

    with torch.no_grad():
        ends = SPACE.ends
        first = y = conv(x, network.first[ends.index(shape.first)], width)
        for number, kernel in zip(there, shape.kernels, strict=True):
            layer = network.blocks[number][SPACE.kernels.index(kernel)]
            y = F.prelu(conv(y, layer, width), network.acts[number].weight[:width])
        wanted = conv(y + first, network.last[ends.index(shape.last)], 4) + x
        found = network(x)
    torch.testing.assert_close(found, F.pixel_shuffle(wanted, 2), rtol=0, atol=1e-12)
    table = latencies()
    pressure = ShapePressure(network, table, 5.0)
    assert float(pressure.expected_ms().detach()) == pytest.approx(table.total(shape))
    assert choose_shape(network, table, table.total(shape)) == shape


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.floats(2, 9))
def test_the_choice_is_that_of_brute_force(seed: int, budget: float) -> None:
    space = SesrSpace(((3, 3), (2, 2)), (2, 4), 2, ((3, 3), (1, 1)))
    table = latencies(seed, space)
    torch.manual_seed(seed)
    network = SesrSupernet(space, expansion=2, speed=1.0)
    with torch.no_grad():
        for name, logits in network.named_parameters():
            if name.endswith("_logits"):
                logits.copy_(2 * torch.randn(logits.shape))
    kernels, keeps, widths, firsts, lasts = (c.double().tolist() for c in network.choices())
    best, likely = None, -math.inf
    inner = itertools.product((None, *range(2)), repeat=space.blocks)
    ends = itertools.product(range(2), repeat=2)
    for picks, (enter, leave), number in itertools.product(list(inner), ends, range(2)):
        width = space.widths[number]
        chosen = tuple(space.kernels[p] for p in picks if p is not None)
        shape = SesrShape(chosen, width, space.ends[enter], space.ends[leave])
        chance = math.log(widths[number] * firsts[enter] * lasts[leave]) + sum(
            math.log(1 - keeps[i]) if p is None else math.log(keeps[i] * kernels[i][p])
            for i, p in enumerate(picks)
        )
        if table.total(shape) <= budget and chance > likely:
            best, likely = shape, chance
    if best is None:
        with pytest.raises(BudgetError, match="below what can be reached"):
            choose_shape(network, table, budget)
    elif best.kernels:
        assert choose_shape(network, table, budget) == best


def test_the_pressure_pushes_towards_the_budget_and_ends_there() -> None:
    table, zero = latencies(), torch.zeros(())
    network = SesrSupernet(SPACE, expansion=2)
    tight = ShapePressure(network, table, 1.0)(zero)
    tight.backward()
    assert network.keep_logits.grad is not None
    # Less of every block is faster.
    assert float(network.keep_logits.grad.min()) > 0
    assert float(ShapePressure(network, table, 1e6)(zero).detach()) == 0
    undecided = ShapePressure(network, table, 1e6)(torch.ones(()))
    assert 0 < float(undecided.detach()) <= 0.005
    settled = ShapePressure(decided(*SHAPES[0]), table, 1e6)(torch.ones(()))
    assert float(settled.detach()) < 1e-6


def test_a_table_is_the_target_s_and_adds_up(tmp_path) -> None:
    space = SesrSpace(((3, 3), (5, 5), (2, 2)), (8, 16), 6)
    table = measure_shapes(space, "npu-4tops", (1, 1, 270, 480), 2)
    for row in table.layers.values():
        assert 0 < row["2x2"] <= row["3x3"] <= row["5x5"]
    assert table.layers[8]["3x3"] < table.layers[16]["3x3"]
    for part in (table.first, table.last):
        assert part[16]["3x3"] == 0 < part[16]["5x5"]
    small = SesrShape(((3, 3), (2, 2)), 16, (5, 5), (3, 3))
    whole, _ = collapse(small.build(2, expansion=1).eval())
    assert table.total(small) == pytest.approx(
        estimate(whole, "npu-4tops", (1, 1, 270, 480)).latency_ms, rel=0.1
    )
    assert table.total(M5) == pytest.approx(table.base_ms, rel=0.1)
    assert json.loads(table.json())["target"] == "npu-4tops"
    (tmp_path / "table.json").write_text(table.json())
    again = read_latencies(tmp_path / "table.json")
    assert again == table
    assert again.covers(space, "npu-4tops", (1, 1, 270, 480))
    assert not again.covers(space, "npu-4tops", (1, 1, 270, 481))
    for other in (SesrSpace(((3, 1),), (8,)), SesrSpace(((3, 3),), (8,), ends=((1, 1),))):
        assert not again.covers(other, "npu-4tops", (1, 1, 270, 480))
    (tmp_path / "table.json").write_text('{"target": 1}')
    with pytest.raises(UsageError, match="no latencies"):
        read_latencies(tmp_path / "table.json")


@pytest.mark.parametrize("act", ["prelu", "relu"])
def test_even_and_asymmetric_kernels_collapse_and_look_as_far_as_they_say(act: str) -> None:
    network = create_model(
        "sesr_nas",
        scale=2,
        kernels=((2, 2), (3, 1), (1, 4)),
        features=4,
        expansion=8,
        act=act,
        first_kernel=(1, 2),
        last_kernel=(3, 3),
    ).double()
    x = torch.rand(1, 1, 21, 21, dtype=torch.float64, requires_grad=True)
    small, _ = collapse(network, probe=x.detach())
    torch.testing.assert_close(small(x), network(x), rtol=0, atol=1e-10)
    network(x)[0, 0, 20, 20].backward()
    assert x.grad is not None
    rows, columns = (x.grad[0, 0].abs() > 0).nonzero().T
    # The output pixel lies in input pixel 10.
    radius = int(torch.cat([(rows - 10).abs(), (columns - 10).abs()]).max())
    assert radius <= network.receptive_radius == max(1 + 1 + 1, 1 + 1 + 2 + 1)


def test_values_that_cannot_be() -> None:
    for wrong in (((3,),), ((0, 3),), (3, 3), ((3, 3.0),)):
        with pytest.raises(UsageError, match="kernel"):
            create_model("sesr_nas", kernels=wrong)
    with pytest.raises(UsageError, match="one a block"):
        create_model("sesr_m5", kernels=((3, 3),))
    with pytest.raises(UsageError, match="square and odd"):
        create_model("sesr_nas", kernels=((2, 2),), block="plain")
    for space in (
        ((), (8,), 2),
        (((3, 3),), (8, 8), 2),
        (((3, 3),), (0,), 2),
        (((3, 3),), (8,), 0),
        (((3, 3),), (8,), 2, ()),
        (((3, 3),), (8,), 2, ((3, 3), (3, 3))),
    ):
        with pytest.raises(UsageError):
            SesrSpace(*space)


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_come_back_as_they_were_written(name: str, tmp_path) -> None:
    recipe = read_recipe(name)
    write_recipe(recipe, tmp_path / "again.toml")
    assert read_recipe(tmp_path / "again.toml") == recipe


@pytest.mark.slow
def test_search_resume_and_train_what_was_found(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    y, x = np.mgrid[:128, :128]
    for number in range(2):
        wave = 128 + 90 * np.sin(x / (3 + number)) * np.cos(y / 5)
        write_picture(
            tmp_path / "pictures" / f"{number}.png", np.repeat(wave[..., None], 3, 2).astype("u1")
        )
    asked = ("search", "sesr", "--data", "pictures", "--target", "npu-4tops", "--steps", "6")
    asked = (*asked, "--input-size", "1,1,270,480", "--kernels", "3x3,2x2", "--widths", "8,16")
    asked = (*asked, "--blocks", "3", "--train-steps", "2", "--out", "run")

    def call(*more: str):
        return CliRunner().invoke(app, [*asked, *more])

    done = call("--budget", "0.7", "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["found_ms"] <= 1.1 * record["planned_ms"]
    assert record["planned_ms"] <= record["budget_ms"] == pytest.approx(0.7 * record["base_ms"])
    assert record["features"] in (8, 16)
    again = call("--budget", "0.7")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    resumed = call("--budget", "0.7", "--resume", "--json")
    assert json.loads(resumed.stdout) == record
    trained = CliRunner().invoke(
        app, ["train", "run/found.toml", "--data", "pictures", "--out", "trained"]
    )
    assert trained.exit_code == 0, trained.stderr
    measured = CliRunner().invoke(
        app, ["evaluate", "trained/weights.safetensors", "--data", "pictures", "--json"]
    )
    assert measured.exit_code == 0, measured.stderr
    table = json.loads((tmp_path / "run" / "latency.json").read_text())
    (tmp_path / "run" / "latency.json").write_text(json.dumps({**table, "target": "host"}))
    other = call("--budget", "0.7", "--resume")
    assert other.exit_code == 2
    assert "another target" in " ".join(other.stderr.split())
    low = call("--budget", "0.001", "--out", "other")
    assert low.exit_code != 0
    assert "below what can be reached" in " ".join(low.stderr.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--kernels", "3by3"), "--kernels"),
        (("--ends", "3by3"), "--ends"),
        (("--input-size", "1,3,64,64"), "one luma picture"),
        (("--target", "abacus"), "unknown target"),
        (("--steps", "0"), "--steps 0"),
        (("--tile", "64"), "--tile"),
        (("--widths", "8,8"), "none twice"),
    ],
)
def test_requests_that_cannot_be(tmp_path, more, said) -> None:
    asked = ["search", "sesr", "--data", str(tmp_path), "--budget", "0.8", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*asked, *more])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
