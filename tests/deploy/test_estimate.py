"""``estimate``: every kind of target, what falls off, what does not fit, hostile input."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tflite_networks import Writer
from torch import nn

import collapsible
from collapsible.costs import cost
from collapsible.costs.roofline import roofline
from collapsible.costs.targets import assume, find_target, list_targets
from collapsible.deploy import npu
from collapsible.deploy.advice import REMEDIES, advise
from collapsible.deploy.estimate import estimate
from collapsible.deploy.estimate_report import draw_estimate
from collapsible.deploy.npu import fingerprint
from collapsible.deploy.vela import CpuOperator
from collapsible.errors import CollapsibleError, MissingExtraError, UnknownNameError, UsageError
from collapsible.folding import collapse
from collapsible.models import create_model

SIZE = (1, 8, 24, 24)


class Small(nn.Module):
    """Two convolutions and a ReLU; the same weights whenever it is made."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Conv2d(8, 16, 3, padding=1)
        self.act = nn.ReLU()
        self.two = nn.Conv2d(16, 12, 1)

    def forward(self, x):
        return self.two(self.act(self.one(x)))


class Everywhere(nn.Module):
    """Sees the whole picture: no tile gives the same result."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 16, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.one(x))
        return x * x.mean((2, 3), keepdim=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: converting takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def edge() -> None:
    # Looked for and not imported, which takes long.
    for package in ("litert_torch", "ai_edge_quantizer", "ethosu", "ai_edge_litert"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_the_public_name():
    assert collapsible.estimate is estimate


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_vela_counts_what_cost_counts(cache):
    report = estimate(Small(), "ethos-u55-256", SIZE, cache=cache)
    counted = cost(Small(), SIZE)
    assert sum(layer.macs for layer in report.layers) == report.macs
    assert report.macs == counted.macs
    assert report.source.startswith("estimated: ethos-u-vela ")
    assert report.cpu_operators == ()
    assert report.fits
    assert report.fps is not None
    assert report.latency_ms is not None
    assert report.fps * report.latency_ms == pytest.approx(1e3)
    assert sum(layer.ms for layer in report.layers) == pytest.approx(report.latency_ms)
    assert report.sram_bytes is not None
    assert report.sram_bytes >= 16 * 24 * 24
    facts = json.loads(report.json())
    assert facts.keys() == asdict(report).keys()
    assert facts["fps"] == report.fps
    table = report.table(layers=True)
    assert f"{report.fps:,.1f}" in table
    assert report.source in table
    # The activation is fused and has no line of its own.
    assert [layer.kind for layer in report.layers] == ["Conv2D + Relu", "Conv2D"]


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_asking_again_converts_and_compiles_nothing(cache, monkeypatch):
    first = estimate(Small(), "ethos-u55-256", SIZE, cache=cache)
    monkeypatch.setattr(npu, "save_litert", lambda *_, **__: pytest.fail("converted again"))
    assert estimate(Small(), "ethos_u55_256", SIZE, cache=cache) == first
    # Another chip needs no other file.
    other = estimate(Small(), "ethos-u65-512", SIZE, cache=cache)
    assert other.macs == first.macs
    assert other.cycles != first.cycles
    with pytest.raises(pytest.fail.Exception):
        estimate(Small(seed=1), "ethos-u55-256", SIZE, cache=cache)


def test_the_fingerprint_is_of_what_a_network_computes():
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = Small()
            self.body = nn.Sequential(inner.one, nn.ReLU(), inner.two)

        def forward(self, x):
            return self.body(x)

    class Swapped(nn.Module):
        """The same weights in the other order of use."""

        def __init__(self, swap: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
            self.swap = swap

        def forward(self, x):
            return self.one(self.two(x)) if self.swap else self.two(self.one(x))

    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.conv = Small()
            self.value = torch.full((1, 8, 1, 1), value)

        def forward(self, x):
            return self.conv(x * self.value)

    base = fingerprint(Small(), SIZE)
    assert fingerprint(Small(), SIZE) == base == fingerprint(Renamed(), SIZE)
    assert fingerprint(Small(), (1, 8, 24, 25)) != base
    assert fingerprint(Small(1), SIZE) != base
    strided = Small()
    strided.one.stride = (2, 2)
    assert fingerprint(strided, SIZE) != base
    assert fingerprint(Swapped(True), SIZE) != fingerprint(Swapped(False), SIZE)
    assert fingerprint(Constant(1), SIZE) != fingerprint(Constant(2), SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_a_network_too_large_is_told_by_how_much_and_a_tile_that_fits(cache):
    """The memory is set below what the network takes; the tile is then estimated for real."""
    need = estimate(Small(), "ethos-u55-256", SIZE, cache=cache).sram_bytes
    assert need is not None
    small = assume("ethos-u55-256", sram_bytes=need * 2 // 3)
    report = estimate(Small(), small, SIZE, cache=cache)
    assert not report.fits
    assert (report.fps, report.latency_ms) == (None, None)
    assert report.npu_ms
    over = need - need * 2 // 3
    assert f"it needs {over:,} bytes of SRAM more" in report.advice[-1]
    assert "none: it does not fit the memory" in report.table()
    assert report.suggested_tile is not None
    tiled = estimate(Small(), small, SIZE, tile=report.suggested_tile, cache=cache)
    assert tiled.fits
    assert tiled.fps is not None
    assert tiled.tile_input is not None
    # A 3 x 3 kernel: one pixel on every side.
    inner, outer = report.suggested_tile, tiled.tile_input
    assert outer == (min(inner[0] + 2, 24), min(inner[1] + 2, 24))
    assert tiled.tiles == -(-24 // inner[0]) * -(-24 // inner[1])
    # Four squares of 16 would fit too, with more work.
    assert tiled.tiles * outer[0] * outer[1] < 4 * 18 * 18
    one = estimate(Small(), small, (1, 8, *outer), cache=cache)
    assert one.fps is not None
    assert tiled.fps == pytest.approx(one.fps / tiled.tiles)
    assert tiled.input_size == SIZE


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_a_network_too_large_that_cannot_be_tiled(cache):
    small = assume("ethos-u55-256", sram_bytes=2000)
    report = estimate(Everywhere(), small, SIZE, cache=cache)
    assert not report.fits
    assert report.suggested_tile is None
    assert "global" in report.advice[-1]


@pytest.mark.usefixtures("edge")
def test_a_file_whose_operator_falls_off_has_no_frame_rate(tmp_path, cache):
    writer = Writer((1, 16, 16, 8)).convolution(16, 3).depth_to_space(2)
    report = estimate(writer.write(tmp_path / "tail.tflite"), "ethos-u55-256", cache=cache)
    assert (report.fps, report.latency_ms) == (None, None)
    assert report.npu_ms
    assert report.cpu_operators == ("DEPTH_TO_SPACE",)
    assert "transposed convolution" in report.advice[0]
    assert "none: DEPTH_TO_SPACE falls to the CPU" in report.table()
    assert report.network == "tail.tflite"
    assert report.input_size == (1, 8, 16, 16)
    assert report.macs == 16 * 16 * 9 * 8 * 16


@pytest.mark.usefixtures("edge")
def test_a_file_too_large_and_a_file_of_another_size(tmp_path, cache):
    path = Writer((1, 16, 16, 8)).convolution(16, 3).write(tmp_path / "net.tflite")
    small = assume("ethos-u55-256", sram_bytes=1000)
    report = estimate(path, small, cache=cache)
    assert not report.fits
    assert "bytes of SRAM more" in report.advice[-1]
    with pytest.raises(UsageError, match="but the file takes"):
        estimate(path, "ethos-u55-256", (1, 8, 16, 17), cache=cache)
    with pytest.raises(UsageError, match="tiles need the network itself"):
        estimate(path, "ethos-u55-256", tile=(8, 8), cache=cache)
    with pytest.raises(UsageError, match="cannot be legalised"):
        estimate(path, "ethos-u55-256", legalise=True, cache=cache)


def test_advice():
    assert advise([]) == ()
    ops = [
        CpuOperator("PRELU", "a", "why"),
        CpuOperator("PRELU", "b", ""),
        CpuOperator("X", "", ""),
    ]
    lines = advise(ops)
    assert lines[0] == f"2 x PRELU: {REMEDIES['PRELU']} (Vela: why)"
    assert lines[1].startswith("X: replace it")
    floats = advise([CpuOperator("CONV_2D", "a", "unsupported DataType Float32 (x)")])
    assert "int8" in floats[0]


def test_roofline_targets_agree_with_the_roofline():
    """Collapsed first, then the same figures."""
    network = create_model("sesr-m3")
    report = estimate(network, "npu-4tops", (1, 1, 90, 160))
    straight = roofline(collapse(network)[0], (1, 1, 90, 160), "npu-4tops")
    assert report.source == "estimated: roofline"
    assert (report.fps, report.latency_ms) == (straight.fps, straight.latency_ms)
    assert report.dram_traffic == straight.dram_traffic
    assert report.assumptions == straight.assumptions
    assert report.network == "SESR"
    tiled = estimate(network, "npu-4tops", (1, 1, 90, 160), tile=(45, 80))
    assert tiled.tiles == 4
    assert "4 of 45 x 80, each run on 59 x 94" in tiled.table()


def test_an_operator_that_a_roofline_does_not_know():
    class Sampled(nn.Module):
        def forward(self, x):
            grid = torch.zeros(1, 4, 4, 2, device=x.device)
            return nn.functional.grid_sample(x, grid, align_corners=False)

    report = estimate(Sampled(), "npu-4tops", (1, 3, 8, 8))
    assert report.fps is None
    assert report.cpu_operators == ("aten.grid_sampler_2d",)
    assert "falls to the CPU" in report.table()


def test_a_network_that_cannot_be_collapsed_is_estimated_as_it_is_and_said_so():
    class Tricky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            # What fx does not follow: a loop over what a shape says.
            for _ in range(int(x.shape[-1]) // 8):
                x = nn.functional.relu(x)
            return self.conv(x)

    report = estimate(Tricky(), "npu-4tops", (1, 3, 16, 16))
    assert report.macs == cost(Tricky(), (1, 3, 16, 16)).macs
    assert "could not be collapsed" in report.assumptions[-1]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((Small(), "ethos-u55-265", SIZE), UnknownNameError, "did you mean 'ethos-u55-256'"),
        ((Small(), "npu-4tops", None), UsageError, "input_size is needed"),
        ((Small(), "npu-4tops", (1, 8, -1, 24)), UsageError, "positive whole numbers"),
        ((Small(), "npu-4tops", (1, 7, 24, 24)), UsageError, "does not run on shapes alone"),
        ((3, "npu-4tops", SIZE), UsageError, "a torch module or a file"),
        ((Path("x.tflite"), "npu-4tops", None), UsageError, "not from a file"),
        ((Path("x.pt"), "host", None), UsageError, ".onnx and .tflite files are measured"),
        ((Path("x.onnx"), "host", None), UsageError, "no such file"),
    ],
)
def test_wrong_use(arguments, error, said):
    with pytest.raises(error, match=said):
        estimate(*arguments)


@pytest.mark.usefixtures("edge")
def test_a_pickle_with_code_is_refused(tmp_path, cache):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("trap.pt", "trap.tflite"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UsageError, match="refused"):
            estimate(path, "ethos-u55-256", cache=cache)
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.pt")
    with pytest.raises(UsageError, match="pickle or torch file"):
        estimate(tmp_path / "zip.pt", "ethos-u55-256", cache=cache)
    assert not (tmp_path / "sprung").exists()


def test_control_flow_that_needs_data():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(UsageError, match="control flow"):
        estimate(Branching(), "npu-4tops", (1, 3, 8, 8))


def test_missing_packages(monkeypatch, tmp_path):
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"litert_torch.*collapsible\[edge\]"):
        estimate(Small(), "ethos-u55-256", SIZE, cache=tmp_path)


@pytest.mark.usefixtures("edge")
def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CollapsibleError, match="COLLAPSIBLE_CACHE"):
        estimate(Small(), "ethos-u55-256", SIZE, cache=file)


def test_the_host_is_measured():
    pytest.importorskip("onnxscript")
    quick = assume("host", warm_up=1, runs=3)
    report = estimate(Small(), quick, (2, 8, 24, 24))
    assert report.source.startswith("measured: openvino ")
    assert report.latency_ms is not None
    assert report.fps == pytest.approx(2e3 / report.latency_ms)
    assert report.cycles is None
    assert "measured" in report.table()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_drawing(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    one = estimate(create_model("sesr-m3"), "npu-4tops", (1, 1, 90, 160))
    path = draw_estimate([one, replace(one, fps=None)], tmp_path / f"layers{suffix}")
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])
    if suffix == ".svg":
        assert "npu-4tops" in path.read_text()
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        draw_estimate(one, tmp_path / "layers.bmp")
    with pytest.raises(UsageError, match="nothing to draw"):
        draw_estimate(replace(one, layers=()), tmp_path / "none.png")


def test_every_vela_target_has_a_bound_to_fit_into():
    for name in list_targets():
        target = find_target(name)
        assert target.kind == "host" or target.sram_bytes
