"""The two full-precision arms of one pipeline: f0 (base) and f1 (base + adapter)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError, listed
from qcheck.model import lora
from qcheck.model.device import Device
from qcheck.model.family import Family
from qcheck.model.load import Base
from qcheck.model.lora import Adapter, Fit
from qcheck.model.stored import Weight, Weights, is_stored, place, weight_of
from qcheck.spec.arm import SIDES, Side

_EXACT = 1e-3
_ROUNDING = 1e-6  # of the largest singular value: what is below is float32's rounding


@dataclass(frozen=True)
class Arms:
    """The weights of both arms for one pipeline, which holds one arm at a time. Only ``changed`` layers are kept twice.

    ``base`` is in the memory of the processor, where artifacts are made; ``computing`` is the same pipeline on the
    device that computes, and the same object where that is the processor. ``adapters`` are merged into the adapted arm
    alone, ``common`` into both; ``shifted`` are the biases, and parameters of norms, that the adapters change, which
    nothing quantizes; ``unmatched`` names layers of the adapters that the base does not have, ``idle`` those
    of ``layers`` that keep the base's weight, as their factors are zero: some layers never get a gradient in training.
    """

    base: Base
    computing: Base
    adapters: tuple[Adapter, ...]
    common: tuple[Adapter, ...]
    layers: tuple[str, ...]
    changed: dict[Side, dict[str, Weight]]
    down: dict[str, torch.Tensor]
    unmatched: tuple[str, ...] = ()
    idle: frozenset[str] = frozenset()
    shifted: dict[Side, dict[str, torch.Tensor]] = field(default_factory=lambda: {"base": {}, "adapted": {}})

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
                for layer, weight in self.changed[side].items():
                    if pipeline is self.base or self._is_denoiser(layer):  # a copy has no text encoders
                        place(_layer(pipeline.pipe, layer), weight, pipeline.device.torch)
                for name, values in self.shifted[side].items():
                    if pipeline is self.base or self._is_denoiser(name):
                        _parameter(pipeline.pipe, name).data = values.to(pipeline.device.torch)
            yield pipeline.family

    @contextmanager
    def encoding(self, side: Side) -> Iterator[Family]:
        """As ``held``, with the text encoders on the device that computes, in its memory only until the block ends.

        Where its memory is too small they stay where they are.
        """
        with self.held(side) as family:
            if self.computing.family is family:
                yield family
                return
            try:
                there = family.encoding_on(self.device.torch)
            except torch.OutOfMemoryError:
                yield family
                return
            try:
                yield there
            finally:
                there.forget_encoders()
                self.device.release()

    @property
    def encode_alike(self) -> bool:
        """Whether the text encoders of both arms are the same."""
        return all(map(self._is_denoiser, (*self.layers, *self.shifted["adapted"])))

    @property
    def graphs_alike(self) -> bool:
        """Whether the denoisers of both arms differ in the weights of their layers alone."""
        return not any(map(self._is_denoiser, self.shifted["adapted"]))

    def _is_denoiser(self, layer: str) -> bool:
        return layer.startswith(f"{self.base.family.denoiser}.")

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

    def state(self, side: Side) -> Weights:
        """The denoiser's parameters and buffers in that arm, in float32, whichever arm the pipeline holds."""
        module, prefix = self.base.denoiser, f"{self.base.family.denoiser}."
        state = Weights(module.state_dict())
        stored = {name: weight_of(layer) for name, layer in module.named_modules() if is_stored(layer)}
        here = {layer.removeprefix(prefix): weight for layer, weight in self.changed[side].items()}
        values: dict[str, torch.Tensor | Callable[[], torch.Tensor]] = {
            f"{layer}.weight": weight.whole for layer, weight in {**stored, **here}.items()
        }
        values |= {name.removeprefix(prefix): value for name, value in self.shifted[side].items()}
        return state.replaced({name: value for name, value in values.items() if name in state})

    def denoiser_layers(self) -> list[str]:
        """The denoiser's layers that the adapter changes, by their name in the denoiser."""
        prefix = f"{self.base.family.denoiser}."
        return [layer.removeprefix(prefix) for layer in self.layers if self._is_denoiser(layer)]

    def active_layers(self) -> list[str]:
        """Those of ``denoiser_layers`` that are not idle."""
        return [layer for layer in self.denoiser_layers() if f"{self.base.family.denoiser}.{layer}" not in self.idle]

    def ranks(self) -> dict[str, int]:
        """The rank of the adapter at each of ``denoiser_layers``."""
        return {layer: len(self.down[f"{self.base.family.denoiser}.{layer}"]) for layer in self.denoiser_layers()}

    def factors(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``down`` [r, in, ...] and ``up`` [out, r] of a denoiser layer, with up @ down = its change of the weight.

        ``down`` stacks the files' factors. ``up`` is solved from the merged change, so it includes weight and alpha.

        Raises:
            UserError: the change is not of that rank, as DoRA's is not.
        """
        name = f"{self.base.family.denoiser}.{layer}"
        base, adapted = (self.changed[side][name].whole() for side in SIDES)
        change = (adapted.double() - base).flatten(1)
        down = self.down[name].double()
        solved = torch.linalg.lstsq(down.flatten(1).t(), change.t(), rcond=_ROUNDING, driver="gelsd")  # of least norm
        up = solved.solution.t()
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
        UserError: an adapter does not fit this base, or its merge left all of its layers unchanged.
    """
    unmatched: list[str] = []
    lora.require_stackable([*common, *adapters])
    for adapter in common:
        merged, fitted = _merged(base.pipe, {}, adapter, allow_unmatched)
        unmatched += fitted.unmatched
        for layer, weight in merged.items():
            place(_layer(base.pipe, layer), weight)
        if fitted.shifts:
            raise UserError(
                f"adapter {str(adapter.path)!r} of both arms changes biases or norms: {listed([*fitted.shifts])}",
                "Merge it into the base and give that base.",
            )
    shifted: dict[str, torch.Tensor] = {}
    after: dict[str, Weight] = {}
    down: dict[str, list[torch.Tensor]] = defaultdict(list)
    for adapter in adapters:
        merged, fitted = _merged(base.pipe, after, adapter, allow_unmatched)
        after |= merged
        unmatched += fitted.unmatched
        for name, values in fitted.shifts.items():
            before = shifted.get(name, _parameter(base.pipe, name).data)
            shifted[name] = before + adapter.weight * values
        for layer, factors in fitted.factors.items():
            down[layer].append(factors.down.float())
    layers = tuple(sorted(after))
    changed: dict[Side, dict[str, Weight]] = {
        "base": {layer: weight_of(_layer(base.pipe, layer)) for layer in layers},
        "adapted": {layer: after[layer] for layer in layers},
    }
    joined = {layer: torch.cat(down[layer]) for layer in layers}
    idle = frozenset(layer for layer in layers if _equal(*(changed[side][layer] for side in SIDES)))
    unshifted = {name: _parameter(base.pipe, name).data for name in shifted}
    return Arms(
        base=base,
        computing=base,
        adapters=tuple(adapters),
        common=tuple(common),
        layers=layers,
        changed=changed,
        down=joined,
        unmatched=tuple(unmatched),
        idle=idle,
        shifted={"base": unshifted, "adapted": shifted},
    )


def ranks_of(base: Base, adapter: Adapter, allow_unmatched: bool = False) -> dict[str, int]:
    """The rank of an adapter at each layer of the denoiser that it changes, without merging it.

    Raises:
        UserError: it does not fit this base, or changes more of the denoiser than layers.
    """
    prefix, fitted = f"{base.family.denoiser}.", lora.fit(base.pipe, adapter, allow_unmatched)
    if any(name.startswith(prefix) for name in fitted.shifts):
        raise unbindable(str(adapter.path))
    ranks = {layer: len(factors.down) for layer, factors in fitted.factors.items()}
    return {layer.removeprefix(prefix): rank for layer, rank in ranks.items() if layer.startswith(prefix)}


def unbindable(source: str) -> UserError:
    """The error for an adapter that cannot be inputs of a file: it has no input for what no layer's factors change."""
    return UserError(
        f"adapter {source!r} changes biases or norms of the denoiser, which are no inputs of a file that binds it",
        "Leave --order bound out.",
    )


def swapped(reference: Arms, adapters: Sequence[Adapter], allow_unmatched: bool = False) -> Arms:
    """The arms of the same base with other adapters; ``reference`` may be used no more, except where this fails.

    Raises:
        UserError: as ``apply``; the base is as it was.
    """
    with reference.running("base"), reference.held("base"):
        arms = apply(reference.base, adapters, (), allow_unmatched)
    return replace(arms, common=reference.common, computing=reference.computing)


def alike(reference: Arms, adapters: Sequence[Adapter]) -> Arms:
    """The arms of the same base with other adapters of the same layers, at full precision.

    Raises:
        UserError: as ``apply``, or they change other layers.
    """
    with reference.held("base"):
        arms = apply(reference.base, adapters, (), bool(reference.unmatched))
    ours, theirs = ({*one.layers, *one.shifted["adapted"]} for one in (arms, reference))
    if odd := sorted(ours ^ theirs):
        raise UserError(
            f"the adapter and its reference change other layers of the base: {len(odd)} differ, first {odd[0]}",
            "Give the adapter that it was calibrated from as --reference-lora.",
        )
    return replace(arms, common=reference.common, computing=reference.computing)


def _merged(
    pipe: Any, before: Mapping[str, Weight], adapter: Adapter, allow_unmatched: bool
) -> tuple[dict[str, Weight], Fit]:
    """The weights of an adapter's layers after its merge into ``before``, by default the pipeline's, and its fit.

    An adapter that leaves all of its layers unchanged is an error.
    """
    fitted, merged, changed = lora.fit(pipe, adapter, allow_unmatched), dict[str, Weight](), False
    for layer, factors in fitted.factors.items():
        weight = before.get(layer) or weight_of(_layer(pipe, layer))
        merged[layer] = weight.merged(factors, adapter.weight)
        changed = changed or not _equal(weight, merged[layer])
    if not (changed or any(values.any() for values in fitted.shifts.values())) and adapter.weight:
        raise UserError(
            f"none of the {len(merged)} layers of adapter {str(adapter.path)!r} changed when it was merged: "
            f"{listed([*merged, *fitted.shifts])}",
            "Its factors are zero: it was saved before it was trained, or nothing in it was trained.",
        )
    return merged, fitted


def _equal(one: Weight, other: Weight) -> bool:
    return torch.equal(one.whole(), other.whole())


def _parameter(pipe: Any, name: str) -> torch.nn.Parameter:
    component, _, parameter = name.partition(".")
    module: torch.nn.Module = getattr(pipe, component)
    return module.get_parameter(parameter)


def _layer(pipe: Any, name: str) -> torch.nn.Module:
    component, _, layer = name.partition(".")
    module: torch.nn.Module = getattr(pipe, component).get_submodule(layer)
    return module
