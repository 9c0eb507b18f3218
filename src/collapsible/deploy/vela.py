"""Compile for Arm Ethos-U with Vela, Arm's open compiler, and read what it reports.

Vela runs in a process of its own: it is native code, and a fault in it must not be one of ours.
Results are kept by the network's bytes, the target and Vela's version, so that asking again
costs nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from collapsible.costs.targets import Target, VelaSettings, find_target
from collapsible.deploy.cache import cache_folder, unwritable
from collapsible.deploy.tflite_file import NPU_OPERATOR, check_tflite, read_tflite
from collapsible.errors import CollapsibleError, UsageError, require_packages
from collapsible.imaging import atomic_write

# Raise when what is kept changes its layout.
CACHE_VERSION = 1
KIB = 1024
# Far more than the largest network takes; a compiler that hangs must not hang us.
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class VelaLayer:
    """One operator on the NPU as Vela estimates it.

    ``operator`` is the TFLite operator it came from, ``npu_operator`` what it became. ``cycles``
    are all it takes; ``npu_cycles``, ``sram_cycles``, ``dram_cycles`` and ``flash_cycles`` those
    of the array and of each memory, which overlap. ``utilisation`` (0 to 1) is the share of
    multipliers at work. A fused operator has no cycles of its own.
    """

    name: str
    operator: str
    npu_operator: str
    cycles: int
    npu_cycles: int
    sram_cycles: int
    dram_cycles: int
    flash_cycles: int
    macs: int
    utilisation: float


@dataclass(frozen=True)
class CpuOperator:
    """An operator that Vela left to the CPU: its TFLite name, its output, Vela's reason."""

    operator: str
    output: str
    reason: str


@dataclass(frozen=True)
class VelaReport:
    """What Vela compiled and estimates for one inference; all figures are Vela's.

    ``latency_ms``, ``fps`` and ``cycles`` are of the NPU alone: where ``cpu_operators`` is not
    empty the CPU's time comes on top, and ``fps`` says nothing about the whole. They are 0 where
    nothing runs on the NPU. ``sram_bytes``, ``dram_bytes`` and ``flash_bytes`` are memory in use,
    ``sram_traffic``, ``dram_traffic`` and ``flash_traffic`` bytes moved. ``macs`` counts
    activations and copies as Vela does. ``utilisation`` (0 to 1) is ``macs`` over what the array
    could do in ``cycles``.
    """

    compiled: Path
    target: str
    version: str
    latency_ms: float
    fps: float
    cycles: int
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    sram_traffic: int
    dram_traffic: int
    flash_traffic: int
    macs: int
    utilisation: float
    layers: tuple[VelaLayer, ...]
    cpu: tuple[CpuOperator, ...]

    @property
    def cpu_operators(self) -> tuple[str, ...]:
        """TFLite names of the operators that fell off the NPU, each once."""
        return tuple(dict.fromkeys(operator.operator for operator in self.cpu))

    @property
    def flash(self) -> int:
        """``flash_bytes``."""
        return self.flash_bytes

    def json(self) -> str:
        """The report as a JSON object."""
        facts = {**asdict(self), "cpu_operators": self.cpu_operators}
        return json.dumps(facts, indent=2, default=str)


def vela_version() -> str:
    """The installed version of Vela. Raises ``MissingExtraError`` where it is not installed."""
    require_packages("estimates for Ethos-U", "ethosu", extra="edge")
    from importlib.metadata import version

    return version("ethos-u-vela")


