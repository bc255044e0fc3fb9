"""The words for a forecast survival, and their limits."""

import functools
from typing import Annotated, Literal

from pydantic import Field

from qcheck.core.values import DATA, Value, read_toml

FILE = DATA / "fates.toml"
Fate = Literal["does nothing", "loses it", "partly", "arrives"]
_Share = Annotated[float, Field(ge=0, le=1)]


class Fates(Value):
    """Survival below ``nothing``, ``lost`` and ``arrives`` gets the first three words; ``grounds`` is their source."""

    name: str
    grounds: str
    nothing: _Share
    lost: _Share
    arrives: _Share

    @property
    def limits(self) -> tuple[float, float, float]:
        """The limits from low to high."""
        return self.nothing, self.lost, self.arrives

    def of(self, survival: float) -> Fate:
        """The word for a survival."""
        if survival < self.nothing:
            return "does nothing"
        return "loses it" if survival < self.lost else "partly" if survival < self.arrives else "arrives"


@functools.cache
def fates() -> Fates:
    """The limits that ship with qcheck."""
    return read_toml(Fates, FILE)
