"""Limits: the range that each measurement of each arm has to lie in, and the role of that gate in the verdict."""

from collections.abc import Mapping
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
    """The limit of one measurement of one arm. With ``compute`` it is for schemes of that compute type only.

    A control with a ``margin`` need not reach its ``low`` where it lies that many dB under the error that is judged. An
    error with ``of_seed`` may be above its ``high`` as long as it is at most that share of how far another seed moves
    the same arm's pictures. With ``each_group`` effect_survival is held to the limit in every group of prompts by
    itself too, where the prompts have groups. ``below`` and ``above`` say in words what it means to be outside there.

    An unknown measurement, or an arm that the measurement does not have, is an error: a gate without a number would
    make every verdict INVALID. So is a limit on the side that a measurement of the worst place does not see.
    """

    name: str
    arm: Arm
    role: Role
    compute: str | None = None
    margin: float | None = None
    of_seed: Annotated[float, Field(gt=0)] | None = None
    each_group: bool = False
    below: str = ""
    above: str = ""

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        try:
            defined = measurement.find(self.name)
        except UserError as error:
            raise ValueError(f"{error.what}. {error.fix}") from error
        if self.arm not in defined.arms:
            raise ValueError(f"{self.name} is measured of {', '.join(defined.arms)}, not of {self.arm}")
        if (defined.worst_place == "lowest" and self.high is not None) or (
            defined.worst_place == "highest" and self.low is not None
        ):
            only = "low" if defined.worst_place == "lowest" else "high"
            raise ValueError(f"{self.name} is that of its {defined.worst_place} place: it takes `{only}` alone")
        if self.margin is not None and (self.role != "control" or self.low is None):
            raise ValueError("`margin` is for a control with `low`")
        if self.of_seed is not None and (self.name != "endpoint_error" or self.high is None):
            raise ValueError("`of_seed` is for endpoint_error with `high`")
        if self.each_group and self.name != "effect_survival":
            raise ValueError("`each_group` is for effect_survival")
        if (self.below and self.low is None) or (self.above and self.high is None):
            raise ValueError("`below` says what it means to be below `low`, `above` to be above `high`")
        return self

    def outside(self, value: float) -> str:
        """What it means that ``value`` lies outside, in words; nothing where it does not."""
        if self.high is not None and value > self.high:
            return self.above
        return self.below if self.low is not None and value < self.low else ""

    def text(self) -> str:
        """As ``Limit``, with what it is relative to."""
        return "".join(
            (
                super().text(),
                f" or {self.margin:g} under the judged error" if self.margin is not None else "",
                f" or {self.of_seed:g} of another seed's" if self.of_seed is not None else "",
            )
        )

    @property
    def limit(self) -> Limit:
        """The gate's range."""
        return Limit(low=self.low, high=self.high)


class Limits(Value):
    """The gates of a verdict and its sequence of looks.

    Probes are added until there is a verdict: ``looks`` are the numbers of probes at which it is computed, ``alpha`` is
    the one-sided error of each look. A probe with effect_survival outside ``tail`` is a bad one, and a share of them
    above ``bad_share`` blocks PASS. ``embedding_cosine`` and ``picture_error`` are what a board's text encoders and
    decoder have to reach beside full precision: the lowest cosine of an embedding, and the highest root mean square
    error of a picture whose range is 1. ``grounds`` is the justification of the limits in words, for the report.
    """

    name: str
    grounds: str
    looks: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), BeforeValidator(as_tuple)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    negligible_effect: Annotated[float, Field(gt=0)]
    tail: Annotated[tuple[float, float], BeforeValidator(as_tuple)]
    bad_share: Annotated[float, Field(ge=0, lt=1)]
    embedding_cosine: Annotated[float, Field(gt=0, lt=1)] = 0.99
    picture_error: Annotated[float, Field(gt=0, lt=1)] = 0.02
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

    def gate(self, name: str, arm: Arm) -> Gate | None:
        """The gate of a measurement of an arm, if it has one."""
        return next((gate for gate in self.gates if (gate.name, gate.arm) == (name, arm)), None)

    def requiring(self, least: Mapping[tuple[str, Arm], float]) -> "Limits":
        """With another ``low`` for some gates."""
        gates = [g.model_copy(update={"low": least.get((g.name, g.arm), g.low)}) for g in self.gates]
        return self.model_copy(update={"gates": gates})

    def allowing(self, most: Mapping[tuple[str, Arm], float]) -> "Limits":
        """With another ``high`` for some gates."""
        gates = [g.model_copy(update={"high": most.get((g.name, g.arm), g.high)}) for g in self.gates]
        return self.model_copy(update={"gates": gates})

    def with_gate(self, gate: Gate) -> "Limits":
        """With one more gate."""
        return self.model_copy(update={"gates": [*self.gates, gate]})

    def computing(self, compute: str) -> "Limits":
        """The limits for schemes of the compute type ``compute``."""
        return self.model_copy(update={"gates": [g for g in self.gates if g.compute in {None, compute}]})

    def alone(self) -> "Limits":
        """The limits for an artifact without its quantized base: no gates that need q0, and no export control."""
        gates = [g for g in self.gates if not measurement.find(g.name).compares(g.arm) and g.role != "control"]
        return self.model_copy(update={"gates": gates})

    def at_most(self, probes: int) -> "Limits":
        """The same limits with ``probes`` as the last look.

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
