"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
from stand_in import RADIUS, build_graph

# Under nohup children inherit an ignored SIGINT, and no test could interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Training goes first: converters and compilers, once loaded, stay in the process for good."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures and oracles that stays outside the project."""
    given = os.environ.get("COLLAPSIBLE_SHARED_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "sr").is_dir():
        pytest.skip(f"real pictures not found at {folder} (set COLLAPSIBLE_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Graph files by scale, with cards beside them as the shipped ones have."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for scale in (2, 3):
        path = build_graph(folder / f"stand_in_x{scale}.onnx", scale)
        card = {
            "architecture": "stand_in",
            "scale": scale,
            "parameters": 1,
            "receptive_radius": RADIUS,
            "sha256": {"onnx": hashlib.sha256(path.read_bytes()).hexdigest()},
        }
        path.with_suffix(".json").write_text(json.dumps(card))
        files[scale] = path
    return files
