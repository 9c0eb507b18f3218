"""SESR and FSRCNN on NPUs: the paper's simulated table, by a roofline and by Vela.

The paper's simulator is not public. The roofline target ``npu-4tops`` says what it assumes; the
claim that M5 runs six times FSRCNN's frames is tested under other assumptions too.
As in the paper's deployment PReLU became ReLU and the input residual is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from collapsible.errors import CollapsibleError
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section, Value

if TYPE_CHECKING:
    from torch import nn

    from collapsible.costs.targets import Target
    from collapsible.deploy.estimate_report import EstimateReport

PAPER = "SESR (arXiv 2103.09404), hardware results"
NETWORKS = ("fsrcnn", "sesr_m3", "sesr_m5", "sesr_m7", "sesr_m11", "sesr_xl")
HEIGHT, WIDTH = 1080, 1920
TILE = (300, 400)
ROOFLINE = "npu-4tops"
ETHOS = ("ethos-u65-512", "ethos-u85-1024")
GOALS = {2: "1080p to 4K (x2)", 4: "1080p to 8K (x4)"}
CLAIM = 6.0
# 1080p to 4K: G MACs, MB of DRAM traffic, ms, frames a second.
PUBLISHED = {
    "FSRCNN": (54.0, 564.0, 167.0, 6.0),
    "SESR-M5": (28.0, 282.0, 27.2, 36.7),
}
COLUMNS = (
    Column("gmacs", "G MACs", ".1f"),
    Column("traffic_mb", "DRAM MB", ",.0f"),
    Column("latency_ms", "ms", ".1f"),
    Column("fps", "frames/s", ".1f"),
    Column("over_fsrcnn", "over FSRCNN", ".2f"),
)


def npu(request: Request) -> Reproduction:
    """The table on the roofline target, the claim's assumptions, and Ethos-U in the full form."""
    from collapsible.costs.targets import find_target

    target = find_target(ROOFLINE)
    total = 2 * len(GOALS) * len(NETWORKS) + (len(ETHOS) * len(NETWORKS) if request.full else 0)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        request.on_progress(done, total, what)

    sections = [_published()]
    notes = [
        "ReLU for PReLU, no input residual, int8: as deployed in the paper. frames/s, ms and "
        "traffic are of the whole 1920x1080 input; tiles are of 400x300 input pixels plus the "
        "receptive field's reach.",
        "MACs of FSRCNN's deconvolution are products with inputs here; the paper's 54G counts "
        "those with stuffed zeros too.",
    ]
    ratios: dict[tuple[int, bool], float] = {}
    for scale, goal in GOALS.items():
        for tiled in (False, True):
            rows, ratio = _rows(target, scale, tiled, notes, step)
            ratios[scale, tiled] = ratio or 0.0
            how = "tiles of 400x300" if tiled else "whole frame"
            sections.append(Section(f"{goal}, {how}, {target.name}", COLUMNS, rows))
    assumed = _assumptions(target)
    sections.append(
        Section(
            "SESR-M5's frames over FSRCNN's, 1080p to 4K, whole frame unless said, by assumption",
            (
                Column("ratio", "ratio", ".2f"),
                Column("m5_fps", "M5 frames/s", ".1f"),
                Column("fsrcnn_fps", "FSRCNN frames/s", ".1f"),
            ),
            assumed,
        )
    )
    if request.full:
        for name in ETHOS:
            rows, _ = _rows(find_target(name), 2, True, notes, step)
            title = f"{GOALS[2]}, tiles of 400x300, {name}, rewritten for it"
            sections.append(Section(title, COLUMNS, rows))
    else:
        notes.append("--full adds Ethos-U65 and U85, compiled by Vela (minutes).")
    notes += [f"{target.name}: {sentence}" for sentence in _sentences(target)]
    found = ratios[2, False]
    holding = [row.name for row in assumed if float(row.values["ratio"] or 0) >= CLAIM]
    return Reproduction(
        "sesr/npu",
        "networks on NPUs: traffic, latency, frames a second",
        PAPER,
        request.form,
        tuple(sections),
        (
            Check(
                f"M5 runs at least {CLAIM:g} times FSRCNN's frames, 1080p to 4K, whole frame",
                found >= CLAIM,
                f"{found:.2f} times on {target.name} as it stands; it holds under "
                f"{len(holding)} of {len(assumed)} assumptions"
                + (f": {'; '.join(holding)}" if holding else ""),
            ),
            Check(
                "tiles of 400x300 raise that (published: to about 8 times)",
                ratios[2, True] > found,
                f"{ratios[2, True]:.2f} times, both in tiles; a map of M5's tile takes "
                f"{_tile_map_bytes() / 2**20:.1f} MiB, the SRAM has "
                f"{(target.sram_bytes or 0) / 2**20:g} MiB",
            ),
        ),
        tuple(notes),
        {"tile": list(TILE), "input": [1, 1, HEIGHT, WIDTH]},
    )


