"""The set an attack may search, {z in [0, 1]^d : ||z - x||_p <= epsilon}, and moves within it.

Pictures are (N, C, H, W); every picture has its own ball. p is infinity ("linf") or 2 ("l2").
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMS = ("l2", "linf")
_TINY = 1e-30


def per_picture(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to multiply pictures with."""
    return values.reshape(-1, 1, 1, 1)


def l2_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each picture, (N, 1, 1, 1)."""
    return per_picture(x.flatten(1).norm(dim=1))


def project(z: Tensor, centre: Tensor, epsilon: float, norm: str) -> Tensor:
    """z moved into the ball around ``centre``, then into [0, 1].

    For L-inf this is the Euclidean projection onto the intersection. For L2 it is the projection
    onto the ball followed by the one onto [0, 1], as in the attacks' papers; it stays in the ball,
    because ``centre`` is in [0, 1] and clipping brings every pixel nearer to it.
    """
    if norm == "linf":
        z = torch.minimum(torch.maximum(z, centre - epsilon), centre + epsilon)
    else:
        delta = z - centre
        z = centre + delta * (epsilon / l2_norm(delta).clamp(min=_TINY)).clamp(max=1)
    return z.clamp(0, 1)


def ascent(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of unit length in the norm: sign(g), or g / ||g||_2.

    A gradient of zeros gives no direction and the picture stays where it is.
    """
    if norm == "linf":
        return gradient.sign()
    # First to the order of one: the squares of a saturated network's gradient underflow.
    largest = per_picture(gradient.flatten(1).abs().amax(dim=1)).clamp(min=_TINY)
    gradient = gradient / largest
    return gradient / l2_norm(gradient).clamp(min=_TINY)


def uniform(
    shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Numbers from [0, 1) with the type and place of ``like``.

    They are drawn where the generator lives (without one: torch's global generator of the CPU)
    and then moved, so a seed means the same pictures on every device.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    drawn = torch.rand(shape, dtype=like.dtype, device=device, generator=generator)
    return drawn.to(like.device)


def signs(
    shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """-1 or 1 with equal probability."""
    drawn = uniform(shape, like, generator)
    return torch.where(drawn < 0.5, -torch.ones_like(drawn), torch.ones_like(drawn))


def random_start(x: Tensor, epsilon: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A random point of the ball around x, clipped to [0, 1].

    L-inf: uniform in the cube. L2: a uniform direction, at a distance uniform in [0, epsilon].
    """
    if norm == "linf":
        delta = (2 * uniform(x.shape, x, generator) - 1) * epsilon
    else:
        direction, radius = sphere(x, generator), uniform((len(x),), x, generator)
        delta = direction * per_picture(radius) * epsilon
    return (x + delta).clamp(0, 1)


def sphere(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniformly random picture of Euclidean norm 1 for each of x."""
    device = generator.device if generator is not None else torch.device("cpu")
    drawn = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator)
    drawn = drawn.to(x.device)
    return drawn / l2_norm(drawn).clamp(min=_TINY)
