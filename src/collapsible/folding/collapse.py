"""Collapse any network: every exact merge of linear layers, and a report of what was done."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.errors import CollapsibleError, UsageError
from collapsible.folding.blocks import (
    WIDE,
    block_macs,
    block_names,
    expand_blocks,
    has_only_blocks,
    replace_blocks,
)
from collapsible.folding.engine import Size, measure_size, rewrite, write
from collapsible.folding.lift import lift_graph
from collapsible.folding.measure import (
    BROKEN,
    Inputs,
    cast,
    compare,
    describe,
    find_probe,
    random_like,
)
from collapsible.folding.ops import Scale
from collapsible.folding.report import CollapseReport, Left, MapError, Rewritten
from collapsible.folding.rules import Policy, name_of, op_of
from collapsible.folding.trace import record, trace

_DTYPES = (torch.float64, torch.float32)


def collapse(
    network: nn.Module,
    *,
    probe: Tensor | Sequence[object] | None = None,
    policy: Policy = "auto",
    opaque: Sequence[str] = (),
) -> tuple[nn.Module, CollapseReport]:
    """The deployed form of a network: linear neighbours merged, nothing else changed.

    Returns a new network in evaluation mode (the given one is untouched) and a report. Blocks that
    are one convolution trained wide (``CollapsibleConv2d``, ``BottleneckConv2d``) become it. Where
    all weights lie in ``CollapsibleConv2d`` blocks the result is of the same class, each block one
    small convolution; otherwise it is a ``torch.fx.GraphModule`` with the layers' old paths.

    Merged, where one operation equals the two or more on every pixel, borders included:
    batch normalisation and per-channel scales with the convolution, transposed convolution or
    linear layer before or after; chains of convolutions, average poolings and linear layers;
    branches of one value that are summed, identity and pooling included (RepVGG, MobileOne, ACNet,
    Diverse Branch Block); activations that are the identity go. All arithmetic is in float64,
    rounded once. A value that is used elsewhere is never merged over. The report's ``left`` says
    what stayed apart and why.

    ``policy`` "auto" leaves merges that would cost more multiply-accumulates than they save;
    "always" does whatever is exact. ``probe`` is the input [N, C, H, W] (or several inputs in a
    sequence) on which the two networks are compared besides random input of the same shape; by
    default a random one that the network accepts. ``opaque`` names submodules to leave as they
    are, for those that cannot be traced.
    Raises ``UsageError`` for a network that cannot be traced (naming module, file and line), a
    probe it does not accept, an unknown policy, or a network with nothing to collapse, and
    ``CollapsibleError`` where the result differs from the network by more than rounding.
    """
    if policy not in get_args(Policy):
        raise UsageError(f"policy {policy!r}: known are {', '.join(get_args(Policy))}")
    inputs: Inputs | None = None
    if probe is not None:
        inputs = (probe,) if isinstance(probe, Tensor) else tuple(probe)
    if block_names(network) and has_only_blocks(network):
        return _collapse_blocks(network, inputs, policy)
    return _collapse_graph(network, inputs, policy, opaque)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _summary(
    network: nn.Module,
    deployed: nn.Module,
    errors: list[MapError],
    probe: str,
    before: Size,
    after: Size,
    policy: Policy,
    rewrites: tuple[Rewritten, ...] = (),
    left: tuple[Left, ...] = (),
) -> CollapseReport:
    worst = {
        name: max(e.absolute for e in errors if e.dtype == name) for name in ("float64", "float32")
    }
    return CollapseReport(
        replaced=block_names(network),
        parameters_before=_count(network),
        parameters_after=_count(deployed),
        max_error_float64=worst["float64"],
        max_error_float32=worst["float32"],
        output_range=max(e.output_range for e in errors),
        probe=probe,
        rewrites=rewrites,
        left=left,
        errors=tuple(errors),
        layers_before=before.layers,
        layers_after=after.layers,
        macs_before=before.macs,
        macs_after=after.macs,
        policy=policy,
    )


def _collapse_blocks(
    network: nn.Module, inputs: Inputs | None, policy: Policy
) -> tuple[nn.Module, CollapseReport]:
    """A network of our own blocks, which stays of its class: each block a small convolution."""
    described = "the given input" if inputs is not None else "random pictures [2, C, 24, 31]"
    if inputs is None:
        first = next(m for m in network.modules() if isinstance(m, CollapsibleConv2d))
        generator = torch.Generator().manual_seed(0)
        shape = (2, first.in_channels, 24, 31)
        inputs = (torch.rand(shape, generator=generator, dtype=torch.float64),)
    home = copy.deepcopy(network).to("cpu").eval()
    errors, sizes = [], (Size(0, 0), Size(0, 0))
    for dtype in _DTYPES:
        wide, given = expand_blocks(home, dtype), cast(inputs, dtype)
        error = compare(wide, replace_blocks(home, dtype), given, described)
        errors.append(error)
        if dtype is torch.float64:
            sizes = _block_sizes(wide, given)
    _reject_broken(errors)
    deployed = replace_blocks(network).eval()
    return deployed, _summary(network, deployed, errors, described, *sizes, policy)


@torch.no_grad()
def _block_sizes(wide: nn.Module, inputs: Inputs) -> tuple[Size, Size]:
    """Layers and MACs of the wide and of the narrow form."""
    before, after = [0, 0], [0, 0]

    def count(block: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        expanded, narrow = block_macs(block, given[0], output)
        squeezed = isinstance(block, CollapsibleConv2d) and block.squeeze is None
        before[0] += 2 if squeezed else 3
        before[1] += expanded
        after[0] += 1
        after[1] += narrow

    blocks = [m for m in wide.modules() if isinstance(m, WIDE)]
    hooks = [block.register_forward_hook(count) for block in blocks]
    wide(*inputs)
    for hook in hooks:
        hook.remove()
    return Size(*before), Size(*after)


def _collapse_graph(
    network: nn.Module, inputs: Inputs | None, policy: Policy, opaque: Sequence[str]
) -> tuple[nn.Module, CollapseReport]:
    """Any other network, by its graph."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise UsageError(f"{type(network).__name__} has no collapsible block: it has no weights")
    home = copy.deepcopy(network).to("cpu").eval()
    wide = expand_blocks(home, torch.float64)
    probes: list[tuple[Inputs, str]] = []
    if inputs is None:
        inputs = find_probe(wide)
        described = f"random input {describe(inputs)}"
        probes.append((inputs, described))
    else:
        inputs = cast(inputs, torch.float64)
        described = "the given input and random input"
        probes.append((inputs, "the given input"))
        probes.append((random_like(inputs), f"random input {describe(inputs)}"))
    traced = trace(replace_blocks(home, torch.float64), opaque)
    compare(wide, traced.module, inputs, described)  # names a probe that does not fit
    record(traced, inputs)
    lift_graph(traced.module)
    before = measure_size(traced.module)
    wide_blocks, narrow_blocks = _block_sizes(wide, inputs)
    before = Size(
        before.layers + wide_blocks.layers - narrow_blocks.layers,
        before.macs + wide_blocks.macs - narrow_blocks.macs,
    )
    unknown = _unknown(traced.module)
    done, refused = rewrite(traced.graph, policy)
    left = tuple(dict.fromkeys(Left(r.rule, r.names, r.reason) for r in refused)) + unknown
    left += _lonely_norms(traced.module, left)
    names = block_names(network)
    if not done and not left and not names:
        raise UsageError(f"{type(network).__name__} has no collapsible block: nothing to collapse")
    after = measure_size(traced.module)
    found = write(traced, f"Collapsed{type(network).__name__}")
    _keep_grad(network, found)
    errors = []
    for given, words in probes:
        for dtype in _DTYPES:
            narrow = copy.deepcopy(found).to(dtype)
            errors.append(compare(expand_blocks(home, dtype), narrow, cast(given, dtype), words))
    _reject_broken(errors)
    deployed = found.to(device=parameter.device, dtype=parameter.dtype).eval()
    rewrites = tuple(Rewritten(p.rule, p.names, p.note) for p in done)
    report = _summary(network, deployed, errors, described, before, after, policy, rewrites, left)
    return deployed, report


