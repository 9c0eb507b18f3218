"""Read a graph's nodes as linear operations, and write operations as ``torch.nn`` layers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from collapsible.blocks import SameConv2d
from collapsible.folding.ops import Borders, Conv, Identity, Op, Scale, Transposed, identity_conv
from collapsible.folding.trace import data_inputs, shape_of

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADD = (operator.add, torch.add, "add")
_SUB = (operator.sub, torch.sub, "sub")
_MUL = (operator.mul, torch.mul, torch.multiply, "mul")
_DIV = (operator.truediv, torch.div, "div")


def lift_graph(module: fx.GraphModule) -> None:
    """Note in ``meta["op"]`` what each node computes, ``meta["opaque"]`` why it is not known."""
    for node in module.graph.nodes:
        if "constant" in node.meta or len(data_inputs(node)) != 1:
            continue
        if node.op == "call_module":
            found = _lift_layer(module.get_submodule(str(node.target)), node)
        elif node.op in ("call_function", "call_method"):
            found = _lift_function(node)
        else:
            continue
        if isinstance(found, str):
            node.meta["opaque"] = found
        elif found is not None:
            node.meta["op"] = found


def _wide(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().double()


def _lift_layer(layer: nn.Module, node: fx.Node) -> Op | str | None:
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "a hook runs with it"
    if isinstance(layer, (nn.Conv2d, nn.Conv1d, nn.Linear, nn.ConvTranspose2d)) and (
        type(layer) not in (nn.Conv2d, nn.Conv1d, nn.Linear, nn.ConvTranspose2d, SameConv2d)
    ):
        return f"{type(layer).__name__} has a forward pass of its own"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return _lift_conv(layer, node)
    if isinstance(layer, nn.Linear):
        kernel = layer.weight.detach().double()[..., None, None]
        return Conv(kernel, _wide(layer.bias), kind="linear")
    if isinstance(layer, nn.ConvTranspose2d):
        options = {
            name: getattr(layer, name)
            for name in ("kernel_size", "stride", "padding", "output_padding", "dilation")
        }
        return Transposed(layer.weight.detach().double(), _wide(layer.bias), layer.groups, options)
    if isinstance(layer, _NORMS):
        if layer.running_mean is None or layer.running_var is None:
            return "it normalises by each batch's own statistics"
        if type(layer) not in _NORMS:
            return f"{type(layer).__name__} has a forward pass of its own"
        return _norm(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    if isinstance(layer, nn.AvgPool2d):
        return _lift_pool(layer, node)
    if isinstance(layer, nn.ZeroPad2d):
        return _padding(node, tuple(layer.padding))
    if type(layer) is nn.PReLU and bool((layer.weight == 1).all()):
        return Identity("PReLU with slope 1")
    if type(layer) is nn.LeakyReLU and layer.negative_slope == 1:
        return Identity("LeakyReLU with slope 1")
    return None


def _lift_conv(layer: nn.Conv1d | nn.Conv2d, node: fx.Node) -> Op | str:
    flat = isinstance(layer, nn.Conv1d)
    shape = shape_of(data_inputs(node)[0])
    if shape is None or len(shape) != (3 if flat else 4):
        return "its input has no batch axis"
    if isinstance(layer, SameConv2d):
        borders = layer.borders
    else:
        # torch works out the list once; padding that was set later counts too.
        both = [int(p) for p in layer._reversed_padding_repeated_twice]
        if not isinstance(layer.padding, str) and layer.padding_mode == "zeros":
            both = [int(p) for p in reversed(layer.padding) for _ in range(2)]
        borders = (both[0], both[1], 0, 0) if flat else (both[0], both[1], both[2], both[3])
    uneven = borders[0] != borders[1] or borders[2] != borders[3]
    if layer.padding_mode != "zeros" and uneven:
        return f"it pads unevenly by {layer.padding_mode}"
    kernel = layer.weight.detach().double()
    pair = (lambda p: (1, p[0])) if flat else (lambda p: (p[0], p[1]))
    return Conv(
        kernel[:, :, None] if flat else kernel,
        _wide(layer.bias),
        stride=pair(layer.stride),
        dilation=pair(layer.dilation),
        padding=borders,
        groups=layer.groups,
        kind="conv1d" if flat else "conv2d",
        mode=layer.padding_mode,
    )


def _norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> Scale:
    mean, variance = mean.detach().double(), variance.detach().double()
    gain = torch.rsqrt(variance + epsilon)
    if weight is not None:
        gain = gain * weight.detach().double()
    shift = -mean * gain
    if bias is not None:
        shift = shift + bias.detach().double()
    return Scale(gain, shift, axis=1, norm=True)


def _lift_pool(layer: nn.AvgPool2d, node: fx.Node) -> Op | str | None:
    size, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    shape = shape_of(node)
    if shape is None or len(shape) != 4:
        return None
    if layer.ceil_mode:
        return "its last window may reach over the border (ceil_mode)"
    if any(padding) and not layer.count_include_pad:
        return "it leaves its padding out of the mean, so weights differ at the border"
    channels = shape[1]
    area = layer.divisor_override or size[0] * size[1]
    kernel = torch.full((channels, 1, *size), 1 / area, dtype=torch.float64)
    return Conv(
        kernel,
        stride=stride,
        padding=(padding[1], padding[1], padding[0], padding[0]),
        groups=channels,
        weightless=True,
    )


def _padding(node: fx.Node, borders: tuple[int, ...]) -> Op | None:
    """Zeros around [N, C, H, W]: the identity as a convolution that pads."""
    shape = shape_of(node)
    if shape is None or len(shape) != 4 or min(borders) < 0 or len(borders) not in (2, 4):
        return None
    left, right, top, bottom = (*borders, 0, 0)[:4]
    one = identity_conv(shape[1], "conv2d")
    return replace(one, padding=(left, right, top, bottom), weightless=True)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _value(argument: Any) -> Any:
    """A constant argument's value: a number, or what the graph computed from parameters."""
    return argument.meta.get("constant") if isinstance(argument, fx.Node) else argument


