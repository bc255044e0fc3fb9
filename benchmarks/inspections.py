"""How often ``qcheck inspect`` alone, which runs no model, names the cases of the zoo that the judges call damaged.

``python -m benchmarks.inspections`` inspects every adapter of the demo's zoo under its cases' schemes and orders and
holds the words against the judges; ``--write`` puts the table on the page, ``--list`` shows every case. The other
pipelines' adapters are not in the repository, so their cases are left out. About a minute on one core.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import qcheck
from benchmarks.judged import Case
from benchmarks.replays import table
from benchmarks.verdicts import PAGE
from benchmarks.zoo import stored
from benchmarks.zoo.cases import ORDERS, SCHEMES
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.result.inspection import Forecast

MARKED = re.compile(r"(<!-- inspections:begin -->\n).*?(<!-- inspections:end -->)", re.DOTALL)
PIPELINE = PIPELINES["demo"]


@dataclass(frozen=True)
class Named:
    """A case and what ``inspect`` says of it."""

    case: Case
    forecast: Forecast

    @property
    def alarm(self) -> bool:
        """Whether it is said to lose something."""
        return self.forecast.fate != "arrives"


def read(zoo: Path) -> Iterator[Named]:
    """Every case of the demo."""
    for path in sorted(zoo.glob(f"{PIPELINE.name}/cases/*.json.gz")):
        held = stored.read(path)
        head = {key: value for key, value in held.items() if key != "cases"}
        inspection = qcheck.inspect(
            PIPELINE.adapter(head["adapter"]), PIPELINE.source, scheme=SCHEMES, order=ORDERS, recipe=PIPELINE.recipe()
        )
        by_key = {(one.scheme, one.order): one for one in inspection.forecasts}
        for one in held["cases"]:
            case = Case(head, one)
            yield Named(case, by_key[case.scheme, one["order"]])


def counts(cases: Sequence[Named]) -> list[str]:
    """How many are damaged by either judge, how many of these lose of the adapter's own, how many are intact; named."""
    damaged = [one for one in cases if one.case.damaged]
    own = [one for one in damaged if one.case.by_style or one.case.by_own_utility]
    intact = [one for one in cases if one.case.damaged is False]
    named = [f"{sum(one.alarm for one in group)} of {len(group)}" for group in (damaged, own, intact)]
    lost = [one for one in cases if one.forecast.fate == "does nothing"]
    return [str(len(cases)), *named, f"{sum(bool(one.case.damaged) for one in lost)} of {len(lost)}"]


def summary(cases: Sequence[Named]) -> str:
    """By order, and by the half of the zoo, of which one has set the limits."""
    judged = [one for one in cases if one.case.damaged is not None]
    titles = ("judged", "damaged: named", "adapter's own loss: named", "intact: false alarms", "does nothing: damaged")
    rows = [["order", "half", *titles]]
    for order in ORDERS:
        these = [one for one in judged if one.forecast.order == order]
        for half in ("setting", "testing"):
            rows.append([order, half, *counts([one for one in these if one.case.adapter["half"] == half])])
        rows.append([order, "both", *counts(these)])
    adapters = len({one.case.adapter["adapter"] for one in cases})
    return f"{table(rows)}\n{len(cases)} cases of {adapters} adapters, {len(cases) - len(judged)} of them not judged"


def listing(cases: Sequence[Named]) -> str:
    """Every case."""
    rows = [["case", "fate", "survival", "SNR", "U", "damaged"]]
    for one in cases:
        seen, utility = one.forecast, one.case.utility.value
        numbers = (f"{seen.survival:.2f}", f"{seen.snr:.1f}", f"{utility:.2f}")
        rows.append([one.case.title, seen.fate, *numbers, str(one.case.damaged)])
    return table(rows)


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--list", action="store_true", help="every case too")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name} too")
    asked = parser.parse_args()
    cases = list(read(asked.zoo))
    text = summary(cases)
    print(f"{listing(cases)}\n\n{text}" if asked.list else text)
    if asked.write:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(MARKED.sub(lambda marks: f"{marks[1]}```\n{text}\n```\n{marks[2]}", page), "utf-8")


if __name__ == "__main__":
    main()
