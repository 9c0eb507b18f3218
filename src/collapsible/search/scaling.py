"""``scale``: depths and widths for a budget, by counting alone (arXiv 2208.08562).

Among shapes at a budget, the one with most non-linear units is sought; for blocks of one kind
that is the one with most NN-Mass (docs/theory.md, proposition 2). Alone, this has no end: at fixed
MACs, twice the depth at 0.71 times the width always has 1.41 times the units. So it stops at an
*effectiveness cap* on depth over width, the sum over all blocks of 1 / width. That sum is what the
spread of a random network's gradients grows with (Hanin, arXiv 1801.03744, theorem 1): beyond
some value, deeper means harder to train and no longer better. The default for
ConvNeXt, 0.2, is the least round number above the published networks' (Tiny 0.186, Small 0.157,
Base 0.191), which are known to train well; the value is a calibration, the form is not.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from collapsible.errors import BudgetError, UnknownNameError, UsageError
from collapsible.search.families import Family, Shape, find_family
from collapsible.search.measure import MEASURED, measure
from collapsible.search.report import Candidate, ScaleReport

RULES = ("mass", "entropy", "paper", "width", "depth", "random")
COUNTED = ("macs", "params")
FREEDOM, TRIES = 0.25, 200
# A measured budget that hardly depends on width must not build a network that fills the memory.
MOST_OVER_BASE = 4.0
# Published (depth, width) multipliers of ConvNeXt-T; 0.666 is theirs, not 2 / 3.
PAPER = ((1.65, 0.666), (1.65, 0.789), (2.30, 0.9105))
DEEPEST = 6.0


def scale(
    base: str,
    *,
    rule: str = "mass",
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    latency_share: float | None = None,
    npu_latency_ms: float | None = None,
    peak_memory: float | None = None,
    target: str = "ethos-u65-256",
    size: tuple[int, int, int] | None = None,
    step: int | None = None,
    cap: float | None = None,
    freedom: float = FREEDOM,
    top: int = 10,
    seed: int = 0,
    **options: Any,
) -> ScaleReport:
    """Networks of a family for a budget, best first. Nothing is trained.

    ``base`` names a family or a network to start from (``list_bases()``). The budget is one of
    ``macs`` and ``params`` (counted, of one picture), or one of these, or one of each kind:

    - ``latency_ms``: measured on this CPU with torch, fp32, batch 1;
    - ``latency_share``: the same over the base's, measured in turn, which other work on the machine
      hardly moves;
    - ``npu_latency_ms``: estimated by Vela for ``target``;
    - ``peak_memory``: bytes of maps, counted at 4 bytes a number.

    A budget of the second kind alone is met by trying budgets of MACs up to four times the base's;
    only the best candidate of each try is measured. Beside a counted one, the best candidate of
    each number of blocks is measured, best first, until one meets it: a single small picture's
    latency is the layers' start-up more than their MACs.

    ``rule``: "mass" (most non-linear units under the cap), "entropy" (DeepMAD's, arXiv
    2303.02165, under the same cap), "paper" (the three published networks, those in the budget if
    there is one), and for comparison "width" and "depth" (one multiplier alone) and "random"
    (the seed's shapes, in the order drawn). Depths keep the base's proportions within
    ``freedom`` (0.25: a quarter more or less a stage): across stages the count of units is no
    guide, as it would put every block into the last. Widths are multiples of ``step``. ``size`` is
    (channels, height, width); ``options`` go to the network (``num_classes``, ``patch_size``).

    Raises ``UnknownNameError`` for unknown names, ``UsageError`` for no budget, two of one kind or
    values out of range, ``BudgetError`` where no network meets the budget, with the smallest that
    there is.
    """
    if rule not in RULES:
        raise UnknownNameError("rule", rule, RULES)
    family = find_family(base, size=size, **options)
    step = family.step if step is None else step
    cap = family.cap if cap is None else cap
    if step < 1 or top < 1 or cap <= 0 or not 0 <= freedom < 1:
        raise UsageError(f"step={step}, top={top} from 1, cap={cap} above 0, freedom={freedom} < 1")
    budgets = {
        "macs": macs,
        "params": params,
        "latency_ms": latency_ms,
        "latency_share": latency_share,
        "npu_latency_ms": npu_latency_ms,
        "peak_memory": peak_memory,
    }
    given = {name: value for name, value in budgets.items() if value is not None}
    if rule == "paper" and not given:
        given = {"macs": math.inf}
    counted = {name: value for name, value in given.items() if name in COUNTED}
    taken = {name: value for name, value in given.items() if name not in COUNTED}
    if not given or len(counted) > 1 or len(taken) > 1:
        raise UsageError(
            f"give one budget of {', '.join(COUNTED)}, one of {', '.join(MEASURED)}, or one of "
            f"each; given: {', '.join(given) or 'none'}"
        )
    for name, value in given.items():
        if not value > 0:
            raise UsageError(f"{name}={value}: a budget is above 0")
    search = _Search(family, rule, step, cap, freedom, seed, target)
    if rule == "paper":
        found = search.paper(given)
    elif not taken:
        found = search.run(*counted.popitem())
    elif not counted:
        found = search.run_measured(*taken.popitem())
    else:
        found = search.run_both(*counted.popitem(), *taken.popitem())
    return ScaleReport(base, family, given, rule, cap, target, tuple(found[:top]))


def effectiveness(shape: Shape) -> float:
    """Depth over width: the sum over blocks of 1 / width."""
    return sum(depth / width for depth, width in zip(shape.depths, shape.dims, strict=True))


def entropy(family: Family, shape: Shape) -> float:
    """DeepMAD's multi-scale entropy (arXiv 2303.02165, equations 6 and 9; weights 1, 1, 1, 1, 8).

    log(pixels * channels) times the sum of log(fan-in) of all layers up to each scale's end.
    """
    total, path, last = 0.0, 0.0, 0
    scales: list[tuple[int, float]] = []
    for part in family.parts(shape, family.size, family.options):
        for fan_in, channels in part.layers:
            path += part.repeat * math.log(fan_in)
            last = channels
        if not part.layers or not part.repeat:
            continue
        value = math.log(part.pixels * last) * path
        if scales and scales[-1][0] == part.pixels:
            scales.pop()
        scales.append((part.pixels, value))
    for number, (_, value) in enumerate(reversed(scales)):
        total += value * (8 if number == 0 else 1)
    return total


class _Search:
    def __init__(
        self,
        family: Family,
        rule: str,
        step: int,
        cap: float,
        freedom: float,
        seed: int,
        target: str,
    ) -> None:
        self.family, self.rule, self.step, self.seed = family, rule, step, seed
        self.cap, self.freedom, self.target = cap, freedom, target

    def measured(self, one: Candidate, kind: str) -> tuple[float, Candidate]:
        amount = measure(self.family, one.shape, kind, self.target)
        return amount, replace(one, measured=amount)

    def amount(self, shape: Shape, kind: str) -> int:
        return getattr(self.family.count(shape), kind)

    def candidate(self, shape: Shape) -> Candidate:
        counts = self.family.count(shape)
        value = entropy(self.family, shape)
        score = value if self.rule == "entropy" else float(counts.non_linear_units)
        return Candidate(
            shape,
            counts.params,
            counts.macs,
            counts.nn_mass,
            counts.non_linear_units,
            value,
            effectiveness(shape),
            score,
        )

    def rounded(self, dims: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(self.step * max(1, math.floor(d / self.step + 0.5)) for d in dims)

    def fit(
        self, depths: tuple[int, ...], dims: tuple[float, ...], kind: str, limit: float
    ) -> Shape | None:
        """The widest shape in these proportions within the limit; None if there is none."""

        def shape(factor: float) -> Shape:
            return Shape(depths, self.rounded(tuple(factor * d for d in dims)))

        low, high = self.step / max(dims) / 4, 1.0
        if self.amount(shape(low), kind) > limit:
            return None
        while self.amount(shape(high), kind) <= limit:
            low, high = high, 2 * high
            if high > 1e4:
                break
        for _ in range(16):
            middle = math.sqrt(low * high)
            if self.amount(shape(middle), kind) <= limit:
                low = middle
            else:
                high = middle
        return shape(low)

    def smallest(self) -> Shape:
        stages = len(self.family.base.dims)
        return Shape((1,) * stages, (self.step,) * stages)

    def run(self, kind: str, limit: float) -> list[Candidate]:
        """Candidates within a counted budget, best first."""
        least = self.smallest()
        if self.amount(least, kind) > limit:
            raise BudgetError(
                f"{kind}={limit:g}: no {self.family.name} network meets it; the smallest has "
                f"{self.amount(least, kind):,} ({least}, widths on a step of {self.step})"
            )
        found: dict[Shape, Candidate] = {}
        for shape in self.shapes(kind, limit):
            capped = self.rule in ("mass", "entropy")
            if shape not in found and not (capped and effectiveness(shape) > self.cap):
                found[shape] = self.candidate(shape)
        if not found:
            # So small a budget that every network in it is deep for its width: the shallowest.
            found = {s: self.candidate(s) for s in self.shallow(kind, limit)}
            return sorted(found.values(), key=lambda c: (c.effectiveness, -c.score))
        if self.rule == "random":
            return list(found.values())
        return sorted(found.values(), key=lambda c: (-c.score, c.effectiveness))

    def shapes(self, kind: str, limit: float) -> Iterator[Shape]:
        depths, dims = self.family.base.depths, self.family.base.dims
        if self.rule == "width":
            fitted = self.fit(depths, dims, kind, limit)
            yield from [fitted] if fitted else []
        elif self.rule == "depth":
            yield from self.deeper(kind, limit)
        elif self.rule == "random":
            yield from self.drawn(kind, limit)
        else:
            yield from self.spread(kind, limit)

    def spread(self, kind: str, limit: float) -> Iterator[Shape]:
        """Uniform depth factors first, then each stage apart around the best few of them."""
        base = self.family.base
        uniform: list[Candidate] = []
        factors = sorted({n / d for d in base.depths for n in range(1, math.ceil(d * DEEPEST))})
        seen = set()
        for factor in factors:
            depths = tuple(max(1, round(factor * d)) for d in base.depths)
            if depths in seen:
                continue
            seen.add(depths)
            for dims in self.growths():
                shape = self.fit(depths, dims, kind, limit)
                if shape is not None and effectiveness(shape) <= self.cap:
                    uniform.append(self.candidate(shape))
                    yield shape
        uniform.sort(key=lambda c: -c.score)
        for start in [c.shape for c in uniform[:5]]:
            factor = sum(start.depths) / sum(base.depths)
            for depths in itertools.product(*(self.around(factor * d) for d in base.depths)):
                if depths in seen:
                    continue
                seen.add(depths)
                for dims in self.growths():
                    shape = self.fit(depths, dims, kind, limit)
                    if shape is not None:
                        yield shape

    def around(self, depth: float) -> list[int]:
        low, high = depth * (1 - self.freedom), depth * (1 + self.freedom)
        return sorted({max(1, round(d)) for d in (low, depth, high)})

    def growths(self) -> list[tuple[float, ...]]:
        """The base's widths, and the same growing a little less or more from stage to stage."""
        dims = self.family.base.dims
        steps = (0.9, 1.0, 1.1) if self.freedom and len(dims) > 1 else (1.0,)
        return [tuple(d * factor**i for i, d in enumerate(dims)) for factor in steps]

    def shallow(self, kind: str, limit: float) -> list[Shape]:
        ones = (1,) * len(self.family.base.dims)
        fitted = [self.fit(ones, dims, kind, limit) for dims in self.growths()]
        return [shape for shape in fitted if shape] or [self.smallest()]

    def deeper(self, kind: str, limit: float) -> Iterator[Shape]:
        base, dims = self.family.base, self.rounded(self.family.base.dims)
        last = None
        for number in range(1, 100_000):
            factor = number / max(base.depths)
            shape = Shape(tuple(max(1, round(factor * d)) for d in base.depths), dims)
            if self.amount(shape, kind) > limit:
                break
            last = shape
        if last is None:
            least = Shape((1,) * len(dims), dims)
            raise BudgetError(
                f"{kind}={limit:g}: depth alone cannot meet it; the smallest at the base's "
                f"widths has {self.amount(least, kind):,} ({least})"
            )
        yield last

    def drawn(self, kind: str, limit: float) -> Iterator[Shape]:
        chance, base = random.Random(self.seed), self.family.base
        for _ in range(TRIES):
            factor = math.exp(chance.uniform(math.log(0.3), math.log(3.0)))
            depths = tuple(
                max(1, round(factor * d * chance.uniform(0.4, 1.8))) for d in base.depths
            )
            dims = tuple(sorted(d * chance.uniform(0.6, 1.6) for d in base.dims))
            shape = self.fit(depths, dims, kind, limit)
            if shape is not None:
                yield shape

    def paper(self, budgets: Mapping[str, float]) -> list[Candidate]:
        if self.family.name != "convnext" or self.family.base.depths != (3, 3, 9, 3):
            raise UsageError("rule 'paper' scales ConvNeXt-T alone; give the base ran-i")
        base, found, over = self.family.base, [], []
        for depth, width in PAPER:
            shape = Shape(
                tuple(round(depth * d) for d in base.depths),
                tuple(round(width * w) for w in base.dims),
            )
            candidate, amounts = self.candidate(shape), {}
            for kind in budgets:
                if kind in COUNTED:
                    amounts[kind] = float(self.amount(shape, kind))
                else:
                    amounts[kind], candidate = self.measured(candidate, kind)
            worst = max((amounts[kind] / limit, kind) for kind, limit in budgets.items())
            over.append((*worst, amounts[worst[1]], shape))
            if worst[0] <= 1:
                found.append(candidate)
        if not found:
            _, kind, amount, shape = min(over, key=lambda row: row[0])
            raise BudgetError(
                f"{kind}={budgets[kind]:g}: none of the published networks meets it; the smallest "
                f"has {amount:,.4g} ({shape})"
            )
        return sorted(found, key=lambda c: -c.score)

    def run_both(self, counted: str, limit: float, kind: str, most: float) -> list[Candidate]:
        """The best candidate of a counted budget that measures within the other one.

        Where no number of blocks is within it, a smaller counted budget has to do.
        """
        ranked = self.run(counted, limit)
        tried: set[int] = set()
        for place, one in enumerate(ranked):
            blocks = sum(one.shape.depths)
            if blocks in tried:
                continue
            tried.add(blocks)
            amount, one = self.measured(one, kind)
            if amount <= most:
                return [one, *ranked[:place], *ranked[place + 1 :]]
        return self.run_measured(kind, most, counted, limit)

    def run_measured(
        self, kind: str, limit: float, counted: str = "macs", ceiling: float = math.inf
    ) -> list[Candidate]:
        """The largest counted budget, up to ``ceiling``, whose best measures within the limit."""

        def attempt(budget: float) -> tuple[float, list[Candidate]]:
            found = self.run(counted, budget)
            amount, best = self.measured(found[0], kind)
            return amount, [best, *found[1:]]

        low = float(self.amount(self.smallest(), counted))
        amount, best = attempt(low)
        if amount > limit:
            raise BudgetError(
                f"{kind}={limit:g}: no {self.family.name} network meets it; the smallest "
                f"has {amount:,.4g} ({MEASURED[kind]}; {best[0].shape})"
            )
        # Start where the base stands, then close in; costs grow with counts, if not evenly.
        high = float(self.amount(self.family.base, counted))
        most = min(MOST_OVER_BASE * max(high, 2 * low), ceiling)
        high = min(max(high, 2 * low), ceiling)
        while True:
            amount, found = attempt(high)
            if amount > limit:
                break
            low, best, high = high, found, 4 * high
            if high > most:
                return best
        for _ in range(5):
            middle = math.sqrt(low * high)
            amount, found = attempt(middle)
            if amount <= limit:
                low, best = middle, found
            else:
                high = middle
        return best
