"""The zoo's cases with the verdicts of today, replayed from what is stored, and how their fates are told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.judged import Case, badness
from qcheck.spec.limits import Gate, Limits

LOOKS = (8, 16, 32, 64)
ALARMS = frozenset({"NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INVALID"})


@dataclass(frozen=True)
class Replay:
    """A case, what a check by the limits of today says, and after how many probes."""

    case: Case
    outcome: str
    probes: int

    @property
    def alarm(self) -> bool:
        """Whether it is called damaged although both judges call it intact."""
        return self.case.damaged is False and self.outcome in ALARMS

    @property
    def open(self) -> bool:
        """Whether no verdict was reached."""
        return self.outcome == "INCONCLUSIVE"

    @property
    def missed(self) -> bool:
        """Whether it passes although a judge calls it damaged."""
        return bool(self.case.damaged) and self.outcome == "PASS"


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    count: int
    whole: int

    @classmethod
    def of(cls, replays: Sequence[Replay], holds: Callable[[Replay], bool]) -> "Share":
        """The share of which something holds."""
        return cls(sum(map(holds, replays)), len(replays))

    def text(self) -> str:
        """As a fraction and in percent."""
        return f"{self.count}/{self.whole}" + (f" ({100 * self.count / self.whole:.3g} %)" if self.whole else "")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first row their titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def two(value: float) -> str:
    """To two digits; a dash for what is not known."""
    return "-" if np.isnan(value) else f"{value:.2f}"


def deciding(chosen: Limits) -> list[Gate]:
    """The gates of sampled measurements that decide, whatever the compute type."""
    return [gate for gate in chosen.gates if gate.role in {"absolute", "adapter"}]


def margins(cases: Sequence[Case], chosen: Limits) -> np.ndarray:
    """The deciding score: how far the worst gate of a case is beyond its limit, in units of the limit's own size.

    -1 is far inside, 0 at a limit. A limit's size is half its width where it has two sides, else its absolute value. A
    limit that another seed raises is raised here too.
    """
    worst = np.full(len(cases), -np.inf)
    for gate in deciding(chosen):
        for place, case in enumerate(cases):
            own = _beside_seed(case, gate)
            sides = [side for side in (own.low, own.high) if side is not None]
            size = (sides[1] - sides[0]) / 2 if len(sides) == 2 else abs(sides[0])
            worst[place] = max(worst[place], float(badness(np.array([case.value(own)]), own)[0]) / size)
    return worst


def _beside_seed(case: Case, gate: Gate) -> Gate:
    if gate.of_seed is None or gate.high is None or gate.arm == "both":
        return gate
    distance = case.another_seed(gate.arm)
    return gate if distance is None else gate.model_copy(update={"high": max(gate.high, gate.of_seed * distance)})


def with_fate(cases: Sequence[Case], fate: Callable[[Case], bool | None]) -> tuple[list[Case], np.ndarray]:
    """The cases whose fate is known, and which of them are damaged."""
    known = [case for case in cases if fate(case) is not None]
    return known, np.array([fate(case) for case in known], bool)


def _by_style(case: Case) -> bool | None:
    return None if case.utility.void else case.by_style


FATES: dict[str, Callable[[Case], bool | None]] = {
    "style": _by_style,
    "U": lambda case: case.by_utility,
    "U beyond the base": lambda case: case.by_own_utility,
}


def why(case: Case, witness: float | None) -> str:
    """Why a damaged case passes, in words, by what the judges and a second network say of it."""
    if case.by_style and case.by_utility and not case.by_own_utility:
        return "the base alone loses the benefit, and the style judge alone says that the style is gone too"
    if case.by_style and not case.by_own_utility:
        beside = "" if witness is None else f"; a second network sees {two(witness)} of the style left"
        return f"the style judge alone says so, the benefit on real pictures is there{beside}"
    if case.by_utility and not case.by_own_utility:
        return "the base alone loses that under this scheme, with or without the adapter"
    return "not seen"
