"""The loop of QAT: it comes nearer to the teacher, the same every time, and goes on after a kill where it was."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.zoo import cases
from qcheck.core.progress import Silent
from qcheck.demo import library
from qcheck.training import trainer
from qcheck.training.objective import Lessons, Settings, Tensors
from qcheck.training.trainer import Course
from qcheck.spec import probe, scheme
from qcheck.spec.check import Job
from qcheck.tasks import work

SHORT = Settings(steps=6, every=2, strata=2, rows=2, probes=4, times=2, share=0.5, seed=3)


def job(folder: Path, cache: Path) -> Job:
    """Few solver steps of the demo's faint adapter where the dead zone swallows it."""
    whole = cases.job(library.ADAPTERS / "faint.safetensors", folder)
    few = probe.find(library.PROBES).model_copy(update={"steps": 3})
    return replace(
        whole, schemes=(scheme.find("int4-g128"),), orders=("quantize-merge",), probes=few, cache=cache, batch=8
    )


def go(folder: Path, cache: Path) -> tuple[Tensors, Course]:
    asked = job(folder, cache)
    return trainer.train(Lessons(work.prepare(asked, folder, Silent()), asked.schemes[0], asked.orders[0], SHORT))


def _checkpoint(cache: Path) -> list[Path]:
    return [path for path in cache.glob("qat/*/entry") if not path.parent.name.startswith(".")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache_root: Path) -> tuple[Tensors, Course]:
    """A run that nothing interrupts."""
    return go(tmp_path_factory.mktemp("whole"), cache_root / "qcheck")


def test_a_few_steps_come_nearer_to_the_teacher(whole: tuple[Tensors, Course]) -> None:
    _, course = whole
    assert [seen.step for seen in course.history] == [0, 2, 4, 6]
    assert [seen.gradient_norm is None for seen in course.history] == [True, False, False, False]
    assert course.after.score > course.before.score
    assert course.after == max(course.history, key=lambda seen: seen.score)
    assert course.after.effect_to_error > course.before.effect_to_error
    assert course.after.excess_error < course.before.excess_error


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_factors(
    whole: tuple[Tensors, Course], tmp_path: Path, cache_root: Path
) -> None:
    started = "import sys; from pathlib import Path; from tests.test_training import go; go(*map(Path, sys.argv[1:]))"
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("graph", "artifact", "ranges", "trace"):  # what a run makes before it trains
        if (cache_root / "qcheck" / kind).exists():
            (cache / kind).symlink_to(cache_root / "qcheck" / kind)
    with subprocess.Popen([sys.executable, "-c", started, str(tmp_path), str(cache)]) as running:
        while not _checkpoint(cache) and running.poll() is None:
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    factors, course = go(tmp_path, cache)
    assert course.resumed in {2, 4}
    assert course.history == whole[1].history
    assert all(torch.equal(value, whole[0][key]) for key, value in factors.items())
    assert len(_checkpoint(cache)) == 1


def test_a_finished_run_is_found_and_not_run_again(
    whole: tuple[Tensors, Course], cache_root: Path, tmp_path: Path
) -> None:
    factors, course = go(tmp_path, cache_root / "qcheck")
    assert course.resumed == SHORT.steps
    assert course.history == whole[1].history
    assert all(torch.equal(value, whole[0][key]) for key, value in factors.items())
