"""The denoiser in torch: the full-precision reference, other compute types, and layers that a library quantized."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class TorchRunner:
    """A family's entry around a denoiser. Inputs in ``kept`` stay float32, as in an exported file."""

    entry: nn.Module
    name: str = "torch float32"
    dtype: torch.dtype = torch.float32
    kept: frozenset[str] = field(default_factory=frozenset)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run as ``Runner`` does; inputs are cast to the module's dtype and its output back."""
        tensors = {
            name: torch.from_numpy(value).to(torch.float32 if name in self.kept else self.dtype)
            for name, value in inputs.items()
        }
        output: torch.Tensor = self.entry(**tensors)
        result: np.ndarray = output.float().numpy()
        return result
