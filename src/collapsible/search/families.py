"""Families of networks that ``scale`` moves in: a shape, its closed-form counts, the network.

A shape is a depth and a width a stage. Parameters, MACs, NN-Mass and non-linear units follow from
it by sums over parts, so that a search counts thousands of shapes in a second; the tests hold the
sums to ``costs.cost`` on the built networks. MACs are those of convolutions and linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from collapsible.errors import UnknownNameError, UsageError, require_packages
from collapsible.search.mass import residual_mass


@dataclass(frozen=True, order=True)
class Shape:
    """Blocks and channels of each stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.dims) or min(*self.depths, *self.dims, 1) < 1:
            raise UsageError(f"{self}: give as many depths as dims, each at least 1")

    def __str__(self) -> str:
        depths, dims = (",".join(map(str, values)) for values in (self.depths, self.dims))
        return f"depths {depths} dims {dims}"


@dataclass(frozen=True)
class Part:
    """Something that stands ``repeat`` times in a network.

    Counts are of one of them. ``units`` are the non-linear channels of blocks. ``layers`` are
    (fan-in, output channels) of its convolutions, which
    work on ``pixels`` pixels each.
    """

    params: int
    macs: int
    repeat: int = 1
    mass: float = 0.0
    units: int = 0
    pixels: int = 1
    layers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Counts:
    """What a shape has, for one picture; exact."""

    params: int
    macs: int
    nn_mass: float
    non_linear_units: int


@dataclass(frozen=True)
class Family:
    """How shapes of one kind are counted and built.

    ``base`` is what scaling starts from, ``size`` the usual input (channels, height, width),
    ``step`` the usual width step, ``options`` what the network's constructor is given besides.
    ``cap`` is the depth over width at which scaling stops: the least round number above that of
    published networks of the kind that train well.
    """

    name: str
    base: Shape
    size: tuple[int, int, int]
    step: int
    parts: Callable[[Shape, tuple[int, int, int], dict[str, Any]], list[Part]]
    make: Callable[[Shape, tuple[int, int, int], dict[str, Any]], nn.Module]
    options: dict[str, Any]
    cap: float = 0.2

    def count(self, shape: Shape) -> Counts:
        """The shape's counts at the family's input size."""
        parts = self.parts(shape, self.size, self.options)
        return Counts(
            params=sum(p.repeat * p.params for p in parts),
            macs=sum(p.repeat * p.macs for p in parts),
            nn_mass=sum(p.repeat * p.mass for p in parts),
            non_linear_units=sum(p.repeat * p.units for p in parts),
        )

    def build(self, shape: Shape) -> nn.Module:
        """The network of a shape, newly drawn."""
        return self.make(shape, self.size, self.options)


def _convnext_parts(
    shape: Shape, size: tuple[int, int, int], options: dict[str, Any]
) -> list[Part]:
    patch, classes = options["patch_size"], options["num_classes"]
    channels, height, width = size
    height, width = (height - patch) // patch + 1, (width - patch) // patch + 1
    before, parts = shape.dims[0], []
    weights = channels * patch**2 * before
    pixels = height * width
    parts.append(
        Part(weights + 3 * before, weights * pixels, pixels=pixels,
             layers=((channels * patch**2, before),))
    )  # fmt: skip
    for number, (depth, c) in enumerate(zip(shape.depths, shape.dims, strict=True)):
        if number:
            height, width = height // 2, width // 2
            pixels, weights = height * width, 4 * before * c
            parts.append(
                Part(weights + c + 2 * before, weights * pixels, pixels=pixels,
                     layers=((4 * before, c),))
            )  # fmt: skip
        weights = 49 * c + 8 * c * c
        # Biases c, 4c and c, a norm's 2c, and the layer scale's c.
        parts.append(
            Part(weights + 9 * c, weights * pixels, depth, residual_mass(c, (c, 4 * c)), 4 * c,
                 pixels, ((49, c), (c, 4 * c), (4 * c, c)))
        )  # fmt: skip
        before = c
    parts.append(Part((before + 1) * classes + 2 * before, before * classes))
    return parts


