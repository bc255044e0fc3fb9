"""What a verdict was computed from: numbers of each probe, so that it can be computed again without a model."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Number, Value
from qcheck.spec.arm import Arm, Side

Rows = list[list[Number]]


class Values(Value):
    """The values of one measurement of one arm, by probe [n, k]; k is 1, or the number of ``places``.

    Of several places the ``worst`` mean counts.
    """

    name: str
    arm: Arm
    places: list[str] = Field(default_factory=list)
    worst: Literal["lowest", "highest"] = "lowest"
    rows: Rows


class ControlRun(Value):
    """A run of f1 another way: its relative error power at K of the strata, their indices and timesteps, all [K]."""

    name: str
    error: list[Number]
    places: list[int]
    timesteps: list[Number]


class Basis(Value):
    """The numbers of the look that decided, n probes at T strata.

    ``samples`` are those of the measurements that can have a limit, ``reported`` those of all others.
    ``classifier`` are the scores of classifier_auc by arm, [2, n]. ``energies`` are the sums of squares [n, T] that
    ``device.effect`` names, empty where f1 itself is broken; ``floor`` [T] is the relative error power of the compute
    type. ``weakened`` is the survival [n] at a share of the adapter's weight, by that share, and ``another_seed`` the
    distance that another seed makes, by arm: each holds what was asked for.
    """

    samples: list[Values]
    reported: list[Values] = Field(default_factory=list)
    classifier: dict[Side, Rows] = Field(default_factory=dict)
    energies: dict[str, Rows] = Field(default_factory=dict)
    floor: list[Number] = Field(default_factory=list)
    controls: list[ControlRun] = Field(default_factory=list)
    weakened: dict[str, list[Number]] = Field(default_factory=dict)
    another_seed: dict[Side, Number] = Field(default_factory=dict)
