from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from qcheck.core.cache import Cache
from qcheck.model.arms import Arms
from qcheck.runtime.runner import MismatchError, Runner, call
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import sampler, solvers
from qcheck.sampling.setup import Setup, Subject, choose_strata, forwards
from qcheck.sampling.store import require_matched
from qcheck.spec.arm import Side
from qcheck.spec.check import Use
from qcheck.spec.probe import Probe, ProbeSet
from qcheck.tasks.work import matched

CHOSEN = ProbeSet(name="three", prompts=("red apple", "panda", "ghost"), seed=7, steps=6, guidance=3.0)


def setup_for(demo_arms: Arms, chosen: ProbeSet = CHOSEN, batch: int = 2) -> tuple[Setup, tuple[Probe, ...]]:
    job: Any = SimpleNamespace(batch=batch, adapters=[Use("flat", 1.0)])
    setup, asked = matched(demo_arms, job, chosen, 4)
    return setup, asked


def subject(name: str, runner: Runner, side: Side = "adapted") -> Subject:
    """An arm whose content is its name."""
    return Subject(name, side, name, lambda: runner)


def timed(scheduler: Any, steps: int) -> Callable[[], Any]:
    """Makes solvers of that kind, set to ``steps``."""

    def solver() -> Any:
        made = type(scheduler).from_config(scheduler.config)
        made.set_timesteps(steps)
        return made

    return solver


def full(demo_arms: Arms, side: Side = "adapted") -> Subject:
    return Subject(side, side, side, lambda: TorchRunner(demo_arms.entry(side)))


def quiet(_: int) -> None:
    """No progress."""


@pytest.mark.parametrize(("steps", "count", "expected"), [(20, 8, 8), (4, 8, 4), (1, 8, 1), (2, 8, 2), (9, 8, 8)])
def test_strata_are_few_spread_and_end_with_the_last_two(steps: int, count: int, expected: int) -> None:
    strata = choose_strata(steps, count)
    assert len(strata) == expected
    assert strata[-1] == steps - 1
    assert steps == 1 or strata[-2] == steps - 2
    assert strata[0] == 0


