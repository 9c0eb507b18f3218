"""``collapsible reproduce``: a paper's table made anew, beside the published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress

if TYPE_CHECKING:
    from collapsible.reproduce import Table


@example("collapsible reproduce sesr/table-x2 --data pictures/sr -o table-x2.json")
def reproduce(
    table: Annotated[
        str | None, typer.Argument(help="PAPER/TABLE; none lists what there is.")
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--small", help="At full size, or as small as still shows it [default: small]."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the sets Set5, Set14, B100 (HR inside) and train."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result as JSON to this file.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where training is kept; asked again, it goes on from there.")
    ] = Path("runs"),
    steps: Annotated[
        int | None, typer.Option(help="Steps of each training run, instead of the form's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Training runs of each variant, instead of the form's.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a paper's table: published figures, ours, and the difference."""
    from dataclasses import asdict

    from collapsible.errors import UsageError
    from collapsible.imaging import atomic_write
    from collapsible.reproduce import Request, list_tables
    from collapsible.reproduce import reproduce as make

    if table is None:
        tables = list_tables()
        print_json([asdict(one) for one in tables]) if json else print(_listing(tables))
        return
    # Hours of work must not end at a mistyped folder.
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UsageError(f"-o {output}: give a file in a folder that exists")
    with progress(table) as update:
        request = Request(
            full=bool(full),
            data=data,
            runs=runs,
            steps=steps,
            seeds=seeds,
            on_progress=lambda done, total, what: update(done=done, total=total, description=what),
        )
        result = make(table, request)
    if output is not None:
        with atomic_write(output) as file:
            file.write((result.json() + "\n").encode())
    print_json(result.json()) if json else print(result.table())


def _listing(tables: tuple[Table, ...]) -> str:
    lines = []
    for one in tables:
        lines.append(f"{one.name:<20} {one.about}")
        if one.small:
            lines += [f"{'':<20}   --small: {one.small}", f"{'':<20}   --full:  {one.full}"]
    return "\n".join(lines)
