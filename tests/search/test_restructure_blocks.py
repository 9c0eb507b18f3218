"""Finding inverted bottlenecks, and their dense form against torch's own convolution."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.blocks.inverted_bottleneck import InvertedBottleneck
from collapsible.blocks.restructurable import (
    FusedBottleneck,
    GatedBottleneck,
    PreactivatedBottleneck,
)
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.models import create_model
from collapsible.search.inverted import find_bottlenecks, read_bottleneck, require_bottlenecks

EXACT = 1e-9


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of unit scale and batch norms with random statistics, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low

    module = module.double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.weight[0].numel() ** 0.5
            layer.weight.data = draw(layer.weight, -1.7, 1.7) / fan
            if layer.bias is not None:
                layer.bias.data = draw(layer.bias, -1, 1)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data = draw(layer.weight, -1.5, 1.5)
            layer.bias.data = draw(layer.bias, -1, 1)
            layer.running_mean = draw(layer.running_mean, -1, 1)
            layer.running_var = draw(layer.running_var, 0.3, 2)
    return module


def picture(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


blocks = st.builds(
    dict,
    inputs=st.integers(2, 6),
    outputs=st.integers(1, 6),
    kernel=st.sampled_from((3, 5, 7)),
    stride=st.integers(1, 3),
    expansion=st.sampled_from((1, 2, 4, 6)),
    act=st.sampled_from(("h_swish", "relu6", "relu")),
    residual=st.booleans(),
    seed=st.integers(0, 2**16),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    biases=st.booleans(),
    norms=st.sampled_from((0, 1, 2, 3)),
)


def build(spec: dict, same: bool) -> InvertedBottleneck:
    keys = ("inputs", "outputs", "kernel", "stride", "expansion", "act", "residual")
    given = {key: spec[key] for key in keys}
    if same:
        given |= {"outputs": spec["inputs"], "stride": 1, "residual": True}
    block = InvertedBottleneck(**given)
    if spec["norms"]:  # one of the three norms is not there
        setattr(block, f"norm{spec['norms']}", nn.Identity())
    if spec["biases"]:
        for name in ("expand", "depthwise", "project"):
            old = getattr(block, name)
            new = nn.Conv2d(
                old.in_channels,
                old.out_channels,
                old.kernel_size,
                old.stride,
                old.padding,
                groups=old.groups,
            )
            setattr(block, name, new)
    randomise(block, spec["seed"])
    return block


@settings(max_examples=40, deadline=None)
@given(spec=blocks, same=st.booleans())
def test_the_dense_form_collapses_exactly_borders_included(spec: dict, same: bool) -> None:
    parts = read_bottleneck(build(spec, same))
    dense = PreactivatedBottleneck(parts).eval()
    x = picture(spec["inputs"], spec["height"], spec["width"])
    narrow, report = collapse(dense, probe=x)
    with torch.no_grad():
        assert float((narrow(x) - dense(x)).abs().max()) < EXACT
    convs = [m for m in narrow.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1
    assert convs[0].kernel_size == (spec["kernel"], spec["kernel"])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in narrow.modules())
    assert report.max_error_float64 < EXACT
    # The formula of the paper, by torch alone: padding once, in front.
    act, norm = parts.acts[0], parts.norms
    with torch.no_grad():
        y = F.pad(act(x), (spec["kernel"] // 2,) * 4)
        y = norm[0](F.conv2d(y, parts.convs[0].weight, parts.convs[0].bias))
        wide = parts.convs[1]
        y = F.conv2d(y, wide.weight, wide.bias, wide.stride, groups=wide.groups)
        y = norm[2](F.conv2d(norm[1](y), parts.convs[2].weight, parts.convs[2].bias))
        assert float((narrow(x) - (x + y if parts.residual else y)).abs().max()) < EXACT


@settings(max_examples=40, deadline=None)
@given(spec=blocks, same=st.booleans())
def test_the_fused_form_collapses_exactly_borders_included(spec: dict, same: bool) -> None:
    parts = read_bottleneck(build(spec, same))
    fused_form = FusedBottleneck(parts).eval()
    x = picture(spec["inputs"], spec["height"], spec["width"])
    narrow, report = collapse(fused_form, probe=x, policy="always")
    convs = [m for m in narrow.modules() if isinstance(m, nn.Conv2d)]
    side = spec["kernel"]
    assert [m.kernel_size for m in convs] == [(side, side), (1, 1)]
    assert convs[0].groups == 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in narrow.modules())
    assert report.max_error_float64 < EXACT
    # By torch alone: padding once, in front, and the second of the two activations.
    with torch.no_grad():
        y = F.conv2d(F.pad(x, (side // 2,) * 4), parts.convs[0].weight, parts.convs[0].bias)
        wide = parts.convs[1]
        y = F.conv2d(parts.norms[0](y), wide.weight, wide.bias, wide.stride, groups=wide.groups)
        y = parts.acts[1](parts.norms[1](y))
        y = parts.norms[2](F.conv2d(y, parts.convs[2].weight, parts.convs[2].bias))
        assert float((narrow(x) - (x + y if parts.residual else y)).abs().max()) < EXACT


@settings(max_examples=40, deadline=None)
@given(spec=blocks, same=st.booleans(), shifted=st.booleans())
def test_padding_inside_is_merged_exactly_or_refused_with_a_reason(
    spec: dict, same: bool, shifted: bool
) -> None:
    """The bottleneck as it is, its activations gone: the first norm's shift decides."""
    block = build(spec, same)
    block.act1, block.act2 = nn.Identity(), nn.Identity()
    if not shifted:
        if isinstance(block.norm1, nn.BatchNorm2d):
            block.norm1.running_mean.zero_()
            nn.init.zeros_(block.norm1.bias)
        if block.expand.bias is not None:
            nn.init.zeros_(block.expand.bias)
    x = picture(spec["inputs"], spec["height"], spec["width"])
    narrow, report = collapse(block, probe=x, policy="always")
    with torch.no_grad():
        assert float((narrow(x) - block(x)).abs().max()) < EXACT
    merged = sum(isinstance(m, nn.Conv2d) for m in narrow.modules()) == 1
    assert merged or any("padding" in entry.reason for entry in report.left)
    if not shifted:
        assert merged


