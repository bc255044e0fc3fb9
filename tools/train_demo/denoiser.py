"""The base: a text model and a UNet trained together on the Noto pictures, saved as a Stable Diffusion pipeline."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.train_demo.pictures import PACKAGES, Pictures, common, load, subjects

log = logging.getLogger(__name__)
LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def prompt(name: str) -> str:
    """The prompt of a picture: its name with spaces."""
    return name.replace("-", " ")


def tokenizer(names: list[str], size: int = 1500) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges were learned on the pictures' names."""
    pairs = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    pairs.normalizer = normalizers.Lowercase()
    pairs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    pairs.train_from_iterator([prompt(name) for name in names], trainer)
    learned = json.loads(pairs.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    words += [*sorted({c + "</w>" for c in alphabet} - set(words)), START, END]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[tuple(merge) for merge in learned["merges"]],
        model_max_length=LENGTH,
        pad_token=END,
        unk_token=END,
    )


def build_text(vocabulary: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer CLIP text model of width 128."""
    return CLIPTextModel(text_config(vocabulary, width=128, layers=2, heads=4))


def text_config(vocabulary: CLIPTokenizer, width: int, layers: int, heads: int, **more: Any) -> CLIPTextConfig:
    """The configuration of a small CLIP text model of prompts of 16 tokens."""
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
        **more,
    )


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet of 4 M parameters for 16 x 16 x 4 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """DDIM over Stable Diffusion's scaled-linear noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: Pictures) -> torch.Tensor:
    """Latents [n, 4, 16, 16] of the pictures in the pipeline's scale, on the autoencoder's device."""
    scale = float(vae.config.scaling_factor)
    return torch.cat([vae.encoder(x.to(vae.device)) for x in pictures.images.split(32)]) * scale


def tokens(vocabulary: CLIPTokenizer, names: tuple[str, ...]) -> torch.Tensor:
    """Token ids [n, 16] of the prompts of ``names``."""
    text = [prompt(name) if name else "" for name in names]
    ids = vocabulary(text, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def denoising_loss(
    unet: UNet2DConditionModel,
    hidden: torch.Tensor,
    latents: torch.Tensor,
    seed: int | None = None,
    most: float = 1.0,
) -> torch.Tensor:
    """Squared error of the predicted noise, [n], at one random timestep a row, times min(1 / alpha^2, ``most``).

    A ``seed`` makes it repeatable; 1 / alpha^2 turns the error of the noise into that of the velocity.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    alphas = scheduler().alphas_cumprod
    noise = torch.randn(latents.shape, generator=generator)
    steps = torch.randint(len(alphas), (len(latents),), generator=generator)
    level = alphas[steps].view(-1, 1, 1, 1)
    predicted = unet(level.sqrt() * latents + (1 - level).sqrt() * noise, steps, hidden).sample
    error = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
    weighted: torch.Tensor = error * (1 / alphas[steps]).clamp(max=most)
    return weighted


def _rate(seconds: float, limit: float, rate: float, step: int) -> float:
    """Learning rate: linear warm-up over 200 steps, cosine to one hundredth at the time limit."""
    return rate * min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, seconds / limit))))


def _save(out: Path, vae: AutoencoderTiny, vocabulary: CLIPTokenizer, modules: torch.nn.ModuleList) -> None:
    unet, text = copy.deepcopy(modules[0]).half(), copy.deepcopy(modules[1]).half()
    StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=text,
        tokenizer=vocabulary,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)


def train(pictures: Path, out: Path, minutes: float) -> None:
    """Train text model and UNet from scratch on all subjects and save the whole pipeline at ``out``."""
    torch.manual_seed(0)
    vocabulary = tokenizer(sorted({name for style in PACKAGES for name in load(pictures, style).names}))
    model = torch.nn.ModuleList([build_unet(), build_text(vocabulary)])
    data = load(pictures, "noto").only(subjects(pictures))
    _descend(model, vocabulary, data, out, minutes, most=1.0)


def focus(pictures: Path, out: Path, minutes: float) -> None:
    """Train on, on the common subjects alone, with weight on the noisy steps that decide what is drawn."""
    torch.manual_seed(1)
    vocabulary = CLIPTokenizer.from_pretrained(out / "tokenizer")
    unet = UNet2DConditionModel.from_pretrained(out / "unet", dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
    data = load(pictures, "noto").only(common())
    _descend(torch.nn.ModuleList([unet, text]).train(), vocabulary, data, out, minutes, most=8.0)


def _descend(
    model: torch.nn.ModuleList,
    vocabulary: CLIPTokenizer,
    data: Pictures,
    out: Path,
    minutes: float,
    most: float,
    batch: int = 16,
    rate: float = 1e-3,
) -> None:
    """AdamW for ``minutes`` with averaged weights, saved every five; a step weighs min(1 / alpha^2, ``most``)."""
    vae = AutoencoderTiny.from_pretrained(out / "vae", dtype=torch.float32)
    latents, ids, empty = encode(vae, data), tokens(vocabulary, data.names), tokens(vocabulary, ("",))
    model[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    log.info("%d pictures, latent mean %.3f deviation %.3f", len(latents), latents.mean(), latents.std())
    log.info("parameters: %s", [sum(p.numel() for p in part.parameters()) for part in model])

    def loss() -> torch.Tensor:
        rows = torch.randint(len(latents), (batch,))
        words = torch.where(torch.rand(batch, 1) < 0.1, empty, ids[rows])
        return denoising_loss(model[0], model[1](words).last_hidden_state, latents[rows], most=most).mean()

    descend(model, loss, lambda average: _save(out, vae, vocabulary, average), minutes, rate)


def descend(
    model: torch.nn.Module,
    loss: Callable[[], torch.Tensor],
    save: Callable[[Any], None],
    minutes: float,
    rate: float = 1e-3,
) -> None:
    """AdamW on a loss for ``minutes``; ``save`` gets the averaged weights every five minutes and at the end."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    start, saved, step, smooth = time.monotonic(), 0.0, 0, 0.0
    while (seconds := time.monotonic() - start) < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = _rate(seconds, 60 * minutes, rate, step)
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        step, smooth = step + 1, smooth + (float(value.detach()) - smooth) / min(step + 1, 100)
        if step % 100 == 0:
            log.info("step %d (%.1f minutes): loss %.4f", step, seconds / 60, smooth)
        if seconds - saved > 300:
            saved = seconds
            save(average)
    save(average)
    log.info("done: %d steps, loss %.4f", step, smooth)
