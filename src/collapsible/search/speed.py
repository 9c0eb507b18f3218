"""Frames a second of classifiers on this CPU, side by side in interleaved rounds.

All runners are made first; then each round runs every one of them in turn, so that what else the
machine does falls on all alike. A figure is the median of the rounds, with the least and most.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.errors import CollapsibleError, UnknownNameError, UsageError, require_packages

ENGINES = ("torch", "openvino-fp32", "openvino-bf16", "openvino-int8")
# Each RAN-i network and the ConvNeXt that the paper compares it with.
PAIRS = (
    ("ran_i_tiny", "convnext_tiny"),
    ("ran_i_small", "convnext_small"),
    ("ran_i_base", "convnext_base"),
)
# Top-1 on ImageNet-1k at 224, published: the names of the authors' checkpoints, and ConvNeXt's
# paper (arXiv 2201.03545, table 1).
PUBLISHED = {
    "ran_i_tiny": 82.03,
    "ran_i_small": 82.63,
    "ran_i_base": 83.61,
    "convnext_tiny": 82.1,
    "convnext_small": 83.1,
    "convnext_base": 83.8,
}
SHORTEST = 0.05
CALIBRATION = 4


@dataclass(frozen=True)
class Speed:
    """Pictures a second: median, least and most of the rounds; ``ratio`` to its rival's median.

    ``accuracy`` is the published top-1 in per cent, None where there is none.
    """

    network: str
    engine: str
    fps: float
    low: float
    high: float
    rival: str | None
    ratio: float | None
    accuracy: float | None


@dataclass(frozen=True)
class SpeedReport:
    """Measured on this machine with newly drawn weights; accuracies published."""

    input_size: tuple[int, ...]
    rounds: int
    threads: int
    rows: tuple[Speed, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """A line a network and engine."""
        lines = [
            f"{'network':<18}{'engine':<16}{'fps':>9}{'low':>9}{'high':>9}"
            f"{'ratio':>7}  {'to':<16}{'top-1':>6}"
        ]
        for row in self.rows:
            ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
            top = "-" if row.accuracy is None else f"{row.accuracy:.2f}"
            lines.append(
                f"{row.network:<18}{row.engine:<16}{row.fps:>9.2f}{row.low:>9.2f}{row.high:>9.2f}"
                f"{ratio:>7}  {row.rival or '-':<16}{top:>6}"
            )
        size = " x ".join(map(str, self.input_size))
        lines += [
            "",
            f"fps measured here: median of {self.rounds} interleaved rounds, input {size}, "
            f"{self.threads} threads; top-1 on ImageNet published; int8 of random pictures' ranges",
        ]
        return "\n".join(lines)


def measure_speed(
    networks: Sequence[str],
    engines: Sequence[str] = ENGINES,
    *,
    size: int = 224,
    batch: int = 1,
    rounds: int = 9,
    threads: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> SpeedReport:
    """Time networks (of timm's registry, ours included) on engines; ``threads`` 0: all cores.

    Raises ``UnknownNameError`` for unknown names, ``UsageError`` for values below 1.
    """
    require_packages("timing classifiers", "timm", extra="train")
    import timm

    import collapsible.models  # noqa: F401  (enters our networks in timm's registry)

    if min(batch, rounds) < 1 or size < 32 or threads < 0:
        raise UsageError(f"batch={batch} and rounds={rounds} from 1, size={size} from 32")
    for engine in engines:
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
    for name in networks:
        if not timm.is_model(name):
            raise UnknownNameError("network", name, timm.list_models(f"*{name[:5]}*"))
    threads = threads or os.cpu_count() or 1
    shape = (batch, 3, size, size)
    samples = sample_speed(
        {name: timm.create_model(name) for name in networks},
        engines,
        shape,
        rounds=rounds,
        threads=threads,
        tell=tell,
    )
    return SpeedReport(shape, rounds, threads, tuple(_rows(samples)))


def sample_speed(
    networks: Mapping[str, nn.Module],
    engines: Sequence[str],
    shape: tuple[int, int, int, int],
    *,
    rounds: int,
    threads: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, str], list[float]]:
    """Pictures a second in each round, by network and engine; ``shape`` is a batch's.

    ``threads`` 0: all cores.
    """
    threads = threads or os.cpu_count() or 1
    samples: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runners = {
            (name, engine): _runner(network.eval(), engine, shape, threads, Path(folder) / name)
            for name, network in networks.items()
            for engine in engines
        }
        for run in runners.values():
            run()
        for number in range(rounds):
            for key, run in runners.items():
                samples.setdefault(key, []).append(shape[0] * _frequency(run))
            if tell is not None:
                tell(number + 1, rounds)
    return samples


def _rows(samples: dict[tuple[str, str], list[float]]) -> list[Speed]:
    rivals = dict(PAIRS)
    rows = []
    for (name, engine), values in samples.items():
        rival = rivals.get(name)
        others = samples.get((rival, engine)) if rival else None
        middle = statistics.median(values)
        rows.append(
            Speed(
                name,
                engine,
                middle,
                min(values),
                max(values),
                rival if others else None,
                middle / statistics.median(others) if others else None,
                PUBLISHED.get(name),
            )
        )
    return rows


def _frequency(run: Callable[[], Any]) -> float:
    """Runs a second, over as many runs as take a moment."""
    count, start = 0, time.perf_counter()
    while True:
        run()
        count += 1
        spent = time.perf_counter() - start
        if spent >= SHORTEST:
            return count / spent


def _runner(
    network: nn.Module, engine: str, shape: tuple[int, int, int, int], threads: int, stem: Path
) -> Callable[[], Any]:
    if engine == "torch":
        return _torch(network, shape, threads)
    import numpy as np

    from collapsible.deploy.onnx_files import save_onnx
    from collapsible.upscaler.openvino_import import import_openvino

    generator = np.random.default_rng(0)
    calibration = None
    kind = engine.removeprefix("openvino-")
    if kind == "int8":
        calibration = [
            generator.standard_normal(shape).astype(np.float32) for _ in range(CALIBRATION)
        ]
    path = save_onnx(network, stem.with_suffix(f".{kind}.onnx"), shape, calibration=calibration)
    openvino = import_openvino()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise CollapsibleError(f"OpenVINO cannot run {stem.name}: {error}") from error
    data = generator.standard_normal(shape).astype(np.float32)
    return lambda: request.infer([data], share_inputs=True)


def _torch(network: nn.Module, shape: tuple[int, ...], threads: int) -> Callable[[], Any]:
    import torch

    network = network.to(memory_format=torch.channels_last)
    x = torch.randn(shape).to(memory_format=torch.channels_last)

    def run() -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return network(x)
        finally:
            torch.set_num_threads(before)

    return run
