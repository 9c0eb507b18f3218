"""The plan: which blocks stay, which fuse, which turn dense: a TOML file that a person can edit."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.blocks.restructurable import FusedBottleneck, PreactivatedBottleneck
from collapsible.errors import UnknownNameError, UsageError
from collapsible.imaging import atomic_write
from collapsible.search.inverted import Bottleneck, require_bottlenecks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

CHANGED = {"fused": FusedBottleneck, "dense": PreactivatedBottleneck}
FORMS = ("keep", *CHANGED)


class PlanError(UsageError):
    """A plan that cannot be read, or that does not fit the network."""


@dataclass(frozen=True)
class PlannedBlock:
    """What becomes of one block.

    ``form`` is ``keep``, ``fused`` (its first two layers become one convolution, one activation
    stays inside) or ``dense`` (all of it becomes one). ``keep_ms``, ``fused_ms`` and ``dense_ms``
    are its latencies in each form on the plan's target (none where the target does not run that
    form, or the block has it already). ``importance`` is how much the loss rose when this block
    alone was dense at the search's end, ``fused_importance`` when it was fused (0 where nothing was
    searched), ``gates`` the learned coefficients of its inner activations (1 keeps).
    """

    name: str
    form: str
    shape: str
    keep_ms: float
    fused_ms: float | None = None
    dense_ms: float | None = None
    fused_importance: float = 0.0
    importance: float = 0.0
    gates: tuple[float, ...] = (1.0,)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that have a latency."""
        return tuple(self.milliseconds)

    @property
    def milliseconds(self) -> dict[str, float]:
        """The latency of each form that has one."""
        times = {"keep": self.keep_ms, "fused": self.fused_ms, "dense": self.dense_ms}
        return {form: ms for form, ms in times.items() if ms is not None}

    @property
    def ms(self) -> float:
        """The latency of the planned form; where it has none, of the kept one."""
        return self.milliseconds.get(self.form, self.keep_ms)


@dataclass(frozen=True)
class Plan:
    """Blocks in the network's order, and what their latencies are of and by.

    ``rest_ms`` is the rest of the network: the whole network's latency less its blocks'.
    ``input_size`` is (batch, channels, height, width), ``source`` how the latencies were got.
    """

    network: str
    target: str
    input_size: tuple[int, ...]
    source: str
    rest_ms: float
    budget_ms: float
    blocks: tuple[PlannedBlock, ...]

    @property
    def before_ms(self) -> float:
        """The sum with every block kept."""
        return self.rest_ms + sum(block.keep_ms for block in self.blocks)

    @property
    def after_ms(self) -> float:
        """The sum with every block as planned."""
        return self.rest_ms + sum(block.ms for block in self.blocks)

    @property
    def changed(self) -> dict[str, str]:
        """The form of each block that does not stay as it is, by name."""
        return {block.name: block.form for block in self.blocks if block.form != "keep"}

    @property
    def summary(self) -> str:
        """How many blocks change, as ``1 fused and 2 dense of 17 blocks``."""
        forms = list(self.changed.values())
        counts = [f"{forms.count(form)} {form}" for form in CHANGED if form in forms]
        return f"{' and '.join(counts) or 'none'} of {len(self.blocks)} blocks"

    def with_forms(self, forms: dict[str, str]) -> Plan:
        """The same plan with the given blocks' forms; raises ``UnknownNameError`` for others."""
        known = [block.name for block in self.blocks]
        for name in forms:
            if name not in known:
                raise UnknownNameError("block", name, known)
        blocks = tuple(dataclasses.replace(b, form=forms.get(b.name, b.form)) for b in self.blocks)
        plan = dataclasses.replace(self, blocks=blocks)
        _check(plan, "the plan")
        return plan

    def json(self) -> str:
        """The plan as a JSON object, with its sums."""
        sums = {"before_ms": self.before_ms, "after_ms": self.after_ms, "changed": self.changed}
        return json.dumps({**asdict(self), **sums}, indent=2)

    def table(self) -> str:
        """The plan as lines of text for people."""
        width = max(len("rest"), *(len(block.name) for block in self.blocks))
        shape = max(len(block.shape) for block in self.blocks)
        lines = [
            f"{'block':<{width}}  form   {'shape':<{shape}}  keep ms  fused ms  dense ms"
            "  rise fused  rise dense"
        ]
        for b in self.blocks:
            fused, dense = (
                "  no form" if ms is None else f"{ms:9.4f}" for ms in (b.fused_ms, b.dense_ms)
            )
            lines.append(
                f"{b.name:<{width}}  {b.form:<5}  {b.shape:<{shape}}  {b.keep_ms:7.4f} {fused} "
                f"{dense}  {b.fused_importance:10.5f}  {b.importance:10.5f}"
            )
        lines.append(f"{'rest':<{width}}         {'':<{shape}}  {self.rest_ms:7.4f}")
        lines.append(
            f"{self.summary}: {self.before_ms:.4f} ms -> {self.after_ms:.4f} ms, "
            f"budget {self.budget_ms:.4f} ms ({self.source})"
        )
        return "\n".join(lines)


