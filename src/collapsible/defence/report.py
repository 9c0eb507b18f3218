"""The figures of an evaluation: every cell, and for each pair the worst case over all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from collapsible.defence.audit import AuditReport
from collapsible.defence.laboratory import JobResult, target_key
from collapsible.defence.plan import CLEAN, Plan, show_budget, threat_of
from collapsible.defence.preprocessing import NONE
from collapsible.defence.statistics import Accuracy, paired_difference, wilson


@dataclass(frozen=True)
class Cell:
    """One accuracy: a classifier behind a defence, under one attack.

    ``threat`` is ``clean``, ``grey-box``, ``adaptive`` or ``transfer``; ``source`` the classifier
    and ``through`` the defence on which the attack was made. ``accuracy`` is None where there is
    no figure, and ``failure`` says why. ``outcome`` has a 1 (right) or 0 for each picture, in the
    pictures' order, so that cells can be compared picture by picture.
    """

    classifier: str
    defence: str
    threat: str
    attack: str
    epsilon: float
    source: str
    through: str
    accuracy: Accuracy | None
    failure: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Headline:
    """What a pair of classifier and defence is worth at one budget.

    Accuracies (measured, Wilson's 95 % intervals): on clean pictures, and of pictures that stay
    right under every attack of a kind; ``worst`` under every attack of all kinds and clean.
    ``worst`` is None where no adaptive attack was made or one gave no figure: then there is none.
    ``gain`` is ``worst`` less that of the bare classifier, with a bootstrap interval.
    """

    classifier: str
    defence: str
    epsilon: float
    clean: Accuracy
    grey_box: Accuracy | None
    transfer: Accuracy | None
    adaptive: Accuracy | None
    worst: Accuracy | None
    gain: tuple[float, float, float] | None
    missing: str = ""


@dataclass(frozen=True)
class DefenceReport:
    """An evaluation: the plan, every cell, the headlines, and the audits if there were any."""

    plan: Plan
    pictures: int
    headlines: tuple[Headline, ...]
    cells: tuple[Cell, ...]
    audits: tuple[AuditReport, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        record: dict[str, Any] = _finite(asdict(self))
        for made, audit in zip(record["audits"], self.audits, strict=True):
            made["passed"] = audit.passed
        return json.dumps(record, indent=2, allow_nan=False)

    def table(self) -> str:
        """The report as lines of text for people."""
        lines = [
            f"{self.pictures} pictures of {self.plan.data}, {self.plan.norm}; accuracy in %, "
            "measured, with 95 % intervals; worst = right under every attack"
        ]
        rows = [("classifier", "defence", "budget", *KINDS, "worst", "gain")]
        rows += [headline_row(headline) for headline in self.headlines]
        lines += _columns(rows)
        lines += [f"{h.classifier} behind {h.defence}: {h.missing}" for h in self.notes()]
        for audit in self.audits:
            lines.append(audit.table())
        return "\n".join(lines)

    def notes(self) -> list[Headline]:
        """Headlines without a worst case, each with the reason."""
        return [headline for headline in self.headlines if headline.missing]


KINDS = ("clean", "grey-box", "transfer", "adaptive")


def headline_row(headline: Headline) -> tuple[str, ...]:
    """A headline as words: classifier, defence, budget, the four accuracies, worst, gain."""
    kinds = (
        headline.clean,
        headline.grey_box,
        headline.transfer,
        headline.adaptive,
        headline.worst,
    )
    gain = "-"
    if headline.gain is not None:
        mean, low, high = (100 * value for value in headline.gain)
        gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    shown = [show_accuracy(kind) for kind in kinds]
    return (headline.classifier, headline.defence, show_budget(headline.epsilon), *shown, gain)


def show_accuracy(accuracy: Accuracy | None) -> str:
    """``61.0 (51.2-70.0)``, or ``-`` where there is none."""
    if accuracy is None or math.isnan(accuracy.value):
        return "-"
    return f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def build_report(
    plan: Plan, pictures: int, results: Sequence[JobResult], audits: tuple[AuditReport, ...] = ()
) -> DefenceReport:
    """Cells and headlines of finished jobs."""
    cells: list[Cell] = []
    bits: list[tuple[Cell, list[bool]]] = []
    for result in results:
        for classifier, defence in result.job["targets"]:
            cell = _cell(result, classifier, defence)
            cells.append(cell)
            bits.append((cell, [bit == "1" for bit in cell.outcome]))
    headlines = []
    for epsilon in plan.epsilons:
        bare: dict[str, list[bool]] = {}
        for spec in plan.classifiers:
            for defence in plan.defences:
                own = [
                    (cell, outcome)
                    for cell, outcome in bits
                    if (cell.classifier, cell.defence) == (spec.name, defence)
                    and (cell.threat == CLEAN or cell.epsilon == epsilon)
                ]
                headline, worst = _headline(plan, own, spec.name, defence, epsilon, bare)
                headlines.append(headline)
                if defence == NONE and worst is not None:
                    bare[spec.name] = worst
    return DefenceReport(plan, pictures, tuple(headlines), tuple(cells), audits)


def _cell(result: JobResult, classifier: str, defence: str) -> Cell:
    job = result.job
    outcome = result.outcomes.get(target_key(classifier, defence))
    attack = job["attack"]
    if attack is None:
        name, threat = CLEAN, CLEAN
    else:
        settings = ",".join(f"{key}={value}" for key, value in attack["settings"])
        name = f"{attack['name']}:{settings}" if settings else attack["name"]
        threat = threat_of(classifier, defence, job["source"], job["through"])
    accuracy = None if outcome is None else wilson(outcome.count("1"), len(outcome))
    return Cell(
        classifier,
        defence,
        threat,
        name,
        job["epsilon"],
        job["source"],
        job["through"],
        accuracy,
        result.failure,
        outcome or "",
    )


def _headline(
    plan: Plan,
    own: list[tuple[Cell, list[bool]]],
    classifier: str,
    defence: str,
    epsilon: float,
    bare: dict[str, list[bool]],
) -> tuple[Headline, list[bool] | None]:
    def of(*threats: str) -> list[bool] | None:
        found = [bits for cell, bits in own if cell.threat in threats and cell.accuracy is not None]
        # Right only where right under each: the attacker chooses the attack for each picture.
        return [all(column) for column in zip(*found, strict=True)] if found else None

    clean = of(CLEAN) or []
    failed = [cell for cell, _ in own if cell.accuracy is None]
    missing = ""
    if failed:
        missing = f"no worst case: {failed[0].attack} gave no figure ({failed[0].failure})"
    elif of("adaptive") is None:
        missing = "no worst case: no adaptive attack was made"
    worst = None if missing else of(CLEAN, "grey-box", "transfer", "adaptive")
    gain = None
    if worst is not None and defence != NONE and classifier in bare:
        gain = paired_difference(worst, bare[classifier], seed=plan.seed)

    def share(bits: list[bool] | None) -> Accuracy | None:
        return None if bits is None else wilson(sum(bits), len(bits))

    made = Headline(
        classifier,
        defence,
        epsilon,
        wilson(sum(clean), len(clean)),
        share(of("grey-box")),
        share(of("transfer")),
        share(of("adaptive")),
        share(worst),
        gain,
        missing,
    )
    return made, worst


def _finite(value: Any) -> Any:
    """NaN has no place in JSON: None says that there is no figure."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
