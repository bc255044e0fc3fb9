"""How a measurement is written: its number with unit and decimals, its interval, its limit, what it says of itself."""

from qcheck.result.measurement import Judged
from qcheck.result.report import Case
from qcheck.spec import measurement

ARMS = {"base": "base", "adapted": "LoRA", "both": "both"}
MARKS = {"pass": ("ok", "green"), "fail": ("OVER", "bold red"), "undecided": ("open", "magenta")}


def shown(seen: Judged) -> bool:
    """What decides or explains the verdict; the rest is a line of names."""
    return seen.limit is not None or measurement.find(seen.name).context


def rest(case: Case) -> str:
    """Names of what was measured beside that."""
    return ", ".join(dict.fromkeys(s.name for s in case.measurements if s.value is not None and not shown(s)))


def number(seen: Judged) -> str:
    """The value with its unit."""
    if seen.value is None:
        return "-"
    defined = measurement.find(seen.name)
    return f"{seen.value:.{defined.digits}f} {defined.of(seen.arm).symbol}".rstrip()


def bounds(seen: Judged) -> str:
    """The interval; nothing where a single number was read."""
    if seen.low in (None, seen.high):
        return ""
    digits = measurement.find(seen.name).digits
    return f"{seen.low:.{digits}f} .. {seen.high:.{digits}f}"


def limit(seen: Judged) -> str:
    """The limit; nothing where none is held to it."""
    return "" if seen.limit is None else seen.limit.text()


def decided(case: Case) -> str:
    """The measurement that decided, beside its limit, and how it did; nothing where something else did."""
    seen = case.decided
    if seen is None:
        return ""
    interval = f" [{found}]" if (found := bounds(seen)) else ""
    how = "closest to its limit:" if case.verdict == "PASS" else "decided by"
    return f"{how} {seen.name} ({ARMS[seen.arm]}) {number(seen)}{interval}, limit {limit(seen)}"
