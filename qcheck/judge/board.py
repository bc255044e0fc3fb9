"""Whether a board's verdict follows from its own intervals."""

from collections.abc import Iterator

from qcheck.judge import holm
from qcheck.judge.verdict import status
from qcheck.result.verified import Verified
from qcheck.spec.limits import Limits


def differences(verified: Verified, limits: Limits) -> Iterator[str]:
    """What a board says that does not follow from its p-values, bounds and engines, in sentences.

    Whether a verdict that is no PASS had other reasons cannot be told from here.
    """
    beyond = holm.beyond(verified.measurements, limits)
    given = {(one.name, one.arm): status(one, one.limit, beyond) for one in verified.measurements}
    for one in verified.measurements:
        if one.status != (follows := given[one.name, one.arm]):
            yield f"the board's {one.name} ({one.arm}) is {one.status} in the report, and its interval gives {follows}"
    broken = {one.precision.status for one in verified.components if one.precision is not None} & {"fell back"}
    worse = sorted({*given.values(), *broken} - {"pass"})
    if verified.verdict == "PASS" and worse:
        yield f"the board's verdict is PASS in the report, and what it measured gives {', '.join(worse)}"
