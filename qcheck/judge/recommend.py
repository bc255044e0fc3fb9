"""Which of several cases to ship."""

import math
from collections.abc import Sequence

from qcheck.judge.deciding import room
from qcheck.result.report import Case

ALIKE = 1.01  # files that differ by less than this factor are as small as each other


def ships(case: Case) -> bool:
    """Whether the case passes, is no unquantized control, and has a file."""
    return case.outcome == "PASS" and not case.control and bool(case.artifact)


def recommended(cases: Sequence[Case]) -> int | None:
    """The index of the case with the smallest file among those that ship; None where none does.

    Among files as small (see ``ALIKE``) it is the case with the most room: the least ``deciding.room`` over the
    measurements that decide.
    """
    sizes = {place: case.artifact[0].bytes for place, case in enumerate(cases) if ships(case)}
    small = [place for place, size in sizes.items() if size <= ALIKE * min(sizes.values())]
    return max(small, key=lambda place: _least(cases[place]), default=None)


def _least(case: Case) -> float:
    return min((room(measurement) for measurement in case.measurements if measurement.decides), default=math.inf)
