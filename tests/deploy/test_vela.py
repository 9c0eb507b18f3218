"""Vela: networks with known MACs, operators that fall off, broken input and output."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import pytest
from tflite_networks import Writer

from collapsible.costs.targets import find_target
from collapsible.deploy import vela
from collapsible.deploy.tflite_file import read_tflite
from collapsible.deploy.vela import compile_vela
from collapsible.errors import CollapsibleError, MissingExtraError, UsageError

pytest.importorskip("ethosu.vela")
pytest.importorskip("ai_edge_litert")

SIZE = 24
# 3x3 from 8 to 16 features, then 1x1 from 16 to 12, on 24 x 24 pixels.
MACS = SIZE * SIZE * (9 * 8 * 16 + 16 * 12)


def network() -> Writer:
    return Writer((1, SIZE, SIZE, 8)).convolution(16, 3).convolution(12, 1)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return network().write(tmp_path / "plain.tflite")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["ethos-u55-32", "ethos-u65-512", "ethos-u85-1024"])
def test_macs_layers_and_clock(plain, cache, name):
    report, target = compile_vela(plain, name, cache=cache), find_target(name)
    assert target.clock_hz is not None
    assert target.macs_per_cycle is not None
    assert report.macs == MACS
    assert [layer.macs for layer in report.layers] == [SIZE**2 * 9 * 8 * 16, SIZE**2 * 16 * 12]
    assert sum(layer.cycles for layer in report.layers) == report.cycles
    assert report.cycles >= MACS / target.macs_per_cycle
    assert report.latency_ms == pytest.approx(1e3 * report.cycles / target.clock_hz)
    assert report.fps * report.latency_ms == pytest.approx(1e3)
    assert report.utilisation == pytest.approx(MACS / target.macs_per_cycle / report.cycles)
    assert report.cpu_operators == ()
    assert {layer.operator for layer in report.layers} == {"Conv2D"}
    # What moves through memory is at least the input and the result.
    assert report.sram_traffic + report.dram_traffic >= SIZE**2 * (8 + 12)
    # The arena holds at least the largest map beside the one before it.
    assert report.sram_bytes + report.dram_bytes >= SIZE**2 * 16


def test_an_operator_that_falls_off_is_named_with_its_reason(tmp_path, cache):
    path = network().depth_to_space(2).write(tmp_path / "shuffled.tflite")
    report = compile_vela(path, "ethos-u55-256", cache=cache)
    assert report.cpu_operators == ("DEPTH_TO_SPACE",)
    assert report.cpu[0].reason
    assert report.macs == MACS
    assert json.loads(report.json())["cpu_operators"] == ["DEPTH_TO_SPACE"]


def test_nothing_runs_on_the_npu(tmp_path, cache):
    path = Writer((1, 8, 8, 8)).depth_to_space(2).write(tmp_path / "alone.tflite")
    report = compile_vela(path, "ethos-u85-256", cache=cache)
    assert (report.fps, report.cycles, report.layers) == (0.0, 0, ())
    assert report.cpu_operators == ("DEPTH_TO_SPACE",)


def test_the_compiled_file_goes_where_it_is_asked_for(plain, cache, tmp_path):
    report = compile_vela(plain, "ethos-u55-64", tmp_path / "out", cache=cache)
    assert report.compiled == tmp_path / "out" / "plain_vela.tflite"
    assert [op.operator for op in read_tflite(report.compiled).operators] == ["ethos-u"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain_vela.tflite"]


def test_asking_again_compiles_nothing(plain, cache, tmp_path, monkeypatch):
    first = compile_vela(plain, "ethos-u55-64", cache=cache)
    monkeypatch.setattr(vela, "_run", lambda *_: pytest.fail("compiled again"))
    assert compile_vela(plain, "ethos-u55-64", cache=cache) == first
    other = network().write(tmp_path / "same_bytes.tflite")
    assert compile_vela(other, "ethos_u55_64", cache=cache) == first
    with pytest.raises(pytest.fail.Exception):
        compile_vela(plain, "ethos-u55-128", cache=cache)


def test_the_cache_is_where_the_variable_says(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "elsewhere"))
    report = compile_vela(plain, "ethos-u55-64")
    assert report.compiled.is_relative_to(tmp_path / "elsewhere")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(plain))
    with pytest.raises(CollapsibleError, match="COLLAPSIBLE_CACHE"):
        compile_vela(plain, "ethos-u55-128")


def test_without_a_cache(plain, tmp_path):
    report = compile_vela(plain, "ethos-u55-64", tmp_path / "out", cache=False)
    assert report.compiled.is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain_vela.tflite"]
    with pytest.raises(UsageError, match="out_folder"):
        compile_vela(plain, "ethos-u55-64", cache=False)


def test_a_damaged_cache_is_made_again(plain, cache):
    first = compile_vela(plain, "ethos-u55-64", cache=cache)
    next(first.compiled.parent.glob("*summary*")).write_text("inference_time\nsoon\n")
    assert compile_vela(plain, "ethos-u55-64", cache=cache) == first


def test_files_that_are_no_networks(tmp_path, cache):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.tflite"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match="refused: a pickle"):
        compile_vela(path, "ethos-u55-64", cache=cache)
    assert not (tmp_path / "sprung").exists()
    path.write_bytes(b"no network at all")
    with pytest.raises(UsageError, match="refused: not a TFLite file"):
        compile_vela(path, "ethos-u55-64", cache=cache)
    with pytest.raises(UsageError, match="cannot read"):
        compile_vela(tmp_path / "none.tflite", "ethos-u55-64", cache=cache)


@pytest.mark.parametrize("kept", [8, 30, 200, 1000])
def test_a_cut_file_ends_in_one_clear_error(plain, cache, kept):
    plain.write_bytes(plain.read_bytes()[:kept])
    with pytest.raises(CollapsibleError):
        compile_vela(plain, "ethos-u55-64", cache=cache)
    assert not cache.exists() or not list(cache.iterdir())


def test_dynamic_shapes(tmp_path, cache):
    path = network().write(tmp_path / "dynamic.tflite", dynamic=True)
    with pytest.raises(UsageError, match=r"dynamic shapes \(input \[1, -1, -1, 8\]\)"):
        compile_vela(path, "ethos-u55-64", cache=cache)


def test_a_target_of_another_kind(plain, cache):
    with pytest.raises(UsageError, match="Vela knows Ethos-U alone"):
        compile_vela(plain, "npu-4tops", cache=cache)


def test_vela_is_not_installed(plain, cache, monkeypatch):
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"collapsible\[edge\]"):
        compile_vela(plain, "ethos-u55-64", cache=cache)


def spoil(change):
    """A stand-in for the run, which changes what Vela left."""
    run = vela._run

    def spoiled(command, folder):
        done = run(command, folder)
        change(folder)
        return done

    return spoiled


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "network_vela.tflite").unlink(), "without the compiled network"),
        (lambda f: next(f.glob("*summary*")).unlink(), "without the summary"),
        (lambda f: next(f.glob("*summary*")).write_text(""), "broken report"),
        (lambda f: next(f.glob("*summary*")).write_text("a,b\n1,2\n"), "broken report"),
        (lambda f: (f / "network_per-layer.csv").write_text("Target\nNPU\n"), "broken report"),
        (lambda f: (f / "network_vela.tflite").write_bytes(b"half"), "broken report"),
    ],
)
def test_broken_compiler_output(plain, cache, monkeypatch, change, said):
    monkeypatch.setattr(vela, "_run", spoil(change))
    with pytest.raises(CollapsibleError, match=said):
        compile_vela(plain, "ethos-u55-64", cache=cache)
    assert not list(cache.iterdir())


def test_a_failing_compiler_is_quoted_in_one_line(plain, cache, monkeypatch):
    def fail(command, folder):
        return subprocess.CompletedProcess(command, 3, "", "Traceback\n  file\nBoom: no memory\n")

    monkeypatch.setattr(vela, "_run", fail)
    with pytest.raises(CollapsibleError, match=r"exit code 3\): Boom: no memory"):
        compile_vela(plain, "ethos-u55-64", cache=cache)

    def hang(command, folder):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(vela, "_run", hang)
    with pytest.raises(CollapsibleError, match="did not end"):
        compile_vela(plain, "ethos-u55-64", cache=cache)
    assert not list(cache.iterdir())


def test_another_clock_than_the_targets_is_noticed(plain, cache):
    from dataclasses import replace

    wrong = replace(find_target("ethos-u55-64"), clock_hz=1e9)
    with pytest.raises(CollapsibleError, match="ethos-u55-64 says 1e"):
        compile_vela(plain, wrong, cache=cache)
