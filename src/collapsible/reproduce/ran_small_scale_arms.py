"""The networks of ``reproduce ran/small-scale``: how each comes from the base and is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.reproduce.ran_search_arms import write_json
from collapsible.reproduce.ran_search_measure import pack, unpack
from collapsible.reproduce.registry import Request

if TYPE_CHECKING:
    from collapsible.search.families import Family, Shape
    from collapsible.training import Recipe

BASE = "convnext_atto"
# The bar: MACs of the base over the network's.
FEWER = 1.8
# Milliseconds of the base over the network's, one picture: the bar of 1.4 and what a stopwatch
# here is off by.
QUICKER = 1.45
# How much deeper for its width the published Tiny is than what it was scaled from, ConvNeXt-T.
DEEPER = 2.5


@dataclass(frozen=True)
class Arm:
    """A way to come from the base to a network: a rule at a share of the base's MACs.

    ``deeper`` puts the cap on depth over width at so many times the base's own (None: the usual
    one). ``quicker`` asks for so many times fewer milliseconds besides, measured with torch on one
    picture of the first side that speeds are taken at. Without a rule it is the base. ``seeds``
    are the most that it is trained with.
    """

    name: str
    rule: str = ""
    fewer: float = 1.0
    deeper: float | None = None
    quicker: float | None = None
    seeds: int = 3


ARMS = (
    Arm("base"),
    Arm("mass", "mass", FEWER),
    Arm("mass-deeper", "mass", FEWER, DEEPER),
    Arm("mass-quick", "mass", FEWER, quicker=QUICKER),
    Arm("entropy", "entropy", FEWER, seeds=2),
    Arm("width", "width", FEWER, seeds=2),
    Arm("depth", "depth", FEWER, seeds=2),
    Arm("random", "random", FEWER, seeds=2),
    Arm("mass-equal", "mass"),
)
SMALL_ARMS = (
    Arm("base"),
    Arm("mass", "mass", FEWER),
    # Such small networks are all start-up: a stopwatch that noise can turn asks for little.
    Arm("mass-quick", "mass", FEWER, quicker=0.8),
    Arm("random", "random", FEWER),
)


@dataclass(frozen=True)
class Setting:
    """Training at ``side`` pixels, measuring at ``test_side``; frames a second at ``fps_sides``.

    ``patch`` is that of the stem, ``step`` that of the widths.
    """

    side: int
    test_side: int
    patch: int
    steps: int
    batch: int
    fps_sides: tuple[int, ...]
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 9
    step: int = 4


LARGE_PICTURES = Setting(64, 80, 4, 800, 64, (160, 224))
SMALL_PICTURES = Setting(32, 32, 2, 400, 64, (32,))
SMALL = Setting(32, 32, 4, 6, 12, (32,), (1,), 1)
# Pictures up to this side count as small ones (CIFAR).
SMALL_SIDE = 40


@dataclass(frozen=True)
class Result:
    """A trained network: its shape, counts at the training size, and each picture's hit."""

    arm: str
    seed: int
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    macs: int
    params: int
    units: int
    effectiveness: float
    steps: int
    pictures: int
    hits: str

    def bits(self) -> Any:
        return unpack(self.hits, self.pictures)

    @property
    def top1(self) -> float:
        return 100 * float(self.bits().mean())


def family(setting: Setting, side: int | None = None) -> Family:
    """The base's family, at the training size unless told; its ten classes count for nothing."""
    from collapsible.search.families import find_family

    side = side or setting.side
    return find_family(BASE, size=(3, side, side), num_classes=10, patch_size=setting.patch)


