"""Workers that die, that are stopped, and that find another sweep at their job."""

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qcheck.api import plan
from qcheck.api.sweep import Running, computed_again
from qcheck.core import places
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.result.fleet import Row, Store
from qcheck.spec.check import CheckSpec
from qcheck.tasks import check, executors, sweep
from qcheck.tasks.executors import WorkerDiedError
from qcheck.tasks.sweep import Digests, Job, Worker


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    specs = plan.requests({"base": "demo", "lora": "faint", "weight": [0.1, 0.2, 0.3, 0.4], "scheme": "int8"})
    digests = Digests(Cache(tmp_path / "cache"))
    return [digests.job(spec) for spec in specs]


class Slot:
    """A slot whose worker does what ``act`` says."""

    def __init__(self, act: Callable[[Job], list[Row] | None]) -> None:
        self.act, self.closed = act, False

    def run(self, job: Job) -> list[Row] | None:
        return self.act(job)

    def close(self) -> None:
        self.closed = True


def done(job: Job) -> list[Row]:
    return job.error("none", "none")


def test_every_job_is_run_once_by_one_of_the_slots(jobs: list[Job]) -> None:
    ran = Counter[str]()

    def act(job: Job) -> list[Row]:
        ran[job.name] += 1
        return done(job)

    slots = [Slot(act), Slot(act)]
    rows = [*executors.over(slots, jobs)]
    assert ran == {job.name: 1 for job in jobs}
    assert len(rows) == len(jobs)
    assert all(slot.closed for slot in slots)


def test_a_job_whose_worker_dies_is_tried_again_and_then_is_an_error(jobs: list[Job]) -> None:
    tries = Counter[str]()

    def act(job: Job) -> list[Row]:
        tries[job.name] += 1
        if job is jobs[1] or (job is jobs[2] and tries[job.name] == 1):
            raise WorkerDiedError("its process was stopped")
        return done(job)

    rows = {row.case: row for each in executors.over([Slot(act)], jobs) for row in each}
    assert [tries[job.name] for job in jobs] == [1, executors.TRIES, 2, 1]
    (case,) = jobs[1].cases.values()
    assert "its worker died 3 times: its process was stopped" in (rows[case].error or "")


