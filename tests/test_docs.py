"""The recipe for engineers runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("litert_torch", reason="the edge extra is not installed")
    pytest.importorskip("ethosu", reason="the edge extra is not installed")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "engineers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    said = capsys.readouterr().out
    assert "106 -> 23" in said
    assert "ethos-u-vela" in said
    assert "nothing falls to the CPU" in said
    assert (tmp_path / "net.tflite").stat().st_size > 8_000_000
    assert (tmp_path / "net_vela.tflite").is_file()
