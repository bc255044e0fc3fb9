"""Whether a board's verdict follows from its own intervals."""

from collections.abc import Iterator

from qcheck.judge import holm
from qcheck.judge.verdict import status
from qcheck.result.verified import Verified
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Limits

_OF_ROLES = {"encoder": "embedding_cosine", "decoder": "picture_error"}


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
    if verified.verdict != "PASS":
        return
    if worse:
        yield f"the board's verdict is PASS in the report, and what it measured gives {', '.join(worse)}"
    for name in _absent(verified, limits):
        yield f"the board's verdict is PASS in the report, and {name} was not measured"
    yield from _tail(verified, limits)


def _absent(verified: Verified, limits: Limits) -> Iterator[str]:
    """What a board has to have measured for a PASS and did not: what was not measured is never passed."""
    measured = {(one.name, one.arm) for one in verified.measurements}
    asked: list[tuple[str, Arm]] = [("effect_survival", "adapted"), ("stratum_survival", "adapted")]
    if "endpoint_error" not in verified.not_measured:
        asked.append(("endpoint_error", "adapted"))
        asked += [("endpoint_error", "base") for one in verified.components if one.role == "base"]
    yield from (f"{name} ({arm})" for name, arm in asked if (name, arm) in {*limits.ranges} - measured)
    places = {(one.name, one.where) for one in verified.measurements}
    for one in verified.components:
        name = _OF_ROLES.get(one.role)
        if name is not None and (name, one.name) not in places:
            yield f"{name} at {one.name}"


def _tail(verified: Verified, limits: Limits) -> Iterator[str]:
    """That too many of a board's probes are outside of the limits' tail."""
    low, high = limits.tail
    rows = [row[0] for one in verified.measurements if one.name == "effect_survival" for row in one.rows if row]
    outside = sum(not low <= value <= high for value in rows)
    if outside > limits.bad_share * len(rows):
        yield (
            "the board's verdict is PASS in the report, and effect_survival is outside "
            f"{low:g} .. {high:g} on {outside} of {len(rows)} probes"
        )
