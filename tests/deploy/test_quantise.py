"""Picture graphs in int8: the arithmetic, what the engine really runs, and wrong use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collapsible.deploy import build_picture_graph, quantise_picture_graph, save_graph, ship
from collapsible.deploy.quantise import PICTURE, Range, code_weights
from collapsible.errors import UsageError
from collapsible.models import create_model
from collapsible.upscaler import Upscaler, upscale
from collapsible.upscaler.engines import OpenVinoEngine
from collapsible.upscaler.graph_file import read_graph_file


def scene(height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth shades, edges and a little noise, RGB uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin((x * a + y * b) / 9) for a, b in random.uniform(-1, 1, (3, 2))], -1)
    edges = 60 * np.sign(np.sin((x + 2 * y) / random.uniform(6, 15)))[..., None]
    picture = 128 + 50 * waves + edges + random.normal(0, 3, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    network = create_model("sesr_m5", scale=2, weights="default")
    pictures = [scene(seed=seed) for seed in range(4)]
    files = {"float": folder / "float.onnx", "int8": folder / "int8.onnx"}
    save_graph(build_picture_graph(network, name="sesr_m5"), files["float"])
    save_graph(quantise_picture_graph(network, pictures, name="sesr_m5"), files["int8"])
    return files


@given(
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
    values=st.lists(st.floats(-2e3, 2e3), min_size=1, max_size=20),
)
def test_a_range_rounds_to_the_nearest_of_its_256_values_and_keeps_zero(low, high, values):
    if high - low < 1e-3:
        return
    chosen = Range(low, high)
    tensor = torch.tensor([*values, 0.0], dtype=torch.float64)
    rounded = chosen.round(tensor).numpy()
    assert rounded[-1] == 0
    allowed = (np.arange(256) - float(chosen.zero_point)) * float(chosen.scale)
    nearest = np.abs(allowed[:, None] - tensor.numpy()).min(axis=0)
    np.testing.assert_allclose(np.abs(rounded - tensor.numpy()), nearest, atol=1e-6)


def test_bytes_pass_unchanged():
    levels = torch.arange(256, dtype=torch.float32) - 128
    assert torch.equal(PICTURE.round(levels), levels)


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(1e-6, 1e3))
def test_weights_are_coded_better_than_by_their_greatest_value(seed, outputs, size):
    weight = np.random.default_rng(seed).standard_t(3, (outputs, 4, 3, 3)) * size
    codes = code_weights(weight)
    assert codes.values.dtype == np.int8
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    plain = np.rint(weight / step) * step
    error, usual = (((x - weight) ** 2).sum((1, 2, 3)) for x in (codes.weight(), plain))
    assert (error <= usual * (1 + 1e-5)).all()
    assert (codes.scale <= step[:, 0, 0, 0] * (1 + 1e-6)).all()


def test_the_engine_runs_every_convolution_of_the_network_in_int8(graphs):
    import openvino

    model = openvino.Core().read_model(graphs["int8"])
    model.reshape([1, 64, 80, 3])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ordered_ops()
        if "Convolution" in op.get_rt_info()["layerType"].astype(str)
    ]
    # First, five blocks, last; and the picture's own, in float.
    assert len(kinds) == 8
    assert sum(kind in {"i8", "u8"} for kind in kinds) == 7


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_close_to_the_float_graph_on_an_unseen_picture(graphs, engine):
    picture = scene(90, 70, seed=9)
    wanted = upscale(picture, 2, graphs["float"], precision="fp32").astype(float)
    got = upscale(picture, 2, graphs["int8"], engine=engine).astype(float)
    error = ((got - wanted) ** 2).mean()
    # Networks of this size err by about 10 squared levels themselves.
    assert 0 < error < 2


def test_tiles_leave_no_seam(graphs):
    picture = scene(61, 75, seed=3)
    whole = upscale(picture, 2, graphs["int8"])
    assert np.array_equal(upscale(picture, 2, graphs["int8"], tile=16), whole)
    deep = picture.astype(np.uint16) * 257
    assert np.abs(upscale(deep, 2, graphs["int8"]) / 257 - whole).max() <= 1.01


def test_precision_goes_with_the_graph(graphs):
    assert Upscaler(graphs["int8"]).engine.precision == "int8"
    with pytest.raises(UsageError, match="is int8"):
        Upscaler(graphs["int8"], precision="fp32")
    with pytest.raises(UsageError, match="not quantised"):
        Upscaler(graphs["float"], precision="int8")


def test_a_model_without_an_int8_graph(tmp_path):
    network = create_model("sesr_m2", scale=2)
    card = ship(network, architecture="sesr_m2", scale=2, folder=tmp_path)
    with pytest.raises(UsageError, match="no int8 graph"):
        Upscaler(card, precision="int8")
    assert Upscaler(card, fast=True).engine.precision != "int8"
    card = ship(
        network,
        architecture="sesr_m2",
        scale=2,
        folder=tmp_path,
        calibration=[scene(), scene(seed=1)],
    )
    assert Upscaler(card, fast=True).engine.precision == "int8"
    assert Upscaler(card).engine.precision != "int8"


@pytest.mark.parametrize(
    "act", [pytest.param("relu", id="relu"), pytest.param("prelu", id="prelu")]
)
@pytest.mark.parametrize(
    "options",
    [{"colour": "rgb"}, {"input_residual": False}, {"scale": 3}, {"kernels": ((2, 2), (1, 3))}],
)
def test_every_form_of_network_is_quantised(tmp_path, act, options):
    torch.manual_seed(1)
    name = "sesr_nas" if "kernels" in options else "sesr_m2"
    network = create_model(name, act=act, **{"scale": 2, **options})
    picture = scene(32, 40, seed=5)
    for name, model in (
        ("float", build_picture_graph(network, name="m2")),
        ("int8", quantise_picture_graph(network, [picture], name="m2")),
    ):
        save_graph(model, tmp_path / f"{name}.onnx")
    large = [
        OpenVinoEngine(read_graph_file(tmp_path / f"{name}.onnx"), "fp32").run(
            picture.astype(np.float32)
        )
        for name in ("float", "int8")
    ]
    # An untrained network's output is of any size: relative to that of the float graph.
    assert np.abs(large[1] - large[0]).mean() < 0.05 * np.abs(large[0]).mean() + 1


@pytest.mark.parametrize(
    "pictures",
    [
        [],
        [np.zeros((32, 32), np.uint8)],
        [np.zeros((32, 32, 3), np.float32)],
        [scene(), np.zeros((32, 32, 4), np.uint8)],
        [np.zeros((8, 32, 3), np.uint8)],
    ],
    ids=["none", "flat", "float", "rgba", "small"],
)
def test_pictures_of_the_wrong_shape_are_named(pictures):
    with pytest.raises(UsageError, match="calibrat"):
        quantise_picture_graph(create_model("sesr_m2"), pictures, name="m2")
