"""The update rules of SESR's theory, held to autograd in float64 (SESR, section 4).

A block whose collapsed weight is beta takes one step of gradient descent at the rate eta on its own
weights. With G the gradient with respect to beta, beta changes by

    plain      beta = w               -eta G
    ExpandNet  beta = W2 W1           -eta (G W1'W1 + W2 W2'G) + eta^2 G W1'W2'G
    SESR       beta = W2 W1 + I       the same; G is taken at another beta
    RepVGG     beta = W + V + I       -2 eta G

(' is the transpose; in the scalar case -eta (w1^2 + w2^2) g + eta^2 w1 w2 g^2.) For real blocks of
k x k convolutions W1 is the first kernel with inputs and taps as one axis, and RepVGG's 1x1 touches
the centre tap alone: -2 eta G there and -eta G elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d, linear_block
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section

PAPER = "SESR (arXiv 2103.09404), section 4"
KINDS = {"plain": "plain", "expandnet": "ExpandNet", "sesr": "SESR", "repvgg": "RepVGG"}
TOLERANCE = 1e-10
# Channels, width of the wide layer, and rate of the small problems.
WIDTH, EXPANSION, RATE = 4, 8, 0.05
DEPTHS = {False: (1, 2, 4, 8, 16), True: (1, 2, 4, 8, 16, 32, 64)}


def updates(request: Request) -> Reproduction:
    """Closed forms against autograd, and the first layer's gradient as depth grows."""
    draws = 100 if request.full else 10
    rows = []
    problems: tuple[tuple[str, Callable[[str, torch.Generator], tuple[Tensor, Tensor]]], ...] = (
        ("scalar regression", _scalar),
        ("matrix regression", _matrix),
        ("3x3 convolution block", _convolution),
    )
    done, total = 0, len(problems) * len(KINDS)
    for problem, step in problems:
        for kind, shown in KINDS.items():
            random = torch.Generator().manual_seed(0)
            errors = [_relative(*step(kind, random)) for _ in range(draws)]
            rows.append(
                Row(
                    f"{problem}, {shown}",
                    "measured",
                    f"autograd, float64, {draws} draws",
                    {"rule": _rule(kind, problem), "error": max(errors)},
                )
            )
            done += 1
            request.on_progress(done, total, f"{problem}, {shown}")
    depth_rows, shrinking = _depth_rows(DEPTHS[request.full], draws)
    worst = max(float(row.values["error"] or 0) for row in rows)
    agree = max(float(row.values["error"] or 0) for row in depth_rows)
    return Reproduction(
        "sesr/updates",
        "one step of gradient descent on the collapsed weight: autograd against the closed forms",
        PAPER,
        request.form,
        (
            Section(
                "Change of the collapsed weight",
                (Column("rule", "closed form"), Column("error", "largest relative error", ".1e")),
                tuple(rows),
            ),
            Section(
                "First layer's share of the loss's gradient against depth "
                "(median norm of d loss / d beta_1 over that of d loss / d output)",
                (
                    *(Column(str(depth), f"m={depth}", ".2e") for depth in DEPTHS[request.full]),
                    Column("error", "closed form off by", ".1e"),
                ),
                tuple(depth_rows),
            ),
        ),
        (
            Check("every update rule is autograd's", worst < TOLERANCE, f"off by {worst:.1e}"),
            Check(
                "gradients through depth are the product of the later blocks",
                agree < TOLERANCE,
                f"off by {agree:.1e}",
            ),
            Check(
                "without the short residual the first layer's gradient vanishes with depth",
                shrinking["ExpandNet"] < 0.7 and shrinking["SESR"] > 0.9,
                ", ".join(f"{name} x{factor:.2f} a block" for name, factor in shrinking.items()),
            ),
        ),
        (
            "RepVGG's rule is the plain one at twice the rate: no factor in it depends on the "
            "weights. With k x k beside 1x1 that holds at the centre tap; the others keep the "
            "plain rate.",
            "Depth: m linear blocks of 16 channels, 256 wide, drawn by Glorot's rule, as the "
            "authors' framework does, where two layers together pass on 0.47 of a signal.",
        ),
        {"draws": draws, "rate": RATE, "tolerance": TOLERANCE},
    )


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _rule(kind: str, problem: str) -> str:
    if kind == "plain":
        return "-eta G"
    if kind == "repvgg":
        return "-2 eta G, other taps -eta G" if "3x3" in problem else "-2 eta G"
    if "scalar" in problem:
        return "-eta (w1^2 + w2^2) G + eta^2 w1 w2 G^2"
    return "-eta (G W1'W1 + W2 W2'G) + eta^2 G W1'W2'G"


