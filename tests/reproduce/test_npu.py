"""The NPU table: rows against the estimator itself, and the claim's assumptions."""

from __future__ import annotations

import pytest

from collapsible.deploy.estimate import estimate
from collapsible.errors import ExportError
from collapsible.reproduce import Request, reproduce, sesr_npu
from collapsible.reproduce.sesr_npu import deployed, unfused_bytes

PIXELS = 1080 * 1920
WEIGHTS = {"sesr_m3": 8912, "sesr_m5": 13_520, "fsrcnn": 12_464}


def test_networks_are_those_of_the_papers_deployment() -> None:
    for name in sesr_npu.NETWORKS:
        network = deployed(name, 2)
        kinds = {type(m).__name__ for m in network.modules()}
        assert "ReLU" in kinds
        assert not kinds & {"PReLU", "FastPReLU"}
        assert not getattr(network, "input_residual", False)


def test_unfused_bytes_by_hand() -> None:
    """M5: five ReLUs on 16 maps, and the addition of the long residual, which reads two."""
    maps = 16 * PIXELS
    assert unfused_bytes("sesr_m5") == 5 * 2 * maps + 3 * maps
    # FSRCNN: 56 maps before and after, 12 in the five layers between.
    assert unfused_bytes("fsrcnn") == (2 * 56 + 5 * 12) * 2 * PIXELS


@pytest.mark.slow
def test_the_small_form_on_the_roofline(monkeypatch) -> None:
    monkeypatch.setattr(sesr_npu, "NETWORKS", ("fsrcnn", "sesr_m5"))
    seen: list[tuple[int, int]] = []
    result = reproduce(
        "sesr/npu", Request(on_progress=lambda done, total, _: seen.append((done, total)))
    )
    assert seen == [(n, 8) for n in range(1, 9)]
    published, whole = result.sections[0], result.sections[1]
    assert {row.kind for row in published.rows} == {"published"}
    assert [row.name for row in whole.rows] == ["FSRCNN", "SESR-M5"]
    direct = estimate(deployed("sesr_m5", 2), "npu-4tops", (1, 1, 1080, 1920))
    five, fsrcnn = whole.rows[1].values, whole.rows[0].values
    assert five["fps"] == pytest.approx(direct.fps)
    assert five["over_fsrcnn"] == pytest.approx(five["fps"] / fsrcnn["fps"])
    for row, name in ((fsrcnn, "fsrcnn"), (five, "sesr_m5")):
        # The network itself; depth to space done as a deconvolution adds its ones and zeros.
        assert row["gmacs"] == pytest.approx(WEIGHTS[name] * PIXELS / 1e9, rel=0.01)
    ratios = {row.name: row.values["ratio"] for row in result.rows if "ratio" in row.values}
    assert ratios["as it stands (deconvolution zero-stuffed)"] == pytest.approx(five["over_fsrcnn"])
    # Four times fewer products for FSRCNN's largest layer: the ratio must fall.
    assert ratios["deconvolution sub-pixel"] < 0.6 * five["over_fsrcnn"]
    assert ratios["DRAM of 3.2 GB/s"] < ratios["DRAM of 51.2 GB/s"]
    assert result.checks[0].holds == (five["over_fsrcnn"] >= 6)


def test_what_cannot_be_compiled_has_no_figure_but_a_note(monkeypatch) -> None:
    monkeypatch.setattr(sesr_npu, "NETWORKS", ("fsrcnn", "sesr_m5"))

    def refuse(*_):
        raise ExportError("no such operator")

    monkeypatch.setattr(sesr_npu, "_estimate", refuse)
    notes: list[str] = []
    from collapsible.costs.targets import find_target

    rows, ratio = sesr_npu._rows(find_target("npu-4tops"), 2, True, notes, lambda _: None)
    assert ratio is None
    assert [row.values for row in rows] == [{}, {}]
    assert notes[0] == "FSRCNN on npu-4tops: no such operator"