def compile_vela(
    tflite: str | Path,
    target: Target | str,
    out_folder: str | Path | None = None,
    *,
    cache: str | Path | bool = True,
) -> VelaReport:
    """Compile an int8 TFLite file for an Ethos-U target and report Vela's estimate.

    ``out_folder`` receives ``NAME_vela.tflite``, whole or not at all; without it the compiled
    file stays in the cache. ``cache`` is True (``$COLLAPSIBLE_CACHE`` or the user's cache
    folder), another folder, or False for none (which needs ``out_folder``).
    Raises ``UsageError`` for a target that is not one of Vela's, a file that is not TFLite or has
    dynamic shapes; ``MissingExtraError`` without ethos-u-vela; ``CollapsibleError`` where Vela
    fails or leaves nothing readable.
    """
    target, tflite = find_target(target), Path(tflite)
    if target.vela is None:
        raise UsageError(f"target {target.name} is not compiled for: Vela knows Ethos-U alone")
    if not cache and out_folder is None:
        raise UsageError("without a cache the compiled file needs an out_folder")
    version = vela_version()
    data = check_tflite(tflite)
    for shape in read_tflite(tflite).inputs:
        if any(side < 1 for side in shape):
            raise UsageError(
                f"{tflite}: dynamic shapes (input {list(shape)}): export it for one input size"
            )
    if cache:
        base = cache_folder() if cache is True else Path(cache)
        made = _cached(data, target, version, base, tflite.name)
    else:
        folder = Path(out_folder or ".")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vela-", dir=folder) as draft:
            _run_vela(data, target.vela, Path(draft), tflite.name)
            return _into(_read(Path(draft), target, version), folder, tflite.stem)
    return made if out_folder is None else _into(made, Path(out_folder), tflite.stem)


def _cached(data: bytes, target: Target, version: str, base: Path, name: str) -> VelaReport:
    assert target.vela is not None
    # The settings' file may be the user's own, whose text counts, not its name.
    config = Path(target.vela.config)
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    key = hashlib.sha256(
        json.dumps([CACHE_VERSION, version, asdict(target.vela), text]).encode()
        + hashlib.sha256(data).digest()
    ).hexdigest()[:32]
    folder = base / f"vela-{key}"
    if folder.is_dir():
        try:
            return _read(folder, target, version)
        except CollapsibleError:
            # Damaged since: made again.
            shutil.rmtree(folder, ignore_errors=True)
    try:
        base.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".vela-", dir=base))
    except OSError as error:
        raise unwritable(base, error) from error
    try:
        _run_vela(data, target.vela, draft, name)
        _read(draft, target, version)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was first with the same result.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _read(folder, target, version)


def _into(report: VelaReport, folder: Path, stem: str) -> VelaReport:
    from dataclasses import replace

    folder.mkdir(parents=True, exist_ok=True)
    compiled = folder / f"{stem}_vela.tflite"
    with atomic_write(compiled) as stream:
        stream.write(report.compiled.read_bytes())
    return replace(report, compiled=compiled)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


Runner = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]


