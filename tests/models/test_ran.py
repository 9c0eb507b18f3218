"""RAN-i and RAN-e: published counts, timm as a peer, and timm's own checks of a model."""

from __future__ import annotations

import argparse
import re

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import checkpoint_filter_fn

from collapsible.costs import cost
from collapsible.errors import UnknownNameError, UsageError, WeightsError
from collapsible.models import ConvNeXt, RanE, create_model, list_models, ran_e, ran_i
from collapsible.models.detector import create_detector, load_backbone

PICTURE = (1, 3, 224, 224)
NAMES = [*ran_i.VARIANTS, *ran_e.VARIANTS]
SMALL = ["ran_i_pico", "ran_e_c", "ran_e_gt_relu6"]


@pytest.mark.parametrize(
    ("name", "params", "macs", "bends"),
    [  # parameters (M), MACs (G), non-linear elements (M): as published or counted from the paper
        ("ran_i_tiny", 20.76, 3.285, 9.53),
        ("ran_i_small", 28.93, 4.577, 11.29),
        ("ran_i_base", 52.89, 8.429, 18.20),
        ("ran_e_c", 4.635, 0.4892, 3.77),
        ("ran_e_gt", 4.487, 0.4344, 2.55),
        ("ran_e_base", 4.699, 0.597, 9.67),
    ],
)
def test_published_counts(name, params, macs, bends):
    counted = cost(timm.create_model(name), PICTURE)
    digits = len(str(params).partition(".")[2])
    assert round(counted.params / 1e6, digits) == params
    digits = len(str(macs).partition(".")[2])
    assert round(counted.macs / 1e9, digits) == macs
    assert round(counted.non_linear / 1e6, 2) == bends
    assert not counted.unknown


@pytest.mark.parametrize(("name", "total"), [("ran_e_c", 4_673_272), ("ran_e_gt", 4_524_408)])
def test_the_originals_number_of_all_variables(name, total):
    """Keras counts the running statistics too, and torch's step counters it does not have."""
    network = create_model(name)
    buffers = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    assert sum(p.numel() for p in network.parameters()) + buffers == total


@pytest.mark.parametrize("name", ["ran_e_c", "ran_e_gt"])
def test_both_patterns_made_dense_everywhere_are_one_network(name):
    counted = cost(create_model(name, forms="dense"), PICTURE)
    assert round(counted.params / 1e6, 3) == 4.145
    assert round(counted.macs / 1e6) == 375


def test_siblings_have_widths_on_their_step_nearest_to_the_original():
    for name, (depths, dims) in ran_i.VARIANTS.items():
        found = re.fullmatch(r"(ran_i_\w+)_w(\d+)", name)
        if found:
            step = int(found[2])
            original = ran_i.VARIANTS[found[1]]
            assert depths == original[0]
            for width, wanted in zip(dims, original[1], strict=True):
                assert width % step == 0
                assert abs(width - wanted) <= step / 2


def test_convnext_equals_timms_with_the_same_weights():
    depths, dims = (2, 1, 3, 1), (16, 24, 40, 48)
    torch.manual_seed(0)
    ours = ConvNeXt(depths, dims, num_classes=7, layer_scale=0.5).eval()
    theirs = TimmConvNeXt(depths=depths, dims=dims, num_classes=7, ls_init_value=0.5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours(x), theirs(x))
    features = timm.create_model("ran_i_pico", features_only=True)
    assert features.feature_info.channels() == [16, 32, 64, 128]


def reference_keys(state):
    """Our keys back to those of the ConvNeXt reference code."""
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    found = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found


def test_checkpoints_of_the_reference_code_load(tmp_path):
    torch.manual_seed(1)
    ours = create_model("ran_i_pico", num_classes=5)
    state = reference_keys(ours.state_dict())
    assert "stages.2.9.pwconv2.weight" in state
    assert "downsample_layers.3.1.weight" in state
    # The peer that people load such files with finds the same map.
    mapped = checkpoint_filter_fn(dict(state), ours)
    assert mapped.keys() == ours.state_dict().keys()
    assert all(torch.equal(mapped[key], value) for key, value in ours.state_dict().items())
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": state}, file)
    for name in ("ran_i_pico", "timm:ran_i_pico"):
        loaded = create_model(name, weights=file, num_classes=5)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, ours.state_dict()[key]), key
    timm_way = timm.create_model("ran_i_pico", num_classes=5, checkpoint_path=str(file))
    assert torch.equal(timm_way.stem[0].weight, ours.stem[0].weight)


