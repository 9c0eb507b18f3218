"""Super-resolution in front of a classifier on micro-NPUs: stages, and end to end.

Both networks run one after the other on the same NPU: their times add, the larger memory counts.
JPEG and wavelet denoising come before, on the CPU, the same for every network; they are not in it.
The paper's figures for this are not at hand; its claim is 'nearly 3 times' a baseline, taken here
as SESR-M2 over FSRCNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from collapsible.errors import CollapsibleError
from collapsible.reproduce.drawn import draw_network
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

if TYPE_CHECKING:
    from torch import nn

    from collapsible.costs.targets import Target
    from collapsible.deploy.estimate_report import EstimateReport

PAPER = "Super-resolution as a defence (arXiv 2112.14340), end to end on an Ethos-U55"
SCALE = 2
SIZES = (112, 299)
TARGETS = ("ethos-u55-256", "ethos-u55-128", "ethos-u65-256")
# Where weights lie decides how long the classifier takes, and so what the enlarger matters.
IN_SRAM = ("ethos-u55-256", "ethos-u55-256, weights in SRAM too")
CLASSIFIER = "timm:mobilenetv2_100"
CLAIM = 2.9
MIB = 2**20
# More SRAM than the targets have, to tell what a classifier that does not fit would take.
LARGE_SRAM = 16 * MIB


@dataclass(frozen=True)
class Enlarger:
    """A network that enlarges: weights and G MACs (299 to 598) as published, where they are.

    ``stuffed`` runs FSRCNN's deconvolution as the NPU runs one: over its input stuffed with zeros.
    """

    name: str
    model: str
    published: tuple[int, float] | None = None
    stuffed: bool = False
    act: str = "relu"
    input_residual: bool = False


STUFFED = Enlarger("FSRCNN", "fsrcnn", (24_336, 5.83), stuffed=True)
SUB_PIXEL = Enlarger("FSRCNN, sub-pixel", "fsrcnn")
M2 = Enlarger("SESR-M2", "sesr_m2", (10_608, 0.948))
ENLARGERS = (
    STUFFED,
    SUB_PIXEL,
    M2,
    Enlarger("SESR-M3", "sesr_m3", (12_912, 1.154)),
    Enlarger("SESR-M5", "sesr_m5", (17_520, 1.566)),
    Enlarger("SESR-M7", "sesr_m7"),
    # As trained for pictures rather than for an NPU.
    Enlarger("SESR-M2, PReLU, input residual", "sesr_m2", None, False, "prelu", True),
)
SMALL = (STUFFED, SUB_PIXEL, M2)
COUNTS = (
    Column("weights", "weights", ",.0f"),
    Column("published_weights", "published", ",.0f"),
    Column("gmacs", "G MACs", ".3f"),
    Column("stuffed_gmacs", "zeros too", ".3f"),
    Column("published_gmacs", "published", ".3f"),
)
STAGES = (
    Column("enlarge_ms", "enlarge ms", ".2f"),
    Column("classify_ms", "classify ms", ".2f"),
    Column("fps", "frames/s", ".1f"),
    Column("over_fsrcnn", "over FSRCNN", ".2f"),
    Column("over_sub_pixel", "over sub-pixel", ".2f"),
    Column("stage_over_fsrcnn", "enlarging alone", ".2f"),
    Column("sram_mib", "SRAM MiB", ".2f"),
    Column("tiles", "tiles", "d"),
    Column("cpu_operators", "on the CPU", ""),
)


def npu(request: Request) -> Reproduction:
    """Both stages on each target; the small form takes 112 pixels, one NPU, three networks."""
    from collapsible.costs.targets import assume, find_target

    small = not request.full
    sizes = SIZES[:1] if small else SIZES
    targets = [find_target(name) for name in (TARGETS[:1] if small else TARGETS)]
    enlargers = SMALL if small else ENLARGERS
    goals = [(target, enlargers) for target in targets]
    base, name = IN_SRAM
    more = {"memory_mode": "Sram_Only", "sram_bytes": LARGE_SRAM}
    goals.append((assume(base, name=name, **more), SMALL))
    total = len(sizes) * sum(1 + len(chosen) for _, chosen in goals)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        request.on_progress(done, total, what)

    notes: list[str] = []
    sections = [_counts(enlargers)]
    gains: dict[str, Row] = {}
    off: set[str] = set()
    for size in sizes:
        for target, chosen in goals:
            where = f"{size} to {SCALE * size}, {target.name}"
            classifier = _classify(SCALE * size, target, notes)
            if classifier is not None and not classifier.fits:
                chip = assume(target, sram_bytes=LARGE_SRAM, arena_cache_size=LARGE_SRAM)
                larger = _classify(SCALE * size, chip, notes)
                if larger is not None and larger.fits:
                    classifier = larger
                    notes.append(
                        f"{where}: the classifier does not fit and cannot be cut into tiles. Its "
                        f"figures are of a chip with {(larger.sram_bytes or 0) / MIB:.1f} MiB of "
                        "SRAM in place of "
                        f"{(target.sram_bytes or 0) / MIB:g}; the enlarger keeps to the latter."
                    )
            step(f"MobileNetV2, {where}")
            rows = _rows(chosen, size, target, classifier, notes, step)
            sections.append(Section(where, STAGES, rows))
            off |= {f"{row.name}, {where}" for row in rows if row.values.get("cpu_operators")}
            gains[where] = next(row for row in rows if row.name == M2.name)
    if small:
        notes.append("--full: 299 pixels too, three targets, seven networks (many minutes).")
    notes += [
        "End to end: both networks one after the other on one NPU; SRAM is the larger of the two. "
        "Requantising between them is taken to be free: the enlarged picture's int8 scale is made "
        "the classifier's. JPEG and wavelet denoising on the CPU are not in it.",
        "ReLU and no input residual but where said; weights newly drawn, random pictures. "
        "FSRCNN: its 9x9 deconvolution over an input stuffed with zeros, as the NPU has it; "
        "sub-pixel: the same as a 5x5 convolution to phases and depth to space. Both are exact.",
        *(f"{target.name}: {text}" for target in targets for text in target.assumptions),
    ]
    return Reproduction(
        "defence/npu",
        "super-resolution and MobileNetV2 on micro-NPUs, int8",
        PAPER,
        request.form,
        tuple(sections),
        (*_checks(sections[0], gains), _legal(off)),
        tuple(notes),
        {"sizes": list(sizes), "scale": SCALE, "precision": "int8", "claim": CLAIM},
    )


def build(enlarger: Enlarger) -> nn.Module:
    """The network on RGB, newly drawn, as it is deployed."""
    options: dict[str, Any] = {"scale": SCALE, "colour": "rgb", "act": enlarger.act}
    if enlarger.model != "fsrcnn":
        options["input_residual"] = enlarger.input_residual
    network = draw_network(enlarger.model, **options)
    return stuff(network) if enlarger.stuffed else network


def stuff(network: nn.Module) -> nn.Module:
    """FSRCNN with its deconvolution unpadded and its result cropped: the same picture.

    Neither converter nor compiler takes the padding beyond the last row that the deconvolution of
    torch has; without it the NPU runs the layer as one operator.
    """
    import torch
    from torch import nn

    from collapsible.models.fsrcnn import FSRCNN

    assert isinstance(network, FSRCNN)
    given = network.deconv

    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.ConvTranspose2d(given.in_channels, given.out_channels, 9, stride=SCALE)
            self.whole.load_state_dict(given.state_dict())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = (SCALE * side for side in x.shape[-2:])
            pad = int(given.padding[0])
            return self.whole(x)[..., pad : pad + height, pad : pad + width]

    return nn.Sequential(network.body, Cropped()).eval()


def _counts(enlargers: tuple[Enlarger, ...]) -> Section:
    from collapsible.blocks import CollapsibleConv2d
    from collapsible.costs import cost
    from collapsible.folding import collapse

    rows = []
    for enlarger in enlargers:
        if enlarger.input_residual or enlarger is SUB_PIXEL:
            continue
        network = build(Enlarger(enlarger.name, enlarger.model))
        if any(isinstance(module, CollapsibleConv2d) for module in network.modules()):
            network, _ = collapse(network)
        report = cost(network, (1, 3, SIZES[-1], SIZES[-1]))
        macs = report.macs
        if enlarger.stuffed:
            # Products with the zeros too: every output meets every tap.
            deconv = sum(layer.macs for layer in report.layers if "deconv" in layer.name)
            macs += deconv * (SCALE**2 - 1)
        told = enlarger.published
        rows.append(
            Row(
                enlarger.name,
                "measured",
                "counted by collapsible cost; published beside",
                {
                    "weights": report.convolution_weights,
                    "published_weights": told[0] if told else None,
                    "macs": report.macs,
                    "gmacs": report.macs / 1e9,
                    "stuffed_macs": macs,
                    "stuffed_gmacs": macs / 1e9,
                    "published_gmacs": told[1] if told else None,
                },
            )
        )
    return Section("Counts, RGB, 299 to 598", COUNTS, tuple(rows))


def _classify(side: int, target: Target, notes: list[str]) -> EstimateReport | None:
    from collapsible.deploy.estimate import estimate
    from collapsible.deploy.npu import to_tflite
    from collapsible.folding import collapse

    try:
        network, _ = collapse(draw_network(CLASSIFIER))
        return estimate(to_tflite(network, (1, 3, side, side)), target)
    except CollapsibleError as error:
        notes.append(f"MobileNetV2 at {side} on {target.name}: {' '.join(str(error).split())}")
        return None


def _enlarge(
    enlarger: Enlarger, side: int, target: Target, notes: list[str]
) -> EstimateReport | None:
    """The enlarger in its cheapest legal form; in tiles where it does not fit."""
    from collapsible.deploy.estimate import estimate
    from collapsible.deploy.legalise import legalise

    size = (1, 3, side, side)
    try:
        legal = build(enlarger)
        if not enlarger.stuffed:
            legal, _ = legalise(legal, target, input_size=size)
        report = estimate(legal, target, size)
        if not report.fits and report.suggested_tile:
            report = estimate(legal, target, size, tile=report.suggested_tile)
    except CollapsibleError as error:
        notes.append(f"{enlarger.name}, {side} on {target.name}: {' '.join(str(error).split())}")
        return None
    return report


def _rows(
    enlargers: tuple[Enlarger, ...],
    size: int,
    target: Target,
    classifier: EstimateReport | None,
    notes: list[str],
    step: Callable[[str], None],
) -> tuple[Row, ...]:
    """A row an enlarger, beside FSRCNN's in both forms. What has no frame rate has none here."""
    times: dict[str, tuple[float, float]] = {}
    rows = []
    for enlarger in enlargers:
        report = _enlarge(enlarger, size, target, notes)
        step(f"{enlarger.name}, {size} on {target.name}")
        values: dict[str, Value] = {}
        for stage, one in (("enlarge", report), ("classify", classifier)):
            if one is not None:
                values |= _stage(stage, one)
        stages = [one for one in (report, classifier) if one is not None]
        values["cpu_operators"] = ", ".join(name for one in stages for name in one.cpu_operators)
        if report is not None:
            values["tiles"] = report.tiles
            if report.tile:
                values["tile"] = "x".join(map(str, report.tile))
        if stages:
            values["sram_mib"] = max((one.sram_bytes or 0) / MIB for one in stages)
        if report and classifier and report.latency_ms and classifier.latency_ms:
            total = report.latency_ms + classifier.latency_ms
            times[enlarger.name] = (report.latency_ms, total)
            values |= {"latency_ms": total, "fps": 1e3 / total}
            for key, stage_key, base in (
                ("over_fsrcnn", "stage_over_fsrcnn", STUFFED),
                ("over_sub_pixel", "stage_over_sub_pixel", SUB_PIXEL),
            ):
                if base.name in times:
                    values[key] = times[base.name][1] / total
                    values[stage_key] = times[base.name][0] / report.latency_ms
        source = report.source.removeprefix("estimated: ") if report else f"none on {target.name}"
        rows.append(Row(enlarger.name, "estimated", source, values))
    return tuple(rows)


