"""Collapsed networks against the original and timm's own deploy form: time on this CPU.

    python benchmarks/collapsed_networks.py [--json FILE] [--rounds N] [--threads N]
        [--networks NAME...] [--size N] [--batch N]

The forms of one network run in turn within each round, so that a noisy machine disturbs all of
them; the order changes from round to round. Reported: the median of each form in milliseconds
and ratios above 1 where the collapsed form is faster (the median over rounds of the ratio within
a round): measured. Weights are random and batch-norm statistics randomised: they do not change
the time. Layers, parameters and MACs are counted by the collapse report.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from collapsible.folding import collapse

NETWORKS = ("repvgg_a0", "mobileone_s0", "resnet18", "mobilenetv2_100", "efficientnet_lite0")


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 1.5)
    return network


@torch.inference_mode()
def once(network: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    network(x)
    return 1000 * (time.perf_counter() - start)


def measure(name: str, rounds: int, batch: int, size: int) -> dict[str, object]:
    torch.manual_seed(0)
    network = randomise(timm.create_model(name)).eval()
    start = time.perf_counter()
    deployed, report = collapse(network)
    seconds = time.perf_counter() - start
    forms = {
        "original": network,
        "timm_deploy": reparameterize_model(network).eval(),
        "collapsed": deployed,
    }
    x = torch.randn(batch, 3, size, size)
    for form in forms.values():
        once(form, x)
    times: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(rounds):
        order = list(forms)
        order = order[number % 3 :] + order[: number % 3]
        for form in order:
            times[form].append(once(forms[form], x))
    collapsed = times["collapsed"]
    return {
        "milliseconds_measured": {form: statistics.median(t) for form, t in times.items()},
        "original_over_collapsed": statistics.median(
            a / b for a, b in zip(times["original"], collapsed, strict=True)
        ),
        "timm_deploy_over_collapsed": statistics.median(
            a / b for a, b in zip(times["timm_deploy"], collapsed, strict=True)
        ),
        "collapse_seconds_measured": seconds,
        "relative_error_float64_measured": report.relative_error_float64,
        "layers_counted": [report.layers_before, report.layers_after],
        "parameters_counted": [report.parameters_before, report.parameters_after],
        "macs_counted": [report.macs_before, report.macs_after],
        "runs": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    networks = {n: measure(n, given.rounds, given.batch, given.size) for n in given.networks}
    result = {
        "threads": given.threads,
        "input": [given.batch, 3, given.size, given.size],
        "rounds": given.rounds,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "networks": networks,
    }
    for name, found in networks.items():
        times = found["milliseconds_measured"]
        assert isinstance(times, dict)
        print(
            f"{name:<20}"
            + "".join(f"{form} {value:7.1f} ms   " for form, value in times.items())
            + f"x{found['original_over_collapsed']:.2f} over the original, "
            f"x{found['timm_deploy_over_collapsed']:.2f} over timm's deploy form"
        )
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
