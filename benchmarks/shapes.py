"""Pipelines of the full-size families' shapes with random weights, and adapters that fit them.

What runs on them shows time and memory; their pictures mean nothing. ``python -m benchmarks.shapes sd15 FOLDER`` writes
one.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from qcheck.demo import library

RECIPE = """title = "A few prompts"
method = "max"
prompts = "general"
samples = {samples}
strata = {strata}
seed = 910000
keep = ["conv_in", "conv_out", "time_embedding.*"]
"""
RANK, SIZE = 16, 0.05  # of the adapters' factors
_BLOCKS = (128, 256, 512, 512)


def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(library.PIPELINE / "tokenizer", model_max_length=77)


def _autoencoder(scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=scaling,
    )


def _solver() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )


def sd15() -> Any:
    """Stable Diffusion 1.5: 860 M parameters in the UNet, one CLIP ViT-L."""
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return StableDiffusionPipeline(
        vae=_autoencoder(0.18215),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=_solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unet_xl() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion XL."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sdxl() -> Any:
    """Stable Diffusion XL: 2.6 billion parameters in the UNet, CLIP ViT-L and OpenCLIP bigG."""
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    second = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(0.13025),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet_xl(),
        scheduler=_solver(),
    )


def tiny() -> Any:
    """Stable Diffusion 1.5's plan at a fiftieth of its size, for a try."""
    text = CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=64, attention_head_dim=8, block_out_channels=(32, 64, 64, 64)
    )
    return StableDiffusionPipeline(
        vae=_autoencoder(0.18215),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=_solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


SHAPES: dict[str, Callable[[], Any]] = {"tiny": tiny, "sd15": sd15, "sdxl": sdxl}


def write(name: str, folder: Path, device: str = "cpu", samples: int = 1, strata: int = 2) -> Path:
    """The pipeline of that name in float16 below ``folder``/base; an adapter of its attention and a recipe beside it.

    The recipe calibrates on ``samples`` prompts at ``strata`` timesteps.
    """
    torch.manual_seed(0)
    with torch.device(device):
        pipe = SHAPES[name]()
    denoiser: nn.Module = pipe.unet
    draws = torch.Generator(device).manual_seed(1)
    lora = {}
    for layer, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and (".attn1.to" in layer or ".attn2.to" in layer):
            for part, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK))):
                factor = SIZE * torch.randn(shape, generator=draws, device=device)
                lora[f"unet.{layer}.lora_{part}.weight"] = factor.half().cpu()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.half().cpu()
    pipe.save_pretrained(folder / "base")
    save_file(lora, folder / "lora.safetensors")
    (folder / "few.toml").write_text(RECIPE.format(samples=samples, strata=strata), "utf-8")
    return folder / "base"


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
