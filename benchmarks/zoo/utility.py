"""Judge (a), utility: how much of an adapter's benefit on real pictures of its style is left after quantization.

U = (L_f0 - L_q1) / (L_f0 - L_f1), L the denoising loss on pictures that the adapter never saw: 1 is all of it, 0 none,
negative worse than the base. Limits are set on it. It is void where f1 is not better than f0 beyond doubt.

The loss is taken without guidance, whatever the samples are drawn with: a guided output is no estimate of the target,
and the more an adapter does, the farther guidance carries it away (at a scale of 7.5 an adapter that lowers its loss
from .576 to .572 raises the guided one from 3.88 to 3.90).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.zoo.pipelines import Pipeline
from qcheck.model.arms import Arms
from qcheck.runtime.runner import Runner, call
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe

PICTURES, ROUNDS = 32, 8
_SURE = 0.01


@dataclass(frozen=True)
class Exam:
    """Latents [n, C, h, w] of unseen pictures and the prompt of each."""

    pipeline: Pipeline
    latents: torch.Tensor
    prompts: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """What the losses depend on beside the arm."""
        return repr((self.prompts, ROUNDS)).encode() + self.latents.numpy().tobytes()


def exam(pipeline: Pipeline, folder: Path, style: str) -> Exam:
    """The exam of a style, in the latents of the pipeline's autoencoder."""
    pictures = pipeline.held_out(folder, style, PICTURES)
    return Exam(pipeline, pipeline.encoded(pictures), pictures.names)


def losses(arms: Arms, side: Side, runner: Runner, given: Exam) -> np.ndarray:
    """Squared error of the output [rounds, n]: times spread evenly over the schedule, fresh noise each round.

    Noise and times are the same for every arm.
    """
    with arms.held(side) as family:
        encoded = [family.conditions(_asked(text)) for text in given.prompts]
    conditions = {name: torch.cat([one[name] for one in encoded]).detach().numpy() for name in encoded[0]}
    errors = []
    for number in range(ROUNDS):
        place = torch.full((len(given.latents),), (number + 0.5) / ROUNDS)
        noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(4000 + number))
        noised, times, target = given.pipeline.add_noise(given.latents, noise, place)
        inputs = family.feed(noised.numpy(), float(times[0]), conditions)
        predicted = family.read(call(runner, inputs, family.latent), tuple(noised.shape))
        errors.append(np.square(np.float64(predicted) - target.numpy()).mean((1, 2, 3)))
    return np.stack(errors)


def _asked(prompt: str) -> Probe:
    sampling: dict[str, Any] = {"seed": 0, "steps": 1, "guidance": 1.0, "weights": (), "width": None, "height": None}
    return Probe(prompt=prompt, negative="", **sampling)


@dataclass(frozen=True)
class Utility:
    """U and its standard error; the benefit L_f0 - L_f1 and its standard error."""

    value: float
    error: float
    benefit: float
    benefit_error: float

    @property
    def void(self) -> bool:
        """Whether there is no benefit to be lost: f1 is not better than f0 with 99 % confidence."""
        sure = self.benefit > stats.norm.isf(_SURE) * self.benefit_error
        return not (sure and np.isfinite(self.value))


def utility(f0: np.ndarray, f1: np.ndarray, q1: np.ndarray) -> Utility:
    """U of losses [rounds, n] over the same noises and timesteps, with the error of a ratio over pictures.

    Each picture has its own noise at every timestep, and timesteps are a fixed grid: so the spread of the pictures'
    means holds the chance of both pictures and noises.
    """
    left, benefit = (f0 - q1).mean(0), (f0 - f1).mean(0)
    count, whole = len(benefit), float(benefit.mean())
    value = float(left.mean()) / whole if whole else float("nan")
    residual = (left - value * benefit) / whole if whole else np.full(count, np.nan)
    root = float(np.sqrt(count))
    return Utility(value, float(residual.std(ddof=1)) / root, whole, float(benefit.std(ddof=1)) / root)
