"""A solver as data is the solver: what the board runs is a sum of outputs, and the others are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from qcheck.sampling import solvers

LINEAR = (
    lambda: DDIMScheduler(clip_sample=False),
    lambda: DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    lambda: PNDMScheduler(skip_prk_steps=True),
    UniPCMultistepScheduler,
)


def _made(kind: Any) -> Any:
    solver = kind()
    solver.set_timesteps(6)
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(0)
    return solver


@pytest.mark.parametrize("kind", LINEAR, ids=lambda kind: type(_made(kind)).__name__)
def test_a_linear_solvers_run_is_a_sum_of_its_outputs(kind: Any) -> None:
    data = solvers.as_data(lambda: _made(kind))
    assert isinstance(data, solvers.Linear), data
    generator = torch.Generator().manual_seed(5)
    solver, outputs = _made(kind), []
    x0 = x = torch.randn(1, 2, 3, 3, generator=generator) * data.first
    for call, timestep in enumerate(solver.timesteps):
        fed = solvers.scaled(solver, x, timestep)
        assert torch.allclose(fed, x * data.scales[call], rtol=1e-5)
        outputs.append(torch.randn(x.shape, generator=generator))
        x = solvers.step(solver, outputs[-1], timestep, x, None)
        weights = zip(data.outputs[call], outputs, strict=False)
        sums = data.start[call] * x0 + sum(float(weight) * output for weight, output in weights)
        assert np.allclose(sums.numpy(), x.numpy(), rtol=1e-3, atol=1e-4 * float(x.abs().max()))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler])
def test_a_solver_that_clips_or_draws_noise_is_refused(kind: Any) -> None:
    reason = solvers.as_data(lambda: _made(kind))
    assert reason == f"{kind.__name__} clips its samples or adds noise: its run is no sum of the outputs"
