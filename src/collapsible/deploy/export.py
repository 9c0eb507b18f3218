"""One call from a network to files for other runtimes, each run again and compared with torch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from collapsible.costs import cost
from collapsible.costs.targets import Target, find_target
from collapsible.deploy.given import (
    Array,
    InputSize,
    check_calibration,
    check_size,
    prepare,
    run_torch,
)
from collapsible.deploy.legalise import LegaliseReport, legalise
from collapsible.deploy.litert import operators, run_litert, save_litert
from collapsible.deploy.onnx_files import onnx_operators, run_onnx, save_onnx
from collapsible.deploy.vela import VelaReport, compile_vela
from collapsible.deploy.verify import (
    Reference,
    Run,
    RuntimeCheck,
    Samples,
    compare,
    enlargement,
    refer,
)
from collapsible.errors import CollapsibleError, ExportError, UsageError
from collapsible.folding import CollapseReport, collapse
from collapsible.imaging import atomic_write

FORMATS = {".onnx": "ONNX", ".tflite": "LiteRT"}
# A float32 file farther from torch than this (relative) is another network, not rounding.
BROKEN = 1e-3
# Enough to see a fault; quality is measured on whatever the caller gives.
COMPARED = 8
# What an int8 file with operators that the quantiser does not know is called.
FLOAT_NOTE = "not int8 throughout: {} DEQUANTIZE, so operators without an int8 form stay in float"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the torch network.

    ``precision`` is ``"fp32"`` or ``"int8"``; ``operators`` counts the file's own. ``checks`` are
    measured, one a runtime, on ``compared_on``; they compare with the network as it was given,
    in evaluation mode and float32. ``overlap`` is by how many input pixels tiles of this size must
    overlap on each side (the radius of the receptive field), None where the network has none.
    With a target, the network is in operators that it runs (``legalised``), ``path`` is the int8
    file that LiteRT runs anywhere, ``compiled`` the one for the target and ``vela`` what its
    compiler estimates. ``notes`` say what a reader must know.
    """

    path: Path
    format: str
    precision: str
    input_size: InputSize
    output_size: tuple[int, ...]
    bytes: int
    operators: dict[str, int]
    calibration: int
    compared_on: str
    checks: tuple[RuntimeCheck, ...]
    overlap: int | None = None
    collapsed: CollapseReport | None = None
    target: str | None = None
    compiled: Path | None = None
    legalised: LegaliseReport | None = None
    vela: VelaReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def cpu_operators(self) -> tuple[str, ...]:
        """Operators that the target's NPU leaves to its CPU, each once."""
        return self.vela.cpu_operators if self.vela else ()

    @property
    def fps(self) -> float | None:
        """Frames a second on the target by Vela's estimate; None if an operator falls off it."""
        return self.vela.fps if self.vela and not self.vela.cpu_operators else None

    def json(self) -> str:
        """The report as a JSON object."""
        facts: dict[str, Any] = asdict(self)
        for record, check in zip(facts["checks"], self.checks, strict=True):
            record["change"] = check.change
        if self.collapsed is not None:
            facts["collapsed"] = json.loads(self.collapsed.json())
        facts |= {"fps": self.fps, "cpu_operators": self.cpu_operators}
        return json.dumps(facts, indent=2, default=str)

    def table(self) -> str:
        """The report as lines of text for people."""
        counts = ", ".join(f"{name} {number}" for name, number in self.operators.items())
        what = f"{self.format} {self.precision}, {self.bytes:,} bytes"
        lines = [
            f"file                {self.path} ({what})",
            f"input, output       {_shape(self.input_size)} -> {_shape(self.output_size)}",
            f"operators           {counts}",
        ]
        if self.collapsed is not None:
            before, after = self.collapsed.layers_before, self.collapsed.layers_after
            lines.append(f"collapsed           {before:,} -> {after:,} layers")
        if self.overlap is not None:
            lines.append(f"tiles overlap by    {self.overlap} input pixels on each side")
        if self.calibration:
            lines.append(f"calibrated on       {self.calibration} pictures")
        lines.append(f"beside torch        measured on {self.compared_on}")
        lines += [f"  {_check_line(check)}" for check in self.checks]
        if self.legalised is not None:
            forms = self.legalised
            lines.append(f"legalised           tail {forms.tail}, bend {forms.bend}")
        if self.vela is not None:
            lines.append(f"compiled            {self.compiled} for {self.target}")
            if self.fps is None:
                names = ", ".join(self.cpu_operators) or "everything"
                lines.append(f"  not on the NPU: {names}; so no frames a second")
            else:
                lines.append(
                    f"  {self.fps:,.1f} frames a second, {self.vela.latency_ms:.3f} ms "
                    f"(estimated by Vela {self.vela.version})"
                )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def export(
    network: nn.Module,
    path: Path | str,
    *,
    input_size: Sequence[int],
    int8: Sequence[Array] | None = None,
    target: Target | str | None = None,
    pictures: Sequence[Array] | None = None,
    truth: Sequence[Array] | None = None,
    labels: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Collapse a network, write it for another runtime, run the file and compare.

    ``path`` ends with ``.onnx`` or ``.tflite`` (channels-last). ``input_size`` is (batch, channels,
    height, width) of the one size the file takes: a whole frame, or a tile of one. ``int8`` are
    calibration inputs (float32 [C, H, W] or [N, C, H, W] as the network takes them); with them the
    file computes in int8. ``target`` is an Ethos-U: then the network is legalised for it,
    and ``path`` (``.tflite``, int8) is compiled too, to ``NAME_vela.tflite`` beside it.

    The file is run by every runtime of its format (ONNX Runtime and OpenVINO; LiteRT) and compared
    with the network on ``pictures`` (inputs [C, H, W]; for networks that enlarge, of any size),
    or else on the calibration inputs, or else on random ones. With ``truth`` (the enlarged
    pictures [C, s H, s W] in [0, 1]) PSNR is measured by the field's protocol, with ``labels``
    (class indices) top-1. ``progress`` is called with a line at each stage.

    All files are written whole, and only after the comparison. Raises ``UsageError`` for what does
    not fit together, ``MissingExtraError`` for a runtime or converter that is not installed, and
    ``ExportError`` where conversion fails or an fp32 file is not the same map as the network.
    """
    path = Path(path)
    size = check_size(input_size)
    kind, chip = _check_wanted(path, int8, target)
    say = progress or (lambda _: None)
    calibration = None if int8 is None else check_calibration(int8, size)
    given, output = prepare(network, size)
    say("collapsing")
    ready, folded, notes = _collapse(given, size)
    overlap = _radius(ready, size) if enlargement(size, output) else None
    samples = _samples(pictures, truth, labels, calibration, size, overlap)
    reference = refer(lambda part: run_torch(given, part), samples, size, output)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, path.name)
        legal = None
        if chip is not None:
            say("legalising")
            ready, legal = legalise(ready, chip, input_size=size)
        say("converting")
        save = save_onnx if kind == ".onnx" else save_litert
        save(ready, draft, size, calibration=calibration)
        say("comparing")
        checks = tuple(_compare(draft, reference, size[0]))
        if calibration is None:
            _reject_broken(checks)
        vela = None
        if chip is not None:
            say("compiling")
            vela = compile_vela(draft, chip, Path(folder))
            compiled = path.with_name(vela.compiled.name)
            _copy(vela.compiled, compiled)
            vela = replace(vela, compiled=compiled)
        names = (onnx_operators if kind == ".onnx" else operators)(draft)
        if calibration is not None and kind == ".tflite" and "DEQUANTIZE" in names:
            notes += (FLOAT_NOTE.format(names.count("DEQUANTIZE")),)
        _copy(draft, path)
    return ExportReport(
        path=path,
        format=FORMATS[kind],
        precision="fp32" if calibration is None else "int8",
        input_size=size,
        output_size=tuple(output.shape),
        bytes=path.stat().st_size,
        operators={name: names.count(name) for name in dict.fromkeys(names)},
        calibration=0 if calibration is None else _count(int8 or ()),
        compared_on=samples.described,
        checks=checks,
        overlap=overlap,
        collapsed=folded,
        target=chip.name if chip else None,
        compiled=vela.compiled if vela else None,
        legalised=legal,
        vela=vela,
        notes=notes,
    )


def _check_wanted(
    path: Path, int8: object, target: Target | str | None
) -> tuple[str, Target | None]:
    """The suffix and the target, if they go together and the file can be written."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path}: a name that ends with {' or '.join(FORMATS)} is accepted")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a file name is accepted")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if target is None:
        return kind, None
    chip = find_target(target)
    if chip.vela is None:
        raise UsageError(f"target {chip.name}: nothing is compiled for it; an Ethos-U is accepted")
    if kind != ".tflite":
        raise UsageError(f"{path}: {chip.name} takes .tflite files")
    if int8 is None:
        raise UsageError(f"{chip.name} computes in int8 alone: give calibration pictures (int8)")
    return kind, chip


