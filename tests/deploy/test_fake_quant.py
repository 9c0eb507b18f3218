"""Networks in int8 form beside the int8 files that LiteRT runs, and training through them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from collapsible.deploy.fake_quant import FakeQuantised, RoundedRange, fake_quantise, round_weight
from collapsible.deploy.litert import run_litert, save_litert
from collapsible.errors import UsageError

SIZE = (1, 3, 16, 16)


class Small(nn.Module):
    """Convolutions with norms, a fused and a separate activation, a residual, pooling, a line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False))
        self.norm, self.act = nn.BatchNorm2d(8), nn.Hardswish()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 5)
        for norm in (self.first[1], self.norm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.act(self.norm(self.middle(x)))
        return self.last(self.drop(x.mean((2, 3))))


def hard_network() -> nn.Module:
    """Maps of which one channel is far larger than the rest: hard for one range a map."""
    network = Small().eval()
    network.drop.p = 0.0
    with torch.no_grad():
        network.middle[0].weight[1] *= 60
        network.last.weight[:, 1] /= 60
    return network


@pytest.fixture
def network() -> nn.Module:
    return Small().eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(24, *SIZE[1:], generator=torch.Generator().manual_seed(1))


def write(network: nn.Module, inputs: torch.Tensor, folder: Path) -> Path:
    path = folder / "int8.tflite"
    return save_litert(network, path, SIZE, calibration=list(inputs.numpy()))


def file_ranges(path: Path) -> list[tuple[float, float]]:
    """What the codes of the file's maps reach from and to, for input and output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    ends = []
    for details in (interpreter.get_input_details()[0], interpreter.get_output_details()[0]):
        scale, zero = details["quantization"]
        ends.append(((-128 - zero) * scale, (127 - zero) * scale))
    return ends


def test_rounding_by_hand():
    place = RoundedRange().eval()
    place.watch(torch.tensor([-1.0, 3.0]), 1.0)
    scale = 4 / 255
    zero = round(-128 + 1 / scale)
    x = torch.tensor([-5.0, -0.51, 0.0, 0.2, 1.117, 9.0])
    by_hand = [(min(max(round(float(v) / scale) + zero, -128), 127) - zero) * scale for v in x]
    torch.testing.assert_close(place(x), torch.tensor(by_hand), rtol=0, atol=1e-6)
    assert float(place(torch.zeros(1))) == 0
    weight = torch.tensor([[1.0, -0.4, 0.004], [20.0, 5.03, 0.0]])
    steps = torch.tensor([[1 / 127], [20 / 127]])
    torch.testing.assert_close(round_weight(weight), (weight / steps).round() * steps)


def test_gradients_pass_straight_through_and_end_beyond_the_range():
    place = RoundedRange().eval()
    place.watch(torch.tensor([-1.0, 3.0]), 1.0)
    x = torch.tensor([-5.0, -0.5, 0.2, 2.9, 9.0], requires_grad=True)
    place(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_plain_is_the_given_network_with_its_norms_folded(network, inputs):
    before = copy.deepcopy(network.state_dict())
    form = fake_quantise(network, inputs)
    plain = form.plain()
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs), network(inputs), rtol=1e-5, atol=1e-5)
        assert not torch.equal(form(inputs), plain(inputs))
        # Making the plain one leaves the form as it was.
        again = form(inputs)
        form.plain()
        torch.testing.assert_close(form(inputs), again, rtol=0, atol=0)
    assert not any(isinstance(m, (nn.BatchNorm2d, RoundedRange)) for m in plain.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_places_are_those_that_hold_integers_in_the_file(network, inputs):
    # The input, conv + ReLU6 as one, conv, hard swish, sum, mean, linear.
    assert len(fake_quantise(network, inputs).ranges()) == 7


@pytest.mark.slow
def test_the_form_computes_what_the_int8_file_does(inputs, tmp_path):
    network = hard_network()
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    form = fake_quantise(network, inputs)
    path = write(network, inputs, tmp_path)
    found = torch.from_numpy(run_litert(path, inputs.numpy()))
    with torch.no_grad():
        ours, exact = form(inputs), network(inputs)
    low, high = file_ranges(path)[1]
    step = (high - low) / 255
    # Sums round differently by a step here and there; the form follows the file, not fp32.
    assert float((ours - found).abs().max()) <= 3.01 * step
    assert float((ours - found).square().mean()) < 0.2 * float((exact - found).square().mean())
    for (a, b), (c, d) in zip(
        file_ranges(path), (list(form.ranges().values())[i] for i in (0, -1)), strict=True
    ):
        assert (a, b) == pytest.approx((c, d), abs=1.01 * (d - c) / 255)


@pytest.mark.slow
def test_training_in_int8_form_helps_the_int8_file(inputs, tmp_path):
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    network = hard_network()
    with torch.no_grad():
        wanted = network(inputs)
    form = fake_quantise(network, inputs).train()
    optimiser = torch.optim.Adam(form.parameters(), 3e-3)
    for step in range(150):
        if step == 100:
            form.freeze()
        loss = nn.functional.mse_loss(form(inputs), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def error(one: nn.Module) -> float:
        found = run_litert(write(one, inputs, tmp_path), inputs.numpy())
        return float(np.square(found - wanted.numpy()).mean())

    assert error(form.plain()) < 0.7 * error(network)


def test_ranges_follow_until_they_are_frozen(network, inputs):
    form = fake_quantise(network, inputs).train()
    start = form.ranges()
    form(2 * inputs)
    moved = form.ranges()
    name = next(iter(start))
    wide = start[name][1] + 0.1 * (float(2 * inputs.max()) - start[name][1])
    assert moved[name][1] == pytest.approx(wide, rel=1e-5)
    form.freeze()
    form(4 * inputs)
    assert form.ranges() == moved
    again = copy.deepcopy(form)
    assert isinstance(again, FakeQuantised)
    assert again.ranges() == moved


def test_networks_of_timm_and_torchvision(inputs):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    vision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    for made in (
        timm.create_model("mobilenetv2_050", num_classes=4),
        vision.models.mobilenet_v2(width_mult=0.35, num_classes=4),
    ):
        made.train()(torch.randn(4, 3, 32, 32))
        form = fake_quantise(made.eval(), x)
        with torch.no_grad():
            wanted = made(x)
            torch.testing.assert_close(form.plain()(x), wanted, rtol=1e-3, atol=1e-4)
            assert form(x).shape == wanted.shape
        assert not any(isinstance(m, nn.BatchNorm2d) for m in form.modules())


class Choosing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class OwnConv(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), "follows no convolution"),
        (Choosing(), "cannot be traced"),
        (nn.Sequential(OwnConv(3, 4, 3)), "OwnConv has a forward pass of its own"),
    ],
)
def test_what_cannot_be_taken_is_named(made, said, inputs):
    with pytest.raises(UsageError, match=said):
        fake_quantise(made, inputs)


@pytest.mark.parametrize("wrong", [[], torch.zeros(0, 3, 4, 4), torch.zeros(3, 4, 4)])
def test_calibration_of_the_wrong_shape(network, wrong):
    with pytest.raises(UsageError, match="calibration inputs of shape"):
        fake_quantise(network, wrong)
