"""JPEG as a stage: Pillow's, and the same standard in torch.

The torch form follows the baseline standard (ITU-T T.81) and JFIF as libjpeg-turbo computes them
at its defaults: chroma at half size (4:2:0) by the mean of 2x2, quantisation tables of Annex K
scaled by the quality, chroma enlarged by the triangle filter. Its transform is in floating point,
so single values may differ from Pillow's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collapsible.defence.stages import Stage, passing_clamp, passing_round
from collapsible.errors import UsageError
from collapsible.imaging import code_jpeg

# ITU-T T.81, tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF 1.02, page 3.
TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


class Jpeg(Stage):
    """Compress and decompress at a quality of 1 to 100, as Pillow does at its defaults.

    Exact: pixels rounded to 8 bits, written and read by Pillow. Torch: within 1 level of it for
    nearly all values; roundings and clips pass the gradient on.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise UsageError(f"jpeg:{quality}: a quality from 1 to 100 is accepted")
        self.quality = quality
        self.name = f"jpeg:{quality}"
        tables = [quantisation_table(base, quality) for base in (LUMA, CHROMA)]
        self.register_buffer("tables", torch.tensor(tables, dtype=torch.float32), persistent=False)
        self.register_buffer("basis", _cosines(), persistent=False)
        self.tables: Tensor
        self.basis: Tensor

    def exact(self, x: Tensor) -> Tensor:
        pixels = (x.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        done = np.stack([code_jpeg(picture, self.quality) for picture in pixels])
        back = torch.from_numpy(done).permute(0, 3, 1, 2).to(x)
        return (back / 255).contiguous()

    def smooth(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        levels = passing_round(passing_clamp(x) * 255)
        shift = x.new_tensor([0.0, 128.0, 128.0])[:, None, None]
        planes = passing_round(_mix(levels, TO_YCBCR) + shift)
        # Whole blocks of 16 pixels, which are 8 of chroma.
        planes = F.pad(planes, (0, -width % 16, 0, -height % 16), mode="replicate")
        luma = self._code(planes[:, :1], self.tables[0])[:, :, :height, :width]
        # libjpeg breaks ties of means by turns: down and up in halving, up and down in doubling.
        halves = F.avg_pool2d(planes[:, 1:], 2)
        chroma = self._code(passing_round(halves + _turns(halves, -0.25, 0.0)), self.tables[1])
        chroma = chroma[:, :, : math.ceil(height / 2), : math.ceil(width / 2)]
        doubled = _double(_double(chroma, 2), 3)
        chroma = passing_round(doubled + _turns(doubled, 0.0, -1 / 16))[:, :, :height, :width]
        rgb = _mix(torch.cat([luma, chroma - 128], 1), TO_RGB)
        return passing_clamp(passing_round(rgb) / 255)

    def _code(self, planes: Tensor, table: Tensor) -> Tensor:
        """Transform, quantise and back, all 8x8 blocks of [N, C, H, W] on the 0..255 scale."""
        n, c, height, width = planes.shape
        basis, table = self.basis.to(planes), table.to(planes)
        blocks = planes.reshape(n, c, height // 8, 8, width // 8, 8).transpose(3, 4) - 128
        # libjpeg's transform yields whole eighths.
        coefficients = passing_round(basis @ blocks @ basis.T * 8) / 8
        # Halves away from zero, as libjpeg; sums of pixels over 8 often are halves exactly.
        steps = coefficients / table
        kept = passing_round(steps + steps.detach().sign() * 1e-4) * table
        blocks = basis.T @ kept @ basis + 128
        planes = blocks.transpose(3, 4).reshape(n, c, height, width)
        # Halves up, as libjpeg: a block of one coefficient often is a half exactly.
        return passing_clamp(passing_round(planes + 1e-3), 0, 255)


def _turns(x: Tensor, even: float, odd: float) -> Tensor:
    """What to add to even and odd columns so that rounding breaks ties the intended way."""
    nudge = 1 / 64
    columns = torch.arange(x.shape[3], device=x.device) % 2
    return torch.where(columns == 0, even + nudge, odd + nudge).to(x)


def quantisation_table(base: tuple[tuple[int, ...], ...], quality: int) -> list[list[int]]:
    """libjpeg's table for a quality (jcparam.c: 50 is the standard's own, 100 is all ones)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[min(max((v * percent + 50) // 100, 1), 255) for v in row] for row in base]


def _cosines() -> Tensor:
    """The orthonormal 8-point DCT-II (T.81, A.3.3)."""
    k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    basis = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.float()


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return F.conv2d(planes, planes.new_tensor(matrix)[:, :, None, None])


def _double(x: Tensor, axis: int) -> Tensor:
    """Twice as long by the triangle filter: each new value is 3/4 its own and 1/4 the next."""
    length = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, length - 1, 1)
    before = torch.cat([first, x.narrow(axis, 0, length - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, length - 1), last], axis)
    pairs = torch.stack([(3 * x + before) / 4, (3 * x + after) / 4], axis + 1)
    shape = list(x.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)
