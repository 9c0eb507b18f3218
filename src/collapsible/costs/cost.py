"""What a network costs, counted from one traced run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.costs import operators
from collapsible.costs.memory import lives, peak
from collapsible.costs.receptive import ReceptiveField, receptive_field
from collapsible.costs.trace import Step, Trace, trace
from collapsible.errors import UsageError


@dataclass(frozen=True)
class LayerCost:
    """One layer: a module without children, or a function called outside such a module.

    ``output`` is the shape of what it hands on. ``params`` counts parameters where they are first
    used. ``bytes_in`` and ``bytes_out`` are the maps that it reads and writes, weights aside.
    ``on_weights``: works on weights alone, so its result could be kept from run to run.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    params: int
    macs: int
    non_linear: int
    bytes_in: int
    bytes_out: int
    on_weights: bool = False


@dataclass(frozen=True)
class CostReport:
    """What a network costs for one input size. Counted, not measured, unless said.

    ``params`` are all parameters, biases and slopes included; ``convolution_weights`` only the
    kernels of the convolutions that work on maps, as the super-resolution papers count them.
    ``macs`` are multiply-accumulates of convolutions, transposed convolutions (as many as their
    inputs meet, not as if the input were stuffed with zeros), linear layers and matrix products;
    no biases, activations, normalisation or pooling. ``weight_macs`` of them work on weights
    alone (folding kernels in a training form). ``non_linear`` counts elements through
    activations and softmax, and windows of max pooling. ``activations`` counts elements of the
    outputs of convolutions, linear layers and matrix products on maps (the convention of
    Radosavovic et al., arXiv 2003.13678, section 2).

    ``peak_memory`` is the most bytes of maps alive at once in execution order, each from the
    operator that makes it to the last that reads it, input and outputs included, ``peak_at``
    where; nothing is fused, views and in-place operators take nothing. ``weight_bytes`` are all
    weights and buffers that the run reads. Both take ``element_bytes`` for a real number.
    ``receptive_field`` is None where it is not finite or not known; the reason is beside it.
    ``unknown`` names operators that may multiply and are not counted; empty is the rule.
    """

    network: str
    form: str
    input_size: tuple[int, ...]
    params: int
    convolution_weights: int
    macs: int
    weight_macs: int
    non_linear: int
    activations: int
    peak_memory: int
    peak_at: str
    weight_bytes: int
    element_bytes: int
    receptive_field: ReceptiveField | None
    receptive_field_reason: str
    unknown: tuple[str, ...]
    layers: tuple[LayerCost, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps({"source": SOURCE, **dataclasses.asdict(self)}, indent=2)

    def table(self, layers: bool = False) -> str:
        """The report as lines of text, with a line a layer on request."""
        field = self.receptive_field
        seen = " x ".join(map(str, field.size)) if field else f"- ({self.receptive_field_reason})"
        rows = [
            ("network", f"{self.network}, {self.form}"),
            ("input", " x ".join(map(str, self.input_size))),
            ("parameters", f"{self.params:,}"),
            ("convolution weights", f"{self.convolution_weights:,}"),
            ("MACs", f"{self.macs:,}"),
            ("non-linear", f"{self.non_linear:,} elements"),
            ("activations", f"{self.activations:,} elements"),
            ("receptive field", seen),
            ("peak memory", f"{self.peak_memory:,} bytes of maps, at {self.peak_at}"),
            ("weights", f"{self.weight_bytes:,} bytes"),
        ]
        if self.weight_macs:
            rows.insert(5, ("of which on weights", f"{self.weight_macs:,}"))
        if self.unknown:
            rows.append(("not counted", ", ".join(self.unknown)))
        lines = [f"{name:<20} {text}" for name, text in rows]
        lines += ["", f"{SOURCE}; {self.element_bytes} bytes an element"]
        return "\n".join([*self._layer_lines(), "", *lines] if layers else lines)

    def _layer_lines(self) -> list[str]:
        head = ["layer", "kind", "output", "params", "MACs", "non-linear", "bytes in", "bytes out"]
        rows = [
            [
                layer.name,
                layer.kind + (" (weights)" if layer.on_weights else ""),
                "x".join(map(str, layer.output)),
                *(
                    f"{number:,}"
                    for number in (
                        layer.params,
                        layer.macs,
                        layer.non_linear,
                        layer.bytes_in,
                        layer.bytes_out,
                    )
                ),
            ]
            for layer in self.layers
        ]
        return aligned([head, *rows], left=3)


SOURCE = "counted from one traced run without data"


def aligned(rows: list[list[str]], left: int) -> list[str]:
    """Rows as columns; the first ``left`` begin together, the others end together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def cost(
    network: nn.Module, input_size: Sequence[int], *, element_bytes: int | None = None
) -> CostReport:
    """What a network costs on an input of this size, such as (1, 1, 360, 640).

    The network is costed as it is, in evaluation mode: one in training form as such
    (``collapse`` it first for the deployed one). It is neither changed nor run on data, so the
    size may be as large as you like. ``element_bytes`` is the size of a real number in the
    memory figures (1 for int8); that of the network's parameters if not given.
    Raises ``UsageError`` for a size that is not one or not accepted by the network, and for a
    network whose control flow depends on data.
    """
    if element_bytes is not None and element_bytes < 1:
        raise UsageError(f"element_bytes={element_bytes}: starts at 1")
    run = trace(network, input_size)
    if element_bytes is None:
        real = (p.element_size() for p in network.parameters() if p.is_floating_point())
        element_bytes = next(real, 4)
    most, where = peak(run, element_bytes)
    field, reason = receptive_field(run)
    return CostReport(
        network=type(network).__name__,
        form=_form(network),
        input_size=tuple(input_size),
        params=sum(p.numel() for p in network.parameters()),
        convolution_weights=_convolution_weights(run),
        macs=sum(map(operators.macs, run.steps)),
        weight_macs=sum(operators.macs(step) for step in run.steps if step.on_weights),
        non_linear=sum(map(operators.non_linear, run.steps)),
        activations=sum(
            step.outputs[0].elements
            for step in run.steps
            if operators.plain(step.op) in operators.MACS and not step.on_weights
        ),
        peak_memory=most,
        peak_at=layer_name(run.steps[where]) if run.steps else "the input",
        weight_bytes=_weight_bytes(run, element_bytes),
        element_bytes=element_bytes,
        receptive_field=field,
        receptive_field_reason=reason,
        unknown=tuple(sorted({step.op for step in run.steps if operators.is_unknown(step)})),
        layers=tuple(layers(run, element_bytes)),
    )


def _form(network: nn.Module) -> str:
    modes = {m.mode for m in network.modules() if isinstance(m, CollapsibleConv2d)}
    if not modes:
        return "as given (nothing to collapse)"
    how = {
        frozenset({"collapsed"}): "its kernels composed in every run",
        frozenset({"expanded"}): "every layer of its blocks run",
    }
    return f"training form, {how.get(frozenset(modes), 'its blocks in both modes')}"


def _convolution_weights(run: Trace) -> int:
    kernels = {
        step.args[1].storage: step.args[1].elements
        for step in run.steps
        if operators.plain(step.op) == operators.CONVOLUTION and not step.on_weights
    }
    return sum(kernels.values())


def _weight_bytes(run: Trace, element_bytes: int) -> int:
    read = {value.storage for step in run.steps for value in step.inputs}
    return sum(
        weight.elements * (element_bytes if weight.floating else weight.width)
        for storage, weight in run.weights.items()
        if storage in read
    )


def layer_name(step: Step) -> str:
    """The layer's name: the module's path, and the function's if it is not the module's whole."""
    function = operators.plain(step.op).rpartition(".")[2].strip("_")
    if step.leaf:
        return step.module or step.kind
    return f"{step.module}.{function}" if step.module else function


def groups(run: Trace) -> list[list[int]]:
    """Numbers of the steps of each layer, in order; layers that only look at memory are left out.

    Work on weights alone and work on maps are two layers, though one module does both.
    """
    found: list[list[int]] = []
    last: tuple[int, bool] | None = None
    for number, step in enumerate(run.steps):
        key = (step.call, step.on_weights) if step.leaf else None
        if key is not None and key == last:
            found[-1].append(number)
        else:
            found.append([number])
        last = key
    return [group for group in found if not all(run.steps[n].is_view for n in group)]


def layers(run: Trace, element_bytes: int) -> list[LayerCost]:
    """A line for each layer of a traced run."""
    seen: set[int] = set()
    result = []
    known = {life.storage for life in lives(run, element_bytes)}

    def size(values: dict[int, int]) -> int:
        total = 0
        for storage, elements in values.items():
            memory = run.storages[storage]
            total += elements * (element_bytes if memory.floating else memory.width)
        return total

    readers: dict[int, int] = {}
    for number, step in enumerate(run.steps):
        readers.update({value.storage: number for value in step.inputs})
    readers.update({value.storage: len(run.steps) for value in run.outputs})
    for group in groups(run):
        steps = [run.steps[number] for number in group]
        made = {v.storage for step in steps if not step.is_view for v in step.outputs}
        # A layer may look at its own result again; what it reads was there before.
        inputs: dict[int, int] = {}
        fresh: set[int] = set()
        for step in steps:
            for value in step.inputs:
                if value.storage in known and value.storage not in fresh:
                    inputs[value.storage] = max(inputs.get(value.storage, 0), value.elements)
            fresh |= {v.storage for v in step.outputs} - set(inputs)
        outputs = {
            value.storage: value.elements
            for step in steps
            for value in step.outputs
            if value.storage in made & known and readers.get(value.storage, -1) > group[-1]
        }
        params = 0
        for value in (value for step in steps for value in step.inputs):
            weight = run.weights.get(value.storage)
            if weight is not None and weight.learned and value.storage not in seen:
                seen.add(value.storage)
                params += weight.elements
        last = next((step for step in reversed(steps) if not step.is_view), steps[-1])
        result.append(
            LayerCost(
                name=layer_name(last),
                kind=last.kind if last.leaf else operators.plain(last.op).rpartition(".")[2],
                output=steps[-1].outputs[0].shape,
                params=params,
                macs=sum(map(operators.macs, steps)),
                non_linear=sum(map(operators.non_linear, steps)),
                bytes_in=size(inputs),
                bytes_out=size(outputs),
                on_weights=last.on_weights,
            )
        )
    return result
