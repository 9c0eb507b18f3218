"""Enlarge one 1920x1080 picture by each engine and precision, and by OpenCV's FSRCNN.

    python benchmarks/upscale.py [--model sesr-m5 ...] [--scale 2] [--fsrcnn FILE.pb] [--json FILE]

Ratios are to the first model by OpenVINO in fp32. OpenCV's ``dnn_superres`` needs opencv-contrib
and the network's file, neither of which comes with this project; it is reported as absent without
them. A model may be an .onnx file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from timing import finish, parser, summarise, take_turns

from collapsible.errors import CollapsibleError
from collapsible.upscaler import Upscaler

HEIGHT, WIDTH = 1080, 1920


def opencv(weights: Path | None, scale: int, picture: np.ndarray) -> tuple[Any, str]:
    """A function that enlarges by OpenCV, or None and the reason."""
    if find_spec("cv2") is None:
        return None, "absent: opencv-contrib is not installed"
    import cv2

    if not hasattr(cv2, "dnn_superres"):
        return None, "absent: this OpenCV has no dnn_superres (it is in opencv-contrib)"
    if weights is None:
        return None, "absent: no network given (--fsrcnn)"
    network = cv2.dnn_superres.DnnSuperResImpl_create()
    network.readModel(str(weights))
    network.setModel("fsrcnn", scale)
    return lambda: network.upsample(picture), ""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", nargs="+", default=["sesr-m5"])
    options.add_argument("--scale", type=int, default=2)
    options.add_argument("--fsrcnn", type=Path)
    given = options.parse_args()
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    cases: dict[str, Callable[[], Any]] = {}
    absent = {}
    ways = (
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    )
    for model, (engine, precision) in product(given.model, ways):
        name = f"{model} {engine} {precision}"
        if find_spec(engine) is None:
            absent[name] = "absent: not installed"
            continue
        try:
            upscaler = Upscaler(
                model,
                scale=given.scale,
                engine=engine,
                precision=precision,
                threads=given.threads,
            )
        except CollapsibleError as error:
            absent[name] = f"absent: {error}"
            continue
        cases[name] = lambda upscaler=upscaler: upscaler(picture)
    enlarge, reason = opencv(given.fsrcnn, given.scale, picture)
    if enlarge is None:
        absent["opencv dnn_superres fsrcnn"] = reason
    else:
        import cv2

        cv2.setNumThreads(given.threads)
        cases["opencv dnn_superres fsrcnn"] = enlarge
    measured = summarise(take_turns(cases, given.rounds), next(iter(cases)))
    result = {
        "picture": f"{WIDTH}x{HEIGHT}",
        "models": given.model,
        "scale": given.scale,
        "threads": given.threads,
        "cases": {**measured, **absent},
    }
    finish(result, given.json)


if __name__ == "__main__":
    main()
