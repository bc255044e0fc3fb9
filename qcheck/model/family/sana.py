"""Sana: linear attention over latents of a deep autoencoder, told the prompt by a language model.

Sana-Sprint is distilled from it to one or two steps of a consistency model on the circle of TrigFlow (2503.09641).
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from qcheck.model.components import Entry
from qcheck.model.family.common import Conditions, Shape, guided, joined
from qcheck.model.family.language import LanguageFamily
from qcheck.spec.probe import Probe

_CONSISTENCY = "SCMScheduler"


class _Entry(Entry):
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows = hidden_states.shape[0]
        for value in (encoder_hidden_states, encoder_attention_mask):
            torch._check(value.shape[0] == rows)  # type: ignore[no-untyped-call]  # it reshapes one by another's rows
        output: torch.Tensor = self.denoiser(
            hidden_states, encoder_hidden_states, timestep, guidance, encoder_attention_mask, return_dict=False
        )[0]
        return output


class Sana(LanguageFamily):
    """One text encoder; conditions are encoder_hidden_states [1 or 2, L, D] and encoder_attention_mask [1 or 2, L]."""

    pipeline = "SanaPipeline"
    kind = "SanaTransformer2DModel"
    encoders: ClassVar = {"text_encoder": 300}

    @classmethod
    def fits(cls, present: Mapping[str, str]) -> bool:
        """As every family's, with any solver but that of Sana-Sprint."""
        return super().fits(present) and present["scheduler"] != _CONSISTENCY

    def unsupported(self) -> str | None:
        """As every family's, and a transformer that is told the guidance."""
        told = "a transformer that is told the guidance, with another solver than Sana-Sprint's"
        return super().unsupported() or (told if self.config.guidance_embeds else None)

    @property
    def multiple(self) -> int:
        """The side of a patch in pixels, and 32, which the pipeline takes no other sides of."""
        return math.lcm(self.factor * self.step, 32)

    @property
    def step(self) -> int:
        """The side of a patch in latents."""
        patch: int = self.config.patch_size
        return patch

    @property
    def _instruction(self) -> list[str]:
        """The pipeline's own lines before every prompt."""
        lines: list[str] = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        return lines

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists."""
        positive, mask, negative, negative_mask = self.pipe.encode_prompt(
            probe.prompt,
            guided(probe),
            negative_prompt=probe.negative,
            device=self.text_device,
            complex_human_instruction=self._instruction,
        )
        masks = joined(negative_mask, mask).to(positive.dtype)
        return {"encoder_hidden_states": joined(negative, positive), "encoder_attention_mask": masks}

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """hidden_states [n, C, h, w], timestep [n] in the unit of the transformer, and the conditions."""
        return super().feed(latents, timestep * self.config.timestep_scale, conditions)

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module with the inputs of ``feed``."""
        return _Entry(denoiser)

    def around(self) -> tuple[str, str]:
        """The pipeline's instruction, and nothing."""
        return "\n".join(self._instruction), ""

    def read_by(self) -> dict[str, int]:
        """The tokens of the instruction, of which the pipeline drops all but the last, and of the prompt."""
        instruction = len(self._tokenizer("text_encoder").encode(self.around()[0]))
        return {name: instruction + most - 2 for name, most in super().read_by().items()}

    def asked(self, encoder: str, prompt: str) -> str:
        """The prompt in lower case behind the pipeline's instruction."""
        return super().asked(encoder, prompt.lower().strip())


class SanaSprint(Sana):
    """As ``Sana``, with guidance [1] as an input instead of a second branch."""

    pipeline = "SanaSprintPipeline"
    branches = 1

    @classmethod
    def fits(cls, present: Mapping[str, str]) -> bool:
        """As every family's, with the solver of Sana-Sprint."""
        return super(Sana, cls).fits(present) and present["scheduler"] == _CONSISTENCY

    def unsupported(self) -> str | None:
        """As every family's, and a transformer that is told no guidance."""
        told = (
            None if self.config.guidance_embeds else "a transformer that is told no guidance, with Sana-Sprint's solver"
        )
        return super(Sana, self).unsupported() or told

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists."""
        embedded, mask = self.pipe.encode_prompt(
            probe.prompt, device=self.text_device, complex_human_instruction=self._instruction
        )
        guidance = torch.tensor([probe.guidance * self.config.guidance_embeds_scale])
        return {
            "encoder_hidden_states": embedded,
            "encoder_attention_mask": mask.to(embedded.dtype),
            "guidance": guidance,
        }

    def spaced(self, steps: int) -> dict[str, Any]:
        """Two steps have a time of their own between them: the pipeline's default."""
        asked = inspect.signature(type(self.pipe).__call__).parameters
        between = asked["intermediate_timesteps"].default if steps == 2 else None
        times = {"max_timesteps": asked["max_timesteps"].default, "intermediate_timesteps": between}
        return super().spaced(steps) | times

    def solver(self, steps: int, shape: Shape) -> Any:
        """The pipeline's solver, told the outputs of a flow."""
        return TrigFlow(super().solver(steps, shape))

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """hidden_states [n, C, h, w], timestep [n] in [0, 1], and the conditions."""
        return super(Sana, self).feed(latents, float(_flow_time(torch.tensor(timestep))), conditions)


class TrigFlow:
    """A consistency model's solver on the circle, from outputs of a flow on the line: what the pipeline's loop does.

    Its timesteps are angles, the last of which, 0, is no call. States have the standard deviation ``sigma_data`` of the
    solver; the last one is the picture's, of unit variance.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.config = inner, inner.config
        self.timesteps: torch.Tensor = inner.timesteps[:-1]
        self.init_noise_sigma: float = inner.config.sigma_data

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The flow's state at the time of the same signal-to-noise ratio."""
        return sample / self.init_noise_sigma * _length(_flow_time(timestep))

    def step(
        self, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, generator: Any, return_dict: bool
    ) -> tuple[torch.Tensor]:
        """The next state from the flow's output; after the last call the picture's latents."""
        time, state = _flow_time(timestep), self.scale_model_input(sample, timestep)
        turned = ((1 - 2 * time) * state + (1 - 2 * time + 2 * time**2) * output) / _length(time)
        following, denoised = self.inner.step(
            turned * self.init_noise_sigma, timestep, sample, generator=generator, return_dict=False
        )
        last = self.inner.step_index == len(self.timesteps)
        return (denoised / self.init_noise_sigma if last else following,)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The state at an angle of a picture's latents, with noise of unit variance."""
        return self.init_noise_sigma * (torch.cos(timestep) * latents + torch.sin(timestep) * noise)


def _flow_time(angle: torch.Tensor) -> torch.Tensor:
    """The time in [0, 1] of a flow whose signal-to-noise ratio is that of an angle."""
    time: torch.Tensor = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
    return time


def _length(time: torch.Tensor) -> torch.Tensor:
    """The standard deviation of a flow's state at a time, where those of picture and noise are 1."""
    return torch.sqrt(time**2 + (1 - time) ** 2)