def _run_vela(data: bytes, settings: VelaSettings, folder: Path, name: str) -> None:
    """Leave ``network_vela.tflite``, Vela's two CSV files and what it said in ``folder``."""
    (folder / "network.tflite").write_bytes(data)
    config = settings.config
    if Path(config).is_file():
        config = str(Path(config).resolve())
    command = [
        *(sys.executable, "-m", "ethosu.vela", "network.tflite", "--output-dir", "."),
        *("--accelerator-config", settings.accelerator, "--config", config),
        *("--system-config", settings.system_config, "--memory-mode", settings.memory_mode),
        "--verbose-performance",
    ]
    if settings.arena_cache_size is not None:
        command += ["--arena-cache-size", str(settings.arena_cache_size)]
    try:
        done = _run(command, folder)
    except subprocess.TimeoutExpired as error:
        raise CollapsibleError(f"{name}: Vela did not end in {TIMEOUT_SECONDS} s") from error
    except OSError as error:
        raise CollapsibleError(f"{name}: Vela does not start: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout or "").splitlines() if line.strip()]
        raise CollapsibleError(
            f"{name}: Vela failed (exit code {done.returncode}): "
            f"{said[-1].strip() if said else 'it said nothing'}"
        )
    (folder / "log.txt").write_text(done.stdout, encoding="utf-8")
    (folder / "network.tflite").unlink()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _read(folder: Path, target: Target, version: str) -> VelaReport:
    """The report from a folder that Vela has written. ``CollapsibleError`` where it is broken."""
    compiled = folder / "network_vela.tflite"
    summaries = list(folder.glob("network_summary_*.csv"))
    layers = folder / "network_per-layer.csv"
    missing = [
        what
        for what, there in (
            ("the compiled network", compiled.is_file()),
            ("the summary", len(summaries) == 1),
        )
        if not there
    ]
    if missing:
        raise CollapsibleError(f"Vela {version} left without {' and '.join(missing)}")
    try:
        (row,) = _rows(summaries[0])
        log = folder / "log.txt"
        said = log.read_text(encoding="utf-8") if log.is_file() else ""
        return _report(
            row,
            # Where nothing runs on the NPU there is no file of layers.
            _rows(layers) if layers.is_file() else [],
            compiled,
            _reasons(said),
            target,
            version,
        )
    except (KeyError, ValueError, TypeError, OSError, csv.Error, UsageError) as error:
        raise CollapsibleError(f"Vela {version} left a broken report: {error!r}") from error


def _report(
    row: dict[str, str],
    layers: list[dict[str, str]],
    compiled: Path,
    reasons: dict[str, str],
    target: Target,
    version: str,
) -> VelaReport:
    clock = float(row["core_clock"])
    if target.clock_hz is not None and not math.isclose(clock, target.clock_hz):
        raise ValueError(f"it estimates for {clock:g} Hz, {target.name} says {target.clock_hz:g}")
    cycles, macs = int(row["cycles_total"]), int(row["nn_macs"])
    seconds = float(row["inference_time"])
    peak = (target.macs_per_cycle or 0) * cycles
    # Memory is in KiB, traffic in bytes.
    used = {
        place: round(float(row[f"{place}_memory_used"]) * KIB)
        for place in ("sram", "dram", "on_chip_flash", "off_chip_flash")
    }
    moved = {place: int(float(row[f"{place}_total_bytes"])) for place in used}
    return VelaReport(
        compiled=compiled,
        target=target.name,
        version=version,
        latency_ms=1e3 * seconds,
        fps=1 / seconds if seconds > 0 else 0.0,
        cycles=cycles,
        sram_bytes=used["sram"],
        dram_bytes=used["dram"],
        flash_bytes=used["on_chip_flash"] + used["off_chip_flash"],
        sram_traffic=moved["sram"],
        dram_traffic=moved["dram"],
        flash_traffic=moved["on_chip_flash"] + moved["off_chip_flash"],
        macs=macs,
        utilisation=macs / peak if peak else 0.0,
        layers=tuple(map(_layer, (line for line in layers if line["Target"] == "NPU"))),
        cpu=tuple(
            CpuOperator(op.operator, op.output, reasons.get(op.output, ""))
            for op in read_tflite(compiled).operators
            if op.operator != NPU_OPERATOR
        ),
    )


def _layer(line: dict[str, str]) -> VelaLayer:
    return VelaLayer(
        name=line["Name"].strip(),
        operator=line["Original Operator"],
        npu_operator=line["NNG Operator"],
        cycles=int(line["Op Cycles"]),
        npu_cycles=int(line["NPU"]),
        sram_cycles=int(line["SRAM AC"]),
        dram_cycles=int(line["DRAM AC"]),
        flash_cycles=int(line["OnFlash AC"]) + int(line["OffFlash AC"]),
        macs=int(line["MAC Count"]),
        utilisation=float(line["Util% (MAC)"]) / 100 if int(line["Op Cycles"]) else 0.0,
    )


_WARNING = re.compile(r"operator: \w+, ofm: '([^\n]*)'\s*\n\s*Reason: ([^\n]+)")


def _reasons(said: str) -> dict[str, str]:
    """Vela's reasons for leaving operators to the CPU, by the name of their output."""
    return {match[1]: match[2].strip() for match in _WARNING.finditer(said)}
