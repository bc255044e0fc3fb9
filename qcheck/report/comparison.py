"""A matrix of reports, and a comparison with a baseline: for a terminal and as Markdown."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.judge.compare import Change, Comparison, Matrix, Row
from qcheck.report.markdown import SIGNS, escape, table
from qcheck.report.numbers import ARMS
from qcheck.report.text import COLOURS
from qcheck.report.wording import line
from qcheck.result.verdict import Outcome

_STYLES = {"worse": "bold red", "better": "green", "other": "yellow"}


def _titles(matrix: Matrix) -> list[str]:
    return ["adapter", "target", "report", *(f"{scheme} {order}" for scheme, order in matrix.columns)]


def _verdicts(matrix: Matrix, row: Row) -> Iterator[tuple[Outcome | None, str]]:
    """For every column the verdict, the adapter's survival and what decided; None where there is no such case."""
    cells = {(cell.scheme, cell.order): cell for cell in row.cells}
    for column in matrix.columns:
        cell = cells.get(column)
        seen = cell.survival if cell is not None else None
        parts = [f"{seen.value:.2f}"] if seen and seen.value is not None else []
        if cell is not None and cell.deciding is not None:
            parts.append(f"by {cell.deciding.name} ({ARMS[cell.deciding.arm]})")
        yield cell.verdict if cell else None, ", ".join(parts)


def matrix_text(matrix: Matrix, console: Console) -> None:
    """A row a report, a column a scheme and order: verdict, survival, and the measurement that decided."""
    made = Table(box=box.ROUNDED)
    for title in _titles(matrix):
        made.add_column(Text(line(title)), overflow="fold")
    for row in matrix.rows:
        cells = [
            Text(f"{verdict}\n{told}", COLOURS[verdict]) if verdict else Text("not checked", "dim")
            for verdict, told in _verdicts(matrix, row)
        ]
        made.add_row(*(Text(line(part)) for part in (row.adapter, row.target, row.source)), *cells)
    console.print(made)
    console.print("the number is effect_survival: 1 is the whole adapter; by: the measurement that decided")


def matrix_markdown(matrix: Matrix) -> str:
    """The same as a Markdown table."""
    rows = [
        [
            *map(escape, (row.adapter, row.target, row.source)),
            *(
                f"{SIGNS[verdict]} {verdict} {escape(told)}".strip() if verdict else "not checked"
                for verdict, told in _verdicts(matrix, row)
            ),
        ]
        for row in matrix.rows
    ]
    about = "The number is effect\\_survival: 1 is the whole adapter; by: the measurement that decided."
    return f"{table([escape(title) for title in _titles(matrix)], rows)}\n\n{about}\n"


def _headline(found: Comparison) -> str:
    worse = sum(change.direction == "worse" for change in found.changes)
    return f"{worse} got worse" if worse else "nothing got worse"


def _what(change: Change) -> str:
    return f"{change.name} ({change.arm})" if change.arm else change.name


def _limit(change: Change) -> str:
    return "" if change.limit is None else change.limit.text()


def _about(found: Comparison) -> str:
    return (
        f"{found.compared} gated measurements compared: a change counts where the two 95 % intervals do not touch; "
        "measurements without a limit have no better side and are left out"
    )


def changes_text(found: Comparison, console: Console) -> None:
    """What got worse first, then everything else that changed and what the two checks differ in."""
    console.print(Text(f"{_headline(found)}: {line(found.new)} against {line(found.baseline)}", "bold"))
    if found.changes:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("", "scheme", "order", "what", "baseline", "new", "limit"):
            made.add_column(title, overflow="fold", no_wrap=title in ("scheme", "order"))
        for change in _sorted(found):
            cells = (change.scheme, change.order, _what(change), change.before, change.after, _limit(change))
            made.add_row(Text(change.direction, _STYLES[change.direction]), *(Text(line(cell)) for cell in cells))
        console.print(made)
    for differs in found.differences:
        console.print(Text(f"differs in {differs.name}: {line(differs.before)} -> {line(differs.after)}", "yellow"))
    console.print(Text(_about(found), "dim"))


def changes_markdown(found: Comparison) -> str:
    """The same as Markdown."""
    sign = SIGNS["FAIL-RECIPE" if found.regressed else "PASS"]
    parts = [f"### {sign} qcheck: {_headline(found)}\n\n{escape(found.new)} against {escape(found.baseline)}"]
    if found.changes:
        rows = [
            [
                f"**{change.direction}**" if change.direction == "worse" else change.direction,
                *map(escape, (change.scheme, change.order, _what(change), change.before, change.after)),
                escape(_limit(change)),
            ]
            for change in _sorted(found)
        ]
        parts.append(table(("", "scheme", "order", "what", "baseline", "new", "limit"), rows))
    if found.differences:
        parts.append(
            "\n".join(f"- differs in {d.name}: {escape(d.before)} → {escape(d.after)}" for d in found.differences)
        )
    return "\n\n".join([*parts, _about(found)]) + "\n"


def _sorted(found: Comparison) -> list[Change]:
    return sorted(found.changes, key=lambda change: ("worse", "other", "better").index(change.direction))
