"""RAN-i's claim at a size that two cores can train (arXiv 2208.08562): rules of scaling compared.

A ConvNeXt base, and networks that rules make of it for the same or 1.8 times fewer MACs, are
trained alike on the same pictures with several seeds. What was trained is kept in RUNS, and asked
again it goes on from there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from collapsible.errors import UsageError
from collapsible.reproduce.ran_search import draw_pictures
from collapsible.reproduce.ran_search_measure import difference
from collapsible.reproduce.ran_small_scale_arms import (
    ARMS,
    BASE,
    DEEPER,
    LARGE_PICTURES,
    QUICKER,
    SMALL,
    SMALL_ARMS,
    SMALL_PICTURES,
    SMALL_SIDE,
    Result,
    Setting,
    train_arm,
)
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

PAPER = "RAN (arXiv 2208.08562), RAN-implicit: 2 times fewer MACs at similar accuracy"
SEEDS = 3
# The bars: points of top-1, frames a second over the base's.
LOSS, FASTER = 0.5, 1.4
ENGINES = ("torch", "openvino-fp32")
# Forms of the rule for fewer MACs, each held to both bars.
FORMS = ("mass", "mass-deeper", "mass-quick")


def small_scale(request: Request) -> Reproduction:
    """Train every arm with every seed, measure accuracy and speed."""
    if request.full and request.data is None:
        raise UsageError("--data is needed for the full size: a folder such as imagenette160")
    data = request.data or draw_pictures(request.runs / "ran-small-scale-drawn", SMALL.side)
    setting = _setting(request, data)
    arms = ARMS if request.full else SMALL_ARMS
    seeds = request.seeds or (SEEDS if request.full else 1)
    folder = request.runs / f"ran-small-scale-{request.form}-{data.name}"
    found: dict[str, list[Result]] = {arm.name: [] for arm in arms}
    total = sum(min(arm.seeds, seeds) for arm in arms)
    # Seed by seed, so that a run cut short has whole comparisons.
    for seed in range(seeds):
        for arm in (arm for arm in arms if seed < arm.seeds):
            done = sum(map(len, found.values()))
            made = train_arm(arm, seed, setting, data, folder, request, (done, total))
            found[arm.name].append(made)
    speeds = _speeds(found, setting, request)
    return Reproduction(
        "ran/small-scale",
        f"networks scaled without training from {BASE}, trained alike on {data.name}",
        PAPER,
        request.form,
        (_networks(found), _differences(found), *_frames(found, speeds)),
        _checks(request, found, speeds, total),
        _notes(request, setting),
        {"setting": asdict(setting), "seeds": seeds, "results": _without_hits(found)},
    )


def _setting(request: Request, data: Path) -> Setting:
    from collapsible.evaluation.labelled import find_labelled, find_part

    if not request.full:
        return replace(SMALL, steps=request.steps or SMALL.steps)
    pictures = find_labelled(find_part(data, "train") or data)
    small = max(pictures.read(0).shape[:2]) <= SMALL_SIDE
    setting = SMALL_PICTURES if small else LARGE_PICTURES
    return replace(setting, steps=request.steps or setting.steps)


def _speeds(
    found: Mapping[str, list[Result]], setting: Setting, request: Request
) -> dict[tuple[int, str, int], dict[str, float]]:
    """Median frames a second of each arm's first network, by side, engine and batch."""
    from collapsible.models import ConvNeXt
    from collapsible.search.speed import sample_speed

    networks = {
        name: ConvNeXt(one.depths, one.dims, num_classes=10, patch_size=setting.patch)
        for name, (one, *_) in found.items()
    }
    engines = ENGINES if request.full else ENGINES[:1]
    speeds = {}
    for side in setting.fps_sides:
        for engine in engines:
            for batch in setting.batches:
                what = f"frames a second: {engine}, {side} pixels, batch {batch}"
                request.on_progress(0, setting.rounds, what)
                samples = sample_speed(
                    networks,
                    (engine,),
                    (batch, 3, side, side),
                    rounds=setting.rounds,
                    tell=lambda done, total, what=what: request.on_progress(done, total, what),
                )
                speeds[side, engine, batch] = {
                    name: statistics.median(values) for (name, _), values in samples.items()
                }
    return speeds


def _networks(found: Mapping[str, list[Result]]) -> Section:
    base = found["base"][0]
    rows = []
    for name, results in found.items():
        one = results[0]
        top1 = [result.top1 for result in results]
        rows.append(
            Row(
                name,
                "measured",
                "counted; top-1 of networks trained here",
                {
                    "depths": " ".join(map(str, one.depths)),
                    "dims": " ".join(map(str, one.dims)),
                    "fewer": base.macs / one.macs,
                    "params": one.params / 1e6,
                    "units": one.units,
                    "deep": one.effectiveness,
                    "seeds": len(top1),
                    "top1": statistics.fmean(top1),
                    "spread": statistics.stdev(top1) if len(top1) > 1 else None,
                    "least": min(top1),
                    "most": max(top1),
                },
            )
        )
    return Section(
        "Networks (random: the first seed's) and top-1 on the pictures kept for testing",
        (
            Column("depths", "depths"),
            Column("dims", "widths"),
            Column("fewer", "MACs fewer", ".2f"),
            Column("params", "Mparams", ".2f"),
            Column("units", "units", ",.0f"),
            Column("deep", "depth/width", ".3f"),
            Column("seeds", "seeds"),
            Column("top1", "top-1 %", ".2f"),
            Column("spread", "s.d.", ".2f"),
        ),
        tuple(rows),
    )


