"""Pipelines of the full-size families' shapes with random weights, and adapters that fit them.

What runs on them shows time and memory; their pictures mean nothing. ``python -m benchmarks.shapes sd15 FOLDER`` writes
one, tensor by tensor, in the type that the family is published in.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    __version__,
)
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from qcheck.demo import library

RECIPE = """title = "A few prompts"
method = "max"
prompts = "general"
samples = {samples}
strata = {strata}
seed = 910000
keep = ["conv_in", "conv_out", "time_embedding.*"]
"""
RANK, WHOLE_RANK, SIZE = 16, 32, 0.05  # of the adapters' factors
_SHARD = 2e9  # bytes of a file
Parts = Mapping[str, Any]


def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(library.PIPELINE / "tokenizer", model_max_length=77)


def _autoencoder(scaling: float, channels: int = 4, sample: int = 512, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        sample_size=sample,
        scaling_factor=scaling,
        **options,
    )


def _clip(kind: type[Any], width: int, layers: int, heads: int) -> Any:
    size = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    depth = {"num_hidden_layers": layers, "num_attention_heads": heads}
    return kind(CLIPTextConfig(**size, **depth, eos_token_id=_tokenizer().eos_token_id))


def _clip_l(kind: type[Any] = CLIPTextModel) -> Any:
    return _clip(kind, 768, 12, 12)


def _clip_g() -> Any:
    return _clip(CLIPTextModelWithProjection, 1280, 32, 20)


def _t5() -> Any:
    size = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **size))


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )


def sd15() -> Parts:
    """Stable Diffusion 1.5: 860 M parameters in the UNet, one CLIP ViT-L."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
        "vae": _autoencoder(0.18215),
        "text_encoder": _clip_l(),
        "tokenizer": _tokenizer(),
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "scheduler": _ddim(),
        "safety_checker": None,
        "feature_extractor": None,
    }


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


def sdxl() -> Parts:
    """Stable Diffusion XL: 2.6 billion parameters in the UNet, CLIP ViT-L and OpenCLIP bigG."""
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "vae": _autoencoder(0.13025, sample=1024),
        "text_encoder": _clip_l(),
        "text_encoder_2": _clip_g(),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "unet": unet_xl(),
        "scheduler": _ddim(),
    }


def sd35() -> Parts:
    """Stable Diffusion 3.5 medium: 2.5 billion parameters, without its T5, as people save memory."""
    return {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": _autoencoder(1.5305, 16, 1024, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": _clip_l(CLIPTextModelWithProjection),
        "tokenizer": _tokenizer(),
        "text_encoder_2": _clip_g(),
        "tokenizer_2": _tokenizer(),
        "text_encoder_3": None,
        "tokenizer_3": None,
    }


def flux(guided: bool = True) -> Parts:
    """Flux.1 dev: 12 billion parameters in the transformer, 4.8 billion in its T5."""
    return {
        "_class_name": "FluxPipeline",
        "transformer": FluxTransformer2DModel(guidance_embeds=guided),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
        "vae": _autoencoder(0.3611, 16, 1024, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": _clip_l(),
        "tokenizer": _tokenizer(),
        "text_encoder_2": _t5(),
        "tokenizer_2": _tokenizer(),
    }


def schnell() -> Parts:
    """Flux.1 schnell: without a guidance input."""
    return flux(guided=False)


def tiny() -> Parts:
    """Stable Diffusion 1.5's plan at a fiftieth of its size, for a try."""
    text = CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=64, attention_head_dim=8, block_out_channels=(32, 64, 64, 64)
    )
    return {**sd15(), "text_encoder": CLIPTextModel(text), "unet": unet}


SHAPES: dict[str, Callable[[], Parts]] = {
    "tiny": tiny,
    "sd15": sd15,
    "sdxl": sdxl,
    "sd35": sd35,
    "flux": flux,
    "schnell": schnell,
}
_BF16 = frozenset({"sd35", "flux", "schnell"})


