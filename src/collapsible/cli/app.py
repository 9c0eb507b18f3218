"""The table of commands. To add one: write ``cli/NAME.py`` with a function NAME, list it here."""

from __future__ import annotations

from typing import Annotated

import typer

from collapsible.cli.collapse import collapse
from collapsible.cli.common import reporting
from collapsible.cli.cost import cost
from collapsible.cli.evaluate import evaluate
from collapsible.cli.models import models
from collapsible.cli.train import train
from collapsible.cli.upscale import upscale

COMMANDS = (upscale, models, evaluate, train, collapse, cost)

app = typer.Typer(
    name="collapsible",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"collapsible {version('collapsible')}")
        raise typer.Exit


@app.callback()
def collapsible(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Train wide, deploy narrow: enlarge pictures with tiny networks, and train your own."""


for command in COMMANDS:
    app.command(epilog=getattr(command, "example", None))(reporting(command))
