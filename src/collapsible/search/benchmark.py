"""A benchmark of small ConvNeXt networks at equal budgets, trained alike on CIFAR-10.

The networks are a function of the seed, so anybody draws the same ones. Training goes network by
network and writes after each, so that it goes on where it was stopped.
"""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import CollapsibleError, UsageError
from collapsible.search.families import Family, Shape, find_family

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
STAGES, STEP, TOLERANCE = 3, 4, 0.03


@dataclass(frozen=True)
class Plan:
    """What is trained and how. MACs are for one 32x32 picture; all networks are within 3 %."""

    networks: int = 24
    macs: int = 2_000_000
    pictures: int = 10_000
    tests: int = 4_000
    epochs: int = 4
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """One trained network: top-1 on the test pictures, 0 to 1; seconds it took."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    accuracy: float
    seconds: float


def family() -> Family:
    """ConvNeXt for 32x32 pictures: patches of 2, three stages, ten classes."""
    return find_family("convnext", size=(3, 32, 32), patch_size=2, num_classes=10)


def build(shape: Shape) -> nn.Module:
    """A network of the benchmark. Layer scale starts at 0.1: few steps would not move 1e-6."""
    from collapsible.models import ConvNeXt

    return ConvNeXt(shape.depths, shape.dims, patch_size=2, num_classes=10, layer_scale=0.1)


def draw_shapes(plan: Plan) -> list[Shape]:
    """Different shapes at the plan's MACs: depths 1 to 8 and growing widths, by chance.

    Raises ``UsageError`` where there are not enough within 3 % of the budget.
    """
    chance, found, kind = random.Random(plan.seed), [], family()
    for _ in range(200_000):
        depths = tuple(chance.randint(1, 8) for _ in range(STAGES))
        first = STEP * chance.randint(2, 16)
        dims = [first]
        for _ in range(STAGES - 1):
            grown = dims[-1] * chance.uniform(1.0, 2.5)
            dims.append(STEP * max(1, round(grown / STEP)))
        shape = Shape(depths, tuple(dims))
        near = abs(kind.count(shape).macs / plan.macs - 1) <= TOLERANCE
        if near and shape not in found:
            found.append(shape)
            if len(found) == plan.networks:
                return found
    raise UsageError(f"only {len(found)} of {plan.networks} networks at {plan.macs:,} MACs")


def read_cifar(file: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` pictures, evenly over the classes: uint8 [N, 32, 32, 3] and labels.

    ``file`` is a tar of ``.../PART/CLASS/NNNN.jpg`` (or png). Raises ``CollapsibleError`` for a
    file that is none, or has too few.
    """
    import numpy as np
    from PIL import Image

    each, found = math.ceil(count / len(CLASSES)), {name: {} for name in CLASSES}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                *_, folder, label, name = ["", "", *member.name.split("/")]
                number = Path(name).stem
                if folder == part and label in found and number.isdigit() and member.isfile():
                    stream = archive.extractfile(member)
                    if int(number) <= each and stream is not None:
                        found[label][int(number)] = stream.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise CollapsibleError(f"{file}: not a readable tar of CIFAR-10: {error}") from error
    pictures, labels = [], []
    for label, name in enumerate(CLASSES):
        for number in sorted(found[name])[:each]:
            with Image.open(io.BytesIO(found[name][number])) as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
                labels.append(label)
    if len(pictures) < count:
        raise CollapsibleError(f"{file}: {len(pictures)} pictures in {part!r}; {count} are needed")
    order = np.random.default_rng(0).permutation(len(pictures))[:count]
    return np.stack(pictures)[order], np.array(labels)[order]


def train_one(
    shape: Shape,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    plan: Plan,
) -> Trained:
    """Train one network from a fixed seed and measure it.

    AdamW, one-cycle learning rate, flips and shifts by up to 4 pixels, label smoothing 0.1.
    """
    import torch
    import torch.nn.functional as F

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(plan.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = build(shape).to(memory_format=torch.channels_last)
    pictures, labels = (torch.from_numpy(part) for part in train)
    steps = plan.epochs * (len(pictures) // plan.batch)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    other = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed}, {"params": other, "weight_decay": 0.0}],
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
    )
    network.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.1 * steps))
        rate = plan.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(pictures), (plan.batch,), generator=generator)
        x = _scaled(pictures[chosen])
        x = torch.where(torch.rand(plan.batch, 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
        down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
        x = F.pad(x, (4, 4, 4, 4), mode="reflect")[:, :, down : down + 32, right : right + 32]
        loss = F.cross_entropy(network(x), labels[chosen], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    pictures, labels = (torch.from_numpy(part) for part in test)
    with torch.no_grad():
        right_ones = sum(
            int((network(_scaled(x)).argmax(1) == y).sum())
            for x, y in zip(pictures.split(500), labels.split(500), strict=True)
        )
    seconds = time.perf_counter() - start
    return Trained(shape.depths, shape.dims, right_ones / len(labels), round(seconds, 1))


def _scaled(pictures: Any) -> Any:
    """uint8 [N, H, W, 3] to about -2 ... 2, [N, 3, H, W]."""
    return (pictures.permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25


def read_results(file: Path) -> tuple[Plan, list[Trained]]:
    """A results file. Raises ``CollapsibleError`` for one that is none."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        trained = [
            Trained(tuple(row["depths"]), tuple(row["dims"]), row["accuracy"], row["seconds"])
            for row in facts["networks"]
        ]
        return Plan(**facts["plan"]), trained
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CollapsibleError(f"{file}: not a file of benchmark results: {error}") from error


def write_results(file: Path, plan: Plan, trained: list[Trained]) -> None:
    """Whole, or not at all."""
    facts = {"plan": asdict(plan), "networks": [asdict(one) for one in trained]}
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        raise CollapsibleError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def train_benchmark(
    cifar: Path, file: Path, plan: Plan, tell: Callable[[int, int, Trained], None] | None = None
) -> list[Trained]:
    """Train what of the plan's networks is not yet in ``file``, which grows with each.

    Raises ``UsageError`` if the file holds another plan's results.
    """
    done: list[Trained] = []
    if file.exists():
        old, done = read_results(file)
        if old != plan:
            raise UsageError(f"{file} holds results of another plan ({old}); give another file")
    shapes = draw_shapes(plan)
    known = {(one.depths, one.dims) for one in done}
    missing = [shape for shape in shapes if (shape.depths, shape.dims) not in known]
    for one in _train_all(missing, cifar, plan):
        done.append(one)
        write_results(file, plan, done)
        if tell is not None:
            tell(len(done), plan.networks, one)
    return done


def _train_all(shapes: list[Shape], cifar: Path, plan: Plan) -> Iterator[Trained]:
    if not shapes:
        return
    train = read_cifar(cifar, "train", plan.pictures)
    test = read_cifar(cifar, "test", plan.tests)
    for shape in shapes:
        yield train_one(shape, train, test, plan)