def _collapse(
    network: nn.Module, size: InputSize
) -> tuple[nn.Module, CollapseReport | None, tuple[str, ...]]:
    """The collapsed network; where there is none, the network itself and the reason."""
    probe = torch.rand(size, generator=torch.Generator().manual_seed(0))
    try:
        narrow, report = collapse(network, probe=probe)
    except CollapsibleError as error:
        return network, None, (f"not collapsed: {error}",)
    return narrow.float().eval(), report, ()


def _radius(network: nn.Module, size: InputSize) -> int | None:
    """By how many input pixels an output looks to its sides, None if everywhere or unknown."""
    try:
        field = cost(network, size).receptive_field
    except CollapsibleError:
        return None
    return None if field is None else max(*field.before, *field.after)


def _samples(
    pictures: Sequence[Array] | None,
    truth: Sequence[Array] | None,
    labels: Sequence[int] | None,
    calibration: list[Array] | None,
    size: InputSize,
    overlap: int | None,
) -> Samples:
    if pictures is None and (truth is not None or labels is not None):
        raise UsageError("truth and labels are of pictures: give pictures too")
    if pictures is not None:
        if overlap is None and any(list(p.shape) != list(size[1:]) for p in pictures):
            raise UsageError(f"pictures of {list(size[1:])} are accepted")
        described = f"{len(pictures)} given pictures"
        return Samples(pictures, truth, labels, described, overlap or 0)
    if calibration is not None:
        inputs = [picture for stack in calibration for picture in stack][:COMPARED]
        return Samples(inputs, described=f"{len(inputs)} of the calibration pictures")
    inputs = list(np.random.default_rng(0).random((2, *size[1:]), dtype=np.float32))
    return Samples(inputs, described="2 random inputs in [0, 1)")


