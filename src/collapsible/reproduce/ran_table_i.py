"""RAN-i beside ConvNeXt (arXiv 2208.08562): counts, published accuracies, measured speeds."""

from __future__ import annotations

from dataclasses import dataclass

from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

PAPER = "RAN (arXiv 2208.08562), RAN-implicit: the figure of accuracy over MACs"
SIDE = 224
# 'Similar accuracy': the largest loss that the paper still calls so, in points.
SIMILAR = 0.2
FEWER, FASTER = 1.8, 1.38


@dataclass(frozen=True)
class Network:
    """Published: parameters in millions, G MACs, NN-Mass and top-1 in % (None: not at hand)."""

    name: str
    params: float
    macs: float
    mass: float
    top1: float


NETWORKS = (
    Network("ran_i_tiny", 20.76, 3.285, 14_710, 82.03),
    Network("ran_i_small", 28.93, 4.577, 17_420, 82.63),
    Network("ran_i_base", 52.89, 8.429, 28_154, 83.61),
    Network("convnext_tiny", 28.59, 4.456, 13_248, 82.1),
    Network("convnext_small", 50.22, 8.684, 27_072, 83.1),
    Network("convnext_base", 88.59, 15.355, 36_096, 83.8),
)
# Of like accuracy, of like MACs: who is compared with whom.
PAIRS = (
    ("ran_i_tiny", "convnext_tiny"),
    ("ran_i_small", "convnext_tiny"),
    ("ran_i_small", "convnext_small"),
    ("ran_i_base", "convnext_small"),
    ("ran_i_base", "convnext_base"),
)
ENGINES = ("torch", "openvino-fp32", "openvino-bf16", "openvino-int8")
COUNTS = (
    Column("params", "M weights", ".2f"),
    Column("published_params", "published", ".2f"),
    Column("macs", "G MACs", ".3f"),
    Column("published_macs", "published", ".3f"),
    Column("mass", "NN-Mass", ",.0f"),
    Column("published_mass", "published", ",.0f"),
    Column("top1", "top-1 published", ".2f"),
)


def table_i(request: Request) -> Reproduction:
    """Counts of all six networks; the small form times one pair on torch, the full one all."""
    found = {network.name: _count(network) for network in NETWORKS}
    published = {network.name: network for network in NETWORKS}
    counts = Section(f"Counts at {SIDE}", COUNTS, tuple(row for row in found.values()))
    wrong = [
        name
        for name, row in found.items()
        for key in ("params", "macs", "mass")
        if not _agrees(row.values[key], row.values[f"published_{key}"])
    ]
    rows = []
    speeds, notes = _speeds(request)
    fast: list[tuple[str, float]] = []
    for first, second in PAIRS:
        macs = [found[name].values["macs"] for name in (first, second)]
        assert isinstance(macs[0], float)
        assert isinstance(macs[1], float)
        gain = published[first].top1 - published[second].top1
        values: dict[str, Value] = {"macs": macs[1] / macs[0], "points": gain}
        for (batch, engine), fps in speeds.items():
            if first in fps and second in fps:
                ratio = fps[first] / fps[second]
                values[f"{engine}, {batch}"] = ratio
                if gain >= -SIMILAR - 1e-9:
                    fast.append((f"{first} on {engine}, batch {batch}", ratio))
        rows.append(
            Row(
                f"{first} over {second}",
                "measured",
                "frames a second here, side by side; points published",
                values,
            )
        )
    columns = [Column("points", "points", "+.2f"), Column("macs", "fewer MACs", ".2f")]
    columns += [
        Column(f"{engine}, {batch}", f"{engine}, batch {batch}", ".2f") for batch, engine in speeds
    ]
    ratio = rows[-1].values["macs"]
    assert isinstance(ratio, float)
    checks = [
        Check(
            "weights, MACs and NN-Mass are the published ones",
            not wrong,
            "differ: " + ", ".join(wrong) if wrong else "all",
        ),
        Check(
            f"RAN-i Base takes at least {FEWER:g} times fewer MACs than ConvNeXt Base",
            ratio >= FEWER,
            f"{ratio:.2f}, at {rows[-1].values['points']:+.2f} points (published)",
        ),
    ]
    if request.full:
        best = max(fast, key=lambda pair: pair[1])
        checks.append(
            Check(
                f"at most {SIMILAR:g} points below, some RAN-i runs nearly 40 % more frames "
                f"({FASTER:g} times) on this CPU",
                best[1] >= FASTER,
                f"at best {best[1]:.2f} ({best[0]})",
            )
        )
    return Reproduction(
        "ran/table-i",
        "RAN-i beside ConvNeXt: what is counted, what is published, what this machine says",
        PAPER,
        request.form,
        (
            counts,
            Section("Ratios: MACs saved, frames a second gained", tuple(columns), tuple(rows)),
        ),
        tuple(checks),
        tuple(notes),
        {"side": SIDE if request.full else 64},
    )


def _count(network: Network) -> Row:
    from collapsible.costs import cost
    from collapsible.reproduce.drawn import draw_network
    from collapsible.search import nn_mass

    made = draw_network(f"timm:{network.name}")
    report = cost(made, (1, 3, SIDE, SIDE))
    return Row(
        network.name,
        "measured",
        "counted by collapsible cost and nn_mass; published beside",
        {
            "params": report.params / 1e6,
            "published_params": network.params,
            "macs": report.macs / 1e9,
            "published_macs": network.macs,
            "mass": nn_mass(made),
            "published_mass": network.mass,
            "top1": network.top1,
        },
    )


def _agrees(ours: Value, published: Value) -> bool:
    """Within half of the last digit that was published, or a part in a thousand."""
    assert isinstance(ours, float | int)
    assert isinstance(published, float | int)
    return abs(ours / published - 1) < 1.1e-3


def _speeds(
    request: Request,
) -> tuple[dict[tuple[int, str], dict[str, float]], list[str]]:
    from collapsible.search.speed import measure_speed

    names = [network.name for network in NETWORKS] if request.full else list(PAIRS[0])
    engines = ENGINES if request.full else ENGINES[:1]
    side, rounds = (SIDE, 9) if request.full else (64, 3)
    found: dict[tuple[int, str], dict[str, float]] = {}
    batches = (1, 8) if request.full else (1,)
    for part, batch in enumerate(batches):
        for number, engine in enumerate(engines):
            place = part * len(engines) + number
            request.on_progress(place, len(batches) * len(engines), f"{engine}, batch {batch}")
            report = measure_speed(names, (engine,), size=side, batch=batch, rounds=rounds)
            found[batch, engine] = {row.network: row.fps for row in report.rows}
    return found, [
        f"frames a second: medians of {rounds} interleaved rounds at {side} pixels, all cores, "
        "newly drawn weights; ratios of one run of one engine",
        *(() if request.full else ("--full: 224 pixels, all networks, OpenVINO too (minutes)",)),
    ]
