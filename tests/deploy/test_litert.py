"""LiteRT files: what they compute beside torch, their operators, and input that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from collapsible.deploy import litert
from collapsible.deploy.litert import operators, run_litert, save_litert
from collapsible.errors import ExportError, MissingExtraError, PictureError, UsageError

pytest.importorskip("litert_torch", reason="the edge extra is not installed")

SIZE = (1, 3, 12, 10)


class Small(nn.Module):
    """Two convolutions with a bend, a branch and a difference of height and width."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 3, padding=1, stride=2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


def pictures(count: int, size: tuple[int, ...] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *size[1:]), dtype=np.float32)


def expected(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(inputs)).numpy()


@pytest.fixture(scope="module")
def network() -> Small:
    return Small()


@pytest.fixture(scope="module")
def fp32(network: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_litert(network, tmp_path_factory.mktemp("litert") / "fp32.tflite", SIZE)


@pytest.fixture(scope="module")
def int8(network: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("litert") / "int8.tflite"
    return save_litert(network, path, SIZE, calibration=[pictures(8), pictures(1, seed=5)[0]])


def test_fp32_file_computes_what_torch_does(network, fp32):
    inputs = pictures(3, seed=1)
    assert np.abs(run_litert(fp32, inputs) - expected(network, inputs)).max() < 1e-5
    assert operators(fp32) == ["CONV_2D", "PAD", "CONV_2D"]


def test_weights_that_lie_channels_last(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 4, 1),
        nn.Conv2d(4, 2, (1, 3)),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = save_litert(network, tmp_path / "last.tflite", SIZE)
    np.testing.assert_allclose(
        run_litert(path, pictures(2)), expected(network, pictures(2)), 0, 1e-6
    )
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_int8_file_is_int8_throughout_and_near(network, int8):
    inputs = pictures(3, seed=1)
    wanted = expected(network, inputs)
    found = run_litert(int8, inputs)
    # Rounding of the output alone is uniform over a step: its standard deviation is step / 12^0.5.
    error = np.sqrt(np.mean(np.square(found - wanted)))
    assert 0 < error < 0.03 * (wanted.max() - wanted.min())
    assert operators(int8) == ["CONV_2D", "PAD", "CONV_2D"]
    interpreter = litert._open(int8)
    for details in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert details["dtype"] is np.int8
    weights = [
        d["quantization_parameters"] for d in interpreter.get_tensor_details()
        if d["dtype"] is np.int8 and len(d["shape"]) == 4
        and len(d["quantization_parameters"]["scales"]) > 1
    ]  # fmt: skip
    assert sorted(len(w["scales"]) for w in weights) == [4, 8]
    assert all((w["zero_points"] == 0).all() for w in weights)


def test_every_calibration_picture_counts_and_their_order_does_not(network, tmp_path):
    dark, bright = pictures(1)[0] * 0.1, pictures(1, seed=2)[0] * 4
    files = [
        save_litert(network, tmp_path / f"{i}.tflite", SIZE, calibration=order).read_bytes()
        for i, order in enumerate(([dark, bright], [bright, dark]))
    ]
    assert files[0] == files[1]
    (details,) = litert._open(tmp_path / "0.tflite").get_input_details()
    scale, zero = details["quantization"]
    assert (127 - zero) * scale == pytest.approx(bright.max(), rel=0.02)


def test_input_is_channels_last(fp32):
    (details,) = litert._open(fp32).get_input_details()
    assert list(details["shape"]) == [1, 12, 10, 3]


def test_nothing_is_printed(network, tmp_path, capfd):
    save_litert(network, tmp_path / "a.tflite", SIZE, calibration=[pictures(2)])
    run_litert(tmp_path / "a.tflite", pictures(1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 3, -1, 8), (0, 3, 8, 8), (1, 3, 8), (1, 3, 8, 8, 8)])
def test_dynamic_or_odd_sizes_are_refused(network, tmp_path, size):
    with pytest.raises(UsageError, match="one fixed size"):
        save_litert(network, tmp_path / "a.tflite", size)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ([np.zeros((3, 12, 11), np.float32)], r"shape \[3, 12, 11\]: \[3, 12, 10\]"),
        ([np.zeros((12, 10, 3), np.float32)], r"\[12, 10, 3\]"),
        ([np.zeros((12, 10), np.float32)], r"\[12, 10\]"),
        ([np.full((3, 12, 10), np.nan, np.float32)], "finite"),
        ([np.full((3, 12, 10), "a")], "real numbers"),
        ([], "at least one"),
    ],
)
def test_calibration_of_the_wrong_shape(network, tmp_path, calibration, said):
    with pytest.raises(UsageError, match=said):
        save_litert(network, tmp_path / "a.tflite", SIZE, calibration=calibration)
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_input(network, tmp_path):
    with pytest.raises(UsageError, match="does not take input"):
        save_litert(network, tmp_path / "a.tflite", (1, 4, 12, 10))


def test_a_network_whose_way_depends_on_the_data(tmp_path):
    class Fickle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError, match="cannot convert Fickle"):
        save_litert(Fickle(), tmp_path / "a.tflite", SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\0\0\0TFL3" + bytes(range(64))])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "bad.tflite"
    path.write_bytes(content)
    for use in (lambda: operators(path), lambda: run_litert(path, pictures(1))):
        with pytest.raises(ExportError, match=r"bad\.tflite"):
            use()


def test_a_missing_file(tmp_path):
    with pytest.raises(ExportError, match="No such file"):
        operators(tmp_path / "none.tflite")


def test_inputs_of_another_shape(fp32):
    with pytest.raises(UsageError, match=r"the file takes \[1, 3, 12, 10\]"):
        run_litert(fp32, np.zeros((1, 3, 10, 12), np.float32))


def test_without_the_converter_the_extra_is_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"litert_torch.*collapsible\[edge\]"):
        save_litert(network, tmp_path / "a.tflite", SIZE)


def test_an_output_that_cannot_be_written(network, tmp_path):
    with pytest.raises(PictureError, match="does not exist"):
        save_litert(network, tmp_path / "none" / "a.tflite", SIZE)
    assert not list(tmp_path.iterdir())
