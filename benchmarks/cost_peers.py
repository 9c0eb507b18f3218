"""Our count of MACs beside torch's FLOP counter and fvcore's, for 20 networks of timm.

    python benchmarks/cost_peers.py [--json FILE] [--networks NAME...]

A MAC is one multiplication with its addition in a convolution, linear layer or matrix product:
torch counts two FLOPs for each, fvcore one. Neither peer sees the CPU's fused attention, so timm is
told to write attention out; fvcore counts normalisation and pooling too, which are taken out of its
total here. Counted, nothing is timed.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import timm
import torch
from timing import finish
from timm.layers import set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

from collapsible.costs import cost

NETWORKS = (
    "resnet18",
    "resnet50",
    "resnext26ts",
    "repvgg_a0",
    "mobileone_s0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_lite0",
    "efficientnet_b0",
    "ghostnet_100",
    "regnety_002",
    "densenet121",
    "vgg11",
    "inception_v3",
    "hrnet_w18_small",
    "convnext_tiny",
    "mixer_s32_224",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "dla34",
)
PRODUCTS = {"conv", "linear", "matmul", "bmm", "addmm", "einsum", "baddbmm"}


def fvcore_macs(network: torch.nn.Module, x: torch.Tensor) -> int | None:
    """fvcore's count of convolutions and products alone; None where fvcore is not installed."""
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        return None
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(network, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(sum(n for name, n in analysis.by_operator().items() if name in PRODUCTS))


@torch.no_grad()
def compare(name: str) -> dict[str, float | int | None]:
    network = timm.create_model(name).eval()
    x = torch.zeros(1, *timm.data.resolve_data_config(model=network)["input_size"])
    ours = cost(network, tuple(x.shape)).macs
    with FlopCounterMode(display=False) as counter:
        network(x)
    torch_macs = counter.get_total_flops() // 2
    peer = fvcore_macs(network, x)
    return {
        "ours": ours,
        "torch": torch_macs,
        "fvcore": peer,
        "ours_over_torch": ours / torch_macs,
        "ours_over_fvcore": None if peer is None else ours / peer,
    }


def main() -> None:
    from pathlib import Path

    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", type=Path, help="write the result to this file too")
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    chosen = options.parse_args()
    set_fused_attn(False)
    finish({"macs": {name: compare(name) for name in chosen.networks}}, chosen.json)


if __name__ == "__main__":
    main()
