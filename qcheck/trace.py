"""Runner x probes -> stored outputs. f1 walks freely; every other arm is asked at f1's states, then walks freely too.

Outputs are guided (the two branches of classifier-free guidance run in one batch and are combined before storing).
Arrays live on disk; memory does not grow with probes or steps.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcheck import files
from qcheck.backend.base import MismatchError, Runner, call
from qcheck.files import digest
from qcheck.probe import Probe

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Setup:
    """What all arms share: probes, the solver, their first latents, and the steps at which arms are compared."""

    probes: tuple[Probe, ...]
    scheduler: Any
    latents: torch.Tensor
    generators: tuple[torch.Tensor, ...]
    strata: tuple[int, ...]
    batch: int

    @property
    def steps(self) -> int:
        """Solver steps that every probe asks for."""
        return self.probes[0].steps

    @property
    def calls(self) -> int:
        """Denoiser calls of one probe; some solvers take more of them than steps."""
        return len(fresh(self.scheduler, self.steps).timesteps)

    @property
    def matched(self) -> str:
        """The digest of everything that an arm's outputs depend on but its weights: probes, noise and timesteps."""
        parts = [files.digest_value(probe) for probe in self.probes]
        return digest(*parts, self.latents.numpy().tobytes(), repr(self.timesteps()), repr(self.guidance))

    @property
    def guidance(self) -> float:
        """Guidance scale of every probe."""
        return self.probes[0].guidance

    def timesteps(self) -> tuple[float, ...]:
        """The solver's timestep at each stratum."""
        solver = fresh(self.scheduler, self.steps)
        return tuple(float(solver.timesteps[index]) for index in self.strata)

    @property
    def forced_forwards(self) -> int:
        """Denoiser calls, one per probe and step, of a teacher-forced pass."""
        return len(self.probes) * len(self.strata)

    @property
    def free_forwards(self) -> int:
        """Denoiser calls, one per probe and step, of a free run."""
        return len(self.probes) * self.calls


@dataclass(frozen=True)
class Trace:
    """One arm's stored outputs. ``matched`` is the digest of the probes, timesteps and states it was evaluated at."""

    folder: Path
    matched: str

    def outputs(self) -> np.ndarray:
        """Guided outputs [n, T, C, h, w] at the strata."""
        return _open(self.folder, "outputs")

    def finals(self) -> np.ndarray:
        """Final latents [n, C, h, w] of the arm's own free run."""
        return _open(self.folder, "finals")

    def states(self) -> np.ndarray:
        """Latents [n, T, C, h, w] before the strata's steps; the reference has them."""
        return _open(self.folder, "states")


def _open(folder: Path, name: str) -> np.ndarray:
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
    return array


def require_matched(*traces: Trace) -> None:
    """Refuse traces that do not belong together; nothing is ever resized to fit.

    Raises:
        MismatchError: digests, shapes or dtypes differ.
    """
    for trace in traces[1:]:
        if trace.matched != traces[0].matched:
            raise MismatchError(
                f"{trace.folder.name} was traced on other probes or states than {traces[0].folder.name}"
            )
        for ours, theirs in ((trace.outputs(), traces[0].outputs()), (trace.finals(), traces[0].finals())):
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                raise MismatchError(
                    f"{trace.folder.name}: {ours.dtype}{ours.shape}, expected {theirs.dtype}{theirs.shape}"
                )


def choose_strata(steps: int, count: int) -> tuple[int, ...]:
    """min(count, steps) step indices, evenly spread, always with the last two."""
    count = min(count, steps)
    spread = {round(index) for index in np.linspace(0, steps - 1, count)} | {steps - 1, max(steps - 2, 0)}
    inner = sorted(spread - {0, steps - 1, steps - 2})
    while len(spread) > count and inner:
        spread.remove(inner.pop())
    return tuple(sorted(spread))


def fresh(scheduler: Any, steps: int) -> Any:
    """A new solver of the same kind, set to ``steps``; solvers keep state, so no two runs share one."""
    solver = type(scheduler).from_config(scheduler.config)
    solver.set_timesteps(steps)
    return solver


def _scaled(solver: Any, latents: torch.Tensor, timestep: Any) -> torch.Tensor:
    """What the denoiser is fed; flow-matching solvers have no scaling of their own."""
    if not hasattr(solver, "scale_model_input"):
        return latents
    found: torch.Tensor = solver.scale_model_input(latents, timestep)
    return found


def _step(solver: Any, output: torch.Tensor, timestep: Any, latents: torch.Tensor, draws: Any) -> torch.Tensor:
    extra = {"generator": draws} if "generator" in inspect.signature(solver.step).parameters else {}
    result: torch.Tensor = solver.step(output, timestep, latents, **extra, return_dict=False)[0]
    return result


