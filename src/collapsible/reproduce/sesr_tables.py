"""SESR's tables of quality and cost at x2 and x4 (tables 1 and 2), with ours beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from collapsible.errors import UsageError
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section
from collapsible.reproduce.sesr_published import SETS, Published, published

if TYPE_CHECKING:
    from pathlib import Path

    from collapsible.weights import Card

PAPER = "SESR (arXiv 2103.09404), table {number}"
# The pictures that the paper counts MACs for.
HEIGHT, WIDTH = 720, 1280
MEASURED_SETS = ("Set5", "Set14", "B100")
# Marks figures where 8-bit luma was reduced and not rounded (``evaluation.pairs.luma_pair``).
LUMA = " luma"


@dataclass(frozen=True)
class Count:
    """What a network of ours costs, collapsed: kernels' weights, and MACs to 1280x720.

    ``stuffed_macs`` counts a transposed convolution as one over its input stuffed with zeros: the
    convention behind the published figures of FSRCNN. The two are equal where there is none.
    """

    weights: int
    macs: int
    stuffed_macs: int


def table_x2(request: Request) -> Reproduction:
    """Table 1: x2."""
    return _table(request, 2)


def table_x4(request: Request) -> Reproduction:
    """Table 2: x4."""
    return _table(request, 4)


def count(model: str, scale: int) -> Count:
    """Count a network of the registry; see ``Count``."""
    from torch import nn

    from collapsible.blocks import CollapsibleConv2d
    from collapsible.costs import cost
    from collapsible.folding import collapse
    from collapsible.models import create_model

    network = create_model(model, scale=scale)
    if any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    height, width = HEIGHT // scale, WIDTH // scale
    report = cost(network, (1, 1, height, width))
    transposed = sum(
        m.weight.numel() for m in network.modules() if isinstance(m, nn.ConvTranspose2d)
    )
    extra = transposed * (scale**2 - 1) * height * width
    return Count(report.convolution_weights, report.macs, report.macs + extra)


def _table(request: Request, scale: int) -> Reproduction:
    from collapsible.weights import list_cards

    paper = PAPER.format(number=scale // 2)
    theirs = published(scale)
    counts = {
        row.model: count(row.model, scale)
        for row in theirs
        if row.model is not None and row.model != "bicubic"
    }
    cards = [card for card in list_cards() if card.scale == scale]
    sets = _sets(request)
    ours = _measure(request, cards, sets, scale)
    shown = tuple(sets or MEASURED_SETS)
    quality = [_published_row(row, paper) for row in theirs]
    for row, model in ours:
        quality.append(row)
        twin = next((r for r in reversed(theirs) if r.model == model), None)
        if twin is not None:
            differences = (_difference(row, twin, shown, paper, of) for of in ("", LUMA))
            quality += [difference for difference in differences if difference is not None]
    columns = (
        Column("weights", "weights", ",.0f"),
        Column("gmacs", "G MACs", ".2f"),
        *(Column(name, name, ".2f") for name in SETS),
        Column("mean", "mean of 3", ".2f"),
    )
    missing = sorted(set(counts) - {"fsrcnn"} - {card.architecture for card in cards})
    notes = [
        "FSRCNN* was trained by SESR's authors, FSRCNN is as its own paper has it.",
        "PSNR in dB on Y; SSIM is in the JSON. MACs to 1280x720. mean of 3: Set5, Set14, B100.",
        "luma: where 8-bit luma was reduced and not rounded, by which bicubic has the published "
        "figures; else 8-bit pictures are reduced.",
        "Published MACs of FSRCNN count its deconvolution over an input stuffed with zeros "
        f"({counts['fsrcnn'].stuffed_macs / 1e9:.2f}G); of the products with inputs there are "
        f"{counts['fsrcnn'].macs / 1e9:.2f}G.",
    ]
    if sets:
        notes.append("Ours are measured now by collapsible evaluate's protocol.")
    else:
        notes.append("No data given, so ours are read from the weights' cards; --data measures.")
    if missing:
        notes.append(f"No weights are shipped yet for {', '.join(missing)} x{scale}.")
    return Reproduction(
        f"sesr/table-x{scale}",
        f"PSNR and cost at x{scale}",
        paper,
        request.form,
        (
            Section("Quality and cost", columns, tuple(quality)),
            Section(
                "Counted against published",
                (
                    Column("weights", "weights", ",.0f"),
                    Column("published_weights", "published", ",.0f"),
                    Column("gmacs", "G MACs", ".3f"),
                    Column("published_gmacs", "published", ".2f"),
                ),
                tuple(_count_row(row, counts) for row in _first_of_each(theirs, counts)),
            ),
            Section(
                "MACs of others over MACs of ours",
                (
                    Column("published", "published", ".1f"),
                    Column("counted", "ours counted", ".1f"),
                ),
                tuple(_ratios(theirs, counts, paper)),
            ),
        ),
        (*_count_checks(theirs, counts), *_bars(ours, theirs)),
        tuple(notes),
        {"scale": scale, "sets": list(sets)},
    )


def _sets(request: Request) -> dict[str, Path]:
    """The test sets of the given folder by name, those of the paper that are there."""
    if request.data is None:
        return {}
    there = {name: request.data / name for name in SETS if (request.data / name).is_dir()}
    if not there:
        raise UsageError(f"{request.data} holds none of the sets {', '.join(SETS)}")
    return there


def _measure(
    request: Request, cards: list[Card], sets: dict[str, Path], scale: int
) -> list[tuple[Row, str]]:
    """Rows of bicubic and of each shipped network, with the registry's name of each."""
    if not sets:
        return [(_card_row(card), _model(card)) for card in cards]
    from collapsible.evaluation import evaluate

    rows: list[tuple[Row, str]] = []
    names = ["bicubic", *(card.name for card in cards)]
    total, done = len(names) * len(sets), 0
    for name, card in zip(names, [None, *cards], strict=True):
        values: dict[str, float | int | str | None] = {}
        for set_name, folder in sets.items():
            report = evaluate(name, folder, scale=scale)
            values |= {set_name: report.psnr, f"{set_name} ssim": report.ssim}
            values[set_name + LUMA] = evaluate(name, folder, scale=scale, low="luma").psnr
            done += 1
            request.on_progress(done, total, f"{name} on {set_name}")
        if card is not None:
            values |= _cost_values(card)
        source = f"evaluate on {', '.join(sets)}"
        rows.append((Row(f"{name} (ours)", "measured", source, _with_mean(values)), _model(card)))
    return rows


