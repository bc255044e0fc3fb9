"""Adapters or weights side by side, as text."""

from qcheck.judge.matrix import Matrix
from qcheck.result.fleet import Row


def compared(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """A matrix as titles and lines of text: verdict and survival, of the surest pass of a line with an asterisk."""
    lines = []
    for key in matrix.lines:
        surest, cells = matrix.surest(key), [matrix.line_title(key)]
        for place, column in enumerate(matrix.columns):
            row = matrix.cells.get((key, column))
            cells.append("-" if row is None else _cell(row, place == surest))
        lines.append(cells)
    return ["scheme, order", *matrix.titles], lines


def _cell(row: Row, surest: bool) -> str:
    survival = "" if row.survival is None else f" {row.survival:.2f}"
    return f"{row.status}{survival}{' *' if surest else ''}"
