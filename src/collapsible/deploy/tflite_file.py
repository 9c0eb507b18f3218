"""What a TFLite file holds: its operators and the shapes of its inputs. Nothing is executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapsible.errors import UsageError, require_packages

MAGIC = b"TFL3"
# The custom operator that Vela packs everything into that runs on the NPU.
NPU_OPERATOR = "ethos-u"


@dataclass(frozen=True)
class TfliteOperator:
    """One operator: its TFLite name (such as CONV_2D), and its first output's name and shape."""

    operator: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TfliteFile:
    """The main graph of a TFLite file. ``inputs`` are shapes, -1 where a side is not fixed."""

    operators: tuple[TfliteOperator, ...]
    inputs: tuple[tuple[int, ...], ...]
    input_types: tuple[str, ...]


def read_tflite(path: Path) -> TfliteFile:
    """Read a file's structure. Raises ``UsageError`` for a file that is not TFLite or is damaged.

    Needs ethos-u-vela, whose reader of the format is used.
    """
    require_packages("reading TFLite files", "ethosu", extra="edge")
    data = check_tflite(path)
    import struct

    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: a damaged TFLite file: {error}") from error


def check_tflite(path: Path) -> bytes:
    """The bytes of a file that begins as TFLite does. Raises ``UsageError`` for any other."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if data[4:8] != MAGIC:
        pickled = data[:1] == b"\x80" or (data[:2] == b"PK" and b".pkl" in data[:4096])
        what = (
            "a pickle or torch file, which may hold code and is not opened"
            if pickled
            else "not a TFLite file"
        )
        raise UsageError(f"{path}: refused: {what}; a .tflite network is accepted")
    return data


def _parse(data: bytes) -> TfliteFile:
    from ethosu.vela.tflite.BuiltinOperator import BuiltinOperator
    from ethosu.vela.tflite.Model import Model
    from ethosu.vela.tflite.TensorType import TensorType

    names = {value: name for name, value in vars(BuiltinOperator).items() if name[0] != "_"}
    types = {value: name for name, value in vars(TensorType).items() if name[0] != "_"}
    model: Any = Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    if graph is None:
        raise ValueError("it holds no graph")
    operators = []
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        custom = code.CustomCode()
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        output = graph.Tensors(operator.Outputs(0)) if operator.OutputsLength() else None
        operators.append(
            TfliteOperator(
                custom.decode() if custom else names.get(kind, f"operator {kind}"),
                (output.Name() or b"").decode(errors="replace") if output else "",
                tuple(map(int, output.ShapeAsNumpy())) if output and output.ShapeLength() else (),
            )
        )
    inputs = [graph.Tensors(graph.Inputs(number)) for number in range(graph.InputsLength())]
    return TfliteFile(
        tuple(operators),
        tuple(_shape(tensor) for tensor in inputs),
        tuple(types.get(tensor.Type(), "?").lower() for tensor in inputs),
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    """The signature where there is one: it keeps the -1 of a side that is not fixed."""
    if tensor.ShapeSignatureLength():
        return tuple(map(int, tensor.ShapeSignatureAsNumpy()))
    return tuple(map(int, tensor.ShapeAsNumpy())) if tensor.ShapeLength() else ()
