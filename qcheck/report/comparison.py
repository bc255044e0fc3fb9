"""A matrix of reports, and a comparison with a baseline: for a terminal and as Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.core.size import megabytes
from qcheck.judge.compare import Change, Comparison, Matrix, Pick
from qcheck.report.markdown import SIGNS, escape, table
from qcheck.report.text import COLOURS
from qcheck.report.wording import line
from qcheck.result.verdict import Outcome

_STYLES = {"worse": "bold red", "better": "green", "other": "yellow"}


_SHIP = "ship this"


@dataclass(frozen=True)
class _Line:
    """One scheme and order of one report as a table shows it; ``verdict`` None where the report has no such case."""

    about: tuple[str, str]
    case: tuple[str, str]
    verdict: Outcome | None
    numbers: str
    reason: str
    ship: bool


def _lines(matrix: Matrix) -> Iterator[_Line]:
    """Every scheme and order of every report, reports in turn."""
    picks = {(pick.row, pick.scheme, pick.order) for pick in matrix.picks}
    targets = len({row.target for row in matrix.rows}) > 1
    for number, row in enumerate(matrix.rows):
        cells = {(cell.scheme, cell.order): cell for cell in row.cells}
        about = (f"{number + 1} {row.adapter}", row.target if targets else "")
        for column in matrix.columns:
            cell = cells.get(column)
            if cell is None:
                yield _Line(about, column, None, "", "", False)
                continue
            survival = cell.survival
            numbers = [f"survival {survival.value:.2f}"] if survival is not None and survival.value is not None else []
            numbers += [] if cell.bytes is None else [megabytes(cell.bytes)]
            reason = cell.reason if cell.board is None else f"{cell.reason}; the board: {cell.board}"
            yield _Line(about, column, cell.verdict, "\n".join(numbers), reason, (number, *column) in picks)


def _pick_line(matrix: Matrix, pick: Pick) -> str:
    if pick.row is None:
        return f"ship nothing to {pick.target}: {pick.why}"
    row = matrix.rows[pick.row]
    return f"ship {row.adapter} as {pick.scheme}, {pick.order} to {pick.target}: {pick.why}"


_ABOUT = "survival 1 is the whole adapter; a size is that of the denoiser's file"


def matrix_text(matrix: Matrix, console: Console) -> None:
    """What to ship, then a row for every scheme and order of every report: verdict, survival, size and reason."""
    for pick in matrix.picks:
        console.print(Text(line(_pick_line(matrix, pick)), "bold" if pick.row is not None else "bold yellow"))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("report", "scheme, order", "verdict", "why"):
        grid.add_column(title, overflow="fold")
    for entry in _lines(matrix):
        about, case = (Text("\n".join(filter(None, map(line, pair)))) for pair in (entry.about, entry.case))
        if entry.verdict is None:
            grid.add_row(about, case, Text("not checked", "dim"), "")
            continue
        ship = f"\n{_SHIP}" if entry.ship else ""
        verdict = Text(f"{entry.verdict}\n{entry.numbers}{ship}", COLOURS[entry.verdict])
        grid.add_row(about, case, verdict, Text(line(entry.reason)))
    console.print(grid)
    for number, row in enumerate(matrix.rows):
        source_line = f"{number + 1} {line(row.adapter)} on {line(row.base)} for {line(row.target)}: {line(row.source)}"
        console.print(Text(source_line, "dim"), soft_wrap=True)
    console.print(Text(_ABOUT, "dim"))


def matrix_markdown(matrix: Matrix) -> str:
    """The same as Markdown."""
    rows = []
    for entry in _lines(matrix):
        case = f"{SIGNS[entry.verdict]} {entry.verdict}" if entry.verdict else "not checked"
        numbers = escape(entry.numbers.replace("\n", ", "))
        about = escape(" ".join(filter(None, entry.about)))
        verdict = f"**{case}, {_SHIP}**" if entry.ship else case
        rows.append([about, *map(escape, entry.case), verdict, numbers, escape(entry.reason)])
    sources = [
        f"{number + 1}. {escape(row.adapter)} on {escape(row.base)} for {escape(row.target)}: {escape(row.source)}"
        for number, row in enumerate(matrix.rows)
    ]
    picks = "\n".join(f"- {escape(_pick_line(matrix, pick), 400)}" for pick in matrix.picks)
    grid = table(("report", "scheme", "order", "verdict", "survival, size", "why"), rows)
    return "\n\n".join([picks, grid, "\n".join(sources), f"{_ABOUT}."]) + "\n"


def _headline(comparison: Comparison) -> str:
    worse = sum(change.direction == "worse" for change in comparison.changes)
    return f"{worse} got worse" if worse else "nothing got worse"


def _change_name(change: Change) -> str:
    return f"{change.name} ({change.arm})" if change.arm else change.name


def _limit(change: Change) -> str:
    return "" if change.limit is None else change.limit.text()


def _about(comparison: Comparison) -> str:
    return (
        f"{comparison.compared} gated measurements compared: a change counts where the two 95 % intervals do not touch "
        "and more than a quarter of the room to the limit is gone, or the status changed; measurements without a limit "
        "have no better side and are left out"
    )


def changes_text(comparison: Comparison, console: Console) -> None:
    """What got worse first, then everything else that changed and what the two checks differ in."""
    console.print(Text(f"{_headline(comparison)}: {line(comparison.new)} against {line(comparison.baseline)}", "bold"))
    if comparison.changes:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("", "scheme", "order", "what", "baseline", "new", "limit"):
            grid.add_column(title, overflow="fold", no_wrap=title in ("scheme", "order"))
        for change in _sorted(comparison):
            cells = (change.scheme, change.order, _change_name(change), change.before, change.after, _limit(change))
            grid.add_row(Text(change.direction, _STYLES[change.direction]), *(Text(line(cell)) for cell in cells))
        console.print(grid)
    for difference in comparison.differences:
        console.print(
            Text(f"differs in {difference.name}: {line(difference.before)} -> {line(difference.after)}", "yellow")
        )
    console.print(Text(_about(comparison), "dim"))
    console.print()
    matrix_text(comparison.matrix, console)


def changes_markdown(comparison: Comparison) -> str:
    """The same as Markdown."""
    sign = SIGNS["FAIL-RECIPE" if comparison.regressed else "PASS"]
    parts = [
        f"### {sign} qcheck: {_headline(comparison)}\n\n{escape(comparison.new)} against {escape(comparison.baseline)}"
    ]
    if comparison.changes:
        rows = [
            [
                f"**{change.direction}**" if change.direction == "worse" else change.direction,
                *map(escape, (change.scheme, change.order, _change_name(change), change.before, change.after)),
                escape(_limit(change)),
            ]
            for change in _sorted(comparison)
        ]
        parts.append(table(("", "scheme", "order", "what", "baseline", "new", "limit"), rows))
    if comparison.differences:
        parts.append(
            "\n".join(
                f"- differs in {difference.name}: {escape(difference.before)} → {escape(difference.after)}"
                for difference in comparison.differences
            )
        )
    return "\n\n".join([*parts, _about(comparison), "#### Which to ship", matrix_markdown(comparison.matrix)])


def _sorted(comparison: Comparison) -> list[Change]:
    return sorted(comparison.changes, key=lambda change: ("worse", "other", "better").index(change.direction))
