"""FLUX.2 klein: a transformer over latents of 2 x 2 patches, told the prompt by inner states of a language model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, Shape, guided, joined
from qcheck.model.family.flux import Flux
from qcheck.model.family.language import LanguageFamily
from qcheck.model.family.shift import empirical_shift
from qcheck.spec.probe import Probe

_ENCODER = "Qwen3ForCausalLM"


class _Entry(Entry):
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        txt_ids: torch.Tensor,
        img_ids: torch.Tensor,
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            hidden_states, encoder_hidden_states, timestep, img_ids, txt_ids, return_dict=False
        )[0]
        return output


class Flux2Klein(LanguageFamily, Flux):
    """One text encoder; guidance is a second branch, which the distilled kind does not have.

    Latents are those of the autoencoder in patches of 2 x 2, [n, 4C, h / 2, w / 2], normalised by the moments of its
    batch norm. Conditions are encoder_hidden_states [1 or 2, L, 3D].
    """

    pipeline = "Flux2KleinPipeline"
    kind = "Flux2Transformer2DModel"
    inner_states = (9, 18, 27)

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.branches = 1 if pipe.config.is_distilled else 2

    @classmethod
    def fits(cls, present: Mapping[str, str]) -> bool:
        """As every family's; FLUX.2 dev has another text encoder."""
        return super().fits(present) and present["text_encoder"] == _ENCODER

    @property
    def channels(self) -> int:
        """The channels of the patches."""
        channels: int = self.config.in_channels
        return channels

    @property
    def factor(self) -> int:
        """The side of a patch in pixels."""
        return 2 * super().factor

    @property
    def multiple(self) -> int:
        """The side of a patch in pixels."""
        return self.factor

    def sides(self) -> tuple[int, int]:
        """Height and width of the pipeline's own pictures, in patches."""
        size: int = self.pipe.default_sample_size // 2
        return size, size

    def _conditions(self, probe: Probe) -> Conditions:
        """encoder_hidden_states [1 or 2, L, 3D]."""
        prompts = [probe.negative, probe.prompt] if guided(probe) and self.branches == 2 else [probe.prompt]
        *negative, positive = (self.pipe.encode_prompt(text, device=self.text_device)[0] for text in prompts)
        return {"encoder_hidden_states": joined(next(iter(negative), None), positive)}

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The shift for that number of tokens and steps."""
        return {"mu": empirical_shift(shape[2] * shape[3], steps)}

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens hidden_states [n, hw, C], time in [0, 1], and positions: txt_ids [L, 4], img_ids [hw, 4].

        The axes of a position are time, height, width and the place in the text.
        """
        rows, channels, height, width = latents.shape
        text = np.zeros((conditions["encoder_hidden_states"].shape[1], 4), np.float32)
        text[:, 3] = np.arange(len(text))
        places = np.zeros((height, width, 4), np.float32)
        places[..., 1], places[..., 2] = np.arange(height)[:, None], np.arange(width)
        return {
            "hidden_states": np.ascontiguousarray(latents.reshape(rows, channels, -1).transpose(0, 2, 1)),
            "timestep": np.full(rows, timestep / 1000, np.float32),
            "encoder_hidden_states": conditions["encoder_hidden_states"],
            "txt_ids": text,
            "img_ids": places.reshape(-1, 4),
        }

    def read(self, output: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Tokens [n, hw, C] as latents [n, C, h, w]."""
        return np.ascontiguousarray(output.transpose(0, 2, 1).reshape(shape))

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module with the inputs of ``feed``."""
        return _Entry(denoiser)

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Final latents [n, 4C, h, w] as the autoencoder's decoder takes them, [n, C, 2h, 2w]."""
        mean, spread = self._moments(latents)
        return nn.functional.pixel_shuffle(latents * spread + mean, 2)

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """The inverse of ``unscaled``."""
        patches = nn.functional.pixel_unshuffle(raw, 2)
        mean, spread = self._moments(patches)
        return (patches - mean) / spread

    def _moments(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [1, 4C, 1, 1] of patches."""
        vae = self.pipe.vae
        mean, variance = (value.view(1, -1, 1, 1).to(like) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def around(self) -> tuple[str, str]:
        """The chat template's text, with an answer that begins without thinking."""
        return self.chat(enable_thinking=False)
