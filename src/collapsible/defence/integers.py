"""Networks as they run on a micro-NPU: int8 LiteRT files inside a defended classifier."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.defence.batches import in_batches
from collapsible.defence.preprocessing_scaling import SuperResolution
from collapsible.deploy.cache import cache_folder, make_cache_folder
from collapsible.deploy.litert import run_litert, save_litert
from collapsible.deploy.npu import fingerprint
from collapsible.errors import UsageError

INT8 = "int8"
BATCH = 4


class IntegerForm(nn.Module):
    """A network whose values are those of its int8 LiteRT file, run by LiteRT's interpreter.

    Maps float [N, C, H, W] to what the network does; H and W may differ from call to call, and
    each size seen in calibration has its own file. Gradients are those of the network in fp32
    (backward pass differentiable approximation, arXiv 1802.00420, section 4.1), since the integers
    have none; so an attack that is told of the rounding loses little by it.
    ``calibrate_integers`` comes first. Files are kept in the cache by network and pictures.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.watching = False
        self._seen: dict[tuple[int, ...], list[Tensor]] = {}
        self._files: dict[tuple[int, ...], Path] = {}

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.network(x)
        if self.watching:
            self._seen.setdefault(tuple(x.shape[1:]), []).append(x.detach().cpu().float())
            return self.network(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Substitute.apply(x, self)  # type: ignore[return-value]
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """What the file makes of ``x``, without a gradient."""
        file = self._file(tuple(x.shape[1:]))
        return torch.from_numpy(run_litert(file, x.detach().cpu().float().numpy())).to(x)

    def _file(self, shape: tuple[int, ...]) -> Path:
        if shape in self._files:
            return self._files[shape]
        if shape not in self._seen:
            known = ", ".join(str(list(one)) for one in self._seen) or "none"
            raise UsageError(
                f"{type(self.network).__name__} in int8 has not been calibrated for inputs "
                f"{list(shape)} (sizes calibrated: {known})"
            )
        arrays = torch.cat(self._seen[shape]).numpy()
        channels, height, width = shape
        size = (1, channels, height, width)
        digest = hashlib.sha256(arrays.tobytes()).hexdigest()[:16]
        path = cache_folder() / f"int8-{fingerprint(self.network, size)}-{digest}.tflite"
        if not path.is_file():
            make_cache_folder(path.parent)
            save_litert(self.network, path, size, calibration=list(arrays))
        self._files[shape] = path
        return path


class _Substitute(torch.autograd.Function):
    """Forward by the file, backward by the fp32 network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: IntegerForm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.form = form
        return form.run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.form.network(x)
        return torch.autograd.grad(y, x, gradients[0])[0], None


def use_integers(stage: SuperResolution) -> SuperResolution:
    """The stage with its network in int8, to be calibrated; the JPEG and the like stay exact."""
    stage.network = IntegerForm(stage.network)
    stage.name = f"{stage.name}:{INT8}"
    return stage


def integer_forms(model: nn.Module) -> list[IntegerForm]:
    """The networks of a model that run in int8."""
    return [module for module in model.modules() if isinstance(module, IntegerForm)]


def calibrate_integers(model: nn.Module, pictures: Tensor) -> None:
    """Show pictures [N, 3, H, W] in [0, 1] to every int8 network of a model, run in fp32.

    What reaches each network decides the ranges of its file. Calls add to what was shown before.
    """
    forms = integer_forms(model)
    for form in forms:
        form.watching = True
    try:
        with torch.no_grad():
            list(in_batches(lambda a, b: model(pictures[a:b]).shape, len(pictures), BATCH))
    finally:
        for form in forms:
            form.watching = False
