"""int8 graphs on CPUs whose int8 arithmetic saturates.

x86 without VNNI adds the products of two pairs of bytes in 16 bits and cuts off what does not fit
(``vpmaddubsw``); both engines let that happen. ONNX Runtime has a remedy of its own, which is slow.
For OpenVINO weights are rounded a little more coarsely where two of them could overflow. What each
loses and takes: benchmarks/saturation.py, docs/training.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.upscaler.openvino_import import import_openvino

# Bytes of one kind, whose products do not saturate; it does nothing where nothing saturates.
ONNXRUNTIME_EXACT = ("session.x64quantprecision", "1")
# Unsigned bytes reach 255, and 255 * 128 is the last multiple of it below 2^15.
LARGEST_PAIR = 128
_CHANNELS = 16


@cache
def int8_saturates() -> bool:
    """Whether this CPU's int8 convolutions by OpenVINO lose what does not fit into 16 bits.

    Tried, in a fraction of a second and once a process: a convolution of the greatest bytes.
    """
    openvino = import_openvino()
    opset: Any = openvino.opset13
    picture = opset.parameter([1, _CHANNELS, 8, 8], np.float32)
    low, high = (np.full((1, 1, 1, 1), value, np.float32) for value in (0, 255))
    rounded = opset.fake_quantize(picture, low, high, low, high, 256)
    weight = opset.constant(np.full((_CHANNELS, _CHANNELS, 3, 3), 127, np.int8))
    scale = np.ones((_CHANNELS, 1, 1, 1), np.float32)
    scaled = opset.multiply(opset.convert(weight, "f32"), scale)
    result = opset.convolution(rounded, scaled, [1, 1], [0, 0], [0, 0], [1, 1])
    make: Any = openvino.Model
    model = make([opset.result(result)], [picture], "greatest")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled(np.full((1, _CHANNELS, 8, 8), 255, np.float32))[0]
    return bool(np.min(got) < 0.99 * 255 * 127 * 9 * _CHANNELS)


def exact_options() -> dict[str, str]:
    """What makes OpenVINO compute any quantised graph as it states: rounded, but in float."""
    return {"LP_TRANSFORMS_MODE": "NO"} if int8_saturates() else {}


def _largest_pair(codes: NDArray[Any]) -> NDArray[Any]:
    """The greatest sum of two codes of one sign in each row of [out, n]."""
    return np.maximum(*(np.sort((sign * codes).clip(0), 1)[:, -2:].sum(1) for sign in (1, -1)))


def _round_kernels(kernels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Codes [out, in, n] of kernels such that the sum of each stays, up to a half.

    What a kernel's rounding adds up to shifts flat areas; so the codes that were nearest to being
    rounded the other way are.
    """
    codes = np.rint(kernels)
    left = kernels - codes
    short = np.rint(left.sum(2, keepdims=True))
    ranks = np.argsort(np.argsort(-left * np.sign(short), 2), 2)
    return codes + np.sign(short) * (ranks < np.abs(short))


def without_overflow(weight: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [out, in, h, w] of which no two of a sign add up to more than 128, and their steps.

    The steps, float32 [out], are in units of the given codes': output channels that keep to the
    bound have 1 and stay as they are. Whichever pairs an engine forms, none can overflow.
    """
    out = len(weight)
    rows = weight.reshape(out, -1).astype(np.float64)
    kernels = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    steps = np.maximum(_largest_pair(rows) / LARGEST_PAIR, 1)
    while True:
        codes = _round_kernels(kernels / steps[:, None, None])
        over = _largest_pair(codes.reshape(out, -1)) > LARGEST_PAIR
        if not over.any():
            return codes.reshape(weight.shape).astype(np.int8), steps.astype(np.float32)
        steps[over] *= 1.004


def prevent_overflow(model: Any) -> None:
    """Replace, in an OpenVINO model, the int8 weights of convolutions by ones that do not overflow.

    Weights are ``Constant``, ``Convert``, perhaps ``Subtract`` of nought, ``Multiply`` by the
    step of each output channel, as the reader of QDQ ONNX makes them.
    """
    openvino = import_openvino()
    opset: Any = openvino.opset13
    for convolution in model.get_ops():
        if convolution.get_type_name() != "Convolution":
            continue
        scaled = node = convolution.input_value(1).get_node()
        while node.get_input_size():
            node = node.input_value(0).get_node()
        if scaled.get_type_name() != "Multiply" or node.get_element_type() != openvino.Type.i8:
            continue
        codes, steps = without_overflow(np.array(node.data))
        node.output(0).replace(opset.constant(codes).output(0))
        scale = opset.multiply(scaled.input_value(1), steps.reshape(-1, 1, 1, 1))
        scaled.input(1).replace_source_output(scale.output(0))
