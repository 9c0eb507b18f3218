"""``collapsible defend evaluate``: attacks x defences x classifiers, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress
from collapsible.errors import UsageError, require_packages

ATTACKS = ["fgsm", "pgd", "apgd-ce", "apgd-dlr", "square:queries=500"]


@example(
    "collapsible defend evaluate pictures/val --classifier timm:resnet18@resnet18.safetensors "
    "--defence jpeg:75+wavelet+sesr-m5 --epsilon 4/255 --epsilon 8/255 -o defence"
)
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures in sub-folders named by class (a WordNet id, a number or a "
            "name), or with a labels.csv."
        ),
    ],
    classifier: Annotated[
        list[str],
        typer.Option(
            help="timm:NAME@WEIGHTS, torchvision:NAME@WEIGHTS, a TOML file, or the "
            "weights.safetensors of a training run; may be repeated."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of results; a killed run goes on there.")
    ],
    defence: Annotated[
        list[str] | None,
        typer.Option(
            help="Stages joined by +, such as jpeg:75+wavelet+sesr-m5; may be repeated. "
            "'none' is always measured beside them."
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:setting=value,..., such as pgd:steps=20; may be repeated "
            f"[default: {' '.join(ATTACKS)}]."
        ),
    ] = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(help="Budget in pixel values of [0, 1]; may be repeated [default: 8/255]."),
    ] = None,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    threat: Annotated[
        list[str] | None,
        typer.Option(help="grey-box, adaptive, transfer; may be repeated [default: all]."),
    ] = None,
    eot: Annotated[int, typer.Option(min=1, help="Passes averaged in each attack step.")] = 1,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weights of a defence's network, NAME=FILE, such as sesr-m2=m2.pt."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Which output each class is: JSON, or lines NAME,NUMBER.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures for what runs in int8; none of them is attacked."),
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Side of the pictures in pixels.")] = 224,
    crop: Annotated[float, typer.Option(help="Share of the short side that is kept.")] = 0.875,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many pictures, evenly spaced.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures attacked at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the attacks' random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    audit: Annotated[
        int,
        typer.Option(min=0, help="Pictures for the audit of masked gradients; 0 leaves it out."),
    ] = 16,
    ray: Annotated[bool, typer.Option("--ray", help="Do the jobs on a Ray cluster.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Attack classifiers behind defences, and report what stays right under every attack."""
    require_packages("defend evaluate", "torch", "safetensors", extra="defence")
    from collapsible.defence import Plan, evaluate_defence, read_attack, read_classifier
    from collapsible.defence.plan import THREATS, read_number

    plan = Plan(
        data=str(data),
        classifiers=tuple(read_classifier(text) for text in classifier),
        defences=tuple(defence or ()),
        attacks=tuple(read_attack(text) for text in attack or ATTACKS),
        epsilons=tuple(read_number(text) for text in epsilon or ["8/255"]),
        norm=norm,
        eot=eot,
        threats=tuple(threat or THREATS),
        size=size,
        crop=crop,
        limit=limit,
        batch=batch,
        seed=seed,
        device=device,
        weights=tuple(_pair(text) for text in weights or ()),
        classes=None if classes is None else str(classes),
        calibration=None if calibration is None else str(calibration),
    )
    with progress("preparing") as update:
        report = evaluate_defence(
            plan,
            output,
            audit_pictures=audit,
            ray=ray,
            on_job=lambda done, total, title: update(done=done, total=total, description=title),
        )
    if json:
        print_json(report.json())
        return
    print(report.table())
    print(f"report: {output / 'report.html'}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise UsageError(f"--weights {text!r}: give NAME=FILE, such as sesr-m2=m2.safetensors")
    return name, file