def closed_form(kind: str, gradient: Tensor, weights: list[Tensor], rate: float) -> Tensor:
    """The change of beta [out, in] by the paper's rule; ``weights`` are (W1, W2) where it has two.

    ``gradient`` is that of the loss with respect to beta, of the same shape.
    """
    if kind == "plain":
        return -rate * gradient
    if kind == "repvgg":
        return -2 * rate * gradient
    first, second = weights
    linear = gradient @ first.T @ first + second @ second.T @ gradient
    return -rate * linear + rate**2 * gradient @ first.T @ second.T @ gradient


def _beta(kind: str, weights: list[Tensor]) -> Tensor:
    """The collapsed weight of a block of matrices; weights are (W1, W2) or (W, V) or (W,)."""
    eye = torch.eye(weights[-1].shape[0], dtype=torch.float64)
    if kind == "plain":
        return weights[0]
    if kind == "repvgg":
        return weights[0] + weights[1] + eye
    product = weights[1] @ weights[0]
    return product + eye if kind == "sesr" else product


def _draw(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=random)


def _regression(kind: str, random: torch.Generator, width: int, wide: int) -> tuple[Tensor, Tensor]:
    """The change of beta by one step, and the closed form, for beta [width, width] on pairs."""
    x, y = _draw(random, width, 12), _draw(random, width, 12)
    shapes = {"plain": [(width, width)], "repvgg": [(width, width)] * 2}.get(
        kind, [(wide, width), (width, wide)]
    )
    weights = [_draw(random, *shape).div(shape[1] ** 0.5).requires_grad_() for shape in shapes]
    # The gradient with respect to beta itself, from a leaf of its own.
    beta = _beta(kind, weights).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.mse_loss(beta @ x, y), beta)
    steps = torch.autograd.grad(F.mse_loss(_beta(kind, weights) @ x, y), weights)
    moved = [w.detach() - RATE * step for w, step in zip(weights, steps, strict=True)]
    change = _beta(kind, moved) - beta.detach()
    return change, closed_form(kind, gradient, [w.detach() for w in weights], RATE)


