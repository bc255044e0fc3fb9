from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
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
from qcheck.sampling import solvers
from qcheck.sampling import subject as subjects
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Subject, choose_strata, forwards
from qcheck.sampling.store import require_matched
from qcheck.spec.arm import Side
from qcheck.spec.probe import ProbeSet

CHOSEN = ProbeSet(name="three", prompts=("red apple", "panda", "ghost"), seed=7, steps=6, guidance=3.0)


def sampler_for(demo_arms: Arms, store: Path, chosen: ProbeSet = CHOSEN, batch: int = 2) -> Sampler:
    """Probes of both arms at four strata, what they give kept below ``store``."""
    return Sampler.of(demo_arms, chosen, 4, batch, Cache(store))


def subject(name: str, runner: Runner, side: Side = "adapted") -> Subject:
    """An arm whose content is its name."""
    return Subject(name, side, name, lambda: nullcontext(runner))


@pytest.fixture
def adapted(demo_arms: Arms) -> Iterator[TorchRunner]:
    """f1, held until the test ends."""
    with subjects.full(demo_arms, "adapted").open() as runner:
        assert isinstance(runner, TorchRunner)
        yield runner


def timed(scheduler: Any, steps: int) -> Callable[[], Any]:
    """Makes solvers of that kind, set to ``steps``."""

    def solver() -> Any:
        made = type(scheduler).from_config(scheduler.config)
        made.set_timesteps(steps)
        return made

    return solver


def with_solver(sampling: Sampler, solver: Callable[[], Any]) -> Sampler:
    """The same probes by another solver."""
    return replace(sampling, setup=replace(sampling.setup, solver=solver))


def quiet(_: int) -> None:
    """No progress."""


@pytest.mark.parametrize(("steps", "count", "expected"), [(20, 8, 8), (4, 8, 4), (1, 8, 1), (2, 8, 2), (9, 8, 8)])
def test_strata_are_few_spread_and_end_with_the_last_two(steps: int, count: int, expected: int) -> None:
    strata = choose_strata(steps, count)
    assert len(strata) == expected
    assert strata[-1] == steps - 1
    assert steps == 1 or strata[-2] == steps - 2
    assert strata[0] == 0


