"""Chroma: Flux without pooled embedding, with a second branch of guidance and a mask of the prompt's tokens."""

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, guided, joined
from qcheck.model.family.flux import Flux
from qcheck.spec.probe import Probe


class _Embeddings(nn.Module):
    """Chroma's embedding of the time, whose own code makes a list of as many zeros as there are rows."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """[n, layers, D] of times [n]."""
        times = self.embeddings.time_proj(timestep), self.embeddings.guidance_proj(torch.zeros_like(timestep))
        layers = self.embeddings.mod_proj.to(timestep.dtype)
        rows = torch.cat([part.to(timestep.dtype) for part in times], 1)[:, None].expand(-1, len(layers), -1)
        return torch.cat([rows, layers.expand(timestep.shape[0], -1, -1)], -1)


class _Entry(Entry):
    def __init__(self, denoiser: nn.Module) -> None:
        exported = copy.copy(denoiser)
        embeddings = {"time_text_embed": _Embeddings(denoiser.time_text_embed)}
        vars(exported)["_modules"] = vars(denoiser)["_modules"] | embeddings
        super().__init__(exported)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        txt_ids: torch.Tensor,
        img_ids: torch.Tensor,
    ) -> torch.Tensor:
        pictures = torch.ones_like(hidden_states[..., 0], dtype=attention_mask.dtype)
        output: torch.Tensor = self.denoiser(
            hidden_states,
            encoder_hidden_states,
            timestep,
            img_ids,
            txt_ids,
            torch.cat([attention_mask, pictures], dim=1),
            return_dict=False,
        )[0]
        return output


class Chroma(Flux):
    """One text encoder; conditions are encoder_hidden_states [1 or 2, L, D] and attention_mask [1 or 2, L]."""

    pipeline = "ChromaPipeline"
    kind = "ChromaTransformer2DModel"
    encoders: ClassVar = {"text_encoder": 512}
    mask = "padding"
    branches = 2

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists."""
        positive, _, mask, negative, _, negative_mask = self.pipe.encode_prompt(
            probe.prompt,
            probe.negative or None,
            device=self.text_device,
            do_classifier_free_guidance=guided(probe),
        )
        return {"encoder_hidden_states": joined(negative, positive), "attention_mask": joined(negative_mask, mask)}

    @property
    def _own_sigmas(self) -> bool:
        """No: the pipeline gives every solver its sigmas."""
        return False

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module with the inputs of ``feed``."""
        return _Entry(denoiser)
