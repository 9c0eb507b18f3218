"""Networks that compute as their int8 file will, and can be trained so (quantisation-aware).

Every place whose values an int8 LiteRT file keeps as integers is rounded to the 256 steps of a
range of its own, and every kernel to 255 steps an output channel, as the file's are (Jacob et al.,
arXiv 1712.05877, section 3). Gradients pass through the rounding as if it were not there, and not
at all where a value lies beyond its range (straight-through). Sums of products and biases have 32
bits in the file and stay as they are.

Ranges follow the batches: each end moves a tenth of the way to what the batch reaches.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from collapsible.algebra import fold_batch_norm
from collapsible.deploy.ranges import Ranges
from collapsible.errors import UsageError

MOMENTUM = 0.1
"""How far the ends of a range move towards those of a batch."""
_FUSED = (nn.ReLU, nn.ReLU6)
_FUSED_FUNCTIONS = ("relu", "relu_", "relu6")
_WEIGHTED = (nn.Conv2d, nn.Linear)
# What hands on values as they are: they keep the range that they have.
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.MaxPool2d)
_PASSING_NAMES = ("flatten", "dropout", "reshape", "view", "max_pool2d", "contiguous")
_ARITHMETIC = (operator.add, operator.iadd, operator.mul, operator.imul)


class RoundedRange(nn.Module):
    """Values rounded to the 256 steps between ``low`` and ``high``, 0 being one of them."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.rounding, self.moving = True, True

    @torch.no_grad()
    def watch(self, x: Tensor, momentum: float) -> None:
        """Move the ends towards those of ``x``; 1 takes them as they are."""
        low, high = x.detach().amin().clamp_max(0.0), x.detach().amax().clamp_min(0.0)
        self.low += momentum * (low - self.low)
        self.high += momentum * (high - self.high)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.moving:
            self.watch(x, MOMENTUM)
        if not self.rounding:
            return x
        scale = ((self.high - self.low) / 255).clamp_min(1e-12)
        zero = (-128 - self.low / scale).round().clamp(-128, 127).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


def round_weight(weight: Tensor) -> Tensor:
    """A kernel rounded to whole 127ths of each output channel's greatest weight."""
    scale = (weight.detach().abs().flatten(1).amax(1) / 127).clamp_min(1e-12)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class _RoundedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, round_weight(self.weight), self.bias)


class _RoundedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, round_weight(self.weight), self.bias)


_ROUNDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _RoundedConv2d,
    nn.Linear: _RoundedLinear,
}
_PLAIN = {rounded: plain for plain, rounded in _ROUNDED.items()}


