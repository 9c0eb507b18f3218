"""The rows of SESR's tables 1 (x2) and 2 (x4), as published (arXiv 2103.09404)."""

from __future__ import annotations

from dataclasses import dataclass

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109", "DIV2K")


@dataclass(frozen=True)
class Published:
    """A network's row: weights and MACs to 1280x720, PSNR (dB) and SSIM on Y for each set.

    ``weights`` and ``macs`` are rounded as printed, None for bicubic; ``scores`` has (PSNR, SSIM)
    by set, without the sets that the paper leaves empty. ``model`` is our name of the network.
    """

    name: str
    weights: float | None
    macs: float | None
    scores: dict[str, tuple[float, float]]
    model: str | None = None


def _read(text: str) -> tuple[Published, ...]:
    rows = []
    for line in text.strip().splitlines():
        name, model, weights, macs, *pairs = (cell.strip() for cell in line.split("|"))
        scores = {
            set_name: (float(pair.split("/")[0]), float(pair.split("/")[1]))
            for set_name, pair in zip(SETS, pairs, strict=True)
            if pair
        }
        rows.append(
            Published(
                name,
                float(weights) * 1e3 if weights else None,
                float(macs) * 1e9 if macs else None,
                scores,
                model or None,
            )
        )
    return tuple(rows)


# FSRCNN: as its own paper has it, and * as trained by SESR's authors.
# name | our name | thousand weights | G MACs | a column a set
_X2 = """
bicubic|bicubic|||33.68/.9307|30.24/.8693|29.56/.8439|26.88/.8408|30.82/.9349|32.45/.9043
FSRCNN*|fsrcnn|12.46|6.00|36.85/.9561|32.47/.9076|31.37/.8891|29.43/.8963|35.81/.9689|34.73/.9349
FSRCNN|fsrcnn|12.46|6.00|36.98/.9556|32.62/.9087|31.50/.8904|29.85/.9009|36.62/.9710|34.74/.9340
MOREMNAS-C||25|5.5|37.06/.9561|32.75/.9094|31.50/.8904|29.92/.9023||
SESR-M3|sesr_m3|8.91|2.05|37.21/.9577|32.70/.9100|31.56/.8920|29.92/.9034|36.47/.9717|35.03/.9373
SESR-M5|sesr_m5|13.52|3.11|37.39/.9585|32.84/.9115|31.70/.8938|30.33/.9087|37.07/.9734|35.24/.9389
SESR-M7|sesr_m7|18.12|4.17|37.47/.9588|32.91/.9118|31.77/.8946|30.49/.9105|37.14/.9738|35.32/.9395
TPSR-NoGAN||60|14.0|37.38/.9583|33.00/.9123|31.75/.8942|30.61/.9119||
SESR-M11|sesr_m11|27.34|6.30|37.58/.9593|33.03/.9128|31.85/.8956|30.72/.9136|37.40/.9746|35.45/.9404
VDSR||665|612.6|37.53/.9587|33.05/.9127|31.90/.8960|30.77/.9141|37.16/.9740|35.43/.9410
LapSRN||813|29.9|37.52/.9590|33.08/.9130|31.80/.8950|30.41/.9100|37.53/.9740|35.31/.9400
CARN-M||412|91.2|37.53/.9583|33.26/.9141|31.92/.8960|31.23/.9193||
SESR-XL|sesr_xl|105.37|24.27|37.77/.9601|33.24/.9145|31.99/.8976|31.16/.9184|38.01/.9759|35.67/.9420
"""
_X4 = """
bicubic|bicubic|||28.43/.8113|26.00/.7025|25.96/.6682|23.14/.6577|24.90/.7855|28.10/.7745
FSRCNN|fsrcnn|12.46|4.63|30.70/.8657|27.59/.7535|26.96/.7128|24.60/.7258|27.89/.8590|29.36/.8110
SESR-M3|sesr_m3|13.71|0.79|30.75/.8714|27.62/.7579|27.00/.7166|24.61/.7304|27.90/.8644|29.52/.8155
SESR-M5|sesr_m5|18.32|1.05|30.99/.8764|27.81/.7624|27.11/.7199|24.80/.7389|28.29/.8734|29.65/.8189
SESR-M7|sesr_m7|22.92|1.32|31.14/.8787|27.88/.7641|27.13/.7209|24.90/.7436|28.53/.8778|29.72/.8204
SESR-M11|sesr_m11|32.14|1.85|31.27/.8810|27.94/.7660|27.20/.7225|25.00/.7466|28.73/.8815|29.81/.8221
VDSR||665|612.6|31.35/.8838|28.02/.7678|27.29/.7252|25.18/.7525|28.82/.8860|29.82/.8240
LapSRN||813|149.4|31.54/.8850|28.19/.7720|27.32/.7280|25.21/.7560|29.09/.8900|29.88/.8250
CARN-M||412|32.5|31.92/.8903|28.42/.7762|27.44/.7304|25.62/.7694||
SESR-XL|sesr_xl|114.97|6.62|31.54/.8866|28.12/.7712|27.31/.7277|25.31/.7604|29.04/.8901|29.94/.8266
"""


def published(scale: int) -> tuple[Published, ...]:
    """The rows of the paper's table for x2 or x4."""
    return _read({2: _X2, 4: _X4}[scale])
