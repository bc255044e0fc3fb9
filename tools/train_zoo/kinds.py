"""The three kinds of pipelines: their untrained parts, their conditions, and what their output is."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tools.train_demo.denoiser import LENGTH, build_text, text_config

Conditions = Mapping[str, torch.Tensor]
Noised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LAYERS: Mapping[str, str] = {  # that an adapter may change; the denoiser's own proj_out is none of them
    "attention": r".*attn\d?\.to_(q|k|v|out\.0)",
    "linear": r".*(attn\d?\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|attentions\.\d\.proj_(in|out))",
}


class Kind(ABC):
    """A kind of pipeline.

    ``denoiser`` and ``encoders`` are names of its parts, as the pipeline has them; ``absent`` are parts that it lacks.
    """

    denoiser: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]]
    absent: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[type[Any]]

    @abstractmethod
    def parts(self, vocabulary: CLIPTokenizer) -> nn.ModuleDict:
        """The untrained denoiser and text encoders."""

    @abstractmethod
    def conditions(self, parts: Any, ids: torch.Tensor, dropped: torch.Tensor) -> Conditions:
        """What the denoiser gets of prompts' ids [n, 16]; ``dropped`` [n] rows are unconditional."""

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """Noised latents, the times [n], and the output that is right; ``place`` [n] in [0, 1) of the schedule."""

    @abstractmethod
    def output(
        self, denoiser: nn.Module, noised: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The denoiser's output [n, C, h, w] under its conditions."""

    @abstractmethod
    def scheduler(self) -> Any:
        """The solver that the pipeline ships with."""

    def save(self, parts: Mapping[str, nn.Module], vae: AutoencoderTiny, vocabulary: CLIPTokenizer, out: Any) -> None:
        """Write the pipeline in float16."""
        halves = {name: part.half() for name, part in parts.items()}
        self.pipeline(
            vae=vae, tokenizer=vocabulary, scheduler=self.scheduler(), **halves, **self.others(vocabulary)
        ).save_pretrained(out)

    def load(self, folder: Path) -> Any:
        """The pipeline in ``folder``, in float32."""
        return self.pipeline.from_pretrained(folder, dtype=torch.float32, **dict.fromkeys(self.absent))

    def others(self, vocabulary: CLIPTokenizer) -> dict[str, Any]:
        """What else the pipeline's class wants."""
        return {}

    def loss(
        self, parts: Any, conditions: Conditions, latents: torch.Tensor, draws: torch.Generator | None = None
    ) -> torch.Tensor:
        """Squared error of the output [n] at one random time a row."""
        here, source = latents.device, latents.device if draws is None else draws.device
        noise = torch.randn(latents.shape, generator=draws, device=source).to(here)
        place = torch.rand(len(latents), generator=draws, device=source).to(here)
        noised, times, target = self.add_noise(latents, noise, place)
        error = self.output(parts[self.denoiser], noised, times, conditions) - target
        return error.float().square().mean((1, 2, 3))


@functools.cache
def _solver(kind: Kind) -> Any:
    """The solver of a kind, made once, on the processor."""
    with torch.device("cpu"):
        return kind.scheduler()


def discrete(alphas: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Times [n] and signal powers [n, 1, 1, 1] at ``place`` [n] in [0, 1) of a schedule."""
    times = (place * len(alphas)).long()
    return times, alphas.to(times.device)[times].view(-1, 1, 1, 1)


def _unet(down: Sequence[str], **more: Any) -> UNet2DConditionModel:
    """An untrained UNet of three levels for latents of 16 x 16; those on the way up mirror those ``down``."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        attention_head_dim=(1, 2, 3),
        norm_num_groups=16,
        use_linear_projection=True,
        **more,
    )


class Velocity(Kind):
    """Stable Diffusion 2's kind: output v, here with a schedule that ends in pure noise."""

    encoders = ("text_encoder",)
    pipeline = StableDiffusionPipeline

    def parts(self, vocabulary: CLIPTokenizer) -> nn.ModuleDict:
        """A UNet of 3.2 M parameters with linear projections."""
        levels = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
        unet = _unet(levels, cross_attention_dim=128)
        return nn.ModuleDict({"unet": unet, "text_encoder": build_text(vocabulary)})

    def conditions(self, parts: Any, ids: torch.Tensor, dropped: torch.Tensor) -> Conditions:
        """The text encoder's last states; the empty prompt's ids have to be in place of dropped ones."""
        return {"encoder_hidden_states": parts["text_encoder"](ids).last_hidden_state}

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """The output is the velocity, sqrt(a) noise - sqrt(1 - a) x (Salimans and Ho 2022, arXiv 2202.00512)."""
        times, level = discrete(_solver(self).alphas_cumprod, place)
        signal, rest = level.sqrt(), (1 - level).sqrt()
        return signal * latents + rest * noise, times, signal * noise - rest * latents

    def output(
        self, denoiser: nn.Module, noised: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """As ``Kind``."""
        output: torch.Tensor = denoiser(noised, times, **conditions).sample
        return output

    def scheduler(self) -> DDIMScheduler:
        """DDIM with betas that end in zero signal, as Lin et al. 2024 (arXiv 2305.08891)."""
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        )

    def others(self, vocabulary: CLIPTokenizer) -> dict[str, Any]:
        """No safety checker."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


_T5 = 256  # tokens of zeros that the pipeline puts in place of an absent T5's
_NARROW = 64  # width of either of two text encoders


def _clip(vocabulary: CLIPTokenizer, kind: type[Any], activation: str) -> Any:
    return kind(text_config(vocabulary, _NARROW, layers=3, heads=2, hidden_act=activation))


def _inner(encoder: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states before the last layer [n, L, D] and, where there is a projection, the pooled output [n, D]."""
    encoded = encoder(ids, output_hidden_states=True)
    return encoded.hidden_states[-2], encoded[0]


class Pair(Kind):
    """Stable Diffusion XL's kind: two text encoders, a pooled embedding and sizes, output eps."""

    encoders = ("text_encoder", "text_encoder_2")
    pipeline = StableDiffusionXLPipeline

    def parts(self, vocabulary: CLIPTokenizer) -> nn.ModuleDict:
        """A UNet of 5.3 M parameters with two transformer layers in its lowest level."""
        unet = _unet(
            ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            cross_attention_dim=2 * _NARROW,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=_NARROW + 6 * 16,
        )
        return nn.ModuleDict(
            {
                "unet": unet,
                "text_encoder": _clip(vocabulary, CLIPTextModel, "quick_gelu"),
                "text_encoder_2": _clip(vocabulary, CLIPTextModelWithProjection, "gelu"),
            }
        )

    def conditions(self, parts: Any, ids: torch.Tensor, dropped: torch.Tensor) -> Conditions:
        """Both encoders' states side by side, the second's pooled output and sizes; zeros where dropped."""
        first, (second, pooled) = _inner(parts["text_encoder"], ids)[0], _inner(parts["text_encoder_2"], ids)
        kept = (~dropped).float()
        sides = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(len(ids), 6)
        return {
            "encoder_hidden_states": torch.cat([first, second], -1) * kept[:, None, None],
            "text_embeds": pooled * kept[:, None],
            "time_ids": sides,
        }

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """The output is the noise."""
        times, level = discrete(_solver(self).alphas_cumprod, place)
        return level.sqrt() * latents + (1 - level).sqrt() * noise, times, noise

    def output(
        self, denoiser: nn.Module, noised: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """As ``Kind``."""
        added = {name: conditions[name] for name in ("text_embeds", "time_ids")}
        hidden = conditions["encoder_hidden_states"]
        output: torch.Tensor = denoiser(noised, times, hidden, added_cond_kwargs=added).sample
        return output

    def scheduler(self) -> EulerDiscreteScheduler:
        """Euler over Stable Diffusion XL's schedule."""
        return EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
            steps_offset=1,
        )

    def others(self, vocabulary: CLIPTokenizer) -> dict[str, Any]:
        """The second tokenizer; the empty prompt is zeros."""
        return {"tokenizer_2": vocabulary, "force_zeros_for_empty_prompt": True, "add_watermarker": False}


class Flow(Kind):
    """Stable Diffusion 3's kind: a joint transformer without T5, trained by flow matching."""

    denoiser = "transformer"
    encoders = ("text_encoder", "text_encoder_2")
    absent = ("text_encoder_3", "tokenizer_3")
    pipeline = StableDiffusion3Pipeline

    def parts(self, vocabulary: CLIPTokenizer) -> nn.ModuleDict:
        """A transformer of 2.3 M parameters over 64 tokens of the picture and 272 of the prompt."""
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=2 * _NARROW,
            caption_projection_dim=128,
            pooled_projection_dim=2 * _NARROW,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        return nn.ModuleDict(
            {
                "transformer": transformer,
                "text_encoder": _clip(vocabulary, CLIPTextModelWithProjection, "quick_gelu"),
                "text_encoder_2": _clip(vocabulary, CLIPTextModelWithProjection, "gelu"),
            }
        )

    def conditions(self, parts: Any, ids: torch.Tensor, dropped: torch.Tensor) -> Conditions:
        """Both encoders' states, zeros for T5, and both pooled outputs; dropped rows have the empty prompt's ids."""
        (first, one), (second, two) = (_inner(parts[name], ids) for name in self.encoders)
        states = torch.cat([first, second], -1)
        return {
            "encoder_hidden_states": torch.cat([states, states.new_zeros(len(ids), _T5, states.shape[-1])], 1),
            "pooled_projections": torch.cat([one, two], -1),
        }

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """The output is noise less picture; times are shifted as the solver's are."""
        shift = float(_solver(self).config.shift)
        sigma = shift * place / (1 + (shift - 1) * place)
        level = sigma.view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise, 1000 * sigma, noise - latents

    def output(
        self, denoiser: nn.Module, noised: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """As ``Kind``."""
        output: torch.Tensor = denoiser(hidden_states=noised, timestep=times, **conditions).sample
        return output

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler with a shift that suits small latents."""
        return FlowMatchEulerDiscreteScheduler(shift=1.5)

    def others(self, vocabulary: CLIPTokenizer) -> dict[str, Any]:
        """The second tokenizer, and no third encoder."""
        return {"tokenizer_2": vocabulary, **dict.fromkeys(self.absent)}


def ids_of(vocabulary: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids [n, 16]."""
    options: dict[str, Any] = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return torch.as_tensor(vocabulary(list(prompts), return_tensors="pt", **options).input_ids)