def coefficients(scheduler: Any, steps: int) -> np.ndarray:
    """How far the final sample moves for a unit change of each call's output, [calls], the solver being linear.

    The solver's impulse response: run it on zero latents with output 1 at one step and 0 elsewhere. It makes eps, v
    and flow models, and one-step and multistep solvers, comparable without knowing any of them.
    """
    count = len(fresh(scheduler, steps).timesteps)
    idle = _respond(scheduler, steps, np.zeros(count))
    responses = [_respond(scheduler, steps, _IMPULSE * unit) - idle for unit in np.eye(count)]
    found: np.ndarray = np.abs(np.array(responses)) / _IMPULSE
    return found


_IMPULSE = 1e-3  # small enough that a solver which clips the sample to [-1, 1] stays linear


def _respond(scheduler: Any, steps: int, outputs: np.ndarray) -> float:
    solver, x = fresh(scheduler, steps), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    for output, timestep in zip(outputs, solver.timesteps, strict=True):
        _scaled(solver, x, timestep)
        x = _step(solver, torch.full_like(x, output), timestep, x, draws)
    return float(x)


def _chunks(setup: Setup) -> Iterator[slice]:
    for first in range(0, len(setup.probes), setup.batch):
        yield slice(first, first + setup.batch)


def _guided(
    runner: Runner, solver: Any, x: torch.Tensor, timestep: Any, hidden: np.ndarray, scale: float
) -> torch.Tensor:
    """Guided output [b, C, h, w] for latents of that shape and hidden [b, 1 or 2, L, D]."""
    branches = hidden.shape[1]
    scaled = _scaled(solver, x, timestep)
    sample = torch.cat([scaled] * branches).numpy()
    raw = call(runner, sample, float(timestep), hidden.swapaxes(0, 1).reshape(-1, *hidden.shape[2:]))
    parts = torch.from_numpy(raw).chunk(branches)
    return parts[0] if branches == 1 else parts[0] + scale * (parts[1] - parts[0])


def _store(folder: Path, name: str, shape: Sequence[int]) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    array: np.ndarray = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, tuple(shape))
    return array


def _draws(setup: Setup, rows: slice) -> list[torch.Generator]:
    draws = []
    for state in setup.generators[rows]:
        draws.append(torch.Generator())
        draws[-1].set_state(state)
    return draws


def _walk(setup: Setup, runner: Runner, hidden: np.ndarray, folder: Path, advance: Advance, keep: bool) -> None:
    """A free run of every probe; with ``keep`` the states and outputs at the strata are stored too."""
    latent = tuple(setup.latents.shape[1:])
    finals = _store(folder, "finals", (len(setup.probes), *latent))
    kept = (len(setup.probes), len(setup.strata), *latent)
    states, outputs = (_store(folder, name, kept) for name in ("states", "outputs")) if keep else (None, None)
    for rows in _chunks(setup):
        solver, draws = fresh(setup.scheduler, setup.steps), _draws(setup, rows)
        x = setup.latents[rows] * solver.init_noise_sigma
        for index, timestep in enumerate(solver.timesteps):
            guided = _guided(runner, solver, x, timestep, hidden[rows], setup.guidance)
            if states is not None and outputs is not None and index in setup.strata:
                place = setup.strata.index(index)
                states[rows, place], outputs[rows, place] = x.numpy(), guided.numpy()
            x = _step(solver, guided, timestep, x, draws)
            advance(len(x))
        finals[rows] = x.numpy()


def reference(setup: Setup, runner: Runner, hidden: np.ndarray, folder: Path, advance: Advance) -> Trace:
    """Trace f1: its free run with states and outputs at the strata. ``hidden`` is [n, 1 or 2, L, D]."""
    _walk(setup, runner, hidden, folder, advance, keep=True)
    return Trace(folder, digest(setup.matched, folder / "states.npy"))


def forced(
    setup: Setup, reached: Trace, runner: Runner, hidden: np.ndarray, folder: Path, advance: Advance
) -> np.ndarray:
    """Store and return a runner's guided outputs [n, T, C, h, w] at the states that the reference reached."""
    states = reached.states()
    outputs = _store(folder, "outputs", states.shape)
    solver = fresh(setup.scheduler, setup.steps)
    for rows in _chunks(setup):
        for place, index in enumerate(setup.strata):
            x = torch.from_numpy(np.array(states[rows, place]))
            guided = _guided(runner, _at(solver, index), x, solver.timesteps[index], hidden[rows], setup.guidance)
            outputs[rows, place] = guided.numpy()
            advance(len(x))
    return outputs


def _at(solver: Any, index: int) -> Any:
    """The solver with its step counter, where it keeps one, at ``index`` (input scaling depends on it)."""
    if hasattr(solver, "_step_index"):
        solver._step_index = index
    return solver


def arm(setup: Setup, reached: Trace, runner: Runner, hidden: np.ndarray, folder: Path, advance: Advance) -> Trace:
    """Trace any other arm: forced at the reference's states, then free from the same noise."""
    forced(setup, reached, runner, hidden, folder, advance)
    _walk(setup, runner, hidden, folder, advance, keep=False)
    return Trace(folder, digest(setup.matched, reached.folder / "states.npy"))
