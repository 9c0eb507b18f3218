"""The report of a reproduced table: rows that say where their figures come from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from collapsible.errors import UsageError

Kind = Literal["measured", "estimated", "published"]
KINDS: tuple[Kind, ...] = ("measured", "estimated", "published")
Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A column of a printed section: which value, under which head, in which format.

    ``format`` is one of Python's format specifications for numbers, such as ``.2f``.
    """

    key: str
    title: str
    format: str = ""

    def cell(self, value: Value) -> str:
        if value is None:
            return "-"
        return value if isinstance(value, str) else format(value, self.format)


@dataclass(frozen=True)
class Row:
    """One line: a name, its values, whether they are measured, estimated or published, and by what.

    A count (of parameters, of MACs) is a measurement; ``source`` says what counted. A difference
    or ratio of ours and a published figure has our figure's kind, and its source names the other.
    Raises ``UsageError`` for another kind or no source.
    """

    name: str
    kind: Kind
    source: str
    values: Mapping[str, Value]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"row {self.name!r}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not self.source:
            raise UsageError(f"row {self.name!r} says nothing of its source")


@dataclass(frozen=True)
class Section:
    """Rows under one head. Values without a column are in the JSON alone."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def table(self) -> str:
        """The section as lines of text for people."""
        head = ["", *(column.title for column in self.columns), "", "source"]
        lines = [head]
        for row in self.rows:
            cells = [column.cell(row.values.get(column.key)) for column in self.columns]
            lines.append([row.name, *cells, row.kind, row.source])
        text = aligned(lines, left=(0, len(head) - 2, len(head) - 1))
        return "\n".join([self.title, *(f"  {line}" for line in text)])


@dataclass(frozen=True)
class Check:
    """A statement of the paper, or one needed for the table to be right, and whether it holds."""

    claim: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Reproduction:
    """A paper's table made anew: ``form`` is ``small`` or ``full``; ``paper`` says where it is.

    ``command`` is the line that made it, folders by their last name alone.
    """

    name: str
    title: str
    paper: str
    form: str
    sections: tuple[Section, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all sections."""
        return tuple(row for section in self.sections for row in section.rows)

    def row(self, name: str, kind: str | None = None) -> Row:
        """The first row of this name (and kind, if given); ``UsageError`` if there is none."""
        for row in self.rows:
            if row.name == name and kind in (None, row.kind):
                return row
        raise UsageError(f"{self.name} has no row {name!r}")

    def json(self) -> str:
        """The report as a JSON object; a number that is not finite is null."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False)

    def table(self) -> str:
        """The report as lines of text for people."""
        parts = [f"{self.name} ({self.form}): {self.title}\n{self.paper}"]
        parts += [section.table() for section in self.sections]
        if self.checks:
            lines = [
                f"  {'holds' if check.holds else 'FAILS'}  {check.claim}: {check.found}"
                for check in self.checks
            ]
            parts.append("\n".join(["Checks", *lines]))
        if self.notes:
            parts.append("\n".join(["Notes", *(f"  {note}" for note in self.notes)]))
        if self.command:
            parts.append(f"made by: {self.command}")
        return "\n\n".join(parts)


def aligned(rows: list[list[str]], left: tuple[int, ...]) -> list[str]:
    """Rows as columns; those whose numbers are in ``left`` begin together, others end together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
