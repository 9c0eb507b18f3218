"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures and oracles that stays outside the project."""
    given = os.environ.get("COLLAPSIBLE_SHARED_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "sr").is_dir():
        pytest.skip(f"real pictures not found at {folder} (set COLLAPSIBLE_SHARED_DATA)")
    return folder
