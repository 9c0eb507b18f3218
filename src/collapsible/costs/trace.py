"""One run of a network without data: every operator it calls, in order.

The run is on PyTorch's meta device, where tensors have shapes and no contents, so the largest
input costs no memory. It is recorded below the modules, where functional calls are seen too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from collapsible.errors import UsageError


@dataclass(frozen=True)
class Value:
    """One tensor of a run; views of the same memory share ``storage``."""

    key: int
    shape: tuple[int, ...]
    storage: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Storage:
    """Memory behind tensors: ``elements`` of ``width`` bytes in the traced run."""

    elements: int
    width: int
    floating: bool


@dataclass(frozen=True)
class Weight:
    """A parameter, or a buffer (``learned`` False), by its name in the network."""

    name: str
    elements: int
    width: int
    learned: bool
    floating: bool


@dataclass(frozen=True)
class Step:
    """One operator call. ``args`` are the call's own, with ``Value`` in place of tensors.

    ``module`` is the path of the innermost module, ``kind`` its class, ``leaf`` whether it has
    no children and ``call`` the number of that module call. ``on_weights``: nothing in it depends
    on the network's input.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str
    kind: str
    leaf: bool
    call: int
    on_weights: bool

    @property
    def in_place(self) -> bool:
        return self.op.endswith("_") and not self.op.endswith("__")

    @property
    def is_view(self) -> bool:
        """Whether it only looks at memory in another way."""
        given = {value.storage for value in self.inputs}
        return not self.in_place and all(value.storage in given for value in self.outputs)

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by its place, or by its name, or its default."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)


@dataclass
class Trace:
    """A whole run, in order."""

    steps: list[Step] = field(default_factory=list)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    storages: dict[int, Storage] = field(default_factory=dict)
    weights: dict[int, Weight] = field(default_factory=dict)


class _Recorder(TorchDispatchMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        # Tensors are kept so that neither their identity nor their memory's is given out again.
        self.values: dict[int, tuple[Tensor, Value]] = {}
        self.data: set[int] = set()
        self.calls: list[tuple[str, str, bool, int]] = []
        self.called = 0
        named = [(n, p, True) for n, p in network.named_parameters()]
        named += [(n, b, False) for n, b in network.named_buffers()]
        for name, tensor, learned in named:
            self.trace.weights[self.value(tensor).storage] = Weight(
                name, tensor.numel(), tensor.element_size(), learned, tensor.is_floating_point()
            )

    def value(self, tensor: Tensor) -> Value:
        """The same ``Value`` for the same tensor, always."""
        if id(tensor) not in self.values:
            memory = tensor.untyped_storage()
            width = tensor.element_size()
            value = Value(len(self.values), tuple(tensor.shape), memory._cdata)
            self.values[id(tensor)] = (tensor, value)
            self.trace.storages.setdefault(
                value.storage, Storage(memory.nbytes() // width, width, tensor.is_floating_point())
            )
        return self.values[id(tensor)][1]

    def tensors(self, tree: Any) -> tuple[Value, ...]:
        return tuple(self.value(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

    def enter(self, name: str, module: nn.Module) -> None:
        self.called += 1
        leaf = next(module.children(), None) is None
        self.calls.append((name, type(module).__name__, leaf, self.called))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = self.tensors((args, kwargs))
        result = func(*args, **kwargs)
        outputs = self.tensors(result)
        if outputs:
            on_weights = not any(value.storage in self.data for value in inputs)
            if not on_weights:
                self.data.update(value.storage for value in outputs)

            def replace(leaf: Any) -> Any:
                return self.value(leaf) if isinstance(leaf, Tensor) else leaf

            module, kind, leaf, call = self.calls[-1] if self.calls else ("", "", False, 0)
            self.trace.steps.append(
                Step(
                    str(func).rpartition(".")[0],
                    tree_map(replace, tuple(args)),
                    tree_map(replace, kwargs),
                    inputs,
                    outputs,
                    module,
                    kind,
                    leaf,
                    call,
                    on_weights,
                )
            )
        return result


def _loose_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold as plain attributes, which ``.to`` would leave behind."""
    for module in network.modules():
        for value in vars(module).values():
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def without_data(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the meta device; weights are not copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in network.parameters():
        memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
    for tensor in [*network.buffers(), *_loose_tensors(network)]:
        memo.setdefault(id(tensor), tensor.detach().to("meta"))
    return copy.deepcopy(network, memo).eval()


def check_size(input_size: Sequence[int]) -> tuple[int, ...]:
    """The size as a tuple. Raises ``UsageError`` for anything but positive whole numbers."""
    try:
        size = tuple(input_size)
    except TypeError:
        size = ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    if not size or not whole:
        raise UsageError(
            f"input_size={input_size!r}: give positive whole numbers, such as (1, 3, 224, 224)"
        )
    return size


def trace(network: nn.Module, input_size: Sequence[int]) -> Trace:
    """Run a network on an input of this size without data and record what it does.

    The network is left as it is. Raises ``UsageError`` for a bad size, a size that the network
    does not accept, and a network whose control flow needs the data itself.
    """
    size = check_size(input_size)
    name = type(network).__name__
    try:
        silent = without_data(network)
    except Exception as error:
        raise UsageError(f"{name} cannot be copied without its data: {error}") from error
    dtype = next(
        (p.dtype for p in silent.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )
    probe = torch.empty(size, dtype=dtype, device="meta")
    recorder = _Recorder(silent)
    recorder.trace.inputs = (recorder.value(probe),)
    recorder.data.add(recorder.trace.inputs[0].storage)
    for path, module in silent.named_modules():
        module.register_forward_pre_hook(
            lambda module, _, path=path: recorder.enter(path, module), prepend=True
        )
        module.register_forward_hook(lambda *_: recorder.calls.pop() and None)
    try:
        with torch.no_grad(), recorder:
            output = silent(probe)
    except Exception as error:
        place = recorder.calls[-1][0] if recorder.calls else ""
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{name} does not run on shapes alone with input_size={size}"
            f"{f', at {place!r}' if place else ''}: {type(error).__name__}: {reason} "
            "(its input must have this size, and its control flow must not depend on data)"
        ) from error
    recorder.trace.outputs = recorder.tensors(_plain(output))
    return recorder.trace


def _plain(output: Any) -> Any:
    """A dataclass or other object that holds tensors, as something with leaves."""
    if isinstance(output, (Tensor, tuple, list, dict)):
        return output
    return list(vars(output).values()) if hasattr(output, "__dict__") else output
