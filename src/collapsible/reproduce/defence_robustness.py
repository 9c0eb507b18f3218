"""Does a tiny super-resolution network defend as well as a large one (arXiv 2112.14340)?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from collapsible.defence import (
    ClassifierSpec,
    DefenceReport,
    Plan,
    evaluate_defence,
    read_attack,
    read_classifier,
)
from collapsible.defence.plan import CLEAN, show_budget
from collapsible.defence.report import Cell
from collapsible.defence.statistics import paired_difference, wilson
from collapsible.errors import UsageError
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

PAPER = "Super-resolution as a defence (arXiv 2112.14340): the abstract's claim"
FIRST = "jpeg:75+wavelet+"
LARGE = "edsr-base-rgb"
TINY = ("sesr-m2-rgb", "sesr-m3-rgb", "sesr-m5-rgb", "sesr-m7-rgb", "sesr-xl-rgb")
OTHERS = ("nearest", "bicubic", "fsrcnn-rgb", "sesr-m5")
GREY_BOX = ("fgsm", "pgd:steps=10", "di2-fgsm:steps=10", "apgd-ce:steps=10")
ADAPTIVE = ("pgd:steps=10", "apgd-ce:steps=10", "square:queries=100")
BUDGET = 8 / 255
# "Within 2 points" of the large network: the project's reading of "maintains robustness".
WITHIN = 0.02
# MobileNetV2's input as TensorFlow takes it: see the data's README.
MOBILENET = ClassifierSpec(
    "mobilenet-v2",
    "torchvision:mobilenet_v2",
    "weights/mobilenet_v2_imagenet.safetensors",
    mean=(128 / 255,) * 3,
    std=(128 / 255,) * 3,
    padding="same",
)
TRAINED = ("classify-imagenette-resnet", "classify-imagenette-ran-i")


@dataclass(frozen=True)
class Size:
    """How much is measured: pictures of each part, their side in pixels, budgets, attacks.

    ``nette`` are at ``BUDGET``, ``sweep`` at the other budgets.
    """

    nette: int
    sweep: int
    imagenet: int
    others: int
    adaptive: int
    budgets: tuple[float, ...]
    side: int
    tiny: tuple[str, ...]
    baselines: tuple[str, ...]
    large: str
    grey_box: tuple[str, ...]
    attacks: tuple[str, ...]
    through: tuple[str, ...]


FULL = Size(
    nette=60,
    sweep=12,
    imagenet=16,
    others=8,
    adaptive=6,
    budgets=(2 / 255, 4 / 255, BUDGET, 16 / 255),
    side=128,
    tiny=TINY,
    baselines=OTHERS,
    large=LARGE,
    grey_box=GREY_BOX,
    attacks=ADAPTIVE,
    through=("bicubic", "sesr-m2-rgb", "sesr-m5-rgb"),
)
SMALL = replace(
    FULL,
    nette=10,
    sweep=0,
    imagenet=0,
    others=0,
    adaptive=4,
    budgets=(BUDGET,),
    side=64,
    tiny=("sesr-m2-rgb", "sesr-m5-rgb"),
    baselines=("bicubic",),
    large="sesr-xl-rgb",
    grey_box=("fgsm", "pgd:steps=3"),
    attacks=("pgd:steps=3",),
    through=("sesr-m2-rgb",),
)


def robustness(request: Request) -> Reproduction:
    """Right answers behind small and large networks, under attacks made without and with them.

    ``request.data`` holds ``cls/imagenette160/val``, ``cls/imagenet100`` and ``cls/weights``;
    classifiers trained by the recipes ``TRAINED`` are taken from their folders below
    ``request.runs`` where they are. Results are kept there too, and a killed run goes on.
    Raises ``UsageError`` for data that is not there, and what ``evaluate_defence`` does.
    """
    size = FULL if request.full else SMALL
    if request.data is None:
        raise UsageError("defence/robustness needs pictures and weights: --data FOLDER with cls")
    cls = request.data / "cls"
    mobilenet = replace(MOBILENET, weights=str(cls / MOBILENET.weights))
    needed = [cls / "imagenette160" / "val", Path(mobilenet.weights)]
    needed += [cls / "imagenet100"] * bool(size.imagenet)
    for path in needed:
        if not path.exists():
            raise UsageError(f"defence/robustness needs {path}, which is not there")
    files = [request.runs / name / "weights.safetensors" for name in TRAINED]
    trained = tuple(
        replace(read_classifier(str(path)), name=path.parent.name.removeprefix("classify-"))
        for path in files
        if path.is_file()
    )
    base = Plan(
        data=str(cls / "imagenette160" / "val"),
        classifiers=(mobilenet,),
        defences=tuple(FIRST + name for name in (*size.baselines, *size.tiny, size.large)),
        attacks=tuple(map(read_attack, size.grey_box)),
        epsilons=(BUDGET,),
        threats=("grey-box", "adaptive"),
        size=size.side,
        crop=size.side / 160,
        limit=size.nette,
    )
    # Grey-box attacks are made on the bare classifier alone: no attack goes through a defence.
    grey = replace(base, threats=("grey-box",))
    parts: dict[str, Plan] = {f"imagenette, {mobilenet.name}": grey}
    if size.sweep:
        rest = tuple(epsilon for epsilon in size.budgets if epsilon != BUDGET)
        name = f"imagenette, {mobilenet.name}, other budgets"
        parts[name] = replace(grey, epsilons=rest, limit=size.sweep)
    if size.imagenet:
        parts[f"imagenet100, {mobilenet.name}"] = replace(
            grey,
            data=str(cls / "imagenet100"),
            epsilons=(BUDGET,),
            crop=0.875,
            limit=size.imagenet,
        )
    if size.others and trained:
        parts["imagenette, trained here"] = replace(
            grey,
            classifiers=(*trained, mobilenet),
            epsilons=(BUDGET,),
            attacks=tuple(map(read_attack, size.grey_box[:2])),
            limit=size.others,
        )
    parts["adaptive"] = replace(
        base,
        defences=tuple(FIRST + name for name in size.through),
        attacks=tuple(map(read_attack, size.attacks)),
        epsilons=(BUDGET,),
        limit=size.adaptive,
    )
    reports = _evaluate(parts, request)
    return _report(reports, size, request, [spec.name for spec in trained])


def _evaluate(parts: dict[str, Plan], request: Request) -> dict[str, DefenceReport]:
    found = {}
    for number, (name, plan) in enumerate(parts.items()):

        def tell(done: int, total: int, title: str, part: int = number) -> None:
            request.on_progress(
                part * 1000 + done * 1000 // max(total, 1), len(parts) * 1000, title
            )

        found[name] = evaluate_defence(
            plan, request.runs / "defence-robustness" / request.form / str(number), on_job=tell
        )
    return found


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


def _report(
    reports: dict[str, DefenceReport], size: Size, request: Request, trained: list[str]
) -> Reproduction:
    sections: list[Section] = []
    checks: list[Check] = []
    for part, report in reports.items():
        for spec in report.plan.classifiers:
            for epsilon in report.plan.epsilons:
                if part == "adaptive":
                    sections.append(_adaptive(report, spec.name, epsilon))
                    continue
                title = f"{part}: {spec.name}" if part.endswith("here") else part
                sections.append(_grey(report, spec.name, epsilon, title, size))
                checks += _within(report, spec.name, epsilon, title, size)
    notes = [
        "grey-box: made on the bare classifier, which sees the picture at its own size; a picture "
        "counts as right only if it stays right under every attack of the column's kind",
        f"pictures of {size.side} pixels, enlarged to {2 * size.side}; {FIRST[:-1]} goes first",
        "intervals are of 95 %; the difference to the large network is of the same pictures "
        "(bootstrap): the check is of its mean alone",
    ]
    if not trained:
        notes.append(f"no classifier trained here was found below {request.runs}")
    return Reproduction(
        "defence/robustness",
        "robust accuracy behind SESR and behind a network at least ten times SESR-XL's size",
        PAPER,
        request.form,
        tuple(sections),
        tuple(checks),
        tuple(notes),
        {"pictures": {name: report.pictures for name, report in reports.items()}},
    )


def _grey(
    report: DefenceReport, classifier: str, epsilon: float, title: str, size: Size
) -> Section:
    attacks = [str(attack) for attack in report.plan.attacks]
    large = worst_of(report, classifier, FIRST + size.large, epsilon)
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
        if defence != "none" and worst and large and defence != FIRST + size.large:
            mean, low, high = paired_difference(worst, large)
            values["difference"] = 100 * mean
            values["difference interval"] = f"{100 * low:+.1f} to {100 * high:+.1f}"
        name = defence.removeprefix(FIRST)
        rows.append(Row(name, "measured", f"{report.pictures} pictures", values))
    columns = [Column("clean", "clean", ".1f")]
    columns += [Column(name, name, ".1f") for name in attacks]
    columns += [Column("worst", "worst grey-box", ".1f"), Column("interval", "interval")]
    columns += [
        Column("difference", f"less {size.large}", "+.1f"),
        Column("difference interval", "interval"),
    ]
    head = f"{title}, L-inf {show_budget(epsilon)}: right answers in %"
    return Section(head, tuple(columns), tuple(rows))


def _adaptive(report: DefenceReport, classifier: str, epsilon: float) -> Section:
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


def _within(
    report: DefenceReport, classifier: str, epsilon: float, title: str, size: Size
) -> list[Check]:
    large = worst_of(report, classifier, FIRST + size.large, epsilon)
    found, good = [], bool(large)
    for name in size.tiny:
        own = worst_of(report, classifier, FIRST + name, epsilon)
        mean, low, high = paired_difference(own, large)
        good = good and mean >= -WITHIN
        found.append(f"{name} {100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
    claim = (
        f"{title}, {show_budget(epsilon)}: every SESR at most {100 * WITHIN:.0f} points below "
        f"{size.large} (grey-box, all attacks)"
    )
    return [Check(claim, good, "; ".join(found))]
