"""Write the shipped weights' figures into README, docs/training.md and the tests' bars.

    python tools/refresh_tables.py

To be run from the project's folder after weights have changed; ``tests/test_docs_figures.py`` and
``tests/test_readme.py`` fail until then. A bar is the card's figure less 0.004 dB, cut to two
digits.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ship_weights import SETS

from collapsible.reproduce.sesr_published import published
from collapsible.weights import Card, list_cards

Scores = Mapping[str, tuple[float, float]]


def replace(path: str, pattern: str, new: Callable[[re.Match[str]], str]) -> None:
    file = Path(path)
    text, count = re.subn(pattern, new, file.read_text(encoding="utf-8"), flags=re.DOTALL)
    if count == 0:
        raise SystemExit(f"{path} has nothing like {pattern}")
    file.write_text(text, encoding="utf-8")


def less(figures: Mapping[str, Mapping[str, float]], key: str, wanted: Scores) -> str:
    return ", ".join(f"{figures[one][key] - wanted[one][0]:+.2f}" for one in SETS)


def row(card: Card) -> str:
    """A line of "What ships": float, int8, published, ours less published, the same by luma."""
    name = f"{card.architecture.replace('_', '-')} x{card.scale}"
    kinds = (card.metrics, card.metrics_int8)
    cells = [f"{kind[one]['psnr']:.3f}" for kind in kinds for one in SETS]
    rows = published(card.scale) if card.scale in (2, 4) else ()
    wanted = [found.scores for found in rows if found.model == card.architecture]
    if wanted:
        cells.append(", ".join(f"{wanted[0][one][0]:.2f}" for one in SETS))
        cells += [less(card.metrics, key, wanted[0]) for key in ("psnr", "psnr_luma")]
    else:
        cells += ["", "", ""]
    return f"| {name} | {' | '.join(cells)} |"


def bar(found: re.Match[str]) -> str:
    """A line of BARS with the figures of its card."""
    name, scale = found[1], int(found[2])
    (card,) = (c for c in list_cards() if (c.architecture, c.scale) == (name, scale))
    figures = (math.floor(100 * (card.metrics[one]["psnr"] - 0.004)) / 100 for one in SETS)
    listed = ", ".join(f'"{one}": {x:.2f}' for one, x in zip(SETS, figures, strict=True))
    return f'    ("{name}", {scale}): {{{listed}}},'


def main() -> None:
    command = [sys.executable, "-m", "collapsible", "models"]
    models = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")
    replace(
        "README.md",
        r"(<!-- models: begin[^\n]*\n).*?(\n<!-- models: end -->)",
        lambda found: f"{found[1]}```\n{models}\n```{found[2]}",
    )
    rows = {line.split("|")[1].strip(): line for line in map(row, list_cards())}
    replace(
        "docs/training.md",
        r"\n\| (sesr-[\w-]+ x\d) \|(?: \d\d\.\d{3} \|){6}[^\n]*",
        lambda found: f"\n{rows[found[1]]}",
    )
    replace("tests/test_shipped_weights.py", r'    \("(\w+)", (\d)\): \{"Set5"[^\n]*', bar)


if __name__ == "__main__":
    main()
