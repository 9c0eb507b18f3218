"""Super-resolution before a classifier on NPUs: counts, exact forms, and the table end to end."""

from __future__ import annotations

import pytest
import torch

from collapsible.reproduce import Request, defence_npu, reproduce
from collapsible.reproduce.defence_npu import M2, STUFFED
from collapsible.reproduce.drawn import draw_network
from collapsible.reproduce.report import Row


def test_weights_and_macs_are_the_published_ones() -> None:
    section = defence_npu._counts(defence_npu.ENLARGERS)
    found = {row.name: row.values for row in section.rows}
    assert found["FSRCNN"]["weights"] == 24_336
    for name, weights in (("M2", 10_608), ("M3", 12_912), ("M5", 17_520)):
        values = found[f"SESR-{name}"]
        assert values["weights"] == weights
        # Every weight meets every input pixel once.
        assert values["macs"] == values["stuffed_macs"] == weights * 299**2
    # FSRCNN's last 13,608 weights meet each of the four times as many outputs.
    assert found["FSRCNN"]["stuffed_macs"] == (10_728 + 4 * 13_608) * 299**2
    (check, *_) = defence_npu._checks(section, {})
    assert check.holds


def test_the_stuffed_form_is_the_same_network() -> None:
    plain = draw_network("fsrcnn", scale=2, colour="rgb", act="relu").double()
    x = torch.rand(1, 3, 13, 10, dtype=torch.float64)
    stuffed = defence_npu.build(STUFFED).double()
    with torch.no_grad():
        assert (stuffed(x) - plain(x)).abs().max() < 1e-12


def test_networks_are_drawn_alike_at_every_call() -> None:
    state = torch.random.get_rng_state()
    first, second = (defence_npu.build(M2).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_deployed_networks_have_no_prelu_and_no_input_residual_unless_said() -> None:
    for enlarger in defence_npu.ENLARGERS:
        kinds = {type(module).__name__ for module in defence_npu.build(enlarger).modules()}
        said = "PReLU" in enlarger.name
        assert any("PReLU" in kind for kind in kinds) == said
        assert getattr(defence_npu.build(enlarger), "input_residual", False) == said


@pytest.mark.parametrize(("gain", "holds"), [(2.9, True), (2.89, False)])
def test_the_claim_is_judged_by_the_least_gain(gain, holds) -> None:
    section = defence_npu._counts((M2,))
    gains = {
        where: Row("x", "estimated", "by hand", {"over_fsrcnn": value, "over_sub_pixel": 1.0})
        for where, value in (("here", 5.0), ("there", gain))
    }
    _, stuffed, sub_pixel = defence_npu._checks(section, gains)
    assert stuffed.holds is holds
    assert not sub_pixel.holds


@pytest.mark.slow
def test_the_small_form_end_to_end(monkeypatch, tmp_path) -> None:
    """At 32 pixels with a small classifier; the forms, the sums and the ratios are the table's."""
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path))
    monkeypatch.setattr(defence_npu, "SIZES", (32,))
    monkeypatch.setattr(defence_npu, "CLASSIFIER", "timm:mobilenetv2_035")
    monkeypatch.setattr(defence_npu, "SMALL", (STUFFED, M2))
    seen: list[tuple[int, int]] = []
    result = reproduce(
        "defence/npu", Request(on_progress=lambda done, total, _: seen.append((done, total)))
    )
    assert seen == [(n, 6) for n in range(1, 7)]
    fsrcnn, two = (result.row(name, "estimated").values for name in ("FSRCNN", "SESR-M2"))
    for values in (fsrcnn, two):
        assert values["latency_ms"] == pytest.approx(values["enlarge_ms"] + values["classify_ms"])
        assert values["fps"] == pytest.approx(1e3 / values["latency_ms"])
        assert values["cpu_operators"] == ""
        most = max(values["enlarge_sram_bytes"], values["classify_sram_bytes"])
        assert values["sram_mib"] == pytest.approx(most / 2**20)
    assert two["over_fsrcnn"] == pytest.approx(fsrcnn["latency_ms"] / two["latency_ms"])
    assert two["stage_over_fsrcnn"] > two["over_fsrcnn"] > 1


def test_what_cannot_be_compiled_has_no_figure_but_a_note(monkeypatch) -> None:
    from collapsible.costs.targets import find_target
    from collapsible.errors import ExportError

    def refuse(*_, **__):
        raise ExportError("no such operator")

    monkeypatch.setattr("collapsible.deploy.legalise.legalise", refuse)
    notes: list[str] = []
    target = find_target("ethos-u55-256")
    (row,) = defence_npu._rows((M2,), 32, target, None, notes, lambda _: None)
    assert "fps" not in row.values
    assert notes == ["SESR-M2, 32 on ethos-u55-256: no such operator"]
