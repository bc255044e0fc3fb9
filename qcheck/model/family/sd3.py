"""Stable Diffusion 3: a joint transformer that is trained by flow matching."""

from typing import Any, ClassVar

import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, Family, Shape, guided, joined
from qcheck.model.family.shift import shift
from qcheck.spec.probe import Probe


class _Entry(Entry):
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False
        )[0]
        return output


class StableDiffusion3(Family):
    """Three text encoders; conditions are encoder_hidden_states [1 or 2, L, D] and pooled_projections [1 or 2, D]."""

    pipeline = "StableDiffusion3Pipeline"
    kind = "SD3Transformer2DModel"
    encoders: ClassVar = {"text_encoder": None, "text_encoder_2": None, "text_encoder_3": 256}
    spare = frozenset({"text_encoder_3"})
    inner_states = True

    @property
    def multiple(self) -> int:
        """The side of a patch in pixels."""
        factor: int = self.factor * self.config.patch_size
        return factor

    @property
    def step(self) -> int:
        """The side of a patch in latents."""
        patch: int = self.config.patch_size
        return patch

    def _conditions(self, probe: Probe) -> Conditions:
        """encoder_hidden_states [1 or 2, L, D] and pooled_projections [1 or 2, D]."""
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompt=probe.prompt,
            prompt_2=None,
            prompt_3=None,
            device=self.text_device,
            do_classifier_free_guidance=guided(probe),
            negative_prompt=probe.negative or None,
        )
        return {
            "encoder_hidden_states": joined(negative, positive),
            "pooled_projections": joined(negative_pooled, pooled),
        }

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The shift for that number of tokens, where the solver shifts by size."""
        config, patch = self.pipe.scheduler.config, self.config.patch_size
        shifted = config.get("use_dynamic_shifting")
        return {"mu": shift(config, (shape[2] // patch) * (shape[3] // patch))} if shifted else {}

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module of hidden_states [n, C, h, w], timestep [n], encoder_hidden_states [n, L, D], pooled_projections."""
        return _Entry(denoiser)