def _model(card: Card | None) -> str:
    """The published network that a card is of; one with other options is of none."""
    if card is None:
        return "bicubic"
    return card.architecture if not card.options else card.stem


def _card_row(card: Card) -> Row:
    values: dict[str, float | int | str | None] = dict(_cost_values(card))
    for name, metrics in card.metrics.items():
        values |= {name: metrics.get("psnr"), f"{name} ssim": metrics.get("ssim")}
        values[name + LUMA] = metrics.get("psnr_luma")
    return Row(f"{card.name} (ours)", "measured", "the weights' card", _with_mean(values))


def _cost_values(card: Card) -> dict[str, float]:
    pixels = HEIGHT * WIDTH // card.scale**2
    return {"weights": card.parameters, "gmacs": card.parameters * pixels / 1e9}


def _with_mean(values: dict[str, float | int | str | None]) -> dict[str, float | int | str | None]:
    scores = [values.get(name) for name in MEASURED_SETS]
    numbers = [score for score in scores if isinstance(score, float)]
    return {**values, "mean": sum(numbers) / 3 if len(numbers) == 3 else None}


def _published_row(row: Published, paper: str) -> Row:
    values: dict[str, float | int | str | None] = {
        "weights": row.weights,
        "gmacs": None if row.macs is None else row.macs / 1e9,
    }
    for name, (psnr, ssim) in row.scores.items():
        values |= {name: psnr, f"{name} ssim": ssim}
    return Row(row.name, "published", paper, _with_mean(values))


