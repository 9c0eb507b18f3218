"""How well training-free proxies order small trained networks (for arXiv 2208.08562's NN-Mass)."""

from __future__ import annotations

from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section

PAPER = "RAN (arXiv 2208.08562): NN-Mass as a guide for scaling without training"
LEAST = 24
MASS = "nn-mass"


def correlation(request: Request) -> Reproduction:
    """Kendall and Spearman of every proxy with the accuracies in the shipped benchmark."""
    from collapsible.search.correlation import correlate

    found = correlate(
        tell=lambda done, total: request.on_progress(done, total, f"network {done} of {total}")
    )
    rows = tuple(
        Row(
            row.proxy,
            "measured",
            f"{row.source}; {found.networks} networks",
            {
                "kendall": row.kendall,
                "kendall_interval": "{:+.2f} to {:+.2f}".format(*row.kendall_interval),
                "spearman": row.spearman,
                "spearman_interval": "{:+.2f} to {:+.2f}".format(*row.spearman_interval),
            },
        )
        for row in found.rows
    )
    mass = next(row for row in found.rows if row.proxy == MASS)
    return Reproduction(
        "ran/correlation",
        "training-free proxies and the accuracy of small ConvNeXt networks at equal MACs",
        PAPER,
        request.form,
        (
            Section(
                "Rank correlation with top-1",
                (
                    Column("kendall", "Kendall", "+.2f"),
                    Column("kendall_interval", "95 %"),
                    Column("spearman", "Spearman", "+.2f"),
                    Column("spearman_interval", "95 %"),
                ),
                rows,
            ),
        ),
        (
            Check(
                f"at least {LEAST} networks were trained",
                found.networks >= LEAST,
                f"{found.networks} of {found.planned}",
            ),
            Check(
                "at equal MACs NN-Mass orders networks by accuracy (Kendall's interval above 0)",
                mass.kendall_interval[0] > 0,
                "{:+.2f} ({:+.2f} to {:+.2f})".format(mass.kendall, *mass.kendall_interval),
            ),
        ),
        (
            f"{found.protocol}; top-1 {100 * found.accuracy_low:.1f} to "
            f"{100 * found.accuracy_high:.1f} %",
            "trained by collapsible scale correlate --file FILE --train CIFAR.tar.gz",
        ),
        {"networks": found.networks},
    )
