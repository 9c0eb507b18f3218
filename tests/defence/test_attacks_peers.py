"""Attacks beside torchattacks' on the same network and the same real pictures.

The network is trained on the spot; the pictures are ones that it gets right, and each budget
leaves part of them standing, so that a weaker or a stronger attack shows. All numbers are drawn
from fixed seeds: a comparison gives the same figures every time on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_network import load
from torch import Tensor, nn

from collapsible.defence.attacks import create_attack

peer = pytest.importorskip("torchattacks", reason="torchattacks is a development dependency")
pytestmark = pytest.mark.slow
Case = tuple[nn.Module, Tensor, Tensor]
POINT = 0.01


@pytest.fixture(scope="session")
def case(shared_data: Any) -> Case:
    archives = sorted((shared_data / "cls" / "cifar10").glob("*.tar.gz"))
    if not archives:
        pytest.skip("no CIFAR-10 archive in the shared data")
    network, images, labels = load(archives[0])
    assert len(images) >= 1000
    return network, images, labels


def standing(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def compare(
    case: Case,
    ours: tuple[str, float, dict[str, Any]],
    theirs: Callable[[nn.Module], Any],
    pictures: int,
    runs: int = 1,
) -> None:
    """Robust accuracy, the mean of some runs, within a point and in the middle."""
    network, images, labels = case[0], case[1][:pictures], case[2][:pictures]
    name, epsilon, settings = ours
    mine, other = [], []
    for run in range(runs):
        generator = torch.Generator().manual_seed(run)
        found = create_attack(name, epsilon, **settings)(
            network, images, labels, generator=generator
        )
        mine.append(standing(network, found, labels))
        # Some of theirs seed torch's global generator, which is then put back.
        with torch.random.fork_rng():
            torch.manual_seed(run)
            attack = theirs(network)
            if hasattr(attack, "seed"):
                attack.seed = run
            other.append(standing(network, attack(images, labels), labels))
    a, b = sum(mine) / runs, sum(other) / runs
    assert 0.2 < a < 0.8, (a, b)
    assert abs(a - b) <= POINT + 1e-9, (a, b)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["fgsm", "bim", "mi-fgsm"])
def test_without_chance_the_pictures_are_the_same(case: Case, name: str, targeted: bool) -> None:
    """In double precision: in single, the sign of a sum near zero hangs on the order of adding.

    torchattacks divides MI-FGSM's gradient by the mean, not the sum, of its magnitudes, which
    scales the momentum and leaves its sign.
    """
    network, images, labels = case
    network = type(network)().double()
    network.load_state_dict(case[0].state_dict())
    network.eval()
    images, labels = images[:200].double(), labels[:200]
    epsilon, steps, alpha = 0.008, 5, 0.003
    attack = {
        "fgsm": lambda: peer.FGSM(network, eps=epsilon),
        "bim": lambda: peer.BIM(network, eps=epsilon, alpha=alpha, steps=steps),
        "mi-fgsm": lambda: peer.MIFGSM(network, eps=epsilon, alpha=alpha, steps=steps, decay=1.0),
    }[name]()
    wanted = (labels + 3) % 10
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    theirs = attack(images, wanted if targeted else labels)
    settings = {} if name == "fgsm" else {"steps": steps, "step_size": alpha}
    ours = create_attack(name, epsilon, **settings)(
        network, images, labels, targets=wanted if targeted else None
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    if not targeted:
        assert 0.2 < standing(network, ours, labels) < 0.8


def test_pgd(case: Case) -> None:
    settings = {"steps": 10, "step_size": 0.002, "keep": "last"}
    compare(
        case,
        ("pgd", 0.007, settings),
        lambda net: peer.PGD(net, eps=0.007, alpha=0.002, steps=10),
        400,
    )


def test_pgd_l2(case: Case) -> None:
    settings = {"norm": "l2", "steps": 10, "step_size": 0.06, "keep": "last"}
    compare(
        case,
        ("pgd", 0.25, settings),
        lambda net: peer.PGDL2(net, eps=0.25, alpha=0.06, steps=10),
        400,
    )
