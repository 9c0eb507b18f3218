"""The SESR family and FSRCNN: published counts, shapes, options, weights in both forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from collapsible.blocks import FastPReLU
from collapsible.errors import UnknownNameError, UsageError, WeightsError
from collapsible.folding import collapse
from collapsible.models import SESR, create_model, list_models

# Weights without biases and slopes, as the papers count them: SESR table 1 (x2) and table 2 (x4);
# the defence paper's RGB networks; FSRCNN's own paper.
PUBLISHED = [
    ("sesr_m3", 2, "y", 8_912),
    ("sesr_m5", 2, "y", 13_520),
    ("sesr_m7", 2, "y", 18_128),
    ("sesr_m11", 2, "y", 27_344),
    ("sesr_xl", 2, "y", 105_376),
    # Ours: 9 * 16 + 12 * 3 * 256 + 9 * 64.
    ("sesr_cpu", 2, "y", 9_936),
    ("sesr_m3", 4, "y", 13_712),
    ("sesr_m5", 4, "y", 18_320),
    ("sesr_m2", 2, "rgb", 10_608),
    ("sesr_m3", 2, "rgb", 12_912),
    ("sesr_m5", 2, "rgb", 17_520),
    ("sesr_xl", 2, "rgb", 113_376),
    ("fsrcnn", 2, "y", 12_464),
    ("fsrcnn", 2, "rgb", 24_336),
]


def kernels(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.ndim == 4)


@pytest.mark.parametrize(("name", "scale", "colour", "weights"), PUBLISHED)
def test_collapsed_weight_counts_are_the_published_ones(name, scale, colour, weights):
    network = create_model(name, scale=scale, colour=colour)
    if name != "fsrcnn":
        network, _ = collapse(network)
    assert kernels(network) == weights


@pytest.mark.parametrize("name", [*list_models("sesr*"), "fsrcnn"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("colour", ["y", "rgb"])
def test_every_network_enlarges_and_learns(name, scale, colour):
    network = create_model(name, scale=scale, colour=colour)
    channels = 3 if colour == "rgb" else 1
    output = network(torch.rand(2, channels, 9, 7))
    assert output.shape == (2, channels, 9 * scale, 7 * scale)
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("act", ["prelu", "relu"])
@pytest.mark.parametrize("long_residual", [True, False])
@pytest.mark.parametrize("input_residual", [True, False])
def test_options_collapse_exactly(act, long_residual, input_residual):
    network = create_model(
        "sesr-m3", act=act, long_residual=long_residual, input_residual=input_residual
    )
    _, report = collapse(network)
    assert report.max_error_float64 < 1e-12
    assert len(report.replaced) == 5


def test_input_residual_alone_is_nearest_neighbour():
    for colour, channels in (("y", 1), ("rgb", 3)):
        network = create_model("sesr_m2", scale=3, colour=colour)
        for parameter in network.last.parameters():
            nn.init.zeros_(parameter)
        x = torch.rand(1, channels, 5, 6)
        assert torch.equal(network(x), F.interpolate(x, scale_factor=3, mode="nearest"))


@pytest.mark.parametrize("name", ["sesr_m2", "sesr_m11", "fsrcnn"])
def test_receptive_radius_is_exact(name):
    """A change just outside the radius is not seen; a change at the radius is."""
    network = create_model(name).double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.01, 0.02)
    radius = network.receptive_radius
    side = 2 * radius + 5
    centre = side // 2
    x = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    pixel = network(x)[0, 0, 2 * centre : 2 * centre + 2, 2 * centre : 2 * centre + 2]
    pixel.sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs().sum(1).nonzero().flatten() - centre
    assert int(seen.abs().max()) <= radius
    assert int(seen.abs().max()) == radius or name == "fsrcnn"


def test_names_take_both_dashes_and_the_nearest_is_offered():
    assert isinstance(create_model("SESR-M5"), SESR)
    assert "sesr_m5" in list_models("sesr-m*")
    with pytest.raises(UnknownNameError, match="did you mean 'sesr_m5'"):
        create_model("sesr_n5")


@pytest.mark.parametrize(
    "options", [{"colour": "cmyk"}, {"act": "gelu"}, {"scale": 1}, {"depth": 3}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        create_model("sesr_m5", **options)


def test_weights_load_expanded_and_collapsed(tmp_path):
    network = create_model("sesr_m3", scale=2)
    deployed, _ = collapse(network)
    x = torch.rand(1, 1, 12, 10)
    save_file(network.state_dict(), tmp_path / "wide.safetensors")
    save_file(deployed.state_dict(), tmp_path / "narrow.safetensors")
    for file in ("wide", "narrow"):
        loaded = create_model("sesr_m3", weights=tmp_path / f"{file}.safetensors")
        torch.testing.assert_close(loaded(x), deployed(x), rtol=0, atol=2e-6)
    with pytest.raises(WeightsError, match="does not fit SESR"):
        create_model("sesr_m5", weights=tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match="does not fit SESR"):
        create_model("sesr_m3", scale=4, weights=tmp_path / "narrow.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        create_model("sesr_m3", weights=tmp_path / "broken.safetensors")


def test_x4_starts_as_x2_enlarged():
    torch.manual_seed(3)
    small = create_model("sesr_m3", scale=2, colour="rgb").double()
    large = create_model("sesr_m3", scale=4, colour="rgb").double()
    for parameter in small.parameters():
        nn.init.normal_(parameter, std=0.1)
    large.start_from(small)
    x = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    wanted = F.interpolate(small(x), scale_factor=2, mode="nearest")
    torch.testing.assert_close(large(x), wanted, rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="not a smaller scale"):
        small.start_from(large)


def test_x3_starts_as_x2_with_the_pixels_between_interpolated():
    torch.manual_seed(3)
    small = create_model("sesr_m3", scale=2).double()
    large = create_model("sesr_m3", scale=3).double()
    for parameter in small.parameters():
        nn.init.normal_(parameter, std=0.1)
    large.start_from(small)
    x = torch.rand(1, 1, 8, 9, dtype=torch.float64)
    blocks = F.pixel_unshuffle(small(x), 2).reshape(2, 2, 8, 9)
    middle = (blocks[0] + blocks[1]) / 2
    rows = torch.stack([blocks[0], middle, blocks[1]])
    wanted = torch.stack([rows[:, 0], rows.mean(dim=1), rows[:, 1]], dim=1)
    wanted = F.pixel_shuffle(wanted.reshape(1, 9, 8, 9), 3)
    torch.testing.assert_close(large(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("small", "large", "old_block", "new_block"),
    [
        ("sesr_m2", "sesr_m3", "sesr", "sesr"),
        ("sesr_m5", "sesr_m11", "sesr", "sesr"),
        ("sesr_m3", "sesr_m7", "sesr", "narrow"),
        ("sesr_m3", "sesr_m7", "narrow", "narrow"),
        ("sesr_m3", "sesr_m7", "narrow", "sesr"),
    ],
)
def test_a_deeper_network_starts_as_the_shallower_one(small, large, old_block, new_block):
    torch.manual_seed(3)
    old = create_model(small, scale=4, block=old_block).double()
    new = create_model(large, scale=4, block=new_block).double()
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.1)
    new.start_from_depth(old)
    x = torch.rand(2, 1, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=1e-12)
    # What was added learns: no parameter is where all gradients are nought.
    new(x).square().sum().backward()
    for block in new.blocks:
        weight = block.conv.project_weight if new_block == "sesr" else block.conv.weight
        assert weight.grad.norm() > 0
        assert block.act.weight.grad.norm() > 0


@pytest.mark.parametrize(("large", "taken"), [("sesr_m5", [0, 1, 3]), ("sesr_m7", [0, 2, 4])])
def test_a_shallower_network_takes_blocks_of_the_deeper_one(large, taken):
    """It computes what the deeper one does whose other blocks are the identity."""
    torch.manual_seed(3)
    old = create_model(large, scale=2).double()
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.1)
    new = create_model("sesr_m3", scale=2).double()
    new.start_from_depth(old)
    with torch.no_grad():
        for place, block in enumerate(old.blocks):
            if place not in taken:
                block.conv.project_weight.zero_()
                if block.conv.project_bias is not None:
                    block.conv.project_bias.zero_()
                block.act.weight.fill_(1.0)
    x = torch.rand(2, 1, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=1e-12)


def test_what_cannot_start_from_another_depth_is_said():
    m5 = create_model("sesr_m5")
    with pytest.raises(UsageError, match="cannot start from one of 5"):
        m5.start_from_depth(create_model("sesr_m5"))
    others = ({"scale": 3}, {"act": "relu"}, {"first_kernel": (3, 3)}, {"last_kernel": (3, 3)})
    for other in (create_model("sesr_m3", **options) for options in others):
        with pytest.raises(UsageError, match="cannot start from"):
            m5.start_from_depth(other)
    branched = create_model("sesr_m3", block="repvgg")
    with pytest.raises(UsageError, match="cannot start from"):
        m5.start_from_depth(branched)
    with pytest.raises(UsageError, match="only SESR's own blocks"):
        create_model("sesr_m5", block="repvgg").start_from_depth(branched)
    tall, wide = (
        create_model("sesr_nas", kernels=kernels, expansion=4)
        for kernels in (((3, 1), (1, 3)), ((1, 3), (3, 1), (1, 3)))
    )
    with pytest.raises(UsageError, match=r"block 0 has kernels of \(3, 1\)"):
        tall.start_from_depth(wide)
    relu3, relu5 = (create_model(name, act="relu") for name in ("sesr_m3", "sesr_m5"))
    with pytest.raises(UsageError, match="only blocks with PReLU"):
        relu5.start_from_depth(relu3)


@pytest.mark.parametrize("act", ["prelu", "relu"])
@pytest.mark.parametrize(("scale", "colour"), [(2, "y"), (3, "rgb"), (4, "y")])
def test_twice_as_wide_it_begins_as_the_mean_of_two_one_turned(act, scale, colour):
    torch.manual_seed(4)
    shape = {"kernels": ((3, 1), (3, 3)), "scale": scale, "colour": colour, "act": act}
    old = create_model("sesr_nas", **shape, features=6, expansion=4).double()
    new = create_model("sesr_nas", **shape, features=12, expansion=32).double()
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.2)
    new.start_from_width(old)
    x = torch.rand(2, old.first.in_channels, 8, 9, dtype=torch.float64)
    turned = old(x.flip(2, 3)).flip(2, 3)
    assert not torch.allclose(turned, old(x), atol=1e-2)
    torch.testing.assert_close(new(x), (old(x) + turned) / 2, rtol=0, atol=1e-12)
    # What lies between the two learns: no gradient of the noughts is nought.
    narrow = create_model("sesr_nas", **shape, features=12, block="narrow").double()
    thin = create_model("sesr_nas", **shape, features=6, block="narrow").double()
    narrow.start_from_width(thin)
    narrow(x).square().sum().backward()
    for block in narrow.blocks:
        assert (block.conv.weight[:6, 6:] == 0).all()
        assert (block.conv.weight.grad[:6, 6:].abs().amax((1, 2, 3)) > 0).any()


def test_what_cannot_start_from_half_the_width_is_said():
    wide = create_model("sesr_nas", features=8, kernels=((2, 3),))
    for other in ({"features": 8}, {"features": 4, "scale": 3}, {"features": 4, "act": "relu"}):
        with pytest.raises(UsageError, match="cannot start from two of"):
            wide.start_from_width(create_model("sesr_nas", kernels=((2, 3),), **other))
    with pytest.raises(UsageError, match="no middle to turn it by"):
        wide.start_from_width(create_model("sesr_nas", features=4, kernels=((2, 3),)))
    tall, flat = (
        create_model("sesr_nas", features=features, kernels=kernels, block="narrow")
        for features, kernels in ((8, ((3, 1), (1, 3))), (4, ((1, 3), (3, 1))))
    )
    with pytest.raises(UsageError, match="cannot start from two of"):
        tall.start_from_width(flat)


def test_training_starts_xl_from_a_file_of_m11(tmp_path):
    from collapsible.training.recipes import NetworkSpec, Recipe
    from collapsible.training.super_resolution import build_network

    small = create_model("sesr_m11", scale=2, block="narrow")
    save_file(small.state_dict(), tmp_path / "m11.safetensors")
    spec = NetworkSpec("sesr_xl", options={"block": "narrow"})
    found = build_network(
        Recipe("test", "super-resolution", spec, steps=1), tmp_path / "m11.safetensors"
    )
    x = torch.rand(1, 1, 8, 9)
    with torch.no_grad():
        mean = (small(x) + small(x.flip(2, 3)).flip(2, 3)) / 2
        torch.testing.assert_close(found(x), mean, rtol=0, atol=1e-5)


def test_training_starts_from_a_shallower_networks_file(tmp_path):
    from safetensors.torch import save_file

    from collapsible.training.recipes import NetworkSpec, Recipe
    from collapsible.training.super_resolution import build_network

    small = create_model("sesr_m2", scale=2)
    save_file(small.state_dict(), tmp_path / "m2.safetensors")
    recipe = Recipe("test", "super-resolution", NetworkSpec("sesr_m3"), steps=1)
    x = torch.rand(1, 1, 8, 9)
    found = build_network(recipe, tmp_path / "m2.safetensors")
    torch.testing.assert_close(found(x), small(x), rtol=0, atol=1e-5)
    rgb = create_model("sesr_m2", scale=2, colour="rgb")
    save_file(rgb.state_dict(), tmp_path / "rgb.safetensors")
    with pytest.raises(WeightsError, match="does not fit SESR"):
        build_network(recipe, tmp_path / "rgb.safetensors")


def test_training_with_relu_starts_from_the_kernels_of_prelu(tmp_path):
    from collapsible.training.recipes import NetworkSpec, Recipe
    from collapsible.training.super_resolution import build_network

    old = create_model("sesr_m5", scale=2)
    for block in old.blocks:
        torch.nn.init.zeros_(block.act.weight)  # a PReLU of slope 0 is a ReLU
    save_file(old.state_dict(), tmp_path / "m5.safetensors")
    recipe = Recipe("test", "super-resolution", NetworkSpec("sesr_m5_relu"), steps=1)
    x = torch.rand(1, 1, 8, 9)
    found = build_network(recipe, tmp_path / "m5.safetensors")
    assert not any(isinstance(one, FastPReLU) for one in found.modules())
    torch.testing.assert_close(found(x), old(x), rtol=0, atol=1e-5)