_HEAD = """\
# What becomes of each block. Edit `form` ("keep", "fused" or "dense") and give the file to
# `collapsible search ran-e` again with --plan. Latencies are in milliseconds on the target;
# importance is the rise of the loss when that block alone was dense, fused_importance when fused.
"""


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as TOML: whole, or not at all."""
    lines = [_HEAD, f"# {plan.before_ms:.4f} ms with every block kept, {plan.after_ms:.4f} ms as"]
    lines[-1] += " planned when this was written"
    table = {key: value for key, value in asdict(plan).items() if key != "blocks"}
    lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    for block in plan.blocks:
        lines += ["", "[[blocks]]"]
        lines += [f"{k} = {_toml(v)}" for k, v in asdict(block).items() if v is not None]
    with atomic_write(Path(path)) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _toml(value: Any) -> str:
    # JSON's texts, numbers and lists are TOML's too, but for control characters it escapes alike.
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def read_plan(path: str | Path) -> Plan:
    """Read a plan; raises ``PlanError`` that names the key and what it takes."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read plan {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not a TOML plan: {error}") from error
    blocks = table.pop("blocks", [])
    if not isinstance(blocks, list) or not blocks or not all(isinstance(b, dict) for b in blocks):
        raise PlanError(f"{path}: [[blocks]] tables are needed, one a block")
    made = tuple(
        _record(PlannedBlock, block, f"{path}: block {number + 1}: ")
        for number, block in enumerate(blocks)
    )
    plan: Plan = _record(Plan, {**table, "blocks": made}, f"{path}: ")
    _check(plan, str(path))
    return plan


_KINDS = {"str": str, "float": float, "float | None": float}
_KINDS |= {"tuple[int, ...]": tuple, "tuple[float, ...]": tuple}


def _record(kind: Any, table: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise PlanError(f"{where}{UnknownNameError('key', key, fields)}")
        named = str(fields[key].type)
        wanted = _KINDS.get(named, object)
        numbers = value if isinstance(value, list | tuple) else [value]
        if wanted is float and type(value) is int:
            table = {**table, key: float(value)}
        elif wanted is tuple and isinstance(value, list):
            table = {**table, key: tuple(value)}
        elif not isinstance(value, wanted):
            raise PlanError(f"{where}{key} = {value!r}: expected {wanted.__name__}")
        if wanted in (float, tuple) and not all(
            type(one) in (int, float) and math.isfinite(one) for one in numbers
        ):
            raise PlanError(f"{where}{key} = {value!r}: expected finite numbers")
        if named == "tuple[int, ...]" and not all(type(one) is int for one in numbers):
            raise PlanError(f"{where}{key} = {value!r}: expected whole numbers")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in table:
            raise PlanError(f"{where}missing key {name}")
    return kind(**table)


def _check(plan: Plan, where: str) -> None:
    names = [block.name for block in plan.blocks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PlanError(f"{where}: block {twice} stands there twice")
    for block in plan.blocks:
        if block.form not in FORMS:
            raise PlanError(
                f"{where}: block {block.name}: {UnknownNameError('form', block.form, FORMS)}"
            )


def check_plan(plan: Plan, network: nn.Module) -> tuple[Bottleneck, ...]:
    """The network's blocks, in the plan's order.

    Raises ``PlanError`` for blocks that the network has not, or of another shape, or that the plan
    leaves out.
    """
    found = {block.name: block for block in require_bottlenecks(network)}
    for planned in plan.blocks:
        if planned.name not in found:
            raise PlanError(
                f"the plan is of another network: {UnknownNameError('block', planned.name, found)}"
            )
        shape = found[planned.name].shape
        if shape != planned.shape:
            raise PlanError(
                f"the plan is of another network: block {planned.name} is {shape}, "
                f"the plan says {planned.shape}"
            )
        if planned.form == "fused" and not found[planned.name].parts.fusible:
            raise PlanError(f"block {planned.name} ({shape}) is fused already: keep or dense")
    missing = [name for name in found if name not in {block.name for block in plan.blocks}]
    if missing:
        raise PlanError(f"the plan says nothing of block {missing[0]} ({len(missing)} missing)")
    return tuple(found[planned.name] for planned in plan.blocks)


def check_record(plan: Plan, record: Path) -> None:
    """Raise ``PlanError`` where the run in ``record``'s folder was begun with other forms."""
    if not record.is_file():
        return
    forms = [{block.name: block.form for block in one.blocks} for one in (read_plan(record), plan)]
    if forms[0] != forms[1]:
        raise PlanError(
            f"{record.parent} holds the fine-tuning of another plan (its {record.name}): remove "
            "that folder to begin anew, or give another one for the run"
        )


def apply_plan(network: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the network with the planned blocks in their fused or dense form, still wide.

    Everything else, weights included, is as it was. These forms have the block's own layers with
    one activation inside or in front; they are other functions, to be trained on, and ``collapse``
    folds them. Raises ``PlanError`` for a plan that does not fit.
    """
    result = copy.deepcopy(network)
    blocks = {block.name: block for block in check_plan(plan, result)}
    return replace_modules(
        result, {name: CHANGED[form](blocks[name].parts) for name, form in plan.changed.items()}
    )


def replace_modules(network: nn.Module, modules: dict[str, nn.Module]) -> nn.Module:
    """Put modules in the places of others, in place; the network itself where the name is empty."""
    if "" in modules:
        return modules[""].train(network.training)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        old = network.get_submodule(name)
        setattr(network.get_submodule(parent), child, module.train(old.training))
    return network
