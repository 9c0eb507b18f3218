"""LiteRT (``.tflite``) files: write them in fp32 or full int8, run them, read their operators.

Conversion is litert-torch's and quantisation ai-edge-quantizer's; both are imported only when used.
Files are channels-last, as LiteRT's kernels and the NPUs behind them want it: a network's input
[N, C, H, W] is [N, H, W, C] in the file, and so is its output if it has four dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from collapsible.deploy.given import InputSize, check_calibration, first_line, prepare
from collapsible.deploy.pools import repeat_borders
from collapsible.deploy.quiet import quiet, setting
from collapsible.deploy.ranges import TAILS, TRIED, Ranges, distance, spans, widen
from collapsible.errors import ExportError, UsageError, require_packages
from collapsible.imaging import atomic_write

Array = NDArray[np.float32]
# The flatbuffer's file identifier, at bytes 4 to 8.
_IDENTIFIER = b"TFL3"


def save_litert(
    network: nn.Module,
    path: Path | str,
    input_size: InputSize,
    *,
    calibration: Sequence[Array] | None = None,
) -> Path:
    """Convert a network to a ``.tflite`` file of one input size; returns the path.

    ``input_size`` is torch's (batch, channels, height, width). Without ``calibration`` the file is
    fp32. With it the file is int8 throughout, input and output too: weights symmetric per channel,
    activations per tensor with ranges from the calibration arrays (float32 [C, H, W] or
    [N, C, H, W] as the network takes them): all of what they reach, or all but the farthest
    0.01 % or 0.1 % of each map, whichever comes nearest to the fp32 file on up to eight of them.
    The network is converted as it is, in evaluation mode (``export`` collapses it first); the
    given one is untouched.
    The file is written whole or not at all. Raises ``MissingExtraError`` without the converter,
    ``UsageError`` for a size or calibration arrays that do not fit, ``ExportError`` for a network
    that the converter does not take, ``PictureError`` where the path cannot be written.
    """
    path = Path(path)
    arrays = None if calibration is None else check_calibration(calibration, input_size)
    packages = ("litert_torch",) if arrays is None else ("litert_torch", "ai_edge_quantizer")
    require_packages("writing LiteRT files", *packages, extra="edge")
    content = _convert(network, input_size, integers=arrays is not None)
    if arrays is not None:
        content = _quantise(content, arrays)
    with atomic_write(path) as stream:
        stream.write(content)
    return path


def run_litert(path: Path | str, inputs: Array) -> Array:
    """What a ``.tflite`` file makes of float32 inputs [N, C, H, W].

    N is a multiple of the file's batch. Outputs are float32, [N, C, H, W] where they have four
    dimensions. Integer inputs and outputs are quantised and dequantised by the file's own scales,
    to the nearest and clipped. Raises ``UsageError`` for inputs of another shape, and
    ``ExportError`` for a file that is missing, damaged, or has operators the interpreter does not
    know (such as those of a file compiled for an Ethos-U).
    """
    require_packages("running LiteRT files", "ai_edge_litert", extra="edge")
    interpreter = _open(Path(path))
    given, gives = interpreter.get_input_details(), interpreter.get_output_details()
    if len(given) != 1 or len(gives) != 1:
        raise ExportError(
            f"{path}: {len(given)} inputs and {len(gives)} outputs; one of each is accepted"
        )
    batch, *shape = (int(n) for n in given[0]["shape"])
    data = np.asarray(inputs, dtype=np.float32)
    last = np.moveaxis(data, 1, -1) if data.ndim == 4 else data
    if list(last.shape[1:]) != shape or len(last) % batch or not len(last):
        wanted = [batch, *shape[-1:], *shape[:-1]]
        raise UsageError(f"{path}: inputs {list(data.shape)}: the file takes {wanted}")
    results = []
    for chunk in np.split(last, len(last) // batch):
        interpreter.set_tensor(given[0]["index"], _to_file(chunk, given[0]))
        with quiet():
            interpreter.invoke()
        results.append(_from_file(interpreter.get_tensor(gives[0]["index"]), gives[0]))
    result = np.concatenate(results)
    return np.ascontiguousarray(np.moveaxis(result, -1, 1) if result.ndim == 4 else result)


def operators(path: Path | str) -> list[str]:
    """The operators of a ``.tflite`` file in order of execution, read from the flatbuffer.

    Built-in ones by their name in the schema (``CONV_2D``), custom ones by their own
    (``ethos-u``). Raises ``ExportError`` for a file that is missing or is not a LiteRT file.
    """
    require_packages("reading LiteRT files", "ai_edge_litert", extra="edge")
    from ai_edge_litert import schema_py_generated as schema

    content = _read(Path(path))
    builtin = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    names = []
    try:
        model: Any = schema.Model.GetRootAs(content)
        for subgraph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
            for i in range(subgraph.OperatorsLength()):
                kind = model.OperatorCodes(subgraph.Operators(i).OpcodeIndex())
                # Codes below 127 stand in the older field too, and in old files only there.
                code = max(kind.BuiltinCode(), kind.DeprecatedBuiltinCode())
                name = builtin.get(code, f"OPERATOR_{code}")
                if name == "CUSTOM":
                    name = (kind.CustomCode() or b"CUSTOM").decode(errors="replace")
                names.append(name)
    # The reader checks nothing: a cut file makes it read anywhere.
    except Exception as error:
        raise ExportError(f"{path}: a damaged LiteRT file: {first_line(error)}") from error
    return names


def _convert(network: nn.Module, input_size: InputSize, *, integers: bool) -> bytes:
    ready, output = prepare(network, input_size)
    if integers:
        ready = repeat_borders(ready)
    outputs = [0] if output.ndim == 4 else None
    batch, channels, height, width = input_size
    with quiet(), setting("LITERT_TORCH_SHOW_PROGRESS", "n"):
        import litert_torch

        try:
            last = litert_torch.to_channel_last_io(ready, args=[0], outputs=outputs).eval()
            example = (torch.zeros(batch, height, width, channels),)
            return litert_torch.convert(last, example).model_content()
        except Exception as error:
            reason = f"litert-torch cannot convert {type(network).__name__}: {first_line(error)}"
            raise ExportError(reason) from error


def _quantise(content: bytes, batches: list[Array]) -> bytes:
    """The int8 file: of several ways to set the ranges, the one nearest to the fp32 file."""
    given = [np.moveaxis(batch, 1, -1).copy() for batch in batches]
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        try:
            ((signature, names),) = _open_content(content).get_signature_list().items()
            (name,) = names["inputs"]
            found: list[tuple[float, bytes]] = []
            ranges = _ranges(content, given)
            wanted = _outputs(content, given[:TRIED])
            first: dict[str, Any] = {signature: [{name: given[0]}]}
            for tail in TAILS:
                work = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
                # It brings what constants need; the ranges of maps are of all batches.
                values = work.calibrate(first, num_threads=os.cpu_count() or 1)
                _set_ranges(values, ranges[tail])
                done = work.quantize(
                    values, enable_progress_bar=False, enable_progress_report=False
                ).quantized_model
                if done is None:
                    raise ExportError("it gave no file")
                error = distance(_outputs(bytes(done), given[:TRIED]), wanted)
                found.append((error, bytes(done)))
        except Exception as error:
            raise ExportError(f"ai-edge-quantizer failed: {first_line(error)}") from error
    return min(found, key=lambda pair: pair[0])[1]


def _ranges(content: bytes, given: list[NDArray[Any]]) -> dict[float, Ranges]:
    """For each of ``TAILS`` the range of every map by its name, over all batches.

    Of each batch the share ``tail`` of a map's values may lie beyond on either side; over batches
    the widest counts. The quantiser's own calibration takes a moving average that is 95 % the
    first picture's, so that pictures brighter than the first would be clipped.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        # Delegates fuse operators, whose maps then are never seen.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    maps, ends = _maps(content)
    result: dict[float, Ranges] = {tail: {} for tail in TAILS}
    for batch in given:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
        interpreter.invoke()
        for index, name in maps.items():
            values = interpreter.get_tensor(index)
            if values.dtype != np.float32 or not values.size:
                continue
            # What goes in and what comes out is never clipped: a classifier's largest output
            # is the one that matters.
            found = spans(values, 0 if index in ends else values.size)
            for tail, (low, high) in zip(TAILS, found, strict=True):
                widen(result[tail], name, low, high)
    return result


