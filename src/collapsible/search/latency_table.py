"""What every block takes on the target in each of its forms, each really compiled or measured.

Every form of every block is built by itself with newly drawn weights, and estimated as any network
is (``collapsible.estimate``): compiled by Vela for an Ethos-U, timed on this machine for ``host``.
Results are kept on disk by the block's shape, its form, the target and the tools' versions, so
blocks of one shape are compiled once, and asking again costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from collapsible.blocks.restructurable import (
    BottleneckParts,
    FusedBottleneck,
    KeptBottleneck,
    PreactivatedBottleneck,
)
from collapsible.costs.targets import Target, find_target
from collapsible.deploy.cache import cache_folder, make_cache_folder
from collapsible.deploy.estimate import estimate
from collapsible.deploy.host import processor
from collapsible.errors import CollapsibleError, MissingExtraError, UsageError
from collapsible.imaging import atomic_write
from collapsible.search.inverted import Bottleneck

# Raise when what is built for a form changes.
CACHE_VERSION = 1
_TOOLS = {
    "vela": ("ethos-u-vela", "litert-torch", "ai-edge-quantizer"),
    "host": ("openvino", "onnxruntime"),
    "roofline": (),
}


@dataclass(frozen=True)
class FormLatency:
    """One form of a block alone: milliseconds of a run, or None and why there is no such figure."""

    latency_ms: float | None
    source: str
    reason: str = ""


@dataclass(frozen=True)
class BlockLatency:
    """A block's forms on the target, for the input [N, C, H, W] that it gets in the network.

    ``fused`` is None for a block that is fused already.
    """

    name: str
    input_size: tuple[int, ...]
    keep: FormLatency
    dense: FormLatency
    fused: FormLatency | None = None

    @property
    def milliseconds(self) -> dict[str, float]:
        """The latency of each form that the target runs, from the bottleneck on."""
        forms = {"keep": self.keep, "fused": self.fused, "dense": self.dense}
        found = {name: None if form is None else form.latency_ms for name, form in forms.items()}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class LatencyTable:
    """A network on a target: all of it, its blocks, and the rest, in milliseconds a run.

    ``network_ms`` is of the whole network, and of what runs on the NPU alone where
    ``cpu_operators`` fall off it. ``rest_ms`` is that less the sum of the kept blocks; a compiler
    may join layers across blocks, so sums of parts are near a whole and not equal to it.
    """

    target: str
    input_size: tuple[int, ...]
    source: str
    network_ms: float
    blocks: tuple[BlockLatency, ...]
    cpu_operators: tuple[str, ...] = ()
    compiled: int = 0
    """How many forms were not in the cache."""

    @property
    def rest_ms(self) -> float:
        return self.network_ms - sum(block.keep.latency_ms or 0.0 for block in self.blocks)

    def json(self) -> str:
        """The table as a JSON object."""
        return json.dumps({**asdict(self), "rest_ms": self.rest_ms}, indent=2)


def build_latency_table(
    network: nn.Module,
    blocks: Sequence[Bottleneck],
    target: Target | str,
    input_size: Sequence[int],
    *,
    cache: str | Path | bool = True,
    on_form: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Estimate or measure every block of a network in its forms, and the whole network.

    ``on_form(done, total)`` is called as forms are done. A fused or dense form that the target
    rejects has no latency and a reason. Raises ``UsageError`` for an input the network does not
    take, and ``CollapsibleError`` where the network or a block as it is does not run on the target
    at all.
    """
    target = find_target(target)
    sizes = input_sizes(network, [block.name for block in blocks], input_size)
    whole = estimate(network, target, input_size, cache=cache)
    network_ms = whole.latency_ms if whole.latency_ms is not None else whole.npu_ms
    if network_ms is None:
        raise CollapsibleError(f"{type(network).__name__} has no latency on {target.name}")
    kinds = [
        {"keep": KeptBottleneck, "dense": PreactivatedBottleneck}
        | ({"fused": FusedBottleneck} if block.parts.fusible else {})
        for block in blocks
    ]
    found, fresh, done = [], 0, 0
    for block, size, wanted in zip(blocks, sizes, kinds, strict=True):
        forms: dict[str, FormLatency] = {}
        for form, kind in wanted.items():
            forms[form], new = _form_latency(kind, block, size, target, cache)
            fresh, done = fresh + new, done + 1
            if on_form:
                on_form(done, sum(map(len, kinds)))
        if forms["keep"].latency_ms is None:
            raise CollapsibleError(
                f"{target.name} does not run block {block.name} as it is: {forms['keep'].reason}"
            )
        found.append(BlockLatency(block.name, size, **forms))
    return LatencyTable(
        target.name,
        tuple(input_size),
        whole.source,
        network_ms,
        tuple(found),
        tuple(map(str, whole.cpu_operators)),
        fresh,
    )


