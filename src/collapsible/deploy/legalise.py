"""Rewrite a network into operators that the target runs, exactly, and prove it.

Vela, the compiler for Ethos-U, has no depth to space and takes no transposed convolution with a
stride of 3 or more on U55 and U65; the exporters leave leaky ReLUs in floating point. Each of these
has exact forms made of what the target does run. Which one is cheapest depends on the target, so
all that apply are compiled, and the one with the least latency among those with the fewest
operators on the CPU is taken.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.costs.targets import Target, find_target
from collapsible.deploy.advice import advise
from collapsible.deploy.given import InputSize, check_size, first_line
from collapsible.deploy.legal_graph import BENDS, REPEATS, TAILS, Draft, Rewrite
from collapsible.deploy.npu import compile_network
from collapsible.deploy.vela import CpuOperator
from collapsible.errors import CollapsibleError, ExportError, UnknownNameError, UsageError
from collapsible.folding import collapse

# Forms are compared on at most this height and width, for a large picture takes minutes to convert;
# the best of them is then compiled for the size wanted, since the compiler's limits hang on it.
LARGEST_TRIAL = 96
# Rounding of a float64 map and its rewrites, relative to the largest output.
TOLERANCE = 1e-9
MESSAGE = 160
# How the tail, the repeated channels and the bends are written.
Forms = tuple[str, str, str]


@dataclass(frozen=True)
class Candidate:
    """One way to write the network, compiled for the target.

    ``latency_ms`` and ``cpu_operators`` are the compiler's for ``trial_size``; None where the
    network cannot be converted in this form (``refused`` says why).
    """

    tail: str
    repeat: str
    bend: str
    latency_ms: float | None
    cpu_operators: tuple[str, ...] = ()
    refused: str = ""

    @property
    def forms(self) -> tuple[str, str, str]:
        return self.tail, self.repeat, self.bend

    def better_than(self, other: Candidate) -> bool:
        """Fewer operators on the CPU, then faster."""
        return self.rank() < other.rank()

    def rank(self) -> tuple[float, float]:
        """What is better comes first."""
        if self.latency_ms is None:
            return float("inf"), float("inf")
        return len(self.cpu_operators), self.latency_ms


@dataclass(frozen=True)
class LegaliseReport:
    """What was rewritten for a target, and the measured error of the map.

    ``error_float64`` is the largest absolute difference of the outputs on random input, borders
    included, and ``output_range`` the largest output beside which to read it (measured).
    ``cpu_operators_before`` and ``cpu_operators`` are what Vela leaves to the CPU of the network as
    it was (None where it cannot be converted at all, and ``refused_before`` says why) and as it is;
    ``remedies`` says what to do about those that remain. ``candidates`` are all the forms that were
    compiled for ``trial_size`` (estimated by ``source``), the one taken among them.
    """

    target: str
    input_size: InputSize
    trial_size: InputSize
    tail: str
    repeat: str
    bend: str
    rewrites: tuple[Rewrite, ...] = ()
    left: tuple[str, ...] = ()
    error_float64: float = 0.0
    output_range: float = 0.0
    cpu_operators_before: tuple[str, ...] | None = ()
    refused_before: str = ""
    cpu_operators: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = field(default=())
    source: str = ""

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        if not self.source:
            return f"{self.target}: every operator runs there, nothing is rewritten"
        before = self.cpu_operators_before
        was = self.refused_before if before is None else ", ".join(before) or "none"
        lines = [
            f"on the CPU before: {was}",
            f"on the CPU now: {', '.join(self.cpu_operators) or 'none'}",
        ]
        lines += [f"{r.place}: {r.was} -> {r.form}" for r in self.rewrites]
        lines += [f"left: {what}" for what in self.left]
        lines += [f"to do: {remedy}" for remedy in self.remedies]
        lines.append(
            f"max error float64: {self.error_float64:.2e} (measured; outputs reach "
            f"{self.output_range:.3g})"
        )
        if len(self.candidates) > 1:
            lines.append(f"forms compiled for {'x'.join(map(str, self.trial_size[2:]))} pixels:")
            for candidate in self.candidates:
                cost = (
                    candidate.refused
                    if candidate.latency_ms is None
                    else f"{candidate.latency_ms:.3f} ms, estimated by {self.source}"
                )
                off = "".join(f"; on the CPU: {name}" for name in candidate.cpu_operators)
                taken = candidate.forms == (self.tail, self.repeat, self.bend)
                names = f"tail {candidate.tail}, repeat {candidate.repeat}, bend {candidate.bend}"
                lines.append(f"  {names}: {cost}{off}{' (taken)' if taken else ''}")
        return "\n".join(lines)


def legalise(
    network: nn.Module,
    target: str | Target,
    *,
    input_size: Sequence[int],
    tail: str = "auto",
    bend: str = "auto",
    cache: str | Path | bool = True,
) -> tuple[nn.Module, LegaliseReport]:
    """The network in operators that the target runs, for one input size [N, C, H, W].

    Our own wide blocks are collapsed first. Depth to space becomes a transposed convolution with
    fixed weights: in stages of stride 2 (``tail="stages"``), at once (``"direct"``), or in the
    stride of the convolution before it (``"folded"``, where its biases allow that), or stays
    (``"kept"``: the converter writes it as transpositions). PReLU and leaky
    ReLU become max(x, slope x) (``bend="maximum"``, slopes up to 1), relu(x) - slope relu(-x)
    (``"two relus"``), one ReLU on twice the channels (``"doubled"``), or stay (``"kept"``). With
    ``"auto"`` the forms that apply are compiled and the cheapest taken. Channels that are
    repeated stay or are broadcast by the addition itself, whichever is cheaper; transposed
    convolutions that cannot be converted become convolutions to phases. Returns a new network
    (float32, evaluation mode) and a report; for
    targets that are not compiled for, the network as it is.
    Raises ``UsageError`` for a size that is not fixed or not accepted, a network that cannot be
    traced (naming the place) or a form that does not apply, ``UnknownNameError`` for an unknown
    target or form, ``MissingExtraError`` without the compiler, and ``CollapsibleError`` where the
    result differs from the network by more than rounding.
    """
    goal = target if isinstance(target, Target) else find_target(target)
    size = check_size(input_size)
    for what, name, known in (("tail", tail, TAILS), ("bend", bend, BENDS)):
        if name not in ("auto", *known):
            raise UnknownNameError(what, name, ("auto", *known))
    base = copy.deepcopy(network).double().cpu().eval()
    if any(isinstance(m, CollapsibleConv2d) for m in base.modules()):
        base, _ = collapse(base)
    if goal.kind != "vela":
        return base.float(), LegaliseReport(goal.name, size, size, "kept", "kept", "kept")
    trial = _trial_size(base, size)
    start = Draft.of(base, torch.zeros(trial, dtype=torch.float64))
    start.rewrite_deconvolutions(lambda deconv: _needs_phases(deconv, goal))
    compiled, whole = _Compiled(goal, trial, cache), _Compiled(goal, size, cache)
    before = compiled.candidate(base, ("as given", "as given", "as given"))
    drafts: dict[Forms, Draft] = {}
    candidates = [before]

    def attempt(tail: str, repeat: str, bend: str) -> Candidate | None:
        draft = start.copy()
        rewritten = draft.rewrite_bends(bend) and draft.rewrite_repeats(repeat)
        if not (rewritten and draft.rewrite_shuffles(tail)):
            return None
        drafts[tail, repeat, bend] = draft
        found = compiled.candidate(draft.finish(), (tail, repeat, bend))
        candidates.append(found)
        return found

    tails = _options(tail, TAILS, bool(start.shuffles()))
    repeats = _options("auto", REPEATS, bool(start.repeats()))
    bends = _options(bend, BENDS, bool(start.bends()))
    best: Candidate | None = None
    # What a tail costs hangs on how the repeats are written; bends are apart from both.
    for form in tails:
        for repeat in repeats:
            best = _better(attempt(form, repeat, bends[0]), best)
    for form in bends[1:]:
        tail_so_far, repeat_so_far = best.forms[:2] if best else (tails[0], repeats[0])
        best = _better(attempt(tail_so_far, repeat_so_far, form), best)
    if best is None:
        raise UsageError(
            f"tail {tail!r}, bend {bend!r}: this form does not apply to {type(network).__name__} "
            "(its biases differ among pixels, or its slopes exceed 1); 'auto' takes one that does"
        )
    if best.latency_ms is None:
        raise ExportError(f"{type(network).__name__} cannot be converted: {best.refused}")
    if size != trial:
        best = _first_legal([c for c in candidates[1:] if c.latency_ms is not None], drafts, whole)
    draft = drafts[best.forms]
    legal = draft.finish()
    error, reach = _difference(base, legal, trial)
    return legal.float(), LegaliseReport(
        target=goal.name,
        input_size=size,
        trial_size=trial,
        tail=best.tail,
        repeat=best.repeat,
        bend=best.bend,
        rewrites=tuple(draft.rewrites),
        left=tuple(draft.left),
        error_float64=error,
        output_range=reach,
        cpu_operators_before=None if before.latency_ms is None else before.cpu_operators,
        refused_before=before.refused,
        cpu_operators=best.cpu_operators,
        remedies=advise((whole if size != trial else compiled).fallen[best.forms]),
        candidates=tuple(candidates),
        source=compiled.source,
    )


def _options(given: str, known: tuple[str, ...], any_there: bool) -> tuple[str, ...]:
    if not any_there:
        return (known[0],)
    return known if given == "auto" else (given,)


def _better(found: Candidate | None, best: Candidate | None) -> Candidate | None:
    if found is None or best is None:
        return best if found is None else found
    return found if found.better_than(best) else best


def _first_legal(
    candidates: Sequence[Candidate], drafts: dict[Forms, Draft], whole: _Compiled
) -> Candidate:
    """The best of the trial that is legal at the size wanted: limits of operators hang on it."""
    best: Candidate | None = None
    for candidate in sorted(candidates, key=Candidate.rank):
        found = whole.candidate(drafts[candidate.forms].copy().finish(), candidate.forms)
        if found.latency_ms is not None and not found.cpu_operators:
            return found
        best = _better(found, best)
    assert best is not None
    return best


def _trial_size(network: nn.Module, size: InputSize) -> InputSize:
    """A smaller size that the network takes too, or the given one."""
    small = (size[0], size[1], min(size[2], LARGEST_TRIAL), min(size[3], LARGEST_TRIAL))
    for tried in dict.fromkeys((small, size)):
        try:
            with torch.no_grad():
                network(torch.zeros(tried, dtype=torch.float64))
        except Exception as error:
            if tried == size:
                raise UsageError(
                    f"{type(network).__name__} does not take input {list(size)}: "
                    f"{first_line(error)}"
                ) from error
        else:
            return tried
    raise AssertionError("the loop returns or raises")


def _needs_phases(deconv: nn.ConvTranspose2d, target: Target) -> bool:
    """Whether the converter or the compiler would not take it as it is (Vela's supported-ops)."""
    wide = max(int(stride) for stride in deconv.stride) > 2
    return any(deconv.output_padding) or (wide and not target.name.startswith("ethos-u85"))


class _Compiled:
    """Compiles candidates and remembers what fell off."""

    def __init__(self, target: Target, size: InputSize, cache: str | Path | bool) -> None:
        self.target, self.size, self.cache = target, size, cache
        self.fallen: dict[Forms, tuple[CpuOperator, ...]] = {}
        self.source = ""

    def candidate(self, network: nn.Module, forms: Forms) -> Candidate:
        try:
            narrow = copy.deepcopy(network).float()
            report = compile_network(narrow, self.target, self.size, cache=self.cache)
        except ExportError as error:
            return Candidate(*forms, None, refused=str(error)[:MESSAGE])
        self.source = f"ethos-u-vela {report.version}"
        self.fallen[forms] = report.cpu
        return Candidate(*forms, report.latency_ms, report.cpu_operators)


@torch.no_grad()
def _difference(network: nn.Module, legal: nn.Module, size: InputSize) -> tuple[float, float]:
    """Largest absolute difference in float64 on random input, and the largest output."""
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, given = network(x), legal(x)
    # A difference would broadcast, and hide that one of them has fewer channels.
    if given.shape != wanted.shape:
        raise CollapsibleError(
            f"the legal form gives {list(given.shape)} instead of {list(wanted.shape)}: "
            "please report this network"
        )
    error, reach = float((given - wanted).abs().max()), float(wanted.abs().max())
    if not error <= TOLERANCE * max(reach, 1e-12):
        raise CollapsibleError(
            f"the legal form differs by {error:.2e} where outputs reach {reach:.3g}: "
            "please report this network"
        )
    return error, reach
