"""The results of a sweep: one JSON a case, written whole and never changed, and an index that is made from them.

sweep.json          says that the folder is a sweep's
cases/DIGEST.json   a row; the digest is that of the request and of the files it names
pages/NAME/         the page and the report of each adapter, linked from its rows
index.jsonl         every row of the last sweep, one a line
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qcheck.core.errors import UserError
from qcheck.core.places import Files
from qcheck.core.values import Number, Value
from qcheck.device.sums import NAME as SUMS
from qcheck.result.measurement import Judged
from qcheck.result.verdict import Outcome

SCHEMA: Literal["qcheck-row/1"] = "qcheck-row/1"
CASES, PAGES, INDEX, MARK = "cases", "pages", "index.jsonl", "sweep.json"


class Row(Value):
    """One adapter on one base in one scheme and order: its verdict, or the error that kept it from one.

    ``stage`` is what decided: "forecast" from the weights alone, or "check". ``doubt`` is the p-value of "it does not
    pass": the largest over all gates, for as many looks as the limits allow; None where nothing was sampled.
    ``page`` is relative to the sweep's folder.
    """

    schema_: Literal["qcheck-row/1"] = Field(default=SCHEMA, alias="schema")
    case: str
    adapter: str
    weight: float
    base: str
    scheme: str
    order: str
    target: str
    verdict: Outcome | None = None
    error: str | None = None
    fix: str | None = None
    stage: Literal["forecast", "check"] = "check"
    deciding: Judged | None = None
    survival: Number | None = None
    doubt: float | None = None
    reasons: list[str] = Field(default_factory=list)
    next: str = ""
    probes: int = 0
    worst_layer: str | None = None
    worst_share: Number | None = None
    bytes: int | None = None
    build: str | None = None
    page: str | None = None
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """The verdict, or "error"."""
        return self.verdict or "error"

    @property
    def title(self) -> str:
        """The adapter's file, with its weight where that is not 1."""
        name = " + ".join(Path(part).name for part in self.adapter.split(" + "))
        return name if self.weight == 1 else f"{name} at {self.weight:g}"


@dataclass(frozen=True)
class Store:
    """The rows in a place that several processes and machines may share."""

    files: Files

    def mark(self) -> None:
        """Say that the place is a sweep's."""
        if self.files.size(MARK) is None:
            self.files.write(MARK, b'{"schema": "qcheck-sweep/1"}\n')

    def name(self, case: str) -> str:
        """The file of a case."""
        return f"{CASES}/{case}.json"

    def has(self, case: str) -> bool:
        """Whether the case is there."""
        return self.files.size(self.name(case)) is not None

    def read(self, case: str) -> Row:
        """The row of a case.

        Raises:
            UserError: it is not of this version, or was changed by hand.
        """
        place = f"{self.files}/{self.name(case)}"
        try:
            row = Row.model_validate_json(self.files.read(self.name(case)))
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{place} is no row of this qcheck", "Remove the file: that case is computed again."
            ) from error
        if row.case != case:
            raise UserError(f"{place} holds the case {row.case}", "Remove the file: that case is computed again.")
        return row

    def write(self, row: Row) -> None:
        """Store a row; one that another process stored meanwhile is as good, and stays."""
        if not self.has(row.case):
            self.files.write(self.name(row.case), row.to_json().encode())

    def forget(self, cases: Iterable[str]) -> None:
        """Remove cases, to be computed again."""
        for case in cases:
            self.files.remove(self.name(case))

    def rows(self, cases: Sequence[str]) -> Iterator[Row]:
        """The rows of those cases that are there."""
        return (self.read(case) for case in cases if self.has(case))

    def names(self, rows: Iterable[Row]) -> list[str]:
        """The files of rows: of each its own and, where it has a page, what vouches for the page; and the index."""
        pages = {f"{row.page.rpartition('/')[0]}/{SUMS}" for row in rows if row.page is not None}
        return sorted({MARK, INDEX, *pages, *(self.name(row.case) for row in rows)})

    def index(self, rows: Iterable[Row]) -> None:
        """Write the index of rows."""
        self.files.write(INDEX, "".join(f"{row.model_dump_json(by_alias=True)}\n" for row in rows).encode())
