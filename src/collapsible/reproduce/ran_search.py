"""The RAN-e search (arXiv 2208.08562) from end to end; the paper's own was never published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import UsageError
from collapsible.reproduce.ran_search_setting import FULL, SMALL, Setting
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Kind, Reproduction, Row, Section

if TYPE_CHECKING:
    from collapsible.search.plan import Plan

PAPER = "RAN (arXiv 2208.08562), RAN-explicit"
EXACT = 1e-9
# The bar: so many times the base's frames a second, at most so many points of int8 top-1 below.
FASTER, BELOW = 1.5, 0.5
CLASSES = ("checks", "rings", "stripes")
PICTURES = {"train": 40, "val": 16}
ABOUT = {
    "base": "all bottlenecks, as trained",
    "continued": "the base, trained on as long as the others",
    "searched": "the search's choice",
    "earliest": "as many blocks fused and dense, the first ones",
    "pattern-c": "the blocks that are dense in RAN-e-C",
    "pattern-gt": "the blocks that are dense in RAN-e-GT",
    "from-scratch": "the found network, its folded convolutions trained from the start",
    "mobilenetv2": "MobileNetV2 of about the searched latency, trained from nothing",
}
Runs = dict[str, list[dict[str, Any]]]


def search(request: Request) -> Reproduction:
    """Train bases, search, fine-tune, collapse, make int8 files; and what it is compared with."""
    from collapsible.reproduce.ran_search_arms import Arms
    from collapsible.reproduce.ran_search_measure import measure

    setting = setting_of(request)
    steps = f"-{request.steps}" if request.full and request.steps else ""
    runs = request.runs / f"ran-search-{request.form}{steps}"
    if request.full and request.data is None:
        raise UsageError("--data is needed for the full size: a folder such as imagenette160")
    data = request.data or draw_pictures(runs / "pictures", setting.side)
    arms = Arms(
        setting,
        data,
        runs,
        lambda what, done, total: request.on_progress(done, total, what),
        "auto" if request.full else "cpu",
    )
    found: Runs = {}
    for seed in range(setting.seeds):
        for name in setting.every:
            train = request.full or name == "searched"
            found.setdefault(name, []).append(measure(arms, name, seed, train=train))
    for name in setting.arms:
        found[name] = [measure(arms, name, 0, train=request.full)]
    plans = [arms.plan(seed) for seed in range(setting.seeds)]
    seconds = [arms.seconds(seed) for seed in range(setting.seeds)]
    notes = [
        "Top-1 is measured on all validation pictures; int8 by the LiteRT interpreter, on files "
        f"calibrated with {setting.calibration} training pictures. Where a file lost more than "
        f"{setting.worth:g} points, {setting.int8_steps} steps in int8 form made another; the "
        "better of the two counts, for every network alike.",
        "Frames a second are estimated, of the int8 file for an Ethos-U by Vela; all else by a "
        "roofline of the network.",
        f"Plans, checkpoints, files and each picture's result: {runs}",
    ]
    if not request.full:
        notes.insert(0, "The small form shows that the chain runs; its accuracies say nothing.")
    picture = runs / "accuracy-latency.png"
    if find_spec("matplotlib") is None:
        notes.append("No plot: pip install 'collapsible[plot]'")
    else:
        from collapsible.reproduce.ran_search_plot import plot

        plot(found, setting, picture)
        notes.append(f"Plot: {picture}")
    return Reproduction(
        "ran/search",
        "A base network, what the search makes of it, and what it is compared with",
        PAPER,
        request.form,
        (
            _whole(found, setting),
            *_differences(found),
            _blocks(plans[0]),
            *((_cost(seconds, plans[0]),) if request.full else ()),
        ),
        checks=_checks(found, plans, setting),
        notes=tuple(notes),
        settings={
            **asdict(setting),
            "plans": [plan.changed for plan in plans],
            "runs": [_without_hits(one) for runs in found.values() for one in runs],
            "seconds": seconds,
        },
    )


def setting_of(request: Request) -> Setting:
    """The form that is asked for; in the full one ``steps`` are the base's.

    With other steps than the table's own, the full form has the searched network and the base
    trained on alone: what the other arms show hangs less on how long the base was trained.
    """
    setting = FULL if request.full else SMALL
    if request.seeds is not None:
        setting = replace(setting, seeds=request.seeds)
    if request.steps is None:
        return setting
    steps = request.steps
    if request.full:
        return replace(setting, steps=steps, every=("base", "searched", "continued"), arms=())
    search = max(1, steps // 4)
    return replace(setting, steps=steps, search=search, extra=search + max(1, steps // 2))


def _whole(found: Runs, setting: Setting) -> Section:
    base = found["base"]
    columns = [
        Column("seeds", "seeds", "d"),
        Column("fp32", "fp32 %", ".2f"),
        Column("int8", "int8 %", ".2f"),
        Column("trained", "int8 trained %", ".2f"),
    ]
    targets = list(base[0]["int8_fps"])
    for target in targets:
        columns += [
            Column(f"{target} fps", f"{target} fps", ".0f"),
            Column(f"{target} times", "x base", ".2f"),
        ]
    columns += [Column("macs", "MMACs", ".2f"), Column("parameters", "kparams", ".1f")]
    rows = []
    for name, ones in found.items():
        values: dict[str, Any] = {
            "seeds": len(ones),
            "fp32": _mean_top1(ones, "fp32"),
            "int8": _mean_top1(ones, "int8"),
            "trained": _mean_top1([one for one in ones if "trained" in one], "trained"),
            "deployed": _mean_top1(ones, "best"),
            "macs": _mean([one["macs"] / 1e6 for one in ones]),
            "parameters": _mean([one["parameters"] / 1e3 for one in ones]),
        }
        for target in targets:
            values[f"{target} fps"] = _mean([one["int8_fps"][target] for one in ones])
            values[f"{target} times"] = _times(ones, base, target)
        about = ABOUT.get(name, "as many blocks fused and dense, drawn at random")
        rows.append(Row(name, "measured", f"{about}; frames a second estimated", values))
    side = setting.test_side
    return Section(f"Whole networks, {side}x{side}, means over seeds", tuple(columns), tuple(rows))


def _differences(found: Runs) -> tuple[Section, ...]:
    """What each arm has over the base as trained and as trained on, on the same pictures."""
    sections = []
    for other in ("base", "continued"):
        if other not in found:
            continue
        rows = [
            Row(
                name,
                "measured",
                f"{min(len(ones), len(found[other]))} seed(s), the same pictures; "
                "95 % of resamples of the pictures",
                _compared(ones, found[other]),
            )
            for name, ones in found.items()
            if name != other
        ]
        columns = (
            Column("fp32", "fp32 points", "+.2f"),
            Column("int8", "int8 points", "+.2f"),
            Column("low", "from", "+.2f"),
            Column("high", "to", "+.2f"),
        )
        sections.append(Section(f"Less {ABOUT[other]}", columns, tuple(rows)))
    return tuple(sections)


def _compared(ones: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, float]:
    from collapsible.reproduce.ran_search_measure import difference, hits_of

    pairs = list(zip(ones, others, strict=False))
    values = {}
    for kind, deployed in (("fp32", "fp32"), ("int8", "best")):
        gap, low, high = difference(
            [hits_of(one, deployed) for one, _ in pairs],
            [hits_of(other, deployed) for _, other in pairs],
        )
        values[kind] = gap
    return {**values, "low": low, "high": high}


def _blocks(plan: Plan) -> Section:
    kind: Kind = "measured" if plan.source.startswith("measured") else "estimated"
    rows = tuple(
        Row(
            block.name,
            kind,
            f"{block.shape}, {block.form}",
            {
                "keep": 1e3 * block.keep_ms,
                "fused": None if block.fused_ms is None else 1e3 * block.fused_ms,
                "dense": None if block.dense_ms is None else 1e3 * block.dense_ms,
                "fused_importance": block.fused_importance,
                "importance": block.importance,
            },
        )
        for block in plan.blocks
    )
    columns = (
        Column("keep", "keep us", ".2f"),
        Column("fused", "fused us", ".2f"),
        Column("dense", "dense us", ".2f"),
        Column("fused_importance", "rise fused", ".5f"),
        Column("importance", "rise dense", ".5f"),
    )
    return Section(f"Blocks, each alone ({plan.target}; the first search)", columns, rows)


def _cost(seconds: Sequence[Mapping[str, float]], plan: Plan) -> Section:
    """Processor hours of a search, and of training candidates instead."""

    def mean(*keys: str) -> float:
        return _mean([sum(one.get(key, 0.0) for key in keys) for one in seconds]) or 0.0

    spent = mean("searched search", "searched selection")
    candidate = mean("candidate processor")
    count, of = len(plan.changed), len(plan.blocks)
    source = "processor time of one thread; other work ran on the machine"
    lines = (
        ("the search and its choice", spent),
        ("fine-tuning what it chose", mean("searched fine-tuning")),
        ("training one candidate on", candidate),
        (f"each of the {of} blocks fused and dense alone", 2 * of * candidate),
        (
            f"each choice of {count} of {of} blocks, fused or dense",
            math.comb(of, count) * 2.0**count * candidate,
        ),
        ("each of all choices", 3.0**of * candidate),
    )
    rows = []
    for name, value in lines:
        many = name.startswith("each")
        kind: Kind = "estimated" if many else "measured"
        how = f"{source}; as many times one candidate" if many else source
        rows.append(Row(name, kind, how, {"seconds": value, "hours": value / 3600}))
    columns = (Column("seconds", "s", ".0f"), Column("hours", "hours", ".3g"))
    return Section("What the search costs", columns, tuple(rows))


def _checks(found: Runs, plans: Sequence[Plan], setting: Setting) -> tuple[Check, ...]:
    base, searched = found["base"], found["searched"]
    worst = max(
        one["collapse_error"] / max(1.0, one["output_range"])
        for ones in found.values()
        for one in ones
    )
    checks = [
        Check(
            "the plan keeps the budget",
            all(plan.after_ms <= plan.budget_ms * (1 + 1e-9) for plan in plans),
            "; ".join(f"{plan.after_ms:.4g} ms of {plan.budget_ms:.4g} ms" for plan in plans),
        ),
        Check(
            "the collapsed network is the trained one, borders included",
            worst < EXACT,
            f"they differ by {worst:.1e} of the outputs' range in float64, at the most",
        ),
        Check(
            "fewer blocks have inner activations, and the network is faster",
            all(plan.changed for plan in plans)
            and all((_times(searched, base, target) or 0) > 1 for target in base[0]["int8_fps"]),
            ", ".join(plan.summary for plan in plans),
        ),
    ]
    if not setting.targets:
        return tuple(checks)
    fallen = [
        f"{one['arm']}-{one['seed']} on {target}: {', '.join(names)}"
        for ones in found.values()
        for one in ones
        for target, names in {**one["int8_cpu"], **one.get("trained_cpu", {})}.items()
        if names
    ]
    checks.append(
        Check("every operator of every int8 file runs on the NPU", not fallen, "; ".join(fallen))
    )
    for other in ("base", "continued"):
        if other not in found:
            continue
        gap = _compared(searched, found[other])
        for target in setting.targets:
            times = _times(searched, found[other], target) or 0.0
            checks.append(
                Check(
                    f"{target}: {FASTER:g} times the frames a second, int8 top-1 at most "
                    f"{BELOW:g} points below: {ABOUT[other]}",
                    times >= FASTER and gap["int8"] >= -BELOW,
                    f"{times:.2f} times (estimated), {gap['int8']:+.2f} points "
                    f"({gap['low']:+.2f} to {gap['high']:+.2f}), "
                    f"{min(len(searched), len(found[other]))} seed(s)",
                )
            )
    return tuple(checks)


def _times(ones: list[dict[str, Any]], base: list[dict[str, Any]], target: str) -> float | None:
    """The mean over seeds of frames a second over the base's of the same seed."""
    return _mean(
        [
            one["int8_fps"][target] / other["int8_fps"][target]
            for one, other in zip(ones, base, strict=False)
            if one["int8_fps"][target] and other["int8_fps"][target]
        ]
    )


