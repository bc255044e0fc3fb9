"""The exam on the user's own pictures of a style: denoising losses of every arm, without guidance.

A guided output is no estimate of what a picture's noise was, and the more an adapter does, the farther guidance carries
it away: so losses are taken at guidance 1, whatever the probes are sampled with (docs/zoo.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcheck.calibration import pictures
from qcheck.calibration.pictures import Picture
from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Stopwatch
from qcheck.measure import utility
from qcheck.measure.sample import Sample
from qcheck.model.arms import Arms
from qcheck.result.measurement import Measurement
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Setup, Subject, forwards
from qcheck.spec import probe
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import ProbeSet

MOST, STEPS = 32, 8
_SEED = 4000


@dataclass(frozen=True)
class Exam:
    """Pictures with their captions as probes: one noise a picture, at ``STEPS`` timesteps over the whole schedule."""

    arms: Arms
    sampler: Sampler
    paths: tuple[Path, ...]
    watch: Stopwatch

    @property
    def folder(self) -> str:
        """Where the pictures are."""
        return str(self.paths[0].parent)

    @property
    def digest(self) -> str:
        """The digest of the pictures and their captions."""
        return _digest(self.paths, [one.prompt for one in self.sampler.probes])

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """The losses of f0 and f1."""
        return self.losses(subject.full(self.arms, "base")), self.losses(subject.full(self.arms, "adapted"))

    def measure(self, q1: Subject) -> Sample | Measurement:
        """style_utility of a quantized arm."""
        return utility.style_utility(*self._known, self.losses(q1))

    def losses(self, arm: Subject) -> np.ndarray:
        """Mean squared errors [n] of an arm's outputs, by picture; those of an earlier run are in the cache."""
        setup = self.sampler.setup
        key = cache.key(__name__, "exam", setup.digest, arm.content, repr(self.sampler.probes), *self.paths)

        def make(folder: Path) -> None:
            states, targets = self._questions
            calls = forwards(setup, 0, 1, len(self.paths))
            with self.watch.stage(f"{arm.name}, your pictures", calls) as advance, arm.open() as runner:
                outputs = self.sampler.outputs(runner, arm.side, states, advance)
            errors = np.square(outputs.astype(np.float64) - targets).reshape(len(outputs), -1)
            np.save(folder / "losses.npy", errors.mean(1))

        folder = self.sampler.store.obtain("exam", key, f"{arm.name}, {self.folder}", make)
        found: np.ndarray = np.load(folder / "losses.npy")
        return found

    @cached_property
    def _questions(self) -> tuple[np.ndarray, np.ndarray]:
        """Noised latents and the outputs that would be right, both [n, T, C, h, w]."""
        setup, family, probes = self.sampler.setup, self.arms.computing.family, self.sampler.probes
        states, targets = [], []
        for one, path in zip(probes, self.paths, strict=True):
            latents, noise = pictures.latents(family, one, path), family.start(one)[0]
            rows = [solvers.noised(setup.solver(), index, latents, noise) for index in setup.strata]
            states.append(torch.cat(rows).numpy())
            targets.append(torch.cat([target(setup, index, latents, noise) for index in setup.strata]).numpy())
        return np.stack(states), np.stack(targets)


def of(arms: Arms, spec: CheckSpec, sampler: Sampler, watch: Stopwatch) -> Exam | None:
    """The exam on the request's pictures, at most ``MOST`` of them, evenly by name; None where it has none.

    Raises:
        UserError: there are no pictures, or too few.
    """
    if spec.style_pictures is None:
        return None
    chosen = _chosen(spec.style_pictures)
    questions = Sampler.of(arms, _asked(spec, chosen), STEPS, spec.execution.batch, sampler.store)
    return Exam(arms, questions, tuple(one.path for one in chosen), watch)


def digest_of_pictures(spec: CheckSpec, folder: Path) -> str:
    """The digest of the pictures and captions that a request would take from a folder.

    Raises:
        UserError: there are no pictures, or too few.
    """
    chosen = _chosen(str(folder))
    return _digest([one.path for one in chosen], _asked(spec, chosen).prompts)


def _digest(paths: Sequence[Path], prompts: Sequence[str]) -> str:
    return digest_of(*paths, *prompts)


def _chosen(folder: str) -> list[Picture]:
    every = pictures.find(Path(folder), "--style-pictures")
    if len(every) < utility.LEAST:
        raise UserError(f"--style-pictures {folder!r} holds {len(every)} pictures", f"Give {utility.LEAST} or more.")
    return [every[round(place)] for place in np.linspace(0, len(every) - 1, min(MOST, len(every)))]


def _asked(spec: CheckSpec, chosen: list[Picture]) -> ProbeSet:
    """The captions as probes; noise of their own, no guidance."""
    update = {"prompts": tuple(one.caption for one in chosen), "name": "own pictures", "negative": ""}
    sampling = {"steps": STEPS, "guidance": 1.0, "seed": _SEED, "drawn": False}
    return probe.triggered(spec.probes.model_copy(update=update | sampling), spec.trigger)


_KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def output_kind(solver: Any) -> str:
    """What a solver takes the denoiser's output for: noise, velocity, the picture or a flow, by diffusers' names.

    Raises:
        UserError: something else.
    """
    flow = hasattr(solver, "scale_noise")
    kind = "flow_prediction" if flow else str(solver.config.get("prediction_type", "epsilon"))
    if kind not in _KINDS:
        raise UserError(
            f"the base's denoiser gives {kind!r}, whose loss is not known",
            "Leave out what asks for it: --style-pictures, or the --probes of qcheck watch.",
        )
    return kind


def target(setup: Setup, index: int, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the denoiser should say of ``latents`` with ``noise`` at call ``index``, by what its solver takes it for.

    Raises:
        UserError: as ``output_kind``.
    """
    solver = setup.solver()
    kind = output_kind(solver)
    if kind == "v_prediction":
        one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        walked, timestep = solvers.walk(setup.solver(), 0, index), solver.timesteps[index]
        scale = float(solvers.scaled(walked, one, timestep))
        signal, spread = (float(solvers.noised(setup.solver(), index, *pair)) for pair in ((one, none), (none, one)))
        return scale * (signal * noise - spread * latents)
    return {"epsilon": noise, "sample": latents, "flow_prediction": noise - latents}[kind]
