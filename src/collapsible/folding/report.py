"""What a collapse reports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Rewritten:
    """One rewrite: its rule, the layers it replaced (paths in the network), and a remark."""

    rule: str
    names: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Left:
    """Layers left apart that a rule looked at, and the reason."""

    rule: str
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class MapError:
    """The measured difference between the two networks' outputs in one dtype on one input.

    ``relative`` is ``absolute`` over ``output_range``, the largest output. ``border`` and
    ``inside`` are the absolute error on the outer quarter of each side and on the rest of
    outputs [N, C, H, W]; None where there are none of at least four pixels.
    """

    input: str
    dtype: str
    absolute: float
    relative: float
    border: float | None
    inside: float | None
    output_range: float


@dataclass(frozen=True)
class CollapseReport:
    """What a collapse changed, and the measured error of the map.

    ``replaced`` names our own wide blocks; ``rewrites`` are the merges of other layers in order,
    ``left`` what stayed apart and why. Errors are the largest absolute difference between the two
    networks' outputs, borders included, over all inputs tried (``errors`` has each, with border
    and inside apart): ``max_error_float64`` shows the map (rounding aside it is exact),
    ``max_error_float32`` what the deployed precision does to it, and ``output_range`` the largest
    output beside which to read them: measured. Parameters count every tensor, biases and slopes
    included. Layers are the calls of convolutions, linear layers, normalisations and others with
    weights; MACs are those of convolutions and linear layers for one example of the size of
    ``probe``: counted, of the wide form before.
    """

    replaced: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    max_error_float64: float
    max_error_float32: float
    output_range: float
    probe: str
    rewrites: tuple[Rewritten, ...] = ()
    left: tuple[Left, ...] = ()
    errors: tuple[MapError, ...] = ()
    layers_before: int = 0
    layers_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    policy: str = "auto"

    @property
    def relative_error_float64(self) -> float:
        """The largest relative error in float64 over all inputs tried."""
        return max((e.relative for e in self.errors if e.dtype == "float64"), default=0.0)

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        lines = []
        if self.replaced:
            lines.append(f"blocks collapsed    {len(self.replaced)}")
        counts: dict[str, int] = {}
        for done in self.rewrites:
            counts[done.rule] = counts.get(done.rule, 0) + 1
        lines += [f"{rule:<19} {number}" for rule, number in counts.items()]
        lines += [
            f"layers              {self.layers_before:,} -> {self.layers_after:,}",
            f"parameters          {self.parameters_before:,} -> {self.parameters_after:,}",
            f"MACs (counted)      {self.macs_before:,} -> {self.macs_after:,}",
            f"max error float64   {self.max_error_float64:.2e} (measured on {self.probe})",
            f"max error float32   {self.max_error_float32:.2e} "
            f"(outputs reach {self.output_range:.3g})",
        ]
        for error in self.errors:
            if error.border is not None and error.inside is not None:
                lines.append(
                    f"  {error.dtype}, {error.input}: "
                    f"border {error.border:.2e}, inside {error.inside:.2e}"
                )
        lines += [f"left: {' + '.join(left.names)}: {left.reason}" for left in self.left]
        return "\n".join(lines)
