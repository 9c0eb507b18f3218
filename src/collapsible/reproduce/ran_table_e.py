"""RAN-explicit's table on micro-NPUs: the published networks, int8, compiled by Vela.

No training: weights are newly drawn and the ranges of int8 come from random pictures, neither of
which changes what an NPU has to compute (weights that compress better would be fetched faster).
The paper says neither which Ethos-U55 and U65 it means, nor their memory, so several stand here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import CollapsibleError
from collapsible.reproduce.ran_networks import (
    C_RELU6,
    GT,
    GT_RELU6,
    LITE,
    LITE_HS,
    NETWORKS,
    RELEASED,
    SMALL,
    SMALL_TARGETS,
    TARGETS,
    C,
    Network,
    build,
    deployed,
)
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

if TYPE_CHECKING:
    from collapsible.costs.targets import Target
    from collapsible.deploy.estimate_report import EstimateReport

PAPER = "Restructurable Activation Networks (arXiv 2208.08562), the results figure"
SIZE = (1, 3, 224, 224)
MIB = 2**20
# What an estimate's ratio may miss of a published one that has three digits.
NEAR = 0.05

# Other places for maps and weights, as vela.ini has them: title, target, changes.
MODES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "ethos-u55-256, maps and weights in SRAM",
        "ethos-u55-256",
        {"memory_mode": "Sram_Only", "sram_bytes": 16 * MIB},
    ),
    (
        "ethos-u65-256 at 500 MHz, maps in SRAM, weights in flash",
        "ethos-u65-256",
        {
            "system_config": "Ethos_U65_Embedded",
            "memory_mode": "Shared_Sram",
            "clock_hz": 500e6,
            "sram_bytes": 4 * MIB,
        },
    ),
    (
        "ethos-u65-512, DRAM of 12 GB/s",
        "ethos-u65-512",
        {"system_config": "Ethos_U65_Client_Server"},
    ),
)
MODE_NETWORKS = (LITE, LITE_HS, C, GT, GT_RELU6)
# Sizes of a chip's SRAM to fit into, on this target.
SRAM_TARGET = "ethos-u55-256"
SRAM_SIZES = (2 * MIB, MIB, 768 << 10, 512 << 10)
SRAM_NETWORKS = (LITE, C, GT)
COUNTS = (
    Column("params_m", "M params", ".3f"),
    Column("macs_m", "M MACs", ".1f"),
    Column("top1", "top-1", ".1f"),
    Column("u55", "U55", ".2f"),
    Column("u65", "U65", ".2f"),
)
FRAMES = (
    Column("fps", "frames/s", ".1f"),
    Column("over_lite0", "over Lite0", ".2f"),
    Column("published", "published", ".2f"),
    Column("utilisation", "busy", ".0%"),
    Column("sram_kib", "SRAM KiB", ",.0f"),
    Column("cpu_operators", "on the CPU", ""),
)


def table_e(request: Request) -> Reproduction:
    """The table; the small form takes three networks on one target."""
    from collapsible.costs.targets import assume, find_target

    small = not request.full
    networks = [one for one in NETWORKS if request.full or one.name in SMALL]
    names = tuple(network.name for network in networks)
    targets = [find_target(name) for name in (SMALL_TARGETS if small else TARGETS)]
    modes = [] if small else [(title, assume(name, **change)) for title, name, change in MODES]
    base = find_target(SRAM_TARGET)
    chips = [] if small else [_with_sram(base, size) for size in SRAM_SIZES]
    total = len(networks) * (1 + len(targets)) + len(modes) * len(MODE_NETWORKS)
    total += len(chips) * len(SRAM_NETWORKS)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        request.on_progress(done, total, what)

    notes: list[str] = []
    sections = [_published(), _counts(networks, notes)]
    files: dict[str, Path] = {}
    for network in networks:
        # Converted once; all targets compile the same file.
        made = _file(network, notes)
        if made is not None:
            files[network.name] = made
        step(f"{network.name} to int8")

    def run(target: Target, names: tuple[str, ...], title: str) -> dict[str, EstimateReport]:
        found = {}
        for name in names:
            report = _estimate(files.get(name), target, f"{name} on {title}", notes)
            if report is not None:
                found[name] = report
            step(f"{name} on {title}")
        return found

    by_target = {target.name: run(target, names, target.name) for target in targets}
    for target in targets:
        rows = _frames(networks, by_target[target.name], target.name)
        sections.append(Section(target.title or target.name, FRAMES, rows))
    sections.append(_activation(by_target))
    checks = _checks(sections[1], by_target)
    if modes:
        found = {title: run(target, MODE_NETWORKS, title) for title, target in modes}
        chosen = [network for network in NETWORKS if network.name in MODE_NETWORKS]
        for title, _ in modes:
            rows = _frames(chosen, found[title], title)
            sections.append(Section(f"Another memory: {title}", FRAMES, rows))
        sections.append(_activation(found, "; other memories"))
    if chips:
        reports = [run(chip, SRAM_NETWORKS, chip.name) for chip in chips]
        sections.append(_sram(chips, reports))
    notes += [
        "over Lite0: frames a second over EfficientNet-Lite0's with ReLU6 on the same target. "
        "Weights are newly drawn and pictures random: neither changes the operators. Trained "
        "weights may compress differently, so that they are fetched faster or slower.",
        "The paper names neither the sizes of its NPUs nor their memory; its one column for U55 "
        "(U65) stands beside every U55 (U65) here.",
        *(f"{target.name}: {text}" for target in targets for text in target.assumptions),
    ]
    if small:
        notes.append("--full: nine networks, five targets, other memories (many minutes).")
    return Reproduction(
        "ran/table-e",
        "RAN-explicit on micro-NPUs: frames a second over EfficientNet-Lite0's",
        PAPER,
        request.form,
        tuple(sections),
        checks,
        tuple(notes),
        {"input": list(SIZE), "precision": "int8", "weights": "newly drawn, seed 0"},
    )


def _file(network: Network, notes: list[str]) -> Path | None:
    from collapsible.deploy.npu import to_tflite

    try:
        return to_tflite(deployed(network, notes), SIZE)
    except CollapsibleError as error:
        notes.append(f"{network.name}: {' '.join(str(error).split())}")
        return None


def _estimate(
    file: Path | None, target: Target, what: str, notes: list[str]
) -> EstimateReport | None:
    from collapsible.deploy.estimate import estimate

    if file is None:
        return None
    try:
        report = estimate(file, target)
    except CollapsibleError as error:
        notes.append(f"{what}: {' '.join(str(error).split())}")
        return None
    if report.cpu_operators:
        notes.append(f"{what} has no frame rate: {', '.join(report.cpu_operators)} on the CPU")
    return report


def _with_sram(target: Target, size: int) -> Target:
    """The target with this much SRAM, which the compiler is told and held to."""
    from collapsible.costs.targets import assume

    name = f"{target.name} with {size / MIB:g} MiB of SRAM"
    return assume(target, name=name, sram_bytes=size, arena_cache_size=size)


def _published() -> Section:
    rows = tuple(
        Row(
            network.name,
            "published",
            "the results figure",
            {
                "params_m": network.published.params,
                "macs_m": network.published.macs,
                "top1": network.published.top1,
                "u55": network.published.u55,
                "u65": network.published.u65,
            },
        )
        for network in NETWORKS
        if network.published
    )
    return Section("The paper's; U55 and U65: frames a second over Lite0's", COUNTS, rows)


def _counts(networks: list[Network], notes: list[str]) -> Section:
    from collapsible.costs import cost

    rows = []
    for network in networks:
        report = cost(build(network), SIZE)
        after = cost(deployed(network), SIZE)
        rows.append(
            Row(
                network.name,
                "measured",
                "counted by collapsible cost",
                {
                    "params": report.params,
                    "macs": report.macs,
                    "params_m": report.params / 1e6,
                    "macs_m": report.macs / 1e6,
                    "collapsed_params": after.params,
                    "collapsed_macs": after.macs,
                    "collapsed_params_m": after.params / 1e6,
                    "collapsed_macs_m": after.macs / 1e6,
                    "non_linear_m": after.non_linear / 1e6,
                },
            )
        )
    columns = (
        *COUNTS[:2],
        Column("collapsed_params_m", "collapsed", ".3f"),
        Column("collapsed_macs_m", "M MACs", ".1f"),
        Column("non_linear_m", "M non-linear", ".2f"),
    )
    return Section("Ours: trained form, and collapsed as it is deployed", columns, tuple(rows))


def _frames(
    networks: list[Network], reports: dict[str, EstimateReport], where: str
) -> tuple[Row, ...]:
    """A row a network. What has no frame rate has none here either."""
    base = reports.get(LITE)
    column = "u55" if "u55" in where else "u65" if "u65" in where else None
    rows = []
    for network in networks:
        report = reports.get(network.name)
        if report is None:
            rows.append(Row(network.name, "estimated", f"no figure on {where}", {}))
            continue
        told = network.published if column else None
        rows.append(
            Row(
                network.name,
                "estimated",
                report.source.removeprefix("estimated: "),
                {
                    **_values(report),
                    "over_lite0": _over(report, base),
                    "published": getattr(told, column or "", None),
                },
            )
        )
    return tuple(rows)


def _values(report: EstimateReport) -> dict[str, Value]:
    return {
        "fps": report.fps,
        "latency_ms": report.latency_ms,
        "cycles": report.cycles,
        "vela_macs": report.macs,
        "utilisation": report.utilisation,
        "sram_bytes": report.sram_bytes,
        "sram_kib": None if report.sram_bytes is None else report.sram_bytes / 1024,
        "off_chip_bytes": report.dram_bytes,
        "off_chip_traffic": report.dram_traffic,
        "cpu_operators": ", ".join(report.cpu_operators) or "none",
        "fits": str(report.fits).lower(),
    }


def _over(report: EstimateReport | None, base: EstimateReport | None) -> float | None:
    if report is None or base is None or not report.fps or not base.fps:
        return None
    return report.fps / base.fps


def _activation(found: dict[str, dict[str, EstimateReport]], where: str = "") -> Section:
    """What H-swish costs: a network's frames with it over those with ReLU6, and RAN-e's gain."""
    rows = []
    for name, reports in found.items():
        lite, lite_hs = reports.get(LITE), reports.get(LITE_HS)
        gt, gt_relu6 = reports.get(GT), reports.get(GT_RELU6)
        values: dict[str, Value] = {
            "lite0": _over(lite_hs, lite),
            "c": _over(reports.get(C), reports.get(C_RELU6)),
            "gt": _over(gt, gt_relu6),
            "gain": _over(gt, lite),
            "gain_relu6": _over(gt_relu6, lite),
            "gain_h_swish": _over(gt, lite_hs),
            "gain_c_h_swish": _over(reports.get(C), lite_hs),
        }
        rows.append(Row(name, "estimated", "the sections above", values))
    columns = (
        Column("lite0", "Lite0", ".2f"),
        Column("c", "C", ".2f"),
        Column("gt", "GT", ".2f"),
        Column("gain", "GT/Lite0", ".2f"),
        Column("gain_relu6", "both ReLU6", ".2f"),
        Column("gain_h_swish", "both H-swish", ".2f"),
        Column("gain_c_h_swish", "C, both H-swish", ".2f"),
    )
    title = "The activation: frames with H-swish over those with ReLU6, then over Lite0's by act"
    return Section(title + where, columns, tuple(rows))


def _sram(chips: list[Target], reports: list[dict[str, EstimateReport]]) -> Section:
    """Frames a second with less SRAM; none where the maps do not fit."""
    rows = []
    for chip, found in zip(chips, reports, strict=True):
        for name, report in found.items():
            values = _values(report)
            values["verdict"] = "fits" if report.fits else "does not fit"
            source = report.source.removeprefix("estimated: ")
            rows.append(Row(f"{name}, {chip.name}", "estimated", source, values))
    columns = (
        FRAMES[0],
        Column("sram_kib", "SRAM KiB", ",.0f"),
        Column("verdict", "", ""),
    )
    return Section("Less SRAM: where the maps fit", columns, tuple(rows))


def _checks(counts: Section, found: dict[str, dict[str, EstimateReport]]) -> tuple[Check, ...]:
    checks = []
    ours = {row.name: row.values for row in counts.rows}
    for name, (params, macs) in RELEASED.items():
        if name in ours:
            p, m = int(ours[name]["params"] or 0), int(ours[name]["macs"] or 0)
            # Published to a thousand parameters and 0.1 M MACs.
            holds = abs(p - params) <= 500 and abs(m - macs) <= 100_000
            text = f"{p:,} parameters, {m:,} MACs"
            claim = f"{name} has {params / 1e6:.3f}M parameters and {macs / 1e6:.1f}M MACs"
            checks.append(Check(claim, holds, text))
    off = {
        f"{name} on {target}: {', '.join(report.cpu_operators)}"
        for target, reports in found.items()
        for name, report in reports.items()
        if report.cpu_operators
    }
    compiled = sum(map(len, found.values()))
    checks.append(
        Check(
            "every operator runs on the NPU",
            bool(compiled) and not off,
            "; ".join(sorted(off)) or f"none on the CPU in {compiled} compiled",
        )
    )
    published = {network.name: network.published for network in NETWORKS}
    for name in (C, GT):
        for family in ("u55", "u65"):
            told = published.get(name)
            ratios = {
                target: ratio
                for target, reports in found.items()
                if family in target
                and (ratio := _over(reports.get(name), reports.get(LITE))) is not None
            }
            if told is None or not ratios:
                continue
            wanted: float = getattr(told, family)
            checks.append(
                Check(
                    f"{name}: {wanted:g} times Lite0's (ReLU6) frames on {family.upper()}, "
                    f"within {NEAR:.0%} or above",
                    any(ratio >= wanted * (1 - NEAR) for ratio in ratios.values()),
                    "; ".join(f"{ratio:.2f} on {target}" for target, ratio in ratios.items()),
                )
            )
    free = {
        target: ratio
        for target, reports in found.items()
        if (ratio := _over(reports.get(LITE_HS), reports.get(LITE))) is not None
    }
    if free:
        checks.append(
            Check(
                f"H-swish costs Lite0 no frames (published: 1x with either), within {NEAR:.0%}",
                all(ratio >= 1 - NEAR for ratio in free.values()),
                "; ".join(f"{ratio:.2f} on {target}" for target, ratio in free.items()),
            )
        )
    return tuple(checks)