@pytest.mark.parametrize(("steps", "count"), [(20, 8), (9, 8), (50, 8), (20, 3)])
def test_drawn_strata_leave_no_step_out_of_reach(steps: int, count: int) -> None:
    """Some seed draws each step; every seed takes one of each run of neighbours, and the last two."""
    drawn = [choose_strata(steps, count, seed) for seed in range(400)]
    assert {step for strata in drawn for step in strata} == set(range(steps))
    assert {len(strata) for strata in drawn} == {count}
    assert all(strata == tuple(sorted(set(strata))) and strata[-2:] == (steps - 2, steps - 1) for strata in drawn)
    longest = 2 * -(-(steps - 2) // (count - 2)) - 2
    assert max(b - a - 1 for strata in drawn for a, b in pairwise((-1, *strata))) <= longest
    assert choose_strata(steps, count, 7) == choose_strata(steps, count, 7)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_where_every_step_is_a_stratum_nothing_is_drawn(steps: int) -> None:
    assert choose_strata(steps, 8, 7) == choose_strata(steps, 8)


def test_a_drawn_seed_draws_the_strata_too(demo_arms: Arms, tmp_path: Path) -> None:
    fixed = sampler_for(demo_arms, tmp_path).setup.strata
    drawn = {
        sampler_for(demo_arms, tmp_path, CHOSEN.model_copy(update={"seed": seed, "drawn": True})).setup.strata
        for seed in range(8)
    }
    assert fixed == choose_strata(6, 4)
    assert len(drawn) > 1


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
    sampling = sampler_for(demo_arms, tmp_path)
    traced = sampling.reference(subjects.full(demo_arms, "adapted"), quiet)
    ours = demo_arms.base.family.decode(torch.from_numpy(np.stack(traced.finals()))).permute(0, 2, 3, 1).numpy()
    for index, probe in enumerate(sampling.probes):
        with demo_arms.held("adapted") as family:
            theirs = family.pipe(
                probe.prompt,
                num_inference_steps=probe.steps,
                guidance_scale=probe.guidance,
                generator=torch.Generator().manual_seed(probe.seed),
                output_type="np",
            ).images[0]
        assert np.abs(ours[index] - theirs).max() < 1e-3


def test_other_solvers_are_followed_like_the_pipeline_does(demo_arms: Arms, tmp_path: Path) -> None:
    sampling = sampler_for(demo_arms, tmp_path)
    pipe, first = demo_arms.base.pipe, sampling.probes[0]
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    followed = with_solver(sampling, timed(euler, 6))
    traced = followed.reference(subjects.full(demo_arms, "adapted"), quiet)
    kept, pipe.scheduler = pipe.scheduler, euler
    try:
        with demo_arms.held("adapted"):
            theirs = pipe(
                first.prompt,
                num_inference_steps=6,
                guidance_scale=3.0,
                generator=torch.Generator().manual_seed(first.seed),
                output_type="latent",
            ).images[0]
    finally:
        pipe.scheduler = kept
    assert np.abs(traced.finals()[0] - theirs.numpy()).max() < 1e-3


def test_forced_at_its_own_states_the_reference_repeats_itself(
    demo_arms: Arms, adapted: TorchRunner, tmp_path: Path
) -> None:
    sampling = sampler_for(demo_arms, tmp_path, batch=3)
    traced = sampling.reference(subjects.full(demo_arms, "adapted"), quiet)
    again = sampling.arm(subject("again", adapted), traced, quiet)
    asking = sampling.forced(subject("forced", adapted), traced, quiet)
    assert np.allclose(again.outputs(), traced.outputs(), atol=1e-5)
    assert np.allclose(asking.outputs(), traced.outputs(), atol=1e-5)
    assert np.allclose(again.finals(), traced.finals(), atol=1e-4)
    assert np.allclose(list(again.apart()), 0, atol=1e-5)
    require_matched(traced, again)


def test_what_is_not_stored_is_what_would_have_been(demo_arms: Arms, adapted: TorchRunner, tmp_path: Path) -> None:
    sampling = sampler_for(demo_arms, tmp_path / "stored")
    traced = sampling.reference(subject("f1", adapted), quiet)
    stored, entered = len(sampling.store.items()), list[int]()
    states = sampling.states(adapted, "adapted")
    assert np.array_equal(states, np.stack(traced.states()))
    assert np.allclose(sampling.outputs(adapted, "adapted", traced.states()), traced.outputs(), atol=1e-5)
    counting = Counting(adapted)
    sampling.run(counting, "adapted", states, quiet, entered.append)
    assert counting.rows == forwards(sampling.setup, 0, 1, 3)
    assert entered == [0, 1, 2, 3] * 2  # two batches
    assert len(sampling.store.items()) == stored


def test_an_arm_is_held_only_while_something_is_computed(demo_arms: Arms, adapted: TorchRunner, tmp_path: Path) -> None:
    opened: list[bool] = []

    @contextmanager
    def watched() -> Iterator[Runner]:
        opened.append(True)
        yield adapted
        opened.append(False)

    sampling, asked = sampler_for(demo_arms, tmp_path), Subject("f1", "adapted", "f1", watched)
    assert not sampling.known(asked)
    for _ in range(2):
        sampling.reference(asked, quiet)
        assert opened == [True, False]
    assert sampling.known(asked)


@pytest.mark.parametrize("solver", [PNDMScheduler, HeunDiscreteScheduler])
def test_solvers_that_call_more_often_than_they_step_are_followed(
    demo_arms: Arms, tmp_path: Path, solver: type
) -> None:
    made = solver.from_config(demo_arms.base.pipe.scheduler.config)  # type: ignore[attr-defined]
    sampling = with_solver(sampler_for(demo_arms, tmp_path), timed(made, CHOSEN.steps))
    setup = replace(sampling.setup, strata=choose_strata(sampling.setup.calls, 4))
    assert setup.calls > CHOSEN.steps
    assert solvers.coefficients(setup.solver).shape == (setup.calls,)
    units: list[int] = []
    traced = replace(sampling, setup=setup).reference(subjects.full(demo_arms, "adapted"), units.append)
    assert sum(units) == forwards(setup, 1, 0, len(sampling.probes))
    assert setup.strata[-2:] == (setup.calls - 2, setup.calls - 1)
    assert np.isfinite(np.stack(traced.outputs())).all()


def test_a_solver_that_clips_is_still_read_as_linear() -> None:
    clipped = DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    free = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert solvers.coefficients(timed(clipped, 10)) == pytest.approx(solvers.coefficients(timed(free, 10)), rel=1e-4)


@pytest.mark.parametrize("change", [{"seed": 8}, {"guidance": 4.0}, {"steps": 7}, {"prompts": ("panda",) * 3}])
def test_traces_of_other_probes_are_refused(demo_arms: Arms, tmp_path: Path, change: dict[str, object]) -> None:
    found = [
        sampler_for(demo_arms, tmp_path, chosen).reference(subjects.full(demo_arms, "adapted"), quiet)
        for chosen in (CHOSEN, CHOSEN.model_copy(update=change))
    ]
    with pytest.raises(MismatchError, match="other probes"):
        require_matched(*found)


def test_arms_at_the_states_of_two_references_are_refused(demo_arms: Arms, tmp_path: Path) -> None:
    """Probes, seeds and solver are the same: it is the latents that differ."""
    sampling = sampler_for(demo_arms, tmp_path)
    references = [sampling.reference(subjects.full(demo_arms, side), quiet) for side in ("base", "adapted")]
    arms = [sampling.arm(subjects.full(demo_arms, "base"), reference, quiet) for reference in references]
    require_matched(references[1], arms[1])
    with pytest.raises(MismatchError, match="other probes"):
        require_matched(*arms)


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


def test_more_probes_cost_only_their_own_forwards(demo_arms: Arms, adapted: TorchRunner, tmp_path: Path) -> None:
    sampling, runner = sampler_for(demo_arms, tmp_path), Counting(adapted)
    setup, fewer = sampling.setup, sampling.take(2)
    two = fewer.reference(subject("f1", runner), quiet)
    assert runner.rows == forwards(setup, 1, 0, 2)
    three = sampling.reference(subject("f1", runner), quiet)
    assert runner.rows == forwards(setup, 1, 0, 3)
    assert three.paths[:2] == two.paths
    fewer.arm(subject("q1", runner), two, quiet)
    sampling.arm(subject("q1", runner), three, quiet)
    assert runner.rows == forwards(setup, 2, 1, 3)


def test_distances_are_from_the_states_of_the_reference(demo_arms: Arms, adapted: TorchRunner, tmp_path: Path) -> None:
    sampling = sampler_for(demo_arms, tmp_path)
    reference = sampling.reference(subject("f1", adapted), quiet)
    other = sampling.arm(subject("q1", lambda inputs: 0.9 * adapted(inputs)), reference, quiet)  # type: ignore[arg-type]
    for apart, own, visited in zip(other.apart(), other.states(), reference.states(), strict=True):
        expected = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(own, visited, strict=True)]
        assert apart == pytest.approx(expected, rel=1e-5)
    assert max(max(apart) for apart in other.apart()) > 0.01


