"""``collapsible.export``: the whole chain, its report, and what goes wrong on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import collapsible
from collapsible.deploy import export as chain
from collapsible.deploy.litert import operators, run_litert
from collapsible.deploy.onnx_files import run_onnx
from collapsible.errors import (
    ExportError,
    MissingExtraError,
    PictureError,
    UnknownNameError,
    UsageError,
)

pytest.importorskip("litert_torch", reason="the edge extra is not installed")

SIZE = (1, 3, 16, 12)


class Branches(nn.Module):
    """Two branches with normalisation that collapse to one convolution, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.wide = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(3, 6, 1)
        self.last = nn.Linear(6, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.norm.running_var = torch.rand(6, generator=generator) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.wide(x)) + self.point(x))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Branches:
    return Branches()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).random((6, *SIZE[1:]), dtype=np.float32)


def by_torch(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(inputs)).numpy()


def test_onnx_is_collapsed_run_by_both_and_compared(network, pictures, tmp_path):
    report = collapsible.export(network, tmp_path / "net.onnx", input_size=SIZE)
    assert report.operators["Conv"] == 1
    assert [check.runtime for check in report.checks] == ["ONNX Runtime", "OpenVINO"]
    assert all(0 <= check.relative_error < 1e-5 for check in report.checks)
    assert report.collapsed is not None
    assert report.fps is None
    found = run_onnx(tmp_path / "net.onnx", pictures)
    assert np.abs(found - by_torch(network, pictures)).max() < 1e-5
    facts = json.loads(report.json())
    assert facts["precision"] == "fp32"
    assert facts["bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert "measured" in report.table()


def test_int8_litert_and_top_1(network, pictures, tmp_path):
    wanted = by_torch(network, pictures)
    labels = [int(row.argmax()) for row in wanted]
    labels[0] = (labels[0] + 1) % 4
    path = tmp_path / "net.tflite"
    report = collapsible.export(
        network, path, input_size=SIZE, int8=[pictures], pictures=list(pictures), labels=labels
    )
    (check,) = report.checks
    found = run_litert(path, pictures)
    assert check.max_error == pytest.approx(np.abs(found - wanted).max(), rel=1e-5)
    assert check.measure == "top-1"
    assert check.torch == pytest.approx(5 / 6)
    right = np.mean([row.argmax() == label for row, label in zip(found, labels, strict=True)])
    assert check.file == pytest.approx(right)
    assert report.calibration == 6
    assert "top-1 83.33%" in report.table()
    assert list(tmp_path.iterdir()) == [path]


def test_the_given_network_is_untouched(network, tmp_path):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    collapsible.export(network, tmp_path / "net.onnx", input_size=SIZE)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_network_that_cannot_be_collapsed_is_exported_as_it_is(tmp_path):
    report = collapsible.export(nn.ReLU(), tmp_path / "net.onnx", input_size=SIZE)
    assert report.collapsed is None
    assert any("not collapsed" in note for note in report.notes)


def test_operators_that_stay_in_float_are_said(tmp_path):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3))
    inputs = torch.rand(SIZE, generator=generator).numpy()
    report = collapsible.export(network, tmp_path / "a.tflite", input_size=SIZE, int8=[inputs])
    assert any("not int8 throughout: 1 DEQUANTIZE" in note for note in report.notes)


def test_an_fp32_file_that_is_another_network_is_not_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "run_onnx", lambda path, part, engine: run_onnx(path, part) * 1.01)
    with pytest.raises(ExportError, match="another network"):
        collapsible.export(network, tmp_path / "net.onnx", input_size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["collapsing", "converting", "comparing"])
