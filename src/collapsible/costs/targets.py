"""Targets: the chips that a network is estimated for, each a TOML file with its source.

A target is of one of three kinds: ``vela`` (an Arm Ethos-U, by really compiling for it),
``roofline`` (an accelerator known by its compute, memory and bandwidth alone) and ``host`` (this
machine, by measuring).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapsible.errors import UnknownNameError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).parent / "targets"
KINDS = ("vela", "roofline", "host")
CHOICES = {
    "algorithm": ("direct", "winograd"),
    "deconvolution": ("zero-stuffed", "sub-pixel"),
    "depth_to_space": ("deconvolution", "addressing"),
}


@dataclass(frozen=True)
class VelaSettings:
    """How Vela is told about the chip: names in its own configuration file.

    ``config`` is that file, of the package ethos-u-vela or a path; ``arena_cache_size`` bytes
    override the memory mode's own where given.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    config: str = "Arm/vela.ini"
    arena_cache_size: int | None = None


@dataclass(frozen=True)
class RooflineSettings:
    """An accelerator in few numbers.

    In a cycle the array multiplies ``input_channels`` by ``output_channels`` at a patch of
    ``rows`` x ``columns`` places; their product is the target's multiply-accumulates a cycle, and
    what does not fill it leaves multipliers idle. ``algorithm`` is ``"direct"``, or
    ``"winograd"`` for convolutions of stride 1 where that takes fewer cycles.
    ``deconvolution`` is ``"zero-stuffed"`` (a convolution at the output's resolution) or
    ``"sub-pixel"`` (a convolution at the input's, with as many outputs as phases).
    ``depth_to_space`` is ``"addressing"`` (done while a map is written) or ``"deconvolution"`` (a
    2 x 2 kernel with ones and zeros, stride 2, as often as it takes).
    ``dram_bandwidth`` is in bytes a second, ``element_bytes`` the size of a number.
    ``overlap``: transfers and computing of a layer go on at once (the longer counts),
    rather than one after the other.
    """

    dram_bandwidth: float
    input_channels: int
    output_channels: int
    rows: int
    columns: int
    algorithm: str = "direct"
    deconvolution: str = "zero-stuffed"
    depth_to_space: str = "addressing"
    element_bytes: int = 1
    overlap: bool = True


@dataclass(frozen=True)
class HostSettings:
    """How this machine is measured: the engine, its precision, and the runs of one figure."""

    engine: str = "auto"
    precision: str = "fp32"
    warm_up: int = 3
    runs: int = 15


@dataclass(frozen=True)
class Target:
    """What a network is estimated for.

    ``kind`` is one of ``KINDS`` and says which of ``vela``, ``roofline`` and ``host`` is set.
    ``clock_hz`` cycles a second of ``macs_per_cycle`` int8 multiply-accumulates. ``sram_bytes``
    is the on-chip memory that maps must fit into, ``dram_bytes`` that off the chip where there is
    any for maps. ``assumptions`` are said with every estimate; ``source`` is where the figures
    come from.
    """

    name: str
    kind: str
    source: str
    title: str = ""
    clock_hz: float | None = None
    macs_per_cycle: int | None = None
    sram_bytes: int | None = None
    dram_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    vela: VelaSettings | None = None
    roofline: RooflineSettings | None = None
    host: HostSettings | None = None

    @property
    def peak_macs(self) -> float | None:
        """Multiply-accumulates a second with every multiplier busy."""
        if self.clock_hz is None or self.macs_per_cycle is None:
            return None
        return self.clock_hz * self.macs_per_cycle


