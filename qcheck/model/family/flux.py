"""Flux: a transformer over latents packed 2 x 2 into tokens, trained by flow matching."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, Family, Shape
from qcheck.model.family.shift import equal_sigmas, shift, takes_sigmas
from qcheck.spec.probe import Probe


class _Entry(Entry):
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        txt_ids: torch.Tensor,
        img_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            timestep,
            img_ids,
            txt_ids,
            guidance,
            return_dict=False,
        )[0]
        return output


class Flux(Family):
    """Two text encoders; guidance is an input or absent, never a second branch.

    Conditions are encoder_hidden_states [1, L, D], pooled_projections [1, D] and, for the guidance-distilled kind,
    guidance [1].
    """

    pipeline = "FluxPipeline"
    kind = "FluxTransformer2DModel"
    encoders: ClassVar = {"text_encoder": None, "text_encoder_2": 512}
    fixed = frozenset({"txt_ids", "img_ids"})
    kept = frozenset({"timestep", "txt_ids", "img_ids"})
    branches = 1

    def unsupported(self) -> str | None:
        """As every family's, and a solver that takes no sigmas, which the pipeline gives it."""
        return (None if self._own_sigmas else takes_sigmas(self.pipe.scheduler)) or super().unsupported()

    @property
    def channels(self) -> int:
        """The channels of the latents before they are packed."""
        return super().channels // 4

    @property
    def multiple(self) -> int:
        """The side of a token in pixels."""
        return 2 * super().multiple

    def sides(self) -> tuple[int, int]:
        """Height and width of the pipeline's own pictures, in latents."""
        size: int = self.pipe.default_sample_size
        return size, size

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists."""
        embedded, pooled, _ = self.pipe.encode_prompt(prompt=probe.prompt, prompt_2=None, device=self.text_device)
        conditions = {"encoder_hidden_states": embedded, "pooled_projections": pooled}
        return conditions | ({"guidance": torch.tensor([probe.guidance])} if self.config.guidance_embeds else {})

    def spaced(self, steps: int) -> dict[str, Any]:
        """Sigmas in equal steps from 1, unless the solver computes its own."""
        return super().spaced(steps) if self._own_sigmas else equal_sigmas(steps)

    @property
    def _own_sigmas(self) -> bool:
        """Whether the solver computes its sigmas, so that the pipeline gives it none."""
        return bool(self.pipe.scheduler.config.get("use_flow_sigmas"))

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The shift for that number of tokens."""
        return {"mu": shift(self.pipe.scheduler.config, (shape[2] // 2) * (shape[3] // 2))}

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens hidden_states [n, hw/4, 4C], time in [0, 1], and positions: txt_ids [L, 3], img_ids [hw/4, 3]."""
        rows, channels, height, width = latents.shape
        high, wide = height // 2, width // 2
        packed = latents.reshape(rows, channels, high, 2, wide, 2).transpose(0, 2, 4, 1, 3, 5)
        places = np.zeros((high, wide, 3), np.float32)
        places[..., 1], places[..., 2] = np.arange(high)[:, None], np.arange(wide)
        length = conditions["encoder_hidden_states"].shape[1]
        inputs = {
            "hidden_states": np.ascontiguousarray(packed.reshape(rows, high * wide, 4 * channels)),
            "timestep": np.full(rows, timestep / 1000, np.float32),
            **{name: value for name, value in conditions.items() if name != "guidance"},
            "txt_ids": np.zeros((length, 3), np.float32),
            "img_ids": places.reshape(-1, 3),
        }
        return inputs | {name: value for name, value in conditions.items() if name == "guidance"}

    def read(self, output: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Tokens [n, hw/4, 4C] as latents [n, C, h, w]."""
        rows, channels, height, width = shape
        tokens = output.reshape(rows, height // 2, width // 2, channels, 2, 2).transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(tokens.reshape(shape))

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module with the inputs of ``feed``."""
        return _Entry(denoiser)

    def growing(self) -> Mapping[str, Mapping[int, str]]:
        """The axes of tokens."""
        return {"hidden_states": {1: "tokens"}, "img_ids": {0: "tokens"}}
