"""Collapse a network's wide linear blocks into small convolutions."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d, SameConv2d
from collapsible.errors import UsageError


@dataclass(frozen=True)
class CollapseReport:
    """What a collapse changed, and the measured error of the map.

    ``replaced`` names the blocks. Errors are the largest absolute difference between the two
    networks' outputs on ``probe``, borders included: ``max_error_float64`` shows the map (rounding
    aside it is exact), ``max_error_float32`` what the deployed precision does to it, and
    ``output_range`` the largest output beside which to read them. Parameters count every tensor,
    biases and slopes included. All figures are measured.
    """

    replaced: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    max_error_float64: float
    max_error_float32: float
    output_range: float
    probe: str

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        return "\n".join(
            (
                f"blocks collapsed    {len(self.replaced)}",
                f"parameters          {self.parameters_before:,} -> {self.parameters_after:,}",
                f"max error float64   {self.max_error_float64:.2e} (measured on {self.probe})",
                f"max error float32   {self.max_error_float32:.2e} "
                f"(outputs reach {self.output_range:.3g})",
            )
        )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _narrow(block: CollapsibleConv2d) -> nn.Conv2d:
    """The small convolution of a block, composed in float64 and rounded once."""
    dtype = block.expand_weight.dtype
    kernel, bias = copy.deepcopy(block).double().kernel_and_bias()
    left, top = (block.kernel_size[1] - 1) // 2, (block.kernel_size[0] - 1) // 2
    has_bias = bias is not None
    if all(k % 2 for k in block.kernel_size):
        # A plain convolution wherever one will do: every exporter and tool knows it.
        conv = nn.Conv2d(
            block.in_channels,
            block.out_channels,
            block.kernel_size,
            padding=(top, left),
            groups=block.groups,
            bias=has_bias,
        )
    else:
        conv = SameConv2d(
            block.in_channels,
            block.out_channels,
            block.kernel_size,
            groups=block.groups,
            bias=has_bias,
        )
    conv = conv.to(device=kernel.device, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    for parameter in conv.parameters():
        parameter.requires_grad_(block.expand_weight.requires_grad)
    return conv


def _replace(network: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    result = copy.deepcopy(network).to(dtype)
    names = [n for n, m in result.named_modules() if isinstance(m, CollapsibleConv2d)]
    for name in names:
        block = result.get_submodule(name)
        assert isinstance(block, CollapsibleConv2d)
        if name == "":
            return _narrow(block), names
        parent, _, child = name.rpartition(".")
        setattr(result.get_submodule(parent), child, _narrow(block))
    return result, names


def _probe_input(network: nn.Module) -> Tensor:
    first = next(m for m in network.modules() if isinstance(m, CollapsibleConv2d))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, first.in_channels, 24, 31, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _difference(wide: nn.Module, narrow: nn.Module, probe: Tensor) -> tuple[float, float]:
    a, b = wide.eval()(probe), narrow.eval()(probe)
    return float((a - b).abs().max()), float(a.abs().max())


def collapse(
    network: nn.Module, *, probe: Tensor | None = None
) -> tuple[nn.Module, CollapseReport]:
    """The deployed form of a network: every ``CollapsibleConv2d`` as one small convolution.

    Returns a new network in evaluation mode (the given one is untouched) and a report. ``probe``
    is the input [N, C, H, W] on which the two are compared, the wide one run expanded, layer by
    layer; by default random pictures [2, C, 24, 31] in [0, 1].
    Raises ``UsageError`` for a network without such blocks or a probe it does not accept.
    """
    if not any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        raise UsageError(f"{type(network).__name__} has no collapsible block: nothing to collapse")
    first_parameter = next(network.parameters())
    deployed, names = _replace(network, first_parameter.dtype)
    described = "the given input" if probe is not None else "random pictures [2, C, 24, 31]"
    probe = (_probe_input(network) if probe is None else probe).to("cpu")
    errors = []
    for dtype in (torch.float64, torch.float32):
        wide = copy.deepcopy(network).to(device="cpu", dtype=dtype)
        for block in wide.modules():
            if isinstance(block, CollapsibleConv2d):
                block.set_mode("expanded")
        narrow, _ = _replace(copy.deepcopy(network).to("cpu"), dtype)
        try:
            errors.append(_difference(wide, narrow, probe.to(dtype)))
        except RuntimeError as error:
            raise UsageError(
                f"the network does not accept a probe of shape {tuple(probe.shape)}: {error}"
            ) from error
    report = CollapseReport(
        replaced=tuple(names),
        parameters_before=_count(network),
        parameters_after=_count(deployed),
        max_error_float64=errors[0][0],
        max_error_float32=errors[1][0],
        output_range=errors[0][1],
        probe=described,
    )
    return deployed.eval(), report