def test_a_whole_checkpoint_of_the_reference_training_loads_its_averaged_weights(tmp_path):
    """As its ``save_model`` writes them: raw and averaged weights, optimiser, bare arguments."""
    torch.manual_seed(2)
    averaged, raw = (create_model("ran_i_pico", num_classes=5) for _ in range(2))
    file = tmp_path / "checkpoint-best.pth"
    record = {
        "model": reference_keys(raw.state_dict()),
        "model_ema": reference_keys(averaged.state_dict()),
        "optimizer": torch.optim.AdamW(raw.parameters()).state_dict(),
        "epoch": 299,
        "scaler": {},
        "args": argparse.Namespace(lr=4e-3, model="ran_i", layer_scale_init_value=1e-6),
    }
    torch.save(record, file)
    for name in ("ran_i_pico", "timm:ran_i_pico"):
        loaded = create_model(name, weights=file, num_classes=5)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, averaged.state_dict()[key]), key
    detector = create_detector("ran_i_pico", 2, form="single", size=64, max_size=96)
    load_backbone(detector, file)
    body = detector.rcnn.backbone.body
    assert torch.equal(body.stem_0.weight, averaged.stem[0].weight)
    # Beside arguments of other kinds, nothing is unpickled.
    torch.save({**record, "args": argparse.Namespace(out=OutOfReach())}, file)
    with pytest.raises(WeightsError, match="refused"):
        create_model("ran_i_pico", weights=file, num_classes=5)


class OutOfReach:
    """A class that no loader may build."""


def test_names_stand_in_both_registries():
    assert set(NAMES) <= set(list_models("ran*"))
    assert set(NAMES) <= set(timm.list_models("ran_*"))
    assert isinstance(create_model("ran-i-pico"), ConvNeXt)
    assert timm.get_pretrained_cfg("ran_i_tiny").input_size == (3, 224, 224)


# What timm's own tests ask of every model.


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_finite_values(name):
    network = timm.create_model(name, num_classes=11).eval()
    with torch.no_grad():
        features = network.forward_features(torch.randn(2, 3, 64, 96))
        assert features.shape == (2, network.num_features, 2, 3)
        assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)
        out = network(torch.randn(2, 3, 64, 96))
    assert out.shape == (2, 11)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", SMALL)
def test_reset_classifier(name):
    network = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    network.reset_classifier(0)
    assert network(x).shape == (1, network.num_features)
    network.reset_classifier(0, "")
    assert network(x).shape == (1, network.num_features, 2, 2)
    network.reset_classifier(4, "avg")
    assert network(x).shape == (1, 4)
    assert network.get_classifier().out_features == network.num_classes == 4
    created = timm.create_model(name, num_classes=0, global_pool="")
    assert created.eval()(x).shape == (1, created.num_features, 2, 2)
    with pytest.raises(UnknownNameError, match="did you mean 'avg'"):
        network.reset_classifier(4, "avge")


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name):
    network = timm.create_model(name, features_only=True).eval()
    maps = network(torch.randn(1, 3, 64, 64))
    info = network.feature_info
    assert len(maps) >= 4
    for tensor, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert tensor.shape == (1, channels, 64 // reduction, 64 // reduction)
    some = timm.create_model(name, features_only=True, out_indices=(1, 2))
    assert len(some(torch.randn(1, 3, 64, 64))) == 2


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_has_a_gradient(name, checkpointing):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).train()
    network.set_grad_checkpointing(checkpointing)
    network(torch.randn(2, 3, 64, 64)).mean().backward()
    lacking = [key for key, value in network.named_parameters() if value.grad is None]
    assert not lacking


