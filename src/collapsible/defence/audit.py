"""Does a defence hold, or does it only hide its gradient? Checks that have an answer.

The checks follow Athalye, Carlini and Wagner (arXiv 1802.00420, section 3.1) and Carlini et al.
(arXiv 1902.06705, sections 4 and 5). A defence that fails one has not been shown to be broken; its
figures have been shown to say nothing, for the attacks that made them did not work as they should.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collapsible.defence.attacks import AttackError, create_attack
from collapsible.defence.batches import in_batches
from collapsible.errors import UsageError
from collapsible.imaging import atomic_write

if TYPE_CHECKING:
    from collapsible.defence.laboratory import Laboratory

Model = Callable[[Tensor], Tensor]
# Random directions that the gradient's is compared with, and the share of pictures to be better on.
DIRECTIONS = 4
MOSTLY = 0.75


@dataclass(frozen=True)
class Check:
    """One check: what should hold, whether it did, and the figures it was judged by (measured)."""

    name: str
    passed: bool
    rule: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class AuditReport:
    """The checks of one model, on the ``pictures`` that it classifies rightly (of ``tried``)."""

    subject: str
    norm: str
    epsilon: float
    tried: int
    pictures: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        lines = [f"audit of {self.subject}: {self.pictures} pictures, {self.norm}"]
        for check in self.checks:
            figures = ", ".join(f"{key} {_show(value)}" for key, value in check.figures.items())
            lines.append(f"  {'passed' if check.passed else 'FAILED'}  {check.name}: {figures}")
        return "\n".join(lines)


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def audit(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    epsilon: float = 8 / 255,
    steps: int = 20,
    queries: int = 300,
    batch: int = 8,
    seed: int = 0,
    subject: str = "the model",
) -> AuditReport:
    """Check that attacks on a model work as attacks should, before any figure is believed.

    ``model`` maps ``images`` float [N, C, H, W] in [0, 1] to scores; ``labels`` are [N]. Only
    pictures that it classifies rightly count. The checks:

    * gradients: none is zero all over a picture, none is not finite (of the margin between the
      right class and the best other, which does not saturate as cross-entropy does);
    * direction: a small step along the gradient does more harm than random steps as long, on at
      least 75 % of the pictures;
    * budgets: of PGD at 1/2, 1, 2 and 4 times ``epsilon``, a larger one never helps the defender;
    * steps: nor do more steps, of 1, ``steps`` / 4 and ``steps``;
    * unbounded: with no bound but [0, 1], and started at the picture itself, so that luck plays
      no part, no picture stays right;
    * black box: Square with ``queries`` finds no more than PGD and APGD together.

    Where counts are compared, one picture or 5 % of them is let pass: attacks draw random starts.
    Raises ``UsageError`` where no picture is classified rightly, ``DefenceError`` where memory
    runs out.
    """
    judge = _Judge(model, norm, epsilon, steps, queries, batch, seed)
    right = judge.right(images, labels)
    if not bool(right.any()):
        raise UsageError(f"audit of {subject}: it gets none of {len(images)} pictures right")
    images, labels = images[right], labels[right]
    checks: list[Check] = []
    for check in (
        judge.gradients,
        judge.direction,
        judge.budgets,
        judge.more_steps,
        judge.unbounded,
        judge.black_box,
    ):
        try:
            checks.append(check(images, labels))
        except AttackError as error:
            name = check.__name__.replace("_", " ")
            checks.append(Check(name, False, "the attack can work", {"reason": str(error)}))
    return AuditReport(subject, norm, epsilon, len(right), len(images), tuple(checks))


@dataclass(frozen=True)
class _Judge:
    model: Model
    norm: str
    epsilon: float
    steps: int
    queries: int
    batch: int
    seed: int

    def right(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            parts = in_batches(
                lambda a, b: self.model(images[a:b]).argmax(1) == labels[a:b].to(images.device),
                len(images),
                self.batch,
            )
            return torch.cat([part for _, _, part in parts])

    def _survivors(self, images: Tensor, labels: Tensor, name: str, **settings: Any) -> Tensor:
        """Which pictures stay right under an attack."""
        attack = create_attack(name, **{"norm": self.norm, "epsilon": self.epsilon, **settings})

        def work(start: int, stop: int) -> Tensor:
            # Streams of neighbours must not overlap, so they are far apart.
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start)
            x, y = images[start:stop], labels[start:stop]
            pictures = attack(self.model, x, y, generator=generator)
            with torch.no_grad():
                return self.model(pictures).argmax(1) == y.to(pictures.device)

        return torch.cat([part for _, _, part in in_batches(work, len(images), self.batch)])

    def _slack(self, count: int) -> int:
        return max(1, count // 20)

    def _falling(self, counts: list[int]) -> bool:
        slack = self._slack(max(counts))
        # Against the best attack so far, so that small steps up cannot add up.
        return all(c <= min(counts[: i + 1]) + slack for i, c in enumerate(counts))

    def gradients(self, images: Tensor, labels: Tensor) -> Check:
        gradient = self._gradient(images, labels).flatten(1)
        finite = gradient.isfinite().all(1)
        zero = (gradient == 0).all(1)
        figures = {
            "pictures": len(images),
            "not finite": int((~finite).sum()),
            "all zero": int(zero.sum()),
            "zero values %": 100 * float((gradient == 0).float().mean()),
        }
        passed = bool(finite.all()) and not bool(zero.any())
        return Check("gradients", passed, "finite, and zero on no picture", figures)

    def _gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        def work(start: int, stop: int) -> Tensor:
            with torch.enable_grad():
                x = images[start:stop].detach().clone().requires_grad_()
                loss = self._harm(x, labels[start:stop]).sum()
                if not loss.requires_grad:
                    return torch.zeros_like(x)
                (found,) = torch.autograd.grad(loss, x, allow_unused=True)
                return torch.zeros_like(x) if found is None else found

        return torch.cat([part for _, _, part in in_batches(work, len(images), self.batch)])

    def _harm(self, x: Tensor, labels: Tensor) -> Tensor:
        """The best other score less the right one's, [N]: positive where the model is fooled."""
        scores = self.model(x)
        places = labels.to(scores.device)[:, None]
        others = scores.scatter(1, places, -torch.inf).amax(1)
        return others - scores.gather(1, places)[:, 0]

    def _harm_in_batches(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            parts = in_batches(
                lambda a, b: self._harm(images[a:b], labels[a:b]), len(images), self.batch
            )
            return torch.cat([part for _, _, part in parts])

    def direction(self, images: Tensor, labels: Tensor) -> Check:
        step = (self.epsilon if self.norm == "linf" else self.epsilon / math.sqrt(1000)) / 8
        step = max(step, 1 / 255)
        gradient = self._gradient(images, labels).nan_to_num(0, 0, 0)
        along = self._harm_in_batches((images + step * gradient.sign()).clamp(0, 1), labels)
        generator = torch.Generator().manual_seed(self.seed)
        at_random = []
        for _ in range(DIRECTIONS):
            signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
            moved = (images + step * signs).clamp(0, 1)
            at_random.append(self._harm_in_batches(moved, labels))
        better = along > torch.stack(at_random).amax(0)
        share = float(better.float().mean())
        figures = {"step": step, "worse than random steps %": 100 * share}
        rule = "a step along the gradient harms more than random ones"
        return Check("direction", share >= MOSTLY, rule, figures)

    def budgets(self, images: Tensor, labels: Tensor) -> Check:
        counts = {}
        for factor in (0.5, 1, 2, 4):
            budget = self.epsilon * factor
            left = self._survivors(images, labels, "pgd", epsilon=budget, steps=self.steps)
            counts[f"right at {budget:.3g}"] = int(left.sum())
        passed = self._falling(list(counts.values()))
        return Check("budgets", passed, "a larger budget never helps the defender", counts)

    def more_steps(self, images: Tensor, labels: Tensor) -> Check:
        counts = {}
        for steps in sorted({1, max(1, self.steps // 4), self.steps}):
            left = self._survivors(images, labels, "pgd", steps=steps)
            counts[f"right after {steps}"] = int(left.sum())
        passed = self._falling(list(counts.values()))
        return Check("more steps", passed, "more steps never help the defender", counts)

    def unbounded(self, images: Tensor, labels: Tensor) -> Check:
        # Every point of [0, 1] is within this of every other.
        budget = 1.0 if self.norm == "linf" else math.sqrt(images[0].numel())
        left = self._survivors(
            images,
            labels,
            "bim",
            epsilon=budget,
            steps=2 * self.steps,
            step_size=budget / 25,
            keep="best",
        )
        figures = {"right": int(left.sum()), "of": len(images)}
        return Check("unbounded", not bool(left.any()), "no picture stays right", figures)

    def black_box(self, images: Tensor, labels: Tensor) -> Check:
        pgd = self._survivors(images, labels, "pgd", steps=self.steps)
        apgd = self._survivors(images, labels, "apgd-ce", steps=self.steps)
        square = self._survivors(images, labels, "square", queries=self.queries)
        white = pgd & apgd
        figures = {
            "right, white box": int(white.sum()),
            f"right, Square of {self.queries}": int(square.sum()),
        }
        passed = int(white.sum()) <= int(square.sum()) + self._slack(len(images))
        return Check("black box", passed, "black-box never beats white-box", figures)


def audit_plan(laboratory: Laboratory, folder: Path, pictures: int) -> Iterator[AuditReport]:
    """The audit of every classifier behind every defence of a plan, each kept in ``folder``.

    At the middle of the plan's budgets. An audit that was kept for the same question is read.
    """
    plan = laboratory.plan
    budgets = sorted(e for e in plan.epsilons if e > 0)
    if not budgets:
        return
    epsilon = budgets[len(budgets) // 2]
    chosen = laboratory.pictures.take(pictures)
    places = [laboratory.pictures.files.index(file) for file in chosen.files]
    images = laboratory.clean[places].to(laboratory.device)
    for spec in plan.classifiers:
        labels = laboratory.labels[spec.name][places].to(laboratory.device)
        for defence in plan.defences:
            subject = f"{spec.name} behind {defence}"
            path = folder / "cells" / f"{laboratory.audit_key(spec.name, defence, pictures)}.json"
            kept = _read(path)
            if kept is None:
                kept = _audit_or_say_why(
                    laboratory.model(spec.name, defence),
                    images,
                    labels,
                    norm=plan.norm,
                    epsilon=epsilon,
                    batch=plan.batch,
                    seed=plan.seed,
                    subject=subject,
                )
                with atomic_write(path) as stream:
                    stream.write(kept.json().encode())
            yield kept


def _audit_or_say_why(
    model: Model, images: Tensor, labels: Tensor, *, norm: str, epsilon: float, **options: Any
) -> AuditReport:
    """The audit; a pair that gets nothing right must not cost the others their report."""
    try:
        return audit(model, images, labels, norm=norm, epsilon=epsilon, **options)
    except UsageError:
        tried = len(images)
        check = Check("pictures", False, "it gets some right", {"right": 0, "of": tried})
        return AuditReport(options["subject"], norm, epsilon, tried, 0, (check,))


def _read(path: Path) -> AuditReport | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record.pop("passed")
        checks = tuple(Check(**check) for check in record.pop("checks"))
        return AuditReport(**record, checks=checks)
    except (OSError, ValueError, TypeError, KeyError):
        return None
