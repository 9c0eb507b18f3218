"""One ONNX graph from a uint8 RGB picture to the enlarged uint8 RGB picture.

A network on luma needs colour around it: RGB to Y before, and after it the bicubic chroma and
YCbCr to RGB. All of that is linear, so it collapses into the network's own convolutions, exactly.
With M the 3x3 matrix of RGB to YCbCr, K its inverse and x the picture,

    first layer   its kernel times M's row of Y, the bias taking up the offset 16;
    luma out      K's column of Y times the last layer, which so grows to 3 s s channels;
    the rest      K (input residual in Y, bicubic in Cb and Cr) M x: one 5x5 kernel from 3 to 3 s s.

The last two read the same place, so they are one convolution of [features, x], and after it come
only the shuffle to pixels, clipping and rounding.

Measured, SESR-M5 x2, 1080p to 4K, OpenVINO bf16, 2 threads of a busy EPYC without AMX: the time
against the network on Y alone (least and median of 6 interleaved runs, good to about 0.1), and the
picture's PSNR in bf16 less that in fp32 (mean of Set5, Set14; the worst picture):

    two convolutions and their sum     1.13, 1.05   -0.0075, -0.0044; -0.015 dB
    one convolution of [features, x]   1.07, 1.07   +0.0004, -0.0002; -0.002 dB
    the same, x centred on 0           1.19, 0.99   -0.0007, -0.0005; -0.003 dB    (built here)
    nearest neighbour added in fp32    1.18, 1.06   +0.0000, -0.0004; -0.003 dB

The graph as built, by benchmarks/colour.py later: 1.08, 1.09 (bf16) and 1.03, 1.09 (fp32).

Adding two convolutions rounds one of them to bf16 at the size of a pixel, in steps of one level
above 128; one convolution sums in fp32. Centring is one subtraction at low resolution, and lessens
what the rounding of weights shifts in flat areas (x - 128 itself is exact in bf16): the root mean
square change fell from 0.34 to 0.25 levels. Shuffling after the rounding, on uint8, gained nothing
measurable, and not every runtime shuffles uint8; moving the channels last before it cost a third.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from collapsible.algebra import same_padding
from collapsible.deploy.plain import Array, Layer, PlainNetwork, flatten_network
from collapsible.imaging import RGB_TO_YCBCR, YCBCR_OFFSET, YCBCR_TO_RGB, atomic_write

# Old enough for runtimes of 2020, and the first with everything used here.
OPSET = 13
IR_VERSION = 7
CENTRE = 128.0
# Elements from which on a kernel is worth half the bytes and a node.
LEAST_HALVED = 1024


def build_picture_graph(network: nn.Module, *, name: str) -> onnx.ModelProto:
    """The deployed picture model of a network (SESR or FSRCNN, on Y or RGB).

    The training form is collapsed first. Input ``picture``: uint8 [1, H, W, 3] RGB, any H and W;
    output ``upscaled``: uint8 [1, s H, s W, 3]. Convolutions pad with zeros (mid-grey here), so
    pixels nearer to the border than the receptive radius are right only if the picture is mirrored
    at its borders before and cropped after. ``metadata_props`` hold ``collapsible.name``,
    ``collapsible.scale`` and ``collapsible.receptive_radius`` (input pixels).
    Raises ``UsageError`` for a network of another family.
    """
    return assemble(flatten_network(network), name=name)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph whole or not at all; raises ``PictureError`` that names the path."""
    with atomic_write(path) as stream:
        stream.write(model.SerializeToString(deterministic=True))


def bicubic_phases(scale: int) -> Array:
    """Kernels [scale * scale, 5, 5] that enlarge by MATLAB's bicubic (a = -0.5), phase by phase.

    Away from the border they give what ``imaging.resize`` gives on floats. (Keys 1981, eq. 15.)
    """
    line = np.zeros((scale, 5))
    for phase in range(scale):
        distance = np.abs((phase + 0.5) / scale - 0.5 - np.arange(-2, 3))
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        line[phase] = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return np.einsum("pi,qj->pqij", line, line).reshape(scale**2, 5, 5)


