"""Proxies against their formulas by hand, the benchmark's trainer, and the correlations."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from collapsible.errors import CollapsibleError, UnknownNameError, UsageError
from collapsible.models import ConvNeXt
from collapsible.search import Shape, benchmark, find_proxy, list_proxies
from collapsible.search.correlation import SHIPPED, _both, coefficients, correlate
from collapsible.search.proxies import naswot, noise_batches, synflow, zico
from collapsible.search.scaling import entropy


def test_every_proxy_scores_and_leaves_the_network_alone():
    torch.manual_seed(0)
    network = ConvNeXt((1, 2), (8, 16), patch_size=2, num_classes=10, layer_scale=0.1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batches = noise_batches((3, 32, 32), 10)
    for proxy in list_proxies():
        first, again = (proxy.score(network, batches) for _ in range(2))
        assert math.isfinite(first)
        assert first == pytest.approx(again)
        assert proxy.source
    assert network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in network.parameters())


def test_synflow_of_a_linear_chain():
    """R = 1' |W2| |W1| 1, and the sum of w dR/dw is R for each of the two layers."""
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    total = (chain[2].weight.abs() @ chain[0].weight.abs() @ torch.ones(4)).sum()
    batch = [(torch.zeros(1, 4), torch.zeros(1))]
    assert synflow(chain, batch) == pytest.approx(math.log(2 * float(total.detach())), rel=1e-6)


def test_naswot_counts_equal_signs():
    network = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    # 3 signs alike with itself, 1 with the other: the determinant is 9 - 1.
    assert naswot(network, [(x, torch.zeros(2))]) == pytest.approx(math.log(8))
    with pytest.raises(UsageError, match="no activation"):
        naswot(nn.Linear(3, 2), [(x, torch.zeros(2))])


def test_zico_by_hand():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False)
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])) for _ in range(3)]
    gradients = []
    for x, y in batches:
        chances = torch.softmax(x @ layer.weight.T, 1) - torch.eye(2)[y]
        gradients.append((chances.T @ x / len(x)).detach().flatten().numpy())
    g = np.array(gradients)
    by_hand = math.log((np.abs(g).mean(0) / g.std(0)).sum())
    assert zico(layer, batches) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(UsageError, match="at least 2"):
        zico(layer, batches[:1])


def test_entropy_of_a_network_is_that_of_its_shape():
    shape = Shape((1, 2, 1), (8, 12, 16))
    batches = noise_batches((3, 32, 32), 10)
    found = find_proxy("entropy").score(benchmark.build(shape), batches)
    assert found == pytest.approx(entropy(benchmark.family(), shape))


def test_unknown_proxy():
    with pytest.raises(UnknownNameError, match="did you mean 'synflow'"):
        find_proxy("synflo")


def test_drawn_shapes_are_different_equal_in_cost_and_repeatable():
    plan = benchmark.Plan()
    shapes = benchmark.draw_shapes(plan)
    assert len(set(shapes)) == plan.networks >= 24
    for shape in shapes:
        assert benchmark.family().count(shape).macs == pytest.approx(plan.macs, rel=0.03)
    assert shapes == benchmark.draw_shapes(plan)
    with pytest.raises(UsageError, match="of 24 networks"):
        benchmark.draw_shapes(dataclasses.replace(plan, macs=30_000))


@pytest.fixture
def cifar(tmp_path) -> Path:
    """A tar in the data set's form with 4 pictures a class and part, each of one colour."""
    file = tmp_path / "cifar.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for part in ("train", "test"):
            for label, name in enumerate(benchmark.CLASSES):
                for number in range(1, 5):
                    stream = io.BytesIO()
                    Image.new("RGB", (32, 32), (25 * label, 128, 255 - 25 * label)).save(
                        stream, "png"
                    )
                    info = tarfile.TarInfo(f"cifar10/{part}/{name}/{number:04}.png")
                    info.size = stream.tell()
                    archive.addfile(info, io.BytesIO(stream.getvalue()))
    return file


SMALL = benchmark.Plan(networks=4, macs=800_000, pictures=40, tests=40, epochs=10, batch=20)


