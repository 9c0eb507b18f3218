"""The linear blocks of SESR's ablation: what they are, and that they collapse exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from collapsible.blocks import LINEAR_BLOCKS, CollapsibleConv2d, ParallelConv2d, linear_block
from collapsible.errors import UnknownNameError, UsageError
from collapsible.folding import collapse
from collapsible.models import SESR, create_model


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (3, 5)])
def test_parallel_branches_are_one_kernel(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    block = ParallelConv2d(inputs, outputs, 3).double()
    nn.init.normal_(block.full.bias)
    nn.init.normal_(block.point.bias)
    kernel = block.full.weight.detach().clone()
    kernel[:, :, 1, 1] += block.point.weight[:, :, 0, 0]
    if inputs == outputs:
        kernel[range(inputs), range(inputs), 1, 1] += 1
    x = torch.randn(2, inputs, 7, 6, dtype=torch.float64)
    expected = F.conv2d(x, kernel, block.full.bias + block.point.bias, padding=1)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LINEAR_BLOCKS)
@pytest.mark.parametrize("residual", [False, True])
def test_blocks_start_with_features_of_their_size(kind: str, residual: bool) -> None:
    """Variance 1 without a residual; near the identity with one."""
    torch.manual_seed(0)
    block = linear_block(kind, 32, 32, 3, residual=residual)
    x = torch.randn(4, 32, 16, 16)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    with torch.no_grad():
        grown = float(block(x)[inside].square().mean())
    identity = residual and kind in ("sesr", "repvgg", "narrow")
    assert grown == pytest.approx(1.09 if identity else 1.0, rel=0.1)


@pytest.mark.parametrize("kind", LINEAR_BLOCKS)
def test_a_network_of_any_block_collapses_to_the_same_weights(kind: str) -> None:
    torch.manual_seed(0)
    network = create_model("sesr_m3", block=kind, expansion=8).double().eval()
    deployed, _ = collapse(network)
    assert sum(p.numel() for p in deployed.parameters() if p.ndim == 4) == 8912
    x = torch.rand(1, 1, 12, 14, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), network(x), rtol=0, atol=1e-9)
    assert not any(isinstance(m, (CollapsibleConv2d, ParallelConv2d)) for m in deployed.modules())


@pytest.mark.parametrize("kind", LINEAR_BLOCKS)
def test_any_block_goes_on_from_a_smaller_scale(kind: str) -> None:
    torch.manual_seed(0)
    small = SESR(2, 4, scale=2, block=kind, expansion=6)
    large = SESR(2, 4, scale=4, block=kind, expansion=6)
    large.start_from(small)
    x = torch.rand(1, 1, 9, 9)
    expected = F.interpolate(small(x), scale_factor=2, mode="nearest")
    torch.testing.assert_close(large(x), expected, rtol=0, atol=1e-6)


def test_expandnet_is_sesr_without_its_short_residual() -> None:
    torch.manual_seed(0)
    first = linear_block("sesr", 4, 4, 3, residual=True, expansion=8)
    other = linear_block("expandnet", 4, 4, 3, residual=True, expansion=8)
    other.load_state_dict(first.state_dict())
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(first(x), other(x) + x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [3, (2, 3)])
def test_narrow_is_one_convolution_that_starts_at_the_identity(kernel) -> None:
    block = linear_block("narrow", 6, 6, kernel, residual=True, gain=0.0)
    assert [p.ndim for p in block.parameters()] == [4, 1]
    x = torch.randn(1, 6, 7, 8)
    assert torch.equal(block(x), x)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'repvgg'"):
        linear_block("repvg", 4, 4, 3)
    with pytest.raises(UsageError, match="odd sizes only"):
        ParallelConv2d(4, 4, 2)
    with pytest.raises(UsageError, match="as many inputs as outputs, not 3 and 4"):
        ParallelConv2d(3, 4, 3, identity=True)
    with pytest.raises(UnknownNameError):
        create_model("sesr_m3", block="none")
