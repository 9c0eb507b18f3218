"""Which tables there are, and how one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from collapsible.errors import UnknownNameError, UsageError, require_packages
from collapsible.reproduce.report import Reproduction


def _silent(done: int, total: int, what: str) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """What a table is made from.

    ``data`` is a folder with the test sets (``Set5``, ``Set14``, ``B100``, each with ``HR`` inside)
    and the training pictures (``train``). ``runs`` is where training leaves its checkpoints;
    asked again, it goes on from there. ``steps`` and ``seeds`` change how long and how often a
    table that trains does so. ``on_progress(done, total, what)`` is called as the work goes on.
    """

    full: bool = False
    data: Path | None = None
    runs: Path = Path("runs")
    steps: int | None = None
    seeds: int | None = None
    on_progress: Callable[[int, int, str], None] = _silent

    @property
    def form(self) -> str:
        return "full" if self.full else "small"

    def command(self, table: str) -> str:
        """The command line of this request; a folder by its last name, as others have their own."""
        words = ["collapsible", "reproduce", table, *(["--full"] if self.full else [])]
        if self.data is not None:
            words += ["--data", self.data.resolve().name]
        for option, value in (("--steps", self.steps), ("--seeds", self.seeds)):
            words += [option, str(value)] if value is not None else []
        return " ".join(words)


@dataclass(frozen=True)
class Table:
    """A table's name and one line about it, what its two forms are, and where it is made.

    ``place`` is ``module:function`` below this room; the module is imported when the table is made,
    so that listing loads nothing. A table whose forms are one has None for ``small``.
    """

    name: str
    about: str
    place: str
    full: str
    small: str | None = None
    trains: bool = False
    packages: tuple[str, ...] = ("torch", "safetensors")
    extra: str = "train"


TABLES: tuple[Table, ...] = (
    Table(
        "sesr/table-x2",
        "PSNR, weights and MACs at x2: the paper's networks and ours",
        "sesr_tables:table_x2",
        full="--data measures every shipped network; without, the weights' cards are read",
    ),
    Table(
        "sesr/table-x4",
        "PSNR, weights and MACs at x4: the paper's networks and ours",
        "sesr_tables:table_x4",
        full="--data measures every shipped network; without, the weights' cards are read",
    ),
    Table(
        "sesr/training-cost",
        "MACs, time and memory of a training step, expanded and collapsed",
        "sesr_training_cost:training_cost",
        full="batch 32 of 64x64, three rounds of five steps (minutes)",
        small="MACs at the same size; time and memory for a batch of 2, one round",
    ),
    Table(
        "sesr/updates",
        "the theory's update rules against autograd, and gradients through depth",
        "sesr_updates:updates",
        full="100 draws, up to 64 blocks deep",
        small="10 draws, up to 16 blocks deep",
    ),
    Table(
        "sesr/ablation",
        "plain, RepVGG-like, ExpandNet-like and SESR blocks, and each residual, over seeds",
        "sesr_ablation:ablation",
        full="M11, 26,000 steps, three seeds, all pictures of train (days on a CPU; resumes)",
        small="M3, 60 steps, two seeds, the 91 small pictures of train, or drawn ones (a minute)",
        trains=True,
        packages=("torch", "safetensors", "lightning", "tensorboard"),
    ),
    Table(
        "sesr/npu",
        "FSRCNN and SESR on NPUs: traffic, latency, frames; what the sixfold claim hangs on",
        "sesr_npu:npu",
        full="the roofline, and Ethos-U65 and U85 compiled by Vela (needs the edge extra; long)",
        small="the 4-TOP/s roofline",
    ),
    Table(
        "defence/robustness",
        "right answers behind tiny and large super-resolution, under attacks without and with it",
        "defence_robustness:robustness",
        full="three classifiers, twelve defences, four budgets (an hour; goes on if killed)",
        small="ten pictures of 64 pixels, four defences, one budget (a minute)",
        packages=("torch", "torchvision", "timm", "safetensors", "pywt"),
        extra="defence",
    ),
    Table(
        "ran/search",
        "the RAN-e search: base, search, int8 by LiteRT; beside other choices of the same network",
        "ran_search:search",
        full="--data imagenette160: three bases and searches, other arms, Vela (hours on a CPU); "
        "--steps N: bases of N steps, and fewer arms",
        small="drawn pictures (or --data) of 32x32, 40 steps, the 4-TOP/s roofline (minutes)",
        trains=True,
        packages=(
            *("torch", "safetensors", "lightning", "tensorboard", "timm", "torchvision"),
            *("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        ),
        extra="edge",
    ),
    Table(
        "ran/table-e",
        "RAN-e, EfficientNet-Lite0 and others on Ethos-U: frames over Lite0's; what they hang on",
        "ran_table_e:table_e",
        full="nine networks on five Ethos-U, other memories and less SRAM (many minutes)",
        small="three networks on one Ethos-U (minutes; what was compiled is kept)",
        packages=("torch", "safetensors", "timm", "litert_torch", "ai_edge_quantizer", "ethosu"),
        extra="edge",
    ),
    Table(
        "ran/table-i",
        "RAN-i beside ConvNeXt: counts, published accuracy, measured frames a second",
        "ran_table_i:table_i",
        full="six networks at 224 pixels, torch and OpenVINO, batch 1 and 8 (many minutes)",
        small="counts of all six; one pair timed on torch at 64 pixels",
        packages=("torch", "timm"),
    ),
    Table(
        "ran/small-scale",
        "rules of scaling against a ConvNeXt base: trained alike, accuracy and frames a second",
        "ran_small_scale:small_scale",
        full="--data imagenette160 or CIFAR-10: nine networks, three seeds (hours; resumes)",
        small="drawn pictures of 32x32, three networks, six steps (a minute)",
        trains=True,
        packages=("torch", "torchvision", "safetensors", "lightning", "tensorboard", "timm"),
    ),
    Table(
        "ran/correlation",
        "training-free proxies against the accuracy of small trained networks",
        "ran_correlation:correlation",
        full="the shipped results of trained networks",
        packages=("torch", "timm", "scipy"),
        extra="dev",
    ),
    Table(
        "ran/detection",
        "Faster R-CNN behind RAN-i and a ConvNeXt: average precision, frames a second",
        "ran_detection:detection",
        full="--data BCCD, both forms, from classifiers in --runs (hours on a CPU; resumes)",
        small="drawn discs of 96 pixels, four steps, the pyramid form (a minute)",
        trains=True,
        packages=(
            *("torch", "torchvision", "safetensors", "lightning", "tensorboard", "timm"),
            "faster_coco_eval",
        ),
        extra="detect",
    ),
    Table(
        "defence/npu",
        "SESR or FSRCNN before MobileNetV2 on Ethos-U: stages, end to end; the threefold claim",
        "defence_npu:npu",
        full="112 and 299 pixels, seven networks, three targets (many minutes)",
        small="112 pixels, FSRCNN and SESR-M2, one target (minutes; what was compiled is kept)",
        packages=("torch", "safetensors", "timm", "litert_torch", "ai_edge_quantizer", "ethosu"),
        extra="edge",
    ),
)


def list_tables() -> tuple[Table, ...]:
    """All tables, in the order of the papers."""
    return TABLES


def find_table(name: str) -> Table:
    """A table by name; raises ``UnknownNameError`` with the nearest one."""
    wanted = name.strip().lower().replace("_", "-")
    for table in TABLES:
        if table.name == wanted:
            return table
    raise UnknownNameError("table", name, (table.name for table in TABLES))


def reproduce(name: str, request: Request | None = None) -> Reproduction:
    """Make a paper's table anew.

    Raises ``UnknownNameError`` for an unknown table, ``UsageError`` for options that it does not
    have or data that is not there, ``MissingExtraError`` where a package is missing.
    """
    table, request = find_table(name), request or Request()
    if request.data is not None and not request.data.is_dir():
        raise UsageError(f"no folder of data at {request.data}")
    for option, value in (("steps", request.steps), ("seeds", request.seeds)):
        if value is None:
            continue
        if not table.trains:
            raise UsageError(f"{table.name} trains nothing, so {option} means nothing to it")
        if value < 1:
            raise UsageError(f"{option}={value}: the least is 1")
    require_packages(f"reproduce {table.name}", *table.packages, extra=table.extra)
    module, _, function = table.place.partition(":")
    result = getattr(import_module(f"collapsible.reproduce.{module}"), function)(request)
    return replace(result, command=request.command(table.name))
