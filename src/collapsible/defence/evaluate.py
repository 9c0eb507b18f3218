"""Do a plan: every job once, each result written when it is found, then the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from collapsible.defence.audit import AuditReport, audit_plan
from collapsible.defence.errors import DefenceError
from collapsible.defence.laboratory import JobResult, Laboratory
from collapsible.defence.page import write_page
from collapsible.defence.plan import Job, Plan, list_jobs
from collapsible.defence.report import DefenceReport, build_report
from collapsible.errors import CollapsibleError
from collapsible.farm import farm
from collapsible.imaging import atomic_write

Progress = Callable[[int, int, str], None]


def evaluate_defence(
    plan: Plan,
    output: str | Path,
    *,
    audit_pictures: int = 0,
    ray: bool = False,
    on_job: Progress | None = None,
) -> DefenceReport:
    """Evaluate classifiers behind defences against attacks, and write what was found.

    In the folder ``output``: ``cells/KEY.json`` for each finished job, ``report.json`` and
    ``report.html`` (one file, pictures inside). Jobs whose result is there already are not done
    again, so a killed run goes on where it was; a change of plan, pictures or weights makes other
    keys. ``audit_pictures`` > 0 adds the audit (see ``audit``) of every pair on that many.
    ``ray`` does the jobs on a Ray cluster. ``on_job(done, total, title)`` is called before each.
    Raises what ``Laboratory`` does, ``DefenceError``, and ``MissingExtraError`` without Ray.
    """
    laboratory = Laboratory(plan)
    folder = Path(output)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DefenceError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    jobs = list(list_jobs(plan))
    keys = [laboratory.key(job) for job in jobs]
    results = {key: read_result(folder, key) for key in keys}
    open_jobs = [(key, job) for key, job in zip(keys, jobs, strict=True) if results[key] is None]
    pairs = len(plan.classifiers) * len(plan.defences) if audit_pictures else 0
    total = len(jobs) + pairs

    def tell(title: str) -> None:
        if on_job is not None:
            on_job(sum(r is not None for r in results.values()), total, title)

    doing: Iterator[JobResult] = _here(laboratory, open_jobs, tell)
    if ray:
        doing = farm(
            Laboratory,
            plan,
            [job for _, job in open_jobs],
            command="defend evaluate --ray",
            gpu=plan.device.startswith("cuda"),
        )
    for result in doing:
        results[result.key] = result
        write_result(folder, result)
        tell(f"finished {result.key}")
    audits: list[AuditReport] = []
    if audit_pictures:
        for done, found in enumerate(audit_plan(laboratory, folder, audit_pictures)):
            audits.append(found)
            if on_job is not None:
                on_job(len(jobs) + done + 1, total, f"audit of {found.subject}")
    finished = [result for result in results.values() if result is not None]
    report = build_report(plan, len(laboratory.pictures), finished, tuple(audits))
    with atomic_write(folder / "report.json") as stream:
        stream.write(report.json().encode())
    with atomic_write(folder / "report.html") as stream:
        stream.write(write_page(report, finished).encode())
    return report


def _here(
    laboratory: Laboratory, jobs: list[tuple[str, Job]], tell: Callable[[str], None]
) -> Iterator[JobResult]:
    for _, job in jobs:
        tell(job.title)
        yield laboratory.do(job)


def read_result(folder: Path, key: str) -> JobResult | None:
    """A finished job's result, or None; a file that is not one counts as none."""
    try:
        record = json.loads((folder / "cells" / f"{key}.json").read_text(encoding="utf-8"))
        result = JobResult(**record)
    except (OSError, ValueError, TypeError):
        return None
    return result if result.key == key else None


def write_result(folder: Path, result: JobResult) -> None:
    """Write a result whole or not at all."""
    path = folder / "cells" / f"{result.key}.json"
    try:
        with atomic_write(path) as stream:
            stream.write(json.dumps(asdict(result), indent=1).encode())
    except CollapsibleError as error:
        raise DefenceError(str(error)) from error
