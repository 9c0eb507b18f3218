"""Every attack on networks whose optimum is known in closed form, and what all must keep to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.defence.attacks import (
    AttackError,
    NonFiniteError,
    bpda,
    create_attack,
    list_attacks,
)
from collapsible.defence.attacks.square import share_at
from collapsible.errors import UnknownNameError, UsageError

# Each name, with fewer steps where the number does not matter, and the norms.
SHORT: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "bim": {"steps": 4},
    "pgd": {"steps": 4},
    "mi-fgsm": {"steps": 4},
    "di2-fgsm": {"steps": 4, "probability": 1.0},
    "apgd-ce": {"steps": 8},
    "apgd-dlr": {"steps": 8},
    "apgd-t": {"steps": 8, "classes_tried": 2},
    "square": {"queries": 20},
}
GRADIENT = sorted(set(SHORT) - {"square"})
EVERY = [(name, norm) for name in SHORT for norm in ("linf", "l2")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Small(nn.Module):
    """Four classes, with batch norm and dropout, which show whether eval mode was set."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.Tanh(),
                nn.Dropout(0.5),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(32, classes),
            )
        # Centred, so that random pictures fall into all the classes.
        with torch.no_grad():
            some = torch.rand(64, channels, 8, 8, generator=seeded(2))
            self.body[6].bias -= self.body.eval()(some).mean(0)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 10


