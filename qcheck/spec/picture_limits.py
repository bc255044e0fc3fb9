"""Limits of what pictures alone can tell."""

from typing import Annotated

from pydantic import Field

from qcheck.core.values import DATA, Value, named
from qcheck.spec.limits import Gate, Limits

FOLDER = DATA / "pictures"


class PictureLimits(Value):
    """The gates, the ``least`` number of pairs that decides, and ``alpha``, the error of the only look.

    ``grounds`` is the justification of the limits in words, for the report.
    """

    name: str
    grounds: str
    least: Annotated[int, Field(ge=2)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    gates: Annotated[list[Gate], Field(min_length=1)]

    @property
    def limits(self) -> Limits:
        """As a verdict takes them: one look, and no tail, since one picture's style is told too roughly."""
        return Limits(
            name=self.name,
            grounds=self.grounds,
            looks=(self.least,),
            alpha=self.alpha,
            negligible_effect=1e-9,
            tail=(0.0, 1.0),
            bad_share=0.0,
            gates=self.gates,
        )


def find(name: str) -> PictureLimits:
    """The limits of that name or file."""
    return named(PictureLimits, FOLDER, name)
