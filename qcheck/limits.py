"""Limits: which measurement of which arm must lie where, and what it means when it does not."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from qcheck import files
from qcheck.files import Value, as_tuple
from qcheck.measurement import Arm, Measurement

FOLDER = files.PACKAGE / "data" / "limits"
Role = Literal["control", "reference", "absolute", "adapter"]


class Gate(Value):
    """The allowed range of one measurement; an open side is None."""

    name: str
    arm: Arm
    role: Role
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("a gate needs `low` or `high`")
        return self

    def text(self) -> str:
        """The limit as a reader sees it."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} .. {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}"

    def compare(self, seen: Measurement) -> Literal["pass", "fail", "undecided", "not measured"]:
        """Pass if the whole interval is inside, fail if all of it is beyond one side; a non-finite value fails."""
        if seen.value is None or seen.low is None or seen.high is None:
            return "not measured"
        if seen.value != seen.value or seen.low != seen.low:
            return "fail"
        low = self.low if self.low is not None else -float("inf")
        high = self.high if self.high is not None else float("inf")
        if seen.high < low or seen.low > high:
            return "fail"
        return "pass" if seen.low >= low and seen.high <= high else "undecided"


class Limits(Value):
    """Everything a verdict compares with."""

    name: str
    calibrated: bool
    probes: Annotated[int, Field(ge=2)]
    negligible_effect: Annotated[float, Field(gt=0)]
    tail: Annotated[tuple[float, float], BeforeValidator(as_tuple)]
    gates: Annotated[list[Gate], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(gate.name, gate.arm) for gate in self.gates]
        if len(set(keys)) != len(keys):
            raise ValueError("two gates on the same measurement and arm")
        return self


def find(name: str) -> Limits:
    """The limits of that name or file."""
    return files.find(Limits, FOLDER, name)