@torch.no_grad()
def input_sizes(
    network: nn.Module, names: Sequence[str], input_size: Sequence[int]
) -> list[tuple[int, ...]]:
    """The size [N, C, H, W] of what each named sub-module gets, by running the network once."""
    seen: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name in names:

        def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = tuple(given[0].shape)

        hooks.append(network.get_submodule(name).register_forward_pre_hook(note))
    training = network.training
    parameter = next(network.parameters())
    try:
        given = torch.zeros(*input_size, dtype=parameter.dtype, device=parameter.device)
        network.eval()(given)
    except (RuntimeError, ValueError, TypeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"input_size={tuple(input_size)}: the network refuses: {text}") from error
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    missing = next((name for name in names if name not in seen), None)
    if missing is not None:
        raise UsageError(f"block {missing} takes no part in the network's forward pass")
    return [seen[name] for name in names]


def _form_latency(
    kind: type[nn.Module],
    block: Bottleneck,
    size: tuple[int, ...],
    target: Target,
    cache: str | Path | bool,
) -> tuple[FormLatency, bool]:
    """A form's latency, and whether it had to be made."""
    path = None
    if cache is not False:
        base = cache_folder() if cache is True else Path(cache)
        path = base / "blocks" / f"{_key(kind, block, size, target)}.json"
        try:
            return FormLatency(**json.loads(path.read_text(encoding="utf-8"))), False
        except (OSError, ValueError, TypeError):
            pass  # not there, or not whole: it is made anew
    form = kind(_redrawn(block.parts)).eval()
    try:
        report = estimate(form, target, size, cache=cache)
    except MissingExtraError:
        raise
    except CollapsibleError as error:
        latency = FormLatency(None, target.name, " ".join(str(error).split()))
    else:
        reason = ""
        if report.latency_ms is None:
            names = ", ".join(map(str, report.cpu_operators))
            reason = f"{names} falls off the target" if names else "it does not fit the memory"
        latency = FormLatency(report.latency_ms, report.source, reason)
    if path is not None:
        make_cache_folder(path.parent)
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(latency)).encode())
    return latency, True


def _key(kind: type[nn.Module], block: Bottleneck, size: tuple[int, ...], target: Target) -> str:
    parts = block.parts
    layers = [repr(layer) for layer in (*parts.convs, *parts.norms, *parts.acts)]
    facts = [CACHE_VERSION, kind.__name__, layers, parts.residual, size, asdict(target)]
    facts.append({package: _version(package) for package in _TOOLS[target.kind]})
    if target.kind == "host":
        facts.append([processor(), os.cpu_count()])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _redrawn(parts: BottleneckParts) -> BottleneckParts:
    """The same layers with weights drawn from one seed: speed hangs on shapes, as the key does."""
    parts = parts.copies()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for conv in parts.convs:
            conv.float().cpu()
            fan = conv.weight[0].numel() ** -0.5
            conv.weight.copy_(fan * torch.randn(conv.weight.shape, generator=generator))
            if conv.bias is not None:
                conv.bias.zero_()
        for norm in parts.norms:
            norm.float().cpu()
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_parameters()
    return parts
