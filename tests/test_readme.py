"""README says what is so: its commands parse, its files exist, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from collapsible.cli.app import app
from collapsible.imaging import picture_info
from collapsible.weights import list_cards

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    command.strip()
    for block in BLOCKS
    for line in block.splitlines()
    for command in line.split("&&")
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("collapsible ")])
def test_commands_of_the_readme_parse(command: str) -> None:
    """Every option and argument exists: the parser takes the line without running it."""
    name, *arguments = shlex.split(command)[1:]
    subcommands = get_command(app).commands  # type: ignore[attr-defined]
    assert name in subcommands
    with subcommands[name].make_context(name, arguments):
        pass


def test_the_first_command_has_its_picture() -> None:
    path = re.search(r"collapsible upscale (examples/\S+)", README)
    assert path
    info = picture_info(REPOSITORY / path[1])
    assert (info.width, info.height, info.format) == (300, 200, "JPEG")
    assert "CC0" in (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")


def test_the_extras_of_the_readme_exist() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r'pip install "\.\[(\w+)\]"', README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_links_of_the_documents_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_table_of_models_is_what_the_cards_say() -> None:
    """To renew it: put the output of ``collapsible models`` between the two marks, fenced."""
    block = re.search(r"<!-- models: begin.*?-->\n(.*?)<!-- models: end -->", README, re.DOTALL)
    assert block
    cards = list_cards()
    if not cards:
        assert "No weights are shipped yet." in block[1]
    for card in cards:
        row = re.search(rf"^{card.name} +x{card.scale} .*$", block[1], re.MULTILINE)
        assert row, f"{card.name} x{card.scale} is not in the README"
        for values in card.metrics.values():
            assert f"{values['psnr']:.2f}" in row[0].split()