def test_an_interrupted_export_leaves_the_old_file(network, tmp_path, stage):
    path = tmp_path / "net.tflite"
    path.write_text("old")

    def interrupt(at: str) -> None:
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collapsible.export(network, path, input_size=SIZE, progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_an_interrupted_write_leaves_nothing(network, tmp_path, monkeypatch):
    def full(self: Path) -> bytes:
        raise OSError(28, "No space left on device")

    def copy(source: Path, path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_bytes", full)
            kept(source, path)

    kept = chain._copy
    monkeypatch.setattr(chain, "_copy", copy)
    with pytest.raises(PictureError, match="No space left"):
        collapsible.export(network, tmp_path / "net.onnx", input_size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("net.pb", {}, r"\.onnx or \.tflite"),
        ("none/net.onnx", {}, "does not exist"),
        ("net.onnx", {"input_size": (1, 3, 0, 8)}, "one fixed size"),
        ("net.onnx", {"input_size": (1, 3, -1, 8)}, "one fixed size"),
        ("net.onnx", {"input_size": (1, 5, 8, 8)}, "does not take input"),
        ("net.tflite", {"int8": [np.zeros((3, 16, 13))]}, "calibration array 0"),
        ("net.tflite", {"int8": []}, "at least one"),
        ("net.onnx", {"labels": [1]}, "give pictures too"),
        ("net.onnx", {"pictures": [np.zeros((3, 9, 9))]}, r"\[3, 16, 12\]"),
        ("net.tflite", {"target": "ethos-u55-256"}, "int8 alone"),
        ("net.onnx", {"target": "ethos-u55-256", "int8": [np.zeros(SIZE)]}, "takes .tflite"),
    ],
)
def test_wrong_use(network, tmp_path, name, options, said):
    with pytest.raises(UsageError, match=said):
        collapsible.export(network, tmp_path / name, **{"input_size": SIZE, **options})
    assert not list(tmp_path.iterdir())


def test_an_unknown_target(network, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'ethos-u55-256'"):
        collapsible.export(
            network, tmp_path / "net.tflite", input_size=SIZE, target="ethos-u55-255"
        )


def test_a_folder_as_output(network, tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        collapsible.export(network, tmp_path / "net.onnx", input_size=SIZE)


def test_a_network_of_several_outputs(tmp_path):
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    with pytest.raises(ExportError, match="one tensor is accepted"):
        collapsible.export(Two(), tmp_path / "net.onnx", input_size=SIZE)


@pytest.mark.slow
def test_for_an_npu_the_network_is_legalised_quantised_compiled_and_compared(tmp_path, monkeypatch):
    pytest.importorskip("ethosu", reason="the edge extra is not installed")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = collapsible.create_model("sesr_m2", scale=2)
    inputs = [picture[:1] for picture in np.random.default_rng(1).random((4, 1, 24, 20), "f4")]
    path = tmp_path / "m2.tflite"
    report = collapsible.export(
        network, path, input_size=(1, 1, 24, 20), int8=inputs, target="ethos-u55-256"
    )
    assert report.cpu_operators == ()
    assert report.fps is not None
    assert report.fps > 0
    assert report.compiled == tmp_path / "m2_vela.tflite"
    assert operators(report.compiled) == ["ethos-u"]
    (check,) = report.checks
    wanted = by_torch(network, np.stack(inputs))
    found = run_litert(path, np.stack(inputs))
    assert check.max_error == pytest.approx(np.abs(found - wanted).max(), rel=1e-5)
    # Of an untrained network, whose output is close to its input copied.
    assert check.rms_error < 0.01 * check.output_range
    with pytest.raises(ExportError, match="ethos-u"):
        run_litert(report.compiled, np.stack(inputs))
    assert json.loads(report.json())["legalised"]["target"] == "ethos-u55-256"
    assert "estimated by Vela" in report.table()


def test_without_the_compiler_nothing_is_written(network, pictures, tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise MissingExtraError("estimates for Ethos-U", "ethosu", "edge")

    monkeypatch.setattr(chain, "legalise", lambda net, chip, input_size: (net, None))
    monkeypatch.setattr(chain, "compile_vela", missing)
    with pytest.raises(MissingExtraError, match=r"collapsible\[edge\]"):
        collapsible.export(
            network, tmp_path / "a.tflite", input_size=SIZE, int8=[pictures], target="ethos-u55-256"
        )
    assert not list(tmp_path.iterdir())
