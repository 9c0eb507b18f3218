"""``collapsible collapse``: the deployed form of a network and the error of the map."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json
from collapsible.cli.networks import Network, build, read_size, size_for
from collapsible.errors import UsageError, require_packages

if TYPE_CHECKING:
    from torch import Tensor, nn


@example("collapsible collapse timm:repvgg_a0 --input-size 1,3,224,224 -o repvgg_a0.pt2")
def collapse(
    model: Network,
    scale: Annotated[int, typer.Option(help="Enlargement, where the network has one.")] = 2,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights; if not given, the shipped ones, or newly drawn for timm's."
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(help="Size of the random input to compare on, such as 1,3,224,224."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Estimate the collapsed network on a target too, as `estimate` does."),
    ] = None,
    always: Annotated[
        bool, typer.Option("--always", help="Also merge where that costs more than it saves.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Where to write: .safetensors (weights; networks of this package) or .pt2 "
            "(torch.export program for --input-size; any network).",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fold a network's linear layers into few; prints each rewrite and the measured error."""
    require_packages("collapsing", "torch", "safetensors", extra="train")
    import torch

    from collapsible.folding import collapse as fold

    drawn = model.startswith("timm:") and weights is None
    network = build(model, scale, False, weights or (None if drawn else "default"))
    size = None if input_size is None else read_size(input_size)
    _check_output(model, output, size)
    probe = None if size is None else torch.randn(size, generator=torch.Generator().manual_seed(0))
    deployed, report = fold(network, probe=probe, policy="always" if always else "auto")
    if output is not None:
        _write(deployed, output, probe)
    judged = None
    if target is not None:
        from collapsible.costs.targets import find_target
        from collapsible.deploy.estimate import estimate

        chip = find_target(target)
        size = size_for(network, input_size)
        judged = estimate(deployed, chip, size, legalise=chip.kind == "vela")
    if json:
        facts = loads(report.json())
        if judged is not None:
            facts["estimate"] = loads(judged.json())
        print_json(facts)
        return
    print(report.table())
    if judged is not None:
        print(f"\n{judged.table()}")
    if drawn:
        print("weights             newly drawn (--weights FILE for trained ones)")


def _check_output(model: str, output: Path | None, size: tuple[int, ...] | None) -> None:
    if output is None:
        return
    accepted = {".pt2"} if model.startswith("timm:") else {".pt2", ".safetensors"}
    if output.suffix not in accepted:
        raise UsageError(
            f"{output}: for {model} the output may end with {' or '.join(sorted(accepted))} "
            "(collapsible export writes ONNX and LiteRT files)"
        )
    if output.suffix == ".pt2" and size is None:
        raise UsageError(f"{output}: a .pt2 program is for one input size; give --input-size")


def _write(network: nn.Module, output: Path, probe: Tensor | None) -> None:
    if output.suffix == ".safetensors":
        from collapsible.models.registry import save_weights

        save_weights(network, output)
        return
    import torch

    from collapsible.imaging import atomic_write

    program = torch.export.export(network, (probe,))
    with atomic_write(output) as draft:
        torch.export.save(program, draft)
