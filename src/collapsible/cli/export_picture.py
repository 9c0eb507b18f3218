"""``collapsible export --picture``: the graph from picture to picture that ``upscale`` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collapsible.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn


@dataclass(frozen=True)
class PictureGraphReport:
    """A written picture graph; ``psnr`` in dB on luma by the field's protocol, where asked."""

    file: str
    network: str
    scale: int
    precision: str
    bytes: int
    trained_steps: int
    data: str
    psnr: float | None
    notes: tuple[str, ...]

    def json(self) -> dict[str, object]:
        return asdict(self)

    def table(self) -> str:
        trained = f", trained {self.trained_steps} steps in int8 form" if self.trained_steps else ""
        lines = [
            f"{self.file}: {self.network} x{self.scale}, {self.precision}{trained}, "
            f"{self.bytes:,} bytes",
            "pictures uint8 RGB [1, H, W, 3] in and out: collapsible upscale PICTURE "
            f"--model {self.file} --scale {self.scale}",
        ]
        if self.psnr is not None:
            lines.append(f"{self.psnr:.3f} dB on {self.data} (measured on luma, this very file)")
        return "\n".join([*lines, *self.notes])


def export_picture(
    network: nn.Module,
    name: str,
    output: Path,
    *,
    calibration: Path | None,
    int8_steps: int,
    data: Path | None,
    notes: tuple[str, ...],
    show: Callable[..., None],
) -> PictureGraphReport:
    """Write the graph, in int8 where there is ``calibration``, and measure it on ``data``.

    ``int8_steps`` train it so on the pictures of ``calibration``; checkpoints lie beside the file,
    and training that is there is gone on with.
    """
    from collapsible.deploy import save_graph
    from collapsible.evaluation import evaluate
    from collapsible.weights import normalise_name

    if output.suffix != ".onnx":
        raise UsageError(f"{output}: a picture graph is an .onnx file")
    scale = getattr(network, "scale", None)
    if not isinstance(scale, int):
        raise UsageError(f"--picture is for super-resolution networks, and {name} is none")
    save_graph(_graph(network, normalise_name(name), output, calibration, int8_steps, show), output)
    measured = None
    if data is not None:
        report = evaluate(
            output,
            data,
            scale=scale,
            on_picture=lambda done, of: show(done, of, "measuring"),
        )
        measured = report.means["psnr"]
    return PictureGraphReport(
        str(output),
        name,
        scale,
        "fp32" if calibration is None else "int8",
        output.stat().st_size,
        int8_steps,
        str(data or ""),
        measured,
        notes,
    )


def _graph(
    network: nn.Module,
    name: str,
    output: Path,
    calibration: Path | None,
    int8_steps: int,
    show: Callable[..., None],
) -> ModelProto:
    from collapsible.deploy import build_picture_graph, quantise_picture_graph
    from collapsible.deploy.samples import read_crops

    if calibration is None:
        return build_picture_graph(network, name=name)
    show(0, 1, "calibrating")
    crops = read_crops(calibration, int(network.scale))  # type: ignore[arg-type]
    if not int8_steps:
        return quantise_picture_graph(network, crops, name=name)
    from collapsible.search.int8_pictures import train_picture_int8

    made = train_picture_int8(
        network,
        crops,
        [calibration],
        output.with_suffix(".int8"),
        steps=int8_steps,
        resume=True,
        on_step=lambda now: show(now.step, now.steps, f"training in int8, loss {now.loss:.4f}"),
    )
    return made.graph(name)
