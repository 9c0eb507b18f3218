"""ONNX files of any network: fp32, or int8 as QDQ; run by ONNX Runtime and by OpenVINO.

The graph is torch's own exporter's, from ``torch.export``, so a network whose way depends on the
data is an error and not one of its ways. Quantisation is onnxruntime's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from torch import nn

from collapsible.deploy.given import Array, InputSize, check_calibration, first_line, prepare
from collapsible.deploy.quiet import quiet
from collapsible.deploy.ranges import TAILS, TRIED, Ranges, distance, spans, widen
from collapsible.errors import ExportError, UsageError, require_packages
from collapsible.imaging import atomic_write
from collapsible.upscaler.int8 import ONNXRUNTIME_EXACT, exact_options
from collapsible.upscaler.openvino_import import import_openvino

Engine = Literal["onnxruntime", "openvino"]
# What the exporter's decompositions are written for; runtimes of 2023 and later read it.
OPSET = 18
FLOAT = onnx.TensorProto.FLOAT


def save_onnx(
    network: nn.Module,
    path: Path | str,
    input_size: InputSize,
    *,
    calibration: Sequence[Array] | None = None,
) -> Path:
    """Convert a network to an ``.onnx`` file of one input size; returns the path.

    The file maps ``input`` [N, C, H, W] to ``output``, both float32. Without ``calibration`` it is
    fp32 throughout; with it, quantise and dequantise nodes (QDQ) make runtimes compute in int8:
    weights symmetric per output channel, activations per tensor with ranges found as by
    ``save_litert``. Activations are signed: on CPUs without VNNI
    unsigned ones saturate (ONNX Runtime's documentation of quantisation).
    The file is written whole or not at all; errors as in ``save_litert``.
    """
    path = Path(path)
    arrays = None if calibration is None else check_calibration(calibration, input_size)
    require_packages("writing ONNX files", "onnxscript", extra="edge")
    model = _convert(network, input_size)
    if arrays is not None:
        model = _quantise(model, arrays)
    try:
        content = model.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ExportError(f"{path}: over 2 GB, which one ONNX file does not hold") from error
    with atomic_write(path) as stream:
        stream.write(content)
    return path


def run_onnx(path: Path | str, inputs: Array, engine: Engine = "onnxruntime") -> Array:
    """What an ``.onnx`` file of ``save_onnx`` makes of float32 inputs [N, C, H, W].

    N is a multiple of the file's batch. OpenVINO computes in fp32 where the file does (never in
    bf16). Raises ``UsageError`` for inputs of another shape or an unknown engine, ``ExportError``
    for a file that the engine does not take.
    """
    if engine not in get_args(Engine):
        raise UsageError(f"engine {engine!r}: known are {', '.join(get_args(Engine))}")
    require_packages(f"running ONNX files by {engine}", engine, extra="onnxruntime")
    path = Path(path)
    try:
        with quiet():
            size, run = (_onnxruntime if engine == "onnxruntime" else _openvino)(path)
    # Each engine has its own errors, all of them RuntimeErrors and plain Exceptions.
    except Exception as error:
        raise ExportError(f"{path}: {engine} refuses it: {first_line(error)}") from error
    data = np.ascontiguousarray(inputs, dtype=np.float32)
    if list(data.shape[1:]) != size[1:] or not len(data) or len(data) % size[0]:
        raise UsageError(f"{path}: inputs {list(data.shape)}: the file takes {size}")
    return np.concatenate([run(part) for part in np.split(data, len(data) // size[0])])


def onnx_operators(path: Path | str) -> list[str]:
    """The operators of an ``.onnx`` file in order. Raises ``ExportError`` if it is not one."""
    try:
        with Path(path).open("rb") as stream:
            return [node.op_type for node in onnx.load_model(stream).graph.node]
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    # The parser's own errors have no common class of their own.
    except Exception as error:
        raise ExportError(f"{path}: not an ONNX file: {first_line(error)}") from error


def _convert(network: nn.Module, input_size: InputSize) -> onnx.ModelProto:
    ready, _ = prepare(network, input_size)
    with quiet():
        try:
            program = torch.onnx.export(
                ready,
                (torch.zeros(input_size),),
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
        except Exception as error:
            raise ExportError(
                f"torch cannot export {type(network).__name__} to ONNX: {_cause(error)}"
            ) from error
    _strip(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of where the code stood: this machine's paths."""
    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info):
        owner.ClearField("doc_string")
        owner.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")


def _cause(error: BaseException) -> str:
    """The exporter wraps the reason in advice; the innermost error has it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _quantise(model: onnx.ModelProto, arrays: list[Array]) -> onnx.ModelProto:
    """The int8 graph: of several ways to set the ranges, the one nearest to the fp32 graph."""
    require_packages("quantising ONNX files", "onnxruntime", extra="onnxruntime")
    tried = np.concatenate(arrays[:TRIED])
    found = []
    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        try:
            ranges = _ranges(model, arrays)
            path.write_bytes(model.SerializeToString())
            wanted = run_onnx(path, tried)
            for tail in TAILS:
                _quantise_by(model, path, arrays[0], ranges[tail])
                found.append((distance(run_onnx(path, tried), wanted), onnx.load_model(path)))
        except Exception as error:
            raise ExportError(f"onnxruntime cannot quantise it: {first_line(error)}") from error
    return min(found, key=lambda pair: pair[0])[1]


def _quantise_by(model: onnx.ModelProto, path: Path, array: Array, ranges: Ranges) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """It wants data for ranges of its own, which ours then replace."""

        def __init__(self) -> None:
            self.left = iter([{"input": array}])

        def get_next(self) -> Any:
            return next(self.left, None)

    ours = {
        name: [{"rmin": np.float32(min(low, 0)), "rmax": np.float32(max(high, 0))}]
        for name, (low, high) in ranges.items()
    }
    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    quantize_static(
        draft,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": ours},
    )


def _ranges(model: onnx.ModelProto, arrays: list[Array]) -> dict[float, Ranges]:
    """For each of ``TAILS`` the range of every float map by its name, over all batches."""
    import onnxruntime

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    ends = {"input", "output"}
    # The exporter describes weights too, whose ranges are by channel and not ours to set.
    weights = {constant.name for constant in wide.graph.initializer}
    wide.graph.output.extend(
        value
        for value in wide.graph.value_info
        if value.name not in weights and value.type.tensor_type.elem_type == FLOAT
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        wide.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    result: dict[float, Ranges] = {tail: {} for tail in TAILS}
    for array in arrays:
        values = {
            "input": array,
            **dict(zip(names, session.run(None, {"input": array}), strict=True)),
        }
        for name, value in values.items():
            found = spans(value, 0 if name in ends else value.size)
            for tail, (low, high) in zip(TAILS, found, strict=True):
                widen(result[tail], name, low, high)
    return result


def _onnxruntime(path: Path) -> tuple[list[int], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*ONNXRUNTIME_EXACT)
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    return list(given.shape), lambda part: session.run(None, {given.name: part})[0]


def _openvino(path: Path) -> tuple[list[int], Any]:
    openvino = import_openvino()

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path.read_bytes(), b""),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", **exact_options()},
    )
    (shape,) = (port.shape for port in compiled.inputs)
    return list(shape), lambda part: np.array(compiled(part)[0])
