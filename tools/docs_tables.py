"""Tables of the docs that are made from data: ``python -m tools.docs_tables`` writes them between their markers."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from qcheck.core.values import PACKAGE
from qcheck.spec import limits, measurement
from qcheck.spec.measurement import Definition

PAGE = PACKAGE.parent / "docs" / "measurements.md"
MARKED = re.compile(r"(<!-- measurements:begin -->\n)(.*?)(\n<!-- measurements:end -->)", re.DOTALL)
_TITLES = (
    "measurement",
    "in a sentence",
    "unit",
    "arms",
    "good is",
    "perfect is",
    "limit by default",
    "beyond it",
    "must see",
)
_GOOD = {"high": "high", "low": "low", "middle": "between", None: "-"}


def _limits(defined: Definition) -> str:
    """The default limits by arm; of a control by the compute type that each is for."""
    found = []
    for gate in limits.find("default").gates:
        if gate.name == defined.name:
            of = gate.compute or gate.arm
            found.append(f"{of} `{gate.text()}`" + (" (a warning)" if gate.role == "warning" else ""))
    return ", ".join(found) or "-"


def _beyond(defined: Definition) -> str:
    """What it means to be outside of the default limits."""
    gates = [gate for gate in limits.find("default").gates if gate.name == defined.name]
    return "; ".join(dict.fromkeys(said for gate in gates for said in (gate.below, gate.above) if said)) or "-"


def _row(defined: Definition) -> Sequence[str]:
    units = dict.fromkeys(defined.of(arm).unit for arm in defined.arms)
    return (
        f"**{defined.name}**",
        f"{defined.title}: {defined.sentence}",
        ", ".join(units),
        ", ".join(defined.arms),
        _GOOD[defined.better],
        "-" if defined.perfect is None else f"{defined.perfect:g}",
        _limits(defined),
        _beyond(defined),
        ", ".join(defined.faults) or "-",
    )


def measurements_table() -> str:
    """Markdown: a row a measurement, in the order in which a report lists them."""
    rows = [_TITLES, ["---"] * len(_TITLES), *(_row(defined) for defined in measurement.every().values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read(page: Path = PAGE) -> str:
    """The table as a page has it.

    Raises:
        ValueError: the page has no markers for it.
    """
    found = MARKED.search(page.read_text("utf-8"))
    if found is None:
        raise ValueError(f"{page} has no <!-- measurements:begin --> ... <!-- measurements:end -->")
    return found[2]


def write(page: Path = PAGE) -> None:
    """Put the table between its markers."""
    made = measurements_table()
    page.write_text(MARKED.sub(lambda found: f"{found[1]}{made}{found[3]}", page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    write()
    sys.stdout.write(f"{PAGE}\n")