def _convnext(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> nn.Module:
    from collapsible.models import ConvNeXt

    return ConvNeXt(shape.depths, shape.dims, in_chans=size[0], **options)


# Of the inverted-bottleneck family: expansion and stride of each stage, after a stem of stride 2.
_EXPANSIONS, _STRIDES = (1, 6, 6, 6, 6), (1, 2, 2, 2, 2)
_STEM, _TOP = 16, 1280


def _bottleneck_parts(
    shape: Shape, size: tuple[int, int, int], options: dict[str, Any]
) -> list[Part]:
    channels, height, width = size
    height, width = (height + 1) // 2, (width + 1) // 2
    before = _STEM
    pixels = height * width
    stem = 9 * channels * _STEM
    parts = [Part(stem, stem * pixels, pixels=pixels, layers=((9 * channels, _STEM),))]
    for depth, c, t, stride in zip(shape.depths, shape.dims, _EXPANSIONS, _STRIDES, strict=True):
        inside = pixels
        height, width = -(-height // stride), -(-width // stride)
        pixels = height * width
        for inputs, wide, repeat in ((before, inside, 1), (c, pixels, depth - 1)):
            h = t * inputs
            residual = inputs == c and wide == pixels
            parts.append(
                Part(
                    inputs * h + 9 * h + h * c + 4 * h + 2 * c,
                    inputs * h * wide + (9 * h + h * c) * pixels,
                    repeat,
                    residual_mass(inputs, (h, h)) if residual else 0.0,
                    2 * h,
                    pixels,
                    ((inputs, h), (9, h), (h, c)),
                )
            )
        before = c
    parts.append(
        Part(before * _TOP + 49 * _TOP + 4 * _TOP, (before + 49) * _TOP * pixels, pixels=pixels,
             layers=((before, _TOP), (49, _TOP)))
    )  # fmt: skip
    classes = options["num_classes"]
    parts.append(Part((_TOP + 1) * classes, _TOP * classes))
    return parts


def _bottleneck(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> nn.Module:
    from collapsible.models import RanE
    from collapsible.models.ran_e import Site

    stages = tuple(
        tuple(Site(False, c, 3, t, stride if number == 0 else 1) for number in range(depth))
        for depth, c, t, stride in zip(shape.depths, shape.dims, _EXPANSIONS, _STRIDES, strict=True)
    )
    return RanE(stages, stem=_STEM, top=_TOP, in_chans=size[0], **options)


def _resnet_parts(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> list[Part]:
    channels, height, width = size
    before = 64
    height, width = (height + 1) // 2, (width + 1) // 2
    weights = 49 * channels * before
    parts = [
        Part(weights + 2 * before, weights * height * width, pixels=height * width,
             layers=((49 * channels, before),))
    ]  # fmt: skip
    height, width = (height + 1) // 2, (width + 1) // 2
    for number, (depth, c) in enumerate(zip(shape.depths, shape.dims, strict=True)):
        if number:
            height, width = (height + 1) // 2, (width + 1) // 2
        pixels = height * width
        for inputs, repeat, first in ((before, 1, True), (c, depth - 1, False)):
            weights, norms = 9 * inputs * c + 9 * c * c, 4 * c
            if first and (number or inputs != c):
                weights, norms = weights + inputs * c, norms + 2 * c
            parts.append(
                Part(weights + norms, weights * pixels, repeat, residual_mass(inputs, (c,)),
                     2 * c, pixels, ((9 * inputs, c), (9 * c, c)))
            )  # fmt: skip
        before = c
    classes = options["num_classes"]
    parts.append(Part((before + 1) * classes, before * classes))
    return parts


def _resnet(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> nn.Module:
    require_packages("scaling a ResNet", "timm", extra="train")
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock
    return ResNet(
        block,
        shape.depths,
        channels=shape.dims,
        in_chans=size[0],
        **options,
    )


def _sesr_parts(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> list[Part]:
    channels, height, width = size
    (m,), (f,) = shape.depths, shape.dims
    pixels, last = height * width, channels * options["scale"] ** 2
    # The short residuals fold into the kernels; the long one spans all m blocks.
    mass = residual_mass(f, (f,) * (m - 1)) / m
    first, block, end = 25 * channels * f, 9 * f * f, 25 * f * last
    return [
        Part(first + f, first * pixels, pixels=pixels, layers=((25 * channels, f),)),
        Part(block + 2 * f, block * pixels, m, mass, f, pixels, ((9 * f, f),)),
        Part(end + last, end * pixels, pixels=pixels, layers=((25 * f, last),)),
    ]


def _sesr(shape: Shape, size: tuple[int, int, int], options: dict[str, Any]) -> nn.Module:
    from collapsible.folding import collapse
    from collapsible.models import SESR

    (m,), (f,) = shape.depths, shape.dims
    colour = {1: "y", 3: "rgb"}[size[0]]
    # The expansion does not outlive the collapse.
    wide = SESR(m, f, colour=colour, expansion=2 * f, **options)  # type: ignore[arg-type]
    return collapse(wide)[0]


_FAMILIES = (
    Family(
        "convnext", Shape((3, 3, 9, 3), (96, 192, 384, 768)), (3, 224, 224), 16,
        _convnext_parts, _convnext, {"num_classes": 1000, "patch_size": 4},
    ),
    Family(
        "inverted-bottleneck", Shape((1, 2, 3, 6, 4), (16, 24, 40, 96, 192)), (3, 224, 224), 8,
        _bottleneck_parts, _bottleneck, {"num_classes": 1000}, 0.4,  # MobileNetV2: 0.355
    ),
    Family(
        "resnet", Shape((2, 2, 2, 2), (64, 128, 256, 512)), (3, 224, 224), 16,
        _resnet_parts, _resnet, {"num_classes": 1000},
    ),
    Family(
        "sesr", Shape((5,), (16,)), (1, 360, 640), 4, _sesr_parts, _sesr, {"scale": 2},
        0.7,  # SESR-M11: 0.69
    ),
)  # fmt: skip

# Other names: the family, and the shape to start from where it is not the family's own.
_BASES: dict[str, tuple[str, Shape | None]] = {
    "ran_i": ("convnext", None),
    "convnext_tiny": ("convnext", None),
    "convnext_small": ("convnext", Shape((3, 3, 27, 3), (96, 192, 384, 768))),
    "convnext_base": ("convnext", Shape((3, 3, 27, 3), (128, 256, 512, 1024))),
    "convnext_atto": ("convnext", Shape((2, 2, 6, 2), (40, 80, 160, 320))),
    "convnext_femto": ("convnext", Shape((2, 2, 6, 2), (48, 96, 192, 384))),
    "convnext_pico": ("convnext", Shape((2, 2, 6, 2), (64, 128, 256, 512))),
    "inverted_bottleneck": ("inverted-bottleneck", None),
    "resnet18": ("resnet", None),
    "resnet34": ("resnet", Shape((3, 4, 6, 3), (64, 128, 256, 512))),
    "sesr_m5": ("sesr", None),
    "sesr_m11": ("sesr", Shape((11,), (16,))),
    "sesr_xl": ("sesr", Shape((11,), (32,))),
}


def list_bases() -> list[str]:
    """Names that ``find_family`` knows."""
    return sorted({family.name for family in _FAMILIES} | set(_BASES))


def find_family(name: str, *, size: tuple[int, int, int] | None = None, **options: Any) -> Family:
    """The family of a base by name, ``-`` and ``_`` alike, for an input size and options.

    ``size`` is (channels, height, width); ``options`` replace the family's (``num_classes``,
    ``patch_size``, ``scale``). Raises ``UnknownNameError`` for an unknown name, ``UsageError``
    for a size that is too small or an option that the family does not have.
    """
    key = name.replace("-", "_").lower()
    kind, base = _BASES.get(key, (key.replace("_", "-"), None))
    for family in _FAMILIES:
        if family.name == kind:
            break
    else:
        raise UnknownNameError("base", name, list_bases())
    strange = sorted(set(options) - set(family.options))
    if strange:
        raise UsageError(f"{family.name} has no option {strange[0]!r}: {sorted(family.options)}")
    options = {**family.options, **options}
    size = size or family.size
    least = 8 * options.get("patch_size", 4) if family.name != "sesr" else 1
    if len(size) != 3 or min(size) < 1 or min(size[1:]) < least:
        raise UsageError(
            f"size {size}: give channels, height, width; {family.name} needs at least "
            f"{least} x {least} pixels"
        )
    if family.name == "sesr" and size[0] not in (1, 3):
        raise UsageError(f"size {size}: sesr takes 1 channel (y) or 3 (rgb)")
    return Family(
        family.name,
        base or family.base,
        size,
        family.step,
        family.parts,
        family.make,
        options,
        family.cap,
    )
