"""Many verdicts at once: which of them hold together at a stated rate of wrong ones, and in which order to read them.

A check keeps its own error rate; of a thousand adapters that pass, some pass by chance. e-BH (Wang and Ramdas 2022)
keeps the expected share of wrong ones among those it lists below a rate, however the adapters depend on each other, as
those of one base and the same probes do.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qcheck.core.errors import unknown
from qcheck.result.fleet import Row

RATE = 0.05
Require = Literal["all", "any", "none"]


def requirement(name: str) -> Require:
    """The requirement of that name.

    Raises:
        UserError: there is none.
    """
    known: dict[str, Require] = {one: one for one in get_args(Require)}
    if name not in known:
        raise unknown("requirement", name, known)
    return known[name]


def e_value(p: float) -> float:
    """An e-value of a p-value: the mixture of all power calibrators, (1 - p + p ln p) / (p (ln p)^2).

    Vovk and Wang 2021, section 2. It is 1/2 at p = 1 and infinite at p = 0.
    """
    if p <= 0:
        return math.inf
    log = math.log(min(p, 1.0))
    if log > -1e-4:  # the limit at 1, where the expression is 0 / 0
        return 0.5
    return (1 - p + p * log) / (p * log**2)


def e_bh(e_values: Sequence[float], rate: float = RATE) -> set[int]:
    """The indices that e-BH lists: the k largest of K e-values, for the largest k with the k-th at least K / (rate k).

    The expected share of wrong ones among them is at most ``rate``, under any dependence.
    """
    ranked = sorted(range(len(e_values)), key=lambda index: -e_values[index])
    sizes = [k for k, index in enumerate(ranked, 1) if rate * k * e_values[index] >= len(e_values)]
    return set(ranked[: max(sizes, default=0)])


@dataclass(frozen=True)
class Summary:
    """A sweep as a whole.

    ``certain`` are the cases whose PASS holds at ``rate`` over the whole fleet. ``expected_wrong`` is an upper bound of
    the expected number of wrong ones among them. ``worst_layers`` are layers that are the worst of several cases.
    """

    rows: Sequence[Row]
    rate: float
    certain: frozenset[str]
    worst_layers: Sequence[tuple[str, int]]

    @property
    def counts(self) -> Counter[str]:
        """The number of cases of each verdict, and of errors."""
        return Counter(row.status for row in self.rows)

    @property
    def expected_wrong(self) -> float:
        """At most that many of ``certain`` are expected to be wrong."""
        return self.rate * len(self.certain)

    @property
    def seconds(self) -> float:
        """The time that all cases took together."""
        return sum(row.seconds for row in self.rows)

    def exit_code(self, require: Require) -> int:
        """0 if as many cases pass as required, 1 if not, 3 if none failed but some is open or an error.

        With "any" and "none" it is 3 where a row is an error, whatever passes: that adapter was not judged.
        """
        statuses = set(self.counts)
        if require == "none" or (require == "any" and "PASS" in statuses):
            return 3 if "error" in statuses else 0
        if statuses == {"PASS"}:
            return 0
        return 3 if statuses <= {"PASS", "INCONCLUSIVE", "INVALID", "error"} else 1

    def error_control(self) -> str:
        """The statement on error in one sentence."""
        passed = self.counts["PASS"]
        if not self.certain:
            return (
                f"None of the {passed} that pass is certain enough for a list with at most {self.rate:.0%} wrong ones."
            )
        return (
            f"{len(self.certain)} of the {passed} that pass hold together: at most {self.rate:.0%} of these are "
            f"expected to be wrong, {self.expected_wrong:.1f} of {len(self.certain)} (e-BH, under any dependence)."
        )


def summary(rows: Sequence[Row], rate: float = RATE) -> Summary:
    """The summary of rows, which are ranked: what failed first, then the least certain."""
    judged = [(row, row.doubt) for row in rows if row.doubt is not None]
    listed = e_bh([e_value(doubt) if row.verdict == "PASS" else 0.0 for row, doubt in judged], rate)
    certain = frozenset(judged[index][0].case for index in listed)
    layers = Counter(row.worst_layer for row in rows if row.worst_layer is not None)
    repeated = [(layer, count) for layer, count in layers.most_common(10) if count > 1]
    return Summary(sorted(rows, key=_rank), rate, certain, repeated)


_ORDER = ("error", "FAIL-ADAPTER", "FAIL-RECIPE", "NEEDS-QAT", "INVALID", "INCONCLUSIVE", "PASS")


def _rank(row: Row) -> tuple[int, float, str, str]:
    """What needs a person first: errors, failures, what is open; among those that pass the least certain."""
    return _ORDER.index(row.status), -(row.doubt if row.doubt is not None else 1.0), row.adapter, row.case
