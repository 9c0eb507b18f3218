"""A picture graph that computes as its int8 file does, and can be trained so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.blocks.collapsible_conv import same_conv2d
from collapsible.deploy.picture_graph import CENTRE
from collapsible.deploy.plain import Array, Layer
from collapsible.deploy.quantise import Codes, QuantisedLayers, Range


class RoundedPicture(nn.Module):
    """[N, 3, H, W] RGB in [0, 1] to [N, 3, s H, s W], not clipped, rounded as the int8 graph is.

    Kernels are rounded to the steps that ``made`` gives each output channel, and every tensor that
    the graph keeps as uint8 to its range there. Gradients pass through the rounding, and not at
    all where a value lies beyond its range (straight-through; Jacob et al., arXiv 1712.05877,
    section 3). Kernels, biases and slopes learn; steps and ranges stay. ``layers()`` is what the
    graph of the trained one is made of. The picture's own values should be whole levels.
    Folding the colour made the first kernel small and the last one and its bias large; parameters
    are shares of each kernel's greatest weight, and of 255 for that bias, so that one rate suits
    them all. Without ``rounding`` it is the float graph.
    """

    beside: Tensor | None

    def __init__(self, made: QuantisedLayers) -> None:
        super().__init__()
        self.made, self.rounding = made, True
        self.scale = made.plain.scale
        self.colour = "rgb"
        self.receptive_radius = made.plain.receptive_radius
        kernels = made.kernels()
        units = [float(np.abs(kernel).max()) or 1.0 for kernel in kernels]
        self.bias_units = [1.0] * (len(kernels) - 1) + [255.0]
        self.weights = _parameters(kernels, units)
        self.biases = _parameters([layer.bias for layer in made.layers], self.bias_units)
        # A ReLU's slopes of nought stay so.
        self.slopes = nn.ParameterList(
            nn.Parameter(
                torch.tensor(0.0 if layer.slope is None else layer.slope, dtype=torch.float32),
                requires_grad=layer.slope is not None and bool(layer.slope.any()),
            )
            for layer in made.layers
        )
        # Buffers, so that a resumed run goes on with those that it began with: where they are
        # measured again their last bits may differ.
        self.register_buffer("units", torch.tensor(units, dtype=torch.float64))
        for place, codes in enumerate(made.codes):
            self.register_buffer(f"step_{place}", torch.from_numpy(codes.scale.copy()))
        ends = [[one.low, one.high] for one in made.ranges]
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.float64))
        beside = made.beside()
        self.register_buffer(
            "beside", None if beside is None else torch.tensor(beside.weight, dtype=torch.float32)
        )

    def forward(self, x: Tensor) -> Tensor:
        picture = x * 255 - CENTRE
        ranges, last = iter(self.ranges()), len(self.weights) - 1
        y = first = self._round(self._layer(0, picture), next(ranges))
        for place in range(1, last):
            y = self._round(self._layer(place, y), next(ranges))
        if self.made.plain.long_residual:
            y = self._round(y + first, next(ranges))
        y = self._layer(last, y)
        if self.beside is not None:
            y = y + same_conv2d(picture, self.beside, None)
        # Channels come in the order (row, column, colour), torch's shuffle wants colour first.
        n, _, height, width = y.shape
        y = y.reshape(n, self.scale**2, 3, height, width).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(y, self.scale) / 255

    def _layer(self, place: int, x: Tensor) -> Tensor:
        weight = self.weights[place] * self.get_buffer("units")[place]
        if self.rounding:
            step = self.get_buffer(f"step_{place}")
            zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
            weight = torch.fake_quantize_per_channel_affine(weight, step, zero, 0, -127, 127)
        y = same_conv2d(x, weight, self.biases[place] * self.bias_units[place])
        slope = self.made.layers[place].slope
        if slope is None:
            return y
        return F.prelu(y, self.slopes[place]) if slope.any() else F.relu(y)

    def _round(self, x: Tensor, to: Range) -> Tensor:
        if not self.rounding:
            return x
        scale, zero = float(to.scale), int(to.zero_point)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def ranges(self) -> tuple[Range, ...]:
        """Those of the tensors between, in the order of computation."""
        return tuple(Range(low, high) for low, high in self.get_buffer("ends").tolist())

    def layers(self) -> QuantisedLayers:
        """The trained layers with the codes that they have come to."""
        layers, codes = [], []
        for place, old in enumerate(self.made.layers):
            weight = _array(self.weights[place] * self.get_buffer("units")[place])
            step = self.get_buffer(f"step_{place}").cpu().numpy()
            whole = np.clip(np.rint(weight / step[:, None, None, None]), -127, 127)
            codes.append(Codes(whole.astype(np.int8), step))
            rest = old.weight[:, weight.shape[1] :]
            layers.append(
                Layer(
                    np.concatenate([weight, rest], axis=1),
                    _array(self.biases[place] * self.bias_units[place]),
                    None if old.slope is None else _array(self.slopes[place]),
                )
            )
        return replace(self.made, layers=tuple(layers), codes=tuple(codes), ranges=self.ranges())


def _parameters(values: Sequence[Array], units: Sequence[float]) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(torch.tensor(one / unit, dtype=torch.float32))
        for one, unit in zip(values, units, strict=True)
    )


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
