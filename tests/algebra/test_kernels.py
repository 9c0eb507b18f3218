"""The algebra against torch's own convolutions in float64, borders included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.algebra import (
    compose,
    densify,
    fold_batch_norm,
    identity_kernel,
    pad_kernel,
    receptive_field,
    same_padding,
)
from collapsible.errors import UsageError

TOLERANCE = 1e-12
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    first=sizes,
    second=sizes,
    groups=st.sampled_from([(1, 1), (2, 2), (1, 2), (2, 1), (6, 6), (6, 1), (3, 2)]),
    biases=st.tuples(st.booleans(), st.booleans()),
    stride=st.integers(1, 3),
)
def test_compose_is_one_convolution_after_the_other(first, second, groups, biases, stride):
    channels, middle, out = 6, 6, 12
    w1 = random(middle, channels // groups[0], *first, seed=1)
    w2 = random(out, middle // groups[1], *second, seed=2)
    b1 = random(middle, seed=3) if biases[0] else None
    b2 = random(out, seed=4) if biases[1] else None
    x = random(2, channels, 14, 13, seed=5)
    wanted = F.conv2d(F.conv2d(x, w1, b1, groups=groups[0]), w2, b2, stride, groups=groups[1])
    kernel, bias, merged = compose(
        w1,
        w2,
        first_bias=b1,
        second_bias=b2,
        first_groups=groups[0],
        second_groups=groups[1],
    )
    got = F.conv2d(x, kernel, bias, stride, groups=merged)
    assert kernel.shape[-2:] == (first[0] + second[0] - 1, first[1] + second[1] - 1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE * 100)


def test_compose_names_the_channels_that_do_not_meet():
    with pytest.raises(UsageError, match="puts out 4 channels, the second takes 5"):
        compose(random(4, 3, 1, 1), random(2, 5, 3, 3))


@given(size=sizes, groups=st.sampled_from([1, 2, 4]))
def test_identity_kernel_returns_its_input(size, groups):
    x = random(1, 4, 7, 6)
    kernel = identity_kernel(4, size, groups=groups, dtype=torch.float64)
    got = F.conv2d(F.pad(x, same_padding(size)), kernel, groups=groups)
    assert torch.equal(got, x)


def test_same_padding_agrees_with_torch():
    for height in range(1, 7):
        for width in range(1, 7):
            conv = nn.Conv2d(1, 1, (height, width), bias=False).double()
            x = random(1, 1, 9, 8)
            left, right, top, bottom = same_padding((height, width))
            # torch keeps its own reversed list of the padding that padding="same" stands for
            reference = nn.Conv2d(1, 1, (height, width), padding="same")
            assert reference._reversed_padding_repeated_twice == [left, right, top, bottom]
            assert conv(F.pad(x, (left, right, top, bottom))).shape == x.shape


@given(small=sizes, extra=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_padding_a_kernel_changes_nothing(small, extra):
    large = (small[0] + extra[0], small[1] + extra[1])
    kernel, x = random(3, 2, *small), random(1, 2, 9, 10)
    wanted = F.conv2d(F.pad(x, same_padding(small)), kernel)
    got = F.conv2d(F.pad(x, same_padding(large)), pad_kernel(kernel, large))
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


def test_a_kernel_is_never_shrunk():
    with pytest.raises(UsageError, match="cannot pad a 3x3 kernel to 2x5"):
        pad_kernel(random(1, 1, 3, 3), (2, 5))


@given(groups=st.sampled_from([1, 2, 3, 6]))
def test_densify_is_the_same_map(groups):
    kernel, x = random(12, 6 // groups, 3, 2), random(1, 6, 5, 5)
    got = F.conv2d(x, densify(kernel, groups))
    torch.testing.assert_close(got, F.conv2d(x, kernel, groups=groups), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_batch_norm_folds_exactly(affine, with_bias):
    norm = nn.BatchNorm2d(5, affine=affine).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(random(5, seed=1))
    norm.running_var.copy_(random(5, seed=2).abs() + 0.1)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    kernel, bias = random(5, 3, 3, 3), random(5, seed=7) if with_bias else None
    x = random(2, 3, 8, 8, seed=9)
    folded = fold_batch_norm(
        kernel,
        bias,
        mean=norm.running_mean,
        variance=norm.running_var,
        weight=norm.weight if affine else None,
        shift=norm.bias if affine else None,
        epsilon=norm.eps,
    )
    wanted = norm(F.conv2d(x, kernel, bias, padding=1))
    torch.testing.assert_close(F.conv2d(x, *folded, padding=1), wanted, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(
        st.tuples(sizes, st.tuples(st.integers(1, 2), st.integers(1, 2)), st.just((1, 1))),
        min_size=1,
        max_size=4,
    )
)
def test_receptive_field_is_what_gradients_reach(layers):
    """An impulse's gradient marks exactly the inputs that one output depends on."""
    x = torch.zeros(1, 1, 80, 80, dtype=torch.float64, requires_grad=True)
    y, place, step = x, [0, 0], [1, 1]
    for kernel, stride, _ in layers:
        left, right, top, bottom = same_padding(kernel)
        y = F.conv2d(
            F.pad(y, (left, right, top, bottom)), torch.ones(1, 1, *kernel).double(), stride=stride
        )
        step = [step[0] * stride[0], step[1] * stride[1]]
    row, column = y.shape[2] // 2, y.shape[3] // 2
    place = [row * step[0], column * step[1]]
    y[0, 0, row, column].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    columns = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    field = receptive_field(layers)
    assert field.size == (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
    assert field.before == (place[0] - int(rows[0]), place[1] - int(columns[0]))
    assert field.after == (int(rows[-1]) - place[0], int(columns[-1]) - place[1])
    assert field.stride == tuple(step)