def deployed(name: str, scale: int) -> nn.Module:
    """A network as the paper deploys it: ReLU, no input residual; weights do not matter."""
    from collapsible.models import create_model

    options: dict[str, Any] = {} if name == "fsrcnn" else {"input_residual": False}
    return create_model(name, scale=scale, act="relu", **options).eval()


def _shown(name: str) -> str:
    return name.replace("sesr_", "sesr-").upper()


def _published() -> Section:
    reference = PUBLISHED["FSRCNN"][3]
    rows = tuple(
        Row(
            name,
            "published",
            "as recalled, not verified",
            {
                "gmacs": macs,
                "traffic_mb": traffic,
                "latency_ms": latency,
                "fps": fps,
                "over_fsrcnn": fps / reference,
            },
        )
        for name, (macs, traffic, latency, fps) in PUBLISHED.items()
    )
    return Section(f"The paper's: {GOALS[2]}, whole frame, 4 TOP/s", COLUMNS, rows)


def _rows(
    target: Target, scale: int, tiled: bool, notes: list[str], step: Callable[[str], None]
) -> tuple[tuple[Row, ...], float | None]:
    """A row a network, and M5's frames over FSRCNN's. What cannot be compiled has no figures."""
    rows: list[Row] = []
    reference: float | None = None
    for name in NETWORKS:
        values: dict[str, Value] = {}
        source = f"no figure on {target.name}"
        try:
            report = _estimate(name, target, scale, TILE if tiled else None)
            values, source = _values(report), report.source.removeprefix("estimated: ")
            if report.fps is None:
                why = ", ".join(report.cpu_operators) or "memory too small"
                notes.append(f"{_shown(name)} on {target.name} has no frame rate: {why}")
            if name == "fsrcnn":
                reference = report.fps
            elif reference and report.fps:
                values["over_fsrcnn"] = report.fps / reference
        except CollapsibleError as error:
            notes.append(f"{_shown(name)} on {target.name}: {' '.join(str(error).split())}")
        rows.append(Row(_shown(name), "estimated", source, values))
        step(f"{_shown(name)} x{scale} on {target.name}")
    five = rows[NETWORKS.index("sesr_m5")].values.get("over_fsrcnn")
    return tuple(rows), five if isinstance(five, float) else None


def _estimate(
    name: str, target: Target, scale: int, tile: tuple[int, int] | None
) -> EstimateReport:
    from collapsible.deploy.estimate import estimate

    size = (1, 1, HEIGHT, WIDTH)
    legalise = target.kind == "vela"
    return estimate(deployed(name, scale), target, size, tile=tile, legalise=legalise)


def _values(report: EstimateReport) -> dict[str, Value]:
    return {
        "gmacs": None if report.macs is None else report.macs / 1e9,
        "traffic_mb": None if report.dram_traffic is None else report.dram_traffic / 1e6,
        "latency_ms": report.latency_ms,
        "fps": report.fps,
        "sram_bytes": report.sram_bytes,
        "tiles": report.tiles,
        "cpu_operators": ", ".join(report.cpu_operators),
    }


