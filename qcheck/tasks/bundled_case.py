"""One case as a bundle holds it: judged here, its tensors in the layout of the denoiser's own inputs and output."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from qcheck.measure import effect
from qcheck.model.components import Component
from qcheck.model.family import Family
from qcheck.result.verdict import Verdict
from qcheck.sampling import solvers
from qcheck.sampling.setup import Setup, fed
from qcheck.spec.arm import Side
from qcheck.spec.limits import Limits
from qcheck.spec.probe import Probe
from qcheck.tasks.check import Look, Quantization
from qcheck.tasks.session import Session

SAMPLES = 4  # inputs of a text encoder and of the decoder
TIME = "timestep"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BundledCase:
    """A case, the host's verdict on a bundle's probes, and its limits as they were held there."""

    session: Session
    quantization: Quantization
    verdict: Verdict
    limits: Limits
    look: Look

    @property
    def setup(self) -> Setup:
        """The solver and the probes' inputs."""
        return self.session.sampler.setup

    @property
    def family(self) -> Family:
        """The pipeline."""
        return self.setup.family

    @functools.cached_property
    def probes(self) -> tuple[Probe, ...]:
        """The bundle's probes."""
        energies: effect.Energies = self.look.energies
        return self.session.sampler.probes[: len(energies.f1)]

    @functools.cached_property
    def solver(self) -> solvers.Linear | str:
        """The solver as data, or the reason why it cannot be given so."""
        return solvers.as_data(self.setup.solver)

    @functools.cached_property
    def adapter(self) -> Arrays:
        """The denoiser's inputs of the adapter, where it takes one as inputs."""
        return self.quantization.artifact.runs.inputs()

    @property
    def varying(self) -> frozenset[str]:
        """The denoiser's inputs that differ between timesteps."""
        return frozenset({self.family.latent, TIME})

    @property
    def own_in_base(self) -> frozenset[str]:
        """The denoiser's inputs that differ between the arms: those that trained text encoders make."""
        if self.session.arms.encode_alike:
            return frozenset()
        return frozenset(self.session.example) - self.varying - self.family.fixed

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one picture's latents as the denoiser takes and returns them."""
        return self.session.example[self.family.latent].shape[1:]

    def raw(self, latents: np.ndarray) -> np.ndarray:
        """Latents [n, C, h, w] as the denoiser returns them, [n, *row]: transformers pack them into tokens."""
        places = np.arange(int(np.prod(self.row)), dtype=np.float32).reshape(1, *self.row)
        order = self.family.read(places, self.session.shape).reshape(-1).astype(np.int64)
        raw = np.empty((len(latents), len(order)), np.float32)
        raw[:, order] = latents.reshape(len(latents), -1)
        return raw.reshape(len(latents), *self.row)

    def inputs(self, index: int, side: Side) -> Arrays:
        """The denoiser's inputs [T or 1, ...] of a probe at the reference's latents; 1 where all strata are alike."""
        states = self.look.reference["adapted"].states()[index]
        conditions = self.setup.inputs(side, [self.probes[index]]).conditions
        calls = []
        for place, step in enumerate(self.setup.strata):
            solver = solvers.walk(self.setup.solver(), 0, step)
            x = torch.from_numpy(states[place][None].copy())
            calls.append(fed(self.family, solver, x, solver.timesteps[step], conditions)[0])
        stacked = {name: np.stack([call[name] for call in calls]) for name in calls[0]}
        return {name: values if name in self.varying else values[:1] for name, values in stacked.items()}

    def start(self, index: int) -> np.ndarray:
        """The first latents [1, *row] of a probe's free run, as large as the solver has them."""
        latents, _ = self.family.start(self.probes[index])
        return self.raw(latents.numpy() * float(getattr(self.setup.solver(), "init_noise_sigma", 1.0)))

    def times(self) -> list[float]:
        """The denoiser's input of time at every call."""
        conditions = self.setup.inputs("base", self.probes[:1]).conditions
        solver, x = self.setup.solver(), torch.zeros(self.session.shape)
        return [float(fed(self.family, solver, x, t, conditions)[0][TIME].flat[0]) for t in solver.timesteps]

    @functools.cached_property
    def samples(self) -> Mapping[str, tuple[Arrays, Arrays]]:
        """Inputs and outputs in full precision [samples, 1, ...] of the text encoders and the decoder."""
        with self.session.arms.held("adapted") as family:
            return {part.name: self._sampled(part) for part in family.others(self.session.shape)}

    @property
    def sample_count(self) -> int:
        """The number of those samples."""
        return min(SAMPLES, len(self.probes))

    def _sampled(self, part: Component) -> tuple[Arrays, Arrays]:
        if "input_ids" in part.inputs:
            inputs = self.family.tokens(part.name, [probe.prompt for probe in self.probes[: self.sample_count]])
        else:
            finals = self.look.reference["adapted"].finals()[: self.sample_count]
            (name,) = part.inputs
            inputs = {name: self.family.unscaled(torch.from_numpy(np.stack(list(finals))))}
        with torch.no_grad():
            results = [
                part.module(**{name: rows[index : index + 1] for name, rows in inputs.items()})
                for index in range(self.sample_count)
            ]
        rows = [result if isinstance(result, tuple) else (result,) for result in results]
        outputs = {
            output: np.stack([row[index].float().numpy() for row in rows]) for index, output in enumerate(part.outputs)
        }
        return {name: rows[:, None].numpy() for name, rows in inputs.items()}, outputs
