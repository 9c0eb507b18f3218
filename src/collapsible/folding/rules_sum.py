"""The rule for sums: parallel branches, identity branches, residuals over linear bodies."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from collapsible.folding import merge
from collapsible.folding.ops import (
    Conv,
    Kind,
    NotExactError,
    Scale,
    as_conv,
    identity_conv,
)
from collapsible.folding.rules import (
    Policy,
    Proposal,
    Refusal,
    macs,
    name_of,
    op_of,
    positions,
    source_of,
)
from collapsible.folding.trace import data_inputs, shape_of


def is_sum(node: fx.Node) -> bool:
    """A sum of two values of the same shape that both depend on the input."""
    if node.target not in (operator.add, torch.add, "add") or node.kwargs:
        return False
    terms = node.args
    if len(terms) != 2 or not all(isinstance(t, fx.Node) for t in terms):
        return False
    shapes = {shape_of(t) for t in terms if isinstance(t, fx.Node)}
    return len(data_inputs(node)) == len(set(terms)) and shapes == {shape_of(node)}


def terms_of(node: fx.Node) -> Iterator[fx.Node]:
    """The terms of a sum, through sums that are used nowhere else."""
    for term in node.args:
        assert isinstance(term, fx.Node)
        if is_sum(term) and len(term.users) == 1:
            yield from terms_of(term)
        else:
            yield term


@dataclass(frozen=True, eq=False)
class Branch:
    """A term as one operation on an earlier value: ``op`` of ``source`` (itself where None)."""

    term: fx.Node
    source: fx.Node
    op: Conv | None
    nodes: tuple[fx.Node, ...]


def branches_of(term: fx.Node, kind: Kind) -> tuple[list[Branch], str]:
    """A term read from each value it is linear in, nearest first, and why the walk ended."""
    found, node = [Branch(term, term, None, ())], term
    while True:
        op, last = op_of(node), found[-1]
        if not isinstance(op, (Conv, Scale)):
            return found, ""
        if len(node.users) > 1:
            return found, f"the output of {name_of(node)} is used elsewhere"
        rank = len(shape_of(node) or ())
        channel = Conv(torch.empty(0, 0, 0, 0), kind=kind).channel_axis(rank)
        if op.channel_axis(rank) not in (channel, None) or (
            isinstance(op, Conv) and op.kind != kind
        ):
            return found, ""
        conv = as_conv(op, (shape_of(node) or ())[channel], kind)
        try:
            conv = conv if last.op is None else merge.compose_convs(conv, last.op)
        except NotExactError as reason:
            return found, str(reason)
        found.append(Branch(term, source_of(node), conv, (node, *last.nodes)))
        node = source_of(node)


def _add(group: list[Branch], kind: Kind) -> tuple[Conv | None, list[Branch], str]:
    """The sum of as many of the branches as one convolution can hold, and why not of all."""
    total, taken, reason = None, [], ""
    # Convolutions first: an identity takes whatever shape its partner has.
    for branch in sorted(group, key=lambda b: b.op is None):
        shape = shape_of(branch.term) or ()
        axis = len(shape) - 1 if kind == "linear" else 1
        conv = branch.op or identity_conv(shape[axis], kind)
        try:
            total = conv if total is None else merge.add_convs(total, conv)
            taken.append(branch)
        except NotExactError as error:
            reason = str(error)
    return total, taken, reason


def merge_sum(node: fx.Node, policy: Policy) -> Proposal | Refusal | None:
    """Branches of one value that are summed: one convolution in their place."""
    if not is_sum(node) or any(is_sum(u) and len(node.users) == 1 for u in node.users):
        return None
    terms = list(terms_of(node))
    refusal: Refusal | None = None
    kinds: dict[Kind, None] = {k: None for t in terms if (k := _first_kind(t)) is not None}
    for kind in kinds:
        walks = [branches_of(term, kind) for term in terms]
        sources = dict.fromkeys(b.source for walk, _ in walks for b in walk)
        for source in sources:
            group = [b for walk, _ in walks for b in walk if b.source is source]
            if len(group) < 2 or not any(_weighs(b, policy) for b in group):
                continue
            total, taken, reason = _add(group, kind)
            names = (*(name_of(n) for b in group for n in b.nodes), name_of(node))
            if total is None or len(taken) < 2:
                refusal = refusal or Refusal("parallel", names, reason)
                continue
            before = sum(macs(n) for b in taken for n in b.nodes)
            after = total.kernel.numel() * positions(node, total)
            if after > before and policy == "auto":
                text = f"merged they would cost {after:,} MACs, apart {before:,}"
                refusal = refusal or Refusal("parallel", names, text)
                continue
            names = tuple(name_of(n) for b in taken for n in b.nodes)
            note = "with the identity" if any(b.op is None for b in taken) else ""
            merged = [b.term for b in taken]
            rest = list(terms)
            for term in merged:
                rest.remove(term)
            return Proposal("parallel", node, source, total, names, note, tuple(rest))
        refusal = refusal or _why_apart(node, walks)
    return refusal


def _weighs(branch: Branch, policy: Policy) -> bool:
    """Whether a branch holds a convolution with weights: without one there is nothing to gain."""
    for node in branch.nodes:
        op = op_of(node)
        if isinstance(op, Conv) and (policy == "always" or not op.weightless):
            return True
    return False


def _first_kind(term: fx.Node) -> Kind | None:
    """The kind of the nearest convolution in a term, through scales."""
    node = term
    while isinstance(op := op_of(node), (Conv, Scale)):
        if isinstance(op, Conv):
            return op.kind
        node = source_of(node)
    return None


def _why_apart(node: fx.Node, walks: list[tuple[list[Branch], str]]) -> Refusal | None:
    """A reason where a branch could have been followed to a common value but for one step."""
    for walk, reason in walks:
        if not reason:
            continue
        seen, value = {b.source for b in walk}, walk[-1].source
        others = {b.source for other, _ in walks if other is not walk for b in other}
        while isinstance(op_of(value), (Conv, Scale)):
            value = source_of(value)
            if value in others and value not in seen:
                names = (name_of(walk[0].term), name_of(node))
                return Refusal("parallel", names, reason)
    return None
