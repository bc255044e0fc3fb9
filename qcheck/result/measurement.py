"""A measurement: value, unit, interval and place; it has no limit until it is judged."""

from typing import Literal

from qcheck.core.values import Number, Value
from qcheck.spec.arm import Arm
from qcheck.spec.measurement import Limit

Status = Literal["pass", "fail", "undecided", "not measured", "reported"]


class Measurement(Value):
    """One number with its one-sided confidence bounds ``low`` and ``high`` (95 % over all looks at a growing sample).

    ``p`` is the p-value of lying inside its limit, None where there is no limit or nothing was sampled. ``value`` None
    means not measured, for the reason in ``where``.
    """

    name: str
    arm: Arm
    unit: str
    value: Number | None
    low: Number | None = None
    high: Number | None = None
    p: Number | None = None
    where: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return self.value is not None


class Judged(Measurement):
    """A measurement with its limit, None where it has none, and the result of their comparison.

    One that ``warns`` has a limit and decides nothing.
    """

    limit: Limit | None = None
    status: Status = "reported"
    warns: bool = False

    @property
    def decides(self) -> bool:
        """Whether a verdict can rest on it."""
        return self.limit is not None and not self.warns


class NotMeasured(Value):
    """A measurement that a reader could expect and the report does not have, and why."""

    name: str
    reason: str
