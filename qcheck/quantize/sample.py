"""Some outputs of a base's stored weights, read without the rest of them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qcheck.model.lora.layout import Factors
from qcheck.quantize import plan
from qcheck.quantize.forecast import Rows
from qcheck.spec.scheme import Scheme

_LEAST = 4  # outputs of a layer


class StoredWeights:
    """The weights of a denoiser's layers ``denoiser.layer`` in safetensors files, by the names of their tensors."""

    def __init__(self, denoiser: str, files: Mapping[str, Path]) -> None:
        self._prefix, self._files = f"{denoiser}.", files
        self._streams = {path: safe_open(path, "pt") for path in set(files.values())}

    def __contains__(self, name: str) -> bool:
        """Whether the denoiser has a layer of that name."""
        return name.startswith(self._prefix) and f"{self.layer(name)}.weight" in self._files

    def layer(self, name: str) -> str:
        """The layer's name in the denoiser."""
        return name.removeprefix(self._prefix)

    def __getitem__(self, name: str) -> "StoredWeight":
        """The weight of the layer of that name."""
        key = f"{self.layer(name)}.weight"
        stream: Any = self._streams[self._files[key]]
        return StoredWeight(stream.get_slice(key))


class StoredWeight:
    """One weight [out, in, ...] in a file; ``meta`` has its shape and no values."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.meta = torch.empty(stored.get_shape(), device="meta")

    def whole(self) -> torch.Tensor:
        """All of it, in float32."""
        values: torch.Tensor = self._stored[:].float()
        return values

    def rows(self, factors: Factors, weight: float, schemes: Sequence[Scheme], count: int | None) -> Rows:
        """Evenly spaced outputs of about ``count`` weights, or all, and their change by an adapter.

        All are read too where a scale of one of ``schemes`` is shared by weights of several outputs, but not by all.
        """
        inputs = self.meta[0].numel()
        rules = [rule.weights for scheme in schemes if (rule := plan.rule_of(self.meta, scheme)) is not None]
        if count is None or any(rule.granularity == "run" and inputs % (rule.block or 1) for rule in rules):
            stride = 1
        else:
            stride = math.ceil(len(self.meta) / max(_LEAST, count // inputs))
        shaped = factors.shaped(self.meta.shape)
        if shaped.sizes is not None and shaped.sizes.axis:  # they depend on all outputs
            whole = self.whole()
            before, change = whole[::stride], shaped.added(whole, weight)[::stride]
        else:
            before = self._stored[::stride].float()
            change = shaped.rows(torch.arange(0, len(self.meta), stride)).added(before, weight)
        one_step = stride > 1 and any(plan.has_one_step(self.meta, scheme) for scheme in schemes)
        return Rows(before, change, len(self.meta), self._extreme() if one_step else None)

    def _extreme(self) -> torch.Tensor:
        """The output with the largest weight, [1, in, ...] in float32."""
        values = self._stored[:]
        place = int(values.flatten(1).abs().amax(1).argmax())
        output: torch.Tensor = values[place : place + 1].float()
        return output
