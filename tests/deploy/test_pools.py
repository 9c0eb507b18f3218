"""Max pooling with repeated borders is max pooling, and int8 files can have it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.deploy.litert import operators, run_litert, save_litert
from collapsible.deploy.pools import repeat_borders


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_the_same_layer(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    stride = data.draw(st.integers(1, 3))
    size = data.draw(st.tuples(st.integers(5, 9), st.integers(5, 9)))
    pool = nn.MaxPool2d(kernel, stride, padding)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 3, *size, generator=generator) - 3
    replaced = repeat_borders(nn.Sequential(nn.MaxPool2d(kernel, stride, padding)))
    assert torch.equal(replaced(x), pool(x))
    assert all(_unpadded(m) for m in replaced.modules())


def _unpadded(module: nn.Module) -> bool:
    return not isinstance(module, nn.MaxPool2d) or module.padding in (0, (0, 0))


def test_what_it_does_not_touch() -> None:
    for pool in (nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(3, 2, 1, dilation=2)):
        network = nn.Sequential(pool)
        assert repeat_borders(network)[0] is pool


@pytest.mark.slow
def test_an_int8_file_of_a_resnet_like_stem(tmp_path) -> None:
    """Its maximum is of values below zero too, so padding with zeros would be wrong."""
    pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        network[0].bias -= 2
    pictures = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    path = save_litert(network, tmp_path / "n.tflite", (1, 3, 32, 32), calibration=list(pictures))
    assert "MAX_POOL_2D" in operators(path)
    wanted = network(torch.from_numpy(pictures)).detach().numpy()
    got = run_litert(path, pictures)
    assert np.abs(got - wanted).max() < 0.05 * np.ptp(wanted)
    assert isinstance(network[1], nn.MaxPool2d), "the given network was changed"
