"""RAN-i's printed tables have the figures of docs/results, and each file says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = {
    "ran-table-i": "ran/table-i --full",
    "ran-correlation": "ran/correlation",
    "ran-small-scale": "ran/small-scale --full --data imagenette160",
    "ran-small-scale-cifar10": "ran/small-scale --full --data cifar10jpg",
    "ran-detection": "ran/detection --full --data BCCD",
}
TIMES = ("torch-1", "torch-8", "openvino-fp32-1", "openvino-fp32-8")


def load(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def lines(page: str) -> list[list[str]]:
    """The cells of every table row of a page, emphasis left out."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("**", "")
    rows = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_made_it(name):
    assert load(name)["command"] == f"collapsible reproduce {FILES[name]}"


def test_correlations():
    rows = [cells[1:] for cells in lines("theory.md")]
    for row in load("ran-correlation")["sections"][0]["rows"]:
        v = row["values"]
        wanted = [f"{v['kendall']:+.2f}", v["kendall_interval"]]
        wanted += [f"{v['spearman']:+.2f}", v["spearman_interval"]]
        assert wanted in rows, row["name"]


def test_detectors():
    rows = [cells[1:] for cells in lines("detection.md")]
    report = load("ran-detection")
    for row in report["sections"][0]["rows"]:
        v = row["values"]
        keys = ("map", "map50", "small", "medium", "large", "parameters")
        frames = f"{v['fps']:.1f}"
        if row["name"].startswith("ran-i"):
            ratio = report["settings"]["ratios"][row["name"].split()[1]]
            frames += f" ({ratio:.2f} x)"
        assert [*(f"{v[key]:.2f}" for key in keys), frames] in rows, row["name"]


@pytest.mark.parametrize("name", ["ran-small-scale", "ran-small-scale-cifar10"])
def test_small_scale(name):
    rows = [cells[1:] for cells in lines("ran-i.md")]
    networks, gaps, *speeds = (
        {row["name"]: row["values"] for row in section["rows"]}
        for section in load(name)["sections"]
    )
    speeds = [times for times in speeds if "torch-1" in times["base"]]
    assert speeds
    for arm, v in networks.items():
        depths = "drawn" if arm == "random" else v["depths"]
        fewer = "1" if arm == "base" else f"{v['fewer']:.2f}"
        wanted = [depths, fewer, f"{v['top1']:.2f} ({v['spread']:.2f})"]
        if arm == "base":
            wanted += [""] * 5
        else:
            wanted += [f"{gaps[arm]['gap']:+.2f} ({gaps[arm]['interval']})"]
            wanted += [", ".join(f"{one[arm][key]:.2f}" for one in speeds) for key in TIMES]
        assert wanted in rows, (arm, wanted)


def test_full_size_speed():
    rows = lines("ran-i.md")
    counts, ratios = load("ran-table-i")["sections"]
    for row in counts["rows"]:
        v = row["values"]
        wanted = [row["name"], f"{v['params']:.2f} M", f"{v['macs']:.3f} G", f"{v['mass']:,.0f}"]
        assert [*wanted, f"{v['top1']:g}"] in rows, row["name"]
    for row in ratios["rows"]:
        v = row["values"]
        engines = ("torch", "openvino-fp32", "openvino-bf16", "openvino-int8")
        times = [f"{v[f'{e}, 1']:.2f}, {v[f'{e}, 8']:.2f}" for e in engines]
        assert [row["name"], f"{v['points']:+.2f}", f"{v['macs']:.2f}", *times] in rows, row["name"]
