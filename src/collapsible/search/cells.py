"""Find a network's cells by the types of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from collapsible.models import SESR
from collapsible.search.mass import Cell, possible_skips


def find_cells(network: nn.Module) -> Iterator[Cell]:
    """The cells in the order of the modules; one module belongs to one cell at most."""
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        reader = _READERS.get(type(module).__name__)
        cell = reader(name or type(module).__name__, module) if reader else None
        if cell is not None:
            inside = (*inside, name)
            yield cell


def _chain(name: str, kind: str, nodes: tuple[int, ...], residual: bool, units: int) -> Cell:
    present = nodes[0] if residual and len(nodes) > 1 else 0
    return Cell(name, kind, nodes, present, possible_skips(nodes), units)


def _convolutions(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _inputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _outputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _convnext(name: str, module: nn.Module) -> Cell | None:
    layers = _convolutions(module)
    if len(layers) < 3:
        return None
    depthwise, wide, _ = layers[:3]
    nodes = (_inputs(depthwise), _inputs(wide), _outputs(wide))
    return _chain(name, "convnext", nodes, True, nodes[2])


def _inverted(name: str, module: nn.Module) -> Cell | None:
    """Ours, timm's and torchvision's: the layers outside squeeze-and-excitation, in order."""
    layers = [
        layer
        for key, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and not {"se", "fc1", "fc2"} & set(key.split("."))
    ]
    if len(layers) < 2:
        return None
    nodes = tuple(layer.in_channels for layer in layers)
    residual = nodes[0] == layers[-1].out_channels and all(
        layer.stride == (1, 1) for layer in layers
    )
    if not getattr(module, "residual", getattr(module, "has_skip", residual)):
        residual = False
    return _chain(name, "inverted-bottleneck", nodes, residual, sum(nodes[1:]))


def _resnet(name: str, module: nn.Module) -> Cell | None:
    layers = [
        layer
        for key, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and key.startswith("conv")
    ]
    if len(layers) < 2:
        return None
    nodes = tuple(layer.in_channels for layer in layers)
    units = sum(nodes[1:]) + layers[-1].out_channels
    return _chain(name, "residual", nodes, True, units)


def _dense_form(name: str, module: nn.Module) -> Cell | None:
    (layer,) = _convolutions(module)
    return _chain(name, "dense-form", (_inputs(layer),), False, _inputs(layer))


def _densenet(name: str, module: nn.Module) -> Cell | None:
    """Every layer adds its growth and is fed all before it: every possible skip is there."""
    kinds = ("_DenseLayer", "DenseLayer")
    layers = [m for m in module.modules() if type(m).__name__ in kinds]
    if not layers:
        return None
    growth = _outputs(_convolutions(layers[0])[-1])
    nodes = (_inputs(_convolutions(layers[0])[0]), *(growth,) * (len(layers) - 1))
    possible = possible_skips(nodes)
    # Each layer has two activations: of all that it is fed, and of its own bottleneck.
    units = sum(
        sum(_inputs(convolution) for convolution in _convolutions(layer)) for layer in layers
    )
    return Cell(name, "densenet", nodes, possible, possible, units)


def _sesr(name: str, module: nn.Module) -> Cell | None:
    if not isinstance(module, SESR):
        return None
    nodes = (module.features,) * len(module.blocks)
    return _chain(name, "sesr", nodes, module.long_residual, sum(nodes))


_READERS: dict[str, Callable[[str, nn.Module], Cell | None]] = {
    "ConvNeXtBlock": _convnext,
    "CNBlock": _convnext,
    "InvertedBottleneck": _inverted,
    "InvertedResidual": _inverted,
    "DepthwiseSeparableConv": _inverted,
    "DenseBlock": lambda name, module: (
        _dense_form(name, module) if hasattr(module, "conv") else _densenet(name, module)
    ),
    "_DenseBlock": _densenet,
    "BasicBlock": _resnet,
    "Bottleneck": _resnet,
    "SESR": _sesr,
}
