"""The tables of quality and cost: the counts, the published rows, and ours as measured."""

from __future__ import annotations

import json

import pytest

from collapsible.errors import UsageError
from collapsible.evaluation import evaluate
from collapsible.imaging import write_picture
from collapsible.reproduce import Request, reproduce
from collapsible.reproduce.sesr_ablation import draw_pictures
from collapsible.reproduce.sesr_published import SETS, published
from collapsible.reproduce.sesr_tables import count
from collapsible.weights import list_cards


@pytest.mark.parametrize(
    ("model", "blocks", "width"),
    [("sesr_m3", 3, 16), ("sesr_m5", 5, 16), ("sesr_m7", 7, 16), ("sesr_xl", 11, 32)],
)
@pytest.mark.parametrize("scale", [2, 4])
def test_counts_by_hand(model: str, blocks: int, width: int, scale: int) -> None:
    weights = 25 * width + blocks * 9 * width**2 + 25 * width * scale**2
    pixels = (720 // scale) * (1280 // scale)
    found = count(model, scale)
    assert (found.weights, found.macs, found.stuffed_macs) == (
        weights,
        weights * pixels,
        found.macs,
    )


@pytest.mark.parametrize("scale", [2, 4])
def test_fsrcnn_in_both_conventions(scale: int) -> None:
    before = 25 * 56 + 56 * 12 + 4 * 9 * 144 + 12 * 56
    pixels = (720 // scale) * (1280 // scale)
    found = count("fsrcnn", scale)
    assert found.macs == pixels * (before + 81 * 56)
    assert found.stuffed_macs == pixels * (before + 81 * 56 * scale**2)


@pytest.mark.parametrize("scale", [2, 4])
def test_published_rows_are_consistent(scale: int) -> None:
    """Networks of convolutions at the input's size: MACs are weights times pixels."""
    rows = published(scale)
    assert rows[0].name == "bicubic"
    for row in rows:
        assert set(row.scores) <= set(SETS)
        assert all(20 < psnr < 40 and 0.6 < ssim < 1 for psnr, ssim in row.scores.values())
        if row.name.startswith("SESR"):
            assert row.weights is not None
            expected = row.weights * 720 * 1280 / scale**2
            assert row.macs == pytest.approx(expected, rel=0.006)
    order = [row.scores["Set5"][0] for row in rows if row.name.startswith("SESR")]
    assert order == sorted(order)


@pytest.mark.parametrize("scale", [2, 4])
def test_without_data_the_cards_speak(scale: int) -> None:
    result = reproduce(f"sesr/table-x{scale}")
    assert result.checks[0].holds, result.checks[0]
    assert "read from the weights' cards" in result.table()
    for card in list_cards():
        if card.scale == scale:
            row = result.row(f"{card.name} (ours)", "measured")
            assert row.source == "the weights' card"
            assert row.values["Set5"] == card.metrics["Set5"]["psnr"]
    by_name = {row.name: row.values for row in published_rows(result)}
    assert by_name["VDSR / SESR-M11"]["published"] == pytest.approx({2: 97, 4: 331}[scale], abs=0.5)


def published_rows(result):
    return [row for row in result.rows if row.kind == "published"]


@pytest.fixture
def small_set(tmp_path):
    """A folder as --data wants it, with a Set5 of two small drawn pictures."""
    _, sets = draw_pictures(tmp_path / "drawn")
    folder = tmp_path / "data" / "Set5"
    folder.mkdir(parents=True)
    for path in sets["drawn"].iterdir():
        from collapsible.imaging import read_picture

        write_picture(folder / path.name, read_picture(path).pixels)
    return folder.parent


def test_with_data_ours_are_measured(small_set) -> None:
    seen: list[tuple[int, int]] = []
    request = Request(data=small_set, on_progress=lambda done, total, _: seen.append((done, total)))
    result = reproduce("sesr/table-x2", request)
    models = 1 + sum(card.scale == 2 for card in list_cards())
    assert seen == [(n, models) for n in range(1, models + 1)]
    expected = evaluate("sesr-m5", small_set / "Set5", scale=2)
    row = result.row("sesr-m5 (ours)", "measured")
    assert row.source == "evaluate on Set5"
    assert row.values["Set5"] == pytest.approx(expected.psnr, abs=1e-9)
    assert row.values.get("Set14") is None
    difference = result.sections[0].rows[result.sections[0].rows.index(row) + 1]
    assert difference.values["Set5"] == pytest.approx(expected.psnr - 37.39, abs=1e-9)
    assert json.loads(result.json())["settings"]["sets"] == ["Set5"]


def test_a_folder_without_sets_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="holds none of the sets Set5, Set14"):
        reproduce("sesr/table-x2", Request(data=tmp_path))


@pytest.mark.slow
def test_bicubic_is_the_published_one(shared_data, tmp_path) -> None:
    """The whole protocol against the paper's own row (mirrored borders cost 0.01 dB)."""
    (tmp_path / "Set5").symlink_to(shared_data / "sr" / "Set5")
    result = reproduce("sesr/table-x2", Request(data=tmp_path))
    assert result.row("bicubic (ours)").values["Set5"] == pytest.approx(33.68, abs=0.02)
    assert result.row("sesr-m5 (ours)").values["Set5"] > 37
