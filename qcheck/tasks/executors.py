"""Who runs the jobs of a sweep: processes on this machine, or actors of a Ray cluster.

Each worker is handed one job at a time. A job that another sweep is at goes to the end; one whose worker died is tried
again, and is an error of that job where it kills its worker every time.
"""

import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qcheck.core import places
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError, install
from qcheck.result.fleet import Row, Store
from qcheck.tasks.sweep import Job, Worker

TRIES, RECYCLED, _WAIT = 3, 100, 1.0  # tries of a job whose worker dies; jobs of a worker's life; seconds between looks
Done = queue.Queue[list[Row] | BaseException]


class WorkerDiedError(Exception):
    """A worker ended in the middle of a job: the machine stopped it, not the job's code."""


class Slot(Protocol):
    """A place for one worker, which is replaced where it died."""

    def run(self, job: Job) -> list[Row] | None:
        """The job's rows; None where another sweep is at it.

        Raises:
            WorkerDiedError: the worker ended.
        """
        ...

    def close(self) -> None:
        """End the worker."""
        ...


def over(slots: Sequence[Slot], jobs: Sequence[Job]) -> Generator[list[Row], None, None]:
    """The rows of every job, in the order in which they end; each of ``slots`` has a thread that waits for it."""
    waiting, done, stop = deque(jobs), Done(), threading.Event()
    with ExitStack() as stack:
        for slot in slots:
            stack.enter_context(closing(slot))
            threading.Thread(target=_serve, args=(slot, waiting, done, stop), daemon=True).start()
        stack.callback(stop.set)
        for _ in jobs:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome


def _serve(slot: Slot, waiting: deque[Job], done: Done, stop: threading.Event) -> None:
    """Take job after job until none is left."""
    while not stop.is_set():
        try:
            job = waiting.popleft()
        except IndexError:
            return
        try:
            rows = _tried(slot, job, stop)
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are awaited
            done.put(error)
            return
        if rows is None:
            waiting.append(job)
            time.sleep(_WAIT)
        else:
            done.put(rows)


def _tried(slot: Slot, job: Job, stop: threading.Event) -> list[Row] | None:
    """The job's rows; None where another sweep is at it, or this one was stopped."""
    reason = ""
    for _ in range(TRIES):
        try:
            return slot.run(job)
        except WorkerDiedError as error:
            reason = str(error)
        if stop.is_set():  # its slot was closed
            return None
    return job.error(
        f"its worker died {TRIES} times: {reason}",
        "Give fewer --jobs or a smaller picture where memory ran out, or check this adapter alone.",
    )


@dataclass(frozen=True)
class Place:
    """Where workers write rows, a folder or a URL, and the cache that they share."""

    store: str
    cache: Path
    full: bool = False

    def worker(self) -> Worker:
        """A worker there."""
        return Worker(Store(places.at(self.store)), Cache(self.cache), self.full)


class Process:
    """A slot on this machine: one process at a time, each for some jobs."""

    def __init__(self, place: Place) -> None:
        self._place, self._left, self._busy = place, 0, False
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Job) -> list[Row] | None:
        """As ``Slot.run``."""
        if self._left == 0 or self._pool is None:
            self.close()
            spawning = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawning, _start, (self._place, os.getpid()))
            self._left = RECYCLED
        self._left -= 1
        self._busy = True
        try:
            return self._pool.submit(_run, job).result()
        except BrokenProcessPool as error:
            self._left = 0
            raise WorkerDiedError("its process was stopped") from error
        finally:
            self._busy = False

    def close(self) -> None:
        """As ``Slot.close``; a job that it is at is stopped."""
        if self._pool is not None:
            busy = self._busy
            for process in [*(self._pool._processes or {}).values()] if busy else []:
                process.terminate()
            self._pool.shutdown(wait=not busy, cancel_futures=True)
        self._pool = None


_worker: Worker | None = None


def _start(place: Place, parent: int) -> None:
    """Make this process's worker; it ends with its parent, which may be killed."""
    global _worker  # noqa: PLW0603 - the one state of a worker's process
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = place.worker()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(job: Job) -> list[Row] | None:
    if _worker is None:
        raise RuntimeError("the process has no worker")
    return _worker.run(job)


class Actor:
    """A slot on a Ray cluster: an actor that holds a base, with a share of a GPU where one is asked for."""

    def __init__(self, place: Place, gpus: float) -> None:
        self._place, self._gpus, self._left = place, gpus, 0
        self._actor: Any = None

    def run(self, job: Job) -> list[Row] | None:
        """As ``Slot.run``."""
        import ray

        if self._left == 0 or self._actor is None:
            self.close()
            remote = ray.remote(num_cpus=job.spec.execution.threads, num_gpus=self._gpus)(Worker)
            self._actor = remote.remote(Store(places.at(self._place.store)), Cache(self._place.cache), self._place.full)
            self._left = RECYCLED
        self._left -= 1
        try:
            rows: list[Row] | None = ray.get(self._actor.run.remote(job))
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._left = 0
            raise WorkerDiedError("its actor was stopped") from error
        return rows

    def close(self) -> None:
        """As ``Slot.close``."""
        if self._actor is not None:
            import ray

            ray.kill(self._actor)
        self._actor = None


def local(place: Place, count: int) -> list[Slot]:
    """Slots of processes on this machine."""
    return [Process(place) for _ in range(count)]


def on_ray(place: Place, count: int | None, gpus: float, threads: int) -> list[Slot]:
    """Slots of actors on the cluster that this process is connected to, or on a new one on this machine.

    Without a ``count`` as many as its processors, or its GPUs, hold.

    Raises:
        UserError: Ray is not installed, or the cluster has no room for one actor.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray: Ray is not installed", f"Install it, {install('ray')}") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    resources = ray.cluster_resources()
    room = int(resources.get("GPU", 0) / gpus) if gpus else int(resources.get("CPU", 1) // threads)
    if room < 1:
        raise UserError(
            f"the cluster has {resources.get('CPU', 0):g} processors and {resources.get('GPU', 0):g} GPUs, and an "
            f"actor asks for {threads} and {gpus:g}",
            "Give fewer --threads, or a smaller --gpus.",
        )
    return [Actor(place, gpus) for _ in range(min(count or room, room))]
