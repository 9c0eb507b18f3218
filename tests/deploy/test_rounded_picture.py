"""The trainable int8 picture graph computes what ONNX Runtime makes of the written one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deploy.test_quantise import scene
from exact_onnx import run_exactly

from collapsible.deploy import build_picture_graph
from collapsible.deploy.quantise import choose_codes
from collapsible.deploy.rounded_picture import RoundedPicture
from collapsible.models import create_model


def run(form: RoundedPicture, picture: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))
    with torch.no_grad():
        y = form(x)[0].permute(1, 2, 0).numpy() * 255
    return np.clip(np.rint(y), 0, 255)


@pytest.mark.parametrize(
    ("name", "scale", "options"),
    [
        ("sesr_m5", 2, {}),
        ("sesr_m5_relu", 3, {}),
        ("sesr_m2", 2, {"colour": "rgb", "long_residual": False}),
        ("sesr_m2", 2, {"input_residual": False, "colour": "rgb"}),
        ("fsrcnn", 2, {}),
    ],
)
def test_it_computes_what_the_written_graph_does(name, scale, options):
    torch.manual_seed(2)
    shipped = name.startswith("sesr_m5")
    network = create_model(name, scale=scale, weights="default" if shipped else None, **options)
    form = RoundedPicture(choose_codes(network, [scene(seed=seed) for seed in range(3)]))
    picture = scene(40, 33, seed=7)
    got, wanted = run(form, picture), run_exactly(form.layers().graph(name), picture)
    # Sums are in another order, and a value half-way between two codes falls to either side.
    error = np.abs(got - wanted.astype(float))
    assert error.max() <= 3
    assert (error > 0).mean() < 0.02
    assert wanted.std() > 5 or not shipped


def test_without_rounding_it_is_the_float_graph():
    network = create_model("sesr_m5", scale=2, weights="default")
    form = RoundedPicture(choose_codes(network, [scene()]))
    form.rounding = False
    form.requires_grad_(False)  # as a teacher is
    picture = scene(40, 33, seed=7)
    wanted = run_exactly(build_picture_graph(network, name="m5"), picture)
    error = np.abs(run(form, picture) - wanted.astype(float))
    assert error.max() <= 1
    assert (error > 0).mean() < 0.001


def test_what_it_learns_is_what_is_written():
    network = create_model("sesr_m5", scale=2, weights="default")
    form = RoundedPicture(choose_codes(network, [scene(seed=seed) for seed in range(3)]))
    before = form.layers()
    x = torch.from_numpy(scene(24, 24)).permute(2, 0, 1)[None] / 255
    form(x).square().mean().backward()
    learns = [p for p in form.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.norm() > 0 for p in learns)
    with torch.no_grad():
        for parameter in learns:
            parameter += 0.05 * parameter.abs().mean() * torch.randn_like(parameter)
    after = form.layers()
    assert after.ranges == before.ranges
    assert any(
        (new.values != old.values).any() for new, old in zip(after.codes, before.codes, strict=True)
    )
    picture = scene(40, 33, seed=7)
    assert np.abs(run(form, picture) - run_exactly(after.graph("m5"), picture)).max() <= 3
    # The part of the last layer that carries the picture is no parameter.
    np.testing.assert_array_equal(after.beside().weight, before.beside().weight)


def test_a_relu_stays_one():
    network = create_model("sesr_m5_relu", scale=2, weights="default")
    form = RoundedPicture(choose_codes(network, [scene()]))
    form(torch.rand(1, 3, 16, 16)).mean().backward()
    slopes = [layer.slope for layer in form.layers().layers]
    assert all(slope is None or not slope.any() for slope in slopes)
    assert not any(slope.requires_grad for slope in form.slopes)
