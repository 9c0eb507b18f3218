"""What gets attacks through rounding and chance (BPDA, EOT), and what attacks refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attack_cases import GRADIENT, SHORT, Line, Small, batch, seeded
from torch import Tensor, nn

from collapsible.defence.attacks import (
    AttackError,
    NonFiniteError,
    bpda,
    create_attack,
)
from collapsible.defence.attacks.square import share_at
from collapsible.errors import UnknownNameError, UsageError


def test_bpda_has_one_functions_values_and_anothers_gradient() -> None:
    x = torch.rand(2, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    f = bpda(lambda z: (z * 8).round() / 8, lambda z: z**3)
    point = x.clone().requires_grad_()
    y = f(point)
    assert torch.equal(y, (x * 8).round() / 8)
    (gradient,) = torch.autograd.grad((y * torch.arange(96.0).view(2, 3, 4, 4)).sum(), point)
    torch.testing.assert_close(gradient, 3 * x**2 * torch.arange(96.0).view(2, 3, 4, 4))
    straight = x.clone().requires_grad_()
    (through,) = torch.autograd.grad(bpda(torch.round)(straight).sum(), straight)
    assert torch.equal(through, torch.ones_like(x))
    assert torch.equal(bpda(lambda z: z)(x), x)


def test_bpda_says_when_the_shapes_do_not_agree() -> None:
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    y = bpda(lambda z: z[..., ::2], lambda z: z)(x)
    with pytest.raises(UsageError, match=r"\(1, 3, 4, 2\).*\(1, 3, 4, 4\)"):
        y.sum().backward()


@pytest.mark.parametrize("name", GRADIENT)
def test_bpda_gets_an_attack_through_rounding(name: str) -> None:
    images, labels = batch(20)
    model = Small().eval()

    def step(z: Tensor) -> Tensor:
        return (z * 31).round() / 31

    blocked = create_attack(name, 0.1, **SHORT[name])
    flat = nn.Sequential(bpda(step, torch.zeros_like), model)
    opened = nn.Sequential(bpda(step), model)
    with pytest.raises(AttackError, match="bpda"):
        blocked(lambda z: model(step(z.detach())), images, labels)
    found = blocked(opened, images, labels, generator=seeded())
    assert int((opened(found).argmax(1) == labels).sum()) < 20
    assert flat(images).shape == (20, 4)


class Noisy(nn.Module):
    """A linear network in noise: the mean gradient is the network's own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.line, self.calls = Line(weight, 0.0), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = 3 * torch.randn(self.line.weight.shape, dtype=x.dtype)
        m = x.flatten(1) @ (self.line.weight + noise)
        return torch.stack([-m, m], dim=1) * 0.01


def test_eot_finds_the_mean_gradient() -> None:
    """The signs of a weight in noise are those of the weight once enough passes are averaged."""
    weight = torch.randn(48, generator=seeded(3), dtype=torch.float64).sign()
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    right = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for passes in (1, 200):
            model = Noisy(weight)
            found = create_attack("fgsm", 0.1, eot=passes)(model, images, torch.ones(1).long())
            assert model.calls == passes
            right[passes] = float(((found - images).flatten().sign() == -weight).double().mean())
    # A sign is right with probability Phi(sqrt(passes) / 3): 0.63 and 1 - 1e-6.
    assert right[200] == 1.0
    assert right[1] < 0.9


@pytest.mark.parametrize("name", SHORT)
def test_every_attack_averages(name: str) -> None:
    # In double precision, where the rounding of a sum of three decides no sign.
    images, labels = batch(3, dtype=torch.float64)
    counts, model = [], Small().double()

    def counted(x: Tensor) -> Tensor:
        counts[-1] += 1
        return model.eval()(x)

    results = []
    for eot in (1, 3):
        counts.append(0)
        attack = create_attack(name, 0.02, eot=eot, **SHORT[name])
        results.append(attack(counted, images, labels, generator=seeded()))
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=0)
    assert counts[1] >= 2 * counts[0]


