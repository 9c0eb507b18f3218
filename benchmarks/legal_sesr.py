"""Every SESR, legalised for Ethos-U: forms taken, operators on the CPU, estimated latency.

    python benchmarks/legal_sesr.py [--size 64] [--targets NAME...] [--act relu] [--json FILE]

Estimated by Vela for int8 of an input of SIZE x SIZE on Y; nothing is timed. Weights are newly
drawn: they do not change which operators run where (a bias that training makes different for each
pixel rules the folded tail out, so biases are drawn too). Minutes, less when run again: results
are kept in the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timing import finish
from torch import nn

from collapsible.deploy.legalise import legalise
from collapsible.folding import collapse
from collapsible.models import create_model

NETWORKS = ("sesr_m2", "sesr_m3", "sesr_m5", "sesr_m7", "sesr_m11", "sesr_xl")
TARGETS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256", "ethos-u85-512")


def drawn(name: str, scale: int, act: str) -> nn.Module:
    torch.manual_seed(0)
    network, _ = collapse(create_model(name, scale=scale, act=act))
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.01)
    return network


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--targets", nargs="+", default=TARGETS)
    options.add_argument("--act", choices=("prelu", "relu"), default="prelu")
    options.add_argument("--json", type=Path, help="write the result to this file too")
    given = options.parse_args()
    rows = []
    for name in NETWORKS:
        for scale in (2, 4):
            network = drawn(name, scale, given.act)
            for target in given.targets:
                _, report = legalise(network, target, input_size=(1, 1, given.size, given.size))
                forms = report.tail, report.repeat, report.bend
                taken = next(c for c in report.candidates if c.forms == forms)
                as_given = report.candidates[0]
                rows.append(
                    {
                        "network": f"{name} x{scale}",
                        "target": target,
                        "tail": report.tail,
                        "repeat": report.repeat,
                        "bend": report.bend,
                        "cpu_operators": report.cpu_operators,
                        "latency_ms": taken.latency_ms,
                        "as_given_ms": as_given.latency_ms,
                        "as_given_cpu_operators": as_given.cpu_operators,
                        "error_float64": report.error_float64,
                    }
                )
                print({key: rows[-1][key] for key in list(rows[-1])[:8]}, flush=True)
    finish({"size": given.size, "act": given.act, "estimated": rows}, given.json)


if __name__ == "__main__":
    main()
