"""How well each proxy orders trained networks: Kendall's and Spearman's coefficients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collapsible.errors import CollapsibleError, require_packages
from collapsible.search.benchmark import Trained, build, read_results
from collapsible.search.families import Shape
from collapsible.search.proxies import find_proxy, list_proxies, noise_batches
from collapsible.search.scaling import effectiveness

SHIPPED = Path(__file__).parent / "data" / "convnext_cifar10.json"
RESAMPLES, LEAST = 1000, 4
DEPTH_OVER_WIDTH = "depth-over-width"


@dataclass(frozen=True)
class Correlation:
    """Coefficients of one proxy with accuracy, each with its 95 % interval (low, high)."""

    proxy: str
    source: str
    kendall: float
    kendall_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]


@dataclass(frozen=True)
class CorrelationReport:
    """All proxies on one benchmark; accuracies measured, proxies computed on noise pictures."""

    networks: int
    planned: int
    accuracy_low: float
    accuracy_high: float
    protocol: str
    rows: tuple[Correlation, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """A line a proxy."""
        lines = [f"{'proxy':<18}{'Kendall':>8}  {'95 %':<16}{'Spearman':>9}  95 %"]
        for row in self.rows:
            low, high = row.kendall_interval
            first = f"{low:+.2f} ... {high:+.2f}"
            low, high = row.spearman_interval
            lines.append(
                f"{row.proxy:<18}{row.kendall:>+8.2f}  {first:<16}{row.spearman:>+9.2f}  "
                f"{low:+.2f} ... {high:+.2f}"
            )
        lines += [
            "",
            f"{self.networks} of {self.planned} networks; top-1 measured, "
            f"{100 * self.accuracy_low:.1f} to {100 * self.accuracy_high:.1f} %; {self.protocol}",
            f"intervals: percentiles of {RESAMPLES} bootstrap samples of the networks",
        ]
        return "\n".join(lines)


def correlate(
    file: Path = SHIPPED,
    *,
    proxies: Sequence[str] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> CorrelationReport:
    """Correlate proxies (all, if not named) with the accuracies in a benchmark's file.

    ``depth-over-width`` stands beside them: the sum of 1 / width, which ``scale`` caps.
    Raises ``CollapsibleError`` for a file that is none or has fewer than four networks,
    ``UnknownNameError`` for an unknown proxy.
    """
    require_packages("correlating proxies", "scipy", extra="dev")
    plan, trained = read_results(file)
    if len(trained) < LEAST:
        raise CollapsibleError(f"{file}: {len(trained)} networks; at least {LEAST} are needed")
    chosen = [find_proxy(name) for name in proxies] if proxies else list(list_proxies())
    values: dict[str, list[float]] = {proxy.name: [] for proxy in chosen}
    values[DEPTH_OVER_WIDTH] = []
    batches = noise_batches((3, 32, 32), 10, seed=plan.seed)
    for number, one in enumerate(trained, start=1):
        network = _network(one, plan.seed)
        for proxy in chosen:
            values[proxy.name].append(proxy.score(network, batches))
        values[DEPTH_OVER_WIDTH].append(effectiveness(Shape(one.depths, one.dims)))
        if tell is not None:
            tell(number, len(trained))
    accuracies = [one.accuracy for one in trained]
    sources = {proxy.name: proxy.source for proxy in chosen}
    sources[DEPTH_OVER_WIDTH] = "Hanin, arXiv 1801.03744, theorem 1"
    rows = (
        coefficients(name, sources[name], scores, accuracies) for name, scores in values.items()
    )
    return CorrelationReport(
        networks=len(trained),
        planned=plan.networks,
        accuracy_low=min(accuracies),
        accuracy_high=max(accuracies),
        protocol=(
            f"CIFAR-10 (JPEG copy), {plan.pictures:,} pictures, {plan.epochs} epochs, 1 seed, "
            f"{plan.macs / 1e6:g}M MACs each within 3 %"
        ),
        rows=tuple(sorted(rows, key=lambda row: -row.kendall)),
    )


def _network(one: Trained, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(Shape(one.depths, one.dims))


def coefficients(
    name: str, source: str, scores: Sequence[float], accuracies: Sequence[float]
) -> Correlation:
    """Both coefficients (ties counted: Kendall's tau-b) and their bootstrap intervals."""
    import numpy as np

    x, y = np.asarray(scores, float), np.asarray(accuracies, float)
    chance = np.random.default_rng(0)
    samples = chance.integers(0, len(x), (RESAMPLES, len(x)))
    kendall, spearman = (float(values[0]) for values in _both(x[None], y[None]))
    low, high = np.nanpercentile(np.array(_both(x[samples], y[samples])), [2.5, 97.5], axis=1)
    return Correlation(
        name, source, kendall, (float(low[0]), float(high[0])),
        spearman, (float(low[1]), float(high[1])),
    )  # fmt: skip


def _both(x: Any, y: Any) -> tuple[Any, Any]:
    """Kendall's tau-b and Spearman's rho of each row of two arrays [samples, networks].

    All samples at once: a call of scipy for each takes most of a run's time. A sample in which
    all are alike has no coefficient; it is nan.
    """
    import numpy as np
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore"):
        order = [np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y)]
        kendall = _cosine(*(v.reshape(len(v), -1) for v in order))
        ranks = [rankdata(v, axis=1) for v in (x, y)]
        spearman = _cosine(*(v - v.mean(1, keepdims=True) for v in ranks))
    return kendall, spearman


def _cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)) ** 0.5