def _retype(module: Any, kinds: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Another forward pass for the same parameters."""
    module.__class__ = kinds.get(type(module), type(module))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*_WEIGHTED, nn.modules.batchnorm._BatchNorm))
        home = type(m).__module__
        return (
            known
            or home == "timm.layers.activations"
            or super().is_leaf_module(m, module_qualified_name)
        )


class FakeQuantised(nn.Module):
    """A network in its int8 form, to be trained; made by ``fake_quantise``.

    [N, ...] to what the network gives. ``plain()`` is the network without the rounding.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.network = graph

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def plain(self) -> nn.Module:
        """The network as trained, its norms folded, without any rounding; a copy, to be exported.

        ``export`` and ``save_litert`` calibrate it as any other.
        """
        graph = copy.deepcopy(self.network)
        for module in graph.modules():
            _retype(module, _PLAIN)
        for node in list(graph.graph.nodes):
            if node.op == "call_module" and isinstance(
                graph.get_submodule(str(node.target)), RoundedRange
            ):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.delete_all_unused_submodules()
        graph.recompile()
        return graph.eval()

    def ranges(self) -> Ranges:
        """Lowest and highest value of each rounded place, in the order of computation."""
        return {
            name: (float(module.low), float(module.high))
            for name, module in self.network.named_modules()
            if isinstance(module, RoundedRange)
        }

    def freeze(self) -> None:
        """Keep the ranges as they are from now on."""
        for module in self.network.modules():
            if isinstance(module, RoundedRange):
                module.moving = False


def fake_quantise(
    network: nn.Module, calibration: Sequence[NDArray[np.float32]] | Tensor
) -> FakeQuantised:
    """The network as its int8 LiteRT file computes, trainable; the given one is untouched.

    ``calibration`` are inputs float32 [C, H, W] (or one tensor [N, C, H, W]) as the network takes
    them, from which ranges start. Batch norms are folded into the convolutions in front, so
    collapse the network first. Norms elsewhere, and layers that cannot be traced, are refused.
    Raises ``UsageError``.
    """
    inputs = (
        calibration
        if isinstance(calibration, Tensor)
        else torch.from_numpy(np.stack([np.asarray(one, np.float32) for one in calibration]))
        if len(calibration)
        else torch.empty(0)
    )
    if inputs.ndim != 4 or not len(inputs):
        raise UsageError(
            f"calibration inputs of shape {list(inputs.shape)}: some [C, H, W] alike are accepted"
        )
    source = copy.deepcopy(network).eval()
    try:
        graph = fx.GraphModule(source, _Tracer().trace(source))
    except Exception as error:  # whatever a network's own code raises on a symbolic value
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{type(network).__name__} cannot be traced: {text}") from error
    _fold_norms(graph)
    places = _round_places(graph)
    for name, module in graph.named_modules():
        if isinstance(module, _WEIGHTED):
            if type(module) not in _ROUNDED:
                raise UsageError(f"{name}: {type(module).__name__} has a forward pass of its own")
            _retype(module, _ROUNDED)
    graph.recompile()
    made = FakeQuantised(graph).eval()
    _start(made, places, inputs.to(next(network.parameters()).device))
    return made


def _module(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def _fold_norms(graph: fx.GraphModule) -> None:
    """Norms into the convolutions in front of them, in place; a norm's own activation stays."""
    for node in list(graph.graph.nodes):
        norm = _module(graph, node)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        before = node.args[0]
        conv = _module(graph, before)
        alone = isinstance(before, fx.Node) and len(before.users) == 1
        if not isinstance(conv, nn.Conv2d) or not alone or norm.running_mean is None:
            raise UsageError(f"{node.target}: a norm that follows no convolution of its own")
        assert norm.running_var is not None
        with torch.no_grad():
            weight, bias = fold_batch_norm(
                conv.weight.double(),
                None if conv.bias is None else conv.bias.double(),
                mean=norm.running_mean.double(),
                variance=norm.running_var.double(),
                weight=None if norm.weight is None else norm.weight.double(),
                shift=None if norm.bias is None else norm.bias.double(),
                epsilon=norm.eps,
            )
        conv.weight = nn.Parameter(weight.to(conv.weight))
        conv.bias = nn.Parameter(bias.to(conv.weight))
        act = getattr(norm, "act", None)  # timm's norms bring their activation
        after = act if isinstance(act, nn.Module) else nn.Identity()
        parent, _, name = str(node.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, after)
        if isinstance(after, nn.Identity):
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()


def _is_fused(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = _module(graph, node)
    named = getattr(node.target, "__name__", str(node.target))
    return isinstance(module, _FUSED) or (
        node.op in ("call_function", "call_method") and named in _FUSED_FUNCTIONS
    )


def _keeps_integers(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a file has a tensor of this node's values with a range of their own."""
    if node.op == "placeholder":
        return True
    module = _module(graph, node)
    if module is not None:
        if isinstance(module, _WEIGHTED):
            users = list(node.users)
            return not (len(users) == 1 and _is_fused(graph, users[0]))
        return not isinstance(module, _PASSING)
    if node.op in ("call_function", "call_method"):
        named = getattr(node.target, "__name__", str(node.target))
        # Shapes and checks are no values.
        return named not in (*_PASSING_NAMES, "size", "getattr", "getitem", "_assert", "eq")
    return False


def _round_places(graph: fx.GraphModule) -> list[RoundedRange]:
    places: list[RoundedRange] = []
    for node in list(graph.graph.nodes):
        if not _keeps_integers(graph, node):
            continue
        made, name = RoundedRange(), f"range_{len(places)}"
        graph.add_submodule(name, made)
        with graph.graph.inserting_after(node):
            after = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(after, lambda user, own=after: user is not own)
        places.append(made)
    return places


@torch.no_grad()
def _start(made: FakeQuantised, places: Sequence[RoundedRange], inputs: Tensor) -> None:
    """Ranges that hold all that the inputs reach in the network without rounding."""
    hooks = []
    ends: dict[int, list[Tensor]] = {number: [] for number in range(len(places))}

    def watch(number: int) -> Any:
        def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            ends[number].append(torch.stack([given[0].amin(), given[0].amax()]))

        return see

    for number, place in enumerate(places):
        place.rounding = False
        hooks.append(place.register_forward_pre_hook(watch(number)))
    try:
        for part in inputs.split(16):
            made(part)
    finally:
        for hook in hooks:
            hook.remove()
    for number, place in enumerate(places):
        place.rounding = True
        place.watch(torch.cat(ends[number]), 1.0)
