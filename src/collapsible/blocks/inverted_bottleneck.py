"""The two block forms of RAN-explicit (arXiv 2208.08562): inverted bottleneck and dense.

The inverted bottleneck (MobileNetV2, arXiv 1801.04381, section 3.3) has two non-linearities on
the wide map. Without them it is one dense convolution, and the dense form is what RAN-e puts in
its place: it keeps one non-linearity, moved in front of the convolution (pre-activation), as two
neighbouring dense blocks would otherwise fold into one.

    bottleneck: 1x1 to h, norm, act -> depthwise kxk, norm, act -> 1x1, norm          (+ x)
    dense:      norm, act -> 3x3, norm                                                (+ x)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from collapsible.errors import UnknownNameError, UsageError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "h_swish": nn.Hardswish,
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
}
# Of the published networks: TensorFlow's momentum 0.99 is torch's 0.01.
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01


def act_layer(name: str) -> nn.Module:
    """A new activation by name. Raises ``UnknownNameError`` for one that is not there."""
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm_layer(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the published networks' constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class InvertedBottleneck(nn.Module):
    """[N, inputs, H, W] to [N, outputs, H / stride, W / stride].

    ``hidden`` channels are between (``expansion * inputs`` if not given). The residual is there
    where the shapes allow it, unless ``residual=False``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        expansion: float = 6,
        hidden: int | None = None,
        act: str = "h_swish",
        residual: bool = True,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 1 or stride < 1:
            raise UsageError(f"kernel={kernel} must be odd and stride={stride} at least 1")
        hidden = round(inputs * expansion) if hidden is None else hidden
        self.stride, self.residual = stride, residual and stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = norm_layer(hidden)
        self.act1 = act_layer(act)
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel, stride, padding=kernel // 2, groups=hidden, bias=False
        )
        self.norm2 = norm_layer(hidden)
        self.act2 = act_layer(act)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm3 = norm_layer(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.expand(x)))
        y = self.act2(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        return x + y if self.residual else y


class DenseBlock(nn.Module):
    """RAN-e's collapsed form; shapes and residual as ``InvertedBottleneck``.

    ``pre_norm=False`` leaves the first norm out, where the input has just passed one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        act: str = "h_swish",
        residual: bool = True,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 1 or stride < 1:
            raise UsageError(f"kernel={kernel} must be odd and stride={stride} at least 1")
        self.stride, self.residual = stride, residual and stride == 1 and inputs == outputs
        self.norm1: nn.Module = norm_layer(inputs) if pre_norm else nn.Identity()
        self.act1 = act_layer(act)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm2 = norm_layer(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv(self.act1(self.norm1(x))))
        return x + y if self.residual else y


class Waist(nn.Module):
    """Two blocks under one residual, narrow between them: C to C / 2 to C (RAN-e's 128-64-128).

    In bottleneck form both hidden widths are ``expansion`` times the outer width.
    """

    def __init__(self, channels: int, *, dense: bool, expansion: float = 6, act: str) -> None:
        super().__init__()
        narrow, hidden = channels // 2, round(channels * expansion)
        if dense:
            self.enter: nn.Module = DenseBlock(channels, narrow, act=act)
            # The narrow map has just passed the first block's norm.
            self.leave: nn.Module = DenseBlock(narrow, channels, act=act, pre_norm=False)
        else:
            self.enter = InvertedBottleneck(channels, narrow, hidden=hidden, act=act)
            self.leave = InvertedBottleneck(narrow, channels, hidden=hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.enter(x))
