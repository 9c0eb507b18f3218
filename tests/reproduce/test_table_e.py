"""RAN-explicit's table: published counts, and the table end to end on small networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from collapsible.costs import cost
from collapsible.costs.targets import find_target
from collapsible.deploy.estimate_report import EstimateReport
from collapsible.deploy.npu import compile_network
from collapsible.reproduce import Request, ran_table_e, reproduce
from collapsible.reproduce.ran_networks import GT, GT_RELU6, LITE, LITE_HS, C, Network, Published
from collapsible.reproduce.report import Row, Section

TARGET = "ethos-u55-256"
# Small stand-ins under the table's names; their figures are nobody's.
TINY = {"width": 0.25, "num_classes": 10}
STAND_INS = (
    Network(LITE, "ran_e_gt", {**TINY, "forms": "bottleneck", "act": "relu6"}, Published(*[1] * 5)),
    Network(GT, "ran_e_gt", TINY, Published(4.5, 434, 74.6, 1.16, 1.49)),
)
NETWORKS = {network.name: network for network in ran_table_e.NETWORKS}


@pytest.mark.parametrize(
    ("name", "params", "macs"), [(C, "4.635M", "489.2M"), (GT, "4.487M", "434.4M")]
)
def test_the_counts_are_the_published_ones(name, params, macs) -> None:
    report = cost(ran_table_e.build(NETWORKS[name]), (1, 3, 224, 224))
    assert (f"{report.params / 1e6:.3f}M", f"{report.macs / 1e6:.1f}M") == (params, macs)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        # timm's and torchvision's own tables of these networks, in millions.
        (LITE, 4.65, 385),
        ("ResNet-18", 11.69, 1814),
        ("MobileNetV2", 3.50, 301),
    ],
)
def test_the_others_are_the_known_networks(name, params, macs) -> None:
    report = cost(ran_table_e.build(NETWORKS[name]), (1, 3, 224, 224))
    assert report.params / 1e6 == pytest.approx(params, abs=0.006)
    assert report.macs / 1e6 == pytest.approx(macs, rel=0.01)


def test_repvgg_is_deployed_collapsed() -> None:
    """RepVGG's own table: A0 has 8.30M parameters deployed, 9.11M in training."""
    network = NETWORKS["RepVGG-A0, collapsed"]
    trained = cost(ran_table_e.build(network), ran_table_e.SIZE)
    assert trained.params / 1e6 == pytest.approx(9.11, abs=0.006)
    deployed = cost(ran_table_e.deployed(network), ran_table_e.SIZE)
    assert deployed.params / 1e6 == pytest.approx(8.31, abs=0.011)
    assert deployed.macs / 1e9 == pytest.approx(1.36, abs=0.01)


def test_the_act_is_the_only_difference_of_twins() -> None:
    for one, other in ((LITE, LITE_HS), (GT, GT_RELU6)):
        first, second = (ran_table_e.build(NETWORKS[name]) for name in (one, other))
        kinds = [{type(m).__name__ for m in net.modules()} for net in (first, second)]
        assert kinds[0] ^ kinds[1] == {"ReLU6", "Hardswish"}
        ours, theirs = first.state_dict(), second.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_the_small_form_on_small_networks(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path))
    monkeypatch.setattr(ran_table_e, "NETWORKS", STAND_INS)
    monkeypatch.setattr(ran_table_e, "SIZE", (1, 3, 64, 64))
    seen: list[tuple[int, int]] = []
    result = reproduce(
        "ran/table-e", Request(on_progress=lambda done, total, _: seen.append((done, total)))
    )
    assert seen == [(n, 4) for n in range(1, 5)]
    # Two networks, two files: each converted once.
    assert len(list(tmp_path.glob("tflite-*.tflite"))) == 2
    lite, gt = (result.row(name, "estimated").values for name in (LITE, GT))
    network = ran_table_e.deployed(STAND_INS[1])
    direct = compile_network(network, find_target(TARGET), (1, 3, 64, 64), cache=tmp_path)
    assert gt["fps"] == pytest.approx(direct.fps)
    assert gt["sram_bytes"] == direct.sram_bytes
    assert lite["over_lite0"] == 1
    assert gt["over_lite0"] == pytest.approx(gt["fps"] / lite["fps"])
    assert gt["published"] == 1.16
    assert {row.kind for row in result.sections[0].rows} == {"published"}
    checks = {check.claim: check for check in result.checks}
    assert checks["every operator runs on the NPU"].holds
    # The counts of a stand-in are not the published ones, and the table says so.
    assert not next(check for claim, check in checks.items() if "parameters" in claim).holds


def test_claims_are_judged_by_the_ratios() -> None:
    def report(fps: float) -> EstimateReport:
        return replace(made(), fps=fps)

    found = {
        "ethos-u55-256": {LITE: report(100), LITE_HS: report(80), GT: report(112)},
        "ethos-u65-256": {LITE: report(100), LITE_HS: report(70), GT: report(120)},
    }
    empty = Section("", (), (Row("x", "measured", "here", {}),))
    judged = {check.claim: check.holds for check in ran_table_e._checks(empty, found)}
    assert judged[f"{GT}: 1.16 times Lite0's (ReLU6) frames on U55, within 5% or above"]
    assert not judged[f"{GT}: 1.49 times Lite0's (ReLU6) frames on U65, within 5% or above"]
    assert not next(holds for claim, holds in judged.items() if claim.startswith("H-swish"))


def made() -> EstimateReport:
    return EstimateReport(
        network="n",
        target="t",
        input_size=(1, 3, 8, 8),
        source="estimated: by hand",
        fps=1.0,
        latency_ms=1.0,
        npu_ms=1.0,
        cycles=1,
        macs=1,
        utilisation=0.5,
        cpu_operators=(),
        advice=(),
        fits=True,
        sram_bytes=1,
        sram_limit=1,
        dram_bytes=1,
        dram_limit=None,
        dram_traffic=1,
    )
