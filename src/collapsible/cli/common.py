"""What every command shares: errors as one line, JSON, progress, the common options."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer

from collapsible.errors import CollapsibleError, UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def example(text: str) -> Callable[[Command], Command]:
    """Attach the example that the command's ``--help`` ends with."""

    def attach(command: Command) -> Command:
        command.example = f"Example: {text}"  # type: ignore[attr-defined]
        return command

    return attach


def complain(message: str) -> None:
    """One line on standard error, where progress and notes go too."""
    print(f"collapsible: {message}", file=sys.stderr)


def reporting(command: Command) -> Command:
    """Turn errors into one line and an exit code: 2 wrong use, 1 failed work, 130 interrupted."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except (typer.Exit, typer.Abort):
            raise
        except CollapsibleError as error:
            if options.get("debug"):
                traceback.print_exc()
            complain(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt:
            complain("interrupted; what was finished is kept")
            raise typer.Exit(128 + signal.SIGINT) from None
        except BrokenPipeError:
            # Whoever read our output has gone; the interpreter must not complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if options.get("debug"):
                raise
            kind = type(error).__name__
            complain(
                f"internal error: {kind}: {' '.join(str(error).split())} (--debug shows where)"
            )
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """Print an object, or a report that has been turned to JSON already, to standard output."""
    print(value if isinstance(value, str) else json.dumps(value, indent=2, default=str))


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error if that is a terminal, else a line for each milestone.

    Yields ``update(done=..., total=..., description=..., milestone=...)``; all are optional.
    """
    if not sys.stderr.isatty():

        def tell(milestone: str | None = None, **_: object) -> None:
            if milestone is not None:
                complain(milestone)

        yield tell
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def update(
            done: int | None = None,
            total: int | None = None,
            description: str | None = None,
            milestone: str | None = None,
        ) -> None:
            bar.update(task, completed=done, total=total, description=description)

        yield update
