"""A small laboratory end to end on real pictures, and what may go wrong in it."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from collapsible.defence import (
    AttackSpec,
    ClassifierSpec,
    DefenceError,
    DefenceReport,
    DefendedClassifier,
    Plan,
    evaluate_defence,
    read_attack,
    read_classifier,
)
from collapsible.defence.evaluate import read_result
from collapsible.defence.laboratory import JobResult, Laboratory
from collapsible.defence.plan import Job, list_jobs, read_number
from collapsible.defence.report import Cell, build_report
from collapsible.errors import MissingExtraError, UnknownNameError, UsageError, WeightsError
from collapsible.farm import farm
from collapsible.models import ClassifierCard, Preprocessing, save_classifier

NAMES = ("mobilenet", "plain")
DEFENCE = "bits:4+nearest"


@pytest.fixture(scope="module")
def run(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[DefenceReport, Path]:
    folder = tmp_path_factory.mktemp("laboratory")
    return evaluate_defence(small_plan, folder), folder


def cells(report: DefenceReport, **wanted: object) -> list[Cell]:
    return [c for c in report.cells if all(getattr(c, k) == v for k, v in wanted.items())]


def test_every_pair_meets_every_attack(run: tuple[DefenceReport, Path]) -> None:
    report, _ = run
    for epsilon in (0.0, 4 / 255):
        for attack in ("fgsm", "pgd:steps=2"):
            for name in NAMES:
                assert {
                    (c.defence, c.threat, c.source, c.through)
                    for c in cells(report, classifier=name, attack=attack, epsilon=epsilon)
                } == {
                    (defence, threat, source, through)
                    for source in NAMES
                    for defence, through in (
                        ("none", "none"),
                        (DEFENCE, "none"),
                        (DEFENCE, DEFENCE),
                    )
                    for threat in [
                        "transfer"
                        if source != name
                        else "adaptive"
                        if defence == through
                        else "grey-box"
                    ]
                }


def test_a_budget_of_0_leaves_clean_accuracy(run: tuple[DefenceReport, Path]) -> None:
    report, _ = run
    for cell in cells(report, epsilon=0.0):
        (clean,) = cells(report, classifier=cell.classifier, defence=cell.defence, threat="clean")
        assert cell.accuracy == clean.accuracy
    for headline in report.headlines:
        if headline.epsilon == 0:
            assert headline.worst == headline.clean


def test_the_clean_figure_is_the_classifiers_own(
    run: tuple[DefenceReport, Path], small_plan: Plan
) -> None:
    """Against torchvision's network, normalised and padded by hand."""
    import torch.nn.functional as F
    from torchvision.models import mobilenet_v2

    laboratory = Laboratory(small_plan)
    network = mobilenet_v2()
    network.load_state_dict(load_file(small_plan.classifiers[0].weights))
    network.float().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda m, args: (F.pad(args[0], (0, 1, 0, 1)),))
    with torch.no_grad():
        scores = network((laboratory.clean * 255 - 128) / 128)
        torch.testing.assert_close(
            laboratory.model("mobilenet", "none")(laboratory.clean), scores, atol=1e-4, rtol=1e-4
        )
    (clean,) = cells(run[0], classifier="mobilenet", defence="none", threat="clean")
    right = (scores.argmax(1) == laboratory.labels["mobilenet"]).sum()
    assert clean.accuracy is not None
    assert clean.accuracy.correct == int(right)


def test_the_headline_is_the_worst_of_all(run: tuple[DefenceReport, Path]) -> None:
    """Counted again from the files, picture by picture."""
    report, folder = run
    results = [json.loads(f.read_text()) for f in (folder / "cells").glob("*.json")]
    for headline in report.headlines:
        alive = [True] * report.pictures
        for result in results:
            if result["job"]["epsilon"] in (headline.epsilon, 0.0):
                if result["job"]["epsilon"] != headline.epsilon and result["job"]["attack"]:
                    continue
                bits = result["outcomes"].get(f"{headline.classifier}|{headline.defence}")
                if bits is not None:
                    assert len(bits) == report.pictures
                    alive = [a and b == "1" for a, b in zip(alive, bits, strict=True)]
        assert headline.worst is not None
        assert headline.worst.correct == sum(alive)
        for kind in (headline.clean, headline.grey_box, headline.adaptive, headline.transfer):
            assert kind is None or headline.worst.correct <= kind.correct