def _random(name: str, value: torch.Tensor, draws: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """A tensor like torch's own start: norms are 1, biases 0, a weight has a variance of 1 / 3 of its inputs'."""
    if not value.is_floating_point():
        return torch.arange(value.numel()).view(value.shape).to(value.dtype)
    if value.ndim < 2:
        return torch.full(value.shape, float(name.endswith("weight")), dtype=dtype)
    drawn = torch.randn(value.shape, generator=draws, device=draws.device)
    return (drawn / math.sqrt(3 * math.prod(value.shape[1:]))).to(dtype).cpu()


def _shards(part: nn.Module, draws: torch.Generator, dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """The part's tensors in portions of a file's size."""
    shard: dict[str, torch.Tensor] = {}
    for name, value in part.state_dict().items():
        if "embed_tokens" in name and "shared.weight" in part.state_dict():
            continue  # T5's embedding has two names
        shard[name] = _random(name, value, draws, dtype)
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


def _save(part: nn.Module, folder: Path, draws: torch.Generator, dtype: torch.dtype) -> None:
    """A part on the meta device as diffusers or transformers save it, with random weights."""
    saved: Any = part
    folder.mkdir(parents=True)
    if hasattr(saved, "save_config"):
        saved.save_config(folder)
        stem = "diffusion_pytorch_model"
    else:
        saved.config.architectures = [type(part).__name__]
        saved.config.save_pretrained(folder)
        stem = "model"
    paths, where, total = [], dict[str, str](), 0
    for number, shard in enumerate(_shards(part, draws, dtype)):
        paths.append(folder / f"{number}.safetensors")
        save_file(shard, paths[-1], {"format": "pt"})
        where |= dict.fromkeys(shard, str(number))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(paths) == 1:
        paths[0].rename(folder / f"{stem}.safetensors")
        return
    names = [f"{stem}-{number + 1:05}-of-{len(paths):05}.safetensors" for number in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {key: names[int(file)] for key, file in where.items()}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _adapter(
    name: str, denoiser: nn.Module, draws: torch.Generator, rank: int = RANK, whole: bool = False
) -> dict[str, torch.Tensor]:
    """A LoRA of the attention of a denoiser of that name, or of the whole of it."""
    lora = {}
    for layer, module in denoiser.named_modules():
        weight = module.weight if isinstance(module, nn.Linear | nn.Conv2d) else None
        if weight is not None and (whole or (".attn" in layer and ".to_" in layer)):
            ones = [1] * (weight.ndim - 2)
            for part, shape in (("A", (rank, *weight.shape[1:])), ("B", (len(weight), rank, *ones))):
                factor = SIZE * torch.randn(shape, generator=draws, device=draws.device)
                lora[f"{name}.{layer}.lora_{part}.weight"] = factor.half().cpu()
    return lora


def write(name: str, folder: Path, device: str = "cpu", samples: int = 1, strata: int = 2) -> Path:
    """The pipeline of that name in 16 bit below ``folder``/base; beside it an adapter of its attention and a recipe.

    ``whole.safetensors`` is an adapter of every layer of the denoiser, for what only reads weights.

    The recipe calibrates on ``samples`` prompts at ``strata`` timesteps.
    """
    with torch.device("meta"):
        parts = SHAPES[name]()
    draws, dtype = torch.Generator(device).manual_seed(1), torch.bfloat16 if name in _BF16 else torch.float16
    index: dict[str, Any] = {"_diffusers_version": __version__}
    for key, part in parts.items():
        if isinstance(part, nn.Module):
            _save(part, folder / "base" / key, draws, dtype)
        elif hasattr(part, "save_pretrained"):
            part.save_pretrained(folder / "base" / key)
        is_part = hasattr(part, "save_pretrained")
        index[key] = [type(part).__module__.split(".")[0], type(part).__name__] if is_part else part
        if part is None:
            index[key] = [None, None]
    (folder / "base" / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    denoiser = next(key for key in ("unet", "transformer") if key in parts)
    save_file(_adapter(denoiser, parts[denoiser], draws), folder / "lora.safetensors")
    save_file(_adapter(denoiser, parts[denoiser], draws, WHOLE_RANK, whole=True), folder / "whole.safetensors")
    (folder / "few.toml").write_text(RECIPE.format(samples=samples, strata=strata), "utf-8")
    return folder / "base"


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
