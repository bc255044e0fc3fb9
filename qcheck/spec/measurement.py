"""Definitions of the measurements (data/measurements.toml) as frozen values, and the limit of a number."""

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
        """Whether an interval lies inside, its ends included; False for an end that is None or not finite."""
        if low is None or high is None:
            return False
        least = self.low if self.low is not None else -float("inf")
        most = self.high if self.high is not None else float("inf")
        return low >= least and high <= most


def beside(value: float, limit: Limit | None, form: str) -> str:
    """``value`` in ``form`` (``.3g``, ``.2f``), with more digits where it would be rounded onto a limit or past it."""
    ends = [] if limit is None else [end for end in (limit.low, limit.high) if end is not None]
    digits, kind = int(form[1:-1]), form[-1]
    texts = (f"{value:.{more}{kind}}" for more in range(digits, max(digits, _DIGITS) + 1))
    return next(
        (text for text in texts if all(_side(float(text), end) == _side(value, end) for end in ends)), repr(value)
    )


_DIGITS = 17  # tell any two numbers apart


def _side(value: float, end: float) -> int:
    return (value > end) - (value < end)


class Unit(Value):
    """A unit's name in report.json, and the symbol behind a number, which is empty for a ratio."""

    unit: str
    symbol: str


class Definition(Value):
    """One measurement. ``better`` is the good direction, "middle" between two limits; None where there is none.

    ``perfect`` is the number of an artifact that equals its reference, None where it is no constant. ``unit`` is the
    name in report.json, ``symbol`` the text behind a number where it differs, and ``beside`` is the unit of arm "both"
    where it has another. ``worst_place`` says which of several places counts. ``digits`` are decimals in a table.
    ``needs_base``: the adapted arm's number needs the quantized base too, as the numbers of the other arms always do.
    ``column`` is its heading in tables of many cases; ``context`` lists it among the gated measurements although it has
    no limit. ``faults`` are the faults of tests/faults.py that it must detect.
    """

    name: str
    title: str
    sentence: str
    unit: str
    symbol: str | None = None
    beside: Unit | None = None
    digits: Annotated[int, Field(ge=0, le=9)]
    better: Literal["high", "low", "middle"] | None = None
    worst_place: Literal["lowest", "highest"] | None = None
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
        names = [definition.name for definition in self.measurements]
        if len(set(names)) != len(names):
            raise ValueError("a measurement is defined twice")
        return self


@functools.cache
def every() -> Mapping[str, Definition]:
    """All measurements of this version by name, in the file's order."""
    return {definition.name: definition for definition in read_toml(Catalogue, FILE).measurements}


def find(name: str) -> Definition:
    """The measurement of that name.

    Raises:
        UserError: there is none.
    """
    if name not in every():
        raise unknown("measurement", name, every())
    return every()[name]