@pytest.mark.parametrize("form", ["fused", "dense"])
def test_the_gates_reach_every_form(form: str) -> None:
    block = randomise(InvertedBottleneck(4, 4, kernel=3), 3)
    parts, x = read_bottleneck(block), picture(4, 9, 9)
    gated = GatedBottleneck(parts).eval().double()
    gated.forced = "keep"
    kind = {"fused": FusedBottleneck, "dense": PreactivatedBottleneck}[form]
    with torch.no_grad():
        torch.testing.assert_close(gated(x), block(x), rtol=0, atol=1e-12)
        gated.forced = form
        found, wanted = gated(x), kind(parts).eval()(x)
    # Only the padding has another place, so one pixel at each side differs.
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[inner], wanted[inner], rtol=0, atol=1e-12)
    assert not torch.allclose(found, wanted)


@given(first=st.floats(-8, 8), second=st.floats(-8, 8))
def test_shares_sum_to_one_and_gates_never_fall(first: float, second: float) -> None:
    gated = GatedBottleneck(read_bottleneck(InvertedBottleneck(3, 3)), speed=(2.0, 3.0))
    with torch.no_grad():
        gated.logits.copy_(torch.tensor([first, second]))
        shares, gates = gated.shares.tolist(), gated.gates.tolist()
    a, b = (float(torch.tensor(v).sigmoid()) for v in (2 * first, 3 * second))
    assert shares == pytest.approx([a, (1 - a) * b, (1 - a) * (1 - b)], abs=1e-6)
    assert sum(shares) == pytest.approx(1)
    assert gates == pytest.approx([a, a + (1 - a) * b], abs=1e-6)


def test_a_bottleneck_of_two_layers_has_no_fused_form() -> None:
    parts = read_bottleneck(fused(3, 12, 3, 3, 1))
    with pytest.raises(UsageError, match="of 2 layers"):
        FusedBottleneck(parts)
    assert GatedBottleneck(parts).forms == ("keep", "dense")
    whole = read_bottleneck(InvertedBottleneck(3, 3))
    assert GatedBottleneck(whole).forms == ("keep", "fused", "dense")
    one = GatedBottleneck(whole, fused=False)
    assert one.forms == ("keep", "dense")
    assert one.gates.tolist() == pytest.approx([0.95, 0.95])


def test_the_gate_learns_and_starts_where_it_is_told() -> None:
    gated = GatedBottleneck(read_bottleneck(InvertedBottleneck(3, 3)), start=0.8, speed=5.0)
    assert gated.shares.tolist() == pytest.approx([0.8, 0.1, 0.1])
    gated(torch.randn(2, 3, 6, 6)).square().mean().backward()
    assert gated.logits.grad is not None
    assert (gated.logits.grad != 0).all()
    with pytest.raises(UsageError, match="start=1"):
        GatedBottleneck(read_bottleneck(InvertedBottleneck(3, 3)), start=1.0)


