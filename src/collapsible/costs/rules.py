"""How each operator passes places on: the rules of the receptive field.

A rule takes a step, the output that is asked for, and the axes of what the step reads; it gives
the axes of that output, or raises ``Unknown`` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from collapsible.costs.operators import plain
from collapsible.costs.reach import Reach, Unknown
from collapsible.costs.trace import Step, Value


@dataclass(frozen=True)
class Piece:
    """A run of places within an axis, and what it looks at (None: nothing in particular)."""

    size: int
    reach: Reach | None = None


Axis = Sequence[Piece]
Axes = tuple[Axis, ...]


Of = Callable[[Value], Axes]
Rule = Callable[[Step, Value, Of], Axes]


def blank(shape: Sequence[int]) -> Axes:
    return tuple((Piece(size),) for size in shape)


def _sees(axis: Axis) -> bool:
    return any(piece.reach is not None for piece in axis)


def _join_axis(first: Axis, second: Axis) -> Axis:
    if not _sees(second):
        return first
    if not _sees(first):
        return second
    if [piece.size for piece in first] != [piece.size for piece in second]:
        raise Unknown("differently flattened pictures meet")
    joined = []
    for one, other in zip(first, second, strict=True):
        if one.reach is None or other.reach is None:
            joined.append(Piece(one.size, one.reach or other.reach))
        else:
            joined.append(Piece(one.size, one.reach.join(other.reach)))
    return tuple(joined)


def pointwise(step: Step, out: Value, of: Of) -> Axes:
    """Place by place, with broadcasting."""
    result = list(blank(out.shape))
    for value in step.inputs:
        given = of(value)
        for back in range(1, len(given) + 1):
            axis, size = given[-back], value.shape[-back]
            if size != out.shape[-back]:
                if _sees(axis):
                    raise Unknown("one place is spread over all")
                continue
            result[-back] = _join_axis(result[-back], axis)
    return tuple(result)


def _view(step: Step, out: Value, of: Of) -> Axes:
    """The same places in the same order, cut into other axes."""
    value = step.inputs[0]
    pieces = [p for axis in of(value) for p in axis if p.size > 1 or p.reach is not None]
    result: list[Axis] = []
    for size in out.shape:
        axis: list[Piece] = []
        have = 1
        while have < size and pieces:
            piece = pieces.pop(0)
            want = size // have
            if piece.size > want:
                if piece.reach is not None or piece.size % want or size % have:
                    raise Unknown("the picture is cut into windows")
                pieces.insert(0, Piece(piece.size // want))
                piece = Piece(want)
            axis.append(piece)
            have *= piece.size
        if size == 1 and pieces and pieces[0].size == 1:
            axis.append(pieces.pop(0))
        if have != size:
            raise Unknown("the picture is cut into windows")
        result.append(tuple(axis) or (Piece(size),))
    left = [piece for piece in pieces if piece.reach is not None]
    if left and result:
        result[-1] = (*result[-1], *left)
    return tuple(result)


def _permute(step: Step, out: Value, of: Of) -> Axes:
    given = of(step.args[0])
    op, count = plain(step.op), len(given)
    if op == "aten.permute":
        order = [axis % count for axis in step.args[1]]
    else:
        first, second = (0, 1) if op == "aten.t" else (step.args[1] % count, step.args[2] % count)
        order = list(range(count))
        if count > 1:
            order[first], order[second] = order[second], order[first]
    return tuple(given[axis] for axis in order)


def _expand(step: Step, out: Value, of: Of) -> Axes:
    given = of(step.args[0])
    given = (*blank([1] * (len(out.shape) - len(given))), *given)
    for axis, size in zip(given, out.shape, strict=True):
        if _sees(axis) and math.prod(p.size for p in axis) != size:
            raise Unknown("one place is spread over all")
    return given


def _along(axis_name: str, default: int = 0, index: int = 1) -> Callable[[Step, int], int]:
    return lambda step, count: step.argument(index, axis_name, default) % count


def _slice(step: Step, out: Value, of: Of) -> Axes:
    given = list(of(step.args[0]))
    along = _along("dim")(step, len(given))
    size = step.args[0].shape[along]
    if out.shape[along] == size:
        return tuple(given)
    start, stride = step.argument(2, "start") or 0, step.argument(4, "step", 1)
    start = max(start + size, 0) if start < 0 else start
    given[along] = _shifted(given[along], start, stride)
    return tuple(given)


def _shifted(axis: Axis, start: int, stride: int = 1) -> Axis:
    if not _sees(axis):
        return (Piece(0),)
    if len(axis) > 1 or axis[0].reach is None:
        raise Unknown("a flattened picture is cut")
    return (Piece(axis[0].size, axis[0].reach.window(1, stride, -start, 1)),)


def _pieces(step: Step, out: Value, of: Of) -> Axes:
    """``split``, ``chunk`` and their like."""
    given = list(of(step.args[0]))
    along = _along("dim", 0, 2)(step, len(given))
    start = sum(v.shape[along] for v in step.outputs[: step.outputs.index(out)])
    if out.shape[along] != step.args[0].shape[along]:
        given[along] = _shifted(given[along], start)
    return tuple(given)


def _select(step: Step, out: Value, of: Of) -> Axes:
    given = list(of(step.args[0]))
    if _sees(given.pop(_along("dim")(step, len(given)))):
        raise Unknown("one place is taken from the picture")
    return tuple(given)


def _take(step: Step, out: Value, of: Of) -> Axes:
    """``index_select`` along an axis of features."""
    given = list(of(step.args[0]))
    along = step.args[1] % len(given)
    if _sees(given[along]):
        raise Unknown("places are picked from the picture")
    given[along] = (Piece(out.shape[along]),)
    return tuple(given)


def _repeat(step: Step, out: Value, of: Of) -> Axes:
    given = (*blank([1] * (len(out.shape) - len(step.args[0].shape))), *of(step.args[0]))
    return tuple(
        axis if times == 1 or not _sees(axis) else _refuse("the picture is repeated")
        for axis, times in zip(given, step.args[1], strict=True)
    )


def _refuse(reason: str) -> Axis:
    raise Unknown(reason)


def _cat(step: Step, out: Value, of: Of) -> Axes:
    values = [value for value in step.inputs if value.shape != (0,)]
    count = len(out.shape)
    along = _along("dim")(step, count)
    stacked = plain(step.op) == "aten.stack"
    result = list(blank(out.shape))
    for value in values:
        given = list(of(value))
        if stacked:
            given.insert(along, (Piece(1),))
        if _sees(given[along]):
            raise Unknown("other places are put beside the picture's, such as class tokens")
        for axis in range(count):
            if axis != along:
                result[axis] = _join_axis(result[axis], given[axis])
    return tuple(result)


def _product(step: Step, out: Value, of: Of) -> Axes:
    """Matrix products: rows of one, columns of the other; the shared axis is summed."""
    op = plain(step.op)
    factors = step.args[1:3] if op in ("aten.addmm", "aten.baddbmm") else step.args[:2]
    first, second = of(factors[0]), of(factors[1])
    if _sees(first[-1]) or _sees(second[-2]):
        raise Unknown("global: all places are summed")
    batch = tuple(map(_join_axis, first[:-2], second[:-2]))
    return (*batch, first[-2], second[-1])


def _numbers(value: int | Sequence[int], count: int) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * count if len(numbers) == 1 else numbers


def _reach(axis: Axis) -> Reach | None:
    if len(axis) > 1 and _sees(axis):
        raise Unknown("a flattened picture is convolved")
    return axis[0].reach


def _convolve(step: Step, out: Value, of: Of) -> Axes:
    picture, kernel = step.args[0], step.args[1]
    given, sides = of(picture), kernel.shape[2:]
    count = len(sides)
    if any(map(_sees, of(kernel))) or _sees(given[1]):
        raise Unknown("global: the kernel is made from the picture")
    stride, padding, dilation = (_numbers(step.args[index], count) for index in (3, 4, 5))
    result: list[Axis] = [given[0], (Piece(out.shape[1]),)]
    for n in range(count):
        reach = _reach(given[n + 2])
        if reach is not None:
            behind = reach.transposed if step.args[6] else reach.window
            reach = behind(sides[n], stride[n], padding[n], dilation[n])
        result.append((Piece(out.shape[n + 2], reach),))
    return tuple(result)


def _pool(step: Step, out: Value, of: Of) -> Axes:
    given = list(of(step.args[0]))
    kernel = step.args[1]
    count = int(plain(step.op).partition("pool")[2][0])
    kernel = _numbers(kernel, count)
    stride = _numbers(step.argument(2, "stride") or kernel, count)
    padding = _numbers(step.argument(3, "padding", 0), count)
    dilation = [1] * count
    if "max" in step.op:
        dilation = _numbers(step.argument(4, "dilation", 1), count)
    for n in range(count):
        reach = _reach(given[n - count])
        if reach is not None:
            reach = reach.window(kernel[n], stride[n], padding[n], dilation[n])
        given[n - count] = (Piece(out.shape[n - count], reach),)
    return tuple(given)


def _adaptive(step: Step, out: Value, of: Of) -> Axes:
    if out.shape == step.args[0].shape:
        return of(step.args[0])
    raise Unknown("the windows depend on the picture's size")


def _reduce(step: Step, out: Value, of: Of) -> Axes:
    given = list(of(step.args[0]))
    along = step.argument(2 if "norm" in step.op else 1, "dim")
    dims = range(len(given)) if along is None else _numbers(along, 1)
    dims = sorted({dim % len(given) for dim in dims}) or list(range(len(given)))
    if any(_sees(given[dim]) for dim in dims):
        raise Unknown("global: all places are pooled")
    kept = len(out.shape) == len(given)
    for dim in reversed(dims):
        given[dim : dim + 1] = [(Piece(1),)] if kept else []
    return tuple(given)


def _softmax(step: Step, out: Value, of: Of) -> Axes:
    given = of(step.args[0])
    if _sees(given[step.args[1] % len(given)]):
        raise Unknown("global: a softmax over all places")
    return given


def _layer_norm(step: Step, out: Value, of: Of) -> Axes:
    given = of(step.args[0])
    if any(map(_sees, given[len(given) - len(step.args[1]) :])):
        raise Unknown("global: normalised over all places")
    return given


def _group_norm(step: Step, out: Value, of: Of) -> Axes:
    raise Unknown("global: normalised over all places")


def _batch_norm(step: Step, out: Value, of: Of) -> Axes:
    if plain(step.op) == "aten.native_batch_norm" and step.args[5]:
        raise Unknown("global: normalised over all places")
    return of(step.args[0])


def _shuffle(step: Step, out: Value, of: Of) -> Axes:
    """Depth to space and back: channels become the places within a block."""
    given, block = list(of(step.args[0])), step.args[1]
    for axis in (-2, -1):
        reach = _reach(given[axis])
        if reach is not None and plain(step.op) == "aten.pixel_shuffle":
            reach = reach.resample(Fraction(1, block), 0, 0, centred=False)
        elif reach is not None:
            reach = reach.window(block, block, 0, 1)
        given[axis] = (Piece(out.shape[axis], reach),)
    given[-3] = (Piece(out.shape[-3]),)
    return tuple(given)


def _resample(step: Step, out: Value, of: Of) -> Axes:
    """Nearest (one source place), linear (two) and cubic (four) interpolation."""
    given, value = list(of(step.args[0])), step.args[0]
    nearest, cubic = "nearest" in step.op, "cubic" in step.op
    if not nearest and step.argument(2, "align_corners", False):
        raise Unknown("aligned corners: the sources depend on the picture's size")
    before, after = (0, 0) if nearest else ((1, 2) if cubic else (0, 1))
    for axis in range(2, len(given)):
        reach = _reach(given[axis])
        if reach is not None:
            ratio = Fraction(value.shape[axis], out.shape[axis])
            reach = reach.resample(ratio, before, after, centred=not nearest)
        given[axis] = (Piece(out.shape[axis], reach),)
    return tuple(given)


def _pad(step: Step, out: Value, of: Of) -> Axes:
    """Padding moves the places; what it fills in lies at the border only."""
    given, amounts = list(of(step.args[0])), step.args[1]
    for n in range(len(amounts) // 2):
        axis, before = given[-1 - n], amounts[2 * n]
        given[-1 - n] = _shifted(axis, -before) if _sees(axis) else (Piece(out.shape[-1 - n]),)
    return tuple(given)


def _mixes(step: Step, out: Value, of: Of) -> Axes:
    """Operators that are harmless as long as they keep to the axes of features."""
    if any(_sees(axis) for value in step.inputs for axis in of(value)):
        raise Unknown("places are moved or mixed")
    return blank(out.shape)


# Each rule and the operators that it holds for.
_RULES: dict[Rule, str] = {
    pointwise: """
        add sub rsub mul div neg abs sqrt rsqrt reciprocal pow square sin cos maximum minimum where
        clone alias detach _to_copy contiguous lift_fresh copy masked_fill floor round dropout
        native_dropout addcmul lerp expm1 log1p sign eq ne lt le gt ge bitwise_not logical_not
    """,
    _view: "view _unsafe_view reshape unsqueeze squeeze flatten unflatten",
    _permute: "permute transpose t",
    _product: "mm bmm addmm baddbmm",
    _pieces: "split split_with_sizes unsafe_split chunk",
    _cat: "cat stack",
    _select: "select unbind",
    _reduce: "mean sum amax amin linalg_vector_norm var std prod",
    _softmax: "_softmax _safe_softmax _log_softmax",
    _pool: "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices",
    _adaptive: "_adaptive_avg_pool2d adaptive_max_pool2d",
    _shuffle: "pixel_shuffle pixel_unshuffle",
    _batch_norm: "native_batch_norm _native_batch_norm_legit_no_training",
    _pad: """
        constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    """,
    _mixes: "roll index flip gather scatter cumsum sort topk",
    _resample: """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
        upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    """,
    _convolve: "convolution",
    _expand: "expand",
    _slice: "slice",
    _take: "index_select",
    _repeat: "repeat",
    _layer_norm: "native_layer_norm",
    _group_norm: "native_group_norm",
}
RULES = {name: rule for rule, names in _RULES.items() for name in names.split()}
# All results are maps; of other operators only the first is, the rest are statistics or indices.
SEVERAL = {"unbind", *_RULES[_pieces].split()}
