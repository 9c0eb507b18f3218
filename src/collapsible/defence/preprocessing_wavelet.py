"""Wavelet denoising as a stage: BayesShrink and a soft threshold, as scikit-image does it.

BayesShrink: Chang, Yu and Vetterli, IEEE TIP 9(9), 2000, equation 8. Colour is treated in YCbCr,
each channel brought to [0, 1] by its own range first, with sigma following it, which is
``skimage.restoration.denoise_wavelet(x, sigma, convert2ycbcr=True, channel_axis=-1)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from collapsible.defence.stages import Stage, passing_clamp
from collapsible.errors import UsageError, require_packages
from collapsible.imaging import RGB_TO_YCBCR, YCBCR_OFFSET, YCBCR_TO_RGB

# What float64 adds to keep a threshold finite where a band holds less than the noise.
LEAST = float(np.finfo(np.float64).eps)


class Wavelet(Stage):
    """Denoise by soft thresholds in the wavelet domain, at noise ``sigma`` of values in [0, 1].

    ``wavelet`` is one of PyWavelets' orthogonal ones (default Haar, scikit-image's). Exact:
    PyWavelets in float64, then clipped to [0, 1]. Torch: the same transform as convolutions, in
    the precision of the pictures (about 1e-5 apart in float32); its gradient is the true one, but
    for the clip, which passes it on.
    Raises ``UsageError`` for a sigma that is not positive or another wavelet, and
    ``MissingExtraError`` without PyWavelets.
    """

    def __init__(self, sigma: float = 0.01, wavelet: str = "db1") -> None:
        super().__init__()
        require_packages("wavelet denoising", "pywt", extra="defence")
        pywt = _pywt()
        if not 0 < sigma < 1:
            raise UsageError(f"wavelet:{sigma}: a sigma between 0 and 1 is accepted")
        if wavelet not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(wavelet).orthogonal:
            raise UsageError(f"wavelet {wavelet!r}: PyWavelets' orthogonal ones, such as db1")
        self.sigma, self.wavelet = sigma, wavelet
        self.name = f"wavelet:{sigma:g}"
        bank = pywt.Wavelet(wavelet)
        self.length = int(bank.dec_len)
        # Reversed for analysis, for torch correlates.
        filters = [bank.dec_lo[::-1], bank.dec_hi[::-1], bank.rec_lo, bank.rec_hi]
        self.register_buffer(
            "filters", torch.tensor(filters, dtype=torch.float64), persistent=False
        )
        self.filters: Tensor

    def _levels(self, height: int, width: int) -> int:
        pywt = _pywt()
        # The three coarsest levels are left alone, as scikit-image does.
        return max(pywt.dwtn_max_level((height, width), self.wavelet) - 3, 1)

    def exact(self, x: Tensor) -> Tensor:
        pictures = x.detach().cpu().double().permute(0, 2, 3, 1).numpy()
        done = np.stack([self._denoise(picture) for picture in pictures])
        return torch.from_numpy(done).permute(0, 3, 1, 2).clamp(0, 1).to(x).contiguous()

    def _denoise(self, rgb: NDArray[np.float64]) -> NDArray[np.float64]:
        planes = rgb @ (RGB_TO_YCBCR.T * 255) + YCBCR_OFFSET
        for i in range(3):
            low, reach = planes[..., i].min(), np.ptp(planes[..., i])
            if reach == 0:
                continue
            sigma = self.sigma * float(np.linalg.norm(RGB_TO_YCBCR[i] * 255)) / reach
            planes[..., i] = self._shrink((planes[..., i] - low) / reach, sigma) * reach + low
        return (planes - YCBCR_OFFSET) @ (YCBCR_TO_RGB.T / 255)

    def _shrink(self, plane: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        pywt = _pywt()
        height, width = plane.shape
        coarse, *levels = pywt.wavedecn(plane, self.wavelet, level=self._levels(height, width))
        shrunk: list[Any] = [coarse]
        for level in levels:
            bands = {}
            for key, band in level.items():
                excess = max(float(np.mean(band * band)) - sigma**2, LEAST)
                bands[key] = pywt.threshold(band, sigma**2 / np.sqrt(excess), mode="soft")
            shrunk.append(bands)
        return pywt.waverecn(shrunk, self.wavelet)[:height, :width]

    def smooth(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        to_ycc = x.new_tensor(RGB_TO_YCBCR * 255)[:, :, None, None]
        offset = x.new_tensor(YCBCR_OFFSET)
        planes = F.conv2d(x, to_ycc, offset)
        low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
        flat = high == low
        reach = torch.where(flat, torch.ones_like(high), high - low)
        norms = x.new_tensor(np.linalg.norm(RGB_TO_YCBCR * 255, axis=1))[None, :, None, None]
        variance = (self.sigma * norms / reach) ** 2
        y = (planes - low) / reach
        details = []
        for _ in range(self._levels(height, width)):
            y, *bands = self._split(y)
            details.append([_soft(band, variance) for band in bands])
        for bands in reversed(details):
            y = self._join(y[..., : bands[0].shape[2], : bands[0].shape[3]], *bands)
        y = y[..., :height, :width] * reach + low
        y = torch.where(flat, planes, y)
        back = x.new_tensor(YCBCR_TO_RGB / 255)[:, :, None, None]
        return passing_clamp(F.conv2d(y - offset[:, None, None], back))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One level of analysis: approximation and the three details."""
        low, high = self._analyse(x, 2)
        return *self._analyse(low, 3), *self._analyse(high, 3)

    def _join(self, aa: Tensor, ad: Tensor, da: Tensor, dd: Tensor) -> Tensor:
        low, high = self._synthesise(aa, ad, 3), self._synthesise(da, dd, 3)
        return self._synthesise(low, high, 2)

    def _analyse(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        length, reach = x.shape[axis], self.length - 1
        # Half-sample symmetric extension, of any length.
        places = torch.arange(-reach + 1, length + reach) % (2 * length)
        places = torch.minimum(places, 2 * length - 1 - places).to(x.device)
        x = x.index_select(axis, places)
        filters = self.filters[:2].to(x)
        result = _along(x, filters, axis, F.conv2d)
        return result[0], result[1]

    def _synthesise(self, low: Tensor, high: Tensor, axis: int) -> Tensor:
        filters = self.filters[2:].to(low)
        lows = _along(low, filters[:1], axis, F.conv_transpose2d)[0]
        highs = _along(high, filters[1:], axis, F.conv_transpose2d)[0]
        cut = self.length - 2
        return (lows + highs).narrow(axis, cut, 2 * low.shape[axis] - cut)


def _pywt() -> Any:
    # Its names are resolved in ways that type checkers do not follow.
    import pywt

    return pywt


def _along(x: Tensor, filters: Tensor, axis: int, convolve: Any) -> list[Tensor]:
    """Each filter along one axis of [N, C, H, W] with stride 2, channel by channel."""
    n, c, height, width = x.shape
    kernel = filters[:, None, :, None] if axis == 2 else filters[:, None, None, :]
    stride = (2, 1) if axis == 2 else (1, 2)
    y = convolve(x.reshape(n * c, 1, height, width), kernel, stride=stride)
    return [y[:, i].reshape(n, c, *y.shape[2:]) for i in range(filters.shape[0])]


def _soft(band: Tensor, variance: Tensor) -> Tensor:
    excess = (band.square().mean((2, 3), keepdim=True) - variance).clamp(min=LEAST)
    return band.sign() * F.relu(band.abs() - variance / excess.sqrt())
