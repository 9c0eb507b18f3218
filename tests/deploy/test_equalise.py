"""Channels of like ranges: the same function, and fewer decibels lost in int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsible.deploy import quantise
from collapsible.deploy.equalise import MOST, factors, scale_channels
from collapsible.deploy.picture_graph import fold_colour
from collapsible.deploy.plain import Layer, flatten_network
from collapsible.deploy.quantise import choose_codes
from collapsible.models import create_model


def run(layers: tuple[Layer, ...], x: torch.Tensor, *, tied: bool) -> torch.Tensor:
    """Layers of ``fold_colour`` in float64, by torch; the last may read the picture too."""
    picture = y = first = x
    for index, layer in enumerate(layers):
        weight, bias = torch.tensor(layer.weight), torch.tensor(layer.bias)
        if index == len(layers) - 1:
            y = y + first if tied else y
            y = torch.cat([y, picture], 1)[:, : weight.shape[1]]
        y = F.conv2d(y, weight, bias, padding=weight.shape[-1] // 2)
        if layer.slope is not None:
            y = F.prelu(y, torch.tensor(layer.slope))
        first = y if index == 0 else first
    return y


def network(name: str) -> torch.nn.Module:
    """Random weights whose channels have very different ranges."""
    torch.manual_seed(3)
    made = create_model(name, scale=2, **({} if name == "fsrcnn" else {"block": "narrow"}))
    with torch.no_grad():
        for parameter in made.parameters():
            shape = (-1,) + (1,) * (parameter.dim() - 1)
            parameter.mul_(torch.rand(len(parameter)).mul(3).exp().reshape(shape) / 4)
    return made.eval()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 10_000))
def test_factors_fit_every_channel_into_every_map(channels: int, maps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ranges = [
        (-random.exponential(size=channels) * 10.0 ** random.integers(-3, 3, channels),
         random.exponential(size=channels) * 10.0 ** random.integers(-3, 3, channels))
        for _ in range(maps)
    ]  # fmt: skip
    found = factors(ranges)
    assert (found > 0).all()
    assert np.log(found).mean() == pytest.approx(0, abs=1e-9)
    assert (found <= 1.001 * MOST * np.median(found)).all()
    if maps == 1 and (found < 0.99 * MOST * np.median(found)).all():
        # Every channel touches one end of what all of them together need.
        low, high = ranges[0]
        reach = np.maximum(found * high / (found * high).max(), found * low / (found * low).min())
        np.testing.assert_allclose(reach, 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["sesr_m3", "fsrcnn"])
def test_scaled_channels_are_the_same_network(name: str) -> None:
    plain = flatten_network(network(name))
    layers = fold_colour(plain)
    random = np.random.default_rng(0)
    by = [random.uniform(0.1, 10, len(layer.weight)) for layer in layers[:-1]]
    if plain.long_residual:
        by[-1] = by[0]
    x = torch.from_numpy(random.normal(size=(1, 3, 20, 24)))
    wanted = run(layers, x, tied=plain.long_residual)
    found = run(scale_channels(layers, by), x, tied=plain.long_residual)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-9, atol=1e-9)


def test_like_ranges_lose_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipped network, its channels multiplied and divided again: in int8 at most half as off."""
    made = create_model("sesr_m3", scale=2, weights="default", block="narrow")
    random = np.random.default_rng(1)
    convolutions = [m for m in made.modules() if isinstance(m, torch.nn.Conv2d)]
    by = [torch.tensor(10 ** random.uniform(-1, 1, 16), dtype=torch.float32) for _ in range(3)]
    by = [*by, by[0]]
    with torch.no_grad():
        for after, before in zip(convolutions[1:], by, strict=True):
            after.weight.div_(before[:, None, None])
        for before, factor in zip(convolutions[:-1], by, strict=True):
            before.weight.mul_(factor[:, None, None, None])
            assert before.bias is not None
            before.bias.mul_(factor)
    rows, columns = np.mgrid[:64, :64]
    waves = 128 + 60 * np.sin(rows / 3)[..., None] + 50 * np.cos(columns[..., None] / (2, 3, 4))
    picture = waves.astype(np.uint8)
    x = torch.from_numpy(picture.transpose(2, 0, 1)[None] - 128.0)

    def error() -> float:
        chosen = choose_codes(made, [picture])
        wanted = run(fold_colour(chosen.plain), x, tied=True)
        exact = run(chosen.layers, x, tied=True)
        np.testing.assert_allclose(exact.numpy(), wanted.numpy(), rtol=1e-6, atol=1e-6)
        kernels = [code.weight() for code in chosen.codes]
        rounded, _ = quantise._run(chosen.plain, chosen.layers, kernels, x.float(), chosen.ranges)
        plain, _ = quantise._run(chosen.plain, chosen.layers, chosen.kernels(), x.float())
        return float((rounded - plain).square().mean().sqrt())

    found = error()
    monkeypatch.setattr(quantise, "SHARES", (0.0,))
    assert found < 0.5 * error()
