"""ONNX graphs run as they are written, to compare engines with."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime


def run_exactly(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    """By the runtime, node by node as they are written: no int8 kernels, no fusing."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"picture": picture[None]})[0][0]
