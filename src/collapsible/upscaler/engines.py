"""The engines that run a graph: OpenVINO, and ONNX Runtime as the second."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import (
    CollapsibleError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
    WeightsError,
)
from collapsible.imaging import rgb_to_y
from collapsible.upscaler.graph_file import GraphFile
from collapsible.upscaler.int8 import ONNXRUNTIME_EXACT, int8_saturates, prevent_overflow
from collapsible.upscaler.openvino_import import import_openvino

ENGINES = ("openvino", "onnxruntime")
PRECISIONS = ("fp32", "bf16", "int8")

# bf16 must stay within 0.02 dB of fp32, on Y as the field measures. If its error e is independent
# of the network's own error, whose mean square at a typical 38 dB is m = 255^2 / 10^3.8 = 10.3,
# the loss is 10 log10(1 + e^2 / m), which is 0.02 dB at e^2 = 0.0475.
LARGEST_BF16_ERROR = 0.0475
# Compiled graphs are kept up to this many pixels of input in all, and the latest in any case: many
# small ones, or one or two of the largest automatic tiles. Each holds its feature maps, measured at
# 0.15 to 0.45 kB a pixel (SESR-M5, x2 bf16 to x4 fp32).
KEPT_PIXELS = 800_000
# OpenVINO's operations between the network's values and bytes.
_ROUNDING = ("Convert", "Round", "Clamp", "Minimum", "Maximum")


def _check_contract(graph: GraphFile, kept: bool) -> None:
    if not kept:
        raise WeightsError(
            f"{graph.path} does not go from one uint8 picture [1, H, W, 3] to another: "
            "only graphs made by collapsible enlarge pictures"
        )


class Engine(Protocol):
    """A graph that is ready to run on this machine."""

    name: str
    precision: str

    def run(self, tile: NDArray[Any]) -> NDArray[Any]:
        """Enlarge uint8 [H, W, 3] to uint8 [s H, s W, 3], or float32 to float32.

        Floats are in the range 0 to 255 on both sides, neither rounded nor clipped.
        """
        ...


class OpenVinoEngine:
    """OpenVINO on the CPU; compiles a graph once for each tile shape."""

    name = "openvino"

    def __init__(self, graph: GraphFile, precision: str, threads: int | None = None) -> None:
        self._openvino = openvino = import_openvino()
        self.precision = precision
        self._core = openvino.Core()
        try:
            self._network = self._core.read_model(graph.path)
        except RuntimeError as error:
            raise CollapsibleError(f"OpenVINO cannot read {graph.path}: {error}") from error
        ports = (*self._network.inputs, *self._network.outputs)
        pictures = openvino.PartialShape([1, -1, -1, 3])
        kept = len(ports) == 2 and all(
            port.get_element_type() == openvino.Type.u8
            and port.get_partial_shape().compatible(pictures)
            for port in ports
        )
        _check_contract(graph, kept)
        if precision == "int8" and int8_saturates():
            prevent_overflow(self._network)
        self._options: dict[str, Any] = {
            # What an int8 graph does not compute in int8 it computes in fp32.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "EXECUTION_MODE_HINT": "ACCURACY" if precision == "fp32" else "PERFORMANCE",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._requests: OrderedDict[tuple[tuple[int, ...], bool], Any] = OrderedDict()

    def _without_rounding(self, model: Any) -> Any:
        """The same graph from float to float: no casts, no clipping, no rounding at the end."""
        opset = self._openvino.opset13
        head = next(iter(model.inputs[0].get_target_inputs())).get_node()
        parameter = opset.parameter([1, -1, -1, 3], np.float32, name="picture")
        head.output(0).replace(parameter.output(0))
        node = model.get_results()[0].input_value(0).get_node()
        while (kind := node.get_type_name()) in (*_ROUNDING, "Transpose"):
            inputs = node.input_values()
            before = next(i for i in inputs if i.get_node().get_type_name() != "Constant")
            if kind in _ROUNDING:
                node.output(0).replace(before)
            node = before.get_node()
        tail = model.get_results()[0].input_value(0)
        make: Any = self._openvino.Model
        return make([opset.result(tail)], [parameter], "floats")

    def _make_room(self, pixels: int) -> None:
        """Let go of what was used longest ago, until one more of this size may be kept."""
        while self._requests:
            kept = sum(shape[0] * shape[1] for shape, _ in self._requests)
            if kept + pixels <= KEPT_PIXELS:
                return
            self._requests.popitem(last=False)

    def run(self, tile: NDArray[Any]) -> NDArray[Any]:
        floats = tile.dtype == np.float32
        key = (tile.shape, floats)
        request = self._requests.get(key)
        if request is None:
            self._make_room(tile.shape[0] * tile.shape[1])
            model = self._network.clone()
            if floats:
                model = self._without_rounding(model)
            model.reshape([1, *tile.shape])
            request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
            self._requests[key] = request
        self._requests.move_to_end(key)
        result = request.infer([np.ascontiguousarray(tile)[None]], share_inputs=True)
        return result[0][0]


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, graph: GraphFile, precision: str, threads: int | None = None) -> None:
        if precision == "bf16":
            raise UsageError("onnxruntime runs fp32 and int8 here, not bf16; openvino runs all")
        self.precision = precision
        if find_spec("onnxruntime") is None:
            raise MissingExtraError("--engine onnxruntime", "onnxruntime", "onnxruntime")
        self._graph, self._threads = graph, threads
        self._bytes = self._session(str(graph.path))
        ports = (*self._bytes.get_inputs(), *self._bytes.get_outputs())
        kept = len(ports) == 2 and all(
            port.type == "tensor(uint8)" and len(port.shape) == 4 and port.shape[3] in (3, None)
            for port in ports
        )
        _check_contract(graph, kept)

    def _session(self, model: str | bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*ONNXRUNTIME_EXACT)
        if self._threads:
            options.intra_op_num_threads = self._threads
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception types are not public
            raise CollapsibleError(f"onnxruntime cannot run {self._graph.path}: {error}") from error

    @cached_property
    def _floats(self) -> Any:
        """The same graph from float to float: no casts, no clipping, no rounding at the end."""
        if find_spec("onnx") is None:
            raise MissingExtraError("16 bits with --engine onnxruntime", "onnx", "onnxruntime")
        import onnx

        model = onnx.load(str(self._graph.path))
        nodes, graph = list(model.graph.node), model.graph
        made = {output: node for node in nodes for output in node.output}
        picture, upscaled = graph.input[0], graph.output[0]
        head = next(n for n in nodes if n.op_type == "Cast" and n.input[0] == picture.name)
        renamed = {head.output[0]: picture.name}
        graph.node.remove(head)
        tail = upscaled.name
        while made[tail].op_type in ("Cast", "Round", "Clip", "Min", "Max", "Transpose"):
            node = made[tail]
            tail = node.input[0]
            if node.op_type != "Transpose":
                renamed[node.output[0]] = tail
                graph.node.remove(node)

        def source(name: str) -> str:
            while name in renamed:
                name = renamed[name]
            return name

        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = source(name)
        tail = source(upscaled.name)
        picture.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        upscaled.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        upscaled.name = tail
        return self._session(model.SerializeToString())

    def run(self, tile: NDArray[Any]) -> NDArray[Any]:
        session = self._floats if tile.dtype == np.float32 else self._bytes
        feed = {session.get_inputs()[0].name: np.ascontiguousarray(tile)[None]}
        return session.run(None, feed)[0][0]


def _test_picture(side: int = 96) -> NDArray[np.uint8]:
    """A picture with edges and textures at many scales, the same on every machine."""
    y, x = np.mgrid[:side, :side] / side
    rings = 60 * np.sign(np.sin(40 * np.hypot(x - 0.3, y - 0.6)))
    weave = 30 * np.sin(90 * x) * np.sin(70 * y)
    shade = 128 + 80 * (x - 0.5)
    planes = [shade + rings + 0.5 * weave, shade + 0.6 * rings + weave, 255 - shade + weave]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def bf16_error(graph: GraphFile, threads: int | None = None) -> float | None:
    """Mean square difference of Y, in squared levels, between bf16 and fp32 on a test picture.

    Taken before rounding: two values on either side of a half round apart, and yet are equally
    far from the truth. None where this CPU has no bf16 arithmetic. Measured, in a fraction of a
    second.
    """
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    picture = _test_picture().astype(np.float32)
    fast, exact = (
        rgb_to_y(OpenVinoEngine(graph, precision, threads).run(picture).astype(np.float64))
        for precision in ("bf16", "fp32")
    )
    return float(np.mean((fast - exact) ** 2))


def open_engine(
    graph: GraphFile,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Engine:
    """An engine for a graph: ``auto`` takes the fastest that is installed and good enough.

    OpenVINO is the fastest on x86 CPUs by measurement (benchmarks/upscale.py). ``auto`` precision
    is bf16 where the CPU computes in it and its error, measured here and now, costs less than
    0.02 dB; else fp32. A graph that is quantised is int8 and nothing else.
    Raises ``UnknownNameError`` for another engine or precision, ``UsageError`` for a pair that
    does not exist, ``MissingExtraError`` for an engine that is not installed.
    """
    if engine not in ("auto", *ENGINES):
        raise UnknownNameError("engine", engine, ("auto", *ENGINES))
    if precision not in ("auto", *PRECISIONS):
        raise UnknownNameError("precision", precision, ("auto", *PRECISIONS))
    if graph.quantised != (precision == "int8") and (graph.quantised or precision == "int8"):
        if precision != "auto":
            kind = "int8" if graph.quantised else "not quantised"
            raise UsageError(f"{graph.path} is {kind}: precision {precision!r} does not go with it")
        precision = "int8"
    if engine == "auto":
        engine = "openvino" if find_spec("openvino") else "onnxruntime"
    if engine == "onnxruntime":
        return OnnxRuntimeEngine(graph, "fp32" if precision == "auto" else precision, threads)
    if find_spec("openvino") is None:
        raise CollapsibleError("openvino is not installed: pip install openvino")
    if precision == "auto":
        error = bf16_error(graph, threads)
        precision = "bf16" if error is not None and error < LARGEST_BF16_ERROR else "fp32"
    return OpenVinoEngine(graph, precision, threads)
