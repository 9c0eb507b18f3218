"""The theory's update rules: that they hold, and that the check would see one that does not."""

from __future__ import annotations

import pytest
import torch

from collapsible.blocks import CollapsibleConv2d, linear_block
from collapsible.reproduce import Request, reproduce, sesr_updates
from collapsible.reproduce.sesr_updates import closed_form, kernel_of


def test_all_rules_hold_and_only_expandnet_vanishes() -> None:
    result = reproduce("sesr/updates")
    assert all(check.holds for check in result.checks), result.table()
    assert len(result.sections[0].rows) == 3 * 4
    deep = {row.name: row.values["16"] for row in result.sections[1].rows}
    assert deep["ExpandNet"] < 1e-4 < 0.1 < min(deep["plain"], deep["SESR"], deep["RepVGG"])


@pytest.mark.parametrize("kind", ["plain", "expandnet", "sesr", "repvgg"])
def test_rules_for_one_number_by_hand(kind: str) -> None:
    """w1 = 3, w2 = -2, g = 5, eta = 0.1: -0.1 (9 + 4) 5 + 0.01 (-6) 25 = -8."""
    tensors = [torch.tensor([[value]], dtype=torch.float64) for value in (3.0, -2.0)]
    change = closed_form(kind, torch.tensor([[5.0]], dtype=torch.float64), tensors, 0.1)
    by_hand = {"plain": -0.5, "repvgg": -1.0, "expandnet": -8.0, "sesr": -8.0}
    assert float(change) == pytest.approx(by_hand[kind], abs=1e-12)


def test_a_rule_without_its_second_order_term_is_seen(monkeypatch) -> None:
    def wrong(kind, gradient, weights, rate):
        change = closed_form(kind, gradient, weights, rate)
        if len(weights) < 2 or kind == "repvgg":
            return change
        first, second = weights
        return change - rate**2 * gradient @ first.T @ second.T @ gradient

    monkeypatch.setattr(sesr_updates, "closed_form", wrong)
    checks = reproduce("sesr/updates").checks
    assert [check.holds for check in checks] == [False, True, True]


def test_the_kernel_is_found_from_answers_alone() -> None:
    torch.manual_seed(0)
    block = linear_block("sesr", 4, 4, 3, residual=True, expansion=8).double()
    assert isinstance(block, CollapsibleConv2d)
    torch.nn.init.normal_(block.expand_bias)
    torch.testing.assert_close(kernel_of(block), block.kernel_and_bias()[0], rtol=0, atol=1e-12)


def test_the_full_form_goes_deeper(monkeypatch) -> None:
    monkeypatch.setattr(sesr_updates, "DEPTHS", {False: (1, 2), True: (1, 3)})
    seen: list[int] = []
    result = reproduce(
        "sesr/updates", Request(full=True, on_progress=lambda done, *_: seen.append(done))
    )
    assert "3" in result.row("SESR").values
    assert result.settings["draws"] == 100
    assert seen == list(range(1, 13))