def _unknown(module: torch.fx.GraphModule) -> tuple[Left, ...]:
    """Layers that would be linear but for something of their own."""
    return tuple(
        Left("unknown", (name_of(node),), str(node.meta["opaque"]))
        for node in module.graph.nodes
        if "opaque" in node.meta and op_of(node) is None
    )


def _lonely_norms(module: torch.fx.GraphModule, left: tuple[Left, ...]) -> tuple[Left, ...]:
    """Batch norms that stay and that no rule has spoken of."""
    spoken = {name for entry in left for name in entry.names}
    reason = "no convolution or linear layer stands directly before or after it"
    return tuple(
        Left("batch-norm", (name_of(node),), reason)
        for node in module.graph.nodes
        if isinstance(op := op_of(node), Scale) and op.norm and name_of(node) not in spoken
    )


def _keep_grad(network: nn.Module, found: nn.Module) -> None:
    """Merged weights learn if anything in the network did."""
    if not any(p.requires_grad for p in network.parameters()):
        for parameter in found.parameters():
            parameter.requires_grad_(False)


def _reject_broken(errors: list[MapError]) -> None:
    """The last guard: a result that is not the same map is never handed out."""
    for error in errors:
        if error.dtype == "float64" and not error.relative < BROKEN:
            raise CollapsibleError(
                f"the collapsed network differs from the given one by {error.relative:.1e} "
                f"(relative, float64, on {error.input}): its trace is another network, as happens "
                "where values are overwritten in place under another name"
            )
