"""One registry of network builders by name."""

from __future__ import annotations

import fnmatch
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.errors import UnknownNameError, UsageError, WeightsError, require_packages
from collapsible.weights import find_card, normalise_name

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
# Filled by the decorator while this package is imported, and only read afterwards.
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Builder) -> Builder:
    """Add a builder under its function's name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern; ``-`` and ``_`` are alike."""
    return sorted(fnmatch.filter(_BUILDERS, normalise_name(pattern)))


def create_model(
    name: str,
    *,
    scale: int = 2,
    weights: str | Path | None = None,
    **options: object,
) -> nn.Module:
    """Build a network in its training form.

    ``name`` is one of ``list_models()``, or ``timm:NAME`` for any network of timm, which has no
    ``scale``. ``weights`` is None (newly drawn), ``"default"`` (the shipped ones; of timm's there
    are none) or a file of them (see ``read_state``), in expanded or collapsed form. ``options``
    go to the family's constructor (``colour``, ``act``, ``expansion``, ...; ``num_classes``).
    Raises ``UnknownNameError`` for a name that is not registered, ``UsageError`` for options the
    family does not have or weights that were not shipped, ``WeightsError`` for weights that do
    not fit.
    """
    if name.startswith("timm:"):
        return _create_timm(name.removeprefix("timm:"), weights, options)
    key = normalise_name(name)
    if key not in _BUILDERS:
        raise UnknownNameError("network", name, _BUILDERS)
    path: Path | None = None
    if weights == "default":
        card = find_card(name, scale)
        path, options = card.safetensors_path, {**card.options, **options}
    elif weights is not None:
        path = Path(weights)
    try:
        network = _BUILDERS[key](scale=scale, **options)
    except TypeError as error:
        raise UsageError(f"{key}: {error}") from error
    if path is not None:
        load_weights(network, path)
    return network


def _create_timm(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    require_packages(f"timm:{name}", "timm", extra="train")
    import timm

    if not timm.is_model(name):
        known = timm.list_models(f"*{name[:4]}*") or timm.list_models()[:8]
        raise UnknownNameError("timm network", name, known)
    if weights == "default":
        raise UsageError(f"timm:{name}: no weights are shipped for it; give a file of them")
    try:
        network = timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        raise UsageError(f"timm:{name}: {error}") from error
    if weights is not None:
        load_weights(network, Path(weights))
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file of weights (see ``read_state``) into a network, in place.

    The file holds either the network's own parameters or its collapsed form, whose kernels are
    then factored into the wide blocks exactly. Raises ``WeightsError`` where it does not fit.
    """
    load_state(network, read_state(path), str(path))


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a torch file (.pt, .pth, .tar).

    No code in a file is run: a torch file may hold tensors, plain values and a script's bare
    arguments (``argparse.Namespace``, as the ConvNeXt reference code keeps them beside its
    weights); anything else is refused. Of a checkpoint with averaged weights (``model_ema``,
    ``state_dict_ema``) those are taken, which is what published accuracies are of.
    Raises ``WeightsError`` for a file that is neither.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix.lower() in {".pt", ".pth", ".tar"}:
        return _read_torch_state(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from error


def _read_torch_state(path: Path) -> dict[str, torch.Tensor]:
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings():
            # Of a pickle protocol that it may then refuse.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except UnpicklingError as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise WeightsError(
            f"{path}: refused: it holds more than tensors, or is no torch file ({reason}); "
            "accepted are safetensors and torch files of tensors alone"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise WeightsError(f"{path}: not a readable torch file: {error}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path}: holds no dictionary of tensors")
    return state


def load_state(network: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dictionary, expanded or collapsed, into a network, in place.

    Half floats are how some are kept; they are computed with in the network's own precision.
    """
    state = {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}
    try:
        for name, block in network.named_modules():
            if isinstance(block, CollapsibleConv2d) and f"{name}.weight" in state:
                block.load_kernel(state.pop(f"{name}.weight"), state.pop(f"{name}.bias", None))
                for key, value in block.state_dict(prefix=f"{name}.").items():
                    state[key] = value
        network.load_state_dict(state)
    except (RuntimeError, UsageError) as error:
        lines = " ".join(str(error).split())
        raise WeightsError(f"{source} does not fit {type(network).__name__}: {lines}") from error


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's state to a safetensors file: whole, or not at all."""
    from safetensors.torch import save

    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    draft = path.with_name(f".{path.name}.draft")
    try:
        # Not save_file: what that writes is for its owner's eyes alone.
        draft.write_bytes(save(state))
        draft.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
