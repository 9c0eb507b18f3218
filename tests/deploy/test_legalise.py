"""Legal forms: exact by float64, on the NPU by Vela, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.deploy import legal_forms as forms
from collapsible.deploy.legalise import legalise
from collapsible.errors import CollapsibleError, UnknownNameError, UsageError
from collapsible.models import create_model

pytest.importorskip("litert_torch", reason="the edge extra is not installed")
pytest.importorskip("ethosu", reason="the edge extra is not installed")

SEEDS = st.integers(0, 10_000)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for all tests here, so that a network is converted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(layers, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = layer.double()(x)
    return x


@given(channels=st.integers(1, 3), scale=st.sampled_from([2, 3, 4, 6, 8]), direct=st.booleans())
@settings(deadline=None)
def test_stages_are_depth_to_space_exactly(channels, scale, direct):
    x = random(2, channels * scale**2, 3, 5)
    layers = forms.depth_to_space(channels, scale, direct=direct)
    assert torch.equal(run(layers, x), F.pixel_shuffle(x, scale))
    assert direct or max(layer.stride[0] for layer in layers) <= max(3, scale % 2 * scale)
    assert all(set(layer.weight.unique().tolist()) <= {0.0, 1.0} for layer in layers)


@given(
    seed=SEEDS,
    size=st.sampled_from([1, 3, 5]),
    scale=st.sampled_from([2, 3, 4]),
    channels=st.integers(1, 3),
)
@settings(deadline=None)
def test_a_convolution_and_its_stage_are_one_transposed_convolution(seed, size, scale, channels):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, channels * scale**2, size, padding=size // 2).double()
    with torch.no_grad():
        conv.bias.copy_(torch.randn(channels).repeat_interleave(scale**2))
    stages = forms.depth_to_space(channels, scale, direct=True)
    folded = forms.fold_stage(conv, stages[0])
    assert folded is not None
    x = random(1, 4, 6, 7, seed=seed)
    torch.testing.assert_close(folded(x), F.pixel_shuffle(conv(x), scale), rtol=0, atol=1e-12)


def test_a_bias_of_each_pixel_cannot_fold():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert forms.fold_stage(conv, forms.one_hot_stage(1, 2, 2)) is None
    assert forms.fold_stage(nn.Conv2d(4, 4, 3), forms.one_hot_stage(1, 2, 2)) is None
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    assert forms.fold_stage(grouped, forms.one_hot_stage(1, 2, 2)) is None


@given(
    seed=SEEDS,
    shape=st.sampled_from([(9, 2, 4, 1), (9, 3, 4, 2), (4, 2, 1, 0), (3, 3, 0, 0), (6, 4, 1, 0)]),
    bias=st.booleans(),
)
@settings(deadline=None)
def test_phases_are_the_transposed_convolution(seed, shape, bias):
    torch.manual_seed(seed)
    size, stride, padding, extra = shape
    deconv = nn.ConvTranspose2d(
        3, 2, size, stride=stride, padding=padding, output_padding=extra, bias=bias
    ).double()
    phases = forms.as_phases(deconv)
    assert phases is not None
    x = random(1, 3, 5, 6, seed=seed)
    torch.testing.assert_close(F.pixel_shuffle(phases(x), stride), deconv(x), rtol=0, atol=1e-12)
    assert forms.as_phases(nn.ConvTranspose2d(3, 2, 4, stride=2)) is None


@given(seed=SEEDS, top=st.sampled_from([1.0, 3.0]))
@settings(deadline=None)
def test_every_form_of_a_bend_is_the_prelu(seed, top):
    torch.manual_seed(seed)
    slope = torch.rand(6, dtype=torch.float64) * 2 * top - top
    before = nn.Conv2d(3, 6, 3, padding=1).double()
    after = nn.Conv2d(6, 2, 5, padding=2).double()
    x = random(1, 3, 8, 9, seed=seed)
    bent = F.prelu(before(x), slope)
    halves = torch.relu(forms.widen(before)(x))
    torch.testing.assert_close(
        forms.read_halves(after, slope)(halves), after(bent), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(forms.join_halves(slope)(halves), bent, rtol=0, atol=1e-12)
    torch.testing.assert_close(forms.TwoReLUs(slope)(before(x)), bent, rtol=0, atol=1e-12)
    if top == 1.0:
        largest = forms.ScaledMaximum(slope)(before(x))
        torch.testing.assert_close(largest, bent, rtol=0, atol=1e-12)


def test_the_cheapest_form_is_taken_and_the_map_is_exact():
    network = create_model("sesr_m3", scale=4, weights=None)
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.2)
    legal, report = legalise(network, "ethos-u55-128", input_size=(1, 1, 32, 32))
    assert report.cpu_operators == ()
    assert report.error_float64 <= 1e-9 * report.output_range
    tried = {c.forms: c for c in report.candidates}
    # A transposed convolution of stride 4 is more than a U55 takes.
    assert tried["direct", "kept", "kept"].cpu_operators == ("TRANSPOSE_CONV",)
    allowed = [c for c in report.candidates[1:] if not c.cpu_operators]
    taken = tried[report.tail, report.repeat, report.bend]
    assert taken.latency_ms == min(c.latency_ms for c in allowed)
    x = random(1, 1, 19, 23).float()
    torch.testing.assert_close(legal(x), network.eval()(x), rtol=0, atol=1e-4)
    assert json.loads(report.json())["target"] == "ethos-u55-128"
    assert "(taken)" in report.table()


def test_on_u85_the_tail_is_another_matter():
    _, report = legalise(
        create_model("sesr_m3", scale=4), "ethos-u85-256", input_size=(1, 1, 32, 32), bend="kept"
    )
    tried = {(c.tail, c.repeat): c for c in report.candidates}
    assert tried["direct", "broadcast"].cpu_operators == ()
    assert tried["stages", "broadcast"].latency_ms < tried["direct", "broadcast"].latency_ms
    least = min(c.latency_ms for c in report.candidates)
    assert tried[report.tail, report.repeat].latency_ms == least


def test_fsrcnn_cannot_be_converted_as_it_is_and_can_then():
    _, report = legalise(create_model("fsrcnn"), "ethos-u55-256", input_size=(1, 1, 24, 24))
    assert report.cpu_operators_before is None
    assert "cannot convert" in report.refused_before
    assert report.cpu_operators == ()
    assert any(r.was == "ConvTranspose2d" for r in report.rewrites)


def test_rgb_channels_are_repeated_by_a_convolution_and_leaky_relus_leave_floating_point():
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.leaky_relu(self.conv(x), 0.1) + x.repeat_interleave(4, dim=1)
            return F.pixel_shuffle(y, 2)

    torch.manual_seed(0)
    _, report = legalise(Leaky(), "ethos-u55-256", input_size=(1, 3, 24, 24))
    assert "LEAKY_RELU" in (report.cpu_operators_before or ())
    assert report.cpu_operators == ()
    assert "PReLU" in {r.was for r in report.rewrites}
    assert any(c.repeat == "broadcast" and not c.cpu_operators for c in report.candidates)


NETWORKS = [
    (f"sesr_{size}", scale) for size in ("m2", "m3", "m5", "m7", "m11", "xl") for scale in (2, 4)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), NETWORKS, ids=lambda value: str(value))
def test_every_sesr_runs_wholly_on_every_npu(name, scale):
    torch.manual_seed(0)
    network = create_model(name, scale=scale)
    for target in ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256"):
        # What runs wholly there as stages does so by "auto", which tries them among others.
        tail = "auto" if (name, target) == ("sesr_m5", "ethos-u85-256") else "stages"
        _, report = legalise(network, target, input_size=(1, 1, 24, 32), tail=tail, bend="kept")
        assert report.cpu_operators == (), target
        assert report.error_float64 <= 1e-9 * report.output_range


def test_targets_without_a_compiler_are_left_alone():
    network = create_model("sesr_m2")
    same, report = legalise(network, "npu-4tops", input_size=(1, 1, 16, 16))
    assert report.rewrites == ()
    assert "nothing is rewritten" in report.table()
    x = random(1, 1, 9, 8).float()
    torch.testing.assert_close(same(x), network.eval()(x), rtol=0, atol=1e-5)


class Flows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "target", "options", "error", "said"),
    [
        (nn.Conv2d(1, 4, 3), "ethos-u55-255", {}, UnknownNameError, "ethos-u55-25"),
        (nn.Conv2d(1, 4, 3), "ethos-u55-256", {"input_size": (1, 1, -1, 8)}, UsageError, "fixed"),
        (
            nn.Conv2d(1, 4, 3),
            "ethos-u55-256",
            {"input_size": (1, 3, 8, 8)},
            UsageError,
            "take input",
        ),
        (nn.Conv2d(1, 4, 3), "ethos-u55-256", {"tail": "stagse"}, UnknownNameError, "'stages'"),
        (Flows(), "ethos-u55-256", {}, UsageError, "cannot be traced"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2)),
            "ethos-u55-256",
            {"tail": "folded"},
            UsageError,
            "does not apply",
        ),
    ],
    ids=["target", "dynamic", "channels", "tail", "flow", "form"],
)
def test_wrong_use(network, target, options, error, said):
    with pytest.raises(error, match=said) as caught:
        legalise(network, target, **{"input_size": (1, 1, 8, 8), **options})
    assert isinstance(caught.value, CollapsibleError)
