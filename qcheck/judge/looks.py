"""Looks at more and more probes, until there is a verdict."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from qcheck.result.verdict import Outcome

T = TypeVar("T")


def until_decided(looks: Sequence[int], look: Callable[[int], tuple[Outcome, T]]) -> tuple[int, Outcome, T]:
    """The first look whose outcome is not INCONCLUSIVE, else the last: its number of probes, outcome and the rest.

    ``looks`` holds at least one number of probes; ``look`` judges that many. The limits' ``alpha`` is the error that
    each look may spend, so that the error of the whole run is bounded.
    """
    for count in looks:
        outcome, rest = look(count)
        if outcome != "INCONCLUSIVE":
            break
    return count, outcome, rest
