"""What colour costs: the picture graph against the same network on Y alone.

    python benchmarks/colour.py [--model sesr_m5] [--scale 2] [--json FILE]

Both run on the whole 1920x1080 frame in OpenVINO. On Y alone: float Y in, float Y out, with
nothing before or after; the picture graph: uint8 RGB in and out. Speed does not depend on the
weights, which are newly drawn. Target: at most 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper
from timing import finish, parser, summarise, take_turns

from collapsible.deploy import build_picture_graph
from collapsible.deploy.plain import PlainNetwork, flatten_network
from collapsible.models import create_model

HEIGHT, WIDTH = 1080, 1920


def luma_graph(plain: PlainNetwork) -> onnx.ModelProto:
    """The network alone: float [1, 1, H, W] to float [1, 1, s H, s W]."""
    nodes, constants = [], []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(values: np.ndarray) -> str:
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    y, first = "x", ""
    for number, layer in enumerate(plain.layers):
        if number == len(plain.layers) - 1 and plain.long_residual:
            y = add("Add", y, first)
        padding = [layer.weight.shape[-1] // 2] * 4
        y = add("Conv", y, constant(layer.weight), constant(layer.bias), pads=padding)
        if layer.slope is not None:
            y = add("PRelu", y, constant(layer.slope.reshape(-1, 1, 1)))
        first = first or y
    if plain.input_residual:
        y = add("Add", y, "x")
    y = add("DepthToSpace", y, blocksize=plain.scale, mode="CRD")
    graph = helper.make_graph(
        nodes,
        "luma",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, "H", "W"])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 1, "sH", "sW"])],
        constants,
    )
    return helper.make_model(graph, ir_version=7, opset_imports=[helper.make_opsetid("", 13)])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="sesr_m5")
    options.add_argument("--scale", type=int, default=2)
    given = options.parse_args()
    network = create_model(given.model, scale=given.scale)
    random = np.random.default_rng(0)
    graphs = {
        "luma": (
            luma_graph(flatten_network(network)),
            random.random((1, 1, HEIGHT, WIDTH), dtype=np.float32),
        ),
        "picture": (
            build_picture_graph(network, name=given.model),
            random.integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8),
        ),
    }
    core, result = openvino.Core(), {}
    capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if precision == "bf16" and "BF16" not in capable:
            result[precision] = "absent: this CPU has no bf16"
            continue
        cases: dict[str, Callable[[], Any]] = {}
        for name, (graph, picture) in graphs.items():
            model = core.read_model(graph.SerializeToString())
            model.reshape(list(picture.shape))
            settings = {
                "INFERENCE_PRECISION_HINT": hint,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": given.threads,
            }
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            cases[name] = lambda request=request, picture=picture: request.infer(
                [picture], share_inputs=True, share_outputs=True
            )
        result[precision] = summarise(take_turns(cases, given.rounds), "luma")
    header = {"model": given.model, "scale": given.scale, "threads": given.threads}
    finish({**header, "picture": f"{WIDTH}x{HEIGHT}", "cases": result}, given.json)


if __name__ == "__main__":
    main()
