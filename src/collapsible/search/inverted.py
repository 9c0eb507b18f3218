"""Find the inverted bottlenecks of any network, by what its modules compute.

Every sub-module is traced by itself (torch.fx). It is an inverted bottleneck if it is

    1x1 convolution, [norm], activation, depthwise convolution, [norm], activation,
    1x1 convolution, [norm]                                             and maybe + its input

and nothing else, whatever its class: timm's and torchvision's ``InvertedResidual`` and our own
are found alike. So is the fused form (arXiv 2003.02838; timm's ``EdgeResidual``), where one
convolution does the first two's work:

    kxk convolution to more channels, [norm], activation, 1x1 convolution, [norm]   and maybe + x

What comes close to the first is named with what stands in the way.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from collapsible.blocks.restructurable import BottleneckParts
from collapsible.errors import UsageError

LOOKED_FOR = (
    "1x1 convolution, activation, depthwise convolution, activation, 1x1 convolution; or kxk "
    "convolution to more channels, activation, 1x1 convolution"
)
_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
    nn.PReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Mish,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardsigmoid,
)
# Of timm, whose classes differ with its settings for scripting and export.
_ACTIVATION_HOME = "timm.layers.activations"
_SQUEEZES = ("SqueezeExcite", "SqueezeExcitation", "SEModule", "EffectiveSEModule", "GatherExcite")
_DROPS = ("DropPath", "StochasticDepth", "Dropout", "Dropout2d")


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """One that was found: its path in the network, and its layers (the network's own)."""

    name: str
    parts: BottleneckParts

    @property
    def shape(self) -> str:
        """``16>96>24 k3 s2 relu6``: channels in, inside and out, kernel, stride, activation.

        The fused form has ``fused`` behind.
        """
        parts = self.parts
        first, last, wide = parts.convs[0], parts.convs[-1], parts.convs[parts.place]
        kernel, stride = wide.kernel_size, wide.stride
        one = f"k{kernel[0]}" if kernel[0] == kernel[1] else f"k{kernel[0]}x{kernel[1]}"
        step = f"s{stride[0]}" if stride[0] == stride[1] else f"s{stride[0]}x{stride[1]}"
        channels = (first.in_channels, first.out_channels, last.out_channels)
        text = f"{'>'.join(map(str, channels))} {one} {step} {type(parts.acts[0]).__name__.lower()}"
        text += " fused" if len(parts.convs) == 2 else ""
        return text + (" +x" if parts.residual else "")


@dataclass(frozen=True)
class PassedOver:
    """A depthwise convolution that is not inside a usable bottleneck, and why."""

    name: str
    reason: str


class UnlikeError(Exception):
    """This module is no inverted bottleneck; the message says what is different."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (nn.Conv2d, nn.modules.batchnorm._BatchNorm))
        named = type(m).__name__ in (*_SQUEEZES, *_DROPS)
        return known or named or super().is_leaf_module(m, module_qualified_name) or _is_act(m)


def _is_act(module: nn.Module) -> bool:
    return isinstance(module, _ACTIVATIONS) or type(module).__module__ == _ACTIVATION_HOME


def find_bottlenecks(network: nn.Module) -> tuple[tuple[Bottleneck, ...], tuple[PassedOver, ...]]:
    """The inverted bottlenecks in the order of the network's modules, and what comes close.

    The layers named are the network's own; nothing is changed.
    """
    found: list[Bottleneck] = []
    taken: set[nn.Module] = set()
    reasons: dict[str, str] = {}
    for name, module in network.named_modules():
        inner = list(module.modules())
        depthwise = [m for m in inner if _is_depthwise(m)]
        fused = not depthwise and sum(isinstance(m, nn.Conv2d) for m in inner) == 2
        if (len(depthwise) != 1 and not fused) or module in taken or _is_depthwise(module):
            continue
        try:
            parts = read_bottleneck(module)
        except UnlikeError as reason:
            if fused:
                continue
            place = next(n for n, m in network.named_modules() if m is depthwise[0])
            # The outermost module of one depthwise convolution says most.
            reasons.setdefault(place, str(reason))
        else:
            found.append(_innermost(Bottleneck(name, parts), module))
            taken.update(inner)
    passed = tuple(
        PassedOver(name, reasons.get(name, "no module holds it and its neighbours alone"))
        for name, module in network.named_modules()
        if _is_depthwise(module) and module not in taken
    )
    return tuple(found), passed


def _innermost(found: Bottleneck, module: nn.Module) -> Bottleneck:
    """The same bottleneck without the containers that hold nothing else."""
    for name, child in module.named_children():
        try:
            parts = read_bottleneck(child)
        except UnlikeError:
            continue
        if parts.residual == found.parts.residual:
            return _innermost(Bottleneck(f"{found.name}.{name}".lstrip("."), parts), child)
    return found


def require_bottlenecks(network: nn.Module) -> tuple[Bottleneck, ...]:
    """As ``find_bottlenecks``; raises ``UsageError`` that says what was looked for if none."""
    found, passed = find_bottlenecks(network)
    if found:
        return found
    near = f"{passed[0].name}: {passed[0].reason}" if passed else "It has no depthwise convolution"
    more = f" (and {len(passed) - 1} more)" if len(passed) > 1 else ""
    raise UsageError(
        f"{type(network).__name__} has no inverted bottleneck to restructure. "
        f"Looked for modules of: {LOOKED_FOR}. {near}{more}"
    )


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )


def read_bottleneck(module: nn.Module) -> BottleneckParts:
    """A module's layers if it is an inverted bottleneck; raises ``UnlikeError`` if it is not."""
    squeezes = [type(m).__name__ for m in module.modules() if type(m).__name__ in _SQUEEZES]
    if squeezes:
        raise UnlikeError(
            f"{squeezes[0]} inside: it scales channels by the picture's own content, so the block "
            "is not linear without its activations"
        )
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever a module's own code raises on a symbolic value
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnlikeError(f"{type(module).__name__} cannot be traced: {text}") from error
    layers, residual = _line_up(module, graph)
    return _assign(layers, residual)


def _line_up(module: nn.Module, graph: fx.Graph) -> tuple[list[nn.Module], bool]:
    """The modules that the input passes through, and whether the input is added at the end."""
    nodes = [n for n in graph.nodes if not (n.op == "call_function" and n.target is torch._assert)]
    inputs = [n for n in nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        raise UnlikeError(f"{type(module).__name__} takes {len(inputs)} inputs")
    value, layers, residual = inputs[0], [], False
    while True:
        users = [n for n in value.users if n in nodes]
        if any(n.op == "output" for n in users):
            return layers, residual
        if residual:
            raise UnlikeError("something follows the residual's sum")
        following = [n for n in users if not _is_sum(n, inputs[0])] if layers else users
        following = following or users
        if value is inputs[0]:
            following = [n for n in users if not _is_sum(n, value)]
        if len(following) != 1:
            raise UnlikeError(f"{_describe(module, value)} goes to {len(following)} places")
        (node,) = following
        if _is_sum(node, inputs[0]):
            residual = True
        elif node.op == "call_module":
            layers.append(module.get_submodule(str(node.target)))
        else:
            raise UnlikeError(f"{node.target} after {_describe(module, value)} is no layer")
        value = node


def _is_sum(node: fx.Node, start: fx.Node) -> bool:
    adds: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
    named = node.op == "call_function" and node.target in adds
    named = named or (node.op == "call_method" and node.target in ("add", "add_"))
    arguments = [a for a in node.args if isinstance(a, fx.Node)]
    return named and len(arguments) == 2 and start in arguments and not node.kwargs


def _describe(module: nn.Module, node: fx.Node) -> str:
    if node.op != "call_module":
        return "the input"
    layer = module.get_submodule(str(node.target))
    return f"{type(layer).__name__} {node.target}"


def _flatten(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """Norms with an activation of their own (timm) as two layers; identities gone."""
    for layer in layers:
        if isinstance(layer, nn.Identity):
            continue
        act = getattr(layer, "act", None)
        if isinstance(layer, nn.BatchNorm2d) and isinstance(act, nn.Module):
            yield _plain_norm(layer)
            if not isinstance(act, nn.Identity):
                yield act
        else:
            yield layer


def _plain_norm(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """torch's own batch norm that shares the parameters and statistics of another class."""
    drop = getattr(layer, "drop", None)
    if isinstance(drop, nn.Module) and not isinstance(drop, nn.Identity):
        raise UnlikeError(f"{type(drop).__name__} inside a norm")
    plain = nn.BatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    plain.weight, plain.bias = layer.weight, layer.bias
    for name, buffer in layer.named_buffers(recurse=False):
        setattr(plain, name, buffer)
    return plain.train(layer.training)


def _assign(layers: list[nn.Module], residual: bool) -> BottleneckParts:
    flat, drop = list(_flatten(layers)), nn.Identity()
    if flat and type(flat[-1]).__name__ in _DROPS:
        drop = flat.pop()
    flat = [m for m in flat if not (type(m).__name__ in _DROPS and not getattr(m, "p", 1))]

    def conv(kind: str) -> nn.Conv2d:
        if not flat or not isinstance(flat[0], nn.Conv2d):
            seen = type(flat[0]).__name__ if flat else "nothing"
            raise UnlikeError(f"{kind} was looked for, {seen} stands there")
        layer = flat.pop(0)
        assert isinstance(layer, nn.Conv2d)
        if type(layer) is not nn.Conv2d:
            raise UnlikeError(f"{type(layer).__name__} has a forward pass of its own")
        return layer

    def pointwise(kind: str) -> nn.Conv2d:
        layer = conv(kind)
        plain = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
        if not plain or layer.padding not in ((0, 0), "valid", "same"):
            raise UnlikeError(f"{kind} was looked for, {_short(layer)} stands there")
        return layer

    def norm() -> nn.Module:
        if flat and type(flat[0]) is nn.BatchNorm2d:
            layer = flat.pop(0)
            if getattr(layer, "running_mean", None) is None:
                raise UnlikeError("a batch norm without running statistics")
            return layer
        return nn.Identity()

    def act(place: str) -> nn.Module:
        if not flat or not _is_act(flat[0]):
            seen = type(flat[0]).__name__ if flat else "nothing"
            raise UnlikeError(f"an activation was looked for {place}, {seen} stands there")
        return flat.pop(0)

    if sum(isinstance(layer, nn.Conv2d) for layer in flat) == 2:
        wide, norm1 = conv("a convolution in front"), norm()
        if wide.groups > 1 or max(wide.kernel_size) == 1:
            raise UnlikeError(f"a wide convolution was looked for, {_short(wide)} stands there")
        _check_padding(wide)
        act1 = act("behind the wide convolution")
        project, norm2 = pointwise("a 1x1 convolution at the end"), norm()
        if flat:
            raise UnlikeError(f"{type(flat[0]).__name__} follows the last 1x1 convolution")
        if project.in_channels <= project.out_channels:
            raise UnlikeError(f"{_short(project)} narrows nothing")
        return BottleneckParts((wide, project), (norm1, norm2), (act1,), residual, drop)
    expand, norm1 = pointwise("a 1x1 convolution in front"), norm()
    act1 = act("before the depthwise convolution")
    depthwise = conv("a depthwise convolution")
    if not _is_depthwise(depthwise):
        raise UnlikeError(
            f"a depthwise convolution was looked for, {_short(depthwise)} stands there"
        )
    _check_padding(depthwise)
    norm2, act2 = norm(), act("after the depthwise convolution")
    project, norm3 = pointwise("a 1x1 convolution at the end"), norm()
    if flat:
        raise UnlikeError(f"{type(flat[0]).__name__} follows the last 1x1 convolution")
    return BottleneckParts(
        (expand, depthwise, project), (norm1, norm2, norm3), (act1, act2), residual, drop
    )


def _check_padding(conv: nn.Conv2d) -> None:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise UnlikeError(f"padding {conv.padding!r} of mode {conv.padding_mode!r}")


def _short(conv: nn.Conv2d) -> str:
    return (
        f"a convolution {conv.in_channels}>{conv.out_channels} of kernel {conv.kernel_size}, "
        f"stride {conv.stride}, groups {conv.groups}"
    )