def test_attacks_stay_within_their_budget(run: tuple[DefenceReport, Path]) -> None:
    for file in (run[1] / "cells").glob("*.json"):
        result = json.loads(file.read_text())
        assert result["distance"] <= result["job"]["epsilon"] + 1e-6
        if result["job"]["epsilon"] and result["job"]["attack"]:
            assert result["distance"] > 0.9 * result["job"]["epsilon"]


def test_the_page_needs_nothing_else(run: tuple[DefenceReport, Path]) -> None:
    from html.parser import HTMLParser

    class Pictures(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.sources: list[str] = []
            self.tags: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.sources += [v or "" for k, v in attrs if k in ("src", "href")]

    text = (run[1] / "report.html").read_text(encoding="utf-8")
    page = Pictures()
    page.feed(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & page.tags
    for word in ("clean", "attacked", "what the classifier sees", "attacked less clean"):
        assert word in text
    assert json.loads((run[1] / "report.json").read_text())["pictures"] == 4


def test_a_killed_run_goes_on(
    small_plan: Plan, run: tuple[DefenceReport, Path], tmp_path: Path
) -> None:
    plan = replace(small_plan, epsilons=(4 / 255,), attacks=small_plan.attacks[:1])
    whole = evaluate_defence(plan, tmp_path / "whole")

    def kill(done: int, total: int, title: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_defence(plan, tmp_path / "killed", on_job=kill)
    kept = sorted((tmp_path / "killed" / "cells").iterdir())
    assert len(kept) == 3
    assert not (tmp_path / "killed" / "report.json").exists()
    times = [file.stat().st_mtime_ns for file in kept]
    # What half a write would leave is done again.
    kept[0].write_text(kept[0].read_text()[:100])
    assert evaluate_defence(plan, tmp_path / "killed") == whole
    assert [file.stat().st_mtime_ns for file in kept][1:] == times[1:]
    for name in ("report.json", "report.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_finished_jobs_are_not_done_again(
    run: tuple[DefenceReport, Path], small_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Laboratory, job: Job) -> JobResult:
        raise AssertionError("done again")

    monkeypatch.setattr(Laboratory, "do", never)
    assert evaluate_defence(small_plan, run[1]) == run[0]
    with pytest.raises(AssertionError, match="done again"):
        evaluate_defence(replace(small_plan, seed=1), run[1])


def test_less_memory_gives_the_same_figures(
    small_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: more than two pictures at a time do not fit."""
    job = next(j for j in list_jobs(small_plan) if j.attack is not None and j.epsilon > 0)
    expected = Laboratory(small_plan).do(job)
    own, sizes = DefendedClassifier.forward, []

    def cramped(self: DefendedClassifier, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(x))
        return own(self, x)

    monkeypatch.setattr(DefendedClassifier, "forward", cramped)
    found = Laboratory(small_plan).do(job)
    assert found.outcomes == expected.outcomes
    assert max(sizes) == 2

    def full(self: DefendedClassifier, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(DefendedClassifier, "forward", full)
    with pytest.raises(DefenceError, match="out of memory with a single picture"):
        Laboratory(small_plan)


def test_numbers_that_are_not_finite_give_no_figure(small_plan: Plan, tmp_path: Path) -> None:
    state = load_file(small_plan.classifiers[0].weights)
    state["classifier.1.weight"][:] = torch.nan
    save_file(state, tmp_path / "broken.safetensors")
    spec = replace(small_plan.classifiers[0], weights=str(tmp_path / "broken.safetensors"))
    plan = replace(small_plan, classifiers=(spec,), epsilons=(4 / 255,), defences=())
    report = evaluate_defence(plan, tmp_path / "out")
    (headline,) = report.headlines
    assert headline.clean.correct == 0
    assert headline.worst is None
    assert "not finite" in headline.missing
    assert "no worst case" in report.table()
    json.loads(report.json())


def test_no_claim_without_an_adaptive_attack(small_plan: Plan, tmp_path: Path) -> None:
    plan = replace(
        small_plan,
        threats=("grey-box",),
        epsilons=(4 / 255,),
        attacks=small_plan.attacks[:1],
        classifiers=small_plan.classifiers[:1],
    )
    report = evaluate_defence(plan, tmp_path)
    defended = next(h for h in report.headlines if h.defence == DEFENCE)
    assert defended.grey_box is not None
    assert defended.worst is None
    assert "no adaptive attack" in defended.missing


def test_the_worst_case_is_picture_by_picture(small_plan: Plan) -> None:
    """Two attacks that each leave half, and together nothing."""
    results = []
    for attack, bits in ((None, "1111"), ("fgsm", "1100"), ("pgd", "0011")):
        job: dict[str, Any] = {
            "source": "mobilenet",
            "through": "none",
            "attack": attack and {"name": attack, "settings": []},
            "epsilon": 4 / 255 if attack else 0.0,
            "targets": [["mobilenet", "none"]],
        }
        results.append(JobResult("k", job, {"mobilenet|none": bits}, 0.0, 0.0))
    plan = replace(
        small_plan, classifiers=small_plan.classifiers[:1], defences=(), epsilons=(4 / 255,)
    )
    (headline,) = build_report(plan, 4, results).headlines
    assert headline.worst is not None
    assert (headline.clean.correct, headline.worst.correct) == (4, 0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"attacks": (AttackSpec("pdg"),)}, UnknownNameError, "did you mean 'pgd'"),
        ({"attacks": (AttackSpec("pgd", (("step", 3),)),)}, UnknownNameError, "'steps'"),
        ({"defences": ("jpg",)}, UnknownNameError, "did you mean 'jpeg'"),
        ({"norm": "l3"}, UnknownNameError, "l2|linf"),
        ({"device": "cuda:99"}, UsageError, "cannot be used"),
        ({"weights": (("sesr-m2", "none.pt"),), "defences": ("sesr-m2",)}, WeightsError, "none.pt"),
        ({"defences": ("sesr-m2:int8",)}, UsageError, "calibration pictures"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_work(
    small_plan: Plan, tmp_path: Path, change: dict[str, Any], error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        evaluate_defence(replace(small_plan, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"attacks": ()},
        {"epsilons": (0.1, 0.1)},
        {"threats": ("white",)},
        {"size": 0},
        {"limit": 0},
        {"crop": 0.0},
    ],
)
def test_a_plan_that_cannot_be(small_plan: Plan, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(small_plan, **change)


def test_attacks_on_bare_classifiers_alone(small_plan: Plan) -> None:
    jobs = list(list_jobs(replace(small_plan, bare_only=True)))
    assert {job.through for job in jobs} == {"none"}
    through_none = [job for job in list_jobs(small_plan) if job.through == "none"]
    assert jobs == through_none


def test_numbers_and_attacks_are_read() -> None:
    assert read_number("8/255") == 8 / 255
    assert read_number("0") == 0
    for bad in ("-1", "x", "1/0", "nan", "inf"):
        with pytest.raises(UsageError, match="budget"):
            read_number(bad)
    read = read_attack("pgd:steps=5, step_size=2/255,random_start=false")
    assert dict(read.settings) == {"steps": 5, "step_size": 2 / 255, "random_start": False}
    with pytest.raises(UsageError, match="setting=value"):
        read_attack("pgd:5")


def test_classifiers_are_read(tmp_path: Path, mobilenet: ClassifierSpec) -> None:
    file = tmp_path / "net.toml"
    file.write_text('network = "timm:resnet18"\nweights = "w.safetensors"\nmean = [0, 0, 0]\n')
    spec = read_classifier(file)
    assert (spec.name, spec.weights) == ("net", str(tmp_path / "w.safetensors"))
    assert read_classifier("timm:resnet18@a.pt").network == "timm:resnet18"
    file.write_text('network = "timm:resnet18"\nweight = "w.safetensors"\n')
    with pytest.raises(UnknownNameError, match="did you mean 'weights'"):
        read_classifier(file)
    file.write_text('network = "timm:resnet18"\n')
    with pytest.raises(UsageError, match="weights is needed"):
        read_classifier(file)
    for bad in ("timm:resnet18", str(tmp_path / "none.toml")):
        with pytest.raises(UsageError, match=r"NETWORK@WEIGHTS|cannot read"):
            read_classifier(bad)


def test_networks_that_are_not_there(small_plan: Plan) -> None:
    spec = small_plan.classifiers[0]
    for change, error in (
        ({"network": "torchvision:mobilenet_v9"}, UnknownNameError),
        ({"network": "timm:resnet18"}, WeightsError),
        ({"weights": "none.safetensors"}, WeightsError),
    ):
        with pytest.raises(error):
            Laboratory(replace(small_plan, classifiers=(replace(spec, **change),)))


def test_a_timm_network_of_ten_classes(shared_data: Path, tmp_path: Path) -> None:
    """The number of outputs is the file's; folders in sorted order are its classes."""
    import timm

    network = timm.create_model("test_resnet", num_classes=10)
    save_file(network.state_dict(), tmp_path / "t.safetensors")
    plan = Plan(
        data=str(shared_data / "cls" / "imagenette160" / "val"),
        classifiers=(read_classifier(f"timm:test_resnet@{tmp_path / 't.safetensors'}"),),
        defences=(),
        attacks=(AttackSpec("fgsm"),),
        epsilons=(0.1,),
        size=32,
        limit=10,
    )
    laboratory = Laboratory(plan)
    names = sorted(p.name for p in Path(plan.data).iterdir())
    expected = [names.index(name) for name in laboratory.pictures.names]
    # One class is not among the ten pictures, and the others keep their places.
    assert sorted(set(expected)) != list(range(10))
    assert laboratory.labels["test_resnet"].tolist() == expected
    with torch.no_grad():
        assert laboratory.model("test_resnet", "none")(laboratory.clean).shape == (10, 10)


def test_ray_that_is_not_installed(
    small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ray.*pip install 'collapsible\[ray\]'"):
        list(farm(Laboratory, small_plan, [], command="defend evaluate --ray"))


def test_a_farm_finds_what_one_machine_finds(
    small_plan: Plan, run: tuple[DefenceReport, Path], cluster: Any
) -> None:
    jobs = [job for job in list_jobs(small_plan) if job.source == "plain"][:5]
    found: Iterator[JobResult] = farm(
        Laboratory, small_plan, jobs, command="defend evaluate --ray", ray=cluster
    )
    results = {result.key: result for result in found}
    assert cluster.workers == 2
    assert len(results) == len(jobs)
    for key, result in results.items():
        kept = read_result(run[1], key)
        assert kept is not None
        assert kept.outcomes == result.outcomes


@pytest.mark.slow
def test_ray_itself_finds_what_one_machine_finds(
    small_plan: Plan, run: tuple[DefenceReport, Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    # A process of its own, since Ray leaves threads and settings behind.
    script = (
        "import pickle, sys; from collapsible.defence import evaluate_defence;"
        "evaluate_defence(pickle.load(sys.stdin.buffer), sys.argv[1], ray=True)"
    )
    plan = replace(small_plan, attacks=small_plan.attacks[:1])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        input=pickle.dumps(plan),
        check=True,
        timeout=240,
    )
    keys = [Laboratory(plan).key(job) for job in list_jobs(plan)]
    for key in keys:
        own, here = read_result(tmp_path, key), read_result(run[1], key)
        assert own is not None
        assert here is not None
        assert own.outcomes == here.outcomes


def test_the_table_shows_what_json_says(run: tuple[DefenceReport, Path]) -> None:
    table = run[0].table()
    for headline in json.loads(run[0].json())["headlines"]:
        worst = headline["worst"]
        assert re.search(
            rf"{headline['classifier']}\s+{re.escape(headline['defence'])}.*"
            rf"{100 * worst['value']:.1f} \({100 * worst['low']:.1f}-",
            table,
        )


def test_a_classifier_trained_here_says_itself_what_it_is(
    shared_data: Path, tmp_path: Path
) -> None:
    """Its card names architecture, options, normalisation and the order of the classes."""
    import timm

    names = sorted(p.name for p in (shared_data / "cls" / "imagenette160" / "val").iterdir())
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10, stem_width=16).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    card = ClassifierCard(
        architecture="timm:test_resnet",
        classes=tuple(reversed(names)),
        preprocessing=Preprocessing(size=32, mean=mean, std=std),
        options={"stem_width": 16},
    )
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "weights.safetensors"
    save_classifier(network, card, file)
    spec = read_classifier(str(file))
    assert spec.name == "mine"
    plan = Plan(
        data=str(shared_data / "cls" / "imagenette160" / "val"),
        classifiers=(spec,),
        defences=(),
        attacks=(AttackSpec("fgsm"),),
        epsilons=(0.1,),
        size=32,
        limit=10,
    )
    laboratory = Laboratory(plan)
    wanted = [9 - names.index(name) for name in laboratory.pictures.names]
    assert laboratory.labels["mine"].tolist() == wanted
    clean = laboratory.clean
    shape = (1, 3, 1, 1)
    given = (clean - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with torch.no_grad():
        torch.testing.assert_close(laboratory.model("mine", "none")(clean), network(given))
    file.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="no card"):
        read_classifier(str(file))
