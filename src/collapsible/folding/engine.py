"""Apply the rules until none has anything to propose, then write the graph as layers again."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from collapsible.folding.lift import lower
from collapsible.folding.ops import Conv, Scale, Transposed
from collapsible.folding.rules import (
    Policy,
    Proposal,
    Refusal,
    Rule,
    drop_identity,
    fold_scale_after,
    fold_scale_before,
    macs,
    merge_chain,
    name_of,
    op_of,
)
from collapsible.folding.rules_sum import merge_sum
from collapsible.folding.trace import Traced, data_inputs, shape_of

RULES: tuple[Rule, ...] = (
    drop_identity,
    fold_scale_after,
    merge_sum,
    fold_scale_before,
    merge_chain,
)


@dataclass(frozen=True)
class Size:
    """What a graph holds: layers with weights that run, and their MACs for one example."""

    layers: int
    macs: int


def _pending(value: Tensor) -> Tensor:
    """Stands in the graph for an operation that has not been written as a layer yet."""
    raise AssertionError("a graph runs only once its operations are lowered")


def measure_size(module: fx.GraphModule) -> Size:
    """Layers and MACs of a lifted graph; scales, poolings and unknown layers cost no MACs."""
    layers = total = 0
    for node in module.graph.nodes:
        op = op_of(node)
        if isinstance(op, (Conv, Transposed)):
            if not (isinstance(op, Conv) and op.weightless):
                layers, total = layers + 1, total + macs(node)
        elif isinstance(op, Scale):
            layers += op.norm
        elif node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            layers += any(True for _ in layer.parameters(recurse=False))
    return Size(layers, total)


def rewrite(graph: fx.Graph, policy: Policy) -> tuple[list[Proposal], list[Refusal]]:
    """The fixpoint: what was done, in order, and what the last pass left and why."""
    done: list[Proposal] = []
    while True:
        changed, refused = False, []
        for node in list(graph.nodes):
            for rule in RULES:
                if not node.users or ("op" not in node.meta and rule is not merge_sum):
                    continue
                found = rule(node, policy)
                if isinstance(found, Proposal):
                    _apply(graph, found)
                    done.append(found)
                    changed = True
                    break
                if found is not None:
                    refused.append(found)
        if not changed:
            return done, refused


def _apply(graph: fx.Graph, found: Proposal) -> None:
    node, result = found.node, found.source
    if found.op is not None:
        with graph.inserting_before(node):
            result = graph.call_function(_pending, (found.source,))
            result.meta.update(op=found.op, shape=shape_of(node), name=found.names[0])
            for term in found.plus:
                result = graph.call_function(operator.add, (result, term))
                result.meta["shape"] = shape_of(node)
    node.replace_all_uses_with(result)
    _erase(graph, node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Take out a node and whatever only it read, so that counts of users stay true."""
    inputs = node.all_input_nodes
    if node.users or node.op in ("placeholder", "output"):
        return
    graph.erase_node(node)
    for before in inputs:
        _erase(graph, before)


def write(traced: Traced, name: str) -> fx.GraphModule:
    """The rewritten graph as a module of its own: lowered, without dead layers."""
    graph, root = traced.graph, traced.module
    for node in list(graph.nodes):
        if node.target is not _pending:
            continue
        op, value = node.meta["op"], data_inputs(node)[0]
        # An operation is stored under the path of the first layer it replaces, if that is free.
        with graph.inserting_before(node):
            *before, layer = lower(op)
            for padding in before:
                target = _free_path(root, graph, f"{name_of(node)}_padding")
                root.add_submodule(target, padding)
                value = graph.call_module(target, (value,))
                value.meta["shape"] = None
            target = _free_path(root, graph, name_of(node))
            root.add_submodule(target, layer)
            new = graph.call_module(target, (value,))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    _in_place_again(traced)
    graph.lint()
    return fx.GraphModule(root, graph, class_name=name)


def _free_path(root: nn.Module, graph: fx.Graph, path: str) -> str:
    """The path itself unless a layer that still runs lives there."""
    taken = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    candidate, number = path, 1
    while any(t == candidate or t.startswith(f"{candidate}.") for t in taken) or (
        # A parent on the way must be a module, not a tensor.
        not _is_free(root, candidate)
    ):
        number += 1
        candidate = f"{path}_{number}"
    return candidate


def _is_free(root: nn.Module, path: str) -> bool:
    value: object = root
    for part in path.split("."):
        if not isinstance(value, nn.Module):
            return False
        value = getattr(value, part, None)
        if value is None:
            return True
    return isinstance(value, nn.Module)


_FRESH = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def _in_place_again(traced: Traced) -> None:
    """Activations that worked in place do so again where nothing else can see their input."""
    for name in traced.inplace:
        sites = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == name]
        if sites and all(_is_own(traced.module, site) for site in sites):
            traced.module.get_submodule(name).inplace = True  # type: ignore[assignment]


def _is_own(module: fx.GraphModule, site: fx.Node) -> bool:
    value = site.all_input_nodes[0]
    if len(value.users) > 1:
        return False
    if value.op == "call_module":
        return isinstance(module.get_submodule(str(value.target)), _FRESH)
    return value.op == "call_function" and value.target is operator.add
