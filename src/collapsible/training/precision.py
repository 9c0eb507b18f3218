"""What a training run computes in, on the device that it has."""

from __future__ import annotations

import torch


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 (x86: AVX-512; Arm: its bf16 instructions)."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def usable_precision(wanted: str, device: str) -> str:
    """The recipe's ``fp32`` or ``bf16``; ``fp32`` on a CPU that would only imitate ``bf16``.

    Weights, optimiser and loss are float32 in both, so a run may begin in one and go on in the
    other. Imitated, a convolution of 16 channels and its gradients takes about ten times as long
    as in float32 (measured: EPYC without AVX-512, 16 patches of 32x32). ``device`` is ``cpu`` or
    the type of an accelerator.
    """
    if wanted == "bf16" and device == "cpu" and not cpu_computes_bf16():
        return "fp32"
    return wanted