def assemble(plain: PlainNetwork, *, name: str) -> onnx.ModelProto:
    """The picture graph of plain arrays; see ``build_picture_graph``."""
    graph = GraphBuilder()
    layers = fold_colour(plain)
    x = graph.begin()
    y = first = graph.convolve(x, layers[0])
    for layer in layers[1:-1]:
        y = graph.convolve(y, layer)
    if plain.long_residual:
        y = graph.add("Add", y, first)
    if uses_picture(layers):
        y = graph.add("Concat", y, x, axis=1)
    kernel = graph.colour_kernel(layers[-1].weight, features_read(layers, len(layers) - 1))
    y = graph.convolve(y, layers[-1], kernel)
    graph.end(y, plain.scale)
    return graph.finish(name, plain)


def fold_colour(plain: PlainNetwork) -> tuple[Layer, ...]:
    """The layers from the picture, centred on 0, in levels, to RGB levels before the shuffle.

    The last layer reads the features, then the picture's three channels where it takes part
    (``uses_picture``); its output channels are in the order (row, column, colour).
    """
    return (_fold_first(plain), *plain.layers[1:-1], _fold_last(plain, _beside(plain)))


def uses_picture(layers: tuple[Layer, ...]) -> bool:
    """Whether the last of ``fold_colour``'s layers reads the picture beside the features."""
    return layers[-1].weight.shape[1] > features_read(layers, len(layers) - 1)


def features_read(layers: tuple[Layer, ...], index: int) -> int:
    """How many of a layer's input channels are features: all, but for the last one's picture."""
    return layers[index - 1].weight.shape[0] if index else layers[0].weight.shape[1]


