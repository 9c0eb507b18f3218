"""Jobs on many machines, by Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from collapsible.errors import CollapsibleError, require_packages


def farm(
    worker: Callable[[Any], Any],
    setup: Any,
    jobs: Sequence[Any],
    *,
    command: str,
    gpu: bool = False,
    cpus: int = 1,
    ray: Any = None,
) -> Iterator[Any]:
    """Do jobs on the Ray cluster at hand (or one started on this machine); yields as they finish.

    ``worker`` is a class: ``worker(setup)`` is made once on each of as many places as the cluster
    has (``cpus`` CPUs each, or a GPU), or as there are jobs, and its ``do(job)`` does many. Every
    machine needs the package and the files that ``setup`` names at the same paths. ``command`` is
    what asks for Ray, for the message.
    Raises ``MissingExtraError`` where Ray is not installed, and what a job raises.
    """
    if ray is None:
        require_packages(command, "ray", extra="ray")
        import ray as installed  # pyright: ignore[reportMissingImports]

        ray = installed
    if not jobs:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    kind, each = ("GPU", 1) if gpu else ("CPU", cpus)
    places = int(ray.cluster_resources().get(kind, each)) // each
    needs = {"num_gpus": 1} if gpu else {"num_cpus": cpus}
    actor = ray.remote(**needs)(worker)
    idle = [actor.remote(setup) for _ in range(max(1, min(len(jobs), places)))]
    waiting = list(jobs)
    running: dict[Any, Any] = {}
    while waiting or running:
        while waiting and idle:
            free = idle.pop()
            running[free.do.remote(waiting.pop(0))] = free
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            idle.append(running.pop(reference))
            yield _get(ray, reference)


def _get(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except Exception as error:
        # Ray wraps what a worker raises; our own errors keep their one line.
        cause = getattr(error, "cause", None)
        if isinstance(cause, CollapsibleError):
            raise cause from error
        raise