def _compare(draft: Path, reference: Reference, batch: int) -> list[RuntimeCheck]:
    runs: dict[str, Run]
    if draft.suffix.lower() == ".onnx":
        runs = {
            "ONNX Runtime": lambda part: run_onnx(draft, part, "onnxruntime"),
            "OpenVINO": lambda part: run_onnx(draft, part, "openvino"),
        }
    else:
        runs = {"LiteRT": lambda part: run_litert(draft, part)}
    return [compare(name, run, reference, batch) for name, run in runs.items()]


def _reject_broken(checks: Sequence[RuntimeCheck]) -> None:
    for check in checks:
        if not check.relative_error < BROKEN:
            raise ExportError(
                f"{check.runtime} differs from the torch network by {check.relative_error:.1e} "
                "(relative): the file is another network, so it is not written"
            )


def _copy(source: Path, path: Path) -> None:
    with atomic_write(path) as stream:
        stream.write(source.read_bytes())


def _count(calibration: Sequence[Array]) -> int:
    return sum(len(array) if array.ndim == 4 else 1 for array in calibration)


def _shape(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _check_line(check: RuntimeCheck) -> str:
    line = (
        f"{check.runtime}: max error {check.max_error:.2e}, rms {check.rms_error:.2e}, "
        f"relative {check.relative_error:.2e} (outputs reach {check.output_range:.3g})"
    )
    if check.torch is None or check.file is None or check.change is None:
        return line
    if check.measure == "psnr":
        return f"{line}; PSNR {check.torch:.3f} -> {check.file:.3f} dB ({check.change:+.3f})"
    return f"{line}; top-1 {check.torch:.2%} -> {check.file:.2%} ({check.change:+.2%})"
