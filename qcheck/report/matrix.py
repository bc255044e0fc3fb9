"""Adapters or weights side by side, as text."""

from qcheck.judge.matrix import Matrix
from qcheck.result.fleet import Row


def compared(found: Matrix) -> tuple[list[str], list[list[str]]]:
    """A matrix as titles and lines of text: verdict and survival, of the surest pass of a line with an asterisk."""
    lines = []
    for key in found.lines:
        surest, cells = found.surest(key), [found.line_title(key)]
        for place, column in enumerate(found.columns):
            row = found.cells.get((key, column))
            cells.append("-" if row is None else _cell(row, place == surest))
        lines.append(cells)
    return ["scheme, order", *found.titles], lines


def _cell(row: Row, surest: bool) -> str:
    survival = "" if row.survival is None else f" {row.survival:.2f}"
    return f"{row.status}{survival}{' *' if surest else ''}"
