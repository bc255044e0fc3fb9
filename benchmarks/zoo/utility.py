"""Judge (a), utility: how much of an adapter's benefit on real pictures of its style is left after quantization.

U = (L_f0 - L_q1) / (L_f0 - L_f1), L the denoising loss on pictures that the adapter never saw: 1 is all of it, 0 none,
negative worse than the base. Limits are set on it. It is void where f1 is not better than f0 beyond doubt.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from scipy import stats

from qcheck.model.arms import Arms
from qcheck.runtime.runner import Runner, call
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe
from tools.train_demo.denoiser import encode, prompt
from tools.train_demo.pictures import Pictures, common, held_out, load, subjects

PICTURES, ROUNDS = 32, 8
_SURE = 0.01


def unseen(folder: Path, style: str, count: int = PICTURES) -> Pictures:
    """``count`` pictures of the style that no adapter learned from, of subjects that the base knows.

    The same for every run: in the order of the hash of their names.
    """
    drawn, learned = load(folder, style), {name for name in common() if not held_out(name)}
    names = (set(drawn.names) & subjects(folder)) - learned
    chosen = sorted(names, key=lambda name: hashlib.sha256(f"utility {name}".encode()).digest())[:count]
    return drawn.only(set(chosen))


@dataclass(frozen=True)
class Exam:
    """Latents [n, C, h, w] of unseen pictures and what the denoiser is told of each."""

    latents: torch.Tensor
    prompts: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """What the losses depend on beside the arm."""
        return repr((self.prompts, ROUNDS)).encode() + self.latents.numpy().tobytes()


def exam(folder: Path, style: str, pipeline: Path) -> Exam:
    """The exam of a style, in the latents of the pipeline's autoencoder."""
    pictures = unseen(folder, style)
    vae = AutoencoderTiny.from_pretrained(pipeline, subfolder="vae", dtype=torch.float32)
    return Exam(encode(vae, pictures), tuple(map(prompt, pictures.names)))


def losses(arms: Arms, side: Side, runner: Runner, given: Exam) -> np.ndarray:
    """Squared error of the predicted noise [rounds, n]: timesteps spread evenly over all, fresh noise each round.

    Unguided. Noise and timesteps are the same for every arm.
    """
    with arms.held(side) as family:
        told = [
            family.conditions(
                Probe(prompt=text, negative="", seed=0, steps=1, guidance=1.0, weights=(), width=None, height=None)
            )
            for text in given.prompts
        ]
    alphas = family.pipe.scheduler.alphas_cumprod
    conditions = {name: torch.cat([one[name] for one in told]).detach().numpy() for name in told[0]}
    found = []
    for number in range(ROUNDS):
        step = int((number + 0.5) / ROUNDS * len(alphas))
        noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(4000 + number))
        noised = alphas[step].sqrt() * given.latents + (1 - alphas[step]).sqrt() * noise
        predicted = family.read(
            call(runner, family.feed(noised.numpy(), float(step), conditions), family.latent), tuple(noised.shape)
        )
        found.append(np.square(np.float64(predicted) - noise.numpy()).mean((1, 2, 3)))
    return np.stack(found)


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
