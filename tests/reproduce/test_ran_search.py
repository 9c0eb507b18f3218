"""``reproduce ran/search``: the chain of the RAN-e search, as small as it goes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from collapsible.errors import UsageError
from collapsible.models.trained import create_classifier
from collapsible.reproduce import Request, reproduce
from collapsible.reproduce.ran_search import draw_pictures, setting_of
from collapsible.reproduce.ran_search_arms import narrow_blocks
from collapsible.reproduce.ran_search_measure import difference, hits_of, pack, unpack
from collapsible.search.inverted import require_bottlenecks
from collapsible.search.plan import Plan, PlannedBlock, apply_plan


def test_the_better_int8_file_counts():
    worse, better = np.arange(9) < 3, np.arange(9) < 5
    found = {"pictures": 9, "int8": pack(worse)}
    assert (hits_of(found, "best") == worse).all()
    for one, other in ((worse, better), (better, worse)):
        found = {"pictures": 9, "int8": pack(one), "trained": pack(other)}
        assert (hits_of(found, "best") == better).all()
        assert (hits_of(found, "trained") == other).all()


def test_other_steps_are_the_bases_and_leave_the_fairest_comparison():
    table, other = setting_of(Request(full=True)), setting_of(Request(full=True, steps=3000))
    assert other.steps == 3000
    assert (other.search, other.extra, other.seeds) == (table.search, table.extra, table.seeds)
    assert other.every == ("base", "searched", "continued")
    assert not other.arms


@pytest.mark.slow
def test_the_small_form_holds_and_goes_on_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    request = Request(runs=tmp_path / "runs", steps=4)
    result = reproduce("ran/search", request)
    assert all(check.holds for check in result.checks), result.table()
    base, found = result.row("base").values, result.row("searched").values
    assert found["npu-4tops fps"] > base["npu-4tops fps"]
    assert base["trained"] is None
    assert 0 <= found["trained"] <= 100
    gap = next(s for s in result.sections if s.title.startswith("Less")).rows[0].values
    assert gap["fp32"] == pytest.approx(found["fp32"] - base["fp32"])
    assert gap["low"] <= gap["int8"] <= gap["high"]
    blocks = next(s for s in result.sections if s.title.startswith("Blocks"))
    assert len(blocks.rows) == 17
    folder = tmp_path / "runs" / "ran-search-small"
    assert (folder / "searched-0" / "plan.toml").is_file()
    assert (folder / "accuracy-latency.png").read_bytes()[1:4] == b"PNG"
    # A piece that is missing is made again, from what it is made of.
    (folder / "searched-0" / "figures.json").unlink()
    again = reproduce("ran/search", request)
    assert again.row("searched").values == found


def test_differences_are_of_the_same_pictures():
    """Against scipy's paired bootstrap, and by hand."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    random = np.random.default_rng(0)
    first, second = random.random((2, 400)) < 0.7, random.random((2, 400)) < 0.6
    second[:, :200] = first[:, :200]
    value, low, high = difference(list(first), list(second))
    each = first.mean(0) - second.mean(0)
    assert value == pytest.approx(100 * each.mean())
    peer = stats.bootstrap(
        (each,), np.mean, n_resamples=9999, method="percentile", random_state=1
    ).confidence_interval
    assert (low, high) == pytest.approx((100 * peer.low, 100 * peer.high), abs=0.3)
    assert difference([first[0]], [first[0]]) == (0, 0, 0)


def test_hits_are_kept_whole():
    hits = np.random.default_rng(0).random(101) < 0.3
    assert np.array_equal(unpack(pack(hits), 101), hits)


def test_a_dense_block_from_the_start_is_one_convolution_and_its_norm():
    network = create_classifier("ran_e_base", 3, width=0.25)
    blocks = require_bottlenecks(network)
    names = [block.name for block in blocks]
    plan = Plan(
        *("", "npu-4tops", (1, 3, 32, 32), "by hand", 0.0, 1.0),
        tuple(PlannedBlock(b.name, "dense", b.shape, 1.0, 0.5) for b in blocks),
    )
    wide = apply_plan(network, plan)
    small = narrow_blocks(copy.deepcopy(wide))
    x = torch.randn(2, 3, 32, 32)
    assert small.eval()(x).shape == (2, 3)
    for name in names:
        conv, norm = small.get_submodule(f"{name}.conv")
        wanted = wide.get_submodule(f"{name}.conv").narrow()
        assert conv.weight.shape == wanted.weight.shape
        assert (conv.stride, conv.padding) == (wanted.stride, wanted.padding)
        assert conv.bias is None
        assert isinstance(norm, nn.BatchNorm2d)


def test_the_full_form_says_what_it_needs(tmp_path):
    with pytest.raises(UsageError, match="--data is needed"):
        reproduce("ran/search", Request(full=True, runs=tmp_path))


def test_drawn_pictures_are_the_same_each_time(tmp_path):
    one, two = (draw_pictures(tmp_path / name, 16) for name in ("a", "b"))
    files = sorted(p.relative_to(one) for p in one.rglob("*.png"))
    assert len(files) == 3 * (40 + 16)
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