def list_targets() -> list[str]:
    """Names of the targets that come with the package, by family and then by size."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=_by_size)


def _by_size(name: str) -> tuple[str, int]:
    family, _, size = name.rpartition("-")
    return (family, int(size)) if size.isdigit() else (name, 0)


def find_target(name: str | Target) -> Target:
    """A target by name (``-`` and ``_`` are alike), by alias, or from a TOML file.

    Raises ``UnknownNameError`` with the nearest name for none of these, ``UsageError`` for a file
    that is not a target.
    """
    if isinstance(name, Target):
        return name
    if not isinstance(name, str | Path):
        raise UsageError(f"target {name!r}: a name, a TOML file or a Target is accepted")
    text = str(name)
    if text.lower().endswith(".toml"):
        return _read(Path(text))
    key = text.lower().replace("_", "-")
    if key in list_targets():
        return _read(FOLDER / f"{key}.toml")
    aliases = {
        alias: stem
        for stem in list_targets()
        for alias in _load(FOLDER / f"{stem}.toml").get("aliases", ())
    }
    if key in aliases:
        return _read(FOLDER / f"{aliases[key]}.toml")
    raise UnknownNameError("target", text, [*list_targets(), *aliases])


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read target {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML target: {error}") from error


def _read(path: Path) -> Target:
    table = _load(path)
    try:
        return parse_target(table)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from error


def parse_target(table: dict[str, Any]) -> Target:
    """A target from parsed TOML. ``base`` names one whose values stand where none are given.

    A target built on another needs a name and a source of its own.
    Raises ``UsageError`` that names the key and what it takes.
    """
    table = dict(table)
    base = table.pop("base", None)
    missing = next((key for key in ("name", "source") if not table.get(key)), None)
    if missing:
        raise UsageError(f"missing key {missing}: every target says its name and its source")
    if base is None:
        return _checked(_build(Target, table))
    if base not in list_targets():
        raise UnknownNameError("base", str(base), list_targets())
    return _changed(find_target(base), {"aliases": [], **table})


def assume(target: Target | str, **changes: Any) -> Target:
    """The same target under other assumptions.

    ``changes`` are fields of ``Target``, or of its ``vela``, ``roofline`` or ``host`` settings
    (such as ``dram_bandwidth``); None leaves a value as it is.
    Raises ``UsageError`` for a field that the target has not, and for a value it does not take.
    """
    target = find_target(target)
    fields = {field.name for field in dataclasses.fields(Target)}
    given = {key: value for key, value in changes.items() if value is not None}
    whole = {key: value for key, value in given.items() if key in fields}
    part = {key: value for key, value in given.items() if key not in whole}
    return _changed(target, {**whole, target.kind: part} if part else whole)


def _changed(target: Target, table: dict[str, Any]) -> Target:
    given = _without_none(dataclasses.asdict(target))
    for key, value in table.items():
        old = given.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = {**old, **value}
        given[key] = value
    return _checked(_build(Target, given))


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _build(kind: type, table: dict[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.3)
            hint = f"did you mean {prefix}{near[0]}? " if near else ""
            raise UsageError(f"unknown key {prefix}{key}: {hint}known: {', '.join(sorted(hints))}")
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in table:
            raise UsageError(f"missing key {prefix}{field.name}")
    return kind(**{k: _convert(v, hints[k], f"{prefix}{k}") for k, v in table.items()})


def _convert(value: Any, hint: Any, key: str) -> Any:
    """A TOML value as its field's type; no silent conversion but of whole numbers to floats."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{key}: expected a list of texts, got {value!r}")
        return tuple(value)
    kind = options[0] if options else hint
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UsageError(f"{key}: expected a table, got {value!r}")
        return _build(typing.cast(type, kind), value, f"{key}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{key}: expected {kind.__name__}, got {value!r}")
    if kind in (int, float) and not 0 < value < math.inf:
        raise UsageError(f"{key} = {value}: it must be above zero")
    return value


def _checked(target: Target) -> Target:
    if target.kind not in KINDS:
        raise UsageError(f"kind = {target.kind!r}: known are {', '.join(KINDS)}")
    for kind in KINDS:
        if (getattr(target, kind) is not None) != (kind == target.kind):
            wanted = "needs" if kind == target.kind else "has no"
            raise UsageError(f"a target of kind {target.kind!r} {wanted} table [{kind}]")
    needed = () if target.kind == "host" else ("clock_hz", "macs_per_cycle", "sram_bytes")
    for key in needed:
        if getattr(target, key) is None:
            raise UsageError(f"missing key {key}: a target of kind {target.kind!r} needs it")
    array = target.roofline
    if array is not None:
        product = array.input_channels * array.output_channels * array.rows * array.columns
        if product != target.macs_per_cycle:
            raise UsageError(
                f"macs_per_cycle = {target.macs_per_cycle}, but roofline.input_channels * "
                f"output_channels * rows * columns = {product}"
            )
        for key, known in CHOICES.items():
            if getattr(array, key) not in known:
                raise UsageError(
                    f"roofline.{key} = {getattr(array, key)!r}: known are {', '.join(known)}"
                )
    return target
