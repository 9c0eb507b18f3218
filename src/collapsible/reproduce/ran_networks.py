"""The networks of RAN-explicit's table, and what is published of them, and how each is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from collapsible.errors import UsageError
from collapsible.reproduce.drawn import draw_network

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Published:
    """A row of the figure: parameters and MACs in millions, top-1 in %, frames over Lite0's."""

    params: float
    macs: float
    top1: float
    u55: float
    u65: float


@dataclass(frozen=True)
class Network:
    """A network of the table. ``twin`` is its name with the other activation, if it is here."""

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    twin: str | None = None


LITE, LITE_HS = "EfficientNet-Lite0, ReLU6", "EfficientNet-Lite0, H-swish"
C, GT = "RAN-e-C, H-swish", "RAN-e-GT, H-swish"
C_RELU6, GT_RELU6 = "RAN-e-C, ReLU6", "RAN-e-GT, ReLU6"
NETWORKS = (
    Network(LITE, "timm:efficientnet_lite0", {}, Published(4.7, 385, 74.4, 1, 1), LITE_HS),
    Network(
        LITE_HS,
        "timm:efficientnet_lite0",
        {"act_layer": "hard_swish"},
        Published(4.7, 385, 75.6, 1, 1),
    ),
    Network(
        "ResNet-18",
        "timm:resnet18",
        # Else its branches are zero until they are trained, and zeros have no int8 scale.
        {"zero_init_last": False},
        Published(11.7, 1800, 71.2, 0.46, 0.48),
    ),
    Network("RepVGG-A0, collapsed", "timm:repvgg_a0", {}, Published(8.3, 1400, 72.4, 0.72, 0.69)),
    Network("MobileNetV2", "timm:mobilenetv2_100"),
    Network(C, "ran_e_c", {}, Published(4.7, 488, 74.6, 1.06, 1.28)),
    Network(GT, "ran_e_gt", {}, Published(4.5, 434, 74.6, 1.16, 1.49)),
    Network(C_RELU6, "ran_e_c_relu6", twin=C),
    Network(GT_RELU6, "ran_e_gt_relu6", twin=GT),
)
# Parameters and MACs of the released definitions at 224, counted from them.
RELEASED = {C: (4_635_000, 489_200_000), GT: (4_487_000, 434_400_000)}
TARGETS = (
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-512",
)
SMALL = (LITE, GT, GT_RELU6)
SMALL_TARGETS = ("ethos-u55-256",)


def build(network: Network) -> nn.Module:
    """The network in its trained form, newly drawn."""
    return draw_network(network.model, **network.options)


def deployed(network: Network, notes: list[str] | None = None) -> nn.Module:
    """The network collapsed, where there is anything to collapse."""
    from collapsible.folding import collapse

    built = build(network)
    try:
        return collapse(built)[0]
    except UsageError as error:
        if notes is not None:
            notes.append(f"{network.name} is compiled as it is: {' '.join(str(error).split())}")
        return built