def test_adapters_share_the_free_runs_of_their_base(demo_arms: Arms, adapted: TorchRunner, tmp_path: Path) -> None:
    """A run from noise knows no reference: of another adapter's the base costs the states that this one visited."""
    sampling, runner = sampler_for(demo_arms, tmp_path), Counting(adapted)
    for name in ("f1", "another f1"):
        reference = sampling.reference(subject(name, runner), quiet)
        before = runner.rows
        base = sampling.arm(subject("f0", runner), reference, quiet)
        free = 1 if name == "f1" else 0
        assert runner.rows - before == forwards(sampling.setup, free, 1, 3)
    assert len(base.apart()) == 3


def test_an_interrupted_trace_goes_on_and_ends_as_if_it_had_not_been(
    demo_arms: Arms, adapted: TorchRunner, tmp_path: Path
) -> None:
    whole = sampler_for(demo_arms, tmp_path / "whole", batch=1).reference(subject("f1", adapted), quiet)
    sampling = sampler_for(demo_arms, tmp_path / "cut", batch=1)
    broken = Counting(adapted, last=2.5 * sampling.setup.calls)
    with pytest.raises(KeyboardInterrupt):
        sampling.reference(subject("f1", broken), quiet)
    assert len(sampling.store.items()) == 2
    rest = Counting(adapted)
    resumed = sampling.reference(subject("f1", rest), quiet)
    assert rest.rows == sampling.setup.calls
    assert np.array_equal(resumed.outputs(), whole.outputs())
    assert np.array_equal(resumed.finals(), whole.finals())


def test_a_solver_of_another_configuration_finds_no_stored_trace(
    demo_arms: Arms, adapted: TorchRunner, tmp_path: Path
) -> None:
    sampling, runner = sampler_for(demo_arms, tmp_path), Counting(adapted)
    sampling.reference(subject("f1", runner), quiet)
    config = demo_arms.base.pipe.scheduler.config
    spaced = DDIMScheduler.from_config(config, timestep_spacing="linspace")
    with_solver(sampling, timed(spaced, CHOSEN.steps)).reference(subject("f1", runner), quiet)
    sampling.reference(subject("another", runner), quiet)
    assert runner.rows == 3 * forwards(sampling.setup, 1, 0, 3)


def test_progress_counts_every_forward_and_those_that_were_stored(demo_arms: Arms, tmp_path: Path) -> None:
    sampling = sampler_for(demo_arms, tmp_path)
    for _ in range(2):
        units: list[int] = []
        traced = sampling.reference(subjects.full(demo_arms, "adapted"), units.append)
        sampling.arm(subjects.full(demo_arms, "base"), traced, units.append)
        assert sum(units) == forwards(sampling.setup, 2, 1, len(sampling.probes))


def test_a_runner_that_returns_another_shape_is_refused() -> None:
    class Wrong:
        name = "wrong"

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return inputs["sample"][:1]

    with pytest.raises(MismatchError, match="wrong returned"):
        call(Wrong(), {"sample": np.zeros((2, 4, 4, 4), np.float32)}, "sample")
