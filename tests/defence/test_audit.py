"""The audit believes an honest classifier and finds a masked gradient."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from collapsible import DefendedClassifier
from collapsible.defence import AuditReport, audit
from collapsible.defence.audit import _Judge
from collapsible.errors import UsageError

PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
EPSILON = 2 / 255


def run(model: nn.Module, nette: tuple[Tensor, Tensor], **options: object) -> AuditReport:
    settings = {"epsilon": EPSILON, "steps": 8, "queries": 100, "batch": 32, **options}
    return audit(model, nette[0][::2], nette[1][::2], **settings)  # type: ignore[arg-type]


def test_an_undefended_classifier_passes(
    thumbnails: nn.Module, nette: tuple[Tensor, Tensor]
) -> None:
    report = run(DefendedClassifier(thumbnails, **PIXELS), nette)
    assert report.passed, report.table()
    assert report.pictures >= 20
    names = {check.name for check in report.checks}
    assert names == {"gradients", "direction", "budgets", "more steps", "unbounded", "black box"}


def test_an_honest_defence_passes(thumbnails: nn.Module, nette: tuple[Tensor, Tensor]) -> None:
    report = run(DefendedClassifier(thumbnails, "bits:5+nearest", **PIXELS), nette)
    assert report.passed, report.table()


def test_a_hard_quantisation_fails(thumbnails: nn.Module, nette: tuple[Tensor, Tensor]) -> None:
    defended = DefendedClassifier(thumbnails, "bits:5", **PIXELS).set_form("exact", "none")
    # A budget at which random search finds something.
    report = run(defended, nette, epsilon=48 / 255, queries=300)
    assert not report.passed
    verdicts = {check.name: check for check in report.checks}
    assert verdicts["gradients"].figures["all zero"] == report.pictures
    for name in ("gradients", "direction", "unbounded", "black box"):
        assert not verdicts[name].passed, report.table()
    assert "FAILED  gradients" in report.table()
    assert json.loads(report.json())["passed"] is False


def test_gradients_that_are_not_finite_fail(
    thumbnails: nn.Module, nette: tuple[Tensor, Tensor]
) -> None:
    class Rooted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return thumbnails(x) + 0 * (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None]

    report = run(Rooted(), nette)
    verdicts = {check.name: check for check in report.checks}
    assert verdicts["gradients"].figures["not finite"] == report.pictures
    assert not verdicts["budgets"].passed
    assert "not finite" in verdicts["budgets"].figures["reason"]


def test_a_model_without_any_gradient_fails(
    thumbnails: nn.Module, nette: tuple[Tensor, Tensor]
) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return thumbnails(x.detach())

    assert not any(check.passed for check in run(Detached(), nette).checks[:5])


def test_nothing_right_is_nothing_to_audit(nette: tuple[Tensor, Tensor]) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

    with pytest.raises(UsageError, match="none of"):
        audit(Wrong(), nette[0][-3:], nette[1][-3:])


@pytest.mark.parametrize(
    ("counts", "falling"),
    [([20, 12, 3, 0], True), ([5, 6, 6], True), ([5, 7], False), ([5, 6, 7], False)],
)
def test_what_counts_as_falling(counts: list[int], falling: bool) -> None:
    judge = _Judge(nn.Identity(), "linf", EPSILON, 1, 1, 1, 0)
    assert judge._falling(counts) is falling
    assert replace(judge, seed=1)._falling([100, 50, 54]) is True
