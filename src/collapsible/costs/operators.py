"""What one operator call costs in multiply-accumulates and non-linear evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

from collapsible.costs.trace import Step, Value


def _convolution(step: Step) -> int:
    """Each output (of a transposed one: each input) meets one kernel of all channels."""
    picture, kernel, transposed = step.args[0], step.args[1], step.args[6]
    pixels = picture.elements if transposed else step.outputs[0].elements
    return pixels * math.prod(kernel.shape[1:])


def _product(left: int, right: int) -> Callable[[Step], int]:
    """A matrix product whose factors are these arguments: every row by every column."""

    def macs(step: Step) -> int:
        first: Value = step.args[left]
        second: Value = step.args[right]
        return first.elements * (second.shape[-1] if len(second.shape) > 1 else 1)

    return macs


def _linear(step: Step) -> int:
    return step.outputs[0].elements * step.args[1].shape[-1]


def _attention(step: Step) -> int:
    """Query by key, then the softmax by value: two products for each head."""
    query, key, value = step.args[0], step.args[1], step.args[2]
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_attention_math",
)
CONVOLUTION = "aten.convolution"
MACS: dict[str, Callable[[Step], int]] = {
    CONVOLUTION: _convolution,
    "aten.mm": _product(0, 1),
    "aten.bmm": _product(0, 1),
    "aten.mv": _product(0, 1),
    "aten.dot": _product(0, 1),
    "aten.addmm": _product(1, 2),
    "aten.addmv": _product(1, 2),
    "aten.addbmm": _product(1, 2),
    "aten.baddbmm": _product(1, 2),
    "aten.linear": _linear,
    **dict.fromkeys(ATTENTION, _attention),
}

# Operators that multiply and accumulate in a way that is not counted here. Whatever comes from
# outside PyTorch's own set (``aten``) is unknown too.
UNKNOWN = {
    "aten._cdist_forward",
    "aten._trilinear",
    "aten.conv_tbc",
    "aten.lstm",
    "aten.gru",
    "aten.rnn_tanh",
    "aten.rnn_relu",
    "aten.mkldnn_rnn_layer",
    "aten._thnn_fused_lstm_cell",
    "aten._thnn_fused_gru_cell",
    "aten.grid_sampler_2d",
    "aten.grid_sampler_3d",
    "aten._fft_r2c",
    "aten._fft_c2r",
    "aten._fft_c2c",
    "aten._embedding_bag",
    "aten.linalg_inv_ex",
    "aten.linalg_lu_factor_ex",
    "aten._linalg_svd",
    "aten._linalg_eigh",
}

_ACTIVATIONS = """
    relu relu6 hardtanh hardswish hardsigmoid sigmoid tanh silu gelu mish elu leaky_relu
    log_sigmoid_forward softplus softshrink hardshrink threshold rrelu prelu _prelu_kernel clamp
    clamp_min clamp_max exp log erf _softmax _safe_softmax _log_softmax glu
"""
# Counted by what comes out: one comparison of a whole window.
_MAX_POOLS = "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d max_pool2d"
ACTIVATIONS = {f"aten.{name}" for name in _ACTIVATIONS.split()}
MAX_POOLS = {f"aten.{name}" for name in _MAX_POOLS.split()}


def plain(op: str) -> str:
    """An operator's name without the mark of working in place."""
    return op.rstrip("_")


def macs(step: Step) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products; no bias."""
    count = MACS.get(plain(step.op))
    return count(step) if count else 0


def non_linear(step: Step) -> int:
    """Elements that go through an activation or a softmax; windows of a max pooling."""
    op = plain(step.op)
    if step.on_weights:
        return 0
    if op in ACTIVATIONS:
        return step.args[0].elements
    if op in ATTENTION:
        query, key = step.args[0], step.args[1]
        return math.prod(query.shape[:-1]) * key.shape[-2]
    return step.outputs[0].elements if op in MAX_POOLS else 0


def is_unknown(step: Step) -> bool:
    """Whether the call may multiply and accumulate without being counted."""
    return plain(step.op) in UNKNOWN or not step.op.startswith("aten.")
