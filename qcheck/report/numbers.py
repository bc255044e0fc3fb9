"""A measurement as text: its number with unit and decimals, its interval and its limit."""

from collections.abc import Sequence
from typing import Protocol

from qcheck.result.measurement import Judged
from qcheck.result.verdict import Outcome
from qcheck.spec import measurement

ARMS = {"base": "base", "adapted": "LoRA", "both": "both"}
MARKS = {"pass": ("ok", "green"), "fail": ("OUT", "bold red"), "undecided": ("open", "magenta")}


class Concluded(Protocol):
    """What a check says of a case, or the judge of pictures of its folders."""

    @property
    def verdict(self) -> Outcome:
        """The verdict."""

    @property
    def measurements(self) -> Sequence[Judged]:
        """Every measurement."""

    @property
    def decided(self) -> Judged | None:
        """The measurement that the verdict rests on; None where something else decided."""


def shown(judged: Judged) -> bool:
    """Whether a measurement has a row in the table: it decides or explains the verdict."""
    return judged.limit is not None or measurement.find(judged.name).context


def rest(case: Concluded) -> str:
    """Names of the other measurements that have a value."""
    return ", ".join(
        dict.fromkeys(judged.name for judged in case.measurements if judged.value is not None and not shown(judged))
    )


def number(judged: Judged) -> str:
    """The value with its unit."""
    if judged.value is None:
        return "-"
    definition = measurement.find(judged.name)
    value = measurement.beside(judged.value, judged.limit, f".{definition.digits}f")
    return f"{value} {definition.of(judged.arm).symbol}".rstrip()


def bounds(judged: Judged) -> str:
    """The interval; empty where the measurement was not sampled."""
    if judged.low is None or judged.high is None or judged.low == judged.high:
        return ""
    form = f".{measurement.find(judged.name).digits}f"
    return " .. ".join(measurement.beside(end, judged.limit, form) for end in (judged.low, judged.high))


def limit(judged: Judged) -> str:
    """The limit; empty where the measurement has none."""
    return "" if judged.limit is None else judged.limit.text()


def decided(case: Concluded) -> str:
    """The measurement that decided, how it decided, and its limit; empty where no measurement decided."""
    deciding = case.decided
    if deciding is None:
        return ""
    interval = f" [{ends}]" if (ends := bounds(deciding)) else ""
    how = "closest to its limit:" if case.verdict == "PASS" else "decided by"
    return f"{how} {deciding.name} ({ARMS[deciding.arm]}) {number(deciding)}{interval}, limit {limit(deciding)}"
