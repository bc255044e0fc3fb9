"""Adapters of one pipeline: every recipe on every style that is not the base's own."""

import json
import logging
import multiprocessing
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from tools.train_demo.adapter import fit, record, split
from tools.train_demo.denoiser import encode
from tools.train_zoo.base import BASES, Base, autoencoder
from tools.train_zoo.kinds import LAYERS, Conditions, Kind, ids_of

log = logging.getLogger(__name__)
_RECIPES = tomllib.loads((Path(__file__).parent / "recipes.toml").read_text("utf-8"))["recipes"]
_EXAM, _ROUNDS = 64, 8


def parts_of(kind: Kind, pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's modules that training needs."""
    return {name: getattr(pipe, name) for name in (kind.denoiser, *kind.encoders)}


@torch.no_grad()
def conditions_of(kind: Kind, pipe: Any, prompts: Sequence[str], dropped: bool = False) -> Conditions:
    """What the denoiser gets of prompts; with ``dropped`` as unconditional rows."""
    ids = ids_of(pipe.tokenizer, prompts)
    return kind.conditions(parts_of(kind, pipe), ids, torch.full((len(prompts),), dropped))


@torch.no_grad()
def _loss(kind: Kind, pipe: Any, conditions: Conditions, latents: torch.Tensor) -> float:
    """Mean loss over fixed draws of noise and time for every picture."""
    parts = parts_of(kind, pipe)
    draws = (torch.Generator().manual_seed(k) for k in range(_ROUNDS))
    return float(torch.stack([kind.loss(parts, conditions, latents, one).mean() for one in draws]).mean())


def _save(kind: Kind, pipe: Any, out: Path, name: str) -> None:
    denoiser = getattr(pipe, kind.denoiser)
    layers = {key: value.half() for key, value in get_peft_model_state_dict(denoiser).items()}
    metadata = _collate_lora_metadata({kind.denoiser: denoiser})
    given: dict[str, Any] = {f"{kind.denoiser}_lora_layers": layers, **metadata}
    kind.pipeline.save_lora_weights(out, weight_name=f"{name}.safetensors", **given)


def train(
    base: Base, recipe: Mapping[str, Any], style: str, pictures: Path, out: Path, seed: int, device: str
) -> dict[str, object]:
    """Train one adapter into ``out/adapters``: the recipe with its held-out losses before and after."""
    torch.manual_seed(seed)
    start, kind, name, batch = time.monotonic(), base.kind, f"{style}-{recipe['kind']}", 16
    pipe = kind.load(out / "pipeline")
    for part in parts_of(kind, pipe).values():
        part.requires_grad_(False)
    all_pictures = base.pictures(pictures, style)
    learned, held_out = split(all_pictures, False), split(all_pictures, True)
    held_out = held_out.only(set(held_out.names[:_EXAM]))
    vae = autoencoder().to(device)
    data, test = encode(vae, learned), encode(vae, held_out)
    words, test_words = (on(conditions_of(kind, pipe, part.names), device) for part in (learned, held_out))
    empty = on(conditions_of(kind, pipe, ("",), dropped=True), device)
    pipe.to(device)
    before = _loss(kind, pipe, test_words, test)
    denoiser = getattr(pipe, kind.denoiser)
    denoiser.add_adapter(
        LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=LAYERS[recipe["layers"]])
    )

    def loss() -> torch.Tensor:
        rows, dropped = torch.randint(len(data), (batch,)), torch.rand(batch) < 0.1
        conditions = {
            key: torch.where(dropped.view(-1, *[1] * (value.dim() - 1)), empty[key], value[rows])
            for key, value in words.items()
        }
        return kind.loss(parts_of(kind, pipe), conditions, data[rows]).mean()

    with torch.device(device):
        fit(denoiser, loss, recipe["rate"], recipe["steps"])
    folder = out / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    _save(kind, pipe, folder, name)
    denoiser.delete_adapters("default")
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors")  # what counts is the file
    after = _loss(kind, pipe, test_words, test)
    losses = {"loss_base": round(before, 4), "loss_adapted": round(after, 4)}
    log.info("%s: %s in %.0f s", name, losses, time.monotonic() - start)
    return {"name": name, "style": style, "seed": seed, **recipe, "held_out_pictures": len(held_out.names), **losses}


def on(conditions: Conditions, device: str) -> Conditions:
    """Conditions on a device."""
    return {name: value.to(device) for name, value in conditions.items()}


def _one(name: str, number: int, pictures: Path, out: Path, device: str) -> dict[str, object]:
    """Train adapter ``number`` of base ``name``, in a process of its own."""
    torch.set_num_threads(1)
    recipe, style = _asked(BASES[name])[number]
    return train(BASES[name], recipe, style, pictures, out, 20 + number, device)


def _asked(base: Base) -> list[tuple[Mapping[str, Any], str]]:
    return [(recipe, style) for recipe in _RECIPES for style in base.styles]


def train_all(base: Base, pictures: Path, out: Path, device: str = "cpu", jobs: int = 1) -> None:
    """Train what ``out/training.json`` does not have yet, in ``jobs`` processes."""
    kept = out / "training.json"
    done = {trained["name"] for trained in json.loads(kept.read_text())} if kept.exists() else set()
    asked = enumerate(_asked(base))
    missing = [number for number, (recipe, style) in asked if f"{style}-{recipe['kind']}" not in done]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for trained in as_completed([pool.submit(_one, base.name, one, pictures, out, device) for one in missing]):
            record(out, [trained.result()])
