"""The set-up that all arms of a check share: the solver, the steps at which arms are compared, and initial inputs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.model.arms import Arms
from qcheck.model.family import Family
from qcheck.model.quiet import quiet
from qcheck.runtime.runner import Runner
from qcheck.sampling import prompts, solvers
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe, ProbeSet

STRATA = 8  # timesteps at which arms are compared


@dataclass(frozen=True)
class Inputs:
    """Initial inputs of b probes: latents [b, C, h, w] of unit variance, their generators, and conditions.

    Conditions are [b, 1 or 2, ...] by name: the negative branch comes first where guidance has one.
    """

    latents: torch.Tensor
    generators: tuple[torch.Generator, ...]
    conditions: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Setup:
    """The set-up that all arms share: the solver, the steps at which arms are compared, and each arm's initial inputs.

    ``solver`` makes a new solver with its timesteps set; solvers keep state, so no two runs share one. ``guidance`` is
    the weight of the positive branch in the guided output.
    """

    family: Family
    solver: Callable[[], Any]
    guidance: float
    strata: tuple[int, ...]
    batch: int
    inputs: Callable[[Side, Sequence[Probe]], Inputs]

    @cached_property
    def calls(self) -> int:
        """Denoiser calls of one probe; some solvers take more of them than steps."""
        return len(self.all_timesteps())

    def all_timesteps(self) -> tuple[float, ...]:
        """The solver's timestep at every call."""
        return tuple(float(t) for t in self.solver().timesteps)

    def timesteps(self) -> tuple[float, ...]:
        """The solver's timestep at each stratum."""
        every = self.all_timesteps()
        return tuple(every[index] for index in self.strata)

    @cached_property
    def weights(self) -> np.ndarray:
        """Squared solver coefficient of every stratum, [T]."""
        weights: np.ndarray = solvers.coefficients(self.solver)[list(self.strata)] ** 2
        return weights

    @cached_property
    def digest(self) -> str:
        """The digest of the solver and the strata."""
        solver = self.solver()
        description = f"{type(solver).__name__} {sorted(solver.config.items())!r}"
        return digest_of(description, repr((self.all_timesteps(), self.guidance, self.strata)))


@dataclass(frozen=True)
class Subject:
    """An arm to evaluate: its side, ``content``, the digest of all that its outputs depend on, and its runner.

    ``open`` is called only when something has to be computed; the runner lasts until the context ends.
    """

    name: str
    side: Side
    content: str
    open: Callable[[], AbstractContextManager[Runner]]


def choose_strata(steps: int, count: int, seed: int | None = None) -> tuple[int, ...]:
    """min(count, steps) step indices, always with the last two: evenly spread, or drawn from a seed.

    Those that are drawn are one of each run of neighbours: what lies between two of them is shorter than two runs.
    """
    count = min(count, steps)
    if seed is not None and 2 < count < steps:
        draws = np.random.default_rng(seed)
        inner = [int(draws.choice(group)) for group in np.array_split(np.arange(steps - 2), count - 2)]
        return (*inner, steps - 2, steps - 1)
    spread = {round(index) for index in np.linspace(0, steps - 1, count)} | {steps - 1, max(steps - 2, 0)}
    inner = sorted(spread - {0, steps - 1, steps - 2})
    while len(spread) > count and inner:
        spread.remove(inner.pop())
    return tuple(sorted(spread))


Conditions = Mapping[str, np.ndarray]


def fed(
    family: Family, solver: Any, x: torch.Tensor, timestep: Any, conditions: Conditions
) -> tuple[dict[str, np.ndarray], int]:
    """The denoiser's inputs for latents [b, C, h, w] and conditions [b, n, ...], and the number of branches n.

    Branches follow each other in the batch.
    """
    branches = next(iter(conditions.values())).shape[1]
    sample = torch.cat([solvers.scaled(solver, x, timestep)] * branches).numpy()
    rows = {name: value.swapaxes(0, 1).reshape(-1, *value.shape[2:]) for name, value in conditions.items()}
    return family.feed(sample, float(timestep), rows), branches


