"""The bases: text encoders and denoiser trained together on one style's pictures, saved as a pipeline."""

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn
from transformers import CLIPTokenizer

from qcheck.demo import library
from tools.train_demo import pictures as icons
from tools.train_demo.denoiser import descend, encode, prompt, tokenizer
from tools.train_demo.pictures import Pictures
from tools.train_zoo import drawings
from tools.train_zoo.kinds import Flow, Kind, Pair, Velocity, ids_of

log = logging.getLogger(__name__)
_DRAWN, _SEED = 3000, 1
PROMPTS = "prompts.json"  # all that a base learned, beside its pipeline


def icon_pictures(folder: Path, style: str) -> Pictures:
    """EmojiOne's subjects in a style, with prompts for names."""
    known = icons.subjects(folder) & set(icons.load(folder, "emojione").names)
    known_pictures = icons.load(folder, style).only(known)
    return Pictures(tuple(map(prompt, known_pictures.names)), known_pictures.images)


def _drawn(prompts: Callable[[], list[str]], folder: Path, style: str) -> Pictures:
    asked, draws = prompts(), torch.Generator().manual_seed(_SEED)
    chosen = [asked[i] for i in torch.randperm(len(asked), generator=draws)[:_DRAWN]]
    return drawings.pictures(chosen, style, _SEED, folder)


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
        Base("pair", Pair(), partial(_drawn, drawings.pattern_prompts), "plain", ("contour", "glow"), 35),
        Base("flow", Flow(), partial(_drawn, drawings.scene_prompts), "plain", ("mosaic", "shaded"), 45),
    )
}


def autoencoder() -> AutoencoderTiny:
    """The demo's, in float32."""
    return AutoencoderTiny.from_pretrained(library.PIPELINE, subfolder="vae", dtype=torch.float32)


def _save(base: Base, parts: nn.ModuleDict, vocabulary: CLIPTokenizer, out: Path) -> None:
    copies = {name: copy.deepcopy(part).cpu() for name, part in parts.items()}
    with torch.device("cpu"):
        base.kind.save(copies, autoencoder().half(), vocabulary, out)


def train(base: Base, pictures: Path, out: Path, minutes: float, batch: int = 16, device: str = "cpu") -> None:
    """Train for ``minutes`` with averaged weights; saved to ``out`` every five minutes and at the end."""
    torch.manual_seed(0)
    data = base.pictures(pictures, base.style)
    vocabulary = tokenizer(sorted(data.names))
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / PROMPTS).write_text(json.dumps(sorted(data.names), indent=0) + "\n", "utf-8")
    parts = base.kind.parts(vocabulary)
    latents, ids, empty = (
        encode(autoencoder().to(device), data),
        ids_of(vocabulary, data.names),
        ids_of(vocabulary, [""]),
    )
    log.info("%d pictures, latent mean %.3f deviation %.3f", len(latents), latents.mean(), latents.std())
    log.info("parameters: %s", {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()})

    latents, ids, empty, parts = (one.to(device) for one in (latents, ids, empty, parts))

    def loss() -> torch.Tensor:
        rows, dropped = torch.randint(len(latents), (batch,)), torch.rand(batch) < 0.1
        conditions = base.kind.conditions(parts, torch.where(dropped[:, None], empty, ids[rows]), dropped)
        return base.kind.loss(parts, conditions, latents[rows]).mean()

    with torch.device(device):
        descend(parts, loss, lambda average: _save(base, average, vocabulary, out), minutes)
