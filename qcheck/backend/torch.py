"""The full-precision reference: the denoiser in torch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class TorchRunner:
    """A diffusers UNet."""

    unet: nn.Module
    name: str = "torch float32"

    @torch.no_grad()
    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """As ``Runner``."""
        output = self.unet(
            torch.from_numpy(sample),
            torch.tensor([timestep], dtype=torch.float32),
            torch.from_numpy(hidden),
            return_dict=False,
        )[0]
        result: np.ndarray = output.numpy()
        return result