class Line(nn.Module):
    """Two classes parted by a plane: logits (-m, m) / 2 with m = w . x + b."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        m = x.flatten(1) @ self.weight.to(x) + self.bias
        return torch.stack([-m, m], dim=1) / 2


def batch(n: int = 5, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    images = torch.rand(n, 3, size, size, generator=seeded(1), dtype=torch.float64)
    # Some pixels at the bounds, so that clipping has work to do.
    images = ((images - 0.5) * 1.5 + 0.5).clamp(0, 1).to(dtype)
    with torch.no_grad():
        labels = Small().eval()(images.float()).argmax(1)
    return images, labels


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    delta = (a.double() - b.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def test_the_names_are_those_of_the_table() -> None:
    assert list_attacks() == sorted(SHORT)


@pytest.mark.parametrize(("name", "norm"), EVERY)
@settings(max_examples=8, deadline=None)
@given(
    epsilon=st.sampled_from([1e-4, 2 / 255, 0.1, 0.7, 3.0]),
    shape=st.tuples(st.integers(1, 4), st.integers(3, 12), st.integers(3, 12)),
    seed=st.integers(0, 2**31),
    double=st.booleans(),
    targeted=st.booleans(),
)
def test_inside_the_ball_and_inside_the_bounds(
    name: str,
    norm: str,
    epsilon: float,
    shape: tuple[int, int, int],
    seed: int,
    double: bool,
    targeted: bool,
) -> None:
    dtype = torch.float64 if double else torch.float32
    images = torch.rand(shape[0], 3, *shape[1:], generator=seeded(seed), dtype=dtype)
    images = (images * 1.4 - 0.2).clamp(0, 1)
    labels = torch.randint(0, 4, (shape[0],), generator=seeded(seed))
    model = Small().to(dtype)
    attack = create_attack(name, epsilon, norm=norm, **SHORT[name])
    wanted = (labels + 1) % 4 if targeted else None
    found = attack(model, images, labels, targets=wanted, generator=seeded(seed))
    assert found.shape == images.shape
    assert found.dtype == dtype
    assert bool((found >= 0).all() and (found <= 1).all())
    slack = 1e-12 if double else 1e-6 * max(1.0, epsilon)
    assert float(distance(found, images, norm).max()) <= epsilon + slack


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0, 0.5),
    label=st.integers(0, 1),
)
def test_fgsm_is_optimal_on_a_line(seed: int, epsilon: float, label: int) -> None:
    """The margin falls by epsilon ||w||_1, less what the bounds of the pixels take off."""
    weight = torch.randn(48, generator=seeded(seed), dtype=torch.float64)
    images = torch.rand(3, 3, 4, 4, generator=seeded(seed + 1), dtype=torch.float64)
    model, labels = Line(weight, 0.3), torch.full((3,), label)
    found = create_attack("fgsm", epsilon)(model, images, labels)
    # The margin of class 1 is lowered for label 1 and raised for label 0.
    towards = -weight.sign() if label else weight.sign()
    room = torch.where(towards > 0, 1 - images.flatten(1), images.flatten(1)).clamp(max=epsilon)
    best = images.flatten(1) @ weight + (towards * room) @ weight
    torch.testing.assert_close(found.flatten(1) @ weight, best, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["bim", "pgd", "mi-fgsm", "apgd-ce"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.01, 0.2))
def test_the_optimum_on_a_line_is_reached(name: str, norm: str, seed: int, epsilon: float) -> None:
    """x - epsilon w / ||w|| where no pixel comes to its bounds: the margin falls by
    epsilon times the dual norm of w."""
    weight = torch.randn(48, generator=seeded(seed), dtype=torch.float64)
    images = 0.4 + 0.2 * torch.rand(3, 3, 4, 4, generator=seeded(seed + 1), dtype=torch.float64)
    labels = torch.ones(3, dtype=torch.long)
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    # So far from the plane that nothing fools it, else the first success might be kept.
    model = Line(weight, float(epsilon * dual - (images.flatten(1) @ weight).min()) + 0.5)
    extra = {"steps": 40, "step_size": epsilon / 4} if name == "pgd" else {}
    found = create_attack(name, epsilon, norm=norm, **extra)(
        model, images, labels, generator=seeded(seed)
    )
    fallen = (images - found).flatten(1) @ weight
    # Momentum and projection on a sphere turn to the optimum by and by.
    torch.testing.assert_close(fallen, (epsilon * dual).expand(3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi-fgsm", "apgd-ce"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_accuracy_on_a_line_is_the_closed_form_at_every_budget(name: str, norm: str) -> None:
    """Correct stays exactly what is farther from the plane than epsilon in the dual norm."""
    weight = torch.randn(48, generator=seeded(5), dtype=torch.float64)
    images = 0.3 + 0.4 * torch.rand(300, 3, 4, 4, generator=seeded(6), dtype=torch.float64)
    scores = images.flatten(1) @ weight
    bias = -float(scores.median())
    model, labels = Line(weight, bias), (scores + bias > 0).long()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    away = (scores + bias).abs() / dual
    accuracies = []
    for epsilon in (0.0, 0.002, 0.01, 0.03) if norm == "linf" else (0.0, 0.02, 0.08, 0.2):
        extra = {"step_size": epsilon / 4} if name == "pgd" else {}
        found = create_attack(name, epsilon, norm=norm, **extra)(
            model, images, labels, generator=seeded(7)
        )
        held = model(found).argmax(1) == labels
        # A hundredth off the boundary the outcome is certain; nearer, steps end in time or not.
        sure = (away - epsilon).abs() > 0.01 * epsilon
        assert torch.equal(held[sure], (away > epsilon)[sure])
        accuracies.append(float(held.double().mean()))
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == 1.0 > accuracies[-1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_wins_on_a_line_only_where_it_can(norm: str) -> None:
    weight = torch.randn(192, generator=seeded(5), dtype=torch.float64)
    images = 0.3 + 0.4 * torch.rand(100, 3, 8, 8, generator=seeded(6), dtype=torch.float64)
    scores = images.flatten(1) @ weight
    bias = -float(scores.median())
    model, labels = Line(weight, bias), (scores + bias > 0).long()
    epsilon = 0.01 if norm == "linf" else 0.15
    found = create_attack("square", epsilon, norm=norm, queries=800)(
        model, images, labels, generator=seeded(1)
    )
    held = model(found).argmax(1) == labels
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    away = (scores + bias).abs() / dual
    # Beyond the budget nothing may fall; well inside it a search this long finds most.
    assert bool(held[away > epsilon].all())
    assert float(held[away < 0.5 * epsilon].double().mean()) < 0.25
    assert int((away > epsilon).sum()) > 5
    assert int((away < 0.5 * epsilon).sum()) > 20


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_no_budget_and_no_pictures(name: str, norm: str) -> None:
    images, labels = batch()
    model = Small()
    still = create_attack(name, 0.0, norm=norm, **SHORT[name])(model, images, labels)
    assert torch.equal(still, images)
    attack = create_attack(name, 0.1, norm=norm, **SHORT[name])
    assert attack(model, images[:0], labels[:0]).shape == (0, 3, 8, 8)
    assert attack(model, images[:1], labels[:1]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", SHORT)
def test_the_model_and_the_inputs_stay_as_they_were(name: str) -> None:
    images, labels = batch()
    model = Small().train()
    model.body[0].eval()
    model.body[0].weight.requires_grad_(False)
    model.body[6].weight.grad = torch.ones(4, 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copy = images.clone()
    create_attack(name, 0.1, **SHORT[name])(model, images, labels, generator=seeded())
    assert [part.training for part in model.body] == [False, *[True] * 6]
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert model.body[0].bias.grad is None
    assert torch.equal(model.body[6].weight.grad, torch.ones(4, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(images, copy)
    assert not images.requires_grad


@pytest.mark.parametrize("name", SHORT)
def test_a_generator_alone_decides(name: str) -> None:
    images, labels = batch()
    attack = create_attack(name, 0.05, **SHORT[name])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = attack(Small(), images, labels, generator=seeded(9))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        second = attack(Small(), images, labels, generator=seeded(9))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["pgd", "di2-fgsm", "apgd-ce", "square"])
def test_another_seed_is_another_search(name: str) -> None:
    images, labels = batch()
    attack = create_attack(name, 0.005, **SHORT[name])
    first = attack(Small(), images, labels, generator=seeded(1))
    second = attack(Small(), images, labels, generator=seeded(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_around_it(name: str, guard: Any) -> None:
    images, labels = batch()
    model, attack = Small(), create_attack(name, 0.05, **SHORT[name])
    expected = attack(model, images, labels, generator=seeded())
    with guard():
        found = attack(model, images + 0, labels + 0, generator=seeded())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", SHORT)
def test_half_precision_pictures_keep_their_type(name: str) -> None:
    images, labels = batch(dtype=torch.bfloat16)
    model = Small().to(torch.bfloat16)
    found = create_attack(name, 0.1, **SHORT[name])(model, images, labels, generator=seeded())
    assert found.dtype == torch.bfloat16
    # 8 bits of mantissa: pixels below 1 are rounded by at most 1/512.
    assert float(distance(found, images, "linf").max()) <= 0.1 + 1 / 512


@pytest.mark.parametrize("name", SHORT)
def test_more_budget_fools_a_network_more(name: str) -> None:
    images, labels = batch(40)
    model = Small().eval()
    held = []
    for epsilon in (0.0, 0.01, 0.3):
        found = create_attack(name, epsilon, **SHORT[name])(
            model, images, labels, generator=seeded()
        )
        held.append(int((model(found).argmax(1) == labels).sum()))
    assert held[0] == 40
    assert held == sorted(held, reverse=True)
    assert held[2] < 40


@pytest.mark.parametrize("name", SHORT)
def test_targets_are_reached(name: str) -> None:
    images, labels = batch(20)
    model = Small().eval()
    wanted = (labels + 1) % 4
    found = create_attack(name, 0.2, **SHORT[name])(
        model, images, labels, targets=wanted, generator=seeded()
    )
    before, after = model(images), model(found)
    gained = after.log_softmax(1).gather(1, wanted[:, None]) > before.log_softmax(1).gather(
        1, wanted[:, None]
    )
    assert float(gained.double().mean()) >= 0.8
    assert int((after.argmax(1) == wanted).sum()) > 0


def test_restarts_only_ever_help_the_attacker() -> None:
    images, labels = batch(60)
    model = Small().eval()
    for name in ("pgd", "apgd-ce", "square"):
        extra = {**SHORT[name], "steps": 1} if name != "square" else {"queries": 5}
        held = []
        for restarts in (1, 6):
            attack = create_attack(name, 0.02, restarts=restarts, **extra)
            found = attack(model, images, labels, generator=seeded(4))
            held.append(model(found).argmax(1) == labels)
        assert bool((held[0] | ~held[1]).all()), name


def test_the_best_point_is_kept() -> None:
    """The loss of keep="best" is never below that of keep="last" on the same path."""
    images, _ = batch(30)
    small = Small().eval()

    def model(x: Tensor) -> Tensor:
        # Waves, across which a long step can land lower than where it began.
        return small((x * 40).sin())

    labels = model(images).argmax(1)
    losses = []
    for keep in ("best", "last"):
        attack = create_attack("pgd", 0.1, keep=keep, steps=6, step_size=0.15)
        found = attack(model, images, labels, generator=seeded(1))
        logits = model(found)
        losses.append(
            (
                logits.argmax(1) != labels,
                nn.functional.cross_entropy(logits, labels, reduction="none"),
            )
        )
    fooled, loss = losses[0]
    assert bool((fooled | ~losses[1][0]).all())
    same = fooled == losses[1][0]
    assert bool((loss[same] >= losses[1][1][same] - 1e-5).all())
    assert bool((loss > losses[1][1] + 1e-3).any())


# Wrappers


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
