"""diffusers' solvers, called as its pipelines call them, and their response to a change of an output."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def scaled(solver: Any, latents: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The latents scaled for the denoiser; flow-matching solvers do not scale."""
    if not hasattr(solver, "scale_model_input"):
        return latents
    inputs: torch.Tensor = solver.scale_model_input(latents, timestep)
    return inputs


def step(solver: Any, output: torch.Tensor, timestep: Any, latents: torch.Tensor, draws: Any) -> torch.Tensor:
    """The next latents; ``draws`` are the generators of a solver that adds noise."""
    parameters = inspect.signature(solver.step).parameters
    # diffusers' pipelines pass these where the solver has them
    extra = {name: value for name, value in (("generator", draws), ("eta", 0.0)) if name in parameters}
    result: torch.Tensor = solver.step(output, timestep, latents, **extra, return_dict=False)[0]
    return result


def noised(solver: Any, index: int, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Final latents noised to call ``index`` of a new solver, with ``noise`` of the same shape and unit variance."""
    timestep = walk(solver, 0, index).timesteps[index : index + 1]
    flow_matching = hasattr(solver, "scale_noise")
    latents_with_noise: torch.Tensor = (
        solver.scale_noise(latents, timestep, noise) if flow_matching else solver.add_noise(latents, noise, timestep)
    )
    return latents_with_noise


def coefficients(solver: Callable[[], Any]) -> np.ndarray:
    """The change of the final sample by a unit change of each call's output, [calls], for a linear solver.

    It is the solver's impulse response: the solver runs on zero latents, with output 1 at one step and 0 elsewhere. It
    makes eps, v and flow models, and one-step and multistep solvers, comparable without a formula for each.
    """
    count = len(solver().timesteps)
    idle = _respond(solver(), np.zeros(count))
    responses = [_respond(solver(), _IMPULSE * unit) - idle for unit in np.eye(count)]
    magnitudes: np.ndarray = np.abs(np.array(responses)) / _IMPULSE
    return magnitudes


_IMPULSE = 1e-3  # small enough that a solver which clips the sample to [-1, 1] stays linear


def _respond(solver: Any, outputs: np.ndarray) -> float:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    for output, timestep in zip(outputs, solver.timesteps, strict=True):
        scaled(solver, x, timestep)
        x = step(solver, torch.full_like(x, output), timestep, x, draws)
    return float(x)


@dataclass(frozen=True)
class Linear:
    """A solver as data: after call k the state is start[k] x0 + sum over j of outputs[k, j] e_j, e_j the outputs.

    ``start`` [calls], ``outputs`` [calls, calls]. x0 has unit variance; ``first`` is its scale before the first call,
    and ``scales`` [calls] those of the states as they are fed to the denoiser.
    """

    first: float
    start: np.ndarray
    outputs: np.ndarray
    scales: np.ndarray


def as_data(solver: Callable[[], Any]) -> Linear | str:
    """The solver as data, from its response to unit impulses, or the reason why it cannot be given so.

    Every impulse is one element of the latents. The data are then held against the solver on noise of unit variance,
    with two different seeds of its own: one that clips, thresholds or draws noise does not agree.
    """
    count = len(solver().timesteps)
    first = float(getattr(solver(), "init_noise_sigma", 1.0))
    impulses = _IMPULSE * np.eye(count + 1)
    states, scales = _run(solver(), impulses[0], impulses[1:], 0)
    data = Linear(first, states[:, 0] / _IMPULSE, states[:, 1:] / _IMPULSE, scales)
    noise = np.random.default_rng(0)
    x0, outputs = first * noise.standard_normal(_ELEMENTS), noise.standard_normal((count, _ELEMENTS))
    expected = np.outer(data.start, x0) + data.outputs @ outputs
    for seed in (1, 2):
        actual, _ = _run(solver(), x0, outputs, seed)
        if not np.allclose(actual, expected, rtol=_AGREE, atol=_AGREE * float(np.abs(expected).max())):
            return f"{type(solver()).__name__} clips its samples or adds noise: its run is no sum of the outputs"
    return data


_ELEMENTS, _AGREE = 64, 1e-4


def _run(solver: Any, x0: np.ndarray, outputs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States [calls, e] after each call from ``x0`` [e] with ``outputs`` [calls, e], and the scales of the inputs."""
    x, states, scales = torch.from_numpy(x0.copy())[None, None, None], [], []
    draws = torch.Generator().manual_seed(seed)
    for output, timestep in zip(outputs, solver.timesteps, strict=True):
        scales.append(float(scaled(solver, torch.ones(1, 1, 1, 1, dtype=torch.float64), timestep)))
        x = step(solver, torch.from_numpy(output.copy())[None, None, None], timestep, x, draws)
        states.append(x.double().flatten().numpy())
    return np.array(states), np.array(scales)


def walk(solver: Any, start: int, stop: int) -> Any:
    """The solver, which is before its call ``start``, before its call ``stop``: on zero latents, with outputs of 0.

    How it scales inputs may depend on more than the number of the call: KDPM2 and Heun take two of them a step.
    """
    x, draws = torch.zeros(1, 1, 1, 1), torch.Generator().manual_seed(0)
    for timestep in solver.timesteps[start:stop]:
        step(solver, scaled(solver, x, timestep), timestep, x, draws)
    return solver
