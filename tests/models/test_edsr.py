"""EDSR-baseline: the published size, what it does untrained, and how far it looks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from collapsible.costs import cost
from collapsible.errors import UsageError
from collapsible.models import EDSR, create_model


def test_the_published_size() -> None:
    """1.37 million weights, 122.7G MACs from 299 to 598 pixels (arXiv 2112.14340's comparison)."""
    network = create_model("edsr_base", colour="rgb")
    weights = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert round(weights / 1e6, 2) == 1.37
    assert weights >= 10 * 113_376  # SESR-XL on RGB, published
    assert round(cost(network, (1, 3, 299, 299)).macs / 1e9, 1) == pytest.approx(122.7, abs=0.15)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_untrained_it_is_near_nearest_neighbour(scale: int) -> None:
    torch.manual_seed(0)
    network = EDSR(scale=scale, colour="rgb", blocks=2, features=8)
    x = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        y = network(x)
        none = EDSR(scale=scale, colour="rgb", blocks=2, features=8, input_residual=False)
        none.load_state_dict(network.state_dict())
        torch.testing.assert_close(
            y - none(x), F.interpolate(x, scale_factor=scale, mode="nearest")
        )
    assert y.shape == (1, 3, 9 * scale, 7 * scale)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_receptive_radius_is_the_reach(scale: int) -> None:
    network = EDSR(scale=scale, features=4, blocks=2).double()
    for p in network.parameters():  # all positive: no path cancels
        p.data.abs_().add_(0.01)
    side, reach = 41, network.receptive_radius
    x = torch.rand(1, 1, side, side, dtype=torch.float64).requires_grad_()
    network(x)[0, 0, side // 2 * scale, side // 2 * scale].backward()
    assert x.grad is not None
    touched = x.grad[0, 0].abs().amax(0).nonzero().flatten() - side // 2
    assert int(touched.abs().max()) in (reach - 1, reach)


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="scale=5"):
        EDSR(scale=5)
    with pytest.raises(UsageError, match="colour"):
        EDSR(colour="cmyk")  # type: ignore[arg-type]
