"""Give the channels of a feature map like ranges, so that one scale for all wastes few codes.

Cross-layer equalisation (Nagel et al. 2019, arXiv 1906.04721, section 4.1): a channel may be
multiplied by any positive number if the next layer's kernels divide by it, for a PReLU, a ReLU or
nothing at all passes it through. The network stays the same function; in int8, where all channels
of a map share one scale, a channel with a tenth of the range had a tenth of the codes.
Here the factors come from the values that channels take, not from their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from collapsible.deploy.plain import Array, Layer

# Where a map's range may be cut into its negative and its positive part.
SPLITS = np.linspace(0.02, 0.98, 49)
# Kernels would grow beyond all bounds for a channel that is always zero.
MOST = 64.0


def factors(ranges: Sequence[tuple[Array, Array]]) -> Array:
    """By how much to multiply each channel, in the geometric mean 1.

    ``ranges`` holds, for each map that has these channels (a residual ties several), the least
    value [C], at most 0, and the greatest [C], at least 0. A channel is made as large as the
    map's range lets it be, which is cut in two so that the factors are greatest on the whole.
    """
    fitted = [_fit(low, high) for low, high in ranges]
    least = np.min(fitted, axis=0)
    # A channel whose values are tiny beside the others' is of no use to anybody.
    least = np.minimum(least, MOST * np.median(least))
    return least / np.exp(np.log(least).mean())


def _fit(low: Array, high: Array) -> Array:
    """The greatest factor of each channel within the best cut of a range of length 1."""
    low, high = np.maximum(-low, 1e-9), np.maximum(high, 1e-9)
    tried = [np.minimum(split / low, (1 - split) / high) for split in SPLITS]
    return max(tried, key=lambda each: float(np.log(each).sum()))


def scale_channels(layers: Sequence[Layer], by: Sequence[Array]) -> tuple[Layer, ...]:
    """The same network with the output channels of each layer but the last multiplied.

    ``by[i]`` [C] are the factors of layer ``i``'s output. Of the last layer, and of any other,
    inputs beyond these channels (the picture beside the features) stay as they are.
    """
    scaled = []
    for index, layer in enumerate(layers):
        weight, bias = layer.weight.copy(), layer.bias
        if index:
            before = by[index - 1]
            weight[:, : len(before)] /= before[None, :, None, None]
        if index < len(layers) - 1:
            weight *= by[index][:, None, None, None]
            bias = bias * by[index]
        scaled.append(replace(layer, weight=weight, bias=bias))
    return tuple(scaled)
