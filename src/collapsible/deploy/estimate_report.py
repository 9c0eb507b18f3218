"""What an estimate reports: for people, for programs, and as a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collapsible.costs.cost import aligned
from collapsible.errors import UsageError, require_packages

MIB = 2**20


@dataclass(frozen=True)
class LayerEstimate:
    """One layer: ``ms`` and ``cycles`` it takes, its multiply-accumulates, bytes moved off chip.

    ``utilisation`` (0 to 1) is the share of the array at work. ``bound`` is what it waits for:
    ``"compute"`` or a memory.
    """

    name: str
    kind: str
    ms: float
    cycles: int
    macs: int
    traffic: int | None
    utilisation: float
    bound: str


@dataclass(frozen=True)
class EstimateReport:
    """How fast a network runs on a target, and what of the target it takes.

    ``source`` says whether that was estimated or measured, and by what. ``fps`` (pictures a
    second) and ``latency_ms`` (milliseconds a run) are None where an operator falls off the
    target or the memory is too small: then there is no such figure, ``cpu_operators`` and ``fits``
    say which it is, ``advice`` what to do, and ``npu_ms`` is of what does run on the NPU.

    ``sram_bytes`` and ``dram_bytes`` are memory in use on and off the chip (maps and weights),
    ``sram_limit`` and ``dram_limit`` what the target has, ``dram_traffic`` bytes moved off chip
    in one run. ``utilisation`` (0 to 1) is multiply-accumulates over what the array could do in
    the time. None where a target does not tell. With tiles, time, traffic, cycles and MACs are of
    the whole picture, memory and ``layers`` of one tile; ``tile_input`` is a tile with its
    overlap. ``without_legalising`` names what falls off the network as given, where it was
    legalised. ``suggested_tile`` would fit where the network does not.
    """

    network: str
    target: str
    input_size: tuple[int, ...]
    source: str
    fps: float | None
    latency_ms: float | None
    npu_ms: float | None
    cycles: int | None
    macs: int | None
    utilisation: float | None
    cpu_operators: tuple[str, ...]
    advice: tuple[str, ...]
    fits: bool
    sram_bytes: int | None
    sram_limit: int | None
    dram_bytes: int | None
    dram_limit: int | None
    dram_traffic: int | None
    tile: tuple[int, int] | None = None
    tile_input: tuple[int, int] | None = None
    tiles: int = 1
    suggested_tile: tuple[int, int] | None = None
    layers: tuple[LayerEstimate, ...] = ()
    legalised: tuple[str, ...] = ()
    without_legalising: tuple[str, ...] | None = None
    assumptions: tuple[str, ...] = ()
    compiled: str | None = None

    def json(self) -> str:
        """The report as a JSON object with the same keys."""
        return json.dumps(asdict(self), indent=2)

    def table(self, layers: bool = False) -> str:
        """The report as lines of text, with a line a layer on request."""
        rows = [
            ("network", f"{self.network}, input {' x '.join(map(str, self.input_size))}"),
            ("target", self.target),
            ("frames a second", self._headline()),
            ("latency", _number(self.latency_ms, "{:,.3f} ms")),
        ]
        if self.latency_ms is None and self.npu_ms:
            rows.append(("of it on the NPU", f"{self.npu_ms:,.3f} ms"))
        if self.tile is not None and self.tile_input is not None:
            inner, whole = (" x ".join(map(str, t)) for t in (self.tile, self.tile_input))
            rows.append(("tiles", f"{self.tiles} of {inner}, each run on {whole}"))
        rows += [
            ("cycles", _number(self.cycles, "{:,}")),
            ("MACs", _number(self.macs, "{:,}")),
            ("utilisation", _number(self.utilisation, "{:.1%}")),
            ("SRAM", _memory(self.sram_bytes, self.sram_limit)),
            ("memory off chip", _memory(self.dram_bytes, self.dram_limit)),
            ("traffic off chip", _number(self.dram_traffic, "{:,} bytes")),
        ]
        lines = [f"{name:<18} {text}" for name, text in rows if text]
        lines.append(f"{'source':<18} {self.source}")
        for note in self.legalised:
            lines.append(f"{'legalised':<18} {note}")
        if self.without_legalising is not None:
            given = ", ".join(self.without_legalising) or "nothing"
            lines.append(f"{'as given':<18} {given} falls to the CPU")
        lines += [f"{'what to do':<18} {one}" for one in self.advice]
        lines += [f"{'assumed':<18} {one}" for one in self.assumptions]
        return "\n".join([*self._layer_lines(), "", *lines] if layers and self.layers else lines)

    def _headline(self) -> str:
        if self.fps is not None:
            return f"{self.fps:,.1f}"
        reasons = []
        if self.cpu_operators:
            reasons.append(f"{', '.join(self.cpu_operators)} falls to the CPU")
        if not self.fits:
            reasons.append("it does not fit the memory")
        return f"none: {' and '.join(reasons)}"

    def _layer_lines(self) -> list[str]:
        head = ["layer", "kind", "bound by", "ms", "cycles", "MACs", "bytes off chip", "busy"]
        rows = [
            [
                layer.name if len(layer.name) <= 48 else f"…{layer.name[-47:]}",
                layer.kind,
                layer.bound,
                f"{layer.ms:.4f}",
                f"{layer.cycles:,}",
                f"{layer.macs:,}",
                "-" if layer.traffic is None else f"{layer.traffic:,}",
                f"{layer.utilisation:.0%}",
            ]
            for layer in self.layers
        ]
        return aligned([head, *rows], left=3)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _memory(used: int | None, limit: int | None) -> str:
    if used is None:
        return ""
    text = f"{used / MIB:,.2f} MiB"
    if limit is None:
        return text
    text += f" of {limit / MIB:,.2f}"
    return text if used <= limit else f"{text}: {(used - limit) / MIB:,.2f} MiB too much"


def check_drawing(path: str | Path) -> Path:
    """The path, if a drawing can be made there; for asking before long work.

    Raises ``UsageError`` for another suffix, ``MissingExtraError`` without matplotlib.
    """
    path = Path(path)
    accepted = (".png", ".svg", ".pdf")
    if path.suffix.lower() not in accepted:
        raise UsageError(f"{path}: a drawing ends with {', '.join(accepted)}")
    require_packages("drawing estimates", "matplotlib", extra="plot")
    return path


def draw_estimate(report: EstimateReport | Sequence[EstimateReport], path: str | Path) -> Path:
    """Draw the time of each layer, coloured by what it waits for, to .png, .svg or .pdf.

    Several reports are drawn below one another on one scale. Raises ``UsageError`` for another
    suffix and for reports without layers, ``MissingExtraError`` without matplotlib.
    """
    reports = [report] if isinstance(report, EstimateReport) else list(report)
    path = check_drawing(path)
    if not reports or not all(one.layers for one in reports):
        raise UsageError(f"{path}: nothing to draw: the estimate has no layers")
    from matplotlib.figure import Figure

    from collapsible.imaging import atomic_write

    longest = max(len(one.layers) for one in reports)
    figure = Figure(figsize=(max(6.0, min(24.0, 2 + 0.3 * longest)), 3.6 * len(reports)))
    axes = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    bounds = sorted({layer.bound for one in reports for layer in one.layers})
    colours = {bound: f"C{number}" for number, bound in enumerate(bounds)}
    highest = max(layer.ms for one in reports for layer in one.layers)
    for axis, one in zip(axes, reports, strict=True):
        _draw_layers(axis, one, colours)
        axis.set_ylim(0, 1.05 * highest or 1)
    figure.tight_layout()
    with atomic_write(path) as stream:
        # Without a date the same report gives the same file.
        figure.savefig(
            stream,
            format=path.suffix[1:].lower(),
            metadata={"Date": None} if path.suffix.lower() == ".svg" else None,
        )
    return path


def _draw_layers(axis: Any, report: EstimateReport, colours: dict[str, str]) -> None:
    places = range(len(report.layers))
    axis.bar(places, [x.ms for x in report.layers], color=[colours[x.bound] for x in report.layers])
    names = [layer.name.rpartition("/")[2][-18:] for layer in report.layers]
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.set_ylabel("ms")
    fps = "no frame rate" if report.fps is None else f"{report.fps:,.1f} frames a second"
    axis.set_title(f"{report.network} on {report.target}: {fps}\n{report.source}", fontsize=9)
    seen = sorted({layer.bound for layer in report.layers})
    handles = [axis.bar([0], [0], color=colours[bound]) for bound in seen]
    axis.legend(handles, [f"bound by {bound}" for bound in seen], fontsize=7)
