"""The denoiser in torch: the full-precision reference, other compute types, simulations, and a library's layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from qcheck.model.device import CPU, Device
from qcheck.runtime.rows import Rows


@dataclass(frozen=True)
class TorchRunner:
    """A family's entry around a denoiser on ``device``.

    Inputs in ``kept`` stay float32, as in an exported file; inputs in ``fixed`` have no rows.
    """

    entry: nn.Module
    name: str = "torch float32"
    dtype: torch.dtype = torch.float32
    kept: frozenset[str] = field(default_factory=frozenset)
    device: Device = CPU
    fixed: frozenset[str] = frozenset({"timestep"})

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.device, self.fixed, "torch")

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run as ``Runner`` does; inputs are cast to the module's dtype and its output back."""
        return self._rows.run(self._run, inputs)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {
            name: torch.from_numpy(value).to(self.device.torch, torch.float32 if name in self.kept else self.dtype)
            for name, value in inputs.items()
        }
        output: torch.Tensor = self.entry(**tensors)
        result: np.ndarray = output.float().cpu().numpy()
        return result