def _lift_function(node: fx.Node) -> Op | str | None:
    if node.target is F.batch_norm:
        return _lift_batch_norm(_given(node, _BATCH_NORM))
    if node.target is F.linear:
        given = _given(node, ("input", "weight", "bias"))
        if given["input"] is not node.args[0] or not isinstance(given["weight"], Tensor):
            return None
        kernel = given["weight"].detach().double()[..., None, None]
        return Conv(kernel, _wide(given.get("bias")), kind="linear")
    if node.target is F.pad:
        given = _given(node, ("input", "pad", "mode", "value"))
        borders = given["pad"]
        zero = given.get("mode", "constant") == "constant" and not given.get("value")
        if zero and all(isinstance(b, int) for b in borders):
            return _padding(node, tuple(borders))
        return None
    if node.target is operator.neg or node.target is torch.neg:
        return _affine(node, -1.0, 0.0)
    if len(node.args) != 2 or node.kwargs:
        return None
    data = data_inputs(node)[0]
    left = node.args[0] is data
    if left and node.args[1] is data:
        return None
    other = _value(node.args[1] if left else node.args[0])
    if node.target in _ADD:
        return _affine(node, 1.0, other)
    if node.target in _SUB:
        if not isinstance(other, (int, float, Tensor)):
            return None
        return _affine(node, 1.0, -other) if left else _affine(node, -1.0, other)
    if node.target in _MUL:
        return _affine(node, other, 0.0)
    if node.target in _DIV and left and isinstance(other, (int, float, Tensor)):
        wide = torch.as_tensor(other).detach().double()
        return _affine(node, 1 / wide, 0.0) if bool((wide != 0).all()) else None
    return None


_BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def _given(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """A function's arguments by name, constants as their values."""
    arguments: Mapping[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    return {
        name: value.meta.get("constant", value) if isinstance(value, fx.Node) else value
        for name, value in arguments.items()
    }


def _lift_batch_norm(given: dict[str, Any]) -> Op | str:
    mean, variance = given.get("running_mean"), given.get("running_var")
    weight, bias = given.get("weight"), given.get("bias")
    if given.get("training", False) or mean is None or variance is None:
        return "it normalises by each batch's own statistics"
    if any(isinstance(value, fx.Node) for value in (mean, variance, weight, bias)):
        return "its statistics depend on the input"
    return _norm(mean, variance, weight, bias, float(given.get("eps", 1e-5)))


def _affine(node: fx.Node, gain: Any, shift: Any) -> Op | None:
    """x * gain + shift, where both are numbers or stand along one and the same axis."""
    shape = shape_of(node)
    if shape is None or shape_of(data_inputs(node)[0]) != shape:
        return None
    axis, parts = None, []
    for value in (gain, shift):
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            return None
        part = torch.as_tensor(value).detach()
        if part.is_complex() or part.dim() > len(shape):
            return None
        part = part.double()
        if part.numel() > 1:
            long = [i for i, size in enumerate(part.shape) if size > 1]
            if len(long) != 1:
                return None
            axis = len(shape) - part.dim() + long[0]
        parts.append(part.reshape(-1))
    if axis is None and bool((parts[0] == 1).all()) and not bool(parts[1].any()):
        return Identity("times one, plus nothing")
    if axis == 0:
        return None
    size = max(part.numel() for part in parts)
    return Scale(parts[0].expand(size), parts[1].expand(size), axis)


class ConstantPad(nn.Module):
    """Pad [N, C, H, W] with one value for each channel; ``borders`` are left, right, top, bottom.

    What zero padding after a shift turns into, once the shift has moved behind the padding.
    """

    value: Tensor

    def __init__(self, borders: Borders, value: Tensor) -> None:
        super().__init__()
        self.borders = borders
        self.register_buffer("value", value.clone()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H + top + bottom, W + left + right]."""
        inside = F.pad(torch.ones_like(x[:1, :1]), self.borders)
        # Added, not written over: the inside stays exactly what it was.
        return F.pad(x, self.borders) + self.value * (1 - inside)

    def extra_repr(self) -> str:
        return f"{self.borders}"


class ConstantPad1(ConstantPad):
    """``ConstantPad`` for [N, C, L]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, L] to [N, C, L + left + right]."""
        return super().forward(x[:, :, None])[:, :, 0]


def lower(op: Op) -> list[nn.Module]:
    """The layers (float64) that compute an operation: a padding where needed, and the layer."""
    if isinstance(op, Conv):
        return _lower_conv(op)
    if isinstance(op, Transposed):
        layer = nn.ConvTranspose2d(
            op.kernel.shape[0],
            op.out_channels,
            groups=op.groups,
            bias=op.bias is not None,
            **op.options,
        )
        return [_filled(layer, op.kernel, op.bias)]
    if isinstance(op, Scale):
        return [ChannelScale(op)]
    return [nn.Identity()]


class ChannelScale(nn.Module):
    """x * gain + shift along one axis (all of it where ``axis`` is None)."""

    def __init__(self, op: Scale) -> None:
        super().__init__()
        self.axis = op.axis
        self.gain = nn.Parameter(op.gain.clone())
        self.shift = nn.Parameter(op.shift.clone()) if op.shifts else None

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        y = x * self.gain.view(shape)
        return y if self.shift is None else y + self.shift.view(shape)


def _filled(layer: Any, kernel: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(kernel.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer


def _lower_conv(op: Conv) -> list[nn.Module]:
    left, right, top, bottom = op.padding
    has_bias, kind = op.bias is not None, op.kind
    if kind == "linear":
        layer = nn.Linear(op.in_channels, op.out_channels, bias=has_bias)
        return [_filled(layer, op.kernel[:, :, 0, 0], op.bias)]
    before: list[nn.Module] = []
    if op.fill is not None:
        pad = ConstantPad if kind == "conv2d" else ConstantPad1
        before.append(pad(op.padding, op.fill))
        padding = (0, 0)
    elif left != right or top != bottom:
        zero = nn.ZeroPad2d(op.padding) if kind == "conv2d" else nn.ZeroPad1d((left, right))
        before.append(zero)
        padding = (0, 0)
    else:
        padding = (top, left)
    options: dict[str, Any] = {"groups": op.groups, "bias": has_bias, "padding_mode": op.mode}
    if kind == "conv1d":
        layer = nn.Conv1d(
            op.in_channels,
            op.out_channels,
            op.size[1],
            stride=op.stride[1],
            padding=padding[1],
            dilation=op.dilation[1],
            **options,
        )
        return [*before, _filled(layer, op.kernel[:, :, 0], op.bias)]
    layer = nn.Conv2d(
        op.in_channels,
        op.out_channels,
        op.size,
        stride=op.stride,
        padding=padding,
        dilation=op.dilation,
        **options,
    )
    return [*before, _filled(layer, op.kernel, op.bias)]
