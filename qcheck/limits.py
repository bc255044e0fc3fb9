"""Limits: which measurement of which arm must lie where, and what it means when it does not."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from qcheck import files
from qcheck.files import Value
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
    probes: int
    negligible_effect: float
    tail: Annotated[tuple[float, float], BeforeValidator(lambda seen: tuple(seen) if isinstance(seen, list) else seen)]
    gates: list[Gate]


def find(name: str) -> Limits:
    """The limits of that name or file."""
    return files.find(Limits, FOLDER, name)