def find_shape(arm: Arm, setting: Setting, seed: int) -> Shape:
    """The network of an arm; only the random one hangs on the seed."""
    from collapsible.search.scaling import effectiveness, scale

    kind = family(setting, None if arm.quicker is None else setting.fps_sides[0])
    base = kind.base
    if not arm.rule:
        return base
    report = scale(
        BASE,
        rule=arm.rule,
        macs=kind.count(base).macs / arm.fewer,
        latency_share=None if arm.quicker is None else 1 / arm.quicker,
        size=kind.size,
        step=setting.step,
        cap=None if arm.deeper is None else arm.deeper * effectiveness(base),
        seed=seed,
        num_classes=10,
        patch_size=setting.patch,
    )
    return report.candidates[0].shape


def keep_shape(arm: Arm, setting: Setting, seed: int, folder: Path) -> Shape:
    """``find_shape``, but a shape found with a stopwatch is kept in the folder for all seeds."""
    from collapsible.search.families import Shape

    if arm.quicker is None:
        return find_shape(arm, setting, seed)
    path = folder / f"{arm.name}.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        return Shape(tuple(record["depths"]), tuple(record["dims"]))
    shape = find_shape(arm, setting, seed)
    write_json(path, asdict(shape))
    return shape


def recipe(shape: Shape, setting: Setting, seed: int) -> Recipe:
    """How every network is trained."""
    from collapsible.training.recipes import (
        AugmentSpec,
        DataSpec,
        NetworkSpec,
        OptimiserSpec,
        Recipe,
        ScheduleSpec,
    )

    options = {
        "depths": list(shape.depths),
        "dims": list(shape.dims),
        "patch_size": setting.patch,
        # 1e-6 would take most of so short a training to grow.
        "layer_scale": 0.1,
        "drop_path_rate": 0.05,
    }
    return Recipe(
        name="small-scale",
        task="classification",
        network=NetworkSpec("ran_i_pico", options=options),
        steps=setting.steps,
        seed=seed,
        precision="bf16",
        data=DataSpec(
            size=setting.side,
            test_size=setting.test_side,
            test_crop=1.0,
            batch=setting.batch,
            interpolation="bilinear",
        ),
        augment=AugmentSpec(scale=(0.35, 1.0), smoothing=0.1),
        optimiser=OptimiserSpec("adamw", 3e-3, weight_decay=0.05, clip=5.0),
        schedule=ScheduleSpec("cosine", warmup=0.05),
        loss="cross-entropy",
        average=0.98,
        validate_every=setting.steps,
        checkpoint_every=max(5, setting.steps // 4),
    )


def train_arm(
    arm: Arm,
    seed: int,
    setting: Setting,
    data: Path,
    folder: Path,
    request: Request,
    place: tuple[int, int],
) -> Result:
    from collapsible.evaluation.classification import score_pictures
    from collapsible.models import load_classifier
    from collapsible.search.scaling import effectiveness
    from collapsible.training import start_fabric, train_classifier

    shape = keep_shape(arm, setting, seed, folder)
    path = folder / f"{arm.name}-{seed}" / "figures.json"
    kept = _kept(path)
    if kept and (kept.depths, kept.dims, kept.steps) == (shape.depths, shape.dims, setting.steps):
        return kept
    plan = recipe(shape, setting, seed)
    report, task = train_classifier(
        plan,
        data,
        path.parent,
        resume=True,
        fabric=start_fabric(plan, "auto" if request.full else "cpu"),
        on_step=lambda now: request.on_progress(
            *place, f"{arm.name}-{seed} {now.step}/{now.steps} loss {now.loss:.3f}"
        ),
    )
    network, card = load_classifier(report.weights)
    (pictures,) = task.sets.values()
    hits, _ = score_pictures(network, pictures, card.preprocessing)
    counts = family(setting).count(shape)
    result = Result(
        arm.name,
        seed,
        shape.depths,
        shape.dims,
        counts.macs,
        counts.params,
        counts.non_linear_units,
        effectiveness(shape),
        setting.steps,
        len(hits),
        pack(hits),
    )
    write_json(path, asdict(result))
    return result


def _kept(path: Path) -> Result | None:
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    lists = {key: tuple(record[key]) for key in ("depths", "dims")}
    return Result(**{**record, **lists})
