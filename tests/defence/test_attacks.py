"""Every attack on networks whose optimum is known in closed form, and what all must keep to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_cases import EVERY, SHORT, Line, Small, batch, distance, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.defence.attacks import (
    create_attack,
    list_attacks,
)


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
