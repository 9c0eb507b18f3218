"""Does a tiny super-resolution network defend as well as a large one (arXiv 2112.14340)?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from collapsible.defence import (
    ClassifierSpec,
    DefenceReport,
    Plan,
    evaluate_defence,
    read_attack,
    read_classifier,
)
from collapsible.defence.integers import INT8
from collapsible.errors import UsageError, require_packages
from collapsible.reproduce.defence_sections import (
    FIRST,
    adaptive_section,
    grey_box_section,
    integer_check,
    integer_section,
    transfer_section,
    within_check,
)
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Reproduction, Section

PAPER = "Super-resolution as a defence (arXiv 2112.14340): the abstract's claim"
LARGE = "edsr-base-rgb"
TINY = (
    "sesr-m2-rgb",
    "sesr-m3-rgb",
    "sesr-m5-rgb",
    "sesr-m7-rgb",
    "sesr-m11-rgb",
    "sesr-xl-rgb",
)
OTHERS = ("nearest", "bicubic", "fsrcnn-rgb", "sesr-m5")
GREY_BOX = ("fgsm", "pgd:steps=10", "di2-fgsm:steps=10", "apgd-ce:steps=10")
ADAPTIVE = ("pgd:steps=10", "apgd-ce:steps=10", "square:queries=100")
BUDGET = 8 / 255
# MobileNetV2's input as TensorFlow takes it: see the data's README.
MOBILENET = ClassifierSpec(
    "mobilenet-v2",
    "torchvision:mobilenet_v2",
    "weights/mobilenet_v2_imagenet.safetensors",
    mean=(128 / 255,) * 3,
    std=(128 / 255,) * 3,
    padding="same",
)
TRAINED = ("classify-imagenette-resnet", "classify-imagenette-ran-i")
# What int8 needs beside torch.
EDGE = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")


@dataclass(frozen=True)
class Size:
    """How much is measured: pictures of each part, their side in pixels, budgets, attacks.

    ``nette`` are at ``BUDGET``, ``sweep`` at the other budgets; ``others`` through classifiers
    trained here, ``transfer`` from one classifier to another, ``integers`` through networks in
    int8, ``adaptive`` attacked through the defences of ``through``.
    """

    nette: int
    sweep: int
    imagenet: int
    others: int
    transfer: int
    integers: int
    adaptive: int
    budgets: tuple[float, ...]
    side: int
    tiny: tuple[str, ...]
    baselines: tuple[str, ...]
    large: str
    grey_box: tuple[str, ...]
    attacks: tuple[str, ...]
    through: tuple[str, ...]


FULL = Size(
    nette=120,
    sweep=64,
    imagenet=40,
    others=40,
    transfer=24,
    integers=40,
    adaptive=16,
    budgets=(2 / 255, 4 / 255, BUDGET, 16 / 255),
    side=128,
    tiny=TINY,
    baselines=OTHERS,
    large=LARGE,
    grey_box=GREY_BOX,
    attacks=ADAPTIVE,
    through=("bicubic", "sesr-m2-rgb", "sesr-m5-rgb"),
)
SMALL = replace(
    FULL,
    nette=10,
    sweep=0,
    imagenet=0,
    others=0,
    transfer=0,
    integers=0,
    adaptive=4,
    budgets=(BUDGET,),
    side=64,
    tiny=("sesr-m2-rgb", "sesr-m5-rgb"),
    baselines=("bicubic",),
    large="sesr-xl-rgb",
    grey_box=("fgsm", "pgd:steps=3"),
    attacks=("pgd:steps=3",),
    through=("sesr-m2-rgb",),
)


def robustness(request: Request) -> Reproduction:
    """Right answers behind small and large networks, under attacks made without and with them.

    ``request.data`` holds ``cls/imagenette160/val``, ``cls/imagenet100`` and ``cls/weights``;
    classifiers trained by the recipes ``TRAINED`` are taken from their folders below
    ``request.runs`` where they are. Results are kept there too, and a killed run goes on.
    Raises ``UsageError`` for data that is not there, and what ``evaluate_defence`` does.
    """
    size = FULL if request.full else SMALL
    if request.data is None:
        raise UsageError("defence/robustness needs pictures and weights: --data FOLDER with cls")
    cls = request.data / "cls"
    mobilenet = replace(MOBILENET, weights=str(cls / MOBILENET.weights))
    needed = [cls / "imagenette160" / "val", Path(mobilenet.weights)]
    needed += [cls / "imagenet100"] * bool(size.imagenet)
    for path in needed:
        if not path.exists():
            raise UsageError(f"defence/robustness needs {path}, which is not there")
    if size.integers:
        require_packages("defence/robustness --full", *EDGE, extra="edge")
    files = [request.runs / name / "weights.safetensors" for name in TRAINED]
    trained = tuple(
        replace(read_classifier(str(path)), name=path.parent.name.removeprefix("classify-"))
        for path in files
        if path.is_file()
    )
    base = Plan(
        data=str(cls / "imagenette160" / "val"),
        classifiers=(mobilenet,),
        defences=tuple(FIRST + name for name in (*size.baselines, *size.tiny, size.large)),
        attacks=tuple(map(read_attack, size.grey_box)),
        epsilons=(BUDGET,),
        threats=("grey-box", "adaptive"),
        size=size.side,
        crop=size.side / 160,
        limit=size.nette,
        calibration=str(cls / "imagenette160" / "train"),
    )
    reports = _evaluate(_parts(base, size, mobilenet, trained, cls), request)
    return _report(reports, size, request, [spec.name for spec in trained])


def _parts(
    base: Plan,
    size: Size,
    mobilenet: ClassifierSpec,
    trained: tuple[ClassifierSpec, ...],
    cls: Path,
) -> dict[str, Plan]:
    # Grey-box attacks are made on the bare classifier alone: no attack goes through a defence.
    grey = replace(base, threats=("grey-box",))
    few = tuple(FIRST + name for name in size.through)
    fast = grey.attacks[:2]
    parts: dict[str, Plan] = {"imagenette": grey}
    if size.sweep:
        rest = tuple(epsilon for epsilon in size.budgets if epsilon != BUDGET)
        parts["other budgets"] = replace(grey, epsilons=rest, limit=size.sweep)
    if size.imagenet:
        parts["imagenet100"] = replace(
            grey, data=str(cls / "imagenet100"), crop=0.875, limit=size.imagenet
        )
    if size.others and trained:
        parts["trained here"] = replace(grey, classifiers=trained, attacks=fast, limit=size.others)
    if size.transfer and trained:
        parts["transfer"] = replace(
            base,
            classifiers=(mobilenet, *trained),
            defences=few,
            attacks=base.attacks[1:3],
            threats=("transfer",),
            bare_only=True,
            limit=size.transfer,
        )
    through = replace(
        base, defences=few, attacks=tuple(map(read_attack, size.attacks)), limit=size.adaptive
    )
    parts["adaptive"] = through
    if size.integers:
        integers = replace(mobilenet, name=f"{mobilenet.name}, {INT8}", precision=INT8)
        networks = [name for name in few if name in {FIRST + n for n in size.tiny}]
        in_int8 = tuple(f"{name}:{INT8}" for name in networks)
        parts[INT8] = replace(
            base,
            classifiers=(mobilenet, integers),
            defences=(*few, *in_int8),
            attacks=(*fast, *base.attacks[3:4]),
            threats=("grey-box", "transfer"),
            bare_only=True,
            limit=size.integers,
        )
        parts[f"adaptive, {INT8}"] = replace(through, classifiers=(integers,), defences=in_int8[:1])
    return parts


def _evaluate(parts: dict[str, Plan], request: Request) -> dict[str, DefenceReport]:
    found = {}
    for number, (name, plan) in enumerate(parts.items()):

        def tell(done: int, total: int, title: str, part: int = number) -> None:
            request.on_progress(
                part * 1000 + done * 1000 // max(total, 1), len(parts) * 1000, title
            )

        folder = name.replace(",", "").replace(" ", "-")
        found[name] = evaluate_defence(
            plan, request.runs / "defence-robustness" / request.form / folder, on_job=tell
        )
    return found


def _report(
    reports: dict[str, DefenceReport], size: Size, request: Request, trained: list[str]
) -> Reproduction:
    sections: list[Section] = []
    checks: list[Check] = []
    for part, report in reports.items():
        names = [spec.name for spec in report.plan.classifiers]
        if part == "transfer":
            sections += [transfer_section(report, name, BUDGET) for name in names]
        elif part == INT8:
            sections.append(integer_section(report, names[0], names[1], BUDGET))
            checks.append(integer_check(report, names[0], names[1], BUDGET))
        elif part.startswith("adaptive"):
            sections += [adaptive_section(report, name, BUDGET) for name in names]
        else:
            for name in names:
                for epsilon in report.plan.epsilons:
                    title = f"{part}, {name}"
                    sections.append(grey_box_section(report, name, epsilon, title, size.large))
                    checks.append(within_check(report, name, epsilon, title, size.tiny, size.large))
    notes = [
        "grey-box: made on the bare classifier, which sees the picture at its own size; a picture "
        "counts as right only if it stays right under every attack of the column's kind",
        f"pictures of {size.side} pixels, enlarged to {2 * size.side}; {FIRST[:-1]} goes first",
        "intervals are of 95 %; the difference to the large network is of the same pictures "
        "(bootstrap): the check is of its mean alone",
    ]
    if INT8 in reports:
        notes.append(
            "int8: super-resolution and classifier as int8 LiteRT files, run by its interpreter, "
            "calibrated with 16 other pictures; gradients, where an attack needs them, are fp32's"
        )
    if not trained:
        notes.append(f"no classifier trained here was found below {request.runs}")
    return Reproduction(
        "defence/robustness",
        "robust accuracy behind SESR and behind a network at least ten times SESR-XL's size",
        PAPER,
        request.form,
        tuple(sections),
        tuple(checks),
        tuple(notes),
        {"pictures": {name: report.pictures for name, report in reports.items()}},
    )
