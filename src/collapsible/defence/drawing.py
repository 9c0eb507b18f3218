"""Pictures inside a page, as data URIs."""

from __future__ import annotations

import base64
import io

from torch import Tensor


def data_uri(picture: Tensor) -> str:
    """A picture [3, H, W] in [0, 1] as a PNG in a data URI; values are rounded to 8 bits."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
