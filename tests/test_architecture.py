"""The house rules of docs/architecture.md, enforced by reading every file's imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "collapsible"

# A room may import from rooms on lower floors only; everything stands on ``errors``.
FLOORS = {
    "errors": -1,
    "farm": 0,
    "weights": 0,
    "imaging": 0,
    "algebra": 0,
    "upscaler": 1,
    "blocks": 1,
    "folding": 2,
    "models": 3,
    "costs": 3,
    "deploy": 4,
    "evaluation": 5,
    "training": 6,
    "defence": 7,
    "search": 7,
    "reproduce": 8,
    "cli": 9,
}
# The front doors only pass on to rooms: lazily resolved public names, and ``python -m``.
DOORS = {"__init__", "__main__"}
TORCH_FREE = ("errors", "farm", "weights", "imaging", "upscaler")
LONGEST_FILE = 450
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def faults(path: Path, text: str) -> list[str]:
    """What one file does against the rules."""
    room, found = room_of(path), []
    tree = ast.parse(text)
    for line, name in imported_modules(tree):
        top, _, rest = name.partition(".")
        if name.startswith("."):
            found.append(f"line {line}: relative import; write the full name")
        elif top in ("torch", "torchvision", "safetensors") and room in TORCH_FREE:
            found.append(f"line {line}: {room} may not import {top}")
        elif top == "collapsible" and room not in DOORS:
            other = rest.partition(".")[0]
            if other not in FLOORS:
                found.append(f"line {line}: import from a room, not from {name}")
            elif other != room and FLOORS[other] >= FLOORS[room]:
                found.append(f"line {line}: {room} may not import {other}, which is not below it")
    if room != "cli":
        found += [
            f"line {node.lineno}: print outside cli"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
    length = text.count("\n")
    if length > LONGEST_FILE:
        found.append(f"{length} lines; the most is {LONGEST_FILE}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_house_rules(path: Path) -> None:
    assert not faults(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("imaging/a.py", "import torch"),
        ("upscaler/a.py", "def f():\n    from torch import nn"),
        ("imaging/a.py", "from collapsible.upscaler import upscale"),
        ("algebra/a.py", "from collapsible.imaging import psnr"),
        ("models/a.py", "import collapsible.cli"),
        ("models/a.py", "from collapsible import collapse"),
        ("models/a.py", "from . import sesr"),
        ("models/a.py", "print(1)"),
        ("models/a.py", "\n" * (LONGEST_FILE + 1)),
    ],
)
def test_the_rules_catch_what_they_forbid(file: str, text: str) -> None:
    assert faults(PACKAGE / file, text)


def test_every_room_has_its_floor_and_stands_in_the_document() -> None:
    rooms = {room_of(path) for path in FILES} - DOORS
    assert rooms == set(FLOORS)
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \| (ground|\d) \|", text, re.MULTILINE))
    numbers = {room: -1 if floor == "ground" else int(floor) for room, floor in stated.items()}
    assert numbers == FLOORS


def run_alone(code: str) -> str:
    """Standard output of Python code in a fresh interpreter, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_of(room: str) -> list[str]:
    names = []
    for path in FILES:
        if room_of(path) == room:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("room", [*TORCH_FREE, "cli"])
def test_torch_is_not_loaded_even_indirectly(room: str) -> None:
    code = f"""
import importlib, sys
for name in {modules_of(room)!r}:
    importlib.import_module(name)
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "lightning", "onnx"}}))
"""
    assert run_alone(code).strip() == "[]"


HEAVY = {"numpy", "PIL", "openvino", "onnxruntime", "torch", "onnx", "scipy", "rich"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"""
import sys, collapsible
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r}))
"""
    assert run_alone(code).strip() == "[]"


def test_help_loads_no_engine() -> None:
    code = f"""
import sys
sys.argv = ["collapsible", "--help"]
from collapsible.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", sorted({{name.partition(".")[0] for name in sys.modules}} & {HEAVY - {"rich"}!r}))
"""
    assert run_alone(code).splitlines()[-1] == "LOADED []"