def _maps(content: bytes) -> tuple[dict[int, str], set[int]]:
    """Tensors that operators write or the file takes, by index; and those at its ends."""
    from ai_edge_litert import schema_py_generated as schema

    graph: Any = schema.Model.GetRootAs(content).Subgraphs(0)
    inputs = [graph.Inputs(i) for i in range(graph.InputsLength())]
    ends = {*inputs, *(graph.Outputs(i) for i in range(graph.OutputsLength()))}
    steps = (graph.Operators(i) for i in range(graph.OperatorsLength()))
    written = [step.Outputs(i) for step in steps for i in range(step.OutputsLength())]
    return {i: graph.Tensors(i).Name().decode() for i in (*inputs, *written)}, ends


def _set_ranges(values: dict[str, Any], ranges: Ranges) -> None:
    """Put ranges into the quantiser's own statistics, in place and in their shape."""
    for name, (low, high) in ranges.items():
        if values.get(name):
            for key, value in (("min", low), ("max", high)):
                values[name][key] = np.full_like(values[name][key], value)


def _outputs(content: bytes, given: list[NDArray[Any]]) -> Array:
    interpreter = _open_content(content)
    (takes,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for batch in given:
        interpreter.set_tensor(takes["index"], _to_file(batch, takes))
        interpreter.invoke()
        results.append(_from_file(interpreter.get_tensor(gives["index"]), gives))
    return np.stack(results)


def _to_file(data: Array, details: dict[str, Any]) -> NDArray[Any]:
    """Floats as the file's tensor takes them."""
    kind = np.dtype(details["dtype"])
    scale, zero = details["quantization"]
    if kind.kind != "i" or not scale:
        return data.astype(kind)
    limits = np.iinfo(kind)
    return np.clip(np.rint(data / scale) + zero, limits.min, limits.max).astype(kind)


def _from_file(data: NDArray[Any], details: dict[str, Any]) -> Array:
    scale, zero = details["quantization"]
    if np.dtype(details["dtype"]).kind != "i" or not scale:
        return data.astype(np.float32)
    return ((data.astype(np.float32) - zero) * scale).astype(np.float32)


def _open(path: Path) -> Any:
    try:
        return _open_content(_read(path))
    except (ValueError, RuntimeError) as error:
        raise ExportError(
            f"{path}: the LiteRT interpreter refuses it: {first_line(error)}"
        ) from error


def _open_content(content: bytes) -> Any:
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
    return interpreter


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    if content[4:8] != _IDENTIFIER:
        raise ExportError(f"{path}: not a LiteRT file (.tflite)")
    return content
