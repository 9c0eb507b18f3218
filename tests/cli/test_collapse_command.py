"""``collapsible collapse``: timm's networks, what is written, wrong use."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import timm
import torch
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.models import create_model


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["collapse", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_timm_network_with_its_own_weights_is_collapsed_and_written(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("repvgg_a0", pretrained=False).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    arguments = ("--weights", str(tmp_path / "w.pth"), "--input-size", "1,3,64,64", "--json")
    code, text, complaint = run("timm:repvgg_a0", *arguments, "-o", str(tmp_path / "narrow.pt2"))
    assert code == 0, complaint
    facts = json.loads(text)
    assert facts["layers_after"] == 23
    assert facts["max_error_float64"] < 1e-9
    pictures = torch.randn(1, 3, 64, 64)
    narrow = torch.export.load(tmp_path / "narrow.pt2").module()
    with torch.no_grad():
        expected = network(pictures)
        error = (narrow(pictures) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


def test_weights_of_our_own_are_written_and_load_again(tmp_path):
    code, text, _ = run("sesr-m5", "--scale", "2", "-o", str(tmp_path / "m5.safetensors"))
    assert code == 0
    assert "layers              14 -> 7" in text
    create_model("sesr-m5", scale=2, weights=tmp_path / "m5.safetensors")


class Code:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_pickle_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Code()}, tmp_path / "bad.pth")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"weight": Code()}))
    for name in ("bad.pth", "raw.pt"):
        code, text, complaint = run("timm:resnet18", "--weights", str(tmp_path / name))
        assert (code, text) == (1, "")
        assert "refused" in complaint
        assert complaint.count("\n") == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("timm:resnet19",), "did you mean 'resnet18'"),
        (("timm:resnet18", "-o", "net.onnx"), ".pt2"),
        (("timm:resnet18", "-o", "net.pt2"), "--input-size"),
        (("sesr-m5", "-o", "net.pkl"), ".safetensors"),
    ],
)
def test_wrong_use(arguments, said):
    code, text, complaint = run(*arguments)
    assert (code, text) == (2, "")
    assert said in complaint
    assert complaint.count("\n") == 1


def test_weights_that_are_not(tmp_path):
    (tmp_path / "text.pth").write_text("no weights here")
    code, _, complaint = run("timm:resnet18", "--weights", str(tmp_path / "text.pth"))
    assert code == 1
    assert "text.pth" in complaint
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    code, _, complaint = run("timm:resnet18", "--weights", str(tmp_path / "other.pth"))
    assert code == 1
    assert "does not fit ResNet" in complaint
