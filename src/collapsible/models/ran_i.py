"""RAN-implicit (arXiv 2208.08562): ConvNeXt networks whose depths and widths were counted out.

A ConvNeXt (arXiv 2201.03545): a patch stem, four stages of blocks, between them a norm and a 2x2
convolution of stride 2, then pooling, a norm and a linear layer. RAN-i scales ConvNeXt-T, depths
(3, 3, 9, 3) and widths (96, 192, 384, 768), by a multiplier each:

    Tiny   1.65  0.666    20.76M parameters  3.285G MACs  82.03 % top-1 on ImageNet-1k (published)
    Small  1.65  0.789    28.93M             4.577G       82.63 %
    Base   2.30  0.9105   52.89M             8.429G       83.61 %

``_w16`` and ``_w32`` are siblings with each width at the nearest multiple of 16 or 32, which
vector units and NPUs run without waste. Nano and pico are the same idea for small pictures:
depths (2, 2, 6, 2) times 1.65, widths from 32 and 16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.blocks.convnext import ChannelNorm, ConvNeXtBlock
from collapsible.errors import UsageError
from collapsible.models.classifier import Blocks, Classifier, Head
from collapsible.models.registry import register

# Name: depths, widths.
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "ran_i_tiny": ((5, 5, 15, 5), (64, 128, 256, 511)),
    "ran_i_small": ((5, 5, 15, 5), (76, 151, 303, 606)),
    "ran_i_base": ((7, 7, 21, 7), (87, 175, 350, 699)),
    "ran_i_tiny_w32": ((5, 5, 15, 5), (64, 128, 256, 512)),
    "ran_i_small_w16": ((5, 5, 15, 5), (80, 144, 304, 608)),
    "ran_i_small_w32": ((5, 5, 15, 5), (64, 160, 288, 608)),
    "ran_i_base_w16": ((7, 7, 21, 7), (80, 176, 352, 704)),
    "ran_i_base_w32": ((7, 7, 21, 7), (96, 160, 352, 704)),
    "ran_i_nano": ((3, 3, 10, 3), (32, 64, 128, 256)),
    "ran_i_pico": ((3, 3, 10, 3), (16, 32, 64, 128)),
}


class Stage(nn.Module):
    """A norm and a 2x2 convolution of stride 2 (not in the first stage), then blocks."""

    def __init__(
        self, inputs: int, outputs: int, first: bool, rates: list[float], **options: Any
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = (
            nn.Identity()
            if first
            else nn.Sequential(ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, 2))
        )
        self.blocks = Blocks(*(ConvNeXtBlock(outputs, drop_path=r, **options) for r in rates))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(Classifier):
    """Pictures [N, in_chans, H, W] to [N, num_classes]; H and W at least 8 * ``patch_size``.

    ``depths`` and ``dims`` have a number a stage (any number of stages). ``drop_path_rate`` grows
    linearly from 0 at the first block to this at the last. ``patch_size`` 4 is the published
    stem; 1 or 2 suit pictures of 32 pixels.
    Raises ``UsageError`` for depths and dims that do not fit each other.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 4,
        kernel: int = 7,
        expansion: int = 4,
        layer_scale: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths or min(*depths, *dims) < 1:
            raise UsageError(
                f"depths={tuple(depths)} and dims={tuple(dims)}: give as many of each, from 1"
            )
        self.num_classes, self.num_features = num_classes, dims[-1]
        self.head_hidden_size = dims[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], patch_size, patch_size), ChannelNorm(dims[0])
        )
        total = sum(depths)
        rates = [drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        stages, start = [], 0
        options = {"kernel": kernel, "expansion": expansion, "layer_scale": layer_scale}
        for number, (depth, width) in enumerate(zip(depths, dims, strict=True)):
            inputs = dims[max(number - 1, 0)]
            share = rates[start : start + depth]
            stages.append(Stage(inputs, width, number == 0, share, **options))
            start += depth
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": width, "reduction": patch_size * 2**i, "module": f"stages.{i}"}
            for i, width in enumerate(dims)
        ]
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate, norm=True)
        self._draw(head_init_scale)

    @torch.no_grad()
    def _draw(self, head_init_scale: float) -> None:
        """Truncated normal of 0.02, biases 0 (ConvNeXt, appendix A.1)."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            self.head.fc.weight.mul_(head_init_scale)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names for layer-wise learning rates, as timm asks for them."""
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any
    ) -> Any:
        """As torch's; keys of the ConvNeXt reference code (see ``convert_keys``) load too."""
        return super().load_state_dict(convert_keys(state_dict), *arguments, **options)


def convert_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dictionary of the ConvNeXt reference code, under the names used here.

    The authors' checkpoints of RAN-i were written by that code: ``downsample_layers.S.N``,
    ``stages.S.B.dwconv|norm|pwconv1|pwconv2|gamma``, ``norm``, ``head``. Keys that are ours
    already stay. A checkpoint's weights lie under "model" or "model_ema"; give that part
    (``read_state`` does).
    """
    if not any(key.startswith("downsample_layers.") for key in state):
        return dict(state)
    rules = (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )
    found = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _builder(name: str) -> Callable[..., ConvNeXt]:
    depths, dims = VARIANTS[name]

    def build(*, scale: object = None, **options: Any) -> ConvNeXt:
        # ``scale`` is what the registry hands to every family; a classifier has none.
        return ConvNeXt(**{"depths": depths, "dims": dims, **options})

    build.__name__ = name
    return build


for _name in VARIANTS:
    register(_builder(_name))
