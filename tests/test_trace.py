from dataclasses import replace
from pathlib import Path

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

from qcheck import trace
from qcheck.backend.base import MismatchError, call
from qcheck.backend.torch import TorchRunner
from qcheck.model import arms
from qcheck.model.arms import Arms
from qcheck.probe import ProbeSet
from qcheck.probe import probes as make_probes
from qcheck.trace import Setup

CHOSEN = ProbeSet(name="three", prompts=("red apple", "panda", "ghost"), seed=7, steps=6, guidance=3.0)


def setup_for(demo_arms: Arms, chosen: ProbeSet = CHOSEN, batch: int = 2) -> tuple[Setup, np.ndarray]:
    pipe = demo_arms.use("adapted")
    asked = make_probes(chosen, 1.0)
    started = [arms.start(pipe, p) for p in asked]
    setup = Setup(
        probes=asked,
        scheduler=pipe.scheduler,
        latents=torch.cat([latents for latents, _ in started]),
        generators=tuple(g.get_state() for _, g in started),
        strata=trace.choose_strata(chosen.steps, 4),
        batch=batch,
    )
    return setup, torch.stack([arms.embed(pipe, p) for p in asked]).numpy()


def quiet(_: int) -> None:
    """No progress."""


@pytest.mark.parametrize(("steps", "count", "expected"), [(20, 8, 8), (4, 8, 4), (1, 8, 1), (2, 8, 2), (9, 8, 8)])
def test_strata_are_few_spread_and_end_with_the_last_two(steps: int, count: int, expected: int) -> None:
    strata = trace.choose_strata(steps, count)
    assert len(strata) == expected
    assert strata[-1] == steps - 1
    assert steps == 1 or strata[-2] == steps - 2
    assert strata[0] == 0


