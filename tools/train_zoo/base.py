"""The bases: text encoders and denoiser trained together on one style's pictures, saved as a pipeline."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn
from transformers import CLIPTokenizer

from qcheck.demo import library
from tools.train_demo import pictures as icons
from tools.train_demo.denoiser import encode, prompt, tokenizer
from tools.train_demo.pictures import Pictures
from tools.train_zoo import drawings
from tools.train_zoo.kinds import Flow, Kind, Pair, Velocity, ids_of

log = logging.getLogger(__name__)
_DRAWN, _SEED = 3000, 1
PROMPTS = "prompts.json"  # all that a base learned, beside its pipeline


def icon_pictures(folder: Path, style: str) -> Pictures:
    """EmojiOne's subjects in a style, with prompts for names."""
    known = icons.subjects(folder) & set(icons.load(folder, "emojione").names)
    found = icons.load(folder, style).only(known)
    return Pictures(tuple(map(prompt, found.names)), found.images)


def _drawn(prompts: Callable[[], list[str]]) -> Callable[[Path, str], Pictures]:
    def pictures(folder: Path, style: str) -> Pictures:
        asked, draws = prompts(), torch.Generator().manual_seed(_SEED)
        chosen = [asked[i] for i in torch.randperm(len(asked), generator=draws)[:_DRAWN]]
        return drawings.pictures(chosen, style, _SEED, folder)

    return pictures


@dataclass(frozen=True)
class Base:
    """A pipeline of the zoo: its kind, its pictures, the style of the base and those that adapters learn."""

    name: str
    kind: Kind
    pictures: Callable[[Path, str], Pictures]
    style: str
    styles: tuple[str, ...]
    minutes: float


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        Base("velocity", Velocity(), icon_pictures, "emojione", ("flat", "emojione-monotone"), 45),
        Base("pair", Pair(), _drawn(drawings.pattern_prompts), "plain", ("contour", "glow"), 35),
        Base("flow", Flow(), _drawn(drawings.scene_prompts), "plain", ("mosaic", "shaded"), 45),
    )
}


def autoencoder() -> AutoencoderTiny:
    """The demo's, in float32."""
    return AutoencoderTiny.from_pretrained(library.PIPELINE, subfolder="vae", dtype=torch.float32)


def _rate(done: float, rate: float, step: int) -> float:
    """Learning rate: linear warm-up over 200 steps, cosine to one hundredth at the end."""
    return rate * min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, done))))


def _save(base: Base, parts: nn.ModuleDict, vocabulary: CLIPTokenizer, out: Path) -> None:
    copies = {name: copy.deepcopy(part) for name, part in parts.items()}
    base.kind.save(copies, autoencoder().half(), vocabulary, out)


def train(base: Base, pictures: Path, out: Path, minutes: float, batch: int = 16, rate: float = 1e-3) -> None:
    """Train for ``minutes`` with averaged weights; saved to ``out`` every five minutes and at the end."""
    torch.manual_seed(0)
    data = base.pictures(pictures, base.style)
    vocabulary = tokenizer(sorted(data.names))
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / PROMPTS).write_text(json.dumps(sorted(data.names), indent=0) + "\n", "utf-8")
    parts = base.kind.parts(vocabulary)
    latents, ids, empty = encode(autoencoder(), data), ids_of(vocabulary, data.names), ids_of(vocabulary, [""])
    average = copy.deepcopy(parts).requires_grad_(False)
    log.info("%d pictures, latent mean %.3f deviation %.3f", len(latents), latents.mean(), latents.std())
    log.info("parameters: %s", {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()})
    optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=1e-3)
    start, saved, step, smooth = time.monotonic(), 0.0, 0, 0.0
    while (seconds := time.monotonic() - start) < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = _rate(seconds / 60 / minutes, rate, step)
        rows, dropped = torch.randint(len(latents), (batch,)), torch.rand(batch) < 0.1
        told = base.kind.told(parts, torch.where(dropped[:, None], empty, ids[rows]), dropped)
        loss = base.kind.loss(parts, told, latents[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(parts.parameters()), 1 - decay)
        step, smooth = step + 1, smooth + (float(loss.detach()) - smooth) / min(step + 1, 200)
        if step % 200 == 0:
            log.info("step %d (%.1f minutes): loss %.4f", step, seconds / 60, smooth)
        if seconds - saved > 300:
            saved = seconds
            _save(base, average, vocabulary, out)
    _save(base, average, vocabulary, out)
    log.info("done: %d steps, loss %.4f", step, smooth)
