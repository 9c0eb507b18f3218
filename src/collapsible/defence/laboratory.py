"""Classifiers, defences and pictures made ready, and one job at a time done with them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from collapsible.defence.attacks import NonFiniteError, create_attack
from collapsible.defence.batches import in_batches
from collapsible.defence.classifier import DefendedClassifier
from collapsible.defence.errors import DefenceError
from collapsible.defence.integers import calibrate_integers, integer_forms
from collapsible.defence.networks import LoadedClassifier, load_classifier
from collapsible.defence.pictures import (
    LabelledPictures,
    find_labelled_pictures,
    match_labels,
    read_batch,
    read_classes,
)
from collapsible.defence.plan import AttackSpec, Job, Plan, fingerprint
from collapsible.defence.preprocessing import create_defence
from collapsible.errors import UsageError
from collapsible.imaging import list_pictures

# What rounding may add to a distance of [0, 1] pixels in float32.
SLACK = 1e-5
# Pictures that int8 networks are calibrated with, evenly spaced in their folder.
CALIBRATION = 16


@dataclass(frozen=True)
class JobResult:
    """What a job found.

    ``outcomes`` has for each target, ``CLASSIFIER|DEFENCE``, a string of one 1 (right) or 0 per
    picture; it is empty where ``failure`` says why there is no figure. ``distance`` is the largest
    from the clean pictures, in the plan's norm: measured. ``example`` holds pictures as data URIs.
    """

    key: str
    job: dict[str, Any]
    outcomes: dict[str, str]
    distance: float
    seconds: float
    failure: str = ""
    example: dict[str, str] | None = None


def target_key(classifier: str, defence: str) -> str:
    """The name of a target in ``JobResult.outcomes``."""
    return f"{classifier}|{defence}"


class Laboratory:
    """A plan made ready: networks are loaded and labels matched once, then jobs are done.

    Raises what ``load_classifier``, ``create_defence``, ``create_attack`` and ``match_labels`` do,
    and ``UsageError`` for a device that is not there or a classifier that does not take the
    pictures: all before any work is done.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = _device(plan.device)
        for attack in plan.attacks:
            create_attack(attack.name, epsilon=8 / 255, norm=plan.norm, **dict(attack.settings))
        found = find_labelled_pictures(plan.data)
        self.pictures: LabelledPictures = found.take(plan.limit)
        self.clean = read_batch(self.pictures.files, plan.size, plan.crop)
        self.digest = hashlib.sha256(
            self.clean.numpy().tobytes() + "\n".join(self.pictures.names).encode()
        ).hexdigest()
        self.classifiers: dict[str, LoadedClassifier] = {}
        self.labels: dict[str, Tensor] = {}
        self._models: dict[tuple[str, str], DefendedClassifier] = {}
        for spec in plan.classifiers:
            loaded = load_classifier(spec)
            loaded.network.to(self.device)
            self.classifiers[spec.name] = loaded
            file = spec.classes or plan.classes
            classes = None if file is None else read_classes(file)
            if classes is None and spec.outputs:
                classes = {name: place for place, name in enumerate(spec.outputs)}
            # All of the folder's classes say what a class's place is, not just those taken.
            places = match_labels(found.names, loaded.outputs, classes)
            meaning = dict(zip(found.names, places, strict=True))
            self.labels[spec.name] = torch.tensor([meaning[name] for name in self.pictures.names])
        files: Mapping[str, str] = dict(plan.weights)
        self._defences = {name: create_defence(name, weights=files) for name in plan.defences}
        # Shipped weights may change with the package; their results are then others.
        self._weights = {name: _digest(made) for name, made in self._defences.items()}
        self._calibrate()
        self._check()

    def _calibrate(self) -> None:
        """Show the plan's calibration pictures to what runs in int8; none of them is attacked."""
        names = [spec.name for spec in self.plan.classifiers]
        models = [self.model(name, defence) for name in names for defence in self.plan.defences]
        models = [model for model in models if integer_forms(model)]
        if not models:
            return
        if self.plan.calibration is None:
            raise UsageError("networks in int8 need a folder of calibration pictures")
        attacked = {file.resolve() for file in self.pictures.files}
        others = [
            file
            for file in list_pictures(self.plan.calibration, recursive=True)
            if file.resolve() not in attacked
        ]
        if not others:
            raise UsageError(
                f"{self.plan.calibration}: no picture to calibrate with that is not attacked too"
            )
        count = min(CALIBRATION, len(others))
        chosen = [others[i * len(others) // count] for i in range(count)]
        pictures = read_batch(chosen, self.plan.size, self.plan.crop)
        self.digest += hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
        for model in models:
            calibrate_integers(model, pictures.to(self.device))

    def model(self, classifier: str, defence: str) -> DefendedClassifier:
        """A classifier of the plan behind a defence of the plan, on the plan's device."""
        key = (classifier, defence)
        if key not in self._models:
            loaded = self.classifiers[classifier]
            self._models[key] = DefendedClassifier(
                loaded.network,
                self._defences[defence],
                mean=loaded.mean,
                std=loaded.std,
                resize=loaded.spec.resize,
            ).to(self.device)
        return self._models[key]

    def _check(self) -> None:
        """One picture through everything, so that what does not fit is said at once."""
        with torch.no_grad():
            for name, loaded in self.classifiers.items():
                for defence in self.plan.defences:
                    list(in_batches(lambda a, b, n=name, d=defence: self._try(n, d), 1, 1))
                if loaded.outputs <= int(self.labels[name].max()):
                    raise UsageError(f"{name} has {loaded.outputs} outputs, fewer than the labels")

    def _try(self, classifier: str, defence: str) -> None:
        scores = self.model(classifier, defence)(self.clean[:1].to(self.device))
        wanted = (1, self.classifiers[classifier].outputs)
        if tuple(scores.shape) != wanted:
            raise UsageError(f"{classifier} gives {list(scores.shape)}, not scores {list(wanted)}")

    def key(self, job: Job) -> str:
        """The name of the job's result."""
        used = sorted({job.through, *(defence for _, defence in job.targets)})
        weights = "".join(self._weights[name] for name in used if name in self._weights)
        return fingerprint(self.plan, job, self.digest + weights)

    def audit_key(self, classifier: str, defence: str, pictures: int) -> str:
        """The name of an audit's result."""
        budgets = tuple(str(epsilon) for epsilon in sorted(self.plan.epsilons))
        title = f"audit of {pictures} at {', '.join(budgets)}"
        return "audit-" + self.key(Job(classifier, defence, AttackSpec(title), 0.0, ()))

    def do(self, job: Job) -> JobResult:
        """Make the job's adversarial pictures and try them on its targets.

        Raises ``DefenceError`` where an attack leaves its budget or memory runs out. An attack
        that meets numbers that are not finite gives a result without figures that says so.
        """
        begun = time.perf_counter()
        outcomes: dict[str, str] = {target_key(*target): "" for target in job.targets}
        distance, failure, example = 0.0, "", None
        try:
            steps = in_batches(
                lambda start, stop: self._step(job, start, stop),
                len(self.pictures),
                self.plan.batch,
            )
            for start, _, (found, moved, pictures) in steps:
                for key, bits in found.items():
                    outcomes[key] += bits
                distance = max(distance, moved)
                if start == 0:
                    example = self._example(job, pictures)
        except NonFiniteError as error:
            outcomes, failure, example = {}, str(error), None
        seconds = round(time.perf_counter() - begun, 3)
        return JobResult(self.key(job), asdict(job), outcomes, distance, seconds, failure, example)

    def _step(self, job: Job, start: int, stop: int) -> tuple[dict[str, str], float, Tensor]:
        clean = self.clean[start:stop].to(self.device)
        pictures = self._attack(job, clean, start, stop)
        found = {}
        with torch.no_grad():
            for classifier, defence in job.targets:
                scores = self.model(classifier, defence)(pictures).cpu()
                right = scores.argmax(1) == self.labels[classifier][start:stop]
                # A score that is not a number is no answer, whatever argmax makes of it.
                right &= ~scores.isnan().any(1)
                bits = "".join("1" if r else "0" for r in right.tolist())
                found[target_key(classifier, defence)] = bits
        return found, _distance(pictures - clean, self.plan.norm), pictures[:1].cpu()

    def _attack(self, job: Job, clean: Tensor, start: int, stop: int) -> Tensor:
        if job.attack is None or job.epsilon == 0:
            return clean
        attack = create_attack(
            job.attack.name,
            epsilon=job.epsilon,
            **{"norm": self.plan.norm, "eot": self.plan.eot, **dict(job.attack.settings)},
        )
        seed = int(self.key(replace(job, targets=()))[:12], 16) + start
        pictures = attack(
            self.model(job.source, job.through),
            clean,
            self.labels[job.source][start:stop].to(self.device),
            generator=torch.Generator().manual_seed(seed % 2**62),
        ).detach()
        self._demand_within_budget(job, pictures, clean)
        return pictures

    def _demand_within_budget(self, job: Job, pictures: Tensor, clean: Tensor) -> None:
        moved = _distance(pictures - clean, self.plan.norm)
        if not moved <= job.epsilon * (1 + SLACK) + SLACK:
            raise DefenceError(
                f"{job.title}: the attack moved {moved:.5g} and may move {job.epsilon:.5g}: "
                "its result would say nothing"
            )
        if float(pictures.min()) < -SLACK or float(pictures.max()) > 1 + SLACK:
            raise DefenceError(f"{job.title}: the attack left the values of [0, 1]")

    def _example(self, job: Job, pictures: Tensor) -> dict[str, str] | None:
        """The first picture, before and after, for the page: of the largest budget alone."""
        if job.attack is None or job.epsilon != max(self.plan.epsilons) or job.epsilon == 0:
            return None
        from collapsible.defence.drawing import data_uri

        own = [d for c, d in job.targets if c == job.source]
        defence = next((d for d in own if d != "none"), "none")
        with torch.no_grad():
            seen = self.model(job.source, defence).preprocess(pictures.to(self.device)).cpu()
        clean = self.clean[:1]
        gain = 0.5 / max(float((pictures - clean).abs().max()), 1e-6)
        return {
            "clean": data_uri(clean[0]),
            "attacked": data_uri(pictures[0]),
            "defended": data_uri(seen[0]),
            "difference": data_uri(0.5 + gain * (pictures - clean)[0]),
            "gain": f"{gain:.3g}",
            "defence": defence,
        }


def _digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensors; empty where it has none."""
    tensors = list(module.state_dict().values())
    sum_ = hashlib.sha256(b"".join(t.float().cpu().numpy().tobytes() for t in tensors))
    return sum_.hexdigest() if tensors else ""


def _distance(difference: Tensor, norm: str) -> float:
    flat = difference.flatten(1).double()
    return float((flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)).max())


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}") from None
    return device