def _stage(name: str, report: EstimateReport) -> dict[str, Value]:
    return {
        f"{name}_ms": report.latency_ms,
        f"{name}_fps": report.fps,
        f"{name}_sram_bytes": report.sram_bytes,
        f"{name}_sram_limit": report.sram_limit,
        f"{name}_fits": str(report.fits).lower(),
        f"{name}_macs": report.macs,
        f"{name}_utilisation": report.utilisation,
    }


def _checks(counts: Section, gains: dict[str, Row]) -> tuple[Check, ...]:
    wrong = []
    for row in counts.rows:
        weights, macs = row.values["published_weights"], row.values["published_gmacs"]
        if not isinstance(weights, int) or not isinstance(macs, float):
            continue
        # Published to three digits.
        off = abs(float(row.values["stuffed_gmacs"] or 0) - macs) > 0.006
        if off or row.values["weights"] != weights:
            wrong.append(row.name)
    counted = Check(
        "weights and MACs at 299 pixels are the published ones (FSRCNN's with stuffed zeros)",
        not wrong,
        "differ: " + ", ".join(wrong) if wrong else "all",
    )

    def claim(against: str, key: str) -> Check:
        found = {where: row.values.get(key) for where, row in gains.items()}
        known = {where: float(gain) for where, gain in found.items() if isinstance(gain, float)}
        return Check(
            f"end to end SESR-M2 runs at least {CLAIM:g} times the frames of {against}",
            bool(known) and all(gain >= CLAIM for gain in known.values()),
            "; ".join(f"{gain:.2f} ({where})" for where, gain in known.items()) or "no figure",
        )

    return (
        counted,
        claim("FSRCNN, its deconvolution stuffed with zeros", "over_fsrcnn"),
        claim("FSRCNN, its deconvolution sub-pixel", "over_sub_pixel"),
    )


def _legal(off: set[str]) -> Check:
    return Check("every operator runs on the NPU", not off, "; ".join(sorted(off)) or "all")
