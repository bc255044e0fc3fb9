"""The limits beyond which an adapter in training is called overcooked."""

import functools
from typing import Annotated, Literal

from pydantic import Field

from qcheck.core.values import DATA, Value, read_toml
from qcheck.spec.measurement import Limit

FILE = DATA / "growth.toml"
State = Literal["healthy", "faint", "overcooked", "unread"]
_Positive = Annotated[float, Field(gt=0)]


class Growth(Value):
    """The most that is healthy: ``change`` is |D| / |W|, ``intruders`` a layer; ``grounds`` say where they are from."""

    name: str
    grounds: str
    change: _Positive
    intruders: _Positive

    def beyond(self, change: float, intruders: float | None) -> list[str]:
        """Why a change of the weights is overcooked; empty where it is not. Intruders that are None were not counted.

        A change that is not finite is beyond every limit.
        """
        reasons = []
        if not change <= self.change:
            reasons.append(f"its change is {change:.2g} of the weights, above {self.change:g}")
        if intruders is not None and not intruders <= self.intruders:
            reasons.append(f"{intruders:.1f} intruder dimensions a layer, above {self.intruders:g}")
        return reasons

    def limit(self, name: Literal["change", "intruders"]) -> Limit:
        """The allowed range of one of the two."""
        return Limit(high=self.change if name == "change" else self.intruders)


@functools.cache
def growth() -> Growth:
    """The limits that ship with qcheck."""
    return read_toml(Growth, FILE)
