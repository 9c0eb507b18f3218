"""What to do about an operator that an Ethos-U does not run."""

from __future__ import annotations

from collections.abc import Sequence

from collapsible.deploy.vela import CpuOperator

# TFLite's name, and the remedy.
REMEDIES = {
    "DEPTH_TO_SPACE": (
        "legalise: a transposed convolution with fixed weights of ones and zeros, stride 2, does "
        "the same on the NPU"
    ),
    "SPACE_TO_DEPTH": "a convolution with fixed weights of ones and zeros, stride 2, does the same",
    "PRELU": "legalise: relu(x) - slope * relu(-x) in supported operators; or train with ReLU",
    "LEAKY_RELU": "a slope between 0 and 1 written as max(x, slope * x); or train with ReLU",
    "GELU": "train with ReLU, ReLU6 or hard swish",
    "ELU": "train with ReLU or hard swish",
    "TRANSPOSE": (
        "where it is part of a depth to space, legalise; elsewhere keep the channels last, so that "
        "nothing has to change places"
    ),
    "RESHAPE": "keep four dimensions with batch 1",
    "TRANSPOSE_CONV": (
        "strides 1 and 2 with SAME or VALID padding run on the NPU; x4 is two of x2, x3 a "
        "convolution to 9 times the channels before depth to space"
    ),
    "RESIZE_BILINEAR": "enlarge by 2, 4 or 8; else a transposed convolution with fixed weights",
    "RESIZE_NEAREST_NEIGHBOR": "enlarge by 2, 4 or 8; else a concatenation and depth to space",
    "BATCH_MATMUL": "attention runs on Ethos-U85; for U55 and U65 take a convolutional network",
    "SOFTMAX": "leave it to the program around the network, or take the largest score instead",
    "CUMSUM": "a convolution with fixed weights of ones",
    "GATHER": "fixed indices become a convolution with fixed weights of ones and zeros",
    "BROADCAST_TO": "add the smaller map itself: additions broadcast; legalise does so",
    "TILE": "add the smaller map itself: additions broadcast; legalise does so",
    "POW": "write whole powers as multiplications",
    "DIV": "multiply by the reciprocal, which is fixed",
    "SQRT": "normalise with batch normalisation, which folds into a convolution",
    "RSQRT": "normalise with batch normalisation, which folds into a convolution",
}
FLOATS = "it computes in floating point: write it as int8 (export with calibration pictures)"


def advise(operators: Sequence[CpuOperator]) -> tuple[str, ...]:
    """A line for each kind of operator: what it is, Vela's reason, the remedy if one is known."""
    floats = [op for op in operators if "FLOAT" in op.reason.upper()]
    if floats:
        names = ", ".join(dict.fromkeys(op.operator for op in floats))
        return (f"{names}: {FLOATS}",)
    lines = []
    for name in dict.fromkeys(op.operator for op in operators):
        found = [op for op in operators if op.operator == name]
        reason = next((op.reason for op in found if op.reason), "")
        remedy = REMEDIES.get(name, "replace it by convolutions, additions or poolings")
        count = f"{len(found)} x {name}" if len(found) > 1 else name
        lines.append(f"{count}: {remedy}" + (f" (Vela: {reason})" if reason else ""))
    return tuple(lines)
