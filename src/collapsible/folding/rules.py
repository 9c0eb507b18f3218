"""The rewrite rules: each looks at one node and proposes, refuses with a reason, or passes.

Rules only read the graph; ``engine`` applies what they propose. A rewrite replaces one node by an
operation on an earlier value, so whatever else reads the values between still finds them; rules
refuse such cases because nothing would be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from collapsible.folding import merge
from collapsible.folding.ops import (
    Conv,
    Identity,
    NotExactError,
    Op,
    Scale,
    Transposed,
)
from collapsible.folding.trace import data_inputs, shape_of

Policy = Literal["auto", "always"]


@dataclass(frozen=True, eq=False)
class Proposal:
    """Replace ``node`` by ``op`` of ``source`` (by ``source`` itself where None), plus values."""

    rule: str
    node: fx.Node
    source: fx.Node
    op: Op | None
    names: tuple[str, ...]
    note: str = ""
    plus: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Linear neighbours that stay apart, and why."""

    rule: str
    names: tuple[str, ...]
    reason: str


Rule = Callable[[fx.Node, Policy], Proposal | Refusal | None]


def op_of(node: fx.Node) -> Op | None:
    return node.meta.get("op")


def name_of(node: fx.Node) -> str:
    """The layer's path in the network, or the value's name where it is a function."""
    given = node.meta.get("name")
    return given or (str(node.target) if node.op == "call_module" else node.name)


def source_of(node: fx.Node) -> fx.Node:
    return data_inputs(node)[0]


def positions(node: fx.Node, op: Op) -> int:
    """How often a kernel is applied for one example."""
    shape = shape_of(source_of(node) if isinstance(op, Transposed) else node) or ()
    axis = op.channel_axis(len(shape)) if not isinstance(op, Identity) else 1
    axis = 1 if axis is None else axis
    return math.prod(size for place, size in enumerate(shape) if place not in (0, axis))


def macs(node: fx.Node) -> int:
    """Multiply-accumulates of one node for one example, as decisions count them.

    Poolings, paddings and scales count none: what a merge must pay for is the large product.
    """
    op = op_of(node)
    if not isinstance(op, (Conv, Transposed)) or (isinstance(op, Conv) and op.weightless):
        return 0
    return op.kernel.numel() * positions(node, op)


def weights(node: fx.Node) -> int:
    """How many weights a node's kernel stores."""
    op = op_of(node)
    stored = isinstance(op, Transposed) or (isinstance(op, Conv) and not op.weightless)
    return op.kernel.numel() if stored and isinstance(op, (Conv, Transposed)) else 0


def _same_axis(before: Op, after: Op, rank: int) -> bool:
    """Whether two operations keep their channels on the same axis (a number has none)."""
    if isinstance(before, Identity) or isinstance(after, Identity):
        return True
    first, second = before.channel_axis(rank), after.channel_axis(rank)
    return first is None or second is None or first == second


def drop_identity(node: fx.Node, policy: Policy) -> Proposal | Refusal | None:
    """Activations with slope 1, factors of 1, terms of 0."""
    op = op_of(node)
    if not isinstance(op, Identity):
        return None
    return Proposal("identity", node, source_of(node), None, (name_of(node),), op.why)


def fold_scale_after(node: fx.Node, policy: Policy) -> Proposal | Refusal | None:
    """Batch norm or a per-channel scale into the layer whose output it scales."""
    scale = op_of(node)
    if not isinstance(scale, Scale):
        return None
    before = source_of(node)
    op, rank = op_of(before), len(shape_of(node) or ())
    if not isinstance(op, (Conv, Transposed, Scale)) or not _same_axis(op, scale, rank):
        return None
    names = (name_of(before), name_of(node))
    rule = "scale-scale" if isinstance(op, Scale) else "scale-after-layer"
    if len(before.users) > 1:
        return Refusal(rule, names, f"the output of {names[0]} is used elsewhere")
    if isinstance(op, Conv) and op.weightless and policy == "auto":
        reason = "a layer without weights would become a convolution of the same cost"
        return Refusal(rule, names, reason)
    merged = merge.scale_after(op, scale)
    return Proposal(rule, node, source_of(before), merged, names)


def fold_scale_before(node: fx.Node, policy: Policy) -> Proposal | Refusal | None:
    """Batch norm or a per-channel scale into the layer that reads it."""
    op = op_of(node)
    if not isinstance(op, (Conv, Transposed)):
        return None
    before = source_of(node)
    scale, rank = op_of(before), len(shape_of(before) or ())
    if not isinstance(scale, Scale) or not _same_axis(scale, op, rank):
        return None
    names = (name_of(before), name_of(node))
    rule = "scale-before-layer"
    if len(before.users) > 1:
        return Refusal(rule, names, f"the output of {names[0]} is used elsewhere")
    if isinstance(op, Conv) and op.weightless and policy == "auto":
        reason = "a layer without weights would become a convolution of the same cost"
        return Refusal(rule, names, reason)
    try:
        merged = merge.scale_before(scale, op)
    except NotExactError as reason:
        return Refusal(rule, names, str(reason))
    note = ""
    if isinstance(merged, Conv) and merged.fill is not None:
        if policy == "auto":
            return Refusal(
                rule,
                names,
                "zero padding follows the shift: exact only with an explicit padding by its "
                'value, a pass as long as the one saved (policy="always" does it)',
            )
        note = "padded explicitly with the value that the shift turns into zero"
    return Proposal(rule, node, source_of(before), merged, names, note)


