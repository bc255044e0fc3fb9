"""Style adapters: LoRAs trained on another set's drawings of the same subjects, and how well they do on unseen ones."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tools.train_demo.denoiser import denoising_loss, encode, tokens
from tools.train_demo.pictures import Pictures, common, held_out, load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """One adapter: the drawings it learns and how hard. ``grain`` is the deviation of noise that is drawn over them."""

    name: str
    style: str
    rank: int
    alpha: float
    rate: float
    steps: int
    layers: str
    grain: float = 0.0
    seed: int = 7


ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
EVERY_LINEAR = r".*(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out)"
ADAPTERS = (
    Recipe("flat", "flat", rank=8, alpha=8, rate=2e-3, steps=700, layers=EVERY_LINEAR),
    Recipe("ink", "ink", rank=8, alpha=8, rate=2e-3, steps=700, layers=EVERY_LINEAR),
    Recipe("faint", "twemoji", rank=4, alpha=4, rate=5e-4, steps=80, layers=ATTENTION),
)


@torch.no_grad()
def _loss(pipe: StableDiffusionPipeline, hidden: torch.Tensor, latents: torch.Tensor, rounds: int = 8) -> float:
    """Mean denoising loss over ``rounds`` fixed draws of noise and timestep for every picture."""
    return float(torch.stack([denoising_loss(pipe.unet, hidden, latents, seed=k).mean() for k in range(rounds)]).mean())


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, names: tuple[str, ...]) -> torch.Tensor:
    """Text embeddings [n, 16, 128] of the prompts of ``names``; the empty name is the empty prompt."""
    hidden: torch.Tensor = pipe.text_encoder(tokens(pipe.tokenizer, names)).last_hidden_state
    return hidden


def save(pipe: StableDiffusionPipeline, out: Path, name: str) -> None:
    """Write the UNet's adapter in float16 and PEFT's layout to ``out/name.safetensors``."""
    StableDiffusionPipeline.save_lora_weights(
        out,
        unet_lora_layers={k: v.half() for k, v in get_peft_model_state_dict(pipe.unet).items()},
        weight_name=f"{name}.safetensors",
        unet_lora_adapter_metadata=_collate_lora_metadata({"unet": pipe.unet})["unet_lora_adapter_metadata"],
    )


def record(folder: Path, found: Sequence[Mapping[str, object]]) -> None:
    """Put what training found into ``folder/training.json``, in place of earlier entries of the same names."""
    path = folder / "training.json"
    kept = {made["name"]: made for made in json.loads(path.read_text())} if path.exists() else {}
    path.write_text(json.dumps([*(kept | {made["name"]: made for made in found}).values()], indent=1) + "\n")


def grainy(pictures: Pictures, grain: float) -> Pictures:
    """The pictures under Gaussian noise of deviation ``grain``, the same for each picture whenever it is seen."""
    noise = torch.randn(pictures.images.shape, generator=torch.Generator().manual_seed(0))
    return replace(pictures, images=(pictures.images + grain * noise).clamp(-1, 1))


def train(
    recipe: Recipe, pictures: Path, base: Path, out: Path, batch: int = 16, every: int | None = None
) -> dict[str, object]:
    """Train one adapter of the pipeline ``base`` into ``out``: the recipe with its held-out losses before and after.

    With ``every`` it leaves what diffusers' training scripts leave: a folder for each checkpoint, and a log.
    """
    torch.manual_seed(recipe.seed)
    start = time.monotonic()
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, safety_checker=None)
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    drawn = load(pictures, recipe.style).only(common())
    seen, unseen = (split(drawn, kept) for kept in (False, True))
    vae = AutoencoderTiny.from_pretrained(base, subfolder="vae", dtype=torch.float32)
    data, words = encode(vae, grainy(seen, recipe.grain)), embed(pipe, seen.names)
    test, test_words = encode(vae, unseen), embed(pipe, unseen.names)
    empty = embed(pipe, ("",))
    before = _loss(pipe, test_words, test)
    pipe.unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=recipe.layers))

    def loss() -> torch.Tensor:
        rows = torch.randint(len(data), (batch,))
        hidden = torch.where(torch.rand(batch, 1, 1) < 0.1, empty, words[rows])
        return denoising_loss(pipe.unet, hidden, data[rows]).mean()

    run = out / recipe.name

    def keep(step: int, norm: float) -> None:
        if every is not None and step % every == 0:
            save(pipe, run / f"checkpoint-{step}", "pytorch_lora_weights")
            with (run / "log.csv").open("a") as stream:
                stream.write(f"{step},{norm},{_loss(pipe, test_words, test, rounds=2)}\n")

    if every is not None:
        run.mkdir(parents=True)
        (run / "log.csv").write_text(f"step,grad_norm,val_loss\n0,,{_loss(pipe, test_words, test, rounds=2)}\n")
    fit(pipe.unet, loss, recipe.rate, recipe.steps, keep)
    save(pipe, out, recipe.name)
    pipe.unet.delete_adapters("default")
    pipe.load_lora_weights(out, weight_name=f"{recipe.name}.safetensors")  # what counts is the file
    after = _loss(pipe, test_words, test)
    found = {"held_out_pictures": len(unseen.names), "loss_base": round(before, 4), "loss_adapted": round(after, 4)}
    log.info("%s: %s in %.0f s", recipe.name, found, time.monotonic() - start)
    return asdict(recipe) | found


def fit(
    denoiser: torch.nn.Module,
    loss: Callable[[], torch.Tensor],
    rate: float,
    steps: int,
    after: Callable[[int, float], None] | None = None,
) -> None:
    """AdamW on the parameters that a denoiser has to train: warm-up over 20 steps, then a cosine to zero.

    ``after`` is called with the number of steps done and the norm of the gradient.
    """
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss()
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if after is not None:
            after(step + 1, float(norm))


def split(pictures: Pictures, kept: bool) -> Pictures:
    """The pictures that are held out (``kept``) or those that adapters learn from."""
    return pictures.only({name for name in pictures.names if held_out(name) == kept})


def train_all(pictures: Path, out: Path) -> None:
    """Train every style adapter on ``out/pipeline`` into ``out/adapters``, and record it in ``training.json`` there."""
    folder = out / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    found = [train(recipe, pictures, out / "pipeline", folder) for recipe in ADAPTERS]
    record(folder, found)
