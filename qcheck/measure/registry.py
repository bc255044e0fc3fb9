"""The table of measurements: each is one function, registered under its name in data/measurements.toml.

Those of every look are functions of one ``View`` of the four arms and return their samples. Those of "control" are
called by who holds a control's trace, those of the "end" once a case has its verdict.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from qcheck.measure.sample import Sample
from qcheck.spec import measurement

Rows = Iterable[np.ndarray]
When = Literal["look", "control", "end"]
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What one arm left behind: rows of n probes each, read when they are iterated, as often as they are.

    At the T strata, asked at the reference's latents: ``outputs`` guided, [T, C, h, w]. Of its own free run: ``finals``
    latents [C, h, w]; ``turns`` [calls - 1], 1 - cosine between outputs of neighbouring steps; ``lengths`` [calls] of
    the steps and ``chord`` [1] from start to end; ``moments`` [calls + 1, 2, C], mean and variance by channel;
    ``apart`` [T], |x - x_f1| / |x_f1|, empty for the reference.
    """

    outputs: Rows
    finals: Rows
    turns: Rows
    lengths: Rows
    chord: Rows
    moments: Rows
    apart: Rows = ()


@dataclass(frozen=True, eq=False)
class View:
    """The four matched arms, and what measurements need beside them.

    ``weights`` [T] are the strata's, ``floor`` [T] the relative error power that the compute type makes anyway,
    ``timesteps`` and ``strata`` name the T strata, the latter by the number of their step. ``calibrated``: q1 holds an
    adapter that was calibrated on the quantized base.
    """

    f0: Run
    f1: Run
    q0: Run
    q1: Run
    weights: np.ndarray
    floor: np.ndarray
    timesteps: tuple[float, ...]
    strata: tuple[int, ...]
    calibrated: bool = False
    _kept: dict[Callable[["View"], Any], Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, make: Callable[["View"], T]) -> T:
        """What ``make`` gives of this view, computed when it is first asked for: several measurements share it."""
        if make not in self._kept:
            self._kept[make] = make(self)
        found: T = self._kept[make]
        return found


FUNCTIONS: dict[str, tuple[When, Callable[..., Any]]] = {}


def measures(name: str, when: When = "look") -> Callable[[F], F]:
    """Register a function as the measurement of that name, which must be defined."""

    def kept(function: F) -> F:
        FUNCTIONS[measurement.find(name).name] = (when, function)
        return function

    return kept


def samples(view: View) -> list[Sample]:
    """The samples of every measurement that is taken at each look, in the order of the definitions.

    Raises:
        ValueError: a function returned what its definition does not name, which is a bug.
    """
    found: list[Sample] = []
    for name, defined in measurement.every().items():
        when, function = FUNCTIONS.get(name, ("end", None))
        if when != "look" or function is None:
            continue
        taken: list[Sample] = function(view)
        if [(sample.name, sample.arm) for sample in taken] != [(name, arm) for arm in defined.arms]:
            raise ValueError(f"{name} gave {[(s.name, s.arm) for s in taken]}, expected arms {defined.arms}")
        found += taken
    return found
