"""``tools/renew_blocks.py``: blocks that do nothing give way to new ones."""

from __future__ import annotations

import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from collapsible.algebra import identity_kernel
from collapsible.evaluation import evaluate
from collapsible.models import create_model

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "renew_blocks.py"


@pytest.fixture(scope="module")
def tool():
    spec = util.spec_from_file_location("renew_blocks", TOOL)
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sesr(**options):
    torch.manual_seed(4)
    kernels = ((3, 3),) * 5
    return create_model("sesr_nas", kernels=kernels, features=8, block="narrow", **options).eval()


def features(network, x, count):
    y = network.first(x)
    for block in network.blocks[:count]:
        y = block(y)
    return y


@torch.no_grad()
def test_kept_blocks_give_what_they_gave_but_for_a_factor_a_channel(tool):
    network, new = sesr(), sesr()
    for block in network.blocks:
        block.act.weight.uniform_(-0.3, 0.9)
    low = torch.rand(3, 1, 24, 24)
    tool.renew(network, new, [1, 3], low)
    # Blocks 0, 2 and 4 of the new one are the old one's first three.
    for of_new, of_old in ((0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        got, old = features(new, low, of_new), features(network, low, of_old)
        factor = (got.abs().amax((0, 2, 3)) / old.abs().amax((0, 2, 3)))[:, None, None]
        assert torch.allclose(got, old * factor, atol=1e-5)
        span = got.amax((0, 2, 3)).clamp(min=0) - got.amin((0, 2, 3)).clamp(max=0)
        assert torch.allclose(span, torch.ones(8), atol=1e-5)


@torch.no_grad()
def test_blocks_that_did_nothing_are_not_missed(tool):
    network, new = sesr(long_residual=False), sesr(long_residual=False)
    for block in network.blocks[3:]:
        block.conv.weight.copy_(identity_kernel(8, (3, 3)))
        block.conv.bias.zero_()
        block.act.weight.fill_(1.0)
    network.last.weight.normal_()
    low = torch.rand(6, 1, 40, 40)
    high = network(low)
    tool.renew(network, new, [0, 3], low)
    tool.fit_last(new, low, high, 1e-13)
    assert torch.allclose(new(low)[..., 20:-20, 20:-20], high[..., 20:-20, 20:-20], atol=2e-3)


def test_a_shipped_network_without_a_block_still_beats_bicubic(tmp_path):
    file = tmp_path / "renewed.safetensors"
    options = ["--keep", "4", "--new", "2", "--data", str(ROOT / "examples"), "-o", str(file)]
    subprocess.run([sys.executable, str(TOOL), "sesr-m5", *options], check=True)
    ours = evaluate(file, ROOT / "examples", scale=2, architecture="sesr_m5").psnr
    assert ours > evaluate("bicubic", ROOT / "examples", scale=2).psnr + 1


def test_places_must_make_up_the_network(tmp_path):
    options = ["--keep", "4", "--new", "2", "3", "--data", str(ROOT), "-o", str(tmp_path / "x")]
    command = [sys.executable, str(TOOL), "sesr-m5", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert "must make 5 blocks" in done.stderr
    assert not (tmp_path / "x").exists()


@torch.no_grad()
def test_with_relu_new_blocks_change_nothing_but_in_the_first_place(tool, tmp_path):
    network, new = sesr(act="relu"), sesr(act="relu")
    low = torch.rand(2, 1, 24, 24)
    tool.renew(network, new, [1, 4], low)
    assert torch.equal(features(new, low, 2), features(new, low, 1))
    assert torch.equal(features(new, low, 5), features(new, low, 4))
    options = ["--keep", "4", "--new", "0", "--data", str(ROOT), "-o", str(tmp_path / "x")]
    command = [sys.executable, str(TOOL), "sesr-m5-relu", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert "ReLU" in done.stderr
