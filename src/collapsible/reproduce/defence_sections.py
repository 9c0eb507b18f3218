"""Sections and checks of ``defence/robustness``, from what the laboratory found."""

from __future__ import annotations

from collapsible.defence import DefenceReport
from collapsible.defence.integers import INT8
from collapsible.defence.plan import CLEAN, show_budget
from collapsible.defence.report import Cell
from collapsible.defence.statistics import paired_difference, wilson
from collapsible.reproduce.report import Check, Column, Row, Section, Value

# JPEG and wavelet denoising come before every enlarger; tables leave them out.
FIRST = "jpeg:75+wavelet+"
# "Within 2 points" of the large network: the project's reading of "maintains robustness".
WITHIN = 0.02


def worst_of(report: DefenceReport, classifier: str, defence: str, epsilon: float) -> list[bool]:
    """Pictures that stay right under every grey-box attack of a budget."""
    return _all(_cells(report, classifier, defence, epsilon, ("grey-box",)))


def _cells(
    report: DefenceReport, classifier: str, defence: str, epsilon: float, threats: tuple[str, ...]
) -> list[Cell]:
    return [
        cell
        for cell in report.cells
        if (cell.classifier, cell.defence) == (classifier, defence)
        and cell.threat in threats
        and (cell.threat == CLEAN or cell.epsilon == epsilon)
        and cell.outcome
    ]


def _all(cells: list[Cell]) -> list[bool]:
    columns = zip(*(cell.outcome for cell in cells), strict=True)
    return [all(bit == "1" for bit in column) for column in columns]


def _percent(bits: list[bool]) -> Value:
    return 100 * sum(bits) / len(bits) if bits else None


def grey_box_section(
    report: DefenceReport, classifier: str, epsilon: float, title: str, large_one: str
) -> Section:
    """Right answers under attacks on the bare classifier, and less those of the large network."""
    attacks = [str(attack) for attack in report.plan.attacks]
    large = worst_of(report, classifier, FIRST + large_one, epsilon)
    rows = []
    for defence in report.plan.defences:
        clean = _all(_cells(report, classifier, defence, epsilon, (CLEAN,)))
        values: dict[str, Value] = {"clean": _percent(clean)}
        # Of the bare classifier this is the white-box figure.
        threats = ("grey-box",) if defence != "none" else ("grey-box", "adaptive")
        cells = [
            cell
            for cell in _cells(report, classifier, defence, epsilon, threats)
            if cell.through == "none"
        ]
        for cell in cells:
            values[cell.attack] = _percent([bit == "1" for bit in cell.outcome])
        worst = _all(cells)
        values["worst"] = _percent(worst)
        if worst:
            interval = wilson(sum(worst), len(worst))
            values["interval"] = f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"
        if defence != "none" and worst and large and defence != FIRST + large_one:
            mean, low, high = paired_difference(worst, large)
            values["difference"] = 100 * mean
            values["difference interval"] = f"{100 * low:+.1f} to {100 * high:+.1f}"
        name = defence.removeprefix(FIRST)
        rows.append(Row(name, "measured", f"{report.pictures} pictures", values))
    columns = [Column("clean", "clean", ".1f")]
    columns += [Column(name, name, ".1f") for name in attacks]
    columns += [Column("worst", "worst grey-box", ".1f"), Column("interval", "interval")]
    columns += [
        Column("difference", f"less {large_one}", "+.1f"),
        Column("difference interval", "interval"),
    ]
    head = f"{title}, L-inf {show_budget(epsilon)}: right answers in %"
    return Section(head, tuple(columns), tuple(rows))


def adaptive_section(report: DefenceReport, classifier: str, epsilon: float) -> Section:
    """Right answers under attacks made through each defence."""
    attacks = [str(attack) for attack in report.plan.attacks]
    rows = []
    for defence in report.plan.defences:
        clean = _all(_cells(report, classifier, defence, epsilon, (CLEAN,)))
        cells = _cells(report, classifier, defence, epsilon, ("adaptive",))
        values: dict[str, Value] = {"clean": _percent(clean), "worst": _percent(_all(cells))}
        for cell in cells:
            values[cell.attack] = _percent([bit == "1" for bit in cell.outcome])
        name = defence.removeprefix(FIRST)
        rows.append(Row(name, "measured", f"{report.pictures} pictures", values))
    columns = (
        Column("clean", "clean", ".1f"),
        *(Column(name, name, ".1f") for name in attacks),
        Column("worst", "worst adaptive", ".1f"),
    )
    head = f"imagenette, {classifier}, attacked through the defence, L-inf {show_budget(epsilon)}"
    return Section(head, columns, tuple(rows))


