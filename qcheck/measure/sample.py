"""Samples of a measurement: one scalar of each probe, for the mean and its interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qcheck.spec.arm import Arm

BROKEN = np.errstate(all="ignore")  # a broken arm gives NaN, which every measurement propagates without a warning
EXACT = 200.0  # dB for values equal in every bit of float32: a finite number, so that it can be averaged


@dataclass(frozen=True)
class Sample:
    """A scalar of each probe, ``values`` [n]; or [n, k] for k ``places`` of which the ``worst`` mean counts.

    A value of the whole set is given by its ``pseudo_values``. The unit is that of the measurement's definition.
    """

    name: str
    arm: Arm
    values: np.ndarray
    places: tuple[str, ...] = ()
    worst: Literal["lowest", "highest"] = "lowest"


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Jackknife pseudo-values [n, ...] of a statistic of a set of ``count`` probes, n >= 2 (Tukey 1958).

    ``statistic`` is called with the indices of a set of probes. The mean of n T - (n - 1) T without i is T less its
    bias of order 1/n, and their spread is its standard error, so a value of the set is bounded like a mean of scalars.
    """
    indices = np.arange(count)
    full = statistic(indices)
    values: np.ndarray = np.array([count * full - (count - 1) * statistic(np.delete(indices, i)) for i in indices])
    return values


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = 10 * np.log10(power / against)
    return ratio
