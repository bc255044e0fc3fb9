"""Input ranges: one streaming pass counts the inputs of every layer; any method then reads its clip from the counts.

Memory is one histogram a layer and stratum of timesteps, whatever the number of samples.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import rel_entr

from qcheck.core.errors import UserError
from qcheck.quantize import formats
from qcheck.quantize.formats import Format, Integer
from qcheck.quantize.plan import Input
from qcheck.spec.recipe import Merge, Method, Recipe

Name = TypeVar("Name", bound=str)
BINS = 2048
_SAMPLED = 8192  # evenly spaced values of one input that are counted; the maximum is over all values


@dataclass(frozen=True)
class LayerInputs:
    """Statistics of one layer's inputs: the absolute maximum, and ``counts`` [T, BINS] of |x| from 0 to ``top``.

    T is the number of strata of timesteps that are counted separately.
    """

    absmax: float
    counts: np.ndarray
    top: float

    def clip(self, method: Method, number: Format, percentile: float, merge: Merge = "pooled") -> float:
        """The absolute value that maps to the largest code; a static range is the same for all timesteps.

        ``merge`` "pooled" counts all strata together. Else each stratum is cut by itself, and the layer gets the
        largest of these cuts ("max") or the one that loses the smallest share of the strata's energies ("mse").

        Raises:
            UserError: "entropy" for a format that is no integer.
        """
        if method == "max" or not self.counts.any() or not math.isfinite(self.absmax):
            return self.absmax
        if merge == "pooled":
            return min(self._cut(self.counts.sum(0), method, number, percentile), self.absmax)
        strata = self.counts[self.counts.any(1)]
        cuts = [min(self._cut(counts, method, number, percentile), self.absmax) for counts in strata]
        if merge == "max":
            return max(cuts)
        shares = self._lost_energy(strata, np.array(cuts), number) / (strata @ self._centres() ** 2)[:, None]
        return cuts[int(shares.sum(0).argmin())]

    def _cut(self, counts: np.ndarray, method: Method, number: Format, percentile: float) -> float:
        width = self.top / BINS
        if method == "percentile":
            below = np.cumsum(counts) / counts.sum()
            return float((np.searchsorted(below, percentile / 100) + 1) * width)
        if method == "mse":  # the one of 200 clips with the least squared error
            most = min((int(np.flatnonzero(counts)[-1]) + 1) * width, self.absmax)
            clips = np.linspace(0.05, 1.0, 200) * most
            return float(clips[self._lost_energy(counts, clips, number).argmin()])
        if not isinstance(number, Integer):
            raise UserError(
                f"ranges by entropy are defined for integers, not for {number.name}",
                'Use method = "mse", "percentile" or "max" in the recipe.',
            )
        return _least_divergence(counts, number.limit + 1) * width

    def _lost_energy(self, counts: np.ndarray, clips: np.ndarray, number: Format) -> np.ndarray:
        """Squared rounding error of the values of ``counts`` [..., BINS] under each of ``clips``, [..., clips]."""
        steps = torch.from_numpy(clips / number.limit)[:, None]
        values = torch.from_numpy(self._centres()).expand(len(clips), BINS)
        errors = formats.dequantize(formats.quantize(values, steps, number), steps) - values
        energies: np.ndarray = counts @ errors.square().numpy().T
        return energies

    def _centres(self) -> np.ndarray:
        """The middle of every bin, [BINS]."""
        return (np.arange(BINS) + 0.5) * (self.top / BINS)


def _least_divergence(counts: np.ndarray, levels: int) -> int:
    """The number of bins to keep so that ``levels`` levels diverge least (Kullback-Leibler) from the clipped counts.

    Migacz, 8-bit inference with TensorRT (GTC 2017): the counts above the cut are added to the last bin of the
    reference, and each level's count is spread over those of its bins that were not empty.
    """
    best, least = len(counts), math.inf
    for bins in range(levels, len(counts) + 1, levels // 16):
        reference = counts[:bins].copy()
        filled = reference > 0
        edges = (np.arange(levels) * bins) // levels
        totals = np.add.reduceat(reference, edges)
        members = np.add.reduceat(filled.astype(np.float64), edges)
        spread = np.repeat(totals / np.maximum(members, 1), np.diff(np.append(edges, bins))) * filled
        reference[-1] += counts[bins:].sum()
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
        divergence = float(rel_entr(p, q).sum())  # infinite where the cut counts fall into an empty last bin
        if divergence < least:
            best, least = bins, divergence
    return best


@dataclass(frozen=True)
class _Pending:
    """An input that is not counted yet: its layers and stratum, and its maximum and sampled values on their device."""

    layers: list[str]
    stratum: int
    maximum: torch.Tensor
    sample: torch.Tensor


class Histogram:
    """Running counts of each observed layer's absolute inputs, by stratum of timesteps.

    A value beyond the top doubles it, and neighbouring bins are joined: counts stay exact, the bins become wider.
    Inputs are counted many at a time, since a GPU has to stop for each value that is read from it. It is an observer of
    inputs (``model.inputs``).
    """

    def __init__(self, strata: int = 1) -> None:
        self._strata, self._stratum = strata, 0
        self._absmax: dict[str, float] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._top: dict[str, float] = {}
        self._last: torch.Tensor | None = None
        self._pending: list[_Pending] = []
        self._current: list[_Pending] = []
        self._samples = 0

    def enter(self, stratum: int) -> None:
        """Count the inputs that follow for ``stratum``."""
        self._count_pending()
        self._stratum = stratum

    def begin(self) -> None:
        """As ``Observer``."""
        self._samples -= len(self._current)
        self._current, self._last = [], None

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """Count one batch of inputs of ``layer``; neighbours that read one tensor share its sample."""
        if self._last is not inputs:
            self._last = inputs
            self._current.append(self._sampled(inputs))
        self._current[-1].layers.append(layer)

    def commit(self) -> None:
        """As ``Observer``."""
        self._pending += self._current
        self._current, self._last = [], None

    def _sampled(self, inputs: torch.Tensor) -> _Pending:
        low, high = torch.aminmax(inputs)
        values = inputs.flatten()
        stride = max(1, len(values) // _SAMPLED)
        while math.gcd(stride, len(values)) > 1:  # else some channels would never be sampled
            stride += 1
        self._samples += 1
        sample = values[self._samples % stride :: stride].abs()
        return _Pending([], self._stratum, torch.maximum(-low, high), sample)

    def _count_pending(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        maxima = torch.stack([one.maximum for one in pending]).tolist()
        together = torch.cat([one.sample for one in pending]).cpu()
        samples = torch.split(together, [len(one.sample) for one in pending])
        for one, maximum, sample in zip(pending, maxima, samples, strict=True):
            for layer in one.layers:
                self._count(layer, one.stratum, maximum, sample)

    def _count(self, layer: str, stratum: int, maximum: float, sample: torch.Tensor) -> None:
        """Count an input's sampled values; the maximum stays NaN or infinite once it is."""
        previous = self._absmax.get(layer, 0.0)
        self._absmax[layer] = maximum if maximum > previous or math.isnan(maximum) else previous
        if not math.isfinite(maximum) or maximum == 0:
            return
        top = self._top.setdefault(layer, maximum)
        counts = self._counts.setdefault(layer, self._empty())
        while top < maximum:
            top *= 2
            counts[:, : BINS // 2], counts[:, BINS // 2 :] = counts.view(len(counts), -1, 2).sum(2), 0
        self._top[layer] = top
        places = (sample * (BINS / top)).to(torch.int32).clamp_(max=BINS - 1)
        counts[stratum] += torch.bincount(places, minlength=BINS)

    def _empty(self) -> torch.Tensor:
        return torch.zeros(self._strata, BINS, dtype=torch.float64)

    def seen(self) -> dict[str, LayerInputs]:
        """The statistics of every layer's inputs so far."""
        self._count_pending()
        return {
            layer: LayerInputs(
                maximum, self._counts.get(layer, self._empty()).numpy().copy(), self._top.get(layer, 0.0)
            )
            for layer, maximum in self._absmax.items()
        }


def clips(layers: Mapping[str, LayerInputs], numbers: Mapping[str, Format], recipe: Recipe) -> dict[str, Input]:
    """The range of every layer's input: by the recipe's method for its number format, the maximum where it has none."""
    return {
        layer: Input(
            inputs.clip(recipe.method, numbers[layer], recipe.percentile, recipe.merge)
            if layer in numbers
            else inputs.absmax
        )
        for layer, inputs in layers.items()
    }


def save(histograms: Mapping[Name, Mapping[str, LayerInputs]], folder: Path) -> None:
    """Write the statistics, one file for each name."""
    for name, layers in histograms.items():
        numbers = {layer: {"absmax": inputs.absmax, "top": inputs.top} for layer, inputs in layers.items()}
        counts = {layer: inputs.counts for layer, inputs in layers.items()}
        save_file(counts, folder / f"{name}.safetensors", metadata={"seen": json.dumps(numbers)})


def load(folder: Path, name: str) -> dict[str, LayerInputs]:
    """Read the statistics that were saved under ``name``."""
    with safe_open(folder / f"{name}.safetensors", "np") as stream:
        numbers = json.loads(stream.metadata()["seen"])
        return {layer: LayerInputs(counts=stream.get_tensor(layer), **ranges) for layer, ranges in numbers.items()}


def save_inputs(layers: Mapping[str, Input], folder: Path) -> None:
    """Write the smoothing factors and the input ranges after smoothing."""
    cuts = {layer: inputs.cut for layer, inputs in layers.items()}
    factors = {layer: inputs.smooth.numpy() for layer, inputs in layers.items() if inputs.smooth is not None}
    save_file(factors, folder / _FACTORS, metadata={"cuts": json.dumps(cuts)})


def load_inputs(folder: Path) -> dict[str, Input]:
    """Read the inputs that ``save_inputs`` wrote."""
    with safe_open(folder / _FACTORS, "pt") as stream:
        cuts = json.loads(stream.metadata()["cuts"])
        return {layer: Input(cut, stream.get_tensor(layer)) for layer, cut in cuts.items()}


_FACTORS = "factors.safetensors"
