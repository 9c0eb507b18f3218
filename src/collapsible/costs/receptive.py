"""The exact receptive field of a traced run: through branches, strides, dilation and reshapes.

Every map is followed with the provenance of each of its axes: which pieces an axis is made of
(flattened pictures have several) and what each looks at in the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from collapsible.costs.operators import ACTIVATIONS, plain
from collapsible.costs.reach import Reach, Unknown
from collapsible.costs.rules import RULES, SEVERAL, Axes, Piece, blank, pointwise
from collapsible.costs.trace import Step, Trace, Value


@dataclass(frozen=True)
class ReceptiveField:
    """Which inputs one output depends on, for each axis of the picture (height, width).

    ``size`` is the span in input places of the output that sees most; ``before`` and ``after``
    are the farthest places on either side of the output's own, floor(index * stride). ``stride``
    is the step in input places from one output to the next, below one after an enlargement.
    Holes of a dilated kernel are inside the span.
    """

    size: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    stride: tuple[float, ...]


def receptive_field(trace: Trace) -> tuple[ReceptiveField | None, str]:
    """The field and "", or None and the reason (for instance "global: mean at 'pool'").

    Of several outputs, the widest along each axis counts.
    """
    axes = {value.key: _of_input(value.shape) for value in trace.inputs}
    spatial = range(2, len(trace.inputs[0].shape))
    if not spatial:
        return None, "the input has no places, only features"
    reasons: dict[int, str] = {}
    aliases: dict[int, set[int]] = {}
    for step in trace.steps:
        for value in (*step.inputs, *step.outputs):
            aliases.setdefault(value.storage, set()).add(value.key)
        if step.on_weights:
            continue
        reason = next((reasons[v.key] for v in step.inputs if v.key in reasons), "")
        if not reason:
            try:
                _follow(step, axes)
                if step.in_place:
                    written = step.outputs[0]
                    for key in aliases[written.storage] - {written.key}:
                        reasons[key] = f"written through a view at {step.module!r}"
                continue
            except Unknown as unknown:
                place = f" at {step.module!r}" if step.module else ""
                reason = f"{unknown} ({plain(step.op).removeprefix('aten.')}{place})"
        for value in step.outputs:
            reasons[value.key] = reason
    found: list[list[Reach]] = [[] for _ in spatial]
    for value in trace.outputs:
        if value.key in reasons:
            return None, reasons[value.key]
        for piece in (p for axis in axes.get(value.key, ()) for p in axis):
            if piece.reach is not None:
                found[piece.reach.axis - 2].append(piece.reach)
    try:
        if not all(found):
            raise Unknown("an output has lost the picture's axes")
        best = [max((reach.extent() for reach in along), key=lambda e: e[0]) for along in found]
    except Unknown as unknown:
        return None, str(unknown)
    return (
        ReceptiveField(
            tuple(e[0] for e in best),
            tuple(e[1] for e in best),
            tuple(e[2] for e in best),
            tuple(float(e[3]) for e in best),
        ),
        "",
    )


def _of_input(shape: tuple[int, ...]) -> Axes:
    return tuple(
        (Piece(size, Reach(axis, 1, (0,), (0,)) if axis > 1 else None),)
        for axis, size in enumerate(shape)
    )


def _follow(step: Step, axes: dict[int, Axes]) -> None:
    """Set the axes of a step's outputs. Raises ``Unknown`` where that is not possible."""
    op = plain(step.op).removeprefix("aten.")
    rule = RULES.get(op)
    if rule is None:
        rule = pointwise if f"aten.{op}" in ACTIVATIONS else None
    if rule is None:
        raise Unknown("not followed through this operator")

    def of(value: Value) -> Axes:
        return axes.get(value.key) or blank(value.shape)

    # Side results of a normalisation or pooling are no maps that anything goes on from.
    outputs = step.outputs if op in SEVERAL else step.outputs[:1]
    for value in outputs:
        axes[value.key] = _fit(rule(step, value, of), value.shape)


def _fit(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Cropping and padding change sizes, not reaches: take sizes from the tensor."""
    if len(axes) != len(shape):
        raise Unknown("an axis was lost")
    fitted = []
    for axis, size in zip(axes, shape, strict=True):
        if math.prod(piece.size for piece in axis) == size:
            fitted.append(axis)
        elif len(axis) == 1:
            fitted.append((Piece(size, axis[0].reach),))
        elif any(piece.reach for piece in axis):
            raise Unknown("a flattened picture is cut")
        else:
            fitted.append((Piece(size),))
    return tuple(fitted)