# Hostile input


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mi-fgsm'"):
        create_attack("mifgsm")
    with pytest.raises(UnknownNameError, match="setting of pgd 'step': did you mean 'steps'"):
        create_attack("pgd", step=3)
    with pytest.raises(UnknownNameError, match="queries"):
        create_attack("square", querys=3)
    with pytest.raises(UnknownNameError, match="norm of pgd 'L2': did you mean 'l2'"):
        create_attack("pgd", norm="L2")
    with pytest.raises(UnknownNameError, match="loss of apgd-ce"):
        create_attack("apgd-ce", loss="cw")
    assert create_attack("MI_FGSM").name == "mi-fgsm"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("pgd", {"epsilon": -0.1}),
        ("pgd", {"epsilon": math.nan}),
        ("pgd", {"epsilon": math.inf}),
        ("pgd", {"steps": 0}),
        ("pgd", {"steps": 2.5}),
        ("pgd", {"restarts": 0}),
        ("pgd", {"eot": 0}),
        ("pgd", {"step_size": -1.0}),
        ("mi-fgsm", {"decay": -1.0}),
        ("di2-fgsm", {"probability": 1.5}),
        ("di2-fgsm", {"resize": 0.0}),
        ("apgd-ce", {"rho": 2.0}),
        ("apgd-t", {"classes_tried": -1}),
        ("square", {"queries": 0}),
        ("square", {"p_init": 1.5}),
    ],
)
def test_impossible_settings_are_named(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        create_attack(name, **bad)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(3, 8, 8)}, r"\(N, C, H, W\)"),
        ({"images": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)}, "floating point"),
        ({"images": torch.full((5, 3, 8, 8), 2.0)}, r"\[0, 1\]"),
        ({"images": torch.full((5, 3, 8, 8), math.nan)}, r"\[0, 1\]"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "5 pictures need labels"),
        ({"labels": torch.zeros(5)}, "integers"),
        ({"labels": torch.full((5,), -1)}, "negative"),
        ({"labels": torch.full((5,), 4)}, "label 4 given.*0 to 3"),
        ({"targets": torch.full((5,), 7)}, "target 7 given.*0 to 3"),
        ({"targets": torch.zeros(5, 1, dtype=torch.long)}, "targets of shape"),
    ],
)
def test_hostile_inputs_are_named(name: str, change: dict[str, Any], message: str) -> None:
    images, labels = batch()
    given = {"images": images, "labels": labels, "targets": None, **change}
    attack = create_attack(name, 0.1, **SHORT[name])
    with pytest.raises(UsageError, match=message):
        attack(Small(), given["images"], given["labels"], targets=given["targets"])


@pytest.mark.parametrize("name", GRADIENT)
def test_gradients_that_are_not_finite_are_counted(name: str) -> None:
    images, _ = batch()
    images = images.clamp(0.2, 0.8)
    images[[1, 3]] *= 0

    def model(x: Tensor) -> Tensor:
        # The gradient of a square root at 0 is infinite; the value is not.
        whole = (x * 0.5 + x.detach() * 0.5).amax(dim=(1, 2, 3))
        root = torch.where(whole > 0.15, whole, whole * 0).sqrt()
        return torch.stack([root, -root, root * 2, root * 3], 1)

    with pytest.raises(NonFiniteError, match="gradient of 2 of 5 pictures is not finite") as info:
        create_attack(name, 0.01, **SHORT[name])(model, images, model(images).argmax(1))
    assert (info.value.pictures, info.value.total) == (2, 5)


@pytest.mark.parametrize("name", SHORT)
def test_logits_that_are_not_numbers_are_counted(name: str) -> None:
    images, labels = batch()

    def model(x: Tensor) -> Tensor:
        logits = Small().eval()(x)
        return torch.cat([logits[:1] * math.nan, logits[1:]])

    with pytest.raises(NonFiniteError, match="logits of 1 of 5 pictures are not finite"):
        create_attack(name, 0.01, **SHORT[name])(model, images, labels)


def test_models_that_do_not_fit_are_named() -> None:
    images, labels = batch()
    with pytest.raises(UsageError, match=r"must give logits \(5, classes\), got \(5,\)"):
        create_attack("pgd")(lambda x: x.mean(dim=(1, 2, 3)), images, labels)
    with pytest.raises(UsageError, match="dlr loss needs 3 classes, the model has 2"):
        create_attack("apgd-dlr")(Line(torch.ones(192), 0.0), images, labels * 0 + 1)
    three = Small(classes=3).eval()
    with pytest.raises(UsageError, match="targeted dlr loss needs 4 classes, the model has 3"):
        create_attack("apgd-t")(three, images, three(images).argmax(1))


def test_squares_shrink_by_the_papers_schedule() -> None:
    """Andriushchenko et al. 2020, section 3.2: halved at these of 10,000, scaled for fewer."""
    paper = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for k, at in enumerate(paper):
        assert share_at(at, 10000) == 0.5**k
        assert share_at(at + 1, 10000) == 0.5 ** (k + 1)
    assert share_at(0, 7) == share_at(0, 10000) == 1.0
    assert share_at(500, 1000) == share_at(5000, 10000) == 0.5**7
