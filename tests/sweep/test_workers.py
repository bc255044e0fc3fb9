"""Real workers, one of which is stopped in the middle: on this machine and on a Ray cluster of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import qcheck
from qcheck.api.sweep import Running
from qcheck.core.errors import UserError
from qcheck.tasks import executors

FEW = {"scheme": "int4-g128", "steps": 2, "max_probes": 2, "build": False, "threads": 1, "weight": [0.5, 1.0]}


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    stored = (json.loads(path.read_bytes()) for path in (folder / "cases").glob("*.json"))
    return {row["case"]: {key: value for key, value in row.items() if key != "seconds"} for row in stored}


def _stop_one(marks: tuple[str, ...], killed: list[int], ended: threading.Event) -> None:
    """Kill the first process whose command line has all of ``marks``, once it has run for a while."""
    while not ended.wait(0.2):
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if all(mark in words for mark in marks) and time.time() - process.create_time() > 3:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters at two weights, swept by one worker."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    qcheck.sweep(base="demo", lora=["faint", "flat"], out=folder, **FEW)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "marks"),
    [("local", ("multiprocessing.spawn", "spawn_main")), ("ray", ("ray::Worker",))],
)
def test_a_worker_that_is_stopped_changes_nothing(
    executor: Any, marks: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCHECK_CACHE", str(tmp_path / "cache"))  # else there is nothing left to compute
    killed, ended = list[int](), threading.Event()
    thread = threading.Thread(target=_stop_one, args=(marks, killed, ended))
    thread.start()
    try:
        qcheck.sweep(base="demo", lora=["faint", "flat"], out=tmp_path / "out", running=Running(executor, 2), **FEW)
    finally:
        ended.set()
        thread.join()
        ray.shutdown()
    assert killed
    assert rows(tmp_path / "out") == rows(whole)


def _sweep(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    code = f"import qcheck; qcheck.sweep(base='demo', lora=['faint', 'flat'], out={str(folder)!r}, **{FEW!r})"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "QCHECK_CACHE": str(cache)})


@pytest.mark.slow
def test_two_sweeps_at_once_compute_each_case_once(whole: Path, tmp_path: Path) -> None:
    """Each has a cache of its own: what is in both was computed twice."""
    caches = [tmp_path / "one", tmp_path / "other"]
    sweeps = [_sweep(tmp_path / "out", cache) for cache in caches]
    assert [process.wait() for process in sweeps] == [0, 0]
    assert rows(tmp_path / "out") == rows(whole)
    one, other = ({path.name for path in cache.glob("qcheck/alignment/*/")} - {".locks"} for cache in caches)
    assert not one & other
    assert len(one | other) == len(rows(whole))
    assert one
    assert other


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two processors."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("gpus", "threads"), [(0.0, 4), (0.5, 1)])
def test_a_cluster_without_room_for_one_worker_is_an_error(gpus: float, threads: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the cluster has 2 processors and 0 GPUs"):
        executors.on_ray(executors.Place(str(tmp_path), tmp_path), None, gpus, threads)


@pytest.mark.usefixtures("small")
def test_workers_are_as_many_as_the_cluster_holds(tmp_path: Path) -> None:
    place = executors.Place(str(tmp_path), tmp_path)
    assert len(executors.on_ray(place, None, 0.0, 1)) == 2
    assert len(executors.on_ray(place, 5, 0.0, 1)) == 2
    assert len(executors.on_ray(place, 1, 0.0, 1)) == 1
