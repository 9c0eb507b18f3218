"""ONNX files of any network: what two runtimes compute beside torch, and what is in the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from collapsible.deploy.onnx_files import onnx_operators, run_onnx, save_onnx
from collapsible.errors import ExportError, MissingExtraError, PictureError, UsageError

pytest.importorskip("onnxscript", reason="the edge extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnxruntime extra is not installed")

SIZE = (2, 3, 12, 10)
ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8, 0.2), nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(4).random((4, *SIZE[1:]), dtype=np.float32)


@pytest.fixture(scope="module")
def wanted(network, inputs) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).numpy()


@pytest.fixture(scope="module")
def files(network, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "fp32": save_onnx(network, folder / "fp32.onnx", SIZE),
        "int8": save_onnx(network, folder / "int8.onnx", SIZE, calibration=[inputs]),
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_fp32_is_the_network(files, inputs, wanted, engine):
    assert np.abs(run_onnx(files["fp32"], inputs, engine) - wanted).max() < 1e-5
    assert onnx_operators(files["fp32"]) == ["Conv", "PRelu", "Conv", "DepthToSpace"]


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_is_near(files, inputs, wanted, engine):
    error = np.sqrt(np.mean(np.square(run_onnx(files["int8"], inputs, engine) - wanted)))
    assert 0 < error < 0.02 * np.ptp(wanted)


def test_weights_are_int8_by_channel_and_symmetric(files):
    model = onnx.load(files["int8"])
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    kernels = [
        node for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
        and constants[node.input[0]].ndim == 4
    ]  # fmt: skip
    assert len(kernels) == 2
    for node in kernels:
        kernel, scale, zero = (constants[name] for name in node.input)
        assert kernel.dtype == np.int8
        assert scale.shape == (len(kernel),)
        assert not zero.any()
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantised
    assert all(constants[node.input[1]].size == 1 for node in quantised)


def test_a_file_tells_nothing_of_this_machine(files):
    for path in files.values():
        content = path.read_bytes()
        for word in (b"site-packages", str(path.parent).encode(), b"stack_trace", b".py"):
            assert word not in content
        onnx.checker.check_model(onnx.load(path), full_check=True)


def test_the_same_network_gives_the_same_bytes(network, files, tmp_path):
    again = save_onnx(network, tmp_path / "again.onnx", SIZE)
    assert again.read_bytes() == files["fp32"].read_bytes()


def test_nothing_is_printed(network, inputs, tmp_path, capfd):
    save_onnx(network, tmp_path / "a.onnx", SIZE, calibration=[inputs])
    assert capfd.readouterr() == ("", "")


def test_a_network_whose_way_depends_on_the_data(tmp_path):
    class Fickle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError, match="cannot export Fickle"):
        save_onnx(Fickle(), tmp_path / "a.onnx", SIZE)
    assert not list(tmp_path.iterdir())


def test_wrong_use(network, files, inputs, tmp_path):
    with pytest.raises(UsageError, match="one fixed size"):
        save_onnx(network, tmp_path / "a.onnx", (1, 3, -1, 8))
    with pytest.raises(UsageError, match="calibration array 0"):
        save_onnx(network, tmp_path / "a.onnx", SIZE, calibration=[inputs[:, :, :5]])
    with pytest.raises(UsageError, match=r"the file takes \[2, 3, 12, 10\]"):
        run_onnx(files["fp32"], inputs[:3])
    with pytest.raises(UsageError, match="known are onnxruntime, openvino"):
        run_onnx(files["fp32"], inputs, "tensorflow")
    with pytest.raises(PictureError, match="does not exist"):
        save_onnx(network, tmp_path / "none" / "a.onnx", SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(200))])
def test_a_file_that_is_no_model(tmp_path, inputs, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for engine in ENGINES:
        with pytest.raises(ExportError, match=r"bad\.onnx"):
            run_onnx(path, inputs, engine)
    if content:
        with pytest.raises(ExportError, match=r"bad\.onnx"):
            onnx_operators(path)


def test_without_the_exporter_the_extra_is_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*collapsible\[edge\]"):
        save_onnx(network, tmp_path / "a.onnx", SIZE)
