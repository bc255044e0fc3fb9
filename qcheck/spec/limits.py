"""Limits: which measurement of which arm must lie where, and what it means when it does not."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from qcheck.core.errors import UserError
from qcheck.core.values import DATA, Value, as_tuple, named
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.measurement import Limit

FOLDER = DATA / "limits"
Role = Literal["control", "reference", "absolute", "adapter", "warning"]


class Gate(Limit):
    """The limit of one measurement of one arm. ``compute`` names the only type it is for.

    A name that is no measurement, or an arm that the measurement does not have, is an error: a gate that nothing can
    meet would make every verdict INVALID.
    """

    name: str
    arm: Arm
    role: Role
    compute: str | None = None

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        try:
            arms = measurement.find(self.name).arms
        except UserError as error:
            raise ValueError(f"{error.what}. {error.fix}") from error
        if self.arm not in arms:
            raise ValueError(f"{self.name} is measured of {', '.join(arms)}, not of {self.arm}")
        return self

    @property
    def limit(self) -> Limit:
        """The range alone."""
        return Limit(low=self.low, high=self.high)


class Limits(Value):
    """Everything a verdict compares with.

    Probes are added until there is a verdict: ``looks`` are their numbers, ``alpha`` the one-sided error of each look.
    ``grounds`` says in words what the limits rest on; every report repeats it.
    """

    name: str
    grounds: str
    looks: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), BeforeValidator(as_tuple)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    negligible_effect: Annotated[float, Field(gt=0)]
    tail: Annotated[tuple[float, float], BeforeValidator(as_tuple)]
    gates: Annotated[list[Gate], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(gate.name, gate.arm, gate.compute) for gate in self.gates]
        if len(set(keys)) != len(keys) or any((*key[:2], None) in keys for key in keys if key[2]):
            raise ValueError("two gates on the same measurement and arm")
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError("`looks` must increase")
        return self

    @property
    def ranges(self) -> dict[tuple[str, Arm], Limit]:
        """The limit of every measurement and arm that has one."""
        return {(gate.name, gate.arm): gate.limit for gate in self.gates}

    def computing(self, compute: str) -> "Limits":
        """The limits of a scheme that computes in that type."""
        return self.model_copy(update={"gates": [g for g in self.gates if g.compute in {None, compute}]})

    def alone(self) -> "Limits":
        """The limits of an artifact that came without its base: no q0 to compare with, no export of ours to control."""
        kept = [g for g in self.gates if not measurement.find(g.name).compares(g.arm) and g.role != "control"]
        return self.model_copy(update={"gates": kept})

    def at_most(self, probes: int) -> "Limits":
        """The same with no look beyond ``probes``, which becomes the last one.

        Raises:
            UserError: more probes than the last look: ``alpha`` would not hold the error of so many looks.
        """
        if probes > self.looks[-1]:
            raise UserError(
                f"{probes} probes are beyond the last look of limits {self.name!r}, {self.looks[-1]}",
                "Give a --limits file with more `looks` and an `alpha` for them.",
            )
        looks = (*(look for look in self.looks if look < probes), probes)
        return self.model_copy(update={"looks": looks})


def find(name: str) -> Limits:
    """The limits of that name or file."""
    return named(Limits, FOLDER, name)
