"""How long a network takes on this machine, measured with an inference engine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from collapsible.costs.targets import HostSettings
from collapsible.deploy.quiet import quiet
from collapsible.errors import (
    CollapsibleError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
)
from collapsible.upscaler.openvino_import import import_openvino

ENGINES = ("auto", "openvino", "onnxruntime")
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
# Runs shorter than this are timed in groups: a clock's own noise must not be what is measured.
SHORTEST_SAMPLE = 0.01


@dataclass(frozen=True)
class HostReport:
    """Measured on this machine: milliseconds of one run, the median, least and most of ``runs``.

    ``engine`` with its version and precision; ``machine`` names the processor and the threads.
    """

    engine: str
    machine: str
    latency_ms: float
    least_ms: float
    most_ms: float
    runs: int

    @property
    def source(self) -> str:
        """What to say with the figure."""
        return (
            f"measured: {self.engine} on this host ({self.machine}), median of {self.runs} runs, "
            f"{self.least_ms:.3f} to {self.most_ms:.3f} ms"
        )


def measure_host(
    path: str | Path,
    settings: HostSettings | None = None,
    input_size: Sequence[int] | None = None,
) -> HostReport:
    """Time an ONNX (or, with OpenVINO, TFLite) file on random input; one thread a core.

    ``input_size`` is needed where the file leaves it open.
    Raises ``UsageError`` for an unknown engine or precision and for a size the file does not
    take, ``MissingExtraError`` for an engine that is not installed, ``CollapsibleError`` for a
    file that it cannot run.
    """
    settings = settings or HostSettings()
    path = Path(path)
    if settings.engine not in ENGINES:
        raise UnknownNameError("engine", settings.engine, ENGINES)
    if settings.precision not in PRECISIONS:
        raise UnknownNameError("precision", settings.precision, PRECISIONS)
    if not path.is_file():
        raise UsageError(f"cannot read {path}: no such file")
    engine = settings.engine
    if engine == "auto":
        engine = "openvino" if find_spec("openvino") else "onnxruntime"
    open_file = {"openvino": _openvino, "onnxruntime": _onnxruntime}[engine]
    threads = _cores()
    run, name = open_file(path, settings.precision, input_size, threads)
    samples = _time(run, settings.warm_up, settings.runs)
    return HostReport(
        engine=name,
        machine=f"{processor()}, {threads} thread{'s' if threads > 1 else ''}",
        latency_ms=statistics.median(samples),
        least_ms=min(samples),
        most_ms=max(samples),
        runs=len(samples),
    )


def _time(run: Callable[[], Any], warm_up: int, runs: int) -> list[float]:
    for _ in range(warm_up):
        run()
    start = time.perf_counter()
    run()
    each = time.perf_counter() - start
    together = max(1, round(SHORTEST_SAMPLE / max(each, 1e-7)))
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(together):
            run()
        samples.append(1e3 * (time.perf_counter() - start) / together)
    return samples


Opened = tuple[Callable[[], Any], str]


def _openvino(path: Path, precision: str, size: Sequence[int] | None, threads: int) -> Opened:
    openvino = import_openvino()

    core = openvino.Core()
    try:
        with quiet():
            model = core.read_model(path)
    except RuntimeError as error:
        raise UsageError(f"{path}: not a network that OpenVINO reads: {_first(error)}") from error
    if len(model.inputs) != 1:
        raise UsageError(f"{path}: {len(model.inputs)} inputs; one is accepted")
    given = model.input(0).get_partial_shape()
    shape = _fixed([d.get_length() if d.is_static else -1 for d in given], size, path)
    element = np.dtype(model.input(0).get_element_type().to_dtype())
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        model.reshape(shape)
        request = core.compile_model(model, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise CollapsibleError(f"{path}: OpenVINO cannot run it: {_first(error)}") from error
    data = _random(shape, element)
    name = f"openvino {openvino.__version__.partition('-')[0]} {precision}"
    return lambda: request.infer([data], share_inputs=True), name


def _onnxruntime(path: Path, precision: str, size: Sequence[int] | None, threads: int) -> Opened:
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("measuring with onnxruntime", "onnxruntime", "onnxruntime")
    if precision != "fp32":
        raise UsageError(f"onnxruntime runs fp32 here, not {precision}; openvino runs both")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        with quiet():
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
    # onnxruntime's own exception types are not public.
    except Exception as error:
        raise UsageError(f"{path}: not a network that onnxruntime runs: {_first(error)}") from error
    if len(session.get_inputs()) != 1:
        raise UsageError(f"{path}: {len(session.get_inputs())} inputs; one is accepted")
    port = session.get_inputs()[0]
    shape = _fixed([d if isinstance(d, int) else -1 for d in port.shape], size, path)
    elements = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    if port.type not in elements:
        raise UsageError(f"{path}: input of {port.type}; {', '.join(elements)} are accepted")
    feed = {port.name: _random(shape, np.dtype(elements[port.type]))}
    return lambda: session.run(None, feed), f"onnxruntime {onnxruntime.__version__} fp32"


def _fixed(shape: list[int], size: Sequence[int] | None, path: Path) -> list[int]:
    """The shape to run: the file's, where it leaves sides open the given size's."""
    if size is not None:
        agree = len(size) == len(shape) and all(
            side in (-1, given) for side, given in zip(shape, size, strict=True)
        )
        if not agree:
            raise UsageError(f"{path}: input_size={tuple(size)}, but the file takes {shape}")
        return list(size)
    if any(side < 1 for side in shape):
        raise UsageError(f"{path}: dynamic shapes (input {shape}): give an input size")
    return shape


def _random(shape: Sequence[int], element: np.dtype[Any]) -> np.ndarray:
    random = np.random.default_rng(0)
    if element.kind == "f":
        return random.random(shape, dtype=np.float32).astype(element)
    limits = np.iinfo(element)
    return random.integers(limits.min, limits.max, shape, element, endpoint=True)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name as its maker gives it, or the kind of machine."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
