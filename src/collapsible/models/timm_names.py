"""Our classifiers under timm's names: ``timm.create_model("ran_i_tiny")``.

Imported by ``collapsible.models`` where timm is installed.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from collapsible.models import ran_e, ran_i


def _facts(first_conv: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head.fc",
    }


default_cfgs = generate_default_cfgs(
    {
        **{name: _facts("stem.0") for name in ran_i.VARIANTS},
        **{name: _facts("stem") for name in ran_e.VARIANTS},
    }
)


def _enter(name: str, family: type[nn.Module], features: tuple[int, ...], **base: Any) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            family,
            name,
            pretrained,
            pretrained_filter_fn=_filter,
            feature_cfg={"out_indices": features, "flatten_sequential": True},
            **{**base, **options},
        )

    create.__name__, create.__module__ = name, __name__
    register_model(create)


def _filter(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    for key in ("model_ema", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    return ran_i.convert_keys(state)


for _name, (_depths, _dims) in ran_i.VARIANTS.items():
    _enter(_name, ran_i.ConvNeXt, (0, 1, 2, 3), depths=_depths, dims=_dims)
for _name, _options in ran_e.VARIANTS.items():
    _enter(_name, ran_e.RanE, (0, 1, 2, 3, 4), **_options)
