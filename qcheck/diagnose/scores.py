"""The cost of each layer: inner products over samples, shares of the squared error, and their standard errors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

_ARRAYS = ("states", "strata", "weights", "parts")


@dataclass(frozen=True)
class Scores:
    """<g, dW x> and <g, W dx> of every layer at every sample: ``parts`` [n, L, 2].

    A sample is one z at one state. ``states`` [n] is the number of its state, ``strata`` [n] the index of its stratum
    in the set-up. ``weights`` [n] is its stratum's squared solver coefficient, divided among the samples of the
    stratum and normalised to sum 1.
    """

    layers: tuple[str, ...]
    states: np.ndarray
    strata: np.ndarray
    weights: np.ndarray
    parts: np.ndarray

    @cached_property
    def costs(self) -> np.ndarray:
        """Each layer's squared output error, of weight and activation together, [L]."""
        costs: np.ndarray = self.weights @ self.parts.sum(2) ** 2
        return costs

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
        """The cost of rounding weights alone, [L]; the two parts need not add up to ``costs``: errors may correlate."""
        costs: np.ndarray = self.weights @ self.parts[..., 0] ** 2
        return costs

    @property
    def activation_costs(self) -> np.ndarray:
        """The cost of rounding inputs alone, [L]."""
        costs: np.ndarray = self.weights @ self.parts[..., 1] ** 2
        return costs

    @property
    def joint(self) -> float:
        """The cost of all layers together to first order; less than the sum of ``costs`` where errors cancel."""
        return float(self.weights @ self.parts.sum((1, 2)) ** 2)

    def standard_errors(self) -> np.ndarray:
        """Standard errors of ``shares``, [L], over probes and draws.

        About 68 and 95 % of many runs are within 1 and 2 standard errors of the truth. A share is a ratio, so its error
        is the spread of its residual, (cost - share * all costs) / total (Cochran, Sampling Techniques, section 6.3).
        Draws at one state are not independent samples of the states: the variance is that of the states' means, stratum
        by stratum, but at least that of the draws. As the states are few, it is multiplied by 1 + 2 / df, about the
        variance of Student's t, with Satterthwaite's degrees of freedom df.
        """
        squares = self.parts.sum(2) ** 2
        residuals = (squares - self.shares * squares.sum(1, keepdims=True)) / self.total
        within, between, doubt = np.zeros((3, len(self.layers)))
        for stratum in np.unique(self.strata):
            here = self.strata == stratum
            weight, states = self.weights[here].sum() ** 2, np.unique(self.states[here])
            spread = weight * _squared_error(np.stack([residuals[self.states == state].mean(0) for state in states]))
            within += weight * _squared_error(residuals[here])
            between += spread
            doubt += spread**2 / max(len(states) - 1, 1)
        scarce = np.divide(2 * doubt, between**2, out=np.zeros_like(doubt), where=between > 0)
        errors: np.ndarray = np.sqrt(np.maximum(within, between * (1 + scarce)))
        return errors

    def save(self, path: Path) -> None:
        """Write the scores as numpy's npz."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(path, layers=np.array(self.layers), **arrays)

    def by_stratum(self, count: int) -> np.ndarray:
        """Unweighted mean cost of each layer at each of ``count`` strata, [count, L]; NaN where there is no sample."""
        squares = self.parts.sum(2) ** 2
        rows = [squares[self.strata == place] for place in range(count)]
        return np.stack([row.mean(0) if len(row) else np.full(len(self.layers), np.nan) for row in rows])

    def grouped(self, name: Callable[[str], str]) -> dict[str, float]:
        """Costs summed over the layers with the same ``name`` (by ``block`` or ``kind``), the largest first."""
        groups: dict[str, float] = {}
        for layer, cost in zip(self.layers, self.costs, strict=True):
            groups[name(layer)] = groups.get(name(layer), 0.0) + float(cost)
        return dict(sorted(groups.items(), key=lambda item: -item[1]))


def _squared_error(rows: np.ndarray) -> np.ndarray:
    """Squared standard error of the mean of ``rows`` [n, L], whose expectation is 0; the square of a single row."""
    squared_error: np.ndarray = rows.var(0, ddof=1) / len(rows) if len(rows) > 1 else rows[0] ** 2
    return squared_error


def block(layer: str) -> str:
    """The block of the denoiser that holds a layer: "down_blocks.1", or its first name where no number follows."""
    parts = layer.split(".")
    places = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: places[0] + 1 if places and places[0] == 1 else 1])


def kind(layer: str) -> str:
    """The function of a layer, named alike in every block: the last two names without numbers ("attn1.to_q")."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:])


def load(path: Path) -> Scores:
    """Read the scores that ``Scores.save`` wrote."""
    with np.load(path) as stored:
        return Scores(tuple(map(str, stored["layers"])), *(stored[name] for name in _ARRAYS))