def test_grad_checkpointing_leaves_gradients_as_they_are():
    network = ConvNeXt((1, 2), (4, 8), num_classes=3, layer_scale=1.0)
    x, found = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        network.zero_grad()
        network.set_grad_checkpointing(enable)
        network(x).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("name", ["ran_i_pico", "ran_e_c"])
def test_torch_export_keeps_the_values(name):
    network = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(network, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), network(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_network_passes_without_values(name):
    """The same for all of them, large ones too: on the meta device, where nothing is computed."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3).train()
        x = torch.randn(2, 3, 64, 64)
        scores = network(x)
        scores.mean().backward()
        assert scores.shape == (2, 3)
        assert all(p.grad is not None for p in network.parameters())
        facts, keys = network.pretrained_cfg, network.state_dict().keys()
        assert f"{facts['first_conv']}.weight" in keys
        assert f"{facts['classifier']}.weight" in keys
        features = network.forward_features(torch.randn(1, *facts["input_size"]))
        assert tuple(features.shape[2:]) == facts["pool_size"]
        network.reset_classifier(0)
        assert network(x).shape == (2, network.num_features)
        network.reset_classifier(0, "")
        assert network(x).shape == (2, network.num_features, 2, 2)
        network.reset_classifier(7, "avg")
        assert network(x).shape == (2, 7)
        body = timm.create_model(name, features_only=True)
        for found, info in zip(body(x), body.feature_info.get_dicts(), strict=True):
            side = 64 // info["reduction"]
            assert found.shape == (2, info["num_chs"], side, side)


@pytest.mark.parametrize("name", SMALL)
def test_groups_cover_every_parameter(name):
    from timm.models import group_parameters

    network = timm.create_model(name)
    groups = group_parameters(network, network.group_matcher(coarse=False))
    grouped = [key for keys in groups.values() for key in keys]
    assert sorted(grouped) == sorted(key for key, _ in network.named_parameters())


def test_drop_path_grows_with_depth_and_keeps_the_mean():
    network = timm.create_model("ran_i_pico", drop_path_rate=0.3)
    rates = [m.rate for m in network.modules() if type(m).__name__ == "DropPath"]
    assert len(rates) == 19
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)
    torch.manual_seed(0)
    drop = [m for m in network.modules() if type(m).__name__ == "DropPath"][-1].train()
    y = drop(torch.ones(20_000, 2, 1, 1))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(drop.eval()(y), y)


@pytest.mark.parametrize("name", ["ran_e_c", "ran_e_gt"])
@pytest.mark.parametrize(("width", "depth"), [(0.5, 1.0), (1.4, 1.8), (1.0, 0.5)])
def test_ran_e_scales(name, width, depth):
    network = create_model(name, width=width, depth=depth, num_classes=2).eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 2)
    blocks = sum(len(stage) for stage in network.stages)
    assert blocks == {1.0: 16, 1.8: 32, 0.5: 11}[depth]
    widths = {m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)}
    assert width == 1.0 or all(channels % 4 == 0 for channels in widths)
    kinds = [type(m).__name__ for m in network.modules()]
    assert ("Waist" in kinds) == (depth >= 1)


def test_building_twice_gives_the_same_network():
    """The original changes its shared table of blocks and fails the second time."""
    first, second = create_model("ran_e_gt"), create_model("ran_e_gt")
    shapes = [[v.shape for v in net.state_dict().values()] for net in (first, second)]
    assert shapes[0] == shapes[1]


def test_wrong_use():
    with pytest.raises(UsageError, match="give as many"):
        ConvNeXt((1, 2), (4,))
    with pytest.raises(UsageError, match="above 0"):
        RanE(width=0)
    with pytest.raises(UnknownNameError, match="did you mean 'relu6'"):
        create_model("ran_e_c", act="relu66")
    with pytest.raises(UnknownNameError, match="forms"):
        create_model("ran_e_c", forms="thick")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ran_e_c", "ran_e_gt_relu6"])
def test_every_operator_runs_on_an_ethos_u(name):
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("litert_torch")
    from collapsible.deploy.estimate import estimate

    report = estimate(create_model(name, num_classes=10), "ethos-u65-256", (1, 3, 64, 64))
    assert report.cpu_operators == ()
    assert report.fps is not None
