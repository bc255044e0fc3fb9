"""Many adapters at once: ``qcheck sweep``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qcheck.api import plan as plans
from qcheck.api.functions import caching
from qcheck.api.keywords import Files, Named
from qcheck.api.lazy import host
from qcheck.core import places
from qcheck.core.errors import UserError, unknown
from qcheck.core.progress import Progress, Silent
from qcheck.judge import fleet
from qcheck.judge.fleet import Summary
from qcheck.result.fleet import CASES, MARK, Row, Store
from qcheck.spec.check import CheckSpec

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Running:
    """How a sweep is carried out.

    ``jobs`` are workers at a time: on this machine 1 by default, on Ray as many as the cluster holds. ``gpus`` is a Ray
    actor's share of a GPU. ``shard`` (i, n) runs the i-th of n parts. ``retry_errors`` computes rows that are errors
    again. ``full`` checks what the weights alone decide too.
    """

    executor: Literal["local", "ray"] = "local"
    jobs: int | None = None
    gpus: float = 0.0
    shard: tuple[int, int] | None = None
    retry_errors: bool = False
    full: bool = False


_ALONE = Running()


@dataclass(frozen=True)
class Ahead:
    """What a sweep would do: cases, those that are missing, and what they take.

    ``calls`` are denoiser calls where every case ends at the first look, and at the last, with an empty cache. The
    ``seconds`` of one worker and the ``bytes`` of pages are those of the ``measured`` rows that are there, None and 0
    where there is none. ``unreadable`` are adapters that are missing and cannot be read, each with the reason: their
    cases will be errors, and take no calls.
    """

    adapters: int
    cases: int
    missing: int
    calls: tuple[int, int]
    measured: int
    seconds: float | None
    bytes: int
    unreadable: tuple[str, ...] = ()


def sweep(
    plan: Named | None = None,
    *,
    base: Files = None,
    lora: Files = None,
    out: Named,
    rate: float = fleet.RATE,
    running: Running = _ALONE,
    cache: bool = True,
    mlflow: str | None = None,
    progress: Progress | None = None,
    **request: Any,
) -> Summary:
    """Check many adapters, and say which of them pass together at a stated rate of wrong verdicts.

    Args:
        plan: A TOML file with the long options of ``check``; keywords beside it win.
        base: One base or several.
        lora: Files, folders, globs, or JSONL files of keywords for each adapter.
        out: The folder, or URL that fsspec knows, of rows, pages and the summary; an interrupted sweep goes on in it.
        rate: The share of wrong ones among the adapters that are listed as certain.
        running: Workers, shards and retries.
        cache: Use and keep results that adapters share.
        mlflow: Log a run for the sweep and one for each case to the MLflow at this URI.
        progress: Receives every adapter.
        **request: The options of ``check``; ``weight`` and ``target`` may be lists.

    Raises:
        UserError: bad input. An adapter that cannot be judged is a row, not an end.
    """
    given, how = {"base": base, "lora": lora, **request}, running
    with _opened(plan, given, out, cache) as (jobs, store, root):
        tasks = host("qcheck.tasks.sweep")
        tracker = None if mlflow is None else host("qcheck.report.tracking").Tracker(mlflow)
        cases = [case for job in jobs for case in job.cases.values()]
        store.forget([row.case for row in store.rows(cases) if computed_again(row, how)])
        mine = jobs if how.shard is None else tasks.shard(jobs, *how.shard)
        _run(tasks.pending(mine, store), store, root, how, progress or Silent())
        store.files.tidy()
        summary = fleet.summary([*store.rows(cases)], rate)
    store.index(summary.rows)
    names = host("qcheck.report.fleet").write(summary, store.files)
    host("qcheck.report.seal").of_sweep(store.files, [*names, *store.names(summary.rows)])
    if tracker is not None:
        tracker.log(*host("qcheck.report.tracking").of_fleet(summary, store.files))
    return summary


def ahead(
    plan: Named | None,
    given: Mapping[str, Any],
    out: Named,
    cache: bool = True,
    shard: tuple[int, int] | None = None,
) -> Ahead:
    """What ``sweep`` of the same arguments, or one shard of it, would do; nothing is run or written.

    Raises:
        UserError: as ``sweep``.
    """
    with _opened(plan, given, out, cache) as (every, store, _):
        tasks = host("qcheck.tasks.sweep")
        jobs = every if shard is None else tasks.shard(every, *shard)
        missing_jobs = tasks.pending(jobs, store)
        refused = {id(job): what for job in missing_jobs if (what := tasks.unreadable(job)) is not None}
        pending = [job for job in missing_jobs if id(job) not in refused]
        workload = host("qcheck.tasks.workload")
        each = [workload.plan(job.spec, workload.steps_of(job.spec)) for job in pending]
        cases = [case for job in jobs for case in job.cases.values()]
        there = [*store.rows(cases)]
        timed = [row.seconds for row in there if row.error is None]
        missing = len(cases) - len(there)
        pages = [store.files.size(row.page) or 0 for row in there if row.page is not None]
        return Ahead(
            adapters=len(jobs),
            cases=len(cases),
            missing=missing,
            calls=(sum(one.calls[0] for one in each), sum(one.calls[1] for one in each)),
            measured=len(timed),
            seconds=sum(len(job.cases) for job in pending) * sum(timed) / len(timed) if timed else None,
            bytes=len(pending) * sum(pages) // len(pages) if pages else 0,
            unreadable=tuple(refused.values()),
        )


@contextmanager
def _opened(
    plan: Named | None, given: Mapping[str, Any], out: Named, cache: bool
) -> Iterator[tuple[Sequence[Any], Store, Path]]:
    """The jobs of a plan, the store of their rows, and the root of the cache."""
    keywords = plans.read(Path(plan)) if plan is not None else {}
    specs: list[CheckSpec] = plans.requests({**keywords, **{k: v for k, v in given.items() if v not in (None, ())}})
    place = places.at(out)
    _require_ours(place)
    with caching(cache) as entries:
        digests = host("qcheck.tasks.sweep").Digests(entries)
        yield [digests.job(spec) for spec in specs], Store(place), entries.root


def _require_ours(out: places.Files) -> None:
    """Refuse a place that holds something else.

    Raises:
        UserError: it does, or it is a file.
    """
    if (names := out.names()) and MARK not in names:
        raise UserError(f"output {str(out)!r} is no folder of a sweep", "Give another --out, absent or empty.")


def _run(jobs: Sequence[Any], store: Store, root: Path, how: Running, progress: Progress) -> None:
    executors = host("qcheck.tasks.executors")
    store.mark()
    place, threads = (
        executors.Place(str(store.files), root, how.full),
        max((job.spec.execution.threads for job in jobs), default=1),
    )
    if how.executor not in EXECUTORS:
        raise unknown("executor", how.executor, EXECUTORS)
    if not jobs:
        return
    if how.executor == "ray":
        slots = executors.on_ray(place, how.jobs, how.gpus, threads)
    else:
        slots = executors.local(place, min(how.jobs or 1, len(jobs)))
    progress.note(f"{len(jobs)} adapters to check; rows go to {store.files}/{CASES}")
    with progress.stage("adapters", len(jobs)) as advance:
        for rows in executors.over(slots, jobs):
            for note in _notes(rows):
                progress.note(note)
            advance(1)


def computed_again(row: Row, how: Running) -> bool:
    """Whether a row that is there is computed again."""
    return (how.retry_errors and row.error is not None) or (how.full and row.stage == "forecast")


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each thing that a person may want to know while it runs: errors."""
    if rows and rows[0].error is not None:
        yield f"{rows[0].title}: {rows[0].error}"
