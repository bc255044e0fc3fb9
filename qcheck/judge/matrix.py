"""Few adapters or weights side by side: every scheme as a row, every adapter at a weight as a column."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from qcheck.result.fleet import Row

MOST = 12  # columns that a person compares
Column = tuple[str, float]
Line = tuple[str, str, str, str]


@dataclass(frozen=True)
class Matrix:
    """The cases of a sweep by scheme, order, target and base (``lines``) and by adapter and weight (``columns``)."""

    lines: Sequence[Line]
    columns: Sequence[Column]
    cells: Mapping[tuple[Line, Column], Row]

    @property
    def titles(self) -> list[str]:
        """The columns in words: what differs between them."""
        files, weights = ({column[part] for column in self.columns} for part in (0, 1))
        names = [PurePath(adapter).name.removesuffix(".safetensors") for adapter, _ in self.columns]
        if len(files) == 1:
            return [f"weight {weight:g}" for _, weight in self.columns]
        return [
            name if len(weights) == 1 else f"{name} at {weight:g}"
            for name, (_, weight) in zip(names, self.columns, strict=True)
        ]

    def line_title(self, line: Line) -> str:
        """A line in words: scheme and order, with target and base where they differ between lines."""
        several = [part for place, part in enumerate(line[2:], 2) if len({other[place] for other in self.lines}) > 1]
        return ", ".join([*line[:2], *(PurePath(part).name for part in several)])

    def surest(self, line: Line) -> int | None:
        """The column that passes most surely on a line; None where none passes."""
        passing = [
            (row.doubt, place) for place, row in self._row(line) if row.verdict == "PASS" and row.doubt is not None
        ]
        return min(passing)[1] if passing else None

    def best(self) -> int | None:
        """The column to ship: it passes on most lines, of those, the one whose least sure pass is surest."""
        ranked = []
        for place, column in enumerate(self.columns):
            rows = [self.cells[line, column] for line in self.lines if (line, column) in self.cells]
            doubts = [row.doubt for row in rows if row.verdict == "PASS" and row.doubt is not None]
            if doubts:
                ranked.append((-len(doubts), max(doubts), place))
        return min(ranked)[2] if ranked else None

    def advice(self) -> str:
        """What to ship, in a sentence."""
        place = self.best()
        if place is None:
            return "None of them passes: `qcheck advise` on the report of the nearest tries cures."
        column = self.columns[place]
        count = sum(row.verdict == "PASS" for line in self.lines if (row := self.cells.get((line, column))) is not None)
        return (
            f"Take {self.titles[place]}: it passes {count} of {len(self.lines)}, "
            "and of those that pass as many it is the surest."
        )

    def _row(self, line: Line) -> list[tuple[int, Row]]:
        keys = [(place, (line, column)) for place, column in enumerate(self.columns)]
        return [(place, self.cells[key]) for place, key in keys if key in self.cells]


def matrix(rows: Sequence[Row]) -> Matrix | None:
    """The rows side by side; None where there is one column alone, or more than a person compares."""
    cells = {(_line(row), (row.adapter, row.weight)): row for row in rows}
    columns = sorted({column for _, column in cells}, key=_natural)
    if not 1 < len(columns) <= MOST:
        return None
    return Matrix(sorted({line for line, _ in cells}), columns, cells)


def _line(row: Row) -> Line:
    return row.scheme, row.order, row.target, row.base


def _natural(column: Column) -> tuple[list[tuple[int, int, str]], float]:
    """Checkpoints in the order of their numbers: step 900 before step 1000."""
    parts = [part for part in re.split(r"(\d+)", column[0]) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], column[1]
