"""The two functions of a network: its own Y in torch, and the finished picture by the upscaler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError
from collapsible.evaluation.measure import LumaFunction, Subject
from collapsible.evaluation.pairs import luma
from collapsible.imaging import extend
from collapsible.upscaler import Upscaler
from collapsible.weights import find_card, read_card

if TYPE_CHECKING:
    from torch import nn


def shipped(model: str, scale: int, engine: str, precision: str) -> Subject:
    """A shipped model: its collapsed weights in torch, its graph by the upscaler."""
    card = find_card(model, scale)
    network = load_network(card.safetensors_path, card.architecture, scale, card.options)
    upscaler = Upscaler(card, scale=scale, engine=engine, precision=precision)
    quantised = upscaler.graph.quantised
    own = _luma_of_graph(upscaler) if quantised else luma_function(network)
    return _subject(card.name, own, upscaler)


def checkpoint(
    path: Path,
    scale: int,
    engine: str,
    precision: str,
    *,
    architecture: str | None,
    scratch: Path,
) -> Subject:
    """A safetensors file, expanded or collapsed.

    Its picture graph is written to the folder ``scratch``, which must last as long as the result:
    the engine reads it again for each new tile shape.
    """
    from collapsible.deploy import build_picture_graph, save_graph

    name, options = (architecture, {}) if architecture else described(path, scale)
    network = load_network(path, name, scale, options)
    graph = scratch / "checkpoint.onnx"
    save_graph(build_picture_graph(network, name=name), graph)
    upscaler = Upscaler(graph, scale=scale, engine=engine, precision=precision)
    return _subject(str(path), luma_function(network), upscaler)


def picture_graph(path: Path, scale: int, engine: str, precision: str) -> Subject:
    """An ONNX file that ``upscale`` takes, as it is."""
    upscaler = Upscaler(path, scale=scale, engine=engine, precision=precision)
    return _subject(str(path), _luma_of_graph(upscaler), upscaler)


def _subject(name: str, own: LumaFunction, upscaler: Upscaler) -> Subject:
    return Subject(name, own, upscaler, upscaler.engine.name, upscaler.engine.precision)


def load_network(path: Path, architecture: str, scale: int, options: dict[str, Any]) -> nn.Module:
    """The deployed network with a file's weights, fp32, in evaluation mode.

    Collapsed weights are loaded as they are, with no detour through the training form; expanded
    ones are collapsed. Raises ``WeightsError`` for a file that does not fit.
    """
    from collapsible.blocks import CollapsibleConv2d
    from collapsible.folding import collapse
    from collapsible.models import create_model
    from collapsible.models.registry import load_state, read_state

    state = read_state(path)
    network = create_model(architecture, scale=scale, **options)
    collapsible = any(isinstance(m, CollapsibleConv2d) for m in network.modules())
    if not collapsible:
        load_state(network, state, str(path))
        return network.float().eval()
    deployed, _ = collapse(network)
    if set(state) == set(deployed.state_dict()):
        load_state(deployed, state, str(path))
    else:
        load_state(network, state, str(path))
        deployed, _ = collapse(network)
    return deployed.float().eval()


def _facts(folder: Path) -> Path | None:
    """The facts of a checkpoint, or of the newest one below a run's folder."""
    steps = sorted(folder.glob("step-*/facts.json"))
    return next((p for p in (folder / "facts.json", *reversed(steps)) if p.is_file()), None)


def find_network(model: str, scale: int) -> tuple[Path, str, dict[str, Any]]:
    """The weights file, architecture and options of a shipped name or of a weights file.

    Raises ``UnknownNameError`` for a name that did not ship, ``UsageError`` for a file of another
    scale or with nothing beside it that describes it.
    """
    if model.endswith(".safetensors"):
        return Path(model), *described(Path(model), scale)
    card = find_card(model, scale)
    return card.safetensors_path, card.architecture, card.options


def described(path: Path, scale: int) -> tuple[str, dict[str, Any]]:
    """The network of a weights file, from the card or the run's facts beside it."""
    if path.with_suffix(".json").is_file():
        card = read_card(path.with_suffix(".json"))
        found, options, of_scale = card.architecture, card.options, card.scale
    elif (facts_path := _facts(path.parent)) is not None:
        try:
            facts = json.loads(facts_path.read_text(encoding="utf-8"))
            spec = json.loads(facts["recipe"])["network"]
            found, options, of_scale = spec["name"], spec["options"], spec["scale"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{facts_path} is not a run's facts: {error}") from None
    else:
        raise UsageError(
            f"nothing beside {path} says which network it is: give architecture, such as sesr-m5"
        )
    if of_scale != scale:
        raise UsageError(f"{path} enlarges x{of_scale}, not x{scale}")
    return found, options


def luma_function(network: nn.Module) -> LumaFunction:
    """A network (on Y or RGB, values in [0, 1]) as a function from a picture to its enlarged Y.

    The picture is mirrored out to the receptive radius and the result cropped, so that
    the network's zero padding is never seen: this is the deployed function, in the network's own
    precision. A grey picture's values are its Y (and each colour of an RGB network).
    """
    import torch

    radius, scale = _whole(network, "receptive_radius"), _whole(network, "scale")
    colour = getattr(network, "colour", "y")
    parameter = next(network.parameters())

    def enlarge(low: NDArray[Any]) -> NDArray[np.float64]:
        planes: NDArray[Any] = luma(low)[..., None] if colour == "y" else low.astype(np.float64)
        if colour == "rgb" and planes.shape[2] == 1:
            planes = np.repeat(planes, 3, axis=2)
        padded = extend(planes, radius)
        x = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)[None] / 255))
        with torch.inference_mode():
            y = network(x.to(device=parameter.device, dtype=parameter.dtype))
        edge = slice(radius * scale, -radius * scale)
        result = y[0, :, edge, edge].double().cpu().numpy().transpose(1, 2, 0) * 255
        if colour == "y" or low.shape[2] == 1:
            return result.mean(axis=2)
        return luma(np.clip(result, 0, 255))

    return enlarge


def _luma_of_graph(upscaler: Upscaler) -> LumaFunction:
    """The Y of a graph's picture before rounding and clipping, where no torch form computes it."""
    radius, scale = upscaler.graph.radius, upscaler.scale

    def enlarge(low: NDArray[Any]) -> NDArray[np.float64]:
        planes = low if low.shape[2] == 3 else np.repeat(low, 3, axis=2)
        padded = extend(planes, radius)
        large = upscaler.engine.run(padded.astype(np.float32)).astype(np.float64)
        edge = slice(radius * scale, -radius * scale)
        return luma(large[edge, edge] if low.shape[2] == 3 else large[edge, edge, :1])

    return enlarge


def _whole(network: nn.Module, name: str) -> int:
    value = getattr(network, name, None)
    if not isinstance(value, int):
        raise UsageError(f"{type(network).__name__} does not say its {name}: SESR and FSRCNN do")
    return value
