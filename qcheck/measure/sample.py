"""Samples of a measurement: one scalar of each probe, for the mean and its interval."""

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
