"""What a measurement returns: a scalar of each probe, from which the mean and its interval are made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qcheck.spec.arm import Arm

BROKEN = np.errstate(all="ignore")  # an arm that broke gives NaN, which every measurement keeps; no need to warn
EXACT = 200.0  # dB: equal in every bit of float32, written as a number so that it can be averaged


@dataclass(frozen=True)
class Sample:
    """A scalar of each probe, ``values`` [n]; or [n, k] for k ``places`` of which the ``worst`` mean counts.

    A value of the whole set comes as its ``pseudo_values``. The unit is the one of the measurement's definition.
    """

    name: str
    arm: Arm
    values: np.ndarray
    places: tuple[str, ...] = ()
    worst: Literal["lowest", "highest"] = "lowest"


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Jackknife pseudo-values [n, ...] of a statistic of a set of ``count`` probes, n >= 2 (Tukey 1958).

    ``statistic`` is asked for sets of probes by their indices. The mean of n T - (n - 1) T without i is T less its bias
    of order 1/n, and their spread is its standard error, so a value of the set is bounded like a mean of scalars.
    """
    every = np.arange(count)
    whole = statistic(every)
    found: np.ndarray = np.array([count * whole - (count - 1) * statistic(np.delete(every, i)) for i in every])
    return found


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one of them is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 10 * np.log10(power / against)
    return found