def combined(outputs: torch.Tensor, branches: int, guidance: float, tile: int) -> torch.Tensor:
    """Guided output [b, C, h, w] of ``branches`` that follow each other in the batch, rescaled by ``Family.tile``."""
    if branches == 1:
        return outputs
    negative, positive = outputs.chunk(branches)
    guided = negative + guidance * (positive - negative)
    return guided * (_norms(positive, tile) / _norms(guided, tile)) if tile else guided


def _norms(x: torch.Tensor, tile: int) -> torch.Tensor:
    """The norm [b, 1, h, w] over the channels of the square of side ``tile`` around each latent of ``x``."""
    rows, channels, height, width = x.shape
    squares = x.reshape(rows, channels, height // tile, tile, width // tile, tile)
    norms = torch.linalg.vector_norm(squares, dim=(1, 3, 5), keepdim=True)
    spread: torch.Tensor = norms.expand(-1, -1, -1, tile, -1, tile).reshape(rows, 1, height, width)
    return spread


class Steps(Protocol):
    """The length of a run, as ``Setup`` has it."""

    @property
    def calls(self) -> int:
        """Denoiser calls of one probe."""
        ...

    @property
    def strata(self) -> tuple[int, ...]:
        """The indices of the calls at which arms are compared."""
        ...


def forwards(setup: Steps, free: int, forced: int, probes: int) -> int:
    """Denoiser calls, one per probe and step, of ``free`` runs and ``forced`` evaluations at states over ``probes``."""
    return probes * (free * setup.calls + forced * len(setup.strata))


def make(arms: Arms, probe_set: ProbeSet, strata: int, batch: int) -> Setup:
    """The set-up of a probe set: its solver, its steps, and its probes' initial inputs in each of ``arms``.

    Raises:
        UserError: a negative prompt for a pipeline without a second branch of guidance, prompts that are one to the
            text encoders, an impossible picture size, or a number of steps that the solver does not take.
    """
    family = arms.base.family
    if probe_set.negative and family.branches == 1:
        raise UserError(
            f"probes {probe_set.name!r} have a negative prompt, "
            f"and a {type(family).__name__} pipeline has no use for one",
            "Leave `negative` out of the probe set.",
        )

    prompts.require_distinct(family, probe_set.prompts)
    embeddings = _Embeddings(arms)

    def inputs(side: Side, probes: Sequence[Probe]) -> Inputs:
        starts = [family.start(p) for p in probes]
        probe_conditions = embeddings.take(side, probes)
        return Inputs(
            latents=torch.cat([latents for latents, _ in starts]),
            generators=tuple(generator for _, generator in starts),
            conditions={name: torch.stack([c[name] for c in probe_conditions]).numpy() for name in probe_conditions[0]},
        )

    shape = family.shape(probe_set.width, probe_set.height)
    try:
        calls = len(family.solver(probe_set.steps, shape).timesteps)
    except ValueError as error:
        raise UserError(f"--steps {probe_set.steps}: the solver refuses it: {error}", "Give fewer --steps.") from error
    return Setup(
        family=family,
        solver=lambda: family.solver(probe_set.steps, shape),
        guidance=family.positive_weight(probe_set.guidance),
        strata=choose_strata(calls, strata, probe_set.seed if probe_set.drawn else None),
        batch=batch,
        inputs=inputs,
    )


class _Embeddings:
    """Conditions of probes in each arm, encoded once for both where their text encoders are the same."""

    def __init__(self, arms: Arms) -> None:
        self._arms, self._known = arms, dict[tuple[str, Probe], Mapping[str, torch.Tensor]]()

    def take(self, side: Side, probes: Sequence[Probe]) -> list[Mapping[str, torch.Tensor]]:
        """The conditions of every probe."""
        encoder = "both" if self._arms.encode_alike else side
        if missing := [probe for probe in probes if (encoder, probe) not in self._known]:
            with quiet(), self._arms.encoding(side) as family:
                self._known |= {(encoder, probe): family.conditions(probe) for probe in missing}
        return [self._known[encoder, probe] for probe in probes]


def example(setup: Setup, probe: Probe) -> dict[str, np.ndarray]:
    """The denoiser's inputs for one probe at its first step: a row for each branch of guidance."""
    first, solver = setup.inputs("base", [probe]), setup.solver()
    return fed(setup.family, solver, first.latents, solver.timesteps[0], first.conditions)[0]
