"""The forecast of what is left of an adapter's change of weights, from some outputs of every layer.

With D the adapter's change of a weight and s the quantizer's step there:

- merge-quantize, Q(W + D): W is as good as dither, so D arrives whole on average (survival 1) with noise of variance
  f (1 - f) s^2 a weight, f the fraction of |d| / s.
- quantize-merge, Q(Q(W) + D): W sits on the grid already, so d becomes s round(d / s): below half a step it is gone.
  The same holds for merge-quantize where the base was stored in the scheme's own format, as 16-bit bases are.
- unmerged: D arrives as it is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from qcheck.quantize import plan
from qcheck.quantize.plan import Grid
from qcheck.spec import order as orders
from qcheck.spec.order import Merged, Order
from qcheck.spec.scheme import Scheme


@dataclass(frozen=True)
class Rows:
    """Some outputs of a layer: their weights and the adapter's change [n, in, ...], and the layer's count of outputs.

    ``extreme`` [1, in, ...] is the output with the layer's largest weight, where all weights share one step. The factor
    that stored steps share is taken from these outputs: their last bits may differ from those of the whole layer.
    """

    before: torch.Tensor
    change: torch.Tensor
    outputs: int
    extreme: torch.Tensor | None = None

    def grid(self, scheme: Scheme, weight: torch.Tensor) -> Grid:
        """The grid of ``weight`` [n, in, ...], one of these outputs' before or after the change."""
        known = weight
        if self.extreme is not None and plan.has_one_step(weight, scheme):
            known = torch.cat([weight, self.extreme])
        return plan.make_layer(known, scheme, plan.Input(1.0)).weight


@dataclass(frozen=True)
class Arrived:
    """Expected <arrived, D>, |D|^2 and noise energy of the outputs [n] of a layer that has ``outputs`` of them."""

    projection: torch.Tensor
    energy: torch.Tensor
    noise: torch.Tensor
    outputs: int
    quantized: bool = True

    @property
    def share(self) -> float:
        """Outputs of the layer for each one here."""
        return self.outputs / len(self.energy)

    def variance(self, survival: float) -> float:
        """The variance of the layer's sum of <arrived, D> - survival |D|^2, which is 0 where no output is left out."""
        count = len(self.energy)
        if count == self.outputs:
            return 0.0
        spread = float((self.projection - survival * self.energy).double().var()) if count > 1 else math.inf
        return self.outputs**2 * (1 - count / self.outputs) * spread / count


@dataclass
class Total:
    """The sums of one forecast over layers; ``missing`` is |D|^2 of layers that the base does not have."""

    missing: float = 0.0
    layers: list[Arrived] = field(default_factory=list)

    def add(self, arrived: Arrived) -> None:
        """Add a layer."""
        self.layers.append(arrived)

    @property
    def quantized(self) -> int:
        """The number of layers that are quantized."""
        return sum(arrived.quantized for arrived in self.layers)

    @cached_property
    def energy(self) -> float:
        """|D|^2 of the layers."""
        return sum(a.share * float(a.energy.double().sum()) for a in self.layers)

    @cached_property
    def noise(self) -> float:
        """Expected energy of what arrives beside D."""
        return sum(a.share * float(a.noise.double().sum()) for a in self.layers)

    @cached_property
    def kept(self) -> float:
        """The share of D that arrives in the layers; 1 where there is no D."""
        projection = sum(a.share * float(a.projection.double().sum()) for a in self.layers)
        return projection / self.energy if self.energy else 1.0

    @property
    def _present(self) -> float:
        """The share of |D|^2 that is in the base."""
        whole = self.energy + self.missing
        return self.energy / whole if whole else 1.0

    @property
    def survival(self) -> float:
        """The share of D that arrives, of the missing layers nothing."""
        return self.kept * self._present

    @cached_property
    def error(self) -> float:
        """Standard error of ``survival`` against all outputs: a ratio estimate, layers are strata (Cochran, ch. 6)."""
        if not self.energy:
            return 0.0
        return self._present * math.sqrt(sum(a.variance(self.kept) for a in self.layers)) / self.energy

    @property
    def snr(self) -> float:
        """10 log10(|D|^2 / noise energy); infinite without noise."""
        return 10 * math.log10(self.energy / self.noise) if self.noise and self.energy else math.inf

    def far_from(self, limits: Iterable[float], errors: float) -> bool:
        """Whether survival is ``errors`` standard errors or more from every limit."""
        return not self.error or all(abs(self.survival - limit) >= errors * self.error for limit in limits)


def of_rows(scheme: Scheme, order: Order, rows: Rows) -> Arrived:
    """What arrives of a layer's change, under a scheme that quantizes the layer."""
    merged = orders.merge(order).merged
    weight = rows.before + rows.change if merged == "before" else rows.before
    if merged == "before":
        rounded = rows.grid(scheme, rows.before).fake(rows.before)
        merged = "after" if torch.equal(rounded, rows.before) else merged
    step = rows.change.new_zeros(1) if orders.merge(order).keeps_factors else rows.grid(scheme, weight).spacing(weight)
    projection, noise = arrival(rows.change, step, merged)
    return Arrived(projection, _by_output(rows.change.square()), noise, rows.outputs)


def intact(rows: Rows) -> Arrived:
    """A layer that is not quantized: all of it arrives."""
    energy = _by_output(rows.change.square())
    return Arrived(energy, energy, torch.zeros_like(energy), rows.outputs, quantized=False)


def arrival(change: torch.Tensor, step: torch.Tensor, merged: Merged) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected <arrived, D> and noise energy, by output [n], of a change of weights [n, in, ...].

    ``step`` is the quantizer's, at each weight: 0 where nothing is rounded, or where all weights are 0.
    """
    if merged in ("beside", "bound"):
        energy = _by_output(change.square())
        return energy, torch.zeros_like(energy)
    step = step.clamp(min=1e-30)
    ratio = change / step
    if merged == "after":
        rounded = torch.round(ratio) * step
        return _by_output(rounded * change), _by_output((rounded - change).square())
    fraction = ratio.abs() % 1
    return _by_output(change.square()), _by_output(fraction * (1 - fraction) * step.square())


def _by_output(values: torch.Tensor) -> torch.Tensor:
    """Sums [n] of values [n, in, ...]."""
    return values.flatten(1).sum(1)
