"""Printed tables have the figures of docs/results, and each file says how it was made.

RAN-e's are in test_docs_ran_e.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from collapsible.models import create_model
from collapsible.weights import list_cards

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = {
    "ran-table-i": "ran/table-i --full",
    "ran-correlation": "ran/correlation",
    "ran-small-scale": "ran/small-scale --full --data imagenette160",
    "ran-small-scale-cifar10": "ran/small-scale --full --data cifar10jpg",
    "ran-detection": "ran/detection --full --data BCCD",
}
SETS = ("Set5", "Set14", "B100")
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


def test_shipped_networks_in_training_are_their_cards():
    """Rows of "sesr-m5 x2 ...": three figures of the float network, then of the int8 one."""
    cards = {f"{card.architecture.replace('_', '-')} x{card.scale}": card for card in list_cards()}
    seen = set()
    for name, *cells in lines("training.md"):
        model = " ".join(name.split()[:2]).rstrip(",")
        figures = [cell for cell in cells if re.fullmatch(r"\d\d\.\d{3}", cell)]
        if model not in cards or len(figures) < 3:
            continue
        kinds = (cards[model].metrics, cards[model].metrics_int8)
        wanted = [f"{kind[one]['psnr']:.3f}" for kind in kinds for one in SETS if kind]
        assert figures == wanted[: len(figures)], name
        seen.add(model)
    assert seen == set(cards)


def test_what_the_search_for_sesr_measured():
    record = load("sesr-search")
    assert record["command"].startswith("collapsible search sesr --data sr/train")
    text = " ".join((DOCS / "training.md").read_text(encoding="utf-8").split())
    layers = record["latency"]["layers"]["16"]
    listed = ", ".join(
        f"{name} {layers[name]:.2f}" for name in sorted(layers, key=layers.get)[::-1]
    )
    assert listed in text
    last, first = (record["latency"][end]["16"]["5x5"] for end in ("last", "first"))
    assert f"takes {last:.2f} more than one of 3x3, a first one {first:.2f}" in text
    found = create_model("sesr_cpu")
    kernels = [list(block.conv.kernel_size) for block in found.blocks]
    report = record["report"]
    assert kernels == report["kernels"]
    assert [list(found.first.kernel_size), list(found.last.kernel_size)] == [
        report["first"],
        report["last"],
    ]
    drawn = " ".join(f"{high}x{wide}" for high, wide in kernels)
    assert f"3x3 | {drawn} | 3x3" in text


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
