"""The loop of QAT: it comes nearer to the teacher, the same every time, and goes on after a kill where it was."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qcheck.api.request import check_spec
from qcheck.core.cache import Cache
from qcheck.core.progress import Silent
from qcheck.model.device import Device
from qcheck.quantize import artifact
from qcheck.spec.check import CheckSpec
from qcheck.tasks import session as sessions
from qcheck.training import trainer
from qcheck.training.objective import HeldOut, QatObjective, Settings, Tensors, prompts
from qcheck.training.trainer import Run, Training

SHORT = Settings(steps=6, every=2, strata=2, rows=2, probes=4, times=2, share=0.5, seed=3)


def request() -> CheckSpec:
    """Few solver steps of the demo's faint adapter where the dead zone swallows it."""
    return check_spec("demo", "faint", scheme="int4-g128", order="quantize-merge", steps=3, build=False, threads=1)


def go(cache: Path) -> tuple[Tensors, Training]:
    """Train, everything kept below ``cache``."""
    spec = request()
    with sessions.opened(spec, Cache(cache), Silent()) as session:
        (scheme,) = spec.schemes
        sources = session.sources(scheme)
        q0 = session.quantized("q0", "base", artifact.write_base(sources), scheme)
        return trainer.train(QatObjective(spec, sources, q0, session.watch, SHORT))


def test_a_checkpoint_of_one_device_is_not_resumed_on_another(cache_root: Path) -> None:
    spec = request()
    with sessions.opened(spec, Cache(cache_root / "qcheck"), Silent()) as session:
        sources = session.sources(spec.schemes[0])
        q0 = session.quantized("q0", "base", artifact.write_base(sources), spec.schemes[0])
        elsewhere = replace(sources, arms=sources.arms.on(Device("cpu", "another processor")))
        here, there = (QatObjective(spec, given, q0, session.watch, SHORT) for given in (sources, elsewhere))
        assert here.key != there.key


def test_what_is_applied_too_strongly_is_as_far_from_the_teacher_as_what_is_too_weak() -> None:
    scores = [
        HeldOut(step=0, survival=survival, effect_to_error=10.0, excess_error=0.0).score
        for survival in (0.5, 1.0, 2.0, 0.0, -1.0)
    ]
    assert scores[0] == pytest.approx(scores[2])
    assert scores[1] == 10 > scores[0]
    assert scores[3] == scores[4] == -math.inf


@pytest.mark.parametrize("probes", [1, 4, 24])
def test_no_prompt_is_learned_and_held_out(probes: int) -> None:
    learned, held = prompts(request(), probes)
    assert not set(learned.prompts) & set(held.prompts)
    assert {*learned.prompts, *held.prompts} <= set(request().recipe.prompts.prompts)


def test_every_setting_makes_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with other settings is not resumed, nor taken for this one."""
    changed = {"steps": 7, "every": 3, "strata": 3, "rows": 3, "times": 3, "probes": 5, "share": 0.4, "patience": 2}
    changed |= {"rate": 1e-3, "seed": 4}
    assert set(changed) == set(Settings.model_fields)
    learned, held = prompts(request(), 1)
    stub = SimpleNamespace(learned=learned, held=held, ground=SimpleNamespace(order="unmerged"))
    stub.sources = SimpleNamespace(key=lambda _: "artifact")
    stub.arms = SimpleNamespace(device=SimpleNamespace(title="here"))

    def key(settings: Settings) -> str:
        stub.settings = settings
        found: str = QatObjective.key.fget(stub)  # type: ignore[attr-defined]
        return found

    keys = {key(SHORT.model_copy(update={name: value})) for name, value in changed.items()}
    assert len(keys | {key(SHORT)}) == 1 + len(changed)


def _checkpoint(cache: Path) -> list[Path]:
    return [path for path in cache.glob("qat/*/entry") if not path.parent.name.startswith(".")]


@pytest.fixture(scope="module")
def whole(cache_root: Path) -> tuple[Tensors, Training]:
    """A run that nothing interrupts."""
    return go(cache_root / "qcheck")


def test_a_few_steps_come_nearer_to_the_teacher(whole: tuple[Tensors, Training]) -> None:
    _, training = whole
    assert [seen.step for seen in training.history] == [0, 2, 4, 6]
    assert [seen.gradient_norm is None for seen in training.history] == [True, False, False, False]
    assert training.after.score > training.before.score
    assert training.after == max(training.history, key=lambda seen: seen.score)
    assert training.after.effect_to_error > training.before.effect_to_error
    assert training.after.excess_error < training.before.excess_error


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_factors(
    whole: tuple[Tensors, Training], tmp_path: Path, cache_root: Path
) -> None:
    started = "import sys; from pathlib import Path; from tests.test_training import go; go(Path(sys.argv[1]))"
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("graph", "artifact", "ranges", "trace"):  # what a run makes before it trains
        if (cache_root / "qcheck" / kind).exists():
            (cache / kind).symlink_to(cache_root / "qcheck" / kind)
    with subprocess.Popen([sys.executable, "-c", started, str(cache)]) as running:
        while not _checkpoint(cache) and running.poll() is None:
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    factors, training = go(cache)
    assert training.resumed in {2, 4}
    assert training.history == whole[1].history
    assert all(torch.equal(value, whole[0][key]) for key, value in factors.items())
    assert len(_checkpoint(cache)) == 1


def test_a_finished_run_is_found_and_not_run_again(whole: tuple[Tensors, Training], cache_root: Path) -> None:
    factors, training = go(cache_root / "qcheck")
    assert training.resumed == SHORT.steps
    assert training.history == whole[1].history
    assert all(torch.equal(value, whole[0][key]) for key, value in factors.items())


@pytest.mark.usefixtures("whole")
def test_a_resumed_optimizer_goes_on_where_it_was(cache_root: Path) -> None:
    """AdamW corrects its moments by the number of its steps: from 0 again they would be too large."""
    spec = request()
    with sessions.opened(spec, Cache(cache_root / "qcheck"), Silent()) as session:
        sources = session.sources(spec.schemes[0])
        q0 = session.quantized("q0", "base", artifact.write_base(sources), spec.schemes[0])
        resumed = Run(QatObjective(spec, sources, q0, session.watch, SHORT))
        assert resumed.restore() == SHORT.steps
        assert {float(state["step"]) for state in resumed.optimizer.state.values()} == {SHORT.steps}
        assert len(resumed.optimizer.state) == len(resumed.objective.factors)
