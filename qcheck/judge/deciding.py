"""Which measurement says most about a case."""

from qcheck.result.measurement import Judged
from qcheck.result.report import Case

_RANK = ("fail", "not measured", "undecided", "pass")


def deciding(case: Case) -> Judged | None:
    """The gated measurement that says most: the first that fails, was not measured or is open, else survival."""
    gated = [seen for seen in case.measurements if seen.decides]
    survival = [seen for seen in gated if seen.name == "effect_survival"]
    return min([*survival, *gated], key=lambda seen: _RANK.index(seen.status), default=None)
