"""The report as one HTML file that needs nothing else: tables, bars and pictures inside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from collapsible.defence.laboratory import JobResult
from collapsible.defence.plan import AttackSpec, show_budget
from collapsible.defence.report import (
    KINDS,
    Cell,
    DefenceReport,
    headline_row,
    show_accuracy,
)

SHOWN = 12
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border-bottom: 1px solid #8885; padding: .3rem .6rem; text-align: left }
td.bar { width: 12rem } .bar div { background: #36c; height: .8rem }
.bad { color: #b00; font-weight: 600 } .good { color: #070 }
figure { display: inline-block; margin: .4rem; vertical-align: top }
figure img { height: 14rem; image-rendering: pixelated } figcaption { font-size: 12px }
.wide { overflow-x: auto }
"""


def write_page(report: DefenceReport, results: Sequence[JobResult]) -> str:
    """The page as text; ``results`` give the pictures."""
    plan = report.plan
    parts = [
        "<h1>Defence evaluation</h1>",
        f"<p>{report.pictures} pictures of {escape(plan.data)}, {plan.size} pixels, "
        f"{escape(plan.norm)}. Accuracy in %, measured, with 95 % intervals (Wilson; gain: "
        "bootstrap over pictures). <b>Worst</b> is the share of pictures that stay right under "
        "every attack made; it is the figure to go by. The grey-box figure alone says only what "
        "an attacker gets who does not know of the defence.</p>",
        _table(
            ("classifier", "defence", "budget", *KINDS, "worst", "gain"),
            [tuple(map(escape, headline_row(headline))) for headline in report.headlines],
        ),
    ]
    parts += [
        f'<p class="bad">{escape(f"{h.classifier} behind {h.defence}: {h.missing}")}</p>'
        for h in report.notes()
    ]
    if report.audits:
        parts += ["<h2>Audit</h2>", _audits(report)]
    parts += ["<h2>Pictures</h2>", _pictures(results)]
    parts += ["<h2>Every figure</h2>", _cells(report.cells)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Defence evaluation</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(cell if cell[:3] == "<td" else f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _audits(report: DefenceReport) -> str:
    rows = []
    for audit in report.audits:
        for check in audit.checks:
            figures = ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in check.figures.items()
            )
            verdict = "good" if check.passed else "bad"
            word = "passed" if check.passed else "failed"
            rows.append(
                (
                    escape(audit.subject),
                    escape(check.name),
                    f'<td class="{verdict}">{word}</td>',
                    escape(check.rule),
                    escape(figures),
                )
            )
    return _table(("of", "check", "", "what should hold", "figures"), rows)


def _pictures(results: Sequence[JobResult]) -> str:
    """One row for each pair first, then other attacks, up to ``SHOWN``."""
    chosen: dict[tuple[str, str], JobResult] = {}
    rest = []
    for result in results:
        if not result.example:
            continue
        pair = (result.job["source"], result.job["through"])
        if pair in chosen:
            rest.append(result)
        else:
            chosen[pair] = result
    rows = []
    for result in [*chosen.values(), *rest][:SHOWN]:
        example, job = result.example or {}, result.job
        attack = AttackSpec(job["attack"]["name"], tuple(map(tuple, job["attack"]["settings"])))
        title = f"{attack} at {show_budget(job['epsilon'])} on {job['source']}" + (
            f" through {job['through']}"
        )
        captions = {
            "clean": "clean",
            "attacked": "attacked",
            "defended": f"what the classifier sees behind {example['defence']}",
            "difference": f"attacked less clean, times {example['gain']}",
        }
        figures = "".join(
            f'<figure><img alt="{escape(text)}" src="{example[key]}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
            for key, text in captions.items()
        )
        rows.append(f"<h3>{escape(title)}</h3><div>{figures}</div>")
    return "\n".join(rows) or "<p>No attack with a budget was made.</p>"


def _cells(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        share = 0.0 if cell.accuracy is None else 100 * cell.accuracy.value
        rows.append(
            (
                escape(cell.classifier),
                escape(cell.defence),
                cell.threat,
                escape(cell.attack),
                show_budget(cell.epsilon),
                escape(f"{cell.source} through {cell.through}"),
                show_accuracy(cell.accuracy)
                if cell.accuracy
                else f'<td class="bad">{escape(cell.failure)}</td>',
                f'<td class="bar"><div style="width:{share:.1f}%"></div></td>',
            )
        )
    return _table(
        ("classifier", "defence", "threat", "attack", "budget", "made on", "accuracy", ""), rows
    )
