"""The picture graph against the same picture made step by step in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from collapsible.deploy import build_picture_graph, save_graph
from collapsible.deploy.picture_graph import bicubic_phases
from collapsible.deploy.plain import phases_of_transposed
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.imaging import resize, rgb_to_ycbcr, ycbcr_to_rgb
from collapsible.models import create_model


def lively(name: str, **options: Any) -> torch.nn.Module:
    """A network whose every part matters: large random weights, biases and slopes."""
    torch.manual_seed(0)
    network = create_model(name, **options)
    if name.startswith("sesr"):
        network, _ = collapse(network)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif parameter.ndim == 1:
                parameter.uniform_(0.05, 0.4)
        tail = network.last if name.startswith("sesr") else network.deconv
        tail.weight.mul_(0.05 / tail.weight.std())
    return network.eval()


def step_by_step(network: torch.nn.Module, picture: np.ndarray, scale: int) -> np.ndarray:
    """RGB float64 [s H, s W, 3], neither clipped nor rounded, by separate steps."""
    network = network.double()
    if network.colour == "rgb":
        x = torch.from_numpy(picture.astype(np.float64) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            return network(x)[0].permute(1, 2, 0).numpy() * 255
    ycbcr = rgb_to_ycbcr(picture.astype(np.float64))
    with torch.no_grad():
        y = network(torch.from_numpy(ycbcr[None, None, ..., 0] / 255))[0, 0].numpy() * 255
    chroma = resize(ycbcr[..., 1:], scale=scale)
    return ycbcr_to_rgb(np.concatenate([y[..., None], chroma], axis=2))


def by_onnxruntime(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(["upscaled"], {"picture": picture[None]})[0][0]


def by_openvino(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled([picture[None]])[0][0]


def a_picture(height: int = 50, width: int = 61) -> np.ndarray:
    """Smooth waves with noise: neither flat nor all clipping."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + c)) + np.cos(columns / (7 - c)) for c in range(3)]
    noise = np.random.default_rng(1).normal(0, 8, (height, width, 3))
    return np.clip(128 + 45 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


CASES = [
    ("sesr_m5", {"scale": 2}),
    ("sesr_m3", {"scale": 3, "act": "relu"}),
    ("sesr_m3", {"scale": 4}),
    ("sesr_m2", {"scale": 2, "colour": "rgb"}),
    ("sesr_m2", {"scale": 2, "colour": "rgb", "input_residual": False}),
    ("sesr_m2", {"scale": 2, "input_residual": False, "long_residual": False}),
    ("sesr_nas", {"scale": 2, "kernels": ((2, 2), (3, 1), (1, 4))}),
    ("fsrcnn", {"scale": 2}),
    ("fsrcnn", {"scale": 3}),
    ("fsrcnn", {"scale": 4, "colour": "rgb"}),
]


@pytest.mark.parametrize("engine", [by_onnxruntime, by_openvino])
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: str(v))
def test_graph_equals_the_steps_it_folds(name: str, options: dict[str, Any], engine: Any) -> None:
    network, scale, picture = lively(name, **options), options["scale"], a_picture()
    radius = network.receptive_radius
    expected = step_by_step(network, picture, scale)
    got = engine(build_picture_graph(network.float(), name=name), picture)
    assert got.dtype == np.uint8
    assert got.shape == (picture.shape[0] * scale, picture.shape[1] * scale, 3)
    inside = slice(radius * scale, -radius * scale)
    expected, got = expected[inside, inside], got[inside, inside]
    rounded = np.clip(np.rint(expected), 0, 255)
    # The test is worth something only where pixels are neither clipped nor plain.
    assert np.mean((expected > 0) & (expected < 255)) > 0.2
    assert np.abs(rounded - got).max() <= 1
    assert np.mean(rounded == got) > 0.999
    # Where they differ the exact value lies next to a tie.
    ties = np.abs(expected - np.floor(expected) - 0.5)[rounded != got]
    assert (ties < 2e-3).all()


def test_training_form_is_collapsed_on_the_way() -> None:
    network = create_model("sesr_m2", expansion=8)
    deployed, _ = collapse(network)
    wide, narrow = (build_picture_graph(n, name="n") for n in (network, deployed))
    assert wide.SerializeToString(deterministic=True) == narrow.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_phases_equal_matlab_resize(scale: int) -> None:
    plane = np.random.default_rng(0).uniform(0, 255, (12, 14))
    kernels = torch.from_numpy(bicubic_phases(scale))[:, None]
    phases = torch.nn.functional.conv2d(torch.from_numpy(plane)[None, None], kernels, padding=2)
    got = torch.nn.functional.pixel_shuffle(phases, scale)[0, 0].numpy()
    inside = slice(2 * scale, -2 * scale)
    np.testing.assert_allclose(
        got[inside, inside], resize(plane, scale=scale)[inside, inside], atol=1e-10
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_transposed_convolution_as_phases_is_exact_at_borders_too(scale: int) -> None:
    torch.manual_seed(0)
    deconv = torch.nn.ConvTranspose2d(
        3, 2, 9, stride=scale, padding=4, output_padding=scale - 1, bias=False
    ).double()
    x = torch.rand(1, 3, 7, 8, dtype=torch.float64)
    weight = torch.from_numpy(
        phases_of_transposed(deconv.weight.detach().numpy(), scale, padding=4)
    )
    phases = torch.nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    got = torch.nn.functional.pixel_shuffle(phases, scale)
    torch.testing.assert_close(got, deconv(x).detach(), atol=1e-12, rtol=0)


def test_graph_states_what_a_runtime_must_know() -> None:
    model = build_picture_graph(create_model("sesr_m2", scale=3), name="sesr_m2")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts == {
        "collapsible.name": "sesr_m2",
        "collapsible.scale": "3",
        "collapsible.receptive_radius": "6",
    }
    assert model.opset_import[0].version == 13


def test_other_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="Linear"):
        build_picture_graph(torch.nn.Linear(2, 2), name="x")


def test_saved_graph_is_the_graph_and_nothing_is_left_over(tmp_path: Path) -> None:
    model = build_picture_graph(create_model("sesr_m2"), name="sesr_m2")
    save_graph(model, tmp_path / "net.onnx")
    assert onnx.load(tmp_path / "net.onnx") == model
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
