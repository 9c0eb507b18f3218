"""A stand-in network with the shipped graphs' contract: small, random, quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RADIUS = 4


def build_graph(path: Path, scale: int, radius: int = RADIUS) -> Path:
    """5x5, ReLU, 3x3, ReLU, 3x3, plus the picture itself, from bytes to bytes."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    random = np.random.default_rng(scale)
    features = 8
    weights = {
        "w0": random.normal(0, 0.1, (features, 3, 5, 5)),
        "w1": random.normal(0, 0.15, (features, features, 3, 3)),
        "w2": random.normal(0, 0.02, (3 * scale**2, features, 3, 3)),
        "one": np.repeat(np.eye(3), scale**2, axis=0)[:, :, None, None],
        "low": np.float32(0),
        "top": np.float32(255),
    }
    nodes = [
        helper.make_node("Cast", ["picture"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w0"], ["c0"], pads=[2] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Conv", ["planes", "one"], ["copy"]),
        helper.make_node("Add", ["c2", "copy"], ["sum"]),
        helper.make_node("DepthToSpace", ["sum"], ["large"], blocksize=scale, mode="CRD"),
        helper.make_node("Clip", ["large", "low", "top"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=onnx.TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["upscaled"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [helper.make_tensor_value_info("picture", onnx.TensorProto.UINT8, [1, "H", "W", 3])],
        [helper.make_tensor_value_info("upscaled", onnx.TensorProto.UINT8, [1, "sH", "sW", 3])],
        [numpy_helper.from_array(np.float32(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (("scale", scale), ("receptive_radius", radius), ("name", "stand-in")):
        model.metadata_props.add(key=f"collapsible.{key}", value=str(value))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
