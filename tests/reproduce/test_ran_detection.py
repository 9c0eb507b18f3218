"""``reproduce ran/detection`` in its small form, and what the full form refuses."""

from __future__ import annotations

import pytest

from collapsible.errors import UsageError
from collapsible.reproduce.registry import Request, reproduce

pytest.importorskip("faster_coco_eval")


@pytest.mark.slow
def test_the_chain_runs_and_goes_on(tmp_path):
    report = reproduce("ran/detection", Request(runs=tmp_path, steps=2))
    assert [row.name for row in report.rows] == ["ran-i fpn", "convnext fpn"]
    assert all(check.holds for check in report.checks)
    for row in report.rows:
        assert row.kind == "measured"
        assert 0 <= row.values["map"] <= 100
        assert row.values["fps"] > 0
    # RAN-i's backbone is the smaller one.
    assert report.rows[0].values["parameters"] < report.rows[1].values["parameters"]
    steps = sorted(p.name for p in (tmp_path / "ran-detection-small" / "ran-i-fpn-0").iterdir())
    assert "weights.json" in steps


def test_the_full_form_needs_data_and_classifiers(tmp_path):
    with pytest.raises(UsageError, match="--data"):
        reproduce("ran/detection", Request(full=True, runs=tmp_path))
    from collapsible.reproduce.drawn_boxes import draw_discs

    discs = draw_discs(tmp_path / "discs", 32, (2, 2))
    with pytest.raises(UsageError, match="classifier"):
        reproduce("ran/detection", Request(full=True, data=discs, runs=tmp_path))
