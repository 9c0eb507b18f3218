"""The picture graph in int8: calibrated on pictures, written with quantise-dequantise pairs.

Weights are int8, symmetric, one scale for each output channel; activations uint8, one scale and
zero point for each tensor (the usual scheme: Jacob et al. 2018, arXiv 1712.05877). Every
convolution of the network runs in int8 but the one beside the last that carries the picture itself
(input residual and chroma, 3 channels): what is lost there is lost in the result, and it is a
fifteenth of the work. An engine with int8 kernels fuses the pairs around each convolution.

Before, channels are given ranges more like each other's (``deploy.equalise``), as far as costs the
finished pictures least: what activations gain, kernels may lose (arXiv 2211.10438, equation 4).

Clipping: a range that holds the rarest value wastes steps on it. The percentile of the values that
a range holds is chosen by what it costs the finished picture in dB, first one for all tensors, then
a neighbour for each where that is better. The mean square error, of tensors or of the result, is no
guide: a few pixels decide it, and it asks for ranges from least to greatest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsible.blocks.collapsible_conv import same_conv2d
from collapsible.deploy.equalise import factors, scale_channels
from collapsible.deploy.picture_graph import (
    CENTRE,
    GraphBuilder,
    features_read,
    fold_colour,
    uses_picture,
)
from collapsible.deploy.plain import Array, Layer, PlainNetwork, flatten_network
from collapsible.errors import UsageError

# Percentiles of the values that a range may hold, widest first.
PERCENTILES = (100.0, 99.99, 99.97, 99.9, 99.8, 99.5, 99.0)
# How far on the way to like ranges of channels.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the values of a channel, when it is compared with others.
CHANNEL_PERCENTILE = 99.99
LEAST_SIDE = 16
# The network's own mean square error in squared levels, at a typical 38 dB: what quantising costs
# a picture in dB is 10 log10(1 + error / OWN_ERROR).
OWN_ERROR = 255**2 / 10**3.8


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that a tensor's uint8 codes stand for; 0 is exact."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        return np.float32(max(self.high - self.low, 1e-8) / 255)

    @property
    def zero_point(self) -> np.uint8:
        return np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, 255))

    def round(self, values: Tensor) -> Tensor:
        """The values that codes can stand for, nearest to the given ones."""
        zero = float(self.zero_point)
        codes = torch.clamp(torch.round(values / float(self.scale)) + zero, 0, 255)
        return (codes - zero) * float(self.scale)


PICTURE = Range(-CENTRE, 255.0 - CENTRE)  # exact: bytes stay bytes


def quantise_picture_graph(
    network: nn.Module, pictures: Sequence[NDArray[np.uint8]], *, name: str
) -> onnx.ModelProto:
    """``build_picture_graph`` in int8, for a SESR or FSRCNN network.

    ``pictures`` are low-resolution RGB pictures uint8 [H, W, 3] like those to come, each side at
    least 16 pixels; a few dozen crops of 64 to 128 pixels are plenty. The training form is
    collapsed first. The graph says ``collapsible.precision`` = ``int8`` of itself.
    Raises ``UsageError`` for pictures of another form or none, or another family of networks.
    """
    return choose_codes(network, pictures).graph(name)


@dataclass(frozen=True)
class QuantisedLayers:
    """All that a picture graph in int8 is made of.

    ``layers`` are those of ``fold_colour``, equalised; ``codes`` their kernels, of the last one
    the part that reads features; ``ranges`` those of the tensors between, in the order of
    computation.
    """

    plain: PlainNetwork
    layers: tuple[Layer, ...]
    codes: tuple[Codes, ...]
    ranges: tuple[Range, ...]

    def graph(self, name: str) -> onnx.ModelProto:
        """The picture graph with quantise-dequantise pairs."""
        return _assemble(self.plain, self.layers, self.codes, self.ranges, name)

    def kernels(self) -> list[Array]:
        """Each layer's kernel in float, of the last one the part that reads features."""
        return _feature_kernels(self.layers)

    def beside(self) -> Layer | None:
        """The convolution that carries the picture itself, in float; None where there is none."""
        return _beside(self.layers)


