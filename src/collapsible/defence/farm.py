"""Jobs on many machines, by Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collapsible.defence.laboratory import JobResult, Laboratory
from collapsible.defence.plan import Job, Plan
from collapsible.errors import require_packages


class Worker:
    """A laboratory on one machine of the cluster; it is made once and does many jobs."""

    def __init__(self, plan: Plan) -> None:
        self.laboratory = Laboratory(plan)

    def do(self, job: Job) -> JobResult:
        return self.laboratory.do(job)


def farm(plan: Plan, jobs: list[Job], *, ray: Any = None) -> Iterator[JobResult]:
    """Do jobs on the Ray cluster at hand (or one started on this machine); yields as they finish.

    Every machine needs the package, the pictures and the weights at the same paths. There are as
    many workers as the cluster has CPUs (GPUs if the plan's device is one) or as there are jobs.
    Raises ``MissingExtraError`` where Ray is not installed, and what a job raises.
    """
    if ray is None:
        require_packages("defend evaluate --ray", "ray", extra="ray")
        import ray as installed  # pyright: ignore[reportMissingImports]

        ray = installed
    if not jobs:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    kind = "GPU" if plan.device.startswith("cuda") else "CPU"
    count = max(1, min(len(jobs), int(ray.cluster_resources().get(kind, 1))))
    needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
    actor = ray.remote(**needs)(Worker)
    workers = [actor.remote(plan) for _ in range(count)]
    waiting = list(jobs)
    running: dict[Any, Any] = {}
    idle = list(workers)
    while waiting or running:
        while waiting and idle:
            worker = idle.pop()
            running[worker.do.remote(waiting.pop(0))] = worker
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            idle.append(running.pop(reference))
            yield _get(ray, reference)


def _get(ray: Any, reference: Any) -> JobResult:
    from collapsible.errors import CollapsibleError

    try:
        return ray.get(reference)
    except Exception as error:
        # Ray wraps what a worker raises; our own errors keep their one line.
        cause = getattr(error, "cause", None)
        if isinstance(cause, CollapsibleError):
            raise cause from error
        raise