def compare(first: Sequence[Result], second: Sequence[Result]) -> tuple[float, float, float]:
    """Points of top-1 by which the first are better, over the seeds of both; its 95 % interval."""
    pairs = list(zip(first, second, strict=False))
    return difference([one.bits() for one, _ in pairs], [other.bits() for _, other in pairs])


def _differences(found: Mapping[str, list[Result]]) -> Section:
    rows = []
    for name, results in found.items():
        if name == "base":
            continue
        gap, low, high = compare(results, found["base"])
        values: dict[str, Value] = {"gap": gap, "interval": f"{low:+.2f} to {high:+.2f}"}
        rows.append(Row(name, "measured", "same pictures; 95 % over pictures, not seeds", values))
    return Section(
        "Top-1 less the base's, in points",
        (Column("gap", "points", "+.2f"), Column("interval", "95 %")),
        tuple(rows),
    )


def _frames(
    found: Mapping[str, list[Result]], speeds: Mapping[tuple[int, str, int], dict[str, float]]
) -> Iterator[Section]:
    for side in sorted({side for side, _, _ in speeds}):
        cases = [case for case in speeds if case[0] == side]
        rows = []
        for name in found:
            values: dict[str, Value] = {}
            for case in cases:
                fps = speeds[case]
                values[f"{case[1]}-{case[2]}"] = fps[name] / fps["base"]
                values[f"{case[1]}-{case[2]}-fps"] = fps[name]
            rows.append(Row(name, "measured", "medians of interleaved rounds, all cores", values))
        yield Section(
            f"Frames a second over the base's, {side} pixels",
            tuple(Column(f"{c[1]}-{c[2]}", f"{c[1]} batch {c[2]}", ".2f") for c in cases),
            tuple(rows),
        )


def _checks(
    request: Request,
    found: Mapping[str, list[Result]],
    speeds: Mapping[tuple[int, str, int], dict[str, float]],
    total: int,
) -> tuple[Check, ...]:
    count = sum(map(len, found.values()))
    checks = [Check("every network was trained and measured", count == total, f"{count}")]
    if not request.full:
        return tuple(checks)

    def less(name: str, other: str, allowed: float, claim: str) -> Check:
        gap, low, high = compare(found[name], found[other])
        return Check(claim, gap >= -allowed, f"{gap:+.2f} points ({low:+.2f} to {high:+.2f})")

    base = found["base"][0]
    checks += [
        less(
            name,
            "base",
            LOSS,
            f"{name}: at most {LOSS} points below the base at "
            f"{base.macs / found[name][0].macs:.2f} times fewer MACs",
        )
        for name in FORMS
    ]
    checks.append(less("mass-equal", "base", 0.0, "mass-equal: above the base at equal MACs"))
    for name in FORMS:
        ratios = [fps[name] / fps["base"] for fps in speeds.values()]
        checks.append(
            Check(
                f"{name}: at least {FASTER} times the base's frames a second everywhere",
                min(ratios) >= FASTER,
                f"{min(ratios):.2f} to {max(ratios):.2f} times",
            )
        )
    checks += [
        less("mass", other, 0.0, f"mass is no worse than {other} at the same MACs")
        for other in ("entropy", "width", "depth", "random")
    ]
    return tuple(checks)


def _notes(request: Request, setting: Setting) -> tuple[str, ...]:
    if not request.full:
        return ("The small form shows that the chain runs; its figures say nothing of the rules.",)
    return (
        f"{setting.steps} steps of {setting.batch} pictures of {setting.side} pixels, measured at "
        f"{setting.test_side}; AdamW 3e-3, cosine, crops and flips, bf16. Nothing is trained out: "
        "more steps may change the order.",
        f"mass-deeper: cap on depth over width at {DEEPER} times the base's, as the published Tiny "
        "has over ConvNeXt-T; mass: the usual cap; mass-quick: the usual cap, and a budget of "
        f"1 / {QUICKER} of the base's measured milliseconds besides",
    )


def _without_hits(found: Mapping[str, list[Result]]) -> list[dict[str, Any]]:
    def plain(one: Result) -> dict[str, Any]:
        record = asdict(one)
        record.pop("hits")
        return {**record, "top1": one.top1}

    return [plain(one) for results in found.values() for one in results]
