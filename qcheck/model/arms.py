"""The two full-precision arms of one pipeline: f0 (base) and f1 (base + adapter)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.model import lora
from qcheck.model.device import Device
from qcheck.model.family import Family
from qcheck.model.load import Base
from qcheck.model.lora import Adapter, Fit
from qcheck.spec.arm import Side

_EXACT = 1e-3


@dataclass(frozen=True)
class Arms:
    """The weights of both arms for one pipeline, which holds one arm at a time. Only changed layers are stored twice.

    ``base`` is in the memory of the processor, where artifacts are made; ``computing`` is the same pipeline on the
    device that computes, and the same object where that is the processor. ``adapters`` are merged into the adapted arm
    alone, ``common`` into both; ``unmatched`` names layers of the adapters that the base does not have.
    """

    base: Base
    computing: Base
    adapters: tuple[Adapter, ...]
    common: tuple[Adapter, ...]
    layers: tuple[str, ...]
    weights: dict[Side, dict[str, torch.Tensor]]
    down: dict[str, torch.Tensor]
    unmatched: tuple[str, ...] = ()

    def content(self, side: Side) -> str:
        """The digest of all weights of an arm."""
        adapters = (*self.common, *(self.adapters if side == "adapted" else ()))
        return digest_of(self.base.digest, *(f"{adapter.digest} {adapter.weight!r}" for adapter in adapters))

    @contextmanager
    def held(self, side: Side) -> Iterator[Family]:
        """The pipeline with the weights of the arm ``side``, until the block ends. Blocks of one arm may nest.

        Raises:
            RuntimeError: a block of the other arm is open: its runner would compute with these weights.
        """
        with self._held(self.base, side) as family:
            yield family

    @contextmanager
    def running(self, side: Side) -> Iterator[Family]:
        """As ``held``, the pipeline on the device that computes."""
        with self._held(self.computing, side) as family:
            yield family

    @contextmanager
    def _held(self, pipeline: Base, side: Side) -> Iterator[Family]:
        with pipeline.lease.of(self.content(side)) as outermost:
            if outermost:
                for layer, weight in self.weights[side].items():
                    _weight(pipeline.pipe, layer).data = weight.to(pipeline.device.torch)
            yield pipeline.family

    @property
    def device(self) -> Device:
        """The device that computes."""
        return self.computing.device

    def on(self, device: Device) -> "Arms":
        """The same arms, computed on ``device``.

        Raises:
            UserError: the device's memory is too small.
        """
        return replace(self, computing=self.base.on(device))

    def state(self, side: Side) -> dict[str, torch.Tensor]:
        """The denoiser's parameters and buffers in that arm, whichever arm the pipeline holds."""
        prefix = f"{self.base.family.denoiser}."
        weights = {layer.removeprefix(prefix): weight for layer, weight in self.weights[side].items()}
        state: dict[str, torch.Tensor] = self.base.denoiser.state_dict()
        return state | {f"{layer}.weight": weight for layer, weight in weights.items() if f"{layer}.weight" in state}

    def denoiser_layers(self) -> list[str]:
        """The denoiser's layers that the adapter changes, by their name in the denoiser."""
        prefix = f"{self.base.family.denoiser}."
        return [layer.removeprefix(prefix) for layer in self.layers if layer.startswith(prefix)]

    def factors(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``down`` [r, in, ...] and ``up`` [out, r] of a denoiser layer, with up @ down = its change of the weight.

        ``down`` stacks the files' factors. ``up`` is solved from the merged change, so it includes weight and alpha.

        Raises:
            UserError: the change is not of that rank, as DoRA's is not.
        """
        name = f"{self.base.family.denoiser}.{layer}"
        change = (self.weights["adapted"][name].double() - self.weights["base"][name]).flatten(1)
        down = self.down[name].double()
        up = torch.linalg.lstsq(down.flatten(1).t(), change.t()).solution.t()
        residual = (up @ down.flatten(1) - change).norm()
        if residual > _EXACT * change.norm():
            raise UserError(
                f"the adapter's change of {layer} is no product of its factors (DoRA rescales whole weights)",
                "It cannot run unmerged: leave --order unmerged out.",
            )
        return down.float(), up.float().contiguous()


def apply(
    base: Base, adapters: Sequence[Adapter], common: Sequence[Adapter] = (), allow_unmatched: bool = False
) -> Arms:
    """Both arms of ``base``: ``common`` merged into both, ``adapters`` into one of them, at full precision.

    Raises:
        UserError: an adapter does not fit this base, or its merge left one of its layers unchanged.
    """
    unmatched: list[str] = []
    lora.require_stackable([*common, *adapters])
    for adapter in common:
        unmatched += _merge(base.pipe, adapter, allow_unmatched)[0].unmatched
    before: dict[str, torch.Tensor] = {}
    down: dict[str, list[torch.Tensor]] = defaultdict(list)
    for adapter in adapters:
        fitted, originals = _merge(base.pipe, adapter, allow_unmatched)
        unmatched += fitted.unmatched
        before = originals | before  # of several adapters on a layer, the first one read the base's weight
        for layer, factor in fitted.down.items():
            down[layer].append(factor)
    layers = tuple(sorted(before))
    weights: dict[Side, dict[str, torch.Tensor]] = {
        "base": {layer: before[layer] for layer in layers},
        "adapted": {layer: _weight(base.pipe, layer).detach().clone() for layer in layers},
    }
    joined = {layer: torch.cat(down[layer]) for layer in layers}
    return Arms(base, base, tuple(adapters), tuple(common), layers, weights, joined, tuple(unmatched))


def alike(reference: Arms, adapters: Sequence[Adapter]) -> Arms:
    """The arms of the same base with other adapters of the same layers, at full precision.

    Raises:
        UserError: as ``apply``, or they change other layers.
    """
    with reference.held("base"):
        arms = apply(reference.base, adapters, (), bool(reference.unmatched))
    if arms.layers != reference.layers:
        odd = sorted(set(arms.layers) ^ set(reference.layers))
        raise UserError(
            f"the adapter and its reference change other layers of the base: {len(odd)} differ, first {odd[0]}",
            "Give the adapter that it was calibrated from as --reference-lora.",
        )
    return replace(arms, common=reference.common, computing=reference.computing)


def _merge(pipe: Any, adapter: Adapter, allow_unmatched: bool) -> tuple[Fit, dict[str, torch.Tensor]]:
    """Merge one adapter. Returns its fit and the layers' weights before the merge.

    A layer that the merge leaves unchanged is an error.
    """
    fitted = lora.fit(pipe, adapter, allow_unmatched)
    before = {layer: _weight(pipe, layer).detach().clone() for layer in fitted.down}
    lora.merge(pipe, adapter)
    unchanged = [layer for layer, weight in before.items() if torch.equal(weight, _weight(pipe, layer))]
    if unchanged and adapter.weight:
        raise UserError(
            f"{len(unchanged)} of the {len(before)} layers of adapter {str(adapter.path)!r} did not change when it was "
            f"merged, first {unchanged[0]}",
            "Its factors are zero there, or diffusers ignores keys of this layout: export it again in one layout.",
        )
    return fitted, before


def _weight(pipe: Any, layer: str) -> torch.nn.Parameter:
    component, _, name = layer.partition(".")
    weight: torch.nn.Parameter = getattr(pipe, component).get_submodule(name).weight
    return weight
