"""What a graph file says of itself, read without any engine or the onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collapsible.errors import UsageError, WeightsError
from collapsible.weights import Card, find_card, sha256

# ModelProto.metadata_props and StringStringEntryProto.key/.value in onnx.proto3.
_METADATA, _KEY, _VALUE = 14, 1, 2


@dataclass(frozen=True)
class GraphFile:
    """A graph from uint8 RGB [1, H, W, 3] to uint8 RGB [1, s H, s W, 3], and its facts.

    ``radius`` is the receptive radius in input pixels: what lies further away from an output
    pixel's own place cannot change it. ``quantised`` graphs compute in int8 and nothing else.
    """

    path: Path
    name: str
    scale: int
    radius: int
    quantised: bool = False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message (others are passed over)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field runs past the end")
            yield key >> 3, data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def read_graph_file(path: Path) -> GraphFile:
    """Read a graph's own facts: ``collapsible.scale``, ``.receptive_radius`` and ``.name``.

    Raises ``WeightsError`` for a file that is missing, not ONNX, or without those facts.
    """
    try:
        facts = {}
        for number, message in _fields(path.read_bytes()):
            if number == _METADATA:
                entry = dict(_fields(message))
                facts[entry.get(_KEY, b"").decode()] = entry.get(_VALUE, b"").decode()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{path} is not an ONNX graph: {error}") from error
    try:
        return GraphFile(
            path,
            facts.get("collapsible.name", path.stem),
            int(facts["collapsible.scale"]),
            int(facts["collapsible.receptive_radius"]),
            facts.get("collapsible.precision") == "int8",
        )
    except (KeyError, ValueError):
        raise WeightsError(
            f"{path} does not state collapsible.scale and collapsible.receptive_radius: "
            "only graphs made by collapsible enlarge pictures"
        ) from None


def find_graph(
    model: str | Path | Card, scale: int, precision: str = "auto", *, fast: bool = False
) -> GraphFile:
    """The graph of a shipped model, of a card, or of an ``.onnx`` file.

    Of a model it is the int8 graph if ``precision`` is ``"int8"``, and also if it is ``"auto"``
    with ``fast`` and the model has one.
    Raises ``UnknownNameError`` for an unknown name, ``UsageError`` for a scale without weights or a
    model without an int8 graph, ``WeightsError`` for a file that will not do.
    """
    if isinstance(model, Card):
        return _graph_of(model, precision, fast)
    path = Path(model)
    if path.suffix == ".onnx":
        graph = read_graph_file(path)
        if graph.scale != scale:
            raise WeightsError(f"{path} enlarges x{graph.scale}, not x{scale}")
        return graph
    return _graph_of(find_card(str(model), scale), precision, fast)


def _graph_of(card: Card, precision: str, fast: bool) -> GraphFile:
    """A card's graph, if it is the one that the card describes."""
    if precision == "int8" and not card.has_int8:
        raise UsageError(
            f"{card.name} x{card.scale} has no int8 graph: precision may be fp32, bf16"
        )
    quantised = precision == "int8" or (fast and precision == "auto" and card.has_int8)
    path, key = (card.int8_path, "int8") if quantised else (card.onnx_path, "onnx")
    graph = read_graph_file(path)
    stated = card.sha256.get(key)
    if stated and sha256(path) != stated:
        raise WeightsError(
            f"{path} is damaged or another file: its SHA-256 is not the one in {card.path.name}"
        )
    return graph