def _mean_top1(ones: list[dict[str, Any]], kind: str) -> float | None:
    from collapsible.reproduce.ran_search_measure import top1

    return _mean([top1(one, kind) for one in ones])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _without_hits(one: dict[str, Any]) -> dict[str, Any]:
    from collapsible.reproduce.ran_search_measure import top1

    hits = ("fp32", "int8", "trained", "trained_form")
    return {key: top1(one, key) if key in hits else value for key, value in one.items()}


def draw_pictures(folder: Path, side: int) -> Path:
    """Noisy checks, rings and stripes in colour, train and val, the same each time."""
    import numpy as np

    from collapsible.imaging import write_picture

    done = folder / "done.json"
    if done.is_file():
        return folder
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for part, count in PICTURES.items():
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                period, angle = random.uniform(3, 6), random.uniform(0, np.pi)
                cy, cx = random.uniform(side / 4, 3 * side / 4, 2)
                turn = 2 * np.pi / period
                along = x * np.cos(angle) + y * np.sin(angle)
                across = y * np.cos(angle) - x * np.sin(angle)
                wave = (
                    np.sign(np.sin(turn * along) * np.sin(turn * across)),
                    np.sin(turn * np.hypot(x - cx, y - cy)),
                    np.sin(turn * along),
                )[label]
                colour = 128 + 60 * wave[..., None] * random.uniform(0.5, 1, 3)
                noisy = colour + random.normal(0, 20, (side, side, 3))
                write_picture(
                    folder / part / name / f"{number:03}.png",
                    np.clip(noisy, 0, 255).astype(np.uint8),
                )
    done.write_text(json.dumps(PICTURES))
    return folder
