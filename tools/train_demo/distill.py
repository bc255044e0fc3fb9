"""The step-distillation adapter: four steps without guidance go where the base goes in forty with guidance.

The base with guidance is the teacher. Its own runs from noise are kept where the student's steps begin and end, and a
LoRA is fitted so that each of the student's DDIM steps lands on them, from where the student itself has come to or from
the teacher's way. No pictures are needed; the prompts are those of the pictures, without the ones that judge.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from torch.nn import functional as F

from qcheck.demo import library
from qcheck.spec import probe
from tools.train_demo.adapter import embed, record, save
from tools.train_demo.denoiser import prompt
from tools.train_demo.pictures import common

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How the adapter is trained: ``runs`` of the teacher, and ``updates`` of the student on ``batch`` of them."""

    name: str
    rank: int
    alpha: float
    rate: float
    updates: int
    batch: int
    steps: int
    guidance: float
    teacher_steps: int
    teacher_guidance: float
    runs: int
    seed: int
    layers: str


LAYERS = (
    r".*(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out"
    r"|resnets\.\d\.(conv1|conv2|conv_shortcut|time_emb_proj)|samplers\.0\.conv)"
)
FEW = Recipe(
    "few",
    rank=3,
    alpha=3,
    rate=3e-3,
    updates=1200,
    batch=8,
    steps=4,
    guidance=1.0,
    teacher_steps=40,
    teacher_guidance=3.0,
    runs=768,
    seed=11,
    layers=LAYERS,
)


def subjects() -> list[str]:
    """The names of the common pictures that no probe of the demo asks for."""
    judging = set(probe.find(library.PROBES).prompts)
    return sorted(name for name in common() if prompt(name) not in judging)


def walk(
    unet: Any, scheduler: Any, noise: torch.Tensor, words: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Latents [steps + 1, n, C, h, w] of a run from ``noise`` [n, C, h, w]; ``words`` [2, n, L, D], negative first."""
    scheduler.set_timesteps(steps)
    states = [noise]
    for timestep in scheduler.timesteps:
        branches = len(words) if guidance != 1 else 1
        sample, asked = torch.cat([states[-1]] * branches), words[-branches:].flatten(0, 1)
        parts = unet(sample, timestep, asked).sample.chunk(branches)
        output = parts[0] if branches == 1 else parts[0] + guidance * (parts[1] - parts[0])
        states.append(scheduler.step(output, timestep, states[-1]).prev_sample)
    return torch.stack(states)


@torch.no_grad()
def teach(pipe: StableDiffusionPipeline, recipe: Recipe, words: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The teacher's latents [steps + 1, n, C, h, w] where the student's steps begin and end."""
    stride = recipe.teacher_steps // recipe.steps
    found = [
        walk(pipe.unet, pipe.scheduler, x, w, recipe.teacher_steps, recipe.teacher_guidance)[::stride]
        for x, w in zip(noise.split(16), words.split(16, 1), strict=True)
    ]
    return torch.cat(found, 1)


def _losses(pipe: StableDiffusionPipeline, states: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean squared distance [steps] of where each of the student's steps lands from ``states`` [steps + 1, n, C, h, w].

    Half of the rows begin a step where their last one ended, the others on the teacher's way.
    """
    x, losses = states[0], []
    for timestep, begun, aimed in zip(pipe.scheduler.timesteps, states[:-1], states[1:], strict=True):
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.detach(), begun)
        x = pipe.scheduler.step(pipe.unet(x, timestep, hidden).sample, timestep, x).prev_sample
        losses.append(F.mse_loss(x, aimed))
    return torch.stack(losses)


def _fit(pipe: StableDiffusionPipeline, recipe: Recipe, states: torch.Tensor, hidden: torch.Tensor) -> None:
    """Train the UNet's adapter on the teacher's ``states`` [steps + 1, n, C, h, w] and embeddings [n, L, D]."""
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=1e-2)
    pipe.scheduler.set_timesteps(recipe.steps)
    smooth = torch.zeros(recipe.steps)
    for update in range(recipe.updates):
        for group in optimizer.param_groups:
            fall = 0.5 * (1 + math.cos(math.pi * update / recipe.updates))
            group["lr"] = recipe.rate * min(1, (update + 1) / 20) * fall
        rows = torch.randint(len(hidden), (recipe.batch,))
        losses = _losses(pipe, states[:, rows], hidden[rows])
        optimizer.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        smooth += (losses.detach() - smooth) / min(update + 1, 40)
        if (update + 1) % 20 == 0:
            log.info("update %d: distance at each step %s", update + 1, [f"{x:.4f}" for x in smooth])


def _distance(reached: torch.Tensor, aimed: torch.Tensor) -> float:
    """Mean of |reached - aimed| / |aimed| over rows [n, ...]."""
    return round(float(((reached - aimed).flatten(1).norm(dim=1) / aimed.flatten(1).norm(dim=1)).mean()), 4)


def _asked(
    pipe: StableDiffusionPipeline, names: Sequence[str], count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise [count, 4, 16, 16] and embeddings [2, count, L, D] of ``names`` in turn, the empty prompt's first."""
    hidden = embed(pipe, tuple(names[index % len(names)] for index in range(count)))
    noise = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    return noise, torch.stack([embed(pipe, ("",)).expand_as(hidden), hidden])


def train(out: Path, recipe: Recipe = FEW) -> None:
    """Distil ``out/pipeline`` into ``out/adapters``, and record how near it comes on the probes' prompts."""
    start = time.monotonic()
    pipe = StableDiffusionPipeline.from_pretrained(out / "pipeline", dtype=torch.float32, safety_checker=None)
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    noise, words = _asked(pipe, subjects(), recipe.runs, recipe.seed)
    states = teach(pipe, recipe, words, noise)
    log.info("%d runs of the teacher in %.0f s", recipe.runs, time.monotonic() - start)
    torch.manual_seed(recipe.seed)
    pipe.unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=recipe.layers))
    _fit(pipe, recipe, states, words[1])
    save(pipe, out / "adapters", recipe.name)
    pipe.unet.delete_adapters("default")
    record(out / "adapters", [asdict(recipe) | _judge(pipe, recipe, out / "adapters")])
    log.info("done in %.0f s", time.monotonic() - start)


@torch.no_grad()
def _judge(pipe: StableDiffusionPipeline, recipe: Recipe, folder: Path) -> dict[str, object]:
    """Distances of four steps from the teacher on the probes' prompts, without the adapter and with its file."""
    prompts = probe.find(library.PROBES).prompts
    noise, words = _asked(pipe, prompts, 4 * len(prompts), recipe.seed + 1)
    aimed = teach(pipe, recipe, words, noise)[-1]

    def distance(guidance: float) -> float:
        return _distance(walk(pipe.unet, pipe.scheduler, noise, words, recipe.steps, guidance)[-1], aimed)

    found: dict[str, object] = {
        "held_out_runs": len(noise),
        "distance_base": distance(recipe.guidance),
        "distance_base_guided": distance(recipe.teacher_guidance),
    }
    pipe.load_lora_weights(folder, weight_name=f"{recipe.name}.safetensors")  # what counts is the file
    found["distance_adapted"] = distance(recipe.guidance)
    log.info("%s: %s", recipe.name, found)
    return found
