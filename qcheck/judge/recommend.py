"""Which of several cases to ship."""

import math
from collections.abc import Sequence

from qcheck.judge.deciding import room
from qcheck.result.report import Case

ALIKE = 1.01  # files that differ by less than this factor are as small as each other


def ships(case: Case) -> bool:
    """Whether it passes, quantizes, and there is a file."""
    return case.verdict == "PASS" and not case.control and bool(case.artifact)


def recommended(cases: Sequence[Case]) -> int | None:
    """The place of the case with the smallest file among those that ship; None where none does.

    Of those that are as small the one with the most room: the least, over the measurements that decide, of how often
    the interval's own half fits between value and limit.
    """
    sizes = {place: case.artifact[0].bytes for place, case in enumerate(cases) if ships(case)}
    small = [place for place, size in sizes.items() if size <= ALIKE * min(sizes.values())]
    return max(small, key=lambda place: _least(cases[place]), default=None)


def _least(case: Case) -> float:
    return min((room(seen) for seen in case.measurements if seen.decides), default=math.inf)
