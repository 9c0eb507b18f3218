"""Pre-processing by name: stages and chains of them, such as ``jpeg:75+wavelet+sesr-m5``.

The paper's order (arXiv 2112.14340, after Mustafa et al., IEEE TIP 2019) is JPEG, wavelet
denoising, then super-resolution. Its settings are not published in what we have: JPEG quality 75
is Pillow's own, sigma 0.01 that of Mustafa et al.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from collapsible.defence.integers import INT8, use_integers
from collapsible.defence.preprocessing_jpeg import Jpeg
from collapsible.defence.preprocessing_scaling import (
    Bicubic,
    Bits,
    Nearest,
    Resize,
    list_rgb_weights,
    load_upscaler,
)
from collapsible.defence.preprocessing_wavelet import Wavelet
from collapsible.defence.stages import Pipeline, Stage
from collapsible.errors import UnknownNameError, UsageError
from collapsible.models import list_models
from collapsible.weights import normalise_name

NONE = "none"
UPSCALERS = ("sesr_*", "fsrcnn*", "edsr*")


def list_stages() -> list[str]:
    """Names that ``create_defence`` knows, without their settings."""
    return sorted([NONE, *_settings(), *_plain(), *_upscalers()])


def create_defence(
    name: str = NONE, *, weights: Mapping[str, str | Path] | None = None
) -> Pipeline:
    """Pre-processing by name: one stage, or several joined by ``+`` in their order.

    ``jpeg:QUALITY``, ``wavelet:SIGMA``, ``bits:N``, ``resize:PIXELS`` (each setting may be left
    out: 75, 0.01, 5, 224), ``nearest``, ``bicubic``, and the x2 networks ``fsrcnn``, ``sesr-m2`` to
    ``sesr-xl``, each also run in int8 as ``NAME:int8``; ``none`` does nothing.
    ``weights`` maps a network's name to a file of weights;
    without one the shipped weights are taken, and where there are none ``UsageError`` says so.
    Pictures are float [N, 3, H, W] in [0, 1], in and out.
    Raises ``UnknownNameError`` with the nearest name, and ``UsageError`` for a setting.
    """
    files = {normalise_name(key): Path(path) for key, path in (weights or {}).items()}
    parts = [part.strip() for part in name.split("+")]
    if parts == [NONE]:
        return Pipeline([], NONE)
    stages = [_create_stage(part, files) for part in parts]
    return Pipeline(stages, "+".join(stage.name for stage in stages))


def _create_stage(text: str, files: Mapping[str, Path]) -> Stage:
    kind, colon, setting = text.partition(":")
    kind = kind.strip().lower()
    if kind in _settings():
        make, read, form = _settings()[kind]
        if not colon:
            return make()
        try:
            value = read(setting)
        except ValueError:
            raise UsageError(f"{text!r}: {kind}:{form} is accepted") from None
        return make(value)
    key = kind.replace("_", "-")
    if key not in _plain() and key not in _upscalers():
        raise UnknownNameError("defence", kind, [*_settings(), *_plain(), *_upscalers(), NONE])
    if key in _plain():
        if colon:
            raise UsageError(f"{text!r}: {key} takes no setting")
        return _plain()[key]()
    if colon and setting.strip().lower() != INT8:
        raise UsageError(f"{text!r}: {key} or {key}:{INT8} is accepted")
    stage = load_upscaler(key, files.get(normalise_name(key)))
    return use_integers(stage) if colon else stage


def _settings() -> dict[str, tuple[Callable[..., Stage], Callable[[str], float], str]]:
    return {
        "jpeg": (Jpeg, int, "QUALITY, a whole number from 1 to 100,"),
        "wavelet": (Wavelet, float, "SIGMA, a number between 0 and 1,"),
        "bits": (Bits, int, "N, a whole number from 1 to 16,"),
        "resize": (Resize, int, "PIXELS, a whole number,"),
    }


def _plain() -> dict[str, Callable[[], Stage]]:
    return {"nearest": Nearest, "bicubic": Bicubic}


def _upscalers() -> list[str]:
    names = {name for pattern in UPSCALERS for name in list_models(pattern)}
    return sorted({name.replace("_", "-") for name in names} | set(list_rgb_weights()))
