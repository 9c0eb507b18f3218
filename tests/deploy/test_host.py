"""Measuring on this machine: the clock, the engines, and files that are no networks."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tflite_networks import Writer

from collapsible.costs.targets import HostSettings
from collapsible.deploy import host
from collapsible.deploy.host import measure_host
from collapsible.errors import MissingExtraError, UnknownNameError, UsageError

QUICK = HostSettings(warm_up=1, runs=5)


def write_onnx(path: Path, layers: int, features: int = 24, side: int | str = 48) -> Path:
    """A chain of 3x3 convolutions; ``side`` may be a name, for an input that is left open."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            random.normal(size=(features, features, 3, 3)).astype(np.float32) / 20, f"w{n}"
        )
        for n in range(layers)
    ]
    nodes = [
        helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"x{n + 1}"], pads=[1, 1, 1, 1])
        for n in range(layers)
    ]
    shape = [1, features, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_more_work_takes_longer(tmp_path, engine):
    """Forty-eight layers against one: at least three times as long, noise allowed for."""
    pytest.importorskip(engine)
    settings = HostSettings(engine=engine, warm_up=1, runs=5)
    one = measure_host(write_onnx(tmp_path / "one.onnx", 1), settings)
    many = measure_host(write_onnx(tmp_path / "many.onnx", 48), settings)
    assert 0 < one.least_ms <= one.latency_ms <= one.most_ms
    assert many.least_ms > 3 * one.least_ms
    assert many.runs == 5
    assert many.source.startswith(f"measured: {engine} ")
    assert "on this host" in many.source


def test_the_clock_counts_one_run():
    """Runs of known length: 4 ms each, in groups and alone."""
    samples = host._time(lambda: time.sleep(0.004), 1, 4)
    assert len(samples) == 4
    assert 4 <= min(samples) < 8
    calls = []
    samples = host._time(lambda: calls.append(1), 2, 3)
    # Far shorter than the clock's own noise: many runs make one sample.
    assert len(calls) > 100
    assert max(samples) < 1


def test_an_open_size_is_given(tmp_path):
    path = write_onnx(tmp_path / "open.onnx", 1, side="side")
    with pytest.raises(UsageError, match=r"dynamic shapes \(input \[1, 24, -1, -1\]\)"):
        measure_host(path, QUICK)
    assert measure_host(path, QUICK, (1, 24, 8, 8)).latency_ms > 0
    with pytest.raises(UsageError, match="but the file takes"):
        measure_host(path, QUICK, (1, 23, 8, 8))
    with pytest.raises(UsageError, match="but the file takes"):
        measure_host(path, QUICK, (1, 24, 8))


def test_int8_tflite_runs_on_openvino(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = Writer((1, 16, 16, 8)).convolution(8, 3).write(tmp_path / "net.tflite")
    assert measure_host(path, QUICK).latency_ms > 0


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("content", [b"", b"no network", pickle.dumps([1])])
def test_files_that_are_no_networks(tmp_path, engine, content):
    pytest.importorskip(engine)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a network"):
        measure_host(path, HostSettings(engine=engine))


def test_wrong_settings(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "one.onnx", 1)
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        measure_host(path, HostSettings(engine="openvin"))
    with pytest.raises(UnknownNameError, match="fp32"):
        measure_host(path, HostSettings(precision="fp3"))
    with pytest.raises(UsageError, match="openvino runs both"):
        measure_host(path, HostSettings(engine="onnxruntime", precision="bf16"))
    with pytest.raises(UsageError, match="no such file"):
        measure_host(tmp_path / "none.onnx")
    monkeypatch.setattr(host, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"collapsible\[onnxruntime\]"):
        measure_host(path, HostSettings(engine="onnxruntime"))
