"""``tools/amx``: its step of training against torch's own, in fp32 and under autocast."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from collapsible.models.sesr import SESR

TOOL = Path(__file__).parents[2] / "tools" / "amx" / "train.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX (tools/amx)"
    ),
    pytest.mark.skipif(
        not (shutil.which("g++") and shutil.which("ninja")),
        reason="no g++ and ninja to build tools/amx with",
    ),
]


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        spec = importlib.util.spec_from_file_location("amx_train", TOOL)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of the compiler that it finds
            spec.loader.exec_module(module)
            yield module


def network(features: int, scale: int, **options) -> SESR:
    torch.manual_seed(1)
    made = SESR(11, features, scale=scale, block="narrow", **options).train()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return made


def step(net: SESR, forward, height: int, width: int):
    """The output and all gradients of one step on patches that are smooth, as pictures are."""
    torch.manual_seed(2)
    coarse = torch.rand(3, 1, height // 4, width // 4)
    x = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    target = torch.rand(3, 1, height * net.scale, width * net.scale)
    net.zero_grad()
    out = forward(net, x).float()
    (out - target).square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def autocast(net: SESR, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return SESR.forward(net, x)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("features", [32, 64])
@pytest.mark.parametrize(("scale", "height", "width"), [(2, 48, 48), (3, 20, 38), (4, 64, 64)])
def test_a_step_is_as_exact_as_under_autocast(tool, features, scale, height, width):
    net = network(features, scale)
    wanted, gradients = step(net, SESR.forward, height, width)
    got, own = step(net, tool.forward, height, width)
    other, theirs = step(net, autocast, height, width)
    assert error(got, wanted) <= 1.1 * error(other, wanted)
    assert set(own) == set(gradients)
    worst = max(error(theirs[name], gradients[name]) for name in gradients)
    for name, gradient in gradients.items():
        assert own[name].shape == gradient.shape
        assert error(own[name], gradient) <= 1.1 * worst, name


@pytest.mark.parametrize(
    ("features", "options"),
    [(16, {}), (32, {"act": "relu"}), (32, {"colour": "rgb"}), (32, {"long_residual": False})],
)
def test_other_networks_are_computed_as_always(tool, features, options):
    net = network(features, 2, **options)
    x = torch.rand(1, 3 if net.colour == "rgb" else 1, 12, 12)
    assert tool.forward(net, x).equal(SESR.forward(net, x))
    assert tool.forward(net.eval(), x).equal(SESR.forward(net, x))


def test_the_gradient_of_an_older_call_is_refused(tool):
    net, x = network(32, 2), torch.rand(1, 1, 12, 12)
    old = tool.forward(net, x)
    tool.forward(net, x)
    with pytest.raises(RuntimeError, match="older call"):
        old.sum().backward()
