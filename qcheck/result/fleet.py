"""The results of a sweep: one JSON a case, written whole and never changed, and an index that is made from them.

cases/DIGEST.json   a row; the digest is that of the request and of the files it names
pages/NAME/         the page and the report of each adapter, linked from its rows
index.jsonl         every row of the last sweep, one a line
"""

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value
from qcheck.result.measurement import Judged
from qcheck.result.verdict import Outcome

SCHEMA: Literal["qcheck-row/1"] = "qcheck-row/1"
CASES, PAGES, INDEX = "cases", "pages", "index.jsonl"


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


class Store:
    """The rows below a folder that several processes and machines may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, case: str) -> Path:
        """The file of a case."""
        return self.folder / CASES / f"{case}.json"

    def has(self, case: str) -> bool:
        """Whether the case is there."""
        return self.path(case).exists()

    def read(self, case: str) -> Row:
        """The row of a case.

        Raises:
            UserError: it is not of this version, or was changed by hand.
        """
        path = self.path(case)
        try:
            row = Row.model_validate_json(files.read_bytes(path))
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{path} is no row of this qcheck", "Remove the file: that case is computed again."
            ) from error
        if row.case != case:
            raise UserError(f"{path} holds the case {row.case}", "Remove the file: that case is computed again.")
        return row

    def write(self, row: Row) -> None:
        """Store a row; one that another process stored meanwhile is as good, and stays."""
        if not self.has(row.case):
            written(self.path(row.case), row.to_json())

    def forget(self, cases: Iterable[str]) -> None:
        """Remove cases, to be computed again."""
        for case in cases:
            self.path(case).unlink(missing_ok=True)

    def rows(self, cases: Sequence[str]) -> Iterator[Row]:
        """The rows of those cases that are there."""
        return (self.read(case) for case in cases if self.has(case))

    def index(self, rows: Iterable[Row]) -> None:
        """Write the index of rows."""
        written(self.folder / INDEX, "".join(f"{row.model_dump_json(by_alias=True)}\n" for row in rows))


def written(path: Path, content: str) -> None:
    """Write a file that is there whole or not at all, even where power is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
