"""What ``reproduce ran/search`` measures of each network, and what it concludes from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.costs import cost
from collapsible.deploy.estimate import estimate
from collapsible.deploy.litert import save_litert
from collapsible.evaluation.classification import score_pictures
from collapsible.reproduce.ran_search_arms import Arms, Trained, write_json
from collapsible.search.int8 import draw_calibration, score_file, train_int8

Bits = NDArray[np.bool_]
# Resamples of pictures for an interval.
DRAWS = 10_000


def measure(arms: Arms, name: str, seed: int, *, train: bool = True) -> dict[str, Any]:
    """An arm's figures, from disk where they are; each picture's hit is kept in hexadecimal.

    ``macs``, ``parameters``; ``fp32``, ``int8`` and ``trained`` are hits; ``fps`` and ``cpu`` by
    target, of the int8 file. ``trained`` (after training in int8 form) is there where the int8
    file lost more than the setting's ``worth`` and ``train`` is true.
    """
    path = arms.folder / f"{name}-{seed}" / "figures.json"
    found: dict[str, Any] = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    wants = arms.setting.int8_steps > 0 and train
    if found and (not wants or "trained" in found or _lost(found) <= arms.setting.worth):
        return found
    made, task = arms.make(name, seed), arms.task(seed)
    (pictures,) = task.sets.values()
    if not found:
        counted = cost(made.deployed, arms.size)
        arms.show(f"{name}-{seed} top-1", 0, 1)
        hits, _ = score_pictures(made.deployed, pictures, task.preprocessing)
        found = {
            "arm": name,
            "seed": seed,
            "macs": counted.macs,
            "parameters": counted.params,
            "pictures": len(pictures),
            "fp32": pack(hits),
            "collapse_error": made.collapse_error,
            "output_range": made.output_range,
        }
        found |= _file_figures(arms, made, made.deployed, "int8")
        write_json(path, found)
    if wants and _lost(found) > arms.setting.worth:
        network, form = train_int8(
            made.deployed,
            task,
            made.folder / "int8",
            steps=arms.setting.int8_steps,
            teacher=arms.base(seed),
            calibration=arms.setting.calibration,
            fabric=arms.fabric,
            resume=True,
            on_step=lambda now: arms.show(
                f"{name}-{seed} in int8 form, loss {now.loss:.3f}", now.step, now.steps
            ),
        )
        found |= _file_figures(arms, made, network, "trained")
        hits, _ = score_pictures(form, pictures, task.preprocessing)
        found["trained_form"] = pack(hits)
        write_json(path, found)
    return found


def _lost(found: dict[str, Any]) -> float:
    return top1(found, "fp32") - top1(found, "int8")


def _file_figures(arms: Arms, made: Trained, network: Any, kind: str) -> dict[str, Any]:
    task, setting = arms.task(made.seed), arms.setting
    (pictures,) = task.sets.values()
    path = made.folder / f"{kind}.tflite"
    arms.show(f"{made.name}-{made.seed} {kind} file", 0, 1)
    save_litert(network, path, arms.size, calibration=draw_calibration(task, setting.calibration))
    hits = score_file(
        path,
        pictures,
        task.preprocessing,
        on_picture=lambda n, of: arms.show(f"{made.name}-{made.seed} {kind}", n, of),
    )
    speeds = {target: estimate(path, target) for target in setting.targets}
    if not speeds:  # a roofline is of the network, not of a file
        speeds = {setting.target: estimate(made.deployed, setting.target, arms.size)}
    return {
        kind: pack(hits),
        f"{kind}_fps": {target: report.fps for target, report in speeds.items()},
        f"{kind}_cpu": {t: list(map(str, report.cpu_operators)) for t, report in speeds.items()},
    }


def pack(hits: Bits) -> str:
    """Hits as text."""
    return np.packbits(hits).tobytes().hex()


def unpack(text: str, count: int) -> Bits:
    """The hits that ``pack`` wrote, of ``count`` pictures."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def hits_of(found: dict[str, Any], kind: str) -> Bits:
    """For each picture whether it was right: ``fp32``, ``int8``, ``trained`` or ``best``.

    ``best`` is the better of the int8 files, ``int8`` and ``trained`` where there is one.
    """
    if kind == "best":
        files = [one for one in ("int8", "trained") if one in found]
        kind = max(files, key=lambda one: top1(found, one))
    return unpack(found[kind], found["pictures"])


def top1(found: dict[str, Any], kind: str) -> float:
    """Top-1 in per cent."""
    return 100 * float(hits_of(found, kind).mean())


def difference(first: Sequence[Bits], second: Sequence[Bits]) -> tuple[float, float, float]:
    """Mean of ``first - second`` in points, seed by seed on the same pictures, and its interval.

    95 % of bootstrap resamples of the pictures, of which all seeds' figures stay together. What
    other seeds would give is not in it.
    """
    gaps = np.stack([a.astype(np.float64) - b for a, b in zip(first, second, strict=True)])
    each = gaps.mean(0)
    # Few values occur, so that a resample is a draw of how often each does.
    values, counts = np.unique(each, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(each), counts / len(each), size=DRAWS)
    low, high = np.percentile(drawn @ values / len(each), [2.5, 97.5])
    return 100 * float(each.mean()), 100 * float(low), 100 * float(high)
