"""Exact algebra of convolution kernels (floor 0, torch).

Everything here maps kernels to kernels; nothing holds parameters or runs on pictures.
"""

from collapsible.algebra.kernels import (
    compose,
    densify,
    fold_batch_norm,
    identity_kernel,
    pad_kernel,
    same_padding,
)
from collapsible.algebra.receptive import ReceptiveField, receptive_field

__all__ = [
    "ReceptiveField",
    "compose",
    "densify",
    "fold_batch_norm",
    "identity_kernel",
    "pad_kernel",
    "receptive_field",
    "same_padding",
]