def choose_codes(network: nn.Module, pictures: Sequence[NDArray[np.uint8]]) -> QuantisedLayers:
    """Codes and ranges of a network's picture graph; see ``quantise_picture_graph``."""
    check_pictures(pictures)
    plain = flatten_network(network)
    layers = fold_colour(plain)
    planes = [
        torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) - np.float32(CENTRE))
        for picture in pictures
    ]
    by = _channel_factors(plain, layers, planes)

    def coded(share: float) -> tuple[float, QuantisedLayers]:
        scaled = scale_channels(layers, [factor**share for factor in by])
        codes = tuple(code_weights(kernel) for kernel in _feature_kernels(scaled))
        loss, ranges = _calibrate(plain, scaled, codes, planes)
        return loss, QuantisedLayers(plain, scaled, codes, tuple(ranges))

    return min(map(coded, SHARES), key=lambda found: found[0])[1]


def check_pictures(pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Raises ``UsageError`` unless these are pictures to calibrate on."""
    if len(pictures) == 0:
        raise UsageError("no pictures to calibrate on: give a few dozen")
    for index, picture in enumerate(pictures):
        fits = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3
        if not fits or picture.dtype != np.uint8 or min(picture.shape[:2]) < LEAST_SIDE:
            shape, kind = getattr(picture, "shape", "?"), getattr(picture, "dtype", "?")
            raise UsageError(
                f"calibration picture {index} of shape {shape} and dtype {kind}: accepted are "
                f"RGB pictures uint8 [H, W, 3] of at least {LEAST_SIDE} pixels a side"
            )


@dataclass(frozen=True)
class Codes:
    """Weights as int8 codes [out, in, k, k] and the size of a step of each output channel."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]

    def weight(self) -> Array:
        return self.values * self.scale.astype(np.float64)[:, None, None, None]


def code_weights(weight: Array) -> Codes:
    """int8 codes of a kernel [out, in, k, k], symmetric, each output channel with its own step.

    The step is the one of least square error between 0.8 of the channel's greatest weight over 127
    and all of it.
    """
    greatest = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True), 1e-12)
    best = np.full(len(weight), np.inf)
    values, scale = np.zeros(weight.shape, np.int8), np.ones(len(weight), np.float32)
    for part in (1.0, 0.95, 0.9, 0.85, 0.8):
        step = (part * greatest / 127).astype(np.float32)
        tried = np.clip(np.rint(weight / step), -127, 127)
        error = ((tried * step - weight) ** 2).sum((1, 2, 3))
        better = error < best
        best[better] = error[better]
        values[better], scale[better] = tried[better].astype(np.int8), step[better, 0, 0, 0]
    return Codes(values, scale)


def _feature_kernels(layers: tuple[Layer, ...]) -> list[Array]:
    return [layer.weight[:, : features_read(layers, i)] for i, layer in enumerate(layers)]


def _beside(layers: tuple[Layer, ...]) -> Layer | None:
    """The part of the last layer that reads the picture, without a bias of its own."""
    if not uses_picture(layers):
        return None
    kernel = layers[-1].weight[:, features_read(layers, len(layers) - 1) :]
    return Layer(kernel, np.zeros(len(kernel)))


def _convolve(x: Tensor, weight: Array, layer: Layer) -> Tensor:
    kernel, bias = (torch.from_numpy(np.float32(array)) for array in (weight, layer.bias))
    y = same_conv2d(x, kernel, bias)
    if layer.slope is None:
        return y
    slope = torch.from_numpy(np.float32(layer.slope)).reshape(-1, 1, 1)
    return torch.where(y > 0, y, y * slope)


