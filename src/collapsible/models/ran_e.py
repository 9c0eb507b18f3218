"""RAN-explicit (arXiv 2208.08562): networks whose inverted bottlenecks were partly made dense.

A stem (3x3, stride 2, neither norm nor activation: the first dense block brings them), blocks of
both forms (``blocks/inverted_bottleneck.py``), a 1x1 convolution to 1344 channels, a depthwise 7x7
that weighs the last map, pooling, dropout, a linear layer. At 224 x 224:

    ran_e_c    "SubNetwork-C"  4.635M parameters  489.2M MACs  74.6 % top-1 on ImageNet-1k
    ran_e_gt   "Ground Truth"  4.487M             434.4M       74.6 %  (both published)

``ran_e_base`` is C with every block a bottleneck, a start for restructuring. All take ``width``
and ``depth`` factors, ``act`` ("h_swish", "relu6", "relu") and ``forms`` ("as-listed",
"bottleneck", "dense"). Borders are padded on both sides alike, where the original (TensorFlow)
pads strided layers at the end only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from collapsible.blocks.inverted_bottleneck import (
    DenseBlock,
    InvertedBottleneck,
    Waist,
    act_layer,
    norm_layer,
)
from collapsible.errors import UnknownNameError, UsageError
from collapsible.models.classifier import Blocks, Classifier, Head
from collapsible.models.registry import register

Form = Literal["as-listed", "bottleneck", "dense"]
FORMS = ("as-listed", "bottleneck", "dense")


@dataclass(frozen=True)
class Site:
    """One block: its form, output channels, and what it is or would be as a bottleneck."""

    dense: bool
    channels: int
    kernel: int = 3
    expansion: int = 6
    stride: int = 1
    waist: bool = False


def _dense(channels: int, stride: int = 1, expansion: int = 6, waist: bool = False) -> Site:
    return Site(True, channels, 3, expansion, stride, waist)


def _narrow(
    channels: int, kernel: int, expansion: int, stride: int = 1, waist: bool = False
) -> Site:
    return Site(False, channels, kernel, expansion, stride, waist)


# Stages of sites; a deeper network repeats the last site of each stage that keeps its shape.
NETWORK_C: tuple[tuple[Site, ...], ...] = (
    (_dense(32),),
    (_dense(48, stride=2),),
    (_narrow(64, 3, 6, stride=2),),
    (_dense(80),),
    (_narrow(80, 5, 6, stride=2), _dense(80)),
    (_narrow(96, 5, 4), _dense(96, expansion=4)),
    (_narrow(128, 3, 6), _narrow(128, 3, 6, waist=True)),
    (_dense(160, stride=2),),
    (_narrow(176, 7, 4), _narrow(176, 3, 4), _dense(176, expansion=4)),
    (_narrow(224, 5, 6), _narrow(224, 5, 6)),
)
NETWORK_GT: tuple[tuple[Site, ...], ...] = (
    (_dense(32),),
    (_dense(48, stride=2),),
    (_dense(64, stride=2),),
    (_dense(80),),
    (_narrow(80, 5, 6, stride=2), _narrow(80, 5, 6)),
    (_narrow(96, 3, 4), _narrow(96, 3, 4)),
    (_dense(128), _dense(128, waist=True)),
    (_narrow(160, 7, 6, stride=2),),
    (_narrow(176, 3, 4), _narrow(176, 3, 4), _narrow(176, 3, 4)),
    (_narrow(224, 5, 6), _narrow(224, 5, 6)),
)


def rounded(channels: float, step: int = 8) -> int:
    """Channels at the nearest multiple of ``step``, never below 90 % (EfficientNet's rule)."""
    near = max(step, int(channels + step / 2) // step * step)
    return near + step if near < 0.9 * channels else near


class RanE(Classifier):
    """Pictures [N, in_chans, H, W] to [N, num_classes].

    ``stages`` are sites as above. ``width`` scales all channels (to multiples of 8), ``depth``
    the number of blocks of each stage that may repeat. ``forms`` makes every block what it says.
    Raises ``UsageError`` for factors that are not positive.
    """

    def __init__(
        self,
        stages: tuple[tuple[Site, ...], ...] = NETWORK_C,
        *,
        width: float = 1.0,
        depth: float = 1.0,
        act: str = "h_swish",
        forms: Form = "as-listed",
        stem: int = 16,
        top: int = 1344,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        if width <= 0 or depth <= 0:
            raise UsageError(f"width={width} and depth={depth} must be above 0")
        if forms not in FORMS:
            raise UnknownNameError("forms", forms, FORMS)

        def scaled(channels: int) -> int:
            return channels if width == 1.0 else rounded(channels * width)

        inputs, reduction = scaled(stem), 2
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, inputs, 3, 2, padding=1, bias=False)
        self.feature_info: list[dict[str, Any]] = []
        built: list[nn.Module] = []
        for number, sites in enumerate(stages):
            blocks = []
            for site in repeated(sites, depth):
                outputs = scaled(site.channels)
                blocks.append(build_site(site, inputs, outputs, act, forms))
                inputs, reduction = outputs, reduction * site.stride
            built.append(Blocks(*blocks))
            info = {"num_chs": inputs, "reduction": reduction, "module": f"stages.{number}"}
            # The last stage of each resolution is a feature.
            if self.feature_info and self.feature_info[-1]["reduction"] == reduction:
                self.feature_info.pop()
            self.feature_info.append(info)
        self.stages = nn.Sequential(*built)
        self.num_features = self.head_hidden_size = scaled(top)
        self.top = nn.Sequential(
            nn.Conv2d(inputs, self.num_features, 1, bias=False),
            norm_layer(self.num_features),
            act_layer(act),
            nn.Conv2d(
                self.num_features,
                self.num_features,
                7,
                padding=3,
                groups=self.num_features,
                bias=False,
            ),
            norm_layer(self.num_features),
            act_layer(act),
        )
        self.head = Head(self.num_features, num_classes, global_pool, drop_rate, norm=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names for layer-wise learning rates, as timm asks for them."""
        blocks = (
            r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^top", (99999,))]
        )
        return {"stem": r"^stem", "blocks": blocks}

    def forward_features(self, x: Tensor) -> Tensor:
        return self.top(self.stages(self.stem(x)))


def repeated(sites: tuple[Site, ...], depth: float) -> list[Site]:
    """A stage's sites for a depth factor: the last one more often, or fewer of the later ones."""
    wanted = max(1, math.ceil(round(len(sites) * depth, 6)))
    result = list(sites[:wanted])
    last = sites[-1]
    again = Site(last.dense, last.channels, last.kernel, last.expansion, 1, last.waist)
    return result + [again] * (wanted - len(result))


def build_site(site: Site, inputs: int, outputs: int, act: str, forms: Form) -> nn.Module:
    """The block of one site. A waist needs equal widths; elsewhere it is an ordinary block."""
    dense = site.dense if forms == "as-listed" else forms == "dense"
    if site.waist and inputs == outputs:
        return Waist(inputs, dense=dense, expansion=site.expansion, act=act)
    if dense:
        return DenseBlock(inputs, outputs, stride=site.stride, act=act)
    return InvertedBottleneck(
        inputs, outputs, kernel=site.kernel, stride=site.stride, expansion=site.expansion, act=act
    )


# Name: what the constructor is given.
VARIANTS: dict[str, dict[str, Any]] = {
    "ran_e_c": {"stages": NETWORK_C},
    "ran_e_gt": {"stages": NETWORK_GT},
    "ran_e_base": {"stages": NETWORK_C, "forms": "bottleneck"},
    "ran_e_c_relu6": {"stages": NETWORK_C, "act": "relu6"},
    "ran_e_gt_relu6": {"stages": NETWORK_GT, "act": "relu6"},
}


def _builder(name: str) -> Callable[..., RanE]:
    def build(*, scale: object = None, **options: Any) -> RanE:
        # ``scale`` is what the registry hands to every family; a classifier has none.
        return RanE(**{**VARIANTS[name], **options})

    build.__name__ = name
    return build


for _name in VARIANTS:
    register(_builder(_name))
