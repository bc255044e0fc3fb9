"""What each layer costs: inner products over samples, shares of the squared error, their standard errors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

_ARRAYS = ("states", "strata", "weights", "parts")


@dataclass(frozen=True)
class Scores:
    """<g, dW x> and <g, W dx> of every layer at every sample: ``parts`` [n, L, 2].

    A sample is one z at one state; ``states`` [n] number these, ``strata`` [n] are their timesteps as places in the
    set-up, ``weights`` [n] how much a sample counts: its stratum's squared solver coefficient among those there, all
    together 1.
    """

    layers: tuple[str, ...]
    states: np.ndarray
    strata: np.ndarray
    weights: np.ndarray
    parts: np.ndarray

    @cached_property
    def costs(self) -> np.ndarray:
        """Each layer's squared output error, weight and activation together, [L]."""
        found: np.ndarray = self.weights @ self.parts.sum(2) ** 2
        return found

    @property
    def total(self) -> float:
        """The sum of ``costs``; 1 where nothing costs anything."""
        return float(self.costs.sum()) or 1.0

    @property
    def shares(self) -> np.ndarray:
        """``costs`` as parts of their sum, [L]."""
        return self.costs / self.total

    @property
    def weight_costs(self) -> np.ndarray:
        """That of rounding weights alone, [L]. The two parts need not add up: their errors may point alike."""
        found: np.ndarray = self.weights @ self.parts[..., 0] ** 2
        return found

    @property
    def activation_costs(self) -> np.ndarray:
        """That of rounding inputs alone, [L]."""
        found: np.ndarray = self.weights @ self.parts[..., 1] ** 2
        return found

    @property
    def joint(self) -> float:
        """What all layers together cost to first order; beside the sum of ``costs`` it tells whether errors cancel."""
        return float(self.weights @ self.parts.sum((1, 2)) ** 2)

    def standard_errors(self) -> np.ndarray:
        """Of ``shares``, [L], over probes and draws: of many runs about 68 and 95 % are within 1 and 2 of the truth.

        A share is a ratio, so what counts is the spread of its residual, (cost - share * all costs) / total (Cochran,
        Sampling Techniques, section 6.3). Draws at one state are no samples of the states: the variance is that of the
        states' means, stratum by stratum, but not less than the draws say. For how few they are it is taken
        1 + 2 / df times, about the variance of Student's t, at Satterthwaite's degrees of freedom df.
        """
        squares = self.parts.sum(2) ** 2
        left = (squares - self.shares * squares.sum(1, keepdims=True)) / self.total
        within, between, doubt = np.zeros((3, len(self.layers)))
        for stratum in np.unique(self.strata):
            here = self.strata == stratum
            weight, states = self.weights[here].sum() ** 2, np.unique(self.states[here])
            spread = weight * _squared_error(np.stack([left[self.states == state].mean(0) for state in states]))
            within += weight * _squared_error(left[here])
            between += spread
            doubt += spread**2 / max(len(states) - 1, 1)
        scarce = np.divide(2 * doubt, between**2, out=np.zeros_like(doubt), where=between > 0)
        found: np.ndarray = np.sqrt(np.maximum(within, between * (1 + scarce)))
        return found

    def save(self, path: Path) -> None:
        """Write them as numpy's npz."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(path, layers=np.array(self.layers), **arrays)

    def by_stratum(self, count: int) -> np.ndarray:
        """Unweighted mean cost of each layer at each of ``count`` strata, [count, L]; NaN where no sample is."""
        squares = self.parts.sum(2) ** 2
        rows = [squares[self.strata == place] for place in range(count)]
        return np.stack([row.mean(0) if len(row) else np.full(len(self.layers), np.nan) for row in rows])

    def grouped(self, name: Callable[[str], str]) -> dict[str, float]:
        """Costs summed over the layers that ``name`` (``block``, ``kind``) calls the same, the largest first."""
        found: dict[str, float] = {}
        for layer, cost in zip(self.layers, self.costs, strict=True):
            found[name(layer)] = found.get(name(layer), 0.0) + float(cost)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def _squared_error(rows: np.ndarray) -> np.ndarray:
    """Of the mean of ``rows`` [n, L], which spread about 0: of a single row, that has no spread, its square."""
    found: np.ndarray = rows.var(0, ddof=1) / len(rows) if len(rows) > 1 else rows[0] ** 2
    return found


def block(layer: str) -> str:
    """The part of the denoiser a layer is in: "down_blocks.1", or its first name where no number follows."""
    parts = layer.split(".")
    places = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: places[0] + 1 if places and places[0] == 1 else 1])


def kind(layer: str) -> str:
    """What a layer does, the same in every block: the last two names without numbers ("attn1.to_q")."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:])


def load(path: Path) -> Scores:
    """What ``Scores.save`` wrote."""
    with np.load(path) as stored:
        return Scores(tuple(map(str, stored["layers"])), *(stored[name] for name in _ARRAYS))
