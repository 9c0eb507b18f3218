"""A traced run as an accelerator sees it: passes over maps, with what is done on the way fused.

An accelerator multiplies, and does the cheap things (activations, residual additions, padding,
reordering) while it reads or writes a map. So a *pass* has at most one layer that is more than
that, and between the layers of one pass no map is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from collapsible.costs import operators
from collapsible.costs.cost import groups, layer_name
from collapsible.costs.memory import lives
from collapsible.costs.rules import RULES, pointwise
from collapsible.costs.trace import Step, Trace

# A map: its memory, and how often it has been overwritten in place.
MapKey = tuple[int, int]

_MOVES = """
    pixel_shuffle pixel_unshuffle clone contiguous _unsafe_view constant_pad_nd reflection_pad2d
    replication_pad2d repeat expand cat stack slice index_select index permute copy flip roll
    upsample_nearest2d channel_shuffle native_channel_shuffle
    native_batch_norm _native_batch_norm_legit_no_training
"""
MOVES = {f"aten.{name}" for name in _MOVES.split()}


@dataclass(frozen=True)
class Map:
    """A map in memory: born in pass ``born``, read by ``readers``; ``elements`` numbers.

    ``given``: the network's input. ``wanted``: an output.
    """

    key: MapKey
    elements: int
    born: int
    readers: tuple[int, ...]
    given: bool
    wanted: bool

    @property
    def last(self) -> int:
        """The last pass that needs it."""
        return max((self.born, *self.readers))


@dataclass(frozen=True)
class Pass:
    """One pass: its steps, the layer that it is named after, those done on the way.

    ``reads`` are the elements read of each map.
    """

    name: str
    kind: str
    fused: tuple[str, ...]
    steps: tuple[Step, ...]
    output: tuple[int, ...]
    reads: dict[MapKey, int]
    weights: int


@dataclass(frozen=True)
class Dataflow:
    """Passes in order, and every map that lies in memory between them."""

    passes: tuple[Pass, ...]
    maps: tuple[Map, ...]


@dataclass
class _Layer:
    """A layer of the trace with the maps it reads and makes, before anything is fused."""

    steps: list[Step]
    name: str
    kind: str
    heavy: bool
    reads: dict[MapKey, int]
    writes: list[MapKey]
    weights: set[int]


@dataclass
class _Group:
    members: list[int] = field(default_factory=list)
    heavy: bool = False


def is_light(step: Step) -> bool:
    """Whether a step is done on the way: place by place, or a change of places alone."""
    op = operators.plain(step.op)
    name = op.removeprefix("aten.")
    if operators.macs(step) or operators.is_unknown(step) or op in operators.MAX_POOLS:
        return False
    if "softmax" in name or name == "glu":
        return False
    light = RULES.get(name) is pointwise or op in operators.ACTIVATIONS or op in MOVES
    return light or step.is_view


def _layers(run: Trace) -> tuple[list[_Layer], dict[MapKey, int]]:
    constant = {v.storage for step in run.steps if step.on_weights for v in step.outputs}
    constant |= set(run.weights)
    known = {x.storage: x.elements for x in lives(run, 1) if x.storage not in constant}
    version = dict.fromkeys(known, 0)
    elements = {(storage, 0): count for storage, count in known.items()}
    found = []
    for group in groups(run):
        steps = [run.steps[number] for number in group]
        if steps[0].on_weights:
            continue
        # Several views of one map are read one beside the other, but never more than the whole.
        seen: dict[MapKey, dict[int, int]] = {}
        made: list[MapKey] = []
        weights = set()
        for step in steps:
            for value in step.inputs:
                key = (value.storage, version.get(value.storage, 0))
                if value.storage in known and key not in made and not step.is_view:
                    seen.setdefault(key, {})[value.key] = value.elements
                if value.storage in constant:
                    weights.add(value.storage)
            for value in step.outputs:
                if value.storage not in known or step.is_view:
                    continue
                if step.in_place and (value.storage, version[value.storage]) not in made:
                    version[value.storage] += 1
                    elements[value.storage, version[value.storage]] = known[value.storage]
                key = (value.storage, version[value.storage])
                if key not in made:
                    made.append(key)
        last = next((step for step in reversed(steps) if not step.is_view), steps[-1])
        found.append(
            _Layer(
                steps,
                layer_name(last),
                last.kind if last.leaf else operators.plain(last.op).rpartition(".")[2],
                not all(map(is_light, steps)),
                {key: min(sum(of.values()), known[key[0]]) for key, of in seen.items()},
                made,
                weights,
            )
        )
    return found, elements


def dataflow(run: Trace, heavy_moves: Iterable[str] = ()) -> Dataflow:
    """The passes of a traced run. ``heavy_moves`` are moving operators that take a pass."""
    layers, elements = _layers(run)
    heavy_moves = set(heavy_moves)
    for layer in layers:
        layer.heavy |= any(operators.plain(step.op) in heavy_moves for step in layer.steps)
    made_by = {key: number for number, layer in enumerate(layers) for key in layer.writes}
    read_by: dict[MapKey, list[int]] = {}
    for number, layer in enumerate(layers):
        for key in layer.reads:
            read_by.setdefault(key, []).append(number)
    last_version: dict[int, MapKey] = {}
    for key in elements:
        last_version[key[0]] = max(key, last_version.get(key[0], key))
    outputs = {last_version[v.storage] for v in run.outputs if v.storage in last_version}
    groups_of = _fuse(layers, made_by, read_by, outputs)
    order = sorted({id(group): group for group in groups_of}.values(), key=lambda g: g.members[-1])
    place = {member: number for number, group in enumerate(order) for member in group.members}
    passes = tuple(_pass(group, layers, place, number) for number, group in enumerate(order))
    maps = []
    for key, count in elements.items():
        maker = made_by.get(key)
        readers = sorted({place[number] for number in read_by.get(key, ())})
        born = place[maker] if maker is not None else min(readers, default=0)
        stored = [number for number in readers if maker is None or number != born]
        if stored or key in outputs:
            maps.append(Map(key, count, born, tuple(stored), maker is None, key in outputs))
    return Dataflow(passes, tuple(sorted(maps, key=lambda m: m.born)))


def _fuse(
    layers: list[_Layer],
    made_by: dict[MapKey, int],
    read_by: dict[MapKey, list[int]],
    outputs: set[MapKey],
) -> list[_Group]:
    """The group of each layer.

    A layer joins that of one whose result it alone reads, the latest first, as long as the group
    has one heavy member; light layers before a heavy one become its way in.
    """
    groups_of: list[_Group] = []
    for number, layer in enumerate(layers):
        groups_of.append(_Group([number], layer.heavy))
        before = sorted(
            (
                made_by[key]
                for key in layer.reads
                if key in made_by and read_by[key] == [number] and key not in outputs
            ),
            reverse=True,
        )
        for maker in before:
            one, two = groups_of[maker], groups_of[number]
            if one is two or (one.heavy and two.heavy):
                continue
            merged = _Group(sorted(one.members + two.members), one.heavy or two.heavy)
            for member in merged.members:
                groups_of[member] = merged
    return groups_of


def _pass(group: _Group, layers: list[_Layer], place: dict[int, int], number: int) -> Pass:
    members = [layers[member] for member in group.members]
    main = next((layer for layer in members if layer.heavy), members[-1])
    inside = {key for layer in members for key in layer.writes}
    reads: dict[MapKey, int] = {}
    for layer in members:
        for key, count in layer.reads.items():
            if key not in inside:
                reads[key] = max(reads.get(key, 0), count)
    weights = {storage for layer in members for storage in layer.weights}
    steps = tuple(step for layer in members for step in layer.steps)
    return Pass(
        main.name,
        main.kind,
        tuple(layer.name for layer in members if layer is not main),
        steps,
        members[-1].steps[-1].outputs[0].shape,
        reads,
        sum(_sizes(members)[storage] for storage in weights),
    )


def _sizes(members: list[_Layer]) -> dict[int, int]:
    """Elements of each weight, by its memory."""
    sizes: dict[int, int] = {}
    for layer in members:
        for step in layer.steps:
            for value in step.inputs:
                sizes[value.storage] = max(sizes.get(value.storage, 0), value.elements)
    return sizes