@pytest.mark.parametrize(
    ("build_network", "count", "first"),
    [  # counts from the architectures' own tables: MobileNetV2's 17 blocks less the first, ...
        (lambda: timm.create_model("efficientnet_lite0"), 15, "blocks.1.0"),
        (lambda: timm.create_model("mobilenetv2_100"), 16, "blocks.1.0"),
        (lambda: torchvision.models.mobilenet_v2(), 16, "features.2.conv"),
        (lambda: create_model("ran_e_base"), 17, "stages.0.0"),
    ],
)
def test_every_bottleneck_is_found(build_network, count, first) -> None:
    network = build_network()
    found, passed = find_bottlenecks(network)
    assert len(found) == count
    assert found[0].name == first
    assert len(passed) == 1  # the separable block of the stem, or the depthwise pooling
    layers = set(network.modules())
    assert all(set(b.parts.convs) <= set(layers) for b in found)
    residual = [b for b in found if b.parts.residual]
    assert residual
    assert all(b.parts.convs[0].in_channels == b.parts.convs[-1].out_channels for b in residual)


def fused(inputs: int, hidden: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    """timm's fused bottleneck, with statistics that are not at their start."""
    from timm.models._efficientnet_blocks import EdgeResidual

    return EdgeResidual(
        inputs, outputs, kernel, stride, exp_ratio=hidden / inputs, noskip=inputs != outputs
    )


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.sampled_from((3, 5)),
    stride=st.sampled_from((1, 2)),
    side=st.integers(1, 11),
    seed=st.integers(0, 2**16),
)
def test_a_fused_bottleneck_collapses_exactly_borders_included(
    inputs: int, outputs: int, kernel: int, stride: int, side: int, seed: int
) -> None:
    block = randomise(fused(inputs, 5 * inputs, outputs, kernel, stride), seed)
    parts = read_bottleneck(block)
    assert len(parts.convs) == 2
    assert parts.residual == (inputs == outputs and stride == 1)
    x = picture(inputs, side, side)
    gated = GatedBottleneck(parts).eval()
    gated.forced = "keep"
    dense = PreactivatedBottleneck(parts).eval()
    narrow, _ = collapse(dense, probe=x)
    convs = [m for m in narrow.modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in convs] == [(kernel, kernel)]
    with torch.no_grad():
        assert float((gated(x) - block(x)).abs().max()) < EXACT
        # Its padding is in front already: the gate's other end is the dense form, borders too.
        gated.forced = "dense"
        assert float((gated(x) - dense(x)).abs().max()) < EXACT
        assert float((narrow(x) - dense(x)).abs().max()) < EXACT


def test_fused_bottlenecks_are_found_beside_the_others() -> None:
    # EfficientNet-EdgeTPU-S: 1 + 2 + 4 fused ones, 5 + 4 + 2 inverted ones.
    found, passed = find_bottlenecks(timm.create_model("efficientnet_es"))
    shapes = [block.shape for block in found]
    assert sum("fused" in shape for shape in shapes) == 7
    assert len(shapes) == 18
    assert shapes[0] == "32>96>24 k3 s1 relu fused"
    assert not passed


def test_what_widens_nothing_or_looks_nowhere_is_no_fused_bottleneck() -> None:
    for layers in (
        (nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        (nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)),
        (nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)),
        (nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)),
        (nn.Conv2d(4, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 4, 1)),
        (nn.Conv2d(4, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 4, 1)),
    ):
        assert find_bottlenecks(nn.Sequential(nn.Sequential(*layers))) == ((), ())


def test_squeeze_and_excitation_is_no_candidate_and_the_reason_is_given() -> None:
    network = timm.create_model("mobilenetv3_large_100")
    found, passed = find_bottlenecks(network)
    names = {b.name for b in found}
    squeezed = {n for n, m in network.named_modules() if n.endswith(".se") and list(m.children())}
    assert squeezed
    assert not {n.removesuffix(".se") for n in squeezed} & names
    reasons = {p.name.rpartition(".")[0]: p.reason for p in passed}
    assert all("content" in reasons[n.removesuffix(".se")] for n in squeezed)
    assert len(found) == 15 - 1 - len(squeezed)


class _Twice(nn.Module):
    """Two uses of the input, so no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.block = InvertedBottleneck(4, 4)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block.act1(self.block.norm1(self.block.expand(x)))
        y = self.block.norm2(self.block.depthwise(y)) * self.gain
        return self.block.project(self.block.act2(y))


def test_a_module_that_uses_its_layers_otherwise_is_no_bottleneck() -> None:
    with pytest.raises(Exception, match="no layer"):
        read_bottleneck(_Twice())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_network_without_any_is_told_what_was_looked_for(name) -> None:
    with pytest.raises(UsageError, match="1x1 convolution, activation, depthwise") as error:
        require_bottlenecks(timm.create_model(name))
    assert type(error.value) is UsageError
    assert "\n" not in str(error.value)
