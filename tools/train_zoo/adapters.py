"""Adapters of one pipeline: every recipe on every style that is not the base's own."""

import hashlib
import json
import logging
import math
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from tools.train_demo.adapter import record
from tools.train_demo.denoiser import encode
from tools.train_demo.pictures import Pictures
from tools.train_zoo.base import Base, autoencoder
from tools.train_zoo.kinds import LAYERS, Kind, Told, ids_of

log = logging.getLogger(__name__)
_RECIPES = tomllib.loads((Path(__file__).parent / "recipes.toml").read_text("utf-8"))["recipes"]
_EXAM, _ROUNDS = 64, 8


def held_out(name: str) -> bool:
    """Whether no adapter learns from the pictures of this name: one in six, by a hash of it."""
    return hashlib.sha256(name.encode()).digest()[0] % 6 == 0


def split(pictures: Pictures, kept: bool) -> Pictures:
    """The pictures that are held out (``kept``) or those that adapters learn from."""
    return pictures.only({name for name in pictures.names if held_out(name) == kept})


def parts_of(kind: Kind, pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's modules that training needs."""
    return {name: getattr(pipe, name) for name in (kind.denoiser, *kind.encoders)}


@torch.no_grad()
def _told(kind: Kind, pipe: Any, names: tuple[str, ...], dropped: bool = False) -> Told:
    ids = ids_of(pipe.tokenizer, names)
    return kind.told(parts_of(kind, pipe), ids, torch.full((len(names),), dropped))


@torch.no_grad()
def _loss(kind: Kind, pipe: Any, told: Told, latents: torch.Tensor) -> float:
    """Mean loss over fixed draws of noise and time for every picture."""
    parts = parts_of(kind, pipe)
    draws = (torch.Generator().manual_seed(k) for k in range(_ROUNDS))
    return float(torch.stack([kind.loss(parts, told, latents, one).mean() for one in draws]).mean())


def _save(kind: Kind, pipe: Any, out: Path, name: str) -> None:
    denoiser = getattr(pipe, kind.denoiser)
    layers = {key: value.half() for key, value in get_peft_model_state_dict(denoiser).items()}
    metadata = _collate_lora_metadata({kind.denoiser: denoiser})
    given: dict[str, Any] = {f"{kind.denoiser}_lora_layers": layers, **metadata}
    kind.pipeline.save_lora_weights(out, weight_name=f"{name}.safetensors", **given)


def train(base: Base, recipe: Mapping[str, Any], style: str, pictures: Path, out: Path, seed: int) -> dict[str, object]:
    """Train one adapter into ``out/adapters``: the recipe with its held-out losses before and after."""
    torch.manual_seed(seed)
    start, kind, name, batch = time.monotonic(), base.kind, f"{style}-{recipe['kind']}", 16
    pipe = kind.load(out / "pipeline")
    for part in parts_of(kind, pipe).values():
        part.requires_grad_(False)
    drawn = base.pictures(pictures, style)
    seen, unseen = split(drawn, False), split(drawn, True)
    unseen = unseen.only(set(unseen.names[:_EXAM]))
    vae = autoencoder()
    data, words, empty = encode(vae, seen), _told(kind, pipe, seen.names), _told(kind, pipe, ("",), dropped=True)
    test, asked = encode(vae, unseen), _told(kind, pipe, unseen.names)
    before = _loss(kind, pipe, asked, test)
    denoiser = getattr(pipe, kind.denoiser)
    denoiser.add_adapter(
        LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=LAYERS[recipe["layers"]])
    )
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe["rate"], weight_decay=1e-2)
    for step in range(recipe["steps"]):
        for group in optimizer.param_groups:
            place = 0.5 * (1 + math.cos(math.pi * step / recipe["steps"]))
            group["lr"] = recipe["rate"] * min(1, (step + 1) / 20) * place
        rows, dropped = torch.randint(len(data), (batch,)), torch.rand(batch) < 0.1
        told = {
            key: torch.where(dropped.view(-1, *[1] * (value.dim() - 1)), empty[key], value[rows])
            for key, value in words.items()
        }
        loss = kind.loss(parts_of(kind, pipe), told, data[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    folder = out / "adapters"
    folder.mkdir(exist_ok=True)
    _save(kind, pipe, folder, name)
    denoiser.delete_adapters("default")
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors")  # what counts is the file
    after = _loss(kind, pipe, asked, test)
    losses = {"loss_base": round(before, 4), "loss_adapted": round(after, 4)}
    log.info("%s: %s in %.0f s", name, losses, time.monotonic() - start)
    return {"name": name, "style": style, "seed": seed, **recipe, "held_out_pictures": len(unseen.names), **losses}


def train_all(base: Base, pictures: Path, out: Path) -> None:
    """Train what ``out/training.json`` does not have yet."""
    kept = out / "training.json"
    for number, (recipe, style) in enumerate((recipe, style) for recipe in _RECIPES for style in base.styles):
        done = {made["name"] for made in json.loads(kept.read_text())} if kept.exists() else set()
        if f"{style}-{recipe['kind']}" not in done:
            record(out, [train(base, recipe, style, pictures, out, 20 + number)])