def _assumptions(target: Target) -> tuple[Row, ...]:
    """The claim under each change of an assumption, and under some changes together."""
    from collapsible.costs.targets import assume

    array = target.roofline
    assert array is not None
    direct: dict[str, Any] = {"algorithm": "direct"}
    sub_pixel: dict[str, Any] = {"deconvolution": "sub-pixel"}
    written: dict[str, Any] = {"depth_to_space": "addressing"}
    large: dict[str, Any] = {"sram_bytes": 4 << 20}
    changes: list[tuple[str, dict[str, Any], tuple[int, int] | None]] = [
        ("as it stands (deconvolution zero-stuffed)", {}, None),
        ("deconvolution sub-pixel", sub_pixel, None),
        ("no Winograd", direct, None),
        ("depth to space while writing", written, None),
        ("no Winograd, depth to space while writing", {**direct, **written}, None),
        ("no Winograd, deconvolution sub-pixel", {**direct, **sub_pixel}, None),
        *(
            (f"DRAM of {bandwidth / 1e9:g} GB/s", {"dram_bandwidth": bandwidth}, None)
            for bandwidth in (factor * array.dram_bandwidth for factor in (0.25, 0.5, 2.0, 4.0))
        ),
        ("arithmetic, then traffic", {"overlap": False}, None),
        ("SRAM of 4 MiB", large, None),
        ("SRAM of 4 MiB, tiles of 400x300", large, TILE),
        ("SRAM of 4 MiB, tiles of 200x150", large, (150, 200)),
        ("tiles of 100x75", {}, (75, 100)),
    ]
    rows = []
    for name, change, tile in changes:
        changed = assume(target, **change)
        rows.append(_ratio_row(name, changed, tile=tile))
    loose = {name: unfused_bytes(name) for name in ("sesr_m5", "fsrcnn")}
    rows.append(_ratio_row("activations and additions as passes of their own", target, loose))
    return tuple(rows)


def _ratio_row(
    name: str,
    target: Target,
    further: Mapping[str, int] | None = None,
    tile: tuple[int, int] | None = None,
) -> Row:
    """M5 beside FSRCNN; ``further`` bytes of DRAM traffic are added to the time of each."""
    assert target.roofline is not None
    frames = {}
    for network in ("sesr_m5", "fsrcnn"):
        latency = _estimate(network, target, 2, tile).latency_ms
        assert latency is not None
        extra = (further or {}).get(network, 0) / target.roofline.dram_bandwidth
        frames[network] = 1e3 / (latency + 1e3 * extra)
    values = {
        "ratio": frames["sesr_m5"] / frames["fsrcnn"],
        "m5_fps": frames["sesr_m5"],
        "fsrcnn_fps": frames["fsrcnn"],
    }
    return Row(name, "estimated", "roofline", values)


def _tile_map_bytes() -> int:
    """One int8 feature map of M5 for one tile with its overlap (9 pixels a side: 2 + 5 + 2)."""
    return 16 * (TILE[0] + 18) * (TILE[1] + 18)


def unfused_bytes(name: str, scale: int = 2) -> int:
    """Bytes that activations and additions read and write where each is a pass of its own."""
    from collapsible.blocks import CollapsibleConv2d
    from collapsible.costs import cost
    from collapsible.folding import collapse

    network = deployed(name, scale)
    if any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    report = cost(network, (1, 1, HEIGHT, WIDTH), element_bytes=1)
    return sum(
        layer.bytes_in + layer.bytes_out
        for layer in report.layers
        if not layer.macs and (layer.non_linear or layer.kind.startswith("add"))
    )


def _sentences(target: Target) -> tuple[str, ...]:
    from collapsible.costs.roofline import assumptions

    return assumptions(target)
