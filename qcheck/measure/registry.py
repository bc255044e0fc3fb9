"""The table of measurements: each is one function, registered under its name in data/measurements.toml.

Measurements of a "look" are functions of one ``View`` of the four arms and return samples. Measurements of "control"
are called with the errors of a control run, measurements of the "end" once a case has its verdict.
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
    """The traces of one arm: rows of n probes, which are read from disk each time that they are iterated.

    At the T strata, evaluated at the reference's latents: ``outputs`` guided, [T, C, h, w]. Of the arm's own run:
    ``finals`` latents [C, h, w]; ``turns`` [calls - 1], 1 - cosine between outputs of neighbouring steps; ``lengths``
    [calls] of the steps and ``chord`` [1] from start to end; ``moments`` [calls + 1, 2, C], mean and variance by
    channel; ``apart`` [T], |x - x_f1| / |x_f1|, empty for the reference.
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
    """The traces of the four matched arms, and the values that measurements need beside them.

    ``floor`` [T] is the relative error power of rounding to the compute type at the T strata, ``timesteps`` and
    ``strata`` are their timesteps and step numbers. ``calibrated``: q1 holds an adapter that was calibrated on the
    quantized base.
    """

    f0: Run
    f1: Run
    q0: Run
    q1: Run
    floor: np.ndarray
    timesteps: tuple[float, ...]
    strata: tuple[int, ...]
    calibrated: bool = False
    _shared: dict[Callable[["View"], Any], Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, function: Callable[["View"], T]) -> T:
        """``function`` of this view, computed at the first call: several measurements share its value."""
        if function not in self._shared:
            self._shared[function] = function(self)
        value: T = self._shared[function]
        return value


FUNCTIONS: dict[str, tuple[When, Callable[..., Any]]] = {}


def measures(name: str, when: When = "look") -> Callable[[F], F]:
    """Register a function as the measurement ``name``, which must be defined."""

    def register(function: F) -> F:
        FUNCTIONS[measurement.find(name).name] = (when, function)
        return function

    return register


def samples(view: View) -> list[Sample]:
    """The samples of every measurement of a look, in the order of the definitions.

    Raises:
        ValueError: a function returned other samples than its definition names, which is a bug.
    """
    collected: list[Sample] = []
    for name, definition in measurement.every().items():
        when, function = FUNCTIONS.get(name, ("end", None))
        if when != "look" or function is None:
            continue
        measured: list[Sample] = function(view)
        if [(sample.name, sample.arm) for sample in measured] != [(name, arm) for arm in definition.arms]:
            raise ValueError(f"{name} gave {[(s.name, s.arm) for s in measured]}, expected arms {definition.arms}")
        collected += measured
    return collected
