"""Training-free scores of a network under one interface: ``score(network, pictures, labels)``.

More is meant to be better. Each has its source. Those that look at data take the batches that
they are given; the others ignore them. The network is not changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.costs import cost
from collapsible.errors import UnknownNameError, UsageError
from collapsible.search.mass import nn_mass

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Proxy:
    """``score`` takes the network and batches of pictures [N, C, H, W] and labels [N]."""

    name: str
    source: str
    score: Callable[[nn.Module, Batches], float]


def _size(batches: Batches) -> tuple[int, ...]:
    return (1, *batches[0][0].shape[1:])


def _params(network: nn.Module, batches: Batches) -> float:
    return float(sum(p.numel() for p in network.parameters()))


def _macs(network: nn.Module, batches: Batches) -> float:
    return float(cost(network, _size(batches)).macs)


def _mass(network: nn.Module, batches: Batches) -> float:
    return nn_mass(network)


def synflow(network: nn.Module, batches: Batches) -> float:
    """Log of the sum of w * dR/dw for |w| and a picture of ones (equation 2 of the source).

    Norms are left out, as they would divide the signal's size away; float64.
    """
    network = copy.deepcopy(network).double().eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    network.requires_grad_(True)
    network(torch.ones(_size(batches), dtype=torch.float64)).sum().backward()
    total = sum(
        float((p * p.grad).detach().sum()) for p in network.parameters() if p.grad is not None
    )
    return math.log(total) if total > 0 else -math.inf


_BENDS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.Hardswish, nn.SiLU, nn.PReLU)


def naswot(network: nn.Module, batches: Batches) -> float:
    """Log determinant of the kernel of equal activation signs among a batch's pictures.

    ``K_ij`` is the number of units with the same sign for pictures i and j (section 3 of the
    source). Activations without a kink are told by the sign of what they are given.
    """
    network = copy.deepcopy(network).eval()
    pictures = batches[0][0]
    kernel = torch.zeros(len(pictures), len(pictures), dtype=torch.float64)

    def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        signs = (given[0] > 0).flatten(1).double()
        kernel.add_(signs @ signs.T + (1 - signs) @ (1 - signs).T)

    watched = [m for m in network.modules() if isinstance(m, _BENDS)]
    if not watched:
        raise UsageError(f"{type(network).__name__}: no activation module for NASWOT to watch")
    for module in watched:
        module.register_forward_pre_hook(watch)
    with torch.no_grad():
        network(pictures)
    return float(torch.linalg.slogdet(kernel).logabsdet)


def zico(network: nn.Module, batches: Batches) -> float:
    """Sum over layers of log(sum over weights of mean |g| / deviation of g) (equation 14).

    Over the gradients of at least two batches; weights whose gradient does not vary are left out.
    """
    if len(batches) < 2:
        raise UsageError(f"ZiCo compares gradients of batches: give at least 2, not {len(batches)}")
    network = copy.deepcopy(network).train()
    layers = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    gradients: list[list[Tensor]] = [[] for _ in layers]
    for pictures, labels in batches:
        network.zero_grad()
        F.cross_entropy(network(pictures), labels).backward()
        for kept, weight in zip(gradients, layers, strict=True):
            if weight.grad is not None:
                kept.append(weight.grad.detach().flatten().clone())
    total = 0.0
    for kept in gradients:
        if not kept:
            continue
        stacked = torch.stack(kept)
        deviation = stacked.std(0, unbiased=False)
        varies = deviation > 0
        ratio = (stacked.abs().mean(0)[varies] / deviation[varies]).sum()
        if ratio > 0:
            total += math.log(float(ratio))
    return total


def network_entropy(network: nn.Module, batches: Batches) -> float:
    """DeepMAD's multi-scale entropy of the layers that work on maps, in the order they run.

    As ``scaling.entropy`` has it for a shape: scales weigh 1, the last 8.
    """
    network = copy.deepcopy(network).eval()
    seen: list[tuple[int, int, int]] = []

    def watch(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        if result.ndim == 4 and isinstance(module, nn.Conv2d | nn.Linear):
            channels, fan_in = len(module.weight), module.weight[0].numel()
            seen.append((fan_in, channels, result[0].numel() // channels))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(watch)
    with torch.no_grad():
        network(batches[0][0][:1])
    path, scales = 0.0, dict[int, float]()
    for fan_in, channels, pixels in seen:
        path += math.log(fan_in)
        scales[pixels] = math.log(pixels * channels) * path
    values = list(scales.values())
    return sum(values[:-1]) + 8 * values[-1] if values else 0.0


_PROXIES = (
    Proxy("nn-mass", "Bhardwaj et al., arXiv 1910.00780, section 3", _mass),
    Proxy("params", "counted", _params),
    Proxy("macs", "counted", _macs),
    Proxy("synflow", "Tanaka et al., arXiv 2006.05467, equation 2", synflow),
    Proxy("naswot", "Mellor et al., arXiv 2006.04647, section 3", naswot),
    Proxy("zico", "Li et al., arXiv 2301.11300, equation 14", zico),
    Proxy("entropy", "Shen et al. (DeepMAD), arXiv 2303.02165, section 4", network_entropy),
)


def list_proxies() -> tuple[Proxy, ...]:
    """All proxies."""
    return _PROXIES


def find_proxy(name: str) -> Proxy:
    """A proxy by name. Raises ``UnknownNameError`` for another."""
    for proxy in _PROXIES:
        if proxy.name == name.lower().replace("_", "-"):
            return proxy
    raise UnknownNameError("proxy", name, [proxy.name for proxy in _PROXIES])


def noise_batches(
    size: tuple[int, int, int], classes: int, *, batch: int = 32, count: int = 2, seed: int = 0
) -> Batches:
    """Batches of normal noise with labels by chance, for scoring without a data set."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(batch, *size, generator=generator),
            torch.randint(classes, (batch,), generator=generator),
        )
        for _ in range(count)
    ]
