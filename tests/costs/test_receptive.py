"""Receptive fields against gradients of an impulse, and published ones."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.costs import ReceptiveField, cost
from collapsible.models import create_model


def field_by_gradient(network: nn.Module, side: int, channels: int = 2) -> tuple[int, int]:
    """The widest span (height, width) of inputs that any one output's gradient reaches.

    All weights are made positive, so that no two paths cancel.
    """
    network = network.double().eval()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    x = torch.rand(1, channels, side, side, dtype=torch.float64, requires_grad=True)
    y = network(x)
    height, width = y.shape[-2:]
    best = [0, 0]
    # Outputs in the middle, as many as any network here has phases.
    for step in range(-4, 5):
        pixel = y[0, :, height // 2 + step, width // 2 + step].sum()
        (gradient,) = torch.autograd.grad(pixel, x, retain_graph=True)
        seen = gradient[0].abs().sum(0) > 0
        for axis, along in ((0, seen.any(1)), (1, seen.any(0))):
            places = along.nonzero().flatten()
            if len(places):
                assert places[0] > 0
                assert places[-1] < side - 1, "the picture is too small for this test"
                best[axis] = max(best[axis], int(places[-1] - places[0]) + 1)
    return best[0], best[1]


def field(network: nn.Module, side: int = 64, channels: int = 2) -> ReceptiveField:
    report = cost(network, (1, channels, side, side))
    assert report.receptive_field is not None, report.receptive_field_reason
    return report.receptive_field


def conv(kernel=3, **options) -> nn.Conv2d:
    return nn.Conv2d(2, 2, kernel, **options)


class Branches(nn.Module):
    """Dilated and plain beside each other, joined by channels, and a residual around all."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = conv(dilation=(3, 2), padding=(3, 2)), conv(1)
        self.join = nn.Conv2d(4, 2, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.wide(x)), self.narrow(x)], dim=1)
        return x + self.join(both)


