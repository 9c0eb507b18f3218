"""The networks that ``reproduce ran/search`` compares: made, trained, and found again if killed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from collapsible.deploy.estimate import estimate
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.imaging import atomic_write
from collapsible.models.ran_e import NETWORK_C, NETWORK_GT
from collapsible.models.registry import load_state, read_state
from collapsible.models.trained import create_classifier
from collapsible.reproduce.ran_search_setting import (
    DISTIL,
    NETWORK,
    Setting,
    base_recipe,
    tuning_recipe,
)
from collapsible.search.distillation import DistilTask, teacher_beside
from collapsible.search.gates import recalibrate
from collapsible.search.plan import Plan, apply_plan, read_plan
from collapsible.search.restructure_report import RestructureSpec
from collapsible.search.restructuring import STATISTICS_BATCHES, Restructuring
from collapsible.training import Classification, start_fabric, train

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from collapsible.training import Recipe
    from collapsible.training.loop import Progress

# Widths of torchvision's MobileNetV2, of which the one nearest in latency is taken.
WIDTHS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 1.0)
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """One finished network: wide as trained, and collapsed as deployed."""

    name: str
    seed: int
    network: nn.Module
    deployed: nn.Module
    folder: Path
    collapse_error: float = 0.0
    output_range: float = 0.0


class Arms:
    """All arms of one form, below ``folder``; asked again, what is finished is only read.

    An arm's name is ``base``, ``continued`` (the base trained on as long as the others),
    ``searched``, ``earliest``, ``random-N``, ``pattern-c``, ``pattern-gt``, ``from-scratch`` or
    ``mobilenetv2``. The last eight but ``searched`` follow the searched plan of their seed.
    """

    def __init__(self, setting: Setting, data: Path, folder: Path, show: Show, device: str) -> None:
        self.setting, self.data, self.folder, self.show = setting, data, folder, show
        self.device = device
        self._tasks: dict[int, Classification] = {}

    @cached_property
    def fabric(self) -> Fabric:
        return start_fabric(base_recipe(self.setting, 0), self.device)

    @property
    def size(self) -> tuple[int, int, int, int]:
        return 1, 3, self.setting.test_side, self.setting.test_side

    def task(self, seed: int) -> Classification:
        """The task of everything made of a base; its steps are those after the search."""
        if seed not in self._tasks:
            steps = self.setting.extra - self.setting.search
            recipe = tuning_recipe(self.setting, seed, steps)
            self._tasks[seed] = Classification(recipe, self.data)
        return self._tasks[seed]

    def make(self, name: str, seed: int) -> Trained:
        """Train an arm, or go on with it, or read it."""
        torch.manual_seed(seed)
        if name == "base":
            return self._finish(name, seed, self.base(seed))
        if name == "searched":
            return self._searched(seed)
        if name == "continued":
            return self._tuned(name, seed, self.base(seed))
        if name == "from-scratch":
            return self._tuned(name, seed, self._scratch(seed))
        if name == "mobilenetv2":
            return self._tuned(name, seed, self._mobile(seed))
        network = apply_plan(self.base(seed), self._arranged(name, self.plan(seed)))
        return self._tuned(name, seed, network, statistics=True)

    def base(self, seed: int) -> nn.Module:
        """The trained base of a seed, in evaluation mode."""
        recipe = base_recipe(self.setting, seed)
        torch.manual_seed(seed)
        task = Classification(recipe, self.data)
        network = create_classifier(
            NETWORK, len(task.pictures.classes), width=self.setting.width, drop_rate=0.0
        )
        return self._train(network, task, task.recipe, self.folder / f"base-{seed}")

    def plan(self, seed: int) -> Plan:
        """What the search of a seed has found; it is run if it was not."""
        path = self.folder / f"searched-{seed}" / "plan.toml"
        return read_plan(path) if path.is_file() else self._job(seed).make_plan(self.setting.budget)

    def seconds(self, seed: int) -> dict[str, float]:
        """Of each phase of a seed: the search's own, and of training the base and one candidate."""
        found: dict[str, float] = {}
        for name, key in (("base", "base"), ("continued", "candidate")):
            path = self.folder / f"{name}-{seed}" / "seconds.json"
            if path.is_file():
                spent = json.loads(path.read_text(encoding="utf-8"))
                found |= {f"{key} {what}": float(value) for what, value in spent.items()}
        path = self.folder / f"searched-{seed}" / "report.json"
        if path.is_file():
            spent = json.loads(path.read_text(encoding="utf-8"))["processor_seconds"]
            found |= {f"searched {what}": float(value) for what, value in spent.items()}
        return found

    def _job(self, seed: int) -> Restructuring:
        return Restructuring(
            self.base(seed),
            self.task(seed),
            self.setting.target,
            folder=self.folder / f"searched-{seed}",
            spec=RestructureSpec(search_steps=self.setting.search, distil=DISTIL),
            input_size=self.size,
            resume=True,
            fabric=self.fabric,
            on_progress=lambda phase, done, total, note: self.show(
                f"searched-{seed} {phase} {note}".strip(), done, total
            ),
        )

    def _searched(self, seed: int) -> Trained:
        plan, folder = self.plan(seed), self.folder / f"searched-{seed}"
        weights = folder / "finetune" / "weights.safetensors"
        if (folder / "report.json").is_file() and weights.is_file():
            network = apply_plan(self.base(seed), plan)
            load_state(network, read_state(weights), str(weights))
        else:
            network, _ = self._job(seed).finish(plan)
        return self._finish("searched", seed, network.eval())

    def _arranged(self, name: str, plan: Plan) -> Plan:
        """The plan with other blocks changed: as many and alike, or a published network's."""
        able = [b.name for b in plan.blocks if {"dense", *plan.changed.values()} <= {*b.forms}]
        if name == "earliest":
            chosen = dict(zip(able, plan.changed.values(), strict=False))
        elif name.startswith("random-"):
            drawn = random.Random(int(name.rpartition("-")[2])).sample(able, len(plan.changed))
            chosen = dict(zip(drawn, plan.changed.values(), strict=True))
        else:
            stages = {"pattern-c": NETWORK_C, "pattern-gt": NETWORK_GT}[name]
            wanted = tuple(
                f"stages.{i}.{j}"
                for i, sites in enumerate(stages)
                for j, site in enumerate(sites)
                if site.dense
            )
            dense = [one for one in able if one in wanted or one.startswith(_inside(wanted))]
            chosen = dict.fromkeys(dense, "dense")
        return plan.with_forms(
            {block.name: chosen.get(block.name, "keep") for block in plan.blocks}
        )

    def _scratch(self, seed: int) -> nn.Module:
        """The found network with plain convolutions from the start, trained as the base was."""
        recipe = base_recipe(self.setting, seed)
        task = Classification(recipe, self.data)
        torch.manual_seed(seed)
        fresh = create_classifier(
            NETWORK, len(task.pictures.classes), width=self.setting.width, drop_rate=0.0
        )
        network = narrow_blocks(apply_plan(fresh, self.plan(seed)))
        return self._train(network, task, task.recipe, self.folder / f"from-scratch-{seed}" / "one")

    def _mobile(self, seed: int) -> nn.Module:
        """MobileNetV2 of the searched network's latency, trained as the base was."""
        from torchvision.models import mobilenet_v2

        recipe = base_recipe(self.setting, seed)
        task = Classification(recipe, self.data)
        classes = len(task.pictures.classes)
        width = self.mobile_width(self.plan(seed).after_ms, classes)
        torch.manual_seed(seed)
        network = mobilenet_v2(width_mult=width, num_classes=classes, dropout=0.0)
        return self._train(network, task, task.recipe, self.folder / f"mobilenetv2-{seed}" / "one")

    def mobile_width(self, wanted_ms: float, classes: int) -> float:
        """Of ``WIDTHS`` the one whose latency on the target is nearest; it is kept on disk."""
        from torchvision.models import mobilenet_v2

        path = self.folder / "mobilenetv2-width.json"
        if path.is_file():
            return float(json.loads(path.read_text(encoding="utf-8"))["width"])
        known: dict[float, float] = {}

        def latency(place: int) -> float:
            width = WIDTHS[place]
            if width not in known:
                self.show(f"latency of MobileNetV2 x {width}", len(known), 5)
                network = mobilenet_v2(width_mult=width, num_classes=classes).eval()
                known[width] = estimate(network, self.setting.target, self.size).npu_ms or 0.0
            return known[width]

        low, high = 0, len(WIDTHS) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if latency(middle) < wanted_ms else (low, middle)
        best = min((low, high), key=lambda place: abs(latency(place) - wanted_ms))
        write_json(path, {"width": WIDTHS[best], "ms": known})
        return WIDTHS[best]

    def _tuned(
        self, name: str, seed: int, network: nn.Module, *, statistics: bool = False
    ) -> Trained:
        """``extra`` steps more, with the base as teacher, as the searched network has it."""
        task, folder = self.task(seed), self.folder / f"{name}-{seed}"
        recipe = replace(task.recipe, steps=self.setting.extra, validate_every=self.setting.extra)
        if statistics and not folder.is_dir():
            steps = range(recipe.steps, recipe.steps + STATISTICS_BATCHES)
            recalibrate(network, task, steps, recipe.data.batch)
        wrapped = DistilTask(task, recipe.steps, DISTIL)
        network = self._train(network, wrapped, recipe, folder, teacher=self.base(seed))
        return self._finish(name, seed, network)

    def _train(
        self,
        network: nn.Module,
        task: Any,
        recipe: Recipe,
        folder: Path,
        teacher: nn.Module | None = None,
    ) -> nn.Module:
        weights, done = folder / "weights.safetensors", folder / "seconds.json"
        if not done.is_file():

            def show(now: Progress) -> None:
                label = f"{folder.relative_to(self.folder)} loss {now.loss:.3f}"
                self.show(label, now.step, now.steps)

            start, processor = time.perf_counter(), time.process_time()
            with teacher_beside(network, teacher):
                train(
                    network,
                    _Unmeasured(task),
                    recipe,
                    folder,
                    fabric=self.fabric,
                    resume=True,
                    on_step=show,
                )
            spent = {
                "training": time.perf_counter() - start,
                "processor": time.process_time() - processor,
            }
            write_json(done, spent)
        load_state(network, read_state(weights), str(weights))
        return network.cpu().eval()

    def _finish(self, name: str, seed: int, network: nn.Module) -> Trained:
        folder = self.folder / f"{name}-{seed}"
        probe = torch.rand(self.size, generator=torch.Generator().manual_seed(0))
        try:
            deployed, report = collapse(network, probe=probe)
        except UsageError as error:
            if "nothing to collapse" not in str(error):
                raise
            return Trained(name, seed, network, network, folder)
        return Trained(
            name, seed, network, deployed, folder, report.max_error_float64, report.output_range
        )


class _Unmeasured:
    """A task that measures nothing while it trains: every arm is measured once, in the end."""

    def __init__(self, task: Any) -> None:
        self.batch, self.loss = task.batch, task.loss

    def validate(self, network: nn.Module) -> dict[str, float]:
        return {}


def narrow_blocks(network: nn.Module) -> nn.Module:
    """Fused and dense blocks' wide convolutions as one newly drawn, with its norm."""
    from collapsible.blocks.restructurable import (
        BottleneckConv2d,
        FusedBottleneck,
        PreactivatedBottleneck,
    )

    for module in network.modules():
        if isinstance(module, FusedBottleneck | PreactivatedBottleneck):
            assert isinstance(module.conv, BottleneckConv2d)
            conv = module.conv.narrow()
            conv.register_parameter("bias", None)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            module.conv = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
    return network


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _inside(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)