def test_pictures_and_labels_belong_together(cifar):
    pictures, labels = benchmark.read_cifar(cifar, "train", 20)
    assert pictures.shape == (20, 32, 32, 3)
    assert sorted(labels.tolist()) == sorted([*range(10)] * 2)
    assert (pictures[:, 0, 0, 0] == 25 * labels).all()
    with pytest.raises(CollapsibleError, match="40 pictures in 'test'; 60 are needed"):
        benchmark.read_cifar(cifar, "test", 60)
    broken = cifar.with_name("broken.tar.gz")
    broken.write_bytes(b"no tar at all")
    with pytest.raises(CollapsibleError, match="not a readable tar"):
        benchmark.read_cifar(broken, "train", 10)


def test_training_goes_on_where_it_stopped_and_learns(cifar, tmp_path):
    file = tmp_path / "results.json"

    class StopError(Exception):
        pass

    def stop(done, total, one):
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        benchmark.train_benchmark(cifar, file, SMALL, stop)
    plan, first = benchmark.read_results(file)
    assert plan == SMALL
    assert len(first) == 2
    told = []
    done = benchmark.train_benchmark(cifar, file, SMALL, lambda *a: told.append(a[0]))
    assert told == [3, 4]
    assert done[:2] == first
    assert len({(one.depths, one.dims) for one in done}) == 4
    # Ten colours for ten classes: some are told apart within a few steps; chance is 0.1.
    assert max(one.accuracy for one in done) > 0.25
    again = benchmark.train_one(
        Shape(done[0].depths, done[0].dims),
        benchmark.read_cifar(cifar, "train", 40),
        benchmark.read_cifar(cifar, "test", 40),
        SMALL,
    )
    assert again.accuracy == done[0].accuracy
    with pytest.raises(UsageError, match="another plan"):
        benchmark.train_benchmark(cifar, file, dataclasses.replace(SMALL, epochs=2))
    report = correlate(file, proxies=["nn-mass", "params"])
    assert [row.proxy for row in report.rows].count("nn-mass") == 1
    assert "4 of 4 networks" in report.table()
    assert json.loads(report.json())["networks"] == 4


def test_coefficients_are_scipys_and_intervals_hold_them():
    chance = np.random.default_rng(1)
    x = chance.normal(size=30)
    y = x + chance.normal(size=30)
    from scipy import stats

    found = coefficients("x", "", x.tolist(), y.tolist())
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall_interval[0] < found.kendall < found.kendall_interval[1]
    assert found.spearman_interval[0] < found.spearman < found.spearman_interval[1]
    whole = coefficients("x", "", list(range(9)), list(range(9)))
    assert (whole.kendall, *whole.kendall_interval) == pytest.approx((1, 1, 1))


def test_every_bootstrap_sample_has_scipys_coefficients():
    """Ties among them, as samples with replacement have, and one in which all are alike."""
    from scipy import stats

    chance = np.random.default_rng(2)
    x, y = chance.integers(0, 6, (2, 40, 12)).astype(float)
    x[7] = 3.0
    kendall, spearman = _both(x, y)
    assert np.isnan([kendall[7], spearman[7]]).all()
    for place in set(range(40)) - {7}:
        assert kendall[place] == pytest.approx(stats.kendalltau(x[place], y[place]).statistic)
        assert spearman[place] == pytest.approx(stats.spearmanr(x[place], y[place]).statistic)


def test_files_that_are_none(tmp_path):
    file = tmp_path / "x.json"
    with pytest.raises(CollapsibleError, match="not a file of benchmark results"):
        correlate(file)
    file.write_text('{"plan": {}, "networks": [{"depths": [1]}]}')
    with pytest.raises(CollapsibleError, match="not a file"):
        correlate(file)
    benchmark.write_results(file, SMALL, [])
    with pytest.raises(CollapsibleError, match="0 networks"):
        correlate(file)


def test_the_shipped_results_belong_to_the_plan():
    plan, trained = benchmark.read_results(SHIPPED)
    assert plan == benchmark.Plan()
    shapes = set(benchmark.draw_shapes(plan))
    assert trained
    for one in trained:
        assert Shape(one.depths, one.dims) in shapes
        assert 0.1 < one.accuracy < 1
