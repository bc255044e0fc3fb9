"""Inner products, ratios and pseudo-values of arrays."""

from __future__ import annotations

from typing import Callable, Iterable

import numpy as np

Rows = Iterable[np.ndarray]


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products [T] of rows [T, ...]."""
    products: np.ndarray = np.einsum("te,te->t", a.reshape(len(a), -1), b.reshape(len(b), -1))
    return products


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Jackknife pseudo-values [n, ...] of a statistic of a set of ``count`` probes, n >= 2 (Tukey 1958).

    ``statistic`` is called with the indices of a set of probes. The mean of n T - (n - 1) T without i is T less its
    bias of order 1/n, and their spread is its standard error, so a value of the set is bounded like a mean of scalars.
    """
    indices = np.arange(count)
    full = statistic(indices)
    values: np.ndarray = np.array([count * full - (count - 1) * statistic(np.delete(indices, i)) for i in indices])
    return values


def relative(final: Rows, against: Rows) -> np.ndarray:
    """|x_q - x_f| / |x_f| [n] of final latents, n of any shape."""
    norms = [(np.linalg.norm(np.float64(q) - f), np.linalg.norm(np.float64(f))) for q, f in zip(final, against)]
    return np.array([error / size if size else np.nan for error, size in norms])


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = 10 * np.log10(power / against)
    return ratio