@dataclass
class GraphBuilder:
    """Nodes and constants under construction, with names given in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, values: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def kernel(self, weight: Array) -> str:
        """A kernel in fp32; kept in half the bytes where fp16 holds every value of it exactly."""
        values = weight.astype(np.float32)
        if values.size < LEAST_HALVED:
            return self.constant(values)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            return self.constant(values)
        return self.add("Cast", self.constant(half), to=TensorProto.FLOAT)

    def colour_kernel(self, weight: Array, features: int) -> str:
        """The last kernel; what it makes of the features is kept once where all colours share it.

        Engines fold what is made of constants when they load the graph.
        """
        values = weight[:, :features].astype(np.float32)
        outputs, rest = len(values), values.shape[1:]
        each = values.reshape(outputs // 3, 3, *rest)
        if not (each == each[:, :1]).all():
            return self.kernel(weight)
        once = self.constant(each[:, :1])
        y = self.add("Expand", once, self.constant(np.array(each.shape, np.int64)))
        y = self.add("Reshape", y, self.constant(np.array([outputs, *rest], np.int64)))
        if weight.shape[1] == features:
            return y
        return self.add("Concat", y, self.kernel(weight[:, features:]), axis=1)

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def begin(self) -> str:
        """The picture as planes centred on 0."""
        x = self.add("Cast", "picture", to=TensorProto.FLOAT)
        x = self.add("Transpose", x, perm=[0, 3, 1, 2])
        return self.add("Sub", x, self.constant(np.float32(CENTRE)))

    def end(self, y: str, scale: int) -> None:
        """From RGB levels of each phase to the enlarged picture."""
        y = self.add("DepthToSpace", y, blocksize=scale, mode="DCR")
        y = self.add("Clip", y, self.constant(np.float32(0)), self.constant(np.float32(255)))
        y = self.add("Cast", self.add("Round", y), to=TensorProto.UINT8)
        self.add("Transpose", y, output="upscaled", perm=[0, 2, 3, 1])

    def convolve(self, x: str, layer: Layer, weight: str | None = None) -> str:
        """A layer with its bend; ``weight`` names its weights where they are not a constant."""
        weight = weight or self.kernel(layer.weight)
        bias = self.constant(layer.bias.astype(np.float32))
        left, right, top, bottom = same_padding((layer.weight.shape[-2], layer.weight.shape[-1]))
        y = self.add("Conv", x, weight, bias, pads=[top, left, bottom, right])
        if layer.slope is None:
            return y
        if not layer.slope.any():
            return self.add("Relu", y)
        slope = self.constant(layer.slope.astype(np.float32).reshape(-1, 1, 1))
        return self.add("PRelu", y, slope)

    def finish(
        self, name: str, plain: PlainNetwork, *, precision: str | None = None
    ) -> onnx.ModelProto:
        picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, "H", "W", 3])
        upscaled = helper.make_tensor_value_info("upscaled", TensorProto.UINT8, [1, "sH", "sW", 3])
        graph = helper.make_graph(self.nodes, name, [picture], [upscaled], self.constants)
        model = helper.make_model(
            graph,
            producer_name="collapsible",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        facts = {
            "collapsible.name": name,
            "collapsible.scale": str(plain.scale),
            "collapsible.receptive_radius": str(plain.receptive_radius),
        }
        if precision is not None:
            facts["collapsible.precision"] = precision
        helper.set_model_props(model, facts)
        onnx.checker.check_model(model, full_check=True)
        return model


def _fold_first(plain: PlainNetwork) -> Layer:
    """The first layer on the centred picture in levels in place of planes in [0, 1]."""
    layer = plain.layers[0]
    weight, bias = layer.weight / 255, layer.bias
    if plain.colour == "y":
        bias = bias + weight.sum((1, 2, 3)) * YCBCR_OFFSET[0]
        weight = weight * RGB_TO_YCBCR[0].reshape(1, 3, 1, 1)
    return Layer(weight, bias + weight.sum((1, 2, 3)) * CENTRE, layer.slope)


def _beside(plain: PlainNetwork) -> Array | None:
    """The kernel [s s, 3, 3, k, k] (phase, colour out, colour in) of the picture beside the last.

    None where the picture takes no part.
    """
    centre = np.zeros((5, 5))
    centre[2, 2] = 1
    residual = np.broadcast_to(centre, (plain.scale**2, 5, 5)) * float(plain.input_residual)
    if plain.colour == "rgb":
        if not plain.input_residual:
            return None
        return np.einsum("oi,phw->poihw", np.eye(3), residual)
    luma = np.outer(YCBCR_TO_RGB[:, 0], RGB_TO_YCBCR[0])
    chroma = YCBCR_TO_RGB[:, 1:] @ RGB_TO_YCBCR[1:]
    return np.einsum("oi,phw->poihw", luma, residual) + np.einsum(
        "oi,phw->poihw", chroma, bicubic_phases(plain.scale)
    )


def _fold_last(plain: PlainNetwork, beside: Array | None) -> Layer:
    """The last layer to RGB levels, channels in the order (row, column, colour)."""
    layer, phases = plain.layers[-1], plain.scale**2
    features, size = layer.weight.shape[1], layer.weight.shape[-1]
    if plain.colour == "rgb":
        weight = 255 * layer.weight.reshape(3, phases, features, size, size).swapaxes(0, 1)
        bias = 255 * layer.bias.reshape(3, phases).swapaxes(0, 1)
    else:
        # Y to RGB is the same gain for the three colours.
        gain = 255 * YCBCR_TO_RGB[:, 0]
        weight = np.einsum("c,pfhw->pcfhw", gain, layer.weight)
        bias = np.outer(layer.bias, gain)
        if not plain.input_residual:
            bias = bias - YCBCR_OFFSET[0] * YCBCR_TO_RGB[:, 0]
    if beside is not None:
        size = max(size, beside.shape[-1])
        weight = np.concatenate([_grow(weight, size), _grow(beside, size)], axis=2)
        # What the constant part of the centred picture would have given, which is 128 where the
        # kernel has sum 1 (with the input residual) and less where only chroma passes.
        bias = bias + CENTRE * beside.sum((2, 3, 4))
    return Layer(weight.reshape(3 * phases, -1, size, size), bias.reshape(-1))


def _grow(kernel: Array, size: int) -> Array:
    margin = (size - kernel.shape[-1]) // 2
    return np.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(margin, margin)] * 2)
