"""Targets: names, files, and what a file that is not a target is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from collapsible.costs.targets import find_target, list_targets
from collapsible.errors import UnknownNameError, UsageError

CHIP = """
name = "my-npu"
source = "its data sheet"
kind = "roofline"
clock_hz = 5e8
macs_per_cycle = 64
sram_bytes = 65536
[roofline]
dram_bandwidth = 1e9
input_channels = 4
output_channels = 4
rows = 2
columns = 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "chip.toml"
    path.write_text(text)
    return path


def test_every_shipped_target_reads_and_says_its_source():
    names = list_targets()
    assert {
        "ethos-u55-128",
        "ethos-u65-512",
        "ethos-u85-2048",
        "npu-4tops",
        "host",
        "host-bf16",
    } <= set(names)
    assert len(names) == 14
    for name in names:
        target = find_target(name)
        assert target.name == name
        assert len(target.source) > 20
        assert target.title


@pytest.mark.parametrize("name", [name for name in list_targets() if name.startswith("ethos")])
def test_ethos_targets_agree_with_their_name_and_velas_own_file(name):
    """MACs a cycle are in the name; the clock is what Arm's file says."""
    configparser = pytest.importorskip("configparser")
    ethosu = pytest.importorskip("ethosu.vela")
    ini = configparser.ConfigParser()
    ini.read(Path(ethosu.__file__).parents[1] / "config_files" / "Arm" / "vela.ini")
    target = find_target(name)
    assert target.macs_per_cycle == int(name.rpartition("-")[2])
    assert target.vela is not None
    assert target.vela.accelerator == name
    assert target.clock_hz == float(ini[f"System_Config.{target.vela.system_config}"]["core_clock"])
    mode = ini[f"Memory_Mode.{target.vela.memory_mode}"]
    if "arena_cache_size" in mode:
        assert target.sram_bytes == int(mode["arena_cache_size"])


def test_four_tops():
    """4 TOP/s are 2 operations for each of 2048 MACs at 1 GHz, to the 2.4 % of the name."""
    target = find_target("npu-4tops")
    assert target.peak_macs == 2048e9
    assert 2 * target.peak_macs == pytest.approx(4e12, rel=0.03)


@pytest.mark.parametrize("name", ["ethos-u55-256", "ETHOS_U55_256", "ethos_u55-256"])
def test_dash_underscore_and_case_are_alike(name):
    assert find_target(name).name == "ethos-u55-256"


def test_alias():
    assert find_target("ethos_n78_4tops") == find_target("npu-4tops")


def test_unknown_target_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'ethos-u55-256'") as caught:
        find_target("ethos-u55-265")
    assert caught.value.nearest == "ethos-u55-256"


def test_a_file_is_a_target(tmp_path):
    target = find_target(str(write(tmp_path, CHIP)))
    assert (target.name, target.peak_macs) == ("my-npu", 32e9)
    assert target.roofline is not None
    assert target.roofline.deconvolution == "zero-stuffed"


def test_a_file_builds_on_another(tmp_path):
    text = """
base = "npu-4tops"
name = "slow-memory"
source = "a thought"
[roofline]
dram_bandwidth = 2e9
"""
    mine, base = find_target(str(write(tmp_path, text))), find_target("npu-4tops")
    assert mine.roofline is not None
    assert base.roofline is not None
    assert mine.roofline.dram_bandwidth == 2e9
    assert mine.roofline.rows == base.roofline.rows
    assert (mine.sram_bytes, mine.aliases) == (base.sram_bytes, ())
    assert (mine.name, mine.source) == ("slow-memory", "a thought")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("source", "sauce"), "missing key source"),
        (('source = "its data sheet"', 'source = ""'), "missing key source"),
        (("clock_hz", "clok_hz"), "unknown key clok_hz: did you mean clock_hz"),
        (("rows = 2", "row = 2"), "unknown key roofline.row: did you mean roofline.rows"),
        (("rows = 2\n", ""), "missing key roofline.rows"),
        (("clock_hz = 5e8\n", ""), "missing key clock_hz"),
        (("sram_bytes = 65536", 'sram_bytes = "64k"'), "sram_bytes: expected int"),
        (("sram_bytes = 65536", "sram_bytes = true"), "sram_bytes: expected int"),
        (("clock_hz = 5e8", "clock_hz = -1"), "above zero"),
        (("dram_bandwidth = 1e9", "dram_bandwidth = inf"), "above zero"),
        (("rows = 2", "rows = 3"), r"output_channels \* rows \* columns = 96"),
        (('"roofline"', '"roof"'), "known are vela, roofline, host"),
        (('"roofline"', '"host"'), "has no table"),
        (('"roofline"', '"vela"'), "needs table"),
        (("rows = 2", 'rows = 2\nalgorithm = "fft"'), "known are direct, winograd"),
        (("[roofline]", "[["), "is not a TOML target"),
        (("name =", 'base = "ethos-u55-999"\nname ='), "did you mean"),
    ],
)
def test_a_file_that_is_no_target(tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        find_target(str(write(tmp_path, CHIP.replace(*change))))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UsageError, match="cannot read target"):
        find_target(tmp_path / "none.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a TOML target"):
        find_target(path)


def test_other_things_are_refused():
    with pytest.raises(UsageError, match="a name, a TOML file or a Target"):
        find_target(256)  # type: ignore[arg-type]