def test_a_job_that_another_sweep_is_at_is_looked_for_again(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_WAIT", 0.0)
    order = list[str]()

    def act(job: Job) -> list[Row] | None:
        order.append(job.name)
        return None if job is jobs[0] and order.count(job.name) == 1 else done(job)

    assert len([*executors.over([Slot(act)], jobs)]) == len(jobs)
    assert order == [job.name for job in (*jobs, jobs[0])]


def test_a_bug_of_the_executor_ends_the_sweep(jobs: list[Job]) -> None:
    def act(_: Job) -> list[Row]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [*executors.over([Slot(act)], jobs)]


def _worker(tmp_path: Path) -> Worker:
    return Worker(Store(places.at(tmp_path / "out")), Cache(tmp_path / "cache"))


def test_an_error_or_a_bug_is_a_row(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([UserError("no such file", "give one"), ValueError("a bug")])

    def fail(*_: object) -> None:
        raise next(errors)

    monkeypatch.setattr(check, "check", fail)
    worker = _worker(tmp_path)
    mistake, bug = (worker.run(job) for job in jobs[:2])
    assert mistake is not None
    assert bug is not None
    assert (mistake[0].error, mistake[0].fix) == ("no such file", "give one")
    assert bug[0].error == "ValueError: a bug"
    assert "Traceback" in (bug[0].fix or "")
    assert not [*(tmp_path / "out").glob(".work-*")]


def test_a_full_disk_ends_the_sweep_and_is_no_row(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(check, "check", full)
    worker = _worker(tmp_path)
    with pytest.raises(UserError, match="No space left on device") as raised:
        worker.run(jobs[0])
    assert not [*(tmp_path / "out").glob("cases/*")]
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - as it goes to the parent's process
    assert (again.what, again.fix) == (raised.value.what, raised.value.fix)


def test_of_two_sweeps_on_one_store_one_computes_a_case(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go, ran = threading.Event(), threading.Event(), list[int]()

    def slow(*_: object) -> None:
        ran.append(1)
        started.set()
        assert go.wait(60)
        raise UserError("done", "done")

    monkeypatch.setattr(check, "check", slow)
    one, other, results = _worker(tmp_path), _worker(tmp_path), list[object]()
    thread = threading.Thread(target=lambda: results.append(one.run(jobs[0])))
    thread.start()
    assert started.wait(60)
    assert other.run(jobs[0]) is None
    go.set()
    thread.join(60)
    assert other.run(jobs[0]) == results[0]
    assert len(ran) == 1


def test_pending_jobs_are_those_with_a_case_missing(jobs: list[Job], tmp_path: Path) -> None:
    store = Store(places.at(tmp_path / "out"))
    for row in done(jobs[2]):
        store.write(row)
    assert sweep.pending(jobs, store) == [jobs[0], jobs[1], jobs[3]]


def test_a_row_that_was_changed_by_hand_is_refused(jobs: list[Job], tmp_path: Path) -> None:
    store = Store(places.at(tmp_path / "out"))
    (row,) = done(jobs[0])
    store.write(row)
    path = tmp_path / "out" / store.name(row.case)
    path.write_text(path.read_text("utf-8").replace('"none"', "1", 1), "utf-8")
    with pytest.raises(UserError, match="is no row of this qcheck"):
        [*store.rows([row.case])]
    path.write_text(row.model_copy(update={"case": "0" * 16}).to_json(), "utf-8")
    with pytest.raises(UserError, match="holds the case 0000"):
        store.read(row.case)


def test_a_row_is_there_whole_or_not_at_all(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(places.at(tmp_path / "out"))
    (row,) = done(jobs[0])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(row)
    assert not store.has(row.case)
    assert [*(tmp_path / "out" / "cases").iterdir()] == []


def test_what_the_weights_alone_decide_is_not_run_unless_it_is_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's faint adapter is lost in quantize-merge: a forecast, and no check of that order."""
    keywords = {"base": "demo", "lora": "faint", "scheme": ["int4-g128", "int8"]}
    (spec,) = plan.requests({**keywords, "order": ["quantize-merge", "merge-quantize"]})
    job = Digests(Cache(tmp_path / "cache")).job(spec)
    asked = list[tuple[tuple[str, ...], tuple[str, ...]]]()

    def record(part: CheckSpec, *_: object) -> None:
        asked.append((tuple(one.name for one in part.schemes), part.orders))
        raise UserError("not run", "here")

    monkeypatch.setattr(check, "check", record)
    rows = sweep.forecast(job)
    lost = {(row.scheme, row.order) for row in rows}
    assert ("int4-g128", "quantize-merge") in lost
    assert {order for _, order in lost} == {"quantize-merge"}
    assert {(row.verdict, row.stage) for row in rows} == {("NEEDS-QAT", "forecast")}
    assert all(row.survival is not None and row.survival < 0.1 for row in rows)
    left = [key for key in job.cases if key not in lost]
    for part in sweep.parts(job, left):
        assert set(part.cases) == {(s.name, order) for s in part.spec.schemes for order in part.spec.orders}
    assert sorted(key for part in sweep.parts(job, left) for key in part.cases) == sorted(left)
    worker = _worker(tmp_path)
    worker.full = True
    worker.run(job)
    assert asked == [(("int4-g128", "int8"), ("quantize-merge", "merge-quantize"))]


def test_what_is_there_is_computed_again_where_that_is_asked(jobs: list[Job]) -> None:
    (row,) = done(jobs[0])
    rows = {stage: row.model_copy(update={"stage": stage, "error": None}) for stage in ("check", "forecast")}
    rows["error"] = row.model_copy(update={"error": "no file"})
    asked = {"nothing": Running(), "full": Running(full=True), "errors": Running(retry_errors=True)}
    again = {name: {kind for kind, one in rows.items() if computed_again(one, how)} for name, how in asked.items()}
    assert again == {"nothing": set(), "full": {"forecast"}, "errors": {"error"}}


def test_a_sweep_that_is_stopped_starts_no_worker_again(jobs: list[Job]) -> None:
    """Closing its slot ends the worker in the middle of a job, which is no reason to try that job again."""
    runs, entered, closed = list[str](), threading.Event(), threading.Event()

    class Stopped(Slot):
        def close(self) -> None:
            closed.set()

    def interrupted(job: Job) -> list[Row]:
        runs.append(job.name)
        entered.set()
        assert closed.wait(60)
        raise WorkerDiedError("its process was stopped")

    def first(job: Job) -> list[Row]:
        assert entered.wait(60)
        return done(job)

    rows = executors.over([Slot(first), Stopped(interrupted)], jobs[:2])
    next(rows)
    rows.close()
    time.sleep(0.2)  # in which the other thread would try again
    assert closed.is_set()
    assert len(runs) == 1