def _difference(
    row: Row, twin: Published, shown: tuple[str, ...], paper: str, of: str = ""
) -> Row | None:
    """Ours less the published figures; ``of`` is the mark of which figures of ours, if any."""
    values: dict[str, float | int | str | None] = {}
    for name in shown:
        for key, at in ((name, 0), (f"{name} ssim", 1)):
            own = row.values.get(key + of)
            if isinstance(own, float) and name in twin.scores:
                values[key] = own - twin.scores[name][at]
    if not values:
        return None
    return Row(
        f"  difference{',' if of else ''}{of}",
        "measured",
        f"less {twin.name} of {paper.split(', ')[1]}",
        _with_mean(values),
    )


def _first_of_each(theirs: tuple[Published, ...], counts: dict[str, Count]) -> list[Published]:
    return [next(row for row in theirs if row.model == model) for model in counts]


def _count_row(row: Published, counts: dict[str, Count]) -> Row:
    own = counts[str(row.model)]
    return Row(
        row.name.partition(" (")[0],
        "measured",
        "counted by costs on the collapsed network"
        + (", deconvolution as if zero-stuffed" if own.stuffed_macs != own.macs else ""),
        {
            "weights": own.weights,
            "published_weights": row.weights,
            "gmacs": own.stuffed_macs / 1e9,
            "published_gmacs": None if row.macs is None else row.macs / 1e9,
            "gmacs_of_inputs": own.macs / 1e9,
        },
    )


def _ratios(theirs: tuple[Published, ...], counts: dict[str, Count], paper: str) -> list[Row]:
    by_name = {row.name: row for row in theirs}
    pairs = [
        ("VDSR", "SESR-M11"),
        ("LapSRN", "SESR-M11"),
        ("CARN-M", "SESR-XL"),
        ("LapSRN", "SESR-XL"),
        ("FSRCNN", "SESR-M5"),
        ("FSRCNN", "SESR-M3"),
    ]
    rows = []
    for other, own in pairs:
        top, bottom = by_name[other].macs, by_name[own].macs
        assert top is not None
        assert bottom is not None
        counted = counts[str(by_name[own].model)].macs
        name = f"{other} / {own}"
        values = {"published": top / bottom, "counted": top / counted}
        rows.append(Row(name, "published", f"{paper}; ours counted by costs", values))
    fsrcnn = counts["fsrcnn"]
    for own in ("sesr_m5", "sesr_m3"):
        name = f"FSRCNN / SESR-{own[-2:].upper()}, products with inputs alone"
        values = {"published": None, "counted": fsrcnn.macs / counts[own].macs}
        rows.append(Row(name, "measured", "both counted by costs", values))
    return rows


def _count_checks(theirs: tuple[Published, ...], counts: dict[str, Count]) -> list[Check]:
    """Our counts against the printed figures, whose last digit may be rounded or cut off."""
    wrong = []
    for row in _first_of_each(theirs, counts):
        own = counts[str(row.model)]
        assert row.weights is not None
        assert row.macs is not None
        if abs(own.weights - row.weights) >= 10 and row.model != "fsrcnn":
            wrong.append(f"{row.name}: {own.weights} weights against {row.weights:.0f}")
        if abs(own.stuffed_macs - row.macs) >= 0.01e9:
            wrong.append(f"{row.name}: {own.stuffed_macs / 1e9:.3f}G against {row.macs / 1e9:.2f}G")
    return [
        Check(
            "weights and MACs counted equal those published, to the printed digits",
            not wrong,
            "; ".join(wrong) or f"{len(counts)} networks",
        )
    ]


def _bars(ours: list[tuple[Row, str]], theirs: tuple[Published, ...]) -> list[Check]:
    """For each network of ours, whether it reaches the published PSNR on each set measured."""
    checks = []
    for row, model in ours:
        twin = next((r for r in reversed(theirs) if r.model == model), None)
        if twin is None or model == "bicubic":
            continue
        over = {
            name: value - twin.scores[name][0]
            for name in SETS
            if name in twin.scores and isinstance(value := row.values.get(name), float)
        }
        text = ", ".join(f"{name} {value:+.2f} dB" for name, value in over.items())
        # Published figures have two digits.
        good = bool(over) and all(value > -0.005 for value in over.values())
        checks.append(
            Check(f"{row.name} reaches {twin.name} on every set", good, text or "no figure")
        )
    return checks