class Hourglass(nn.Module):
    """Down by four and up again by three different means, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = conv(3, stride=2, padding=1), conv(3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1), conv(5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(x)
        quarter = self.low(F.avg_pool2d(half, 2))
        half = half + F.interpolate(quarter, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(x + self.up(half))


class ChannelsLast(nn.Module):
    """A ConvNeXt-like block: flattened products over channels leave places alone."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = conv(7, padding=3, groups=2)
        self.norm, self.mix = nn.LayerNorm(2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class Shuffles(nn.Module):
    """Space to depth, work there, and depth to space."""

    def __init__(self) -> None:
        super().__init__()
        self.work = nn.Conv2d(8, 8, 3, padding=1)
        self.first = conv(3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.work(F.pixel_unshuffle(self.first(x), 2)), 2)


class Cropped(nn.Module):
    """No padding, so the skip is cropped; and padding by reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(5), conv(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.pad(self.first(x), (1, 1, 1, 1), mode="reflect"))
        return y + x[..., 2:-2, 2:-2]


@pytest.mark.parametrize(
    "network",
    [
        conv((3, 5), padding=(1, 2)),
        conv(2),
        nn.Sequential(conv(3, stride=3), nn.MaxPool2d(3, 2), conv(2)),
        Branches(),
        Hourglass(),
        Shuffles(),
        Cropped(),
        nn.Sequential(conv(), nn.Upsample(scale_factor=3), conv(4)),
        nn.Sequential(conv(), nn.ConvTranspose2d(2, 2, 3, stride=3), conv(3, stride=2)),
        nn.Sequential(conv(), nn.ConvTranspose2d(2, 2, 2, stride=3, dilation=2), conv(2)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_equals_the_gradients_span(network):
    assert field(network, 96).size == field_by_gradient(network, 96)


def test_channels_last_layers_keep_places():
    # By hand, for a normalised pair of channels has no gradient to speak of.
    assert field(ChannelsLast()).size == (7, 7)
    assert field(nn.Sequential(ChannelsLast(), ChannelsLast())).size == (13, 13)


layer = st.builds(
    lambda k, s, d, p, up: (
        nn.ConvTranspose1d(2, 2, k, stride=s, padding=min(p, k - 1), dilation=d)
        if up
        else nn.Conv1d(2, 2, k, stride=s, padding=p, dilation=d)
    ),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 2),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(layer, min_size=1, max_size=4))
def test_random_chains_equal_the_gradients_span(layers):
    """All outputs in the middle, in one dimension, by the Jacobian."""
    network = nn.Sequential(*layers).double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    x = torch.rand(1, 2, 256, dtype=torch.float64, requires_grad=True)
    y = network(x)[0].sum(0)
    middle = range(len(y) // 2 - 20, len(y) // 2 + 20) if len(y) > 80 else [len(y) // 2]
    spans = []
    for place in middle:
        (gradient,) = torch.autograd.grad(y[place], x, retain_graph=True)
        seen = gradient[0].abs().sum(0).nonzero().flatten()
        if len(seen):
            assert seen[0] > 0
            assert seen[-1] < 255
            spans.append(int(seen[-1] - seen[0]) + 1)
    report = cost(network, (1, 2, 256))
    if spans:
        assert report.receptive_field is not None
        found = report.receptive_field.size[0]
        assert found == max(spans) if len(y) > 80 else found >= max(spans)


def test_place_of_an_output():
    # Valid 5x5: output 0 sees inputs 0 to 4. Padded: two on either side.
    assert field(conv(5)) == ReceptiveField((5, 5), (0, 0), (4, 4), (1.0, 1.0))
    assert field(conv(5, padding=2)) == ReceptiveField((5, 5), (2, 2), (2, 2), (1.0, 1.0))
    # Enlarged by two, a 3x3 reaches one fine place on either side: one input more, left or right.
    network = nn.Sequential(nn.Upsample(scale_factor=2), conv(padding=1))
    assert field(network) == ReceptiveField((2, 2), (1, 1), (1, 1), (0.5, 0.5))


# ResNet-18 435, ResNet-50 with the stride on the 3x3 427, VGG-16 before its classifier 212
# (Araujo, Norris, Sim: Computing receptive fields of convolutional neural networks, Distill 2019,
# has VGG-16 and gives the recursion for the rest).
@pytest.mark.parametrize(("name", "side"), [("resnet18", 435), ("resnet50", 427)])
def test_known_networks(name, side):
    network = timm.create_model(name, num_classes=0, global_pool="")
    assert field(network, 224, 3).size == (side, side)


def test_vgg16_before_its_classifier():
    assert field(timm.create_model("vgg16").features, 224, 3).size == (212, 212)


@pytest.mark.parametrize("name", ["sesr_m5", "fsrcnn"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_networks_agree_with_their_own_radius(name, scale):
    network = create_model(name, scale=scale)
    found = field(network, 40, 1)
    assert found.stride == (1 / scale,) * 2
    assert max(*found.before, *found.after) <= network.receptive_radius
    if name == "sesr_m5":
        assert found.size == (19, 19)


@pytest.mark.parametrize(
    ("network", "size", "said"),
    [
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1)), (1, 2, 9, 9), "global: .* at '1'"),
        (nn.Sequential(conv(), nn.Flatten(), nn.Linear(98, 3)), (1, 2, 9, 9), "global: .* summed"),
        (nn.Sequential(nn.Flatten(2), nn.Softmax(2)), (1, 2, 9, 9), "global: a softmax"),
        (nn.Sequential(conv(), nn.InstanceNorm2d(2)), (1, 2, 9, 9), "global: normalised"),
        (nn.GroupNorm(1, 2), (1, 2, 9, 9), "global: normalised"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (1, 2, 9, 9), "aligned"),
        (nn.AdaptiveAvgPool2d(4), (1, 2, 9, 9), "windows depend on the picture's size"),
        (nn.Linear(4, 4), (1, 4), "only features"),
    ],
)
def test_no_field_has_a_reason(network, size, said):
    report = cost(network, size)
    assert report.receptive_field is None
    assert re.search(said, report.receptive_field_reason), report.receptive_field_reason


class Writes(nn.Module):
    """Builds its output in place, through a view."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :, 1:] = x[:, :, :-1]
        return y


class Gates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * x.mean((2, 3), keepdim=True).sigmoid()


def test_what_cannot_be_followed_is_never_passed_over():
    for network in (Writes(), Gates()):
        assert cost(network, (1, 2, 8, 8)).receptive_field is None
