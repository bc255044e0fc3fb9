"""Stable Diffusion 1.x, 2.x and XL: a UNet; its output may be eps or v, which the solver handles."""

from typing import Any, ClassVar

import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, Family, guided, joined
from qcheck.spec.probe import Probe


class _Entry(Entry):
    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


class StableDiffusion(Family):
    """One text encoder; conditions are encoder_hidden_states [1 or 2, L, D]."""

    pipeline = "StableDiffusionPipeline"
    kind = "UNet2DConditionModel"
    denoiser = "unet"
    encoders: ClassVar = {"text_encoder": None}
    fixed = frozenset({"timestep"})
    latent = "sample"
    strange: ClassVar[tuple[str, ...]] = (
        "time_cond_proj_dim",
        "addition_embed_type",
        "class_embed_type",
        "encoder_hid_dim_type",
    )
    output = "out_sample"

    def unsupported(self) -> str | None:
        """As ``Family``, or a UNet with further conditions, such as the guidance."""
        conditioned = [name for name in self.strange if self.config.get(name) is not None]
        return super().unsupported() or (f"a UNet with {', '.join(conditioned)}" if conditioned else None)

    @property
    def step(self) -> int:
        """2 to the number of levels that halve the sides."""
        factor: int = 2 ** (len(self.config.block_out_channels) - 1)
        return factor

    def _conditions(self, probe: Probe) -> Conditions:
        """encoder_hidden_states [1 or 2, L, D]."""
        positive, negative = self.pipe.encode_prompt(
            probe.prompt, self.text_device, 1, guided(probe), probe.negative or None
        )
        return {"encoder_hidden_states": joined(negative if guided(probe) else None, positive)}

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module of sample [n, C, h, w], timestep [1] and encoder_hidden_states [n, L, D]."""
        return _Entry(denoiser)


class _EntryXL(Entry):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        output: torch.Tensor = self.denoiser(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return output


class StableDiffusionXL(StableDiffusion):
    """Two text encoders; conditions also text_embeds [1 or 2, D] and time_ids [1 or 2, 6], the picture's sizes."""

    pipeline = "StableDiffusionXLPipeline"
    encoders: ClassVar = {"text_encoder": None, "text_encoder_2": None}
    strange = ("time_cond_proj_dim", "class_embed_type", "encoder_hid_dim_type")
    inner_states = True

    def _conditions(self, probe: Probe) -> Conditions:
        """encoder_hidden_states [1 or 2, L, D], text_embeds [1 or 2, D] and time_ids [1 or 2, 6]."""
        pipe: Any = self.pipe
        positive, negative, pooled, negative_pooled = pipe.encode_prompt(
            prompt=probe.prompt,
            device=self.text_device,
            do_classifier_free_guidance=guided(probe),
            negative_prompt=probe.negative or None,
        )
        _, _, height, width = self.shape(probe.width, probe.height)
        size = (height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)
        ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, pipe.text_encoder_2.config.projection_dim)
        ids = ids.to(self.text_device)
        return {
            "encoder_hidden_states": joined(negative, positive),
            "text_embeds": joined(negative_pooled, pooled),
            "time_ids": joined(ids if guided(probe) else None, ids),
        }

    def _moments(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and spread [1, C, 1, 1] of the autoencoder's latents by channel, where its config has them."""
        config = self.pipe.vae.config
        values = [getattr(config, name, None) for name in ("latents_mean", "latents_std")]
        if None in values:
            return None
        mean, spread = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in values)
        return mean, spread

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """As every family's, by channel where the autoencoder's config has the moments of its latents."""
        if (moments := self._moments(latents)) is None:
            return super().unscaled(latents)
        mean, spread = moments
        raw: torch.Tensor = latents * spread / self.pipe.vae.config.scaling_factor + mean
        return raw

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """The inverse of ``unscaled``."""
        if (moments := self._moments(raw)) is None:
            return super().scaled(raw)
        mean, spread = moments
        latents: torch.Tensor = (raw - mean) * self.pipe.vae.config.scaling_factor / spread
        return latents

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """As ``StableDiffusion``, with text_embeds [n, D] and time_ids [n, 6]."""
        return _EntryXL(denoiser)
