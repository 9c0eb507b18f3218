"""What an evaluation is to do, as data: the plan and its jobs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collapsible.defence.networks import ClassifierSpec
from collapsible.defence.preprocessing import NONE
from collapsible.errors import UsageError

THREATS = ("grey-box", "adaptive", "transfer")
CLEAN = "clean"


@dataclass(frozen=True)
class AttackSpec:
    """An attack's name and its own settings, such as steps (see ``create_attack``)."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        values = ",".join(f"{key}={value}" for key, value in self.settings)
        return f"{self.name}:{values}" if values else self.name


def read_attack(text: str) -> AttackSpec:
    """``pgd`` or ``pgd:steps=20,restarts=2``; raises ``UsageError`` for another form.

    Whether name and settings are known is ``create_attack``'s to say.
    """
    name, colon, rest = text.strip().partition(":")
    settings = []
    for part in rest.split(",") if colon else ():
        key, equals, value = part.strip().partition("=")
        if not key or not equals:
            raise UsageError(f"attack {text!r}: NAME:setting=value,... such as pgd:steps=20")
        settings.append((key.strip(), _value(value.strip())))
    return AttackSpec(name, tuple(sorted(settings)))


def _value(text: str) -> Any:
    for kind in (int, read_number):
        try:
            return kind(text)
        except (ValueError, UsageError):
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def read_number(text: str) -> float:
    """``0.03`` or ``8/255``; raises ``UsageError`` unless it is a finite number of at least 0."""
    top, slash, bottom = text.strip().partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"budget {text!r}: numbers from 0 such as 8/255 are accepted")
    return value


@dataclass(frozen=True)
class Plan:
    """Everything that decides an evaluation's figures.

    Pictures of the folder ``data`` are brought to ``size`` pixels (see ``read_batch``); ``limit``
    takes that many, evenly spaced. ``defences`` are names for ``create_defence`` (``"none"`` is
    always among them) and ``weights`` pairs of a network's name and its file. ``epsilons`` are in
    pixel values of [0, 1]. ``threats`` are of ``THREATS``; ``eot`` passes are averaged in adaptive
    attacks. ``batch`` pictures are attacked at a time, fewer where memory runs out.
    ``calibration`` is a folder of pictures for networks in int8, none of which is attacked.
    With ``bare_only`` no attack is made through a defence, whatever the threats.
    """

    data: str
    classifiers: tuple[ClassifierSpec, ...]
    defences: tuple[str, ...]
    attacks: tuple[AttackSpec, ...]
    epsilons: tuple[float, ...]
    norm: str = "linf"
    eot: int = 1
    threats: tuple[str, ...] = THREATS
    size: int = 224
    crop: float = 0.875
    limit: int | None = None
    batch: int = 8
    seed: int = 0
    device: str = "cpu"
    weights: tuple[tuple[str, str], ...] = ()
    classes: str | None = None
    calibration: str | None = None
    bare_only: bool = False

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.classifiers]
        for what, values in (
            ("classifier", names),
            ("attack", self.attacks),
            ("budget", self.epsilons),
        ):
            if not values:
                raise UsageError(f"no {what} given: at least one is needed")
            if len(set(values)) != len(values):
                raise UsageError(f"the same {what} twice: {', '.join(map(str, values))}")
        for threat in self.threats:
            if threat not in THREATS:
                raise UsageError(f"threat {threat!r}: known are {', '.join(THREATS)}")
        if self.size < 1 or not 0 < self.crop <= 1 or (self.limit is not None and self.limit < 1):
            raise UsageError(
                f"size={self.size} and limit={self.limit} start at 1, crop={self.crop} is in (0, 1]"
            )
        others = tuple(name for name in dict.fromkeys(self.defences) if name != NONE)
        object.__setattr__(self, "defences", (NONE, *others))


@dataclass(frozen=True)
class Job:
    """One set of adversarial pictures: made on a classifier through a defence, and tried on others.

    ``targets`` are pairs (classifier, defence) by name. ``attack`` is None for clean pictures.
    """

    source: str
    through: str
    attack: AttackSpec | None
    epsilon: float
    targets: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """A line for people."""
        if self.attack is None:
            return f"{CLEAN} pictures, {self.source}"
        return f"{self.attack} at {show_budget(self.epsilon)}, {self.source} through {self.through}"


def show_budget(epsilon: float) -> str:
    """``8/255`` where that is what it is, else the number."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-9 else f"{epsilon:g}"


def list_jobs(plan: Plan) -> Iterator[Job]:
    """Clean pictures, then every attack on every classifier bare and, if adaptive, defended.

    An attack on a bare classifier is tried on that one too, whatever the threats: it is at hand.
    """
    names = [spec.name for spec in plan.classifiers]
    for name in names:
        yield Job(name, NONE, None, 0.0, tuple((name, defence) for defence in plan.defences))
    for epsilon in plan.epsilons:
        for attack in plan.attacks:
            for name in names:
                for through in (NONE,) if plan.bare_only else plan.defences:
                    targets = tuple(_targets(plan, name, through))
                    if targets and through == NONE and (name, NONE) not in targets:
                        targets = ((name, NONE), *targets)
                    if targets:
                        yield Job(name, through, attack, epsilon, targets)


def _targets(plan: Plan, source: str, through: str) -> Iterator[tuple[str, str]]:
    for spec in plan.classifiers:
        for defence in plan.defences if through == NONE else (through,):
            if threat_of(spec.name, defence, source, through) in plan.threats:
                yield spec.name, defence


def threat_of(target: str, defence: str, source: str, through: str) -> str:
    """What the attacker knew: see docs/defence.md. The bare classifier's own is ``adaptive``."""
    if target != source:
        return "transfer"
    return "adaptive" if defence == through else "grey-box"


def fingerprint(plan: Plan, job: Job, pictures: str) -> str:
    """A name for a job's result: equal only where everything that decides the figures is."""
    used = {job.source, *(name for name, _ in job.targets)}
    kept = ("norm", "eot", "size", "crop", "batch", "seed")
    record = {
        "plan": {key: getattr(plan, key) for key in kept},
        "classes": _digest(plan.classes or ""),
        "job": asdict(job),
        "pictures": pictures,
        "classifiers": [
            {
                **asdict(spec),
                "weights": _digest(spec.weights),
                "classes": _digest(spec.classes or ""),
            }
            for spec in plan.classifiers
            if spec.name in used
        ],
        "weights": [(name, _digest(path)) for name, path in plan.weights],
    }
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _digest(path: str) -> str:
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else path
