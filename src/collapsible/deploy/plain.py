"""A collapsed network as plain arrays: what every exporter needs and nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.models import FSRCNN, SESR

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A convolution [out, in, h, w] (zero padding that keeps the size) and its bend.

    The padding is ``algebra.same_padding``; the first and the last layer are square and odd.

    ``slope`` is None for no non-linearity, otherwise the factor [out] on negative values (all
    zero for a ReLU).
    """

    weight: Array
    bias: Array
    slope: Array | None = None


@dataclass(frozen=True)
class PlainNetwork:
    """Layers one after another, then a depth-to-space by ``scale``, channels in CRD order.

    ``long_residual`` adds the first layer's output to the last layer's input, ``input_residual``
    the network's input to each phase of the last layer's output. ``colour`` is ``"y"`` or
    ``"rgb"``; ``receptive_radius`` is in input pixels.
    """

    layers: tuple[Layer, ...]
    scale: int
    colour: str
    long_residual: bool
    input_residual: bool
    receptive_radius: int


def flatten_network(network: nn.Module) -> PlainNetwork:
    """The arrays (float64) of a SESR or FSRCNN network; the training form is collapsed first.

    FSRCNN's transposed convolution becomes a convolution to ``scale * scale`` phases, which is
    exact. Raises ``UsageError`` for a network of another family.
    """
    if any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    if isinstance(network, SESR):
        return _flatten_sesr(network)
    if isinstance(network, FSRCNN):
        return _flatten_fsrcnn(network)
    raise UsageError(
        f"a picture graph of {type(network).__name__}: SESR and FSRCNN networks are accepted"
    )


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _layer(conv: nn.Module, act: nn.Module | None = None) -> Layer:
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        raise UsageError(f"{type(conv).__name__} in a collapsed network: Conv2d with bias accepted")
    slope: Array | None = None
    if isinstance(act, nn.PReLU):
        slope = np.broadcast_to(_array(act.weight), (conv.out_channels,))
    elif isinstance(act, nn.ReLU):
        slope = np.zeros(conv.out_channels)
    elif act is not None:
        raise UsageError(f"activation {type(act).__name__}: PReLU and ReLU are accepted")
    return Layer(_array(conv.weight), _array(conv.bias), slope)


def _flatten_sesr(network: SESR) -> PlainNetwork:
    bends: Iterable[nn.Module] = network.blocks
    return PlainNetwork(
        layers=(
            _layer(network.first),
            *(_layer(bend.get_submodule("conv"), bend.get_submodule("act")) for bend in bends),
            _layer(network.last),
        ),
        scale=network.scale,
        colour=network.colour,
        long_residual=network.long_residual,
        input_residual=network.input_residual,
        receptive_radius=network.receptive_radius,
    )


def _flatten_fsrcnn(network: FSRCNN) -> PlainNetwork:
    parts = list(network.body)
    deconv = network.deconv
    bias = np.zeros(deconv.out_channels) if deconv.bias is None else _array(deconv.bias)
    weight = phases_of_transposed(
        _array(deconv.weight), network.scale, padding=int(deconv.padding[0])
    )
    return PlainNetwork(
        layers=(
            *(_layer(conv, act) for conv, act in zip(parts[::2], parts[1::2], strict=True)),
            Layer(weight, np.repeat(bias, network.scale**2)),
        ),
        scale=network.scale,
        colour=network.colour,
        long_residual=False,
        input_residual=False,
        receptive_radius=network.receptive_radius,
    )


def phases_of_transposed(weight: Array, scale: int, *, padding: int) -> Array:
    """A transposed convolution by ``scale`` as a convolution before a depth-to-space (CRD).

    ``weight`` is torch's [in, out, k, k]; the result is [out * scale * scale, in, r, r], r odd.
    Output ``scale * j + q`` gathers input ``j + d`` through tap ``q + padding - scale * d``.
    """
    inputs, outputs, size, _ = weight.shape
    taps = [
        (q, d, q + padding - scale * d)
        for q in range(scale)
        for d in range(-size, size + 1)
        if 0 <= q + padding - scale * d < size
    ]
    reach = max(abs(d) for _, d, _ in taps)
    result = np.zeros((outputs, scale, scale, inputs, 2 * reach + 1, 2 * reach + 1))
    for row, down, k in taps:
        for column, right, m in taps:
            result[:, row, column, :, reach + down, reach + right] = weight[:, :, k, m].T
    return result.reshape(outputs * scale**2, inputs, 2 * reach + 1, 2 * reach + 1)