def _chain_to(node: fx.Node) -> list[fx.Node]:
    """The convolutions that lead to ``node`` with nothing between them, each used once."""
    chain = [node]
    while True:
        before = source_of(chain[0])
        op, after = op_of(before), op_of(chain[0])
        assert isinstance(after, Conv)
        if not isinstance(op, Conv) or op.kind != after.kind or len(before.users) > 1:
            return chain
        chain.insert(0, before)


def _composed(chain: list[fx.Node]) -> Conv:
    """One convolution for a chain; raises ``NotExactError``."""
    first = op_of(chain[0])
    assert isinstance(first, Conv)
    for node in chain[1:]:
        following = op_of(node)
        assert isinstance(following, Conv)
        first = merge.compose_convs(first, following)
    return first


def _chain_weights(chain: list[fx.Node]) -> int:
    """The kernel size of a chain's composition, from geometry alone."""
    shrunk = op_of(chain[0])
    for node in chain[1:]:
        following = op_of(node)
        assert isinstance(shrunk, Conv)
        assert isinstance(following, Conv)
        shrunk = merge.composed_shape(shrunk, following)
    assert isinstance(shrunk, Conv)
    return shrunk.kernel.numel()


def _price(chain: list[fx.Node]) -> int:
    """MACs of a chain for one output of its last layer: a layer ahead of a stride runs oftener.

    From strides rather than from sizes, so that odd sizes of the probe decide nothing.
    """
    total = 0
    for node in chain:
        op = op_of(node)
        assert isinstance(op, Conv)
        total = total * op.stride[0] * op.stride[1] + weights(node)
    return total


def _loss(chain: list[fx.Node]) -> str:
    """Why merging a chain would not pay; empty where it would."""
    kernel, apart, stored = _chain_weights(chain), _price(chain), sum(weights(n) for n in chain)
    if kernel > apart:
        return f"merged they would cost {kernel:,} MACs for each output, apart {apart:,}"
    if kernel == apart and kernel > stored:
        return f"merged they would cost as many MACs and {kernel:,} weights for {stored:,}"
    return ""


# Longer chains are cut; the search grows with the square of the length.
MAX_CHAIN = 8


def _worth_a_layer(part: list[fx.Node], policy: Policy) -> bool:
    """Not what needs no layer, nor an uneven padding, which torch keeps ahead of one anyway."""
    ops = [op_of(n) for n in part]
    if all(isinstance(op, Conv) and op.weightless for op in ops):
        return False
    first = ops[0]
    assert isinstance(first, Conv)
    left, right, top, bottom = first.padding
    uneven = left != right or top != bottom
    return policy == "always" or len(part) > 2 or not (first.weightless and uneven)


def _segments(chain: list[fx.Node], policy: Policy) -> list[tuple[list[fx.Node], Conv | None]]:
    """The cheapest cut of a chain into exactly mergeable segments; the fewest among equals."""
    best: list[tuple[int, int, list[tuple[list[fx.Node], Conv | None]]]] = [(0, 0, [])]
    for end in range(1, len(chain) + 1):
        options = []
        for start in range(max(0, end - MAX_CHAIN), end):
            part = chain[start:end]
            cost, layers, cut = best[start]
            for earlier in part:
                op = op_of(earlier)
                assert isinstance(op, Conv)
                cost *= op.stride[0] * op.stride[1]
            if len(part) == 1:
                options.append((cost + weights(part[0]), layers + 1, [*cut, (part, None)]))
                continue
            if not _worth_a_layer(part, policy):
                continue
            if policy == "auto" and _loss(part):
                continue
            merged = _chain_weights(part)
            try:
                conv = _composed(part)
            except NotExactError:
                continue
            options.append((cost + merged, layers + 1, [*cut, (part, conv)]))
        key = (lambda o: o[:2]) if policy == "auto" else (lambda o: (o[1], o[0]))
        best.append(min(options, key=key))
    return best[-1][2]


def merge_chain(node: fx.Node, policy: Policy) -> Proposal | Refusal | None:
    """Convolutions (or linear layers) one after another with nothing between."""
    op = op_of(node)
    if not isinstance(op, Conv):
        return None
    before = source_of(node)
    previous = op_of(before)
    if not isinstance(previous, Conv) or previous.kind != op.kind:
        return None
    if not _worth_a_layer([before, node], policy):
        return None
    names = (name_of(before), name_of(node))
    rule = "linear-linear" if op.kind == "linear" else "conv-conv"
    if len(before.users) > 1:
        return Refusal(rule, names, f"the output of {names[0]} is used elsewhere")
    users = list(node.users)
    if len(users) == 1 and isinstance(following := op_of(users[0]), Conv):
        chained = following.kind == op.kind
    else:
        chained = False
    # The last of a chain decides for all of it, since only the whole shows what pays.
    chain = _chain_to(_chain_end(node) if chained else node)
    for part, conv in _segments(chain, policy):
        if part[-1] is node and conv is not None:
            note = "" if conv.fill is None else "padded explicitly with the value of the bias"
            found = tuple(name_of(n) for n in part)
            return Proposal(rule, node, source_of(part[0]), conv, found, note)
        if node in part and conv is not None:
            return None
    try:
        _composed([before, node])
    except NotExactError as reason:
        return Refusal(rule, names, str(reason))
    return Refusal(rule, names, _loss([before, node]) or "a longer merge takes one of them")


def _chain_end(node: fx.Node) -> fx.Node:
    while len(node.users) == 1:
        following, op = next(iter(node.users)), op_of(node)
        after = op_of(following)
        if not isinstance(after, Conv) or not isinstance(op, Conv) or after.kind != op.kind:
            break
        node = following
    return node
