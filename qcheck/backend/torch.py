"""The denoiser in torch: the full-precision reference, other compute types, and layers that a library quantized."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class TorchRunner:
    """A diffusers UNet."""

    unet: nn.Module
    name: str = "torch float32"
    dtype: torch.dtype = torch.float32

    @torch.no_grad()
    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """As ``Runner``; inputs are cast to the module's dtype and its output back."""
        output = self.unet(
            torch.from_numpy(sample).to(self.dtype),
            torch.tensor([timestep], dtype=torch.float32),
            torch.from_numpy(hidden).to(self.dtype),
            return_dict=False,
        )[0]
        result: np.ndarray = output.float().numpy()
        return result
