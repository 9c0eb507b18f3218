"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stand_in import RADIUS, build_graph

from collapsible.upscaler.openvino_import import import_openvino

# Under nohup children inherit an ignored SIGINT, and no test could interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test that is the first to import it would start its telemetry, in a forked process.
with suppress(ImportError):
    import_openvino()

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
def cpu_flags() -> set[str]:
    """What the CPU can do, in Linux' words for x86."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        pytest.skip("asks Linux what an x86-64 CPU has")
    return set(cpuinfo.read_text().split("flags", 1)[1].split("\n", 1)[0].split())


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


class Cluster:
    """Ray's calls as ``farm`` makes them, in this process."""

    def __init__(self) -> None:
        self.workers = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **needs: object) -> Any:
        cluster = self

        class Method:
            def __init__(self, function: Any) -> None:
                self.remote = lambda *arguments: (function, arguments, object())

        class Actor:
            def __init__(self, kind: Any, setup: Any) -> None:
                cluster.workers += 1
                self.do = Method(kind(setup).do)

        class Maker:
            def __init__(self, kind: Any) -> None:
                self.remote = lambda setup: Actor(kind, setup)

        return Maker

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        function, arguments, _ = reference
        return function(*arguments)


@pytest.fixture
def cluster() -> Cluster:
    """Ray as ``farm`` uses it, with two CPUs and without processes."""
    return Cluster()