def _scalar(kind: str, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A regression of one number, by the rule written out for numbers."""
    width = 1
    state = random.get_state()
    change, matrix_form = _regression(kind, random, width, width)
    if kind not in ("expandnet", "sesr"):
        return change, matrix_form
    # The same draws again, for the scalar rule as the paper has it.
    random.set_state(state)
    x, y = _draw(random, 1, 12), _draw(random, 1, 12)
    w1, w2 = float(_draw(random, 1, 1)), float(_draw(random, 1, 1))
    beta = w1 * w2 + (kind == "sesr")
    g = float((2 * (beta * x - y) * x).mean())
    rule = -RATE * (w1**2 + w2**2) * g + RATE**2 * w1 * w2 * g**2
    return change, torch.full_like(change, rule)


def _matrix(kind: str, random: torch.Generator) -> tuple[Tensor, Tensor]:
    return _regression(kind, random, WIDTH, EXPANSION)


def kernel_of(block: nn.Module) -> Tensor:
    """The k x k kernel that a block of ``linear_block`` equals, found from its answers.

    One impulse per input channel goes through the block in float64, its biases' answer taken off:
    nothing here knows how the block is made.
    """
    size = 3
    blank = torch.zeros(WIDTH, WIDTH, 2 * size - 1, 2 * size - 1, dtype=torch.float64)
    impulses = blank.clone()
    index = torch.arange(WIDTH)
    impulses[index, index, size - 1, size - 1] = 1
    with torch.no_grad():
        answers = block(impulses) - block(blank)
    return answers[..., 1:-1, 1:-1].flip(-2, -1).transpose(0, 1)


def _convolution(kind: str, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One SGD step of the package's own block on pictures, as [out, in * taps]."""
    seed = int(torch.randint(1 << 30, (1,), generator=random))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = linear_block(kind, WIDTH, WIDTH, 3, residual=True, expansion=EXPANSION).double()
    x, y = _draw(random, 2, WIDTH, 9, 9), _draw(random, 2, WIDTH, 9, 9)
    before = kernel_of(block)
    kernel = before.clone().requires_grad_()
    # Biases are zero before the step, so they take no part in the gradient's place.
    (gradient,) = torch.autograd.grad(F.mse_loss(F.conv2d(x, kernel, padding=1), y), kernel)
    weights: list[Tensor] = []
    if isinstance(block, CollapsibleConv2d):
        weights = [
            block.expand_weight.detach().flatten(1).clone(),
            block.project_weight.detach().flatten(1).clone(),
        ]
    optimiser = torch.optim.SGD(block.parameters(), lr=RATE)
    F.mse_loss(block(x), y).backward()
    optimiser.step()
    change = kernel_of(block) - before
    if kind == "repvgg":
        expected = -RATE * gradient
        expected[..., 1, 1] *= 2
        return change, expected
    return change.flatten(1), closed_form(kind, gradient.flatten(1), weights, RATE)


def _glorot(random: torch.Generator, outputs: int, inputs: int) -> Tensor:
    limit = (6 / (inputs + outputs)) ** 0.5
    return (torch.rand(outputs, inputs, dtype=torch.float64, generator=random) * 2 - 1) * limit


def _chain(kind: str, depth: int, random: torch.Generator) -> tuple[float, float]:
    """Gradient of the first of some blocks over that of the output, and the closed form's error.

    y = beta_m ... beta_1 x, so d loss / d beta_1 = (beta_m ... beta_2)' (d loss / d y) x'.
    """
    width, wide = 16, 256
    x, y = _draw(random, width, 1), _draw(random, width, 1)
    betas = []
    for _ in range(depth):
        shapes = {"plain": [(width, width)], "repvgg": [(width, width)] * 2}.get(
            kind, [(wide, width), (width, wide)]
        )
        betas.append(_beta(kind, [_glorot(random, *shape) for shape in shapes]))
    first = betas[0].clone().requires_grad_()
    output = first @ x
    for beta in betas[1:]:
        output = beta @ output
    output.retain_grad()
    F.mse_loss(output, y, reduction="sum").backward()
    assert output.grad is not None
    assert first.grad is not None
    later = torch.eye(width, dtype=torch.float64)
    for beta in betas[1:]:
        later = beta @ later
    error = _relative(first.grad, later.T @ output.grad @ x.T)
    return float(first.grad.norm() / (output.grad.norm() * x.norm())), error


def _depth_rows(depths: tuple[int, ...], draws: int) -> tuple[list[Row], dict[str, float]]:
    """A row a kind, and by which factor the gradient changes with each further block."""
    rows, factors = [], {}
    for kind, shown in KINDS.items():
        values: dict[str, float] = {}
        errors = []
        for depth in depths:
            random = torch.Generator().manual_seed(depth)
            chains = [_chain(kind, depth, random) for _ in range(draws)]
            values[str(depth)] = float(torch.tensor([share for share, _ in chains]).median())
            errors += [error for _, error in chains]
        first, last = depths[0], depths[-1]
        factors[shown] = (values[str(last)] / values[str(first)]) ** (1 / (last - first))
        source = f"autograd, float64, median of {draws} draws"
        rows.append(Row(shown, "measured", source, {**values, "error": max(errors)}))
    return rows, factors
