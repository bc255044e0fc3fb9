"""The parts of a pipeline that a device runs, each as one module with tensors in and out.

Names of folders, inputs and outputs are those of optimum's pipeline layout.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

DENOISER = "unet"
MODULE = "denoiser"  # what the denoiser is called within its entry, and so in the names of an exported graph


@dataclass(frozen=True)
class Component:
    """A module to export: example inputs by name in the order of its arguments, and the names of its outputs.

    The first axis of every input but those in ``fixed`` is the batch; ``fixed`` ones also keep their type. ``steps`` is
    what a side of the picture in latents is a multiple of, for inputs whose last two axes may vary; ``spread`` the
    standard deviation of its float inputs in use.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    fixed: frozenset[str] = field(default_factory=frozenset)
    pictures: frozenset[str] = field(default_factory=frozenset)
    steps: int = 1
    spread: float = 1.0

    def cast(self, dtype: torch.dtype) -> "Component":
        """A copy whose weights and inputs are in ``dtype``."""
        inputs = {
            name: value.to(dtype) if value.is_floating_point() and name not in self.fixed else value
            for name, value in self.inputs.items()
        }
        return replace(self, module=copy.deepcopy(self.module).to(dtype), inputs=inputs)


class _Denoiser(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.denoiser = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


class _TextEncoder(nn.Module):
    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.text_encoder(input_ids, return_dict=False)
        return output[0], output[1]


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return output


_ROWS = 2  # of an example: torch's exporter takes an axis of one for a constant


def denoiser(unet: Any, sample: Sequence[int], hidden: Sequence[int]) -> Component:
    """Inputs sample [batch, C, h, w], timestep [1] (float32) and encoder_hidden_states [batch, L, D]."""
    return Component(
        name=DENOISER,
        module=_Denoiser(unet),
        inputs={
            "sample": torch.zeros(_ROWS, *sample[1:]),
            "timestep": torch.ones(1, dtype=torch.float32),
            "encoder_hidden_states": torch.zeros(_ROWS, *hidden[1:]),
        },
        outputs=("out_sample",),
        fixed=frozenset({"timestep"}),
        pictures=frozenset({"sample"}),
        steps=2 ** (len(unet.config.block_out_channels) - 1),
    )


def others(pipe: Any, sample: Sequence[int], hidden: Sequence[int]) -> list[Component]:
    """What a picture takes beside the denoiser: the text encoder of ``hidden`` [batch, L, D] tokens, and the decoder.

    The decoder's input are latents ``sample`` [batch, C, h, w], as the pipeline hands them over: divided by the scaling
    factor.
    """
    tokens = torch.ones(_ROWS, hidden[1], dtype=torch.int64)
    return [
        Component(
            "text_encoder",
            _TextEncoder(pipe.text_encoder),
            {"input_ids": tokens},
            ("last_hidden_state", "pooler_output"),
        ),
        Component(
            "vae_decoder",
            _Decoder(pipe.vae),
            {"latent_sample": torch.zeros(_ROWS, *sample[1:])},
            ("sample",),
            pictures=frozenset({"latent_sample"}),
            spread=1 / pipe.vae.config.scaling_factor,
        ),
    ]
