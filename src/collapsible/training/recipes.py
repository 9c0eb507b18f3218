"""Recipes: TOML files read into frozen dataclasses; a key that nobody knows is an error."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collapsible.errors import UnknownNameError, UsageError
from collapsible.imaging import atomic_write

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class NetworkSpec:
    """Which network to train; ``options`` go to its constructor."""

    name: str
    scale: int = 2
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """How patches are drawn.

    ``patch`` is the side of a low-resolution patch in pixels and ``batch`` their number per step
    over all processes. ``rescale`` lists the sizes, relative to each picture, of the copies that
    are drawn from: a reduced copy of a soft photograph is a sharp one. ``crop`` low-resolution
    pixels at each border of a patch stay out of the loss, for there the network sees padding.

    For classification, ``size`` is the side of a training input in pixels and ``test_size`` that
    of a measured one (0: the same), cut from a picture whose short side is ``test_size /
    test_crop``; ``classes`` fixes the classes and their order (none: the sub-folders, sorted).
    For detection, ``size`` is what a picture's short side is resized to.
    """

    patch: int = 64
    batch: int = 32
    rescale: tuple[float, ...] = (1.0,)
    crop: int = 0
    size: int = 224
    test_size: int = 0
    test_crop: float = 0.875
    interpolation: str = "bicubic"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AugmentSpec:
    """How classified pictures are varied; the defaults only crop and flip.

    A crop takes a part of the area within ``scale``, its width over height within ``ratio``;
    ``flip`` and ``erasing`` are probabilities; ``rand_augment`` is timm's description, such as
    ``rand-m9-mstd0.5-inc1``; ``mixup`` and ``cutmix`` the parameters of their Beta distributions
    (0: off; both on: one of them each step); ``smoothing`` that of the labels.
    """

    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rand_augment: str = ""
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    erasing: float = 0.0


@dataclass(frozen=True)
class DegradeSpec:
    """What befalls a low-resolution patch before the network sees it, as pictures on the web.

    ``share`` of the patches are blurred (a Gaussian's standard deviation in pixels), made noisy (a
    standard deviation in levels of 255) and compressed as JPEG (its quality, 1 to 100), each
    amount drawn evenly from its range (least, most); an empty one leaves that out. The
    high-resolution patch stays as it is.
    """

    share: float = 0.0
    blur: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    jpeg: tuple[float, ...] = ()


@dataclass(frozen=True)
class TeacherSpec:
    """A network whose output is mixed into the targets of super-resolution.

    ``model`` is a shipped one's name, or a file of weights with a card or a run's facts beside it.
    ``share`` of a target is its output for the reduced picture, the rest the picture itself. No
    model (the default): pictures alone.
    """

    model: str = ""
    share: float = 0.5


@dataclass(frozen=True)
class OptimiserSpec:
    """``adam``, ``adamw`` or ``soap``; ``clip`` bounds the gradient's norm (0 leaves it).

    ``weight_decay`` acts on kernels and matrices, not on biases, norms and layer scales.
    """

    kind: str = "adam"
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    amsgrad: bool = False
    clip: float = 0.0


@dataclass(frozen=True)
class ScheduleSpec:
    """The learning rate over the run.

    ``constant``; ``cosine`` or ``linear`` to ``final`` times the peak, after a linear warm-up over
    the fraction ``warmup`` of all steps.
    """

    kind: str = "cosine"
    warmup: float = 0.05
    final: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run but the pictures' place.

    ``loss`` is ``l1``, ``l2``, ``charbonnier`` or ``psnr`` (minus the patch's own), of a
    classification ``cross-entropy`` and of a detection ``faster-rcnn``, the only ones;
    ``precision`` is ``fp32`` or ``bf16`` (weights and optimiser stay fp32; a CPU without bf16
    computes in fp32). ``average`` is the decay per step of the running mean of the weights, which
    is what gets validated and shipped (0 turns it off).
    """

    name: str
    task: str
    network: NetworkSpec
    steps: int
    data: DataSpec = field(default_factory=DataSpec)
    optimiser: OptimiserSpec = field(default_factory=OptimiserSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    degrade: DegradeSpec = field(default_factory=DegradeSpec)
    teacher: TeacherSpec = field(default_factory=TeacherSpec)
    loss: str = "l1"
    precision: str = "fp32"
    average: float = 0.999
    seed: int = 0
    validate_every: int = 2000
    checkpoint_every: int = 500
    log_every: int = 50
    about: str = ""


# The losses of each task, its default first.
LOSSES: dict[str, tuple[str, ...]] = {
    "super-resolution": ("l1", "l2", "charbonnier", "psnr"),
    "classification": ("cross-entropy",),
    "detection": ("faster-rcnn",),
}
UNITS = {"super-resolution": "dB", "classification": "%", "detection": "%"}
"""The unit of each task's metrics."""

CHOICES: dict[str, tuple[str, ...]] = {
    "task": tuple(LOSSES),
    "precision": ("fp32", "bf16"),
    "optimiser.kind": ("adam", "adamw", "soap"),
    "schedule.kind": ("constant", "cosine", "linear"),
    "data.interpolation": ("bilinear", "bicubic", "lanczos"),
}
# Smallest values that make sense, by the dotted key.
MINIMA: dict[str, float] = {
    "steps": 1,
    "data.patch": 8,
    "data.batch": 1,
    "data.crop": 0,
    "data.size": 8,
    "data.test_size": 0,
    "checkpoint_every": 1,
    "validate_every": 1,
    "log_every": 1,
    "average": 0,
    "optimiser.learning_rate": 0,
    "optimiser.weight_decay": 0,
    "augment.mixup": 0,
    "augment.cutmix": 0,
}
SHARES = ("augment.flip", "augment.erasing", "augment.smoothing")
# Ranges, by the dotted key: the least and the most that are accepted.
RANGES = {"degrade.blur": (0.0, 5.0), "degrade.noise": (0.0, 100.0), "degrade.jpeg": (1.0, 100.0)}


def _convert(value: Any, kind: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UsageError(f"{key}: expected a table, got {value!r}")
        return _build(typing.cast(type, kind), value, f"{key}.")
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key}: expected a list, got {value!r}")
        inner = typing.get_args(kind)[0]
        return tuple(_convert(item, inner, key) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{key}: expected a table, got {value!r}")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{key}: expected {kind.__name__}, got {value!r}")
    return value


def _build(kind: type, table: dict[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.3)
            hint = f"did you mean {prefix}{near[0]!s}? " if near else ""
            raise UsageError(f"unknown key {prefix}{key}: {hint}known: {', '.join(sorted(hints))}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(table))
    if missing:
        raise UsageError(f"missing key {prefix}{missing[0]}")
    return kind(**{k: _convert(v, hints[k], f"{prefix}{k}") for k, v in table.items()})


def _dotted(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def parse_recipe(table: dict[str, Any]) -> Recipe:
    """A recipe from parsed TOML; raises ``UsageError`` that names the key and what it takes."""
    task = table.get("task")
    if isinstance(task, str) and task in LOSSES:
        table = {"loss": LOSSES[task][0], **table}
    recipe: Recipe = _build(Recipe, table)
    for key, choices in (CHOICES | {"loss": LOSSES.get(recipe.task, ())}).items():
        value = _dotted(recipe, key)
        if value not in choices:
            raise UsageError(f"{key} = {value!r}: known are {', '.join(choices)}")
    for key, least in MINIMA.items():
        value = _dotted(recipe, key)
        if value < least:
            raise UsageError(f"{key} = {value}: the least is {least}")
    if not recipe.average < 1:
        raise UsageError(f"average = {recipe.average}: it must be below 1")
    if any(not 0 < factor <= 1 for factor in recipe.data.rescale) or not recipe.data.rescale:
        raise UsageError(f"data.rescale = {list(recipe.data.rescale)}: factors in (0, 1]")
    if 2 * recipe.data.crop >= recipe.data.patch:
        raise UsageError(f"data.crop = {recipe.data.crop} leaves nothing of {recipe.data.patch}")
    if recipe.optimiser.amsgrad and recipe.optimiser.kind == "soap":
        raise UsageError("optimiser.amsgrad: it is for adam and adamw, not for soap")
    if recipe.task == "super-resolution":
        _check_super_resolution(recipe)
    elif recipe.degrade != DegradeSpec():
        raise UsageError("degrade: it is for the patches of super-resolution")
    elif recipe.teacher != TeacherSpec():
        raise UsageError("teacher: it is for the targets of super-resolution")
    if recipe.task == "classification":
        _check_classification(recipe)
    elif recipe.task == "detection":
        if recipe.augment != AugmentSpec(flip=recipe.augment.flip):
            raise UsageError("augment: detection knows flip alone")
        if not 0 <= recipe.augment.flip <= 1:
            raise UsageError(f"augment.flip = {recipe.augment.flip}: expected 0 to 1")
    elif recipe.augment != AugmentSpec():
        raise UsageError("augment: it is for classification; patches have their own symmetries")
    return recipe


def _check_super_resolution(recipe: Recipe) -> None:
    if not 0 < recipe.teacher.share <= 1:
        raise UsageError(f"teacher.share = {recipe.teacher.share}: expected above 0, to 1")
    if not 0 <= recipe.degrade.share <= 1:
        raise UsageError(f"degrade.share = {recipe.degrade.share}: expected 0 to 1")
    for key, (least, most) in RANGES.items():
        value = _dotted(recipe, key)
        if value and (len(value) != 2 or not least <= value[0] <= value[1] <= most):
            raise UsageError(
                f"{key} = {list(value)}: expected two numbers from {least:g} to {most:g}, the "
                "smaller first"
            )


def _check_classification(recipe: Recipe) -> None:
    for key in SHARES:
        if not 0 <= (value := _dotted(recipe, key)) <= 1:
            raise UsageError(f"{key} = {value}: expected 0 to 1")
    for key in ("augment.scale", "augment.ratio"):
        value = _dotted(recipe, key)
        most = 1.0 if key == "augment.scale" else math.inf
        if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
            raise UsageError(f"{key} = {list(value)}: expected two factors, the smaller first")
    if not 0 < recipe.data.test_crop <= 1:
        raise UsageError(f"data.test_crop = {recipe.data.test_crop}: expected 0 to 1")
    if (recipe.augment.mixup or recipe.augment.cutmix) and recipe.data.batch % 2:
        raise UsageError(f"data.batch = {recipe.data.batch}: mixup and cutmix need an even number")


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What two recipes differ in, a line each: the dotted key, the old value and the new."""
    found: list[str] = []

    def compare(a: Any, b: Any, key: str) -> None:
        if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
            for item in dataclasses.fields(a):
                name = f"{key}.{item.name}".lstrip(".")
                compare(getattr(a, item.name), getattr(b, item.name), name)
        elif a != b:
            found.append(f"{key} was {_short(a)}, now {_short(b)}")

    compare(old, new, "")
    return found


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 3:
        return f"{len(value)} ({', '.join(map(str, value[:3]))}, ...)"
    return repr(list(value) if isinstance(value, tuple) else value)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe by its shipped name (``detect/x`` is ``detect-x``) or from a file.

    Raises ``UnknownNameError`` for neither, ``UsageError`` for a file that is not a recipe.
    """
    path = Path(source)
    if path.suffix != ".toml":
        known = list_recipes()
        name = str(source).replace("/", "-")
        if name not in known:
            raise UnknownNameError("recipe", str(source), known)
        path = FOLDER / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML recipe: {error}") from error
    try:
        return parse_recipe(table)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as TOML, what has its default left out: whole, or not at all."""
    lines, tables = [], []
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            tables.append((item.name, value))
        elif item.default is dataclasses.MISSING or value != item.default:
            lines.append(f"{item.name} = {_toml(value)}")
    for name, table in tables:
        changed = [
            f"{item.name} = {_toml(getattr(table, item.name))}"
            for item in dataclasses.fields(table)
            if item.default_factory is not dataclasses.MISSING
            or item.default is dataclasses.MISSING
            or getattr(table, item.name) != item.default
        ]
        lines += ["", f"[{name}]", *changed] if changed else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    # JSON's texts, numbers and lists are TOML's too.
    return json.dumps(list(value) if isinstance(value, tuple) else value)
