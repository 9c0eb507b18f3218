"""Turn a module into a graph that rules can rewrite safely (torch.fx).

The graph that comes out has no aliases and no in-place operations: a value means the same thing
wherever it is read, so that moving a read changes nothing.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from collapsible.errors import UsageError

_ITEMS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal")
_LEAVES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class Traced:
    """A network as a graph. ``inplace`` names the modules that worked in place."""

    module: fx.GraphModule
    inplace: tuple[str, ...]

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph


class _Tracer(fx.Tracer):
    """Goes into every module but torch's own, subclasses of layers, and the opaque ones."""

    def __init__(self, opaque: Sequence[str]) -> None:
        super().__init__()
        self.opaque = frozenset(opaque)
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or isinstance(m, _LEAVES):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module comes first; those around it pass the same error on.
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise


def _place(error: BaseException) -> str:
    """File and line of the innermost frame outside torch."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_TORCH)
        and Path(frame.filename) != Path(__file__)
    ]
    if not frames:
        return "in torch"
    return f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"


def trace(network: nn.Module, opaque: Sequence[str] = ()) -> Traced:
    """The graph of a network in evaluation mode. ``network`` is the caller's own copy.

    Raises ``UsageError`` naming module, file and line where the flow depends on data, and for
    opaque names that are no modules.
    """
    names = {name for name, _ in network.named_modules()}
    unknown = [name for name in opaque if name not in names or not name]
    if unknown:
        raise UsageError(f"opaque={unknown}: no such submodules of {type(network).__name__}")
    tracer = _Tracer(opaque)
    try:
        graph = tracer.trace(network)
    except Exception as error:
        where = tracer.failed or ""
        hint = f"; opaque=[{where!r}] leaves that module as it is" if where else ""
        raise UsageError(
            f"{type(network).__name__} cannot be traced: "
            f"{f'module {where!r} ' if where else ''}{_place(error)} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}){hint}"
        ) from error
    module = fx.GraphModule(network, graph)
    _drop_checks(graph)
    _drop_aliases(module)
    inplace = _out_of_place(module)
    graph.eliminate_dead_code()
    module.recompile()
    return Traced(module, inplace)


def _drop_checks(graph: fx.Graph) -> None:
    """Assertions are reads of a value that nothing computes with; they would block merges."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)


def returns_its_input(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node hands on the very same tensor."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return isinstance(layer, nn.Identity) or type(layer).__name__ in _DROPOUTS
    if node.op != "call_function" or "dropout" not in getattr(node.target, "__name__", ""):
        return False
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return training is False


_DROPOUTS = {
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
}


def _drop_aliases(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if returns_its_input(module, node) and node.all_input_nodes:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


def _works_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(module.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        named = name.endswith("_") and not name.startswith("_")
        return node.kwargs.get("inplace") is True or named or node.target in _ITEMS
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def _out_of_place(module: fx.GraphModule) -> tuple[str, ...]:
    """Later reads of an overwritten value read the result; then nothing need be overwritten."""
    changed = []
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if not _works_in_place(module, node) or not node.all_input_nodes:
            continue
        value = node.all_input_nodes[0]
        for user in list(value.users):
            if order[user] > order[node]:
                user.replace_input_with(value, node)
        if node.op == "call_module":
            changed.append(str(node.target))
            continue
        if node.op == "call_method":
            node.target = str(node.target)[:-1]
            known = hasattr(Tensor, node.target)
        elif node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
            known = True
        else:
            target: Any = node.target
            plain = _ITEMS.get(target) or getattr(torch, target.__name__[:-1], None)
            known = plain is not None
            node.target = plain or target
        if not known:
            raise UsageError(f"the in-place operation {node.name} cannot be rewritten")
    for name in changed:
        module.get_submodule(name).inplace = False  # type: ignore[assignment]
    return tuple(dict.fromkeys(changed))


class _Recorder(fx.Interpreter):
    """Notes every value's shape, and the value itself where it depends on parameters alone."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        inputs = n.all_input_nodes
        name = getattr(n.target, "__name__", str(n.target))
        computed = n.op in ("call_function", "call_method") and inputs
        pure = not any(word in name for word in _RANDOM)
        if n.op == "get_attr" or (computed and pure and all("constant" in i.meta for i in inputs)):
            n.meta["constant"] = value
        return value


@torch.no_grad()
def record(traced: Traced, inputs: Sequence[Any]) -> None:
    """Run the graph once, noting in ``meta`` the shapes and constants that rules read."""
    _Recorder(traced.module).run(*inputs)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's value on the probe; None where it is no tensor."""
    return node.meta.get("shape")


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that depend on the network's input."""
    return [n for n in node.all_input_nodes if "constant" not in n.meta]
