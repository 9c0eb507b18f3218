"""RAN-e's printed tables have the figures of docs/results, and each file says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = {
    "ran-search": "ran/search --full",
    "ran-search-arms": "ran/search --full --data imagenette160",
    "ran-search-cifar10": "ran/search --full --data cifar10",
    "ran-search-two-forms": "ran/search --full --data imagenette160",
    "ran-table-e": "ran/table-e --full",
}


def load(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def lines(page: str) -> list[list[str]]:
    """The cells of every table row of a page; of ``602 (1.59 x)`` the first figure."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("**", "")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[row[0].strip(), *(cell.strip().split(" (")[0] for cell in row[1:])] for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_made_it(name):
    assert load(name)["command"].startswith(f"collapsible reproduce {FILES[name]}")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("ran-search")])
def test_what_the_search_buys(name):
    """Means over seeds, and the arms that one seed alone has."""
    printed = [cells[1:] for cells in lines("ran-e.md")]
    rows = load(name)["sections"][0]["rows"]
    for row in rows:
        v = row["values"]
        frames = [f"{v[f'ethos-{chip} fps']:.0f}" for chip in ("u55-256", "u65-256")]
        cells = [f"{v['deployed']:.2f}", *frames]
        if v["seeds"] > 1:
            cells = [f"{v['fp32']:.2f}", *cells, f"{v['macs']:.1f}"]
        assert cells in printed, row["name"]


def test_differences_and_cost_of_the_search():
    text = " ".join((DOCS / "ran-e.md").read_text(encoding="utf-8").split())

    def apart(name: str, first: str, second: str) -> str:
        by_seed: dict[str, list[float]] = {}
        for run in load(name)["settings"]["runs"]:
            by_seed.setdefault(run["arm"], []).append(max(run["int8"], run.get("trained") or 0.0))
        pairs = zip(by_seed[first], by_seed[second], strict=True)
        return ", ".join(f"{one - other:+.2f}" for one, other in pairs)

    for name in ("ran-search", "ran-search-two-forms"):
        assert f"by seed {apart(name, 'searched', 'continued')}" in text
    assert f"(by seed {apart('ran-search-two-forms', 'from-scratch', 'searched')})" in text
    record = load("ran-search")
    cost = {row["name"]: row["values"] for row in record["sections"][-1]["rows"]}
    assert f"took {cost['the search and its choice']['seconds']:.0f} s" in text
    assert f"takes {cost['training one candidate on']['seconds']:.0f} s" in text


def test_frames_over_lite0():
    targets = [s for s in load("ran-table-e")["sections"] if s["title"].startswith("Arm Ethos-U")]
    assert len(targets) == 5
    ours = [{row["name"]: row["values"] for row in one["rows"]} for one in targets]
    printed = {cells[0]: cells[1:] for cells in lines("reproduce.md")}
    for name in ours[0]:
        label = name.replace("EfficientNet-", "")
        if label == "Lite0, ReLU6":
            continue  # what the others are over
        cells = printed[label]
        u55, u65 = (ours[place][name]["published"] for place in (0, 2))
        given = ["" if v is None else f"{v:.2f}".removesuffix(".00") for v in (u55, u65)]
        wanted = [f"{one[name]['over_lite0']:.2f}" for one in ours]
        assert cells == [given[0], *wanted[:2], given[1], *wanted[2:]], name
    (lite0,) = (
        line
        for line in (DOCS / "reproduce.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| Lite0, ReLU6")
    )
    for one in ours:
        assert f"({one['EfficientNet-Lite0, ReLU6']['fps']:.1f})" in lite0
