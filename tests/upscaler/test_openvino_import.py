"""OpenVINO is imported without telling anyone."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

# No process, no connection and no file in the home folder while OpenVINO is imported.
WATCH = """
import os, socket, sys, pathlib
started = []
os.register_at_fork(before=lambda: started.append("fork"))
socket.socket.connect = lambda *a: started.append("connect")
{how}
core = openvino.Core()
import time; time.sleep(0.5)
print(started, sorted(p.name for p in pathlib.Path.home().iterdir()))
print("openvino_telemetry" in sys.modules)
"""


def watch(how: str, home) -> list[str]:
    import os

    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(how=how)],
        capture_output=True,
        text=True,
        check=True,
        env={**{k: v for k, v in os.environ.items() if k != "CI"}, "HOME": str(home)},
    )
    return done.stdout.splitlines()


def test_nothing_is_started_or_sent(tmp_path):
    how = "from collapsible.upscaler.openvino_import import import_openvino\n"
    how += "openvino = import_openvino()\nassert import_openvino() is openvino"
    assert watch(how, tmp_path) == ["[] []", "False"]


def test_enlarging_a_picture_starts_and_sends_nothing(tmp_path):
    how = "import numpy, collapsible\n"
    how += "collapsible.upscale(numpy.zeros((20, 20, 3), numpy.uint8))\nimport openvino"
    assert watch(how, tmp_path) == ["[] []", "False"]
