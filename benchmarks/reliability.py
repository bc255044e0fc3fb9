"""The tables of docs/reliability.md: each promise, the tests that hold it, and what was tried at length.

``python -m benchmarks.reliability --write`` makes them of ``reliability.toml``, collects the tests that are named there
and counts their cases. A promise without a test, or with one that is not there, is an error. ``--run`` runs these tests
first, and fails where one does.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from qcheck.core.values import Value

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "reliability.md", Path(__file__).with_suffix(".toml")
ABOUT = ("files", "machine", "evidence")


class Promise(Value):
    """What is promised of a kind of input or failure, and the tests that hold it."""

    about: Literal["files", "machine", "evidence"]
    title: str
    promise: str
    tests: list[str]


class Trial(Value):
    """What was tried at length: how often, by which command, and which faults it brought up, now mended."""

    what: str
    command: str
    tried: str
    faults: str


class Mutants(Value):
    """Mistakes put into a module: how many, noticed by the tests then and by those of today, what is left."""

    module: str
    tried: int
    noticed: int
    now: int
    left: str


class Record(Value):
    """All of it."""

    promises: list[Promise]
    trials: list[Trial]
    mutants: list[Mutants]


def read(path: Path = DATA) -> Record:
    """What ``reliability.toml`` holds."""
    return Record.model_validate(tomllib.loads(path.read_text("utf-8")))


def functions(ids: Iterable[str]) -> Counter[str]:
    """How many cases each test function has, of the identifiers of all cases."""
    return Counter(name.partition("[")[0] for name in ids)


def tables(record: Record, cases: Mapping[str, int]) -> dict[str, str]:
    """Markdown of each table by its name; ``cases`` are the numbers of cases of each test.

    Raises:
        ValueError: a promise names a test that has no case.
    """
    by_name = {about: _promises([one for one in record.promises if one.about == about], cases) for about in ABOUT}
    trials = [["what was tried", "how often", "faults, mended with tests", "by"]]
    trials += [[one.what, one.tried, one.faults or "none", f"`{one.command}`"] for one in record.trials]
    rows = [["module", "tried", "noticed", "with new tests", "left"]]
    rows += [[f"`{one.module}`", str(one.tried), str(one.noticed), str(one.now), one.left] for one in record.mutants]
    sums = [sum(getattr(one, name) for one in record.mutants) for name in ("tried", "noticed", "now")]
    rows.append(["all", *map(str, sums), ""])
    return by_name | {"trials": _table(trials), "mutants": _table(rows)}


def _promises(promises: Sequence[Promise], cases: Mapping[str, int]) -> str:
    rows = [["of", "is promised", "held by (cases in every suite)"]]
    for one in promises:
        absent = [name for name in one.tests if not cases.get(name)]
        if absent or not one.tests:
            raise ValueError(f"{one.title!r} is held by no test: {', '.join(absent) or 'none is named'}")
        rows.append([one.title, one.promise, "; ".join(f"`{name}` ({cases[name]})" for name in one.tests)])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str, by_name: Mapping[str, str]) -> str:
    """The page with its tables between their markers.

    Raises:
        ValueError: it has no place for one of them.
    """
    for name, table in by_name.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text, count = re.subn(
            pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}")
    return text


def collected(tests: Iterable[str]) -> Counter[str]:
    """The cases of tests, which pytest collects in a process of its own."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", *tests]
    collection = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if collection.returncode:
        raise SystemExit(collection.stdout[-2000:])
    return functions(line for line in collection.stdout.splitlines() if "::" in line)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="Run the tests that hold the promises first.")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    asked, record = parser.parse_args(), read()
    names = sorted({name for one in record.promises for name in one.tests})
    if asked.run and subprocess.run([sys.executable, "-m", "pytest", "-q", *names], cwd=ROOT, check=False).returncode:
        raise SystemExit(1)
    by_name = tables(record, collected(names))
    if asked.write:
        PAGE.write_text(page(PAGE.read_text("utf-8"), by_name), "utf-8")
    print(*by_name.values(), sep=os.linesep * 2)


if __name__ == "__main__":
    main()