def test_ddim_coefficients_are_the_drop_of_sigma_over_alpha() -> None:
    """Closed form for eps: the last sample moves by d(sigma / alpha) of each step, times the last alpha."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    solver = trace.fresh(scheduler, 10)
    level = np.array(
        [float(scheduler.alphas_cumprod[t]) for t in solver.timesteps] + [float(scheduler.final_alpha_cumprod)]
    )
    ratio = np.sqrt((1 - level) / level)
    expected = (ratio[:-1] - ratio[1:]) * np.sqrt(level[-1])
    assert trace.coefficients(scheduler, 10) == pytest.approx(expected, rel=1e-4)


def test_flow_coefficients_are_the_drop_of_sigma() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    sigmas = trace.fresh(scheduler, 5).sigmas.numpy()
    assert trace.coefficients(scheduler, 5) == pytest.approx(sigmas[:-1] - sigmas[1:], rel=1e-4)


def test_the_diffusers_pipeline_draws_the_picture_of_the_free_run(demo_arms: Arms, tmp_path: Path) -> None:
    setup, hidden = setup_for(demo_arms)
    pipe = demo_arms.use("adapted")
    traced = trace.reference(setup, TorchRunner(pipe.unet), hidden, tmp_path / "f1", quiet)
    ours = arms.decode(pipe, torch.from_numpy(np.array(traced.finals()))).permute(0, 2, 3, 1).numpy()
    for index, asked in enumerate(setup.probes):
        theirs = pipe(
            asked.prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type="np",
        ).images[0]
        assert np.abs(ours[index] - theirs).max() < 1e-3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
def test_other_solvers_are_followed_like_the_pipeline_does(demo_arms: Arms, tmp_path: Path) -> None:
    setup, hidden = setup_for(demo_arms)
    pipe = demo_arms.use("adapted")
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    traced = trace.reference(replace(setup, scheduler=euler), TorchRunner(pipe.unet), hidden, tmp_path / "f1", quiet)
    kept, pipe.scheduler = pipe.scheduler, euler
    try:
        theirs = pipe(
            setup.probes[0].prompt,
            num_inference_steps=6,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(setup.probes[0].seed),
            output_type="latent",
        ).images[0]
    finally:
        pipe.scheduler = kept
    assert np.abs(traced.finals()[0] - theirs.numpy()).max() < 1e-3


def test_forced_at_its_own_states_the_reference_repeats_itself(demo_arms: Arms, tmp_path: Path) -> None:
    setup, hidden = setup_for(demo_arms, batch=3)
    runner = TorchRunner(demo_arms.use("adapted").unet)
    traced = trace.reference(setup, runner, hidden, tmp_path / "f1", quiet)
    again = trace.arm(setup, traced, runner, hidden, tmp_path / "again", quiet)
    assert np.allclose(again.outputs(), traced.outputs(), atol=1e-5)
    assert np.allclose(again.finals(), traced.finals(), atol=1e-4)
    trace.require_matched(traced, again)


@pytest.mark.parametrize("solver", [PNDMScheduler, HeunDiscreteScheduler])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_solvers_that_call_more_often_than_they_step_are_followed(
    demo_arms: Arms, tmp_path: Path, solver: type
) -> None:
    setup, hidden = setup_for(demo_arms)
    scheduler = solver.from_config(setup.scheduler.config)
    setup = replace(setup, scheduler=scheduler)
    setup = replace(setup, strata=trace.choose_strata(setup.calls, 4))
    assert setup.calls > setup.steps
    assert trace.coefficients(scheduler, setup.steps).shape == (setup.calls,)
    runner = TorchRunner(demo_arms.use("adapted").unet)
    units: list[int] = []
    traced = trace.reference(setup, runner, hidden, tmp_path / "f1", units.append)
    assert sum(units) == setup.free_forwards
    assert setup.strata[-2:] == (setup.calls - 2, setup.calls - 1)
    assert np.isfinite(traced.outputs()).all()


def test_a_solver_that_clips_is_still_read_as_linear() -> None:
    clipped = DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    free = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert trace.coefficients(clipped, 10) == pytest.approx(trace.coefficients(free, 10), rel=1e-4)


@pytest.mark.parametrize("change", [{"seed": 8}, {"guidance": 4.0}])
def test_an_arm_traced_with_another_setup_is_refused(
    demo_arms: Arms, tmp_path: Path, change: dict[str, object]
) -> None:
    setup, hidden = setup_for(demo_arms)
    other, _ = setup_for(demo_arms, CHOSEN.model_copy(update=change))
    runner = TorchRunner(demo_arms.use("adapted").unet)
    traced = trace.reference(setup, runner, hidden, tmp_path / "f1", quiet)
    wrong = trace.arm(other, traced, runner, hidden, tmp_path / "q1", quiet)
    with pytest.raises(MismatchError, match="other probes"):
        trace.require_matched(traced, wrong)


@pytest.mark.parametrize("change", [{"seed": 8}, {"guidance": 4.0}, {"steps": 7}, {"prompts": ("panda",) * 3}])
def test_traces_of_other_probes_are_refused(demo_arms: Arms, tmp_path: Path, change: dict[str, object]) -> None:
    runner = TorchRunner(demo_arms.use("adapted").unet)
    found = []
    for name, chosen in (("one", CHOSEN), ("two", CHOSEN.model_copy(update=change))):
        setup, hidden = setup_for(demo_arms, chosen)
        found.append(trace.reference(setup, runner, hidden, tmp_path / name, quiet))
    with pytest.raises(MismatchError, match="other probes"):
        trace.require_matched(*found)


def test_progress_counts_every_forward(demo_arms: Arms, tmp_path: Path) -> None:
    setup, hidden = setup_for(demo_arms)
    units: list[int] = []
    runner = TorchRunner(demo_arms.use("base").unet)
    traced = trace.reference(setup, runner, hidden, tmp_path / "f1", units.append)
    trace.arm(setup, traced, runner, hidden, tmp_path / "f0", units.append)
    assert sum(units) == 2 * setup.free_forwards + setup.forced_forwards


def test_a_runner_that_returns_another_shape_is_refused() -> None:
    class Wrong:
        name = "wrong"

        def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
            return sample[:1]

    with pytest.raises(MismatchError, match="wrong returned"):
        call(Wrong(), np.zeros((2, 4, 4, 4), np.float32), 1.0, np.zeros((2, 1, 1), np.float32))
