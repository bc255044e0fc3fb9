"""What each measurement is: data/measurements.toml as frozen values, and the limit that a number can be held to."""

import functools
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from qcheck.core.errors import unknown
from qcheck.core.values import DATA, Names, Value, as_tuple, read_toml
from qcheck.spec.arm import Arm

FILE = DATA / "measurements.toml"


class Limit(Value):
    """An allowed range, in the measurement's own unit; a side that is None is open."""

    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("a limit needs `low` or `high`")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("`low` is above `high`")
        return self

    def text(self) -> str:
        """The limit as a reader sees it: ``>= 8``, ``<= 3`` or ``0.8 .. 1.2``."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} .. {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}"

    def holds(self, low: float | None, high: float | None) -> bool:
        """Whether an interval lies inside, its ends included; what is not finite or not known does not."""
        if low is None or high is None:
            return False
        least = self.low if self.low is not None else -float("inf")
        most = self.high if self.high is not None else float("inf")
        return low >= least and high <= most


class Unit(Value):
    """A unit as report.json names it, and what is written behind a number: nothing for a bare ratio."""

    unit: str
    symbol: str


class Definition(Value):
    """One measurement. ``better`` is the good direction, "middle" between two limits; None where there is none.

    ``perfect`` is the number of an artifact that equals its reference, None where it is no constant. ``unit`` is what
    report.json says, ``symbol`` what is written behind a number where that differs, and ``beside`` both of arm "both"
    where it has others. ``digits`` are decimals in a table. ``needs_base``: the adapted arm's number compares with the
    quantized base too, as those of the other arms always do. ``column`` heads it where many cases are shown side by
    side; ``context`` shows it among the gated though nothing is held to it. ``faults`` are those of
    tests/faults.py that it must see.
    """

    name: str
    title: str
    sentence: str
    unit: str
    symbol: str | None = None
    beside: Unit | None = None
    digits: Annotated[int, Field(ge=0, le=9)]
    better: Literal["high", "low", "middle"] | None = None
    perfect: float | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=1), BeforeValidator(as_tuple)]
    needs_base: bool = False
    column: str | None = None
    context: bool = False
    faults: Names = ()

    def of(self, arm: Arm) -> Unit:
        """The unit of one arm's number."""
        if arm == "both" and self.beside is not None:
            return self.beside
        return Unit(unit=self.unit, symbol=self.unit if self.symbol is None else self.symbol)

    def compares(self, arm: Arm) -> bool:
        """Whether that arm's number needs the quantized base, q0."""
        return self.needs_base or arm != "adapted"


class Catalogue(Value):
    """The whole file, in the order in which a report lists its measurements."""

    name: str
    measurements: list[Definition]

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [defined.name for defined in self.measurements]
        if len(set(names)) != len(names):
            raise ValueError("a measurement is defined twice")
        return self


@functools.cache
def every() -> Mapping[str, Definition]:
    """All measurements of this version by name, in the file's order."""
    return {defined.name: defined for defined in read_toml(Catalogue, FILE).measurements}


def find(name: str) -> Definition:
    """The measurement of that name.

    Raises:
        UserError: there is none.
    """
    if name not in every():
        raise unknown("measurement", name, every())
    return every()[name]
