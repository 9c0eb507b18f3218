"""Put a trained network among the shipped weights: collapsed weights, picture graph, card."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.deploy.picture_graph import build_picture_graph, save_graph
from collapsible.deploy.quantise import quantise_picture_graph
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.imaging import atomic_write
from collapsible.models.registry import save_weights
from collapsible.weights import FOLDER, Card, normalise_name, sha256


def ship(
    network: nn.Module,
    *,
    architecture: str,
    scale: int,
    folder: Path = FOLDER,
    options: Mapping[str, Any] | None = None,
    training_data: str = "",
    recipe: str = "",
    protocol: str = "",
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    licence: str = "",
    half: bool = False,
    calibration: Sequence[NDArray[np.uint8]] | None = None,
) -> Card:
    """Write ``ARCHITECTURE_xSCALE.safetensors``, ``.onnx`` and ``.json`` to ``folder``.

    The network (SESR or FSRCNN) is collapsed first if it is in its training form, and shipped in
    fp32, with ``half`` rounded to what fp16 holds, in half the bytes (it computes in fp32 all the
    same); with ``calibration`` pictures (see ``quantise_picture_graph``) an ``_int8.onnx`` comes
    beside. ``options`` are those its constructor needs to be built again, besides the scale;
    ``metrics`` maps a set's name to ``EvaluationReport.means``. Each file is written whole or not
    at all, the card last, so that a card never describes files that are not there; its
    SHA-256 sums are of the files as written. ``parameters`` counts weights of convolutions alone,
    as the papers do. Returns the card.
    Raises ``UsageError`` for a network of another scale or family, ``PictureError`` or
    ``WeightsError`` where the folder cannot be written.
    """
    if getattr(network, "scale", None) != scale:
        raise UsageError(f"scale={scale} for a network of x{getattr(network, 'scale', '?')}")
    if any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    network = copy.deepcopy(network).half().float() if half else network.float()
    draft = Card(
        architecture=normalise_name(architecture),
        scale=scale,
        parameters=count_weights(network),
        receptive_radius=int(getattr(network, "receptive_radius", 0)),
        options=dict(options or {}),
        training_data=training_data,
        recipe=recipe,
        protocol=protocol,
        metrics={name: dict(values) for name, values in (metrics or {}).items()},
        licence=licence,
        folder=folder,
    )
    graph = build_picture_graph(network, name=draft.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(copy.deepcopy(network).half() if half else network, draft.safetensors_path)
    save_graph(graph, draft.onnx_path)
    sums = {
        "safetensors": sha256(draft.safetensors_path),
        "onnx": sha256(draft.onnx_path),
    }
    if calibration is not None:
        quantised = quantise_picture_graph(network, calibration, name=draft.architecture)
        save_graph(quantised, draft.int8_path)
        sums["int8"] = sha256(draft.int8_path)
    card = replace(draft, sha256=sums)
    write_card(card)
    return card


def write_card(card: Card) -> None:
    """Write a card where it belongs, whole or not at all.

    Raises ``PictureError`` where the folder cannot be written.
    """
    with atomic_write(card.path) as stream:
        stream.write(card.to_json().encode())


def count_weights(network: nn.Module) -> int:
    """Weights of the convolutions, without biases and slopes: the papers' "parameters"."""
    return sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    )