def test_ddim_coefficients_are_the_drop_of_sigma_over_alpha() -> None:
    """Closed form for eps: the last sample moves by d(sigma / alpha) of each step, times the last alpha."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    solver = timed(scheduler, 10)()
    level = np.array(
        [float(scheduler.alphas_cumprod[t]) for t in solver.timesteps] + [float(scheduler.final_alpha_cumprod)]
    )
    ratio = np.sqrt((1 - level) / level)
    expected = (ratio[:-1] - ratio[1:]) * np.sqrt(level[-1])
    assert solvers.coefficients(timed(scheduler, 10)) == pytest.approx(expected, rel=1e-4)


def test_flow_coefficients_are_the_drop_of_sigma() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    sigmas = timed(scheduler, 5)().sigmas.numpy()
    assert solvers.coefficients(timed(scheduler, 5)) == pytest.approx(sigmas[:-1] - sigmas[1:], rel=1e-4)


def test_the_diffusers_pipeline_draws_the_picture_of_the_free_run(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms)
    pipe = demo_arms.use("adapted").pipe
    traced = sampler.reference(setup, full(demo_arms), asked, Cache(tmp_path), quiet)
    ours = demo_arms.base.family.decode(torch.from_numpy(np.stack(traced.finals()))).permute(0, 2, 3, 1).numpy()
    for index, probe in enumerate(asked):
        theirs = pipe(
            probe.prompt,
            num_inference_steps=probe.steps,
            guidance_scale=probe.guidance,
            generator=torch.Generator().manual_seed(probe.seed),
            output_type="np",
        ).images[0]
        assert np.abs(ours[index] - theirs).max() < 1e-3


def test_other_solvers_are_followed_like_the_pipeline_does(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms)
    pipe = demo_arms.use("adapted").pipe
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    traced = sampler.reference(replace(setup, solver=timed(euler, 6)), full(demo_arms), asked, Cache(tmp_path), quiet)
    kept, pipe.scheduler = pipe.scheduler, euler
    try:
        theirs = pipe(
            asked[0].prompt,
            num_inference_steps=6,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(asked[0].seed),
            output_type="latent",
        ).images[0]
    finally:
        pipe.scheduler = kept
    assert np.abs(traced.finals()[0] - theirs.numpy()).max() < 1e-3


def test_forced_at_its_own_states_the_reference_repeats_itself(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms, batch=3)
    store, runner = Cache(tmp_path), TorchRunner(demo_arms.entry("adapted"))
    traced = sampler.reference(setup, full(demo_arms), asked, store, quiet)
    again = sampler.arm(setup, traced, subject("again", runner), asked, store, quiet)
    asking = sampler.forced(setup, traced, subject("forced", runner), asked, store, quiet)
    assert np.allclose(again.outputs(), traced.outputs(), atol=1e-5)
    assert np.allclose(asking.outputs(), traced.outputs(), atol=1e-5)
    assert np.allclose(again.finals(), traced.finals(), atol=1e-4)
    require_matched(traced, again)


@pytest.mark.parametrize("solver", [PNDMScheduler, HeunDiscreteScheduler])
def test_solvers_that_call_more_often_than_they_step_are_followed(
    demo_arms: Arms, tmp_path: Path, solver: type
) -> None:
    setup, asked = setup_for(demo_arms)
    setup = replace(setup, solver=timed(solver.from_config(demo_arms.base.pipe.scheduler.config), CHOSEN.steps))
    setup = replace(setup, strata=choose_strata(setup.calls, 4))
    assert setup.calls > CHOSEN.steps
    assert solvers.coefficients(setup.solver).shape == (setup.calls,)
    units: list[int] = []
    traced = sampler.reference(setup, full(demo_arms), asked, Cache(tmp_path), units.append)
    assert sum(units) == forwards(setup, 1, 0, len(asked))
    assert setup.strata[-2:] == (setup.calls - 2, setup.calls - 1)
    assert np.isfinite(np.stack(traced.outputs())).all()


def test_a_solver_that_clips_is_still_read_as_linear() -> None:
    clipped = DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    free = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert solvers.coefficients(timed(clipped, 10)) == pytest.approx(solvers.coefficients(timed(free, 10)), rel=1e-4)


@pytest.mark.parametrize("change", [{"seed": 8}, {"guidance": 4.0}, {"steps": 7}, {"prompts": ("panda",) * 3}])
def test_traces_of_other_probes_are_refused(demo_arms: Arms, tmp_path: Path, change: dict[str, object]) -> None:
    store, found = Cache(tmp_path), []
    for chosen in (CHOSEN, CHOSEN.model_copy(update=change)):
        setup, asked = setup_for(demo_arms, chosen)
        found.append(sampler.reference(setup, full(demo_arms), asked, store, quiet))
    with pytest.raises(MismatchError, match="other probes"):
        require_matched(*found)


class Counting:
    """A runner that counts its calls and may fail after some of them."""

    name = "counting"

    def __init__(self, inner: Runner, last: float = float("inf")) -> None:
        self.inner, self.last, self.rows = inner, last, 0

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.rows >= self.last:
            raise KeyboardInterrupt
        self.rows += len(inputs["sample"]) // 2
        return self.inner(inputs)


def test_more_probes_cost_only_their_own_forwards(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms)
    store, runner = Cache(tmp_path), Counting(TorchRunner(demo_arms.entry("adapted")))
    two = sampler.reference(setup, subject("f1", runner), asked[:2], store, quiet)
    assert runner.rows == forwards(setup, 1, 0, 2)
    three = sampler.reference(setup, subject("f1", runner), asked, store, quiet)
    assert runner.rows == forwards(setup, 1, 0, 3)
    assert three.paths[:2] == two.paths
    sampler.arm(setup, two, subject("q1", runner), asked[:2], store, quiet)
    sampler.arm(setup, three, subject("q1", runner), asked, store, quiet)
    assert runner.rows == forwards(setup, 2, 1, 3)


def test_an_interrupted_trace_goes_on_and_ends_as_if_it_had_not_been(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms, batch=1)
    inner = TorchRunner(demo_arms.entry("adapted"))
    whole = sampler.reference(setup, subject("f1", inner), asked, Cache(tmp_path / "whole"), quiet)
    store, broken = Cache(tmp_path / "cut"), Counting(inner, last=2.5 * setup.calls)
    with pytest.raises(KeyboardInterrupt):
        sampler.reference(setup, subject("f1", broken), asked, store, quiet)
    assert len(store.items()) == 2
    rest = Counting(inner)
    resumed = sampler.reference(setup, subject("f1", rest), asked, store, quiet)
    assert rest.rows == setup.calls
    assert np.array_equal(resumed.outputs(), whole.outputs())
    assert np.array_equal(resumed.finals(), whole.finals())


def test_a_solver_of_another_configuration_finds_no_stored_trace(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms)
    store, runner = Cache(tmp_path), Counting(TorchRunner(demo_arms.entry("adapted")))
    sampler.reference(setup, subject("f1", runner), asked, store, quiet)
    config = demo_arms.base.pipe.scheduler.config
    spaced = DDIMScheduler.from_config(config, timestep_spacing="linspace")
    other = replace(setup, solver=timed(spaced, CHOSEN.steps))
    sampler.reference(other, subject("f1", runner), asked, store, quiet)
    sampler.reference(setup, subject("another", runner), asked, store, quiet)
    assert runner.rows == 3 * forwards(setup, 1, 0, 3)


def test_progress_counts_every_forward_and_those_that_were_stored(demo_arms: Arms, tmp_path: Path) -> None:
    setup, asked = setup_for(demo_arms)
    store = Cache(tmp_path)
    for _ in range(2):
        units: list[int] = []
        traced = sampler.reference(setup, full(demo_arms), asked, store, units.append)
        sampler.arm(setup, traced, full(demo_arms, "base"), asked, store, units.append)
        assert sum(units) == forwards(setup, 2, 1, len(asked))


def test_a_runner_that_returns_another_shape_is_refused() -> None:
    class Wrong:
        name = "wrong"

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return inputs["sample"][:1]

    with pytest.raises(MismatchError, match="wrong returned"):
        call(Wrong(), {"sample": np.zeros((2, 4, 4, 4), np.float32)}, "sample")