def within_check(
    report: DefenceReport,
    classifier: str,
    epsilon: float,
    title: str,
    tiny: tuple[str, ...],
    large_one: str,
) -> Check:
    """Whether every network of ``tiny`` is at most ``WITHIN`` below the large one, by the mean."""
    large = worst_of(report, classifier, FIRST + large_one, epsilon)
    found, good = [], bool(large)
    for name in tiny:
        own = worst_of(report, classifier, FIRST + name, epsilon)
        mean, low, high = paired_difference(own, large)
        good = good and mean >= -WITHIN
        found.append(f"{name} {100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
    claim = (
        f"{title}, {show_budget(epsilon)}: every SESR at most {100 * WITHIN:.0f} points below "
        f"{large_one} (grey-box, all attacks)"
    )
    return Check(claim, good, "; ".join(found))


def transfer_section(report: DefenceReport, classifier: str, epsilon: float) -> Section:
    """Pictures made on the other classifiers, bare, tried on this one."""
    others = [spec.name for spec in report.plan.classifiers if spec.name != classifier]
    rows = []
    for defence in report.plan.defences:
        cells = [
            cell
            for cell in _cells(report, classifier, defence, epsilon, ("transfer",))
            if cell.through == "none"
        ]
        values: dict[str, Value] = {
            "clean": _percent(_all(_cells(report, classifier, defence, epsilon, (CLEAN,)))),
            "worst": _percent(_all(cells)),
        }
        for other in others:
            values[other] = _percent(_all([cell for cell in cells if cell.source == other]))
        rows.append(
            Row(defence.removeprefix(FIRST), "measured", f"{report.pictures} pictures", values)
        )
    columns = (
        Column("clean", "clean", ".1f"),
        *(Column(name, f"from {name}", ".1f") for name in others),
        Column("worst", "worst", ".1f"),
    )
    attacks = ", ".join(map(str, report.plan.attacks))
    head = f"{classifier}, attacked with pictures made on others ({attacks}), L-inf "
    return Section(head + show_budget(epsilon), columns, tuple(rows))


def integer_section(
    report: DefenceReport, classifier: str, integers: str, epsilon: float
) -> Section:
    """The pipeline in fp32 and in int8 on the same attacked pictures, and on its own."""
    rows = []
    for defence, deployed in _pairs(report):
        fp32, same, own = _both(report, classifier, integers, defence, deployed, epsilon)
        mean, low, high = paired_difference(same, fp32)
        clean = [
            _all(_cells(report, *pair, epsilon, (CLEAN,)))
            for pair in ((classifier, defence), (integers, deployed))
        ]
        values: dict[str, Value] = {
            "clean": _percent(clean[0]),
            "clean int8": _percent(clean[1]),
            "worst": _percent(fp32),
            "worst int8": _percent(same),
            "difference": 100 * mean,
            "interval": f"{100 * low:+.1f} to {100 * high:+.1f}",
            "own": _percent(own),
        }
        rows.append(
            Row(defence.removeprefix(FIRST), "measured", f"{report.pictures} pictures", values)
        )
    columns = (
        Column("clean", "clean", ".1f"),
        Column("clean int8", "int8", ".1f"),
        Column("worst", "worst grey-box", ".1f"),
        Column("worst int8", "int8", ".1f"),
        Column("difference", "int8 less fp32", "+.1f"),
        Column("interval", "interval"),
        Column("own", "int8, made on it", ".1f"),
    )
    head = f"{classifier}: fp32 and int8 on the same attacked pictures, L-inf "
    return Section(head + show_budget(epsilon), columns, tuple(rows))


def integer_check(report: DefenceReport, classifier: str, integers: str, epsilon: float) -> Check:
    """Whether int8 loses at most ``WITHIN`` of the robust accuracy, by the mean."""
    found, good = [], True
    for defence, deployed in _pairs(report):
        if defence == "none":
            continue
        fp32, same, _ = _both(report, classifier, integers, defence, deployed, epsilon)
        mean, low, high = paired_difference(same, fp32)
        good = good and mean >= -WITHIN
        name = defence.removeprefix(FIRST)
        found.append(f"{name} {100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
    claim = f"in int8 the pipeline is at most {100 * WITHIN:.0f} points less robust than in fp32"
    return Check(f"{claim} (grey-box, {show_budget(epsilon)})", good, "; ".join(found))


def _pairs(report: DefenceReport) -> list[tuple[str, str]]:
    """Each defence with its form in int8, which may be itself."""
    names = report.plan.defences
    plain = [name for name in names if not name.endswith(f":{INT8}")]
    return [(name, f"{name}:{INT8}" if f"{name}:{INT8}" in names else name) for name in plain]


def _both(
    report: DefenceReport,
    classifier: str,
    integers: str,
    defence: str,
    deployed: str,
    epsilon: float,
) -> tuple[list[bool], list[bool], list[bool]]:
    """Right under all attacks: fp32, int8 on the same pictures, int8 on those made on it."""

    def right(target: str, behind: str, source: str) -> list[bool]:
        threats = ("grey-box", "adaptive", "transfer")
        cells = _cells(report, target, behind, epsilon, threats)
        return _all([c for c in cells if (c.source, c.through) == (source, "none")])

    return (
        right(classifier, defence, classifier),
        right(integers, deployed, classifier),
        right(integers, deployed, integers),
    )
