"""``collapsible scale``: networks for a budget by counting, and what the counts are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.errors import UsageError, require_packages

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}


def read_amount(text: str, option: str) -> float:
    """``4.5G`` as a number; K, M and G are thousands. Raises ``UsageError`` for anything else."""
    digits, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        value = float(digits) * (_UNITS[unit] if unit else 1.0)
    except (KeyError, ValueError):
        raise UsageError(f"{option} {text!r}: give a number with K, M or G, as 4.5G") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} {text!r}: a budget is above 0")
    return value


def _command(name: str, base: str, about: str, usage: str) -> Any:
    def command(
        macs: Annotated[str | None, typer.Option(help="Budget of MACs, as 4.5G.")] = None,
        params: Annotated[str | None, typer.Option(help="Budget of parameters, as 20M.")] = None,
        latency_ms: Annotated[
            float | None, typer.Option(help="Budget of milliseconds, measured on this CPU.")
        ] = None,
        latency_share: Annotated[
            float | None,
            typer.Option(help="Budget of latency over the base's, both measured on this CPU."),
        ] = None,
        npu_latency_ms: Annotated[
            float | None, typer.Option(help="Budget of milliseconds, estimated for --target.")
        ] = None,
        peak_memory: Annotated[
            str | None, typer.Option(help="Budget of bytes of maps, as 4M.")
        ] = None,
        target: Annotated[str, typer.Option(help="Chip for --npu-latency-ms.")] = "ethos-u65-256",
        rule: Annotated[
            str, typer.Option(help="mass, entropy, paper, width, depth or random.")
        ] = "mass",
        input_size: Annotated[
            str | None, typer.Option(help="Channels, height, width, as 3,160,160.")
        ] = None,
        step: Annotated[
            int | None, typer.Option(help="Widths are multiples of this [default: the family's].")
        ] = None,
        cap: Annotated[
            float | None, typer.Option(help="Most depth over width [default: the family's].")
        ] = None,
        top: Annotated[int, typer.Option(help="Candidates to show.")] = 10,
        classes: Annotated[int | None, typer.Option(help="Classes, where there are any.")] = None,
        plot: Annotated[
            Path | None, typer.Option(help="Draw score over depth by width to this file.")
        ] = None,
        json: Json = False,
        debug: Debug = False,
    ) -> None:
        require_packages("scaling", "torch", "safetensors", extra="train")
        from collapsible.search import scale as solve

        size = None if input_size is None else _read_size(input_size)
        options = {} if classes is None else {"num_classes": classes}
        with progress("searching"):
            report = solve(
                base,
                rule=rule,
                macs=None if macs is None else read_amount(macs, "--macs"),
                params=None if params is None else read_amount(params, "--params"),
                latency_ms=latency_ms,
                latency_share=latency_share,
                npu_latency_ms=npu_latency_ms,
                peak_memory=None
                if peak_memory is None
                else read_amount(peak_memory, "--peak-memory"),
                target=target,
                size=size,
                step=step,
                cap=cap,
                top=top,
                **options,
            )
        if plot is not None:
            report.plot(plot)
            complain(f"wrote {plot}")
        print_json(report.json()) if json else print(report.table())

    command.__name__ = name
    command.__doc__ = about
    return example(usage)(command)


def _read_size(text: str) -> tuple[int, int, int]:
    from collapsible.cli.networks import read_size

    size = read_size(text)
    if len(size) != 3:
        raise UsageError(f"--input-size {text!r}: give channels, height, width, as 3,224,224")
    return size[0], size[1], size[2]


ran_i = _command(
    "ran_i", "ran_i", "ConvNeXt networks from ConvNeXt-T, as RAN-i's.",
    "collapsible scale ran-i --macs 4.5G",
)  # fmt: skip
inverted_bottleneck = _command(
    "inverted_bottleneck", "inverted-bottleneck", "Networks of inverted bottlenecks.",
    "collapsible scale inverted-bottleneck --npu-latency-ms 5 --target ethos-u65-256",
)  # fmt: skip
resnet = _command(
    "resnet", "resnet", "ResNets of basic blocks, from ResNet-18.",
    "collapsible scale resnet --params 8M --plot pareto.png",
)  # fmt: skip
sesr = _command(
    "sesr", "sesr", "SESR networks for super-resolution, from SESR-M5.",
    "collapsible scale sesr --macs 3G --input-size 1,360,640",
)  # fmt: skip


@example("collapsible scale correlate")
def correlate(
    file: Annotated[
        Path | None, typer.Option(help="Benchmark results [default: the shipped ones].")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Train what is missing in --file first, on this tar of CIFAR-10."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Correlate training-free proxies with the accuracy of small trained networks."""
    require_packages("correlating", "torch", "safetensors", extra="train")
    from collapsible.search import benchmark
    from collapsible.search.correlation import SHIPPED, correlate

    if train is not None:
        if file is None:
            raise UsageError("--train needs --file, which the results go to")
        plan = benchmark.Plan()
        with progress("training", plan.networks) as update:
            benchmark.train_benchmark(train, file, plan, lambda done, total, one: update(done=done))
    with progress("scoring") as update:
        report = correlate(file or SHIPPED, tell=lambda done, total: update(done=done, total=total))
    print_json(report.json()) if json else print(report.table())
