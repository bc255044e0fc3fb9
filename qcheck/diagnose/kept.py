"""Tensors that are computed by name and kept as far as memory allows, so that it does not grow with the model."""

from collections.abc import Callable

import torch

from qcheck.model.device import Device

_SHARE = 1 / 8  # of the device's free memory


class Kept:
    """Tensors that ``compute`` makes from names; those within a share of the free memory are made once."""

    def __init__(self, compute: Callable[[str], torch.Tensor], device: Device) -> None:
        self._compute, self._budget = compute, int(_SHARE * device.free())
        self._kept: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name."""
        if name in self._kept:
            return self._kept[name]
        value = self._compute(name)
        if value.nbytes <= self._budget:
            self._budget -= value.nbytes
            self._kept[name] = value
        return value