def _run(
    plain: PlainNetwork,
    layers: tuple[Layer, ...],
    weights: Sequence[Array],
    x: Tensor,
    ranges: Sequence[Range] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The last layer's share of the result, and each tensor that is to have a range, unrounded.

    With ``ranges`` each is rounded to its codes before it goes on.
    """
    tensors: list[Tensor] = []

    def keep(y: Tensor) -> Tensor:
        tensors.append(y)
        return y if ranges is None else ranges[len(tensors) - 1].round(y)

    y = first = keep(_convolve(x, weights[0], layers[0]))
    for layer, weight in zip(layers[1:-1], weights[1:-1], strict=True):
        y = keep(_convolve(y, weight, layer))
    if plain.long_residual:
        y = keep(y + first)
    return _convolve(y, weights[-1], layers[-1]), tensors


@torch.inference_mode()
def _channel_factors(
    plain: PlainNetwork, layers: tuple[Layer, ...], planes: Sequence[Tensor]
) -> list[Array]:
    """Of each layer but the last, what gives its channels like ranges on these pictures."""
    kernels = _feature_kernels(layers)
    seen = [_run(plain, layers, kernels, x)[1] for x in planes]
    joined = (torch.cat([x[0].flatten(1) for x in values], 1) for values in zip(*seen, strict=True))
    maps = [_within(np.sort(values.double().numpy()), CHANNEL_PERCENTILE) for values in joined]
    by = [factors([each]) for each in maps[: len(layers) - 1]]
    if plain.long_residual:
        # It ties the first map to that of the last bend and to their sum, which comes last.
        by[0] = by[-1] = factors([maps[0], *maps[len(layers) - 2 :]])
    return by


def _within(ordered: Array, percentile: float) -> tuple[Array, Array]:
    """Least and greatest of ordered rows [..., N] once the farthest are left out; 0 is within."""
    last = ordered.shape[-1] - 1
    out = round(last * (1 - percentile / 100))
    return np.minimum(ordered[..., out], 0.0), np.maximum(ordered[..., last - out], 0.0)


@torch.inference_mode()
def _calibrate(
    plain: PlainNetwork,
    layers: tuple[Layer, ...],
    codes: Sequence[Codes],
    planes: Sequence[Tensor],
) -> tuple[float, list[Range]]:
    """What rounding costs with the best ranges, summed over the pictures, and these ranges."""
    exact = _feature_kernels(layers)
    rounded = [code.weight() for code in codes]
    wanted, seen = [], []
    for x in planes:
        result, tensors = _run(plain, layers, exact, x)
        wanted.append(result)
        seen.append([tensor.flatten() for tensor in tensors])
    candidates = [_candidates(torch.cat(values)) for values in zip(*seen, strict=True)]
    chosen = [0] * len(candidates)

    def loss(choice: Sequence[int]) -> float:
        ranges = [options[i] for options, i in zip(candidates, choice, strict=True)]
        results = (_run(plain, layers, rounded, x, ranges)[0] for x in planes)
        errors = [float(F.mse_loss(r, w)) for r, w in zip(results, wanted, strict=True)]
        return sum(math.log1p(error / OWN_ERROR) for error in errors)

    alike = [[index] * len(candidates) for index in range(len(PERCENTILES))]
    least, chosen = min((loss(choice), choice) for choice in alike)
    for index in range(len(candidates)):
        for neighbour in (chosen[index] - 1, chosen[index] + 1):
            if 0 <= neighbour < len(PERCENTILES):
                tried = [*chosen[:index], neighbour, *chosen[index + 1 :]]
                least, chosen = min((least, chosen), (loss(tried), tried))
    return least, [options[i] for options, i in zip(candidates, chosen, strict=True)]


def _candidates(values: Tensor) -> list[Range]:
    """Ranges that hold ever less of the values, each with 0 in it."""
    ordered = np.sort(values.numpy())
    return [Range(*map(float, _within(ordered, percentile))) for percentile in PERCENTILES]


class _QuantisedBuilder(GraphBuilder):
    """Adds the pairs that an engine fuses into int8 convolutions."""

    def round(self, x: str, to: Range) -> str:
        scale, zero = self.constant(to.scale), self.constant(to.zero_point)
        codes = self.add("QuantizeLinear", x, scale, zero)
        return self.add("DequantizeLinear", codes, scale, zero)

    def convolve_codes(self, x: str, layer: Layer, codes: Codes) -> str:
        values, scale = self.constant(codes.values), self.constant(codes.scale)
        zero = self.constant(np.zeros(len(codes.scale), np.int8))
        weight = self.add("DequantizeLinear", values, scale, zero, axis=0)
        return self.convolve(x, layer, weight)


def _assemble(
    plain: PlainNetwork,
    layers: tuple[Layer, ...],
    codes: Sequence[Codes],
    ranges: Sequence[Range],
    name: str,
) -> onnx.ModelProto:
    graph = _QuantisedBuilder()
    waiting = iter(ranges)
    x = graph.begin()
    y = graph.convolve_codes(graph.round(x, PICTURE), layers[0], codes[0])
    y = first = graph.round(y, next(waiting))
    for layer, code in zip(layers[1:-1], codes[1:-1], strict=True):
        y = graph.round(graph.convolve_codes(y, layer, code), next(waiting))
    if plain.long_residual:
        y = graph.round(graph.add("Add", y, first), next(waiting))
    y = graph.convolve_codes(y, layers[-1], codes[-1])
    beside = _beside(layers)
    if beside is not None:
        y = graph.add("Add", y, graph.convolve(x, beside))
    graph.end(y, plain.scale)
    return graph.finish(name, plain, precision="int8")
