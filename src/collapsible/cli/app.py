"""The table of commands. To add one: write ``cli/NAME.py`` with a function NAME, list it here.

A command of two words (``defend evaluate``) is a member of a group, added at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from collapsible.cli import bench, defend, scale, search
from collapsible.cli.collapse import collapse
from collapsible.cli.common import reporting
from collapsible.cli.cost import cost
from collapsible.cli.detect import detect
from collapsible.cli.estimate import estimate
from collapsible.cli.evaluate import evaluate
from collapsible.cli.export import export
from collapsible.cli.models import models
from collapsible.cli.reproduce import reproduce
from collapsible.cli.train import train
from collapsible.cli.upscale import upscale

COMMANDS = (upscale, detect, models, evaluate, train, collapse, cost, estimate, export, reproduce)

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


def _add(commands: tuple[Callable[..., Any], ...], to: typer.Typer) -> None:
    for command in commands:
        to.command(epilog=getattr(command, "example", None))(reporting(command))


def _add_group(name: str, help: str, *commands: Callable[..., Any]) -> None:
    group = typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode=None)
    # A callback keeps the second word even where a group has one member only.
    group.callback()(lambda: None)
    _add(commands, group)
    app.add_typer(group)


_add(COMMANDS, app)
_add_group("defend", "What super-resolution before a classifier is worth.", defend.evaluate)
_add_group(
    "scale",
    "Scale a family of networks to a budget without training.",
    scale.ran_i,
    scale.inverted_bottleneck,
    scale.resnet,
    scale.sesr,
    scale.correlate,
)
_add_group(
    "search", "Search for networks that suit a target, by training.", search.ran_e, search.sesr
)
_add_group("bench", "Time networks against their peers on this machine.", bench.ran_i)
