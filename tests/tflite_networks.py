"""Small int8 TFLite networks written by hand, operator by operator: their MACs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Writer:
    """Adds operators one after the other to a chain, and writes the file."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.buffers: list[Any] = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.first = self.last = self.tensor("input", shape)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        data: np.ndarray | None = None,
        scales: tuple[float, ...] = (0.05,),
        kind: str = "INT8",
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        tensor.type = getattr(self.schema.TensorType, kind)
        quantization = self.schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = list(scales), [0] * len(scales)
        if kind != "FLOAT32":
            tensor.quantization = quantization
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, kind: str, inputs: list[int], output: int, options: Any) -> None:
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, kind)
        self.codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = (
            len(self.codes) - 1,
            inputs,
            [output],
        )
        operator.builtinOptionsType = getattr(
            self.schema.BuiltinOptions, type(options).__name__.removesuffix("T")
        )
        operator.builtinOptions = options
        self.operators.append(operator)
        self.last = output

    def convolution(self, features: int, kernel: int) -> Writer:
        """Same size, stride 1; adds kernel^2 * in * features multiply-accumulates a pixel."""
        _, height, width, channels = self.tensors[self.last].shape
        random = np.random.default_rng(len(self.tensors))
        weights = random.integers(-127, 128, (features, kernel, kernel, channels)).astype(np.int8)
        number = len(self.operators)
        inputs = [
            self.last,
            self.tensor(f"weights{number}", weights.shape, weights, (0.01,)),
            self.tensor(
                f"bias{number}", (features,), np.zeros(features, np.int32), (5e-4,), "INT32"
            ),
        ]
        options = self.schema.Conv2DOptionsT()
        options.padding = self.schema.Padding.SAME
        options.strideW = options.strideH = 1
        output = self.tensor(f"convolution{number}", (1, height, width, features))
        self.operator("CONV_2D", inputs, output, options)
        return self

    def depth_to_space(self, block: int) -> Writer:
        _, height, width, channels = self.tensors[self.last].shape
        options = self.schema.DepthToSpaceOptionsT()
        options.blockSize = block
        shape = (1, block * height, block * width, channels // block**2)
        output = self.tensor(f"shuffled{len(self.operators)}", shape)
        self.operator("DEPTH_TO_SPACE", [self.last], output, options)
        return self

    def write(self, path: Path, dynamic: bool = False) -> Path:
        """The file; with ``dynamic`` its input has no fixed height and width."""
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = [self.first], [self.last]
        if dynamic:
            batch, _, _, channels = self.tensors[self.first].shape
            self.tensors[self.first].shapeSignature = [batch, -1, -1, channels]
        model = self.schema.ModelT()
        model.version, model.subgraphs = 3, [graph]
        model.operatorCodes, model.buffers = self.codes, self.buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path
