"""Enlarging in memory: seams, borders, engines, kinds of pictures."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collapsible
from collapsible.errors import UnknownNameError, UsageError, WeightsError
from collapsible.upscaler import (
    Upscaler,
    engines,
    find_graph,
    open_engine,
    read_graph_file,
    upscale,
)
from collapsible.weights import read_card

ENGINES = ("openvino", "onnxruntime")


def noise(*shape: int, kind: type = np.uint8, seed: int = 0) -> np.ndarray:
    top = np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, top, shape, kind, endpoint=True)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    tile=st.integers(16, 90),
    kind=st.sampled_from([np.uint8, np.uint16]),
    scale=st.sampled_from([2, 3]),
)
def test_tiles_leave_no_trace(graphs, engine, height, width, tile, kind, scale):
    """Tiled and whole are the same, bit for bit, in fp32."""
    image = noise(height, width, 3, kind=kind)
    options = {"scale": scale, "engine": engine, "precision": "fp32", "threads": 1}
    whole = Upscaler(graphs[scale], tile=2048, **options)(image)
    tiled = Upscaler(graphs[scale], tile=tile, **options)(image)
    assert whole.shape == (height * scale, width * scale, 3)
    assert whole.dtype == kind
    assert np.array_equal(tiled, whole)


def test_the_radius_matters(tmp_path, graphs):
    """The test above could fail: a graph that understates its radius shows its seams."""
    from stand_in import RADIUS, build_graph

    image = noise(100, 100, 3)
    whole = Upscaler(graphs[2], engine="openvino", precision="fp32", tile=2048)(image)
    lying = build_graph(tmp_path / "lying.onnx", 2, radius=RADIUS - 2)
    tiled = Upscaler(lying, engine="openvino", precision="fp32", tile=32)(image)
    assert not np.array_equal(tiled, whole)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_engines_agree(graphs, kind):
    image = noise(61, 47, 3, kind=kind)
    a, b = (
        Upscaler(graphs[2], engine=engine, precision="fp32")(image).astype(np.int64)
        for engine in ENGINES
    )
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() < 0.001


def test_borders_are_mirrored(graphs):
    """A picture and the same one, mirrored at its borders by hand, agree where both exist."""
    image = noise(40, 33, 3)
    wide = np.pad(image, ((20, 20), (20, 20), (0, 0)), mode="symmetric")
    upscaler = Upscaler(graphs[2], precision="fp32")
    assert np.array_equal(upscaler(image), upscaler(wide)[40:-40, 40:-40])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4), (1, 1, 3)])
def test_every_kind_comes_back_as_it_came(graphs, kind, shape):
    result = upscale(noise(*shape, kind=kind), 2, graphs[2])
    assert result.shape == (2 * shape[0], 2 * shape[1], *shape[2:])
    assert result.dtype == kind


def test_channels_go_where_they_belong(graphs):
    upscaler = Upscaler(graphs[2], precision="fp32")
    rgba = noise(20, 30, 4)
    result = upscaler(rgba)
    assert np.array_equal(result[..., :3], upscaler(rgba[..., :3]))
    assert np.array_equal(result[..., 3], upscaler(rgba[..., 3]))
    assert np.array_equal(upscaler(rgba[..., :2])[..., 0], upscaler(rgba[..., 0]))
    rgba[..., 3] = 77
    assert (upscaler(rgba)[..., 3] == 77).all()


def test_sixteen_bits_are_more_than_eight(graphs):
    """257 * v in 16 bits is v in 8; between the 8-bit steps 16 bits still tell apart."""
    upscaler = Upscaler(graphs[2], precision="fp32")
    image = noise(30, 40, 3)
    fine = upscaler(image.astype(np.uint16) * 257)
    assert np.abs(fine / 257 - upscaler(image)).max() <= 0.5 + 1e-2
    assert len(np.unique(fine)) > 1000


def test_bf16_is_close_where_the_cpu_has_it(graphs):
    from collapsible.upscaler.engines import LARGEST_BF16_ERROR, bf16_error

    graph = find_graph(graphs[2], 2)
    error = bf16_error(graph)
    chosen = open_engine(graph).precision
    if error is None:
        assert chosen == "fp32"
        pytest.skip("this CPU has no bf16 arithmetic")
    assert chosen == ("bf16" if error < LARGEST_BF16_ERROR else "fp32")
    assert error < 1


def test_no_socket_is_opened(graphs, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for engine in ENGINES:
        assert upscale(noise(8, 8, 3), 2, graphs[2], engine=engine).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_what_is_no_picture_is_refused(graphs, image):
    with pytest.raises(UsageError, match=r"uint8 or uint16, HxW or HxWx\{1,2,3,4\}"):
        upscale(image, 2, graphs[2])


def test_wrong_use_is_named(graphs, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown engine 'openvin': did you mean 'openvino'"):
        Upscaler(graphs[2], engine="openvin")
    with pytest.raises(UnknownNameError, match="unknown precision"):
        Upscaler(graphs[2], precision="fp8")
    with pytest.raises(UsageError, match="onnxruntime runs fp32 and int8 here"):
        Upscaler(graphs[2], engine="onnxruntime", precision="bf16")
    with pytest.raises(UsageError, match="at least 16"):
        Upscaler(graphs[2], tile=4)
    with pytest.raises(WeightsError, match="enlarges x2, not x3"):
        Upscaler(graphs[2], scale=3)
    with pytest.raises(WeightsError, match="cannot read"):
        Upscaler(tmp_path / "none.onnx")
    for text in (b"not a graph at all", b"", b"\x0a\xff\xff"):
        (tmp_path / "bad.onnx").write_bytes(text)
        with pytest.raises(WeightsError, match=r"bad\.onnx"):
            Upscaler(tmp_path / "bad.onnx")


def test_graphs_state_their_facts(graphs):
    graph = read_graph_file(graphs[3])
    assert (graph.scale, graph.radius, graph.name) == (3, 4, "stand-in")


@pytest.mark.parametrize(
    "size", [(1080, 1920), (720, 1280), (2160, 3840), (6000, 8000), (641, 650)]
)
def test_automatic_tiles_waste_little(graphs, size):
    """All tiles are alike, and together hardly larger than the picture and its surroundings."""
    upscaler = Upscaler(graphs[2])
    shapes = []

    class Nearest:
        name, precision = "nearest", "fp32"

        def run(self, tile):
            shapes.append(tile.shape[:2])
            return tile.repeat(2, 0).repeat(2, 1)

    upscaler.engine = Nearest()
    image = np.zeros((*size, 3), np.uint8)
    image[-1, -1] = 7
    assert upscaler(image)[-1, -1].tolist() == [7, 7, 7]
    assert len(set(shapes)) == 1
    height, width = shapes[0]
    assert max(height, width) <= 640 + 2 * 4
    assert sum((h - 8) * (w - 8) for h, w in shapes) < 1.1 * size[0] * size[1]


def test_compiled_graphs_are_bounded(graphs, monkeypatch):
    """Many small shapes are kept, few large ones, and what was used last among them."""
    monkeypatch.setattr(engines, "KEPT_PIXELS", 1000)
    engine = engines.OpenVinoEngine(find_graph(graphs[2], 2), "fp32", 1)

    def kept(*sides):
        for side in sides:
            engine.run(noise(side, side, 3))
        return [shape[0] for shape, _ in engine._requests]

    assert kept(10, 11, 12, 13) == [10, 11, 12, 13]
    assert kept(10, 20) == [11, 12, 13, 10, 20]  # 934 pixels
    assert kept(21) == [10, 20, 21]  # 441 more: three must go
    assert kept(30) == [30]
    assert kept(40) == [40]
    assert kept(40, 5) == [5]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_of_another_kind_is_named(tmp_path, engine):
    """Its facts are stated, but it takes floats in planes."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1, 3, "H", "W"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key in ("scale", "receptive_radius"):
        model.metadata_props.add(key=f"collapsible.{key}", value="2")
    path = tmp_path / "planes.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"planes\.onnx does not go from one uint8 picture"):
        Upscaler(path, engine=engine)


def test_a_damaged_shipped_graph_is_refused(tmp_path, graphs):
    """A changed weight would pass every other check, and spoil every picture."""
    for path in (graphs[2], graphs[2].with_suffix(".json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = read_card(tmp_path / graphs[2].with_suffix(".json").name)
    assert find_graph(card, 2).scale == 2
    content = bytearray(card.onnx_path.read_bytes())
    content[content.index(b"w0") - 100] ^= 1
    card.onnx_path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or another file"):
        Upscaler(card)


def test_the_public_function_is_the_same_thing(graphs):
    image = noise(12, 13, 3)
    assert np.array_equal(collapsible.upscale(image, model=graphs[2]), upscale(image, 2, graphs[2]))
