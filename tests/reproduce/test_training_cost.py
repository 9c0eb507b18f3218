"""The cost of a training step: counts against hand computation, and a real measurement."""

from __future__ import annotations

import pytest
import torch

from collapsible.blocks import CollapsibleConv2d
from collapsible.models import create_model
from collapsible.reproduce import Request, reproduce
from collapsible.reproduce.training_step import (
    collapse_by_impulse,
    forward_macs,
    impulse_macs,
    tensor_peak,
)

# SESR-M5 x2 at p = 256: inputs, outputs and kernel of each linear block.
BLOCKS = [(1, 16, 5), *[(16, 16, 3)] * 5, (16, 4, 5)]
PIXELS = 32 * 64 * 64


@pytest.mark.parametrize("residual", [False, True])
def test_impulses_give_the_blocks_kernel(residual: bool) -> None:
    torch.manual_seed(0)
    block = CollapsibleConv2d(4, 4, 3, expansion=8, residual=residual).double()
    kernel, _ = block.kernel_and_bias()
    torch.testing.assert_close(collapse_by_impulse(block), kernel, rtol=0, atol=1e-12)


def test_counts_equal_those_by_hand() -> None:
    wide = sum(PIXELS * (i * 256 * k * k + 256 * o) for i, o, k in BLOCKS)
    assert forward_macs("expanded") == wide
    narrow = sum(PIXELS * i * o * k * k for i, o, k in BLOCKS)
    assert forward_macs("collapsed") == narrow + sum(i * 256 * o * k * k for i, o, k in BLOCKS)
    with torch.device("meta"):
        network = create_model("sesr_m5", scale=2)
        # i impulses, each answered on k x k pixels by both layers.
        by_hand = sum(i * k * k * (i * 256 * k * k + 256 * o) for i, o, k in BLOCKS)
        assert impulse_macs(network) == by_hand


def test_tensor_peak_sees_what_is_held_at_once() -> None:
    def work() -> None:
        first = torch.empty(1 << 20)
        second = torch.empty(1 << 20)
        del first, second
        torch.empty(1 << 20)

    assert tensor_peak(work) == pytest.approx(8, abs=0.1)


@pytest.mark.slow
def test_the_small_form_measures_both_modes() -> None:
    seen: list[tuple[int, int]] = []
    result = reproduce(
        "sesr/training-cost", Request(on_progress=lambda done, total, _: seen.append((done, total)))
    )
    assert all(check.holds for check in result.checks)
    assert seen == [(1, 2), (2, 2)]
    ratios = result.row("expanded / collapsed").values
    # 22.7 times the MACs on 256 channels for 16: whatever the machine does, these are far from 1.
    assert ratios["tensor_mebibytes"] > 3
    wide, narrow = result.row("expanded").values, result.row("collapsed").values
    assert ratios["seconds"] == pytest.approx(wide["seconds"] / narrow["seconds"])
