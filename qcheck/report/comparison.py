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
    picked = {(pick.row, pick.scheme, pick.order) for pick in matrix.picks}
    targets = len({row.target for row in matrix.rows}) > 1
    for number, row in enumerate(matrix.rows):
        cells = {(cell.scheme, cell.order): cell for cell in row.cells}
        about = (f"{number + 1} {row.adapter}", row.target if targets else "")
        for column in matrix.columns:
            cell = cells.get(column)
            if cell is None:
                yield _Line(about, column, None, "", "", False)
                continue
            seen = cell.survival
            numbers = [f"survival {seen.value:.2f}"] if seen is not None and seen.value is not None else []
            numbers += [] if cell.bytes is None else [megabytes(cell.bytes)]
            yield _Line(about, column, cell.verdict, "\n".join(numbers), cell.reason, (number, *column) in picked)


def _picked(matrix: Matrix, pick: Pick) -> str:
    if pick.row is None:
        return f"ship nothing to {pick.target}: {pick.why}"
    row = matrix.rows[pick.row]
    return f"ship {row.adapter} as {pick.scheme}, {pick.order} to {pick.target}: {pick.why}"


_ABOUT = "survival 1 is the whole adapter; a size is that of the denoiser's file"


def matrix_text(matrix: Matrix, console: Console) -> None:
    """What to ship, then a row for every scheme and order of every report: verdict, survival, size and reason."""
    for pick in matrix.picks:
        console.print(Text(line(_picked(matrix, pick)), "bold" if pick.row is not None else "bold yellow"))
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("report", "scheme, order", "verdict", "why"):
        made.add_column(title, overflow="fold")
    for shown in _lines(matrix):
        about, case = (Text("\n".join(filter(None, map(line, pair)))) for pair in (shown.about, shown.case))
        if shown.verdict is None:
            made.add_row(about, case, Text("not checked", "dim"), "")
            continue
        ship = f"\n{_SHIP}" if shown.ship else ""
        verdict = Text(f"{shown.verdict}\n{shown.numbers}{ship}", COLOURS[shown.verdict])
        made.add_row(about, case, verdict, Text(line(shown.reason)))
    console.print(made)
    for number, row in enumerate(matrix.rows):
        told = f"{number + 1} {line(row.adapter)} on {line(row.base)} for {line(row.target)}: {line(row.source)}"
        console.print(Text(told, "dim"), soft_wrap=True)
    console.print(Text(_ABOUT, "dim"))


def matrix_markdown(matrix: Matrix) -> str:
    """The same as Markdown."""
    rows = []
    for shown in _lines(matrix):
        case = f"{SIGNS[shown.verdict]} {shown.verdict}" if shown.verdict else "not checked"
        numbers = escape(shown.numbers.replace("\n", ", "))
        about = escape(" ".join(filter(None, shown.about)))
        said = f"**{case}, {_SHIP}**" if shown.ship else case
        rows.append([about, *map(escape, shown.case), said, numbers, escape(shown.reason)])
    told = [
        f"{number + 1}. {escape(row.adapter)} on {escape(row.base)} for {escape(row.target)}: {escape(row.source)}"
        for number, row in enumerate(matrix.rows)
    ]
    picks = "\n".join(f"- {escape(_picked(matrix, pick), 400)}" for pick in matrix.picks)
    made = table(("report", "scheme", "order", "verdict", "survival, size", "why"), rows)
    return "\n\n".join([picks, made, "\n".join(told), f"{_ABOUT}."]) + "\n"


def _headline(found: Comparison) -> str:
    worse = sum(change.direction == "worse" for change in found.changes)
    return f"{worse} got worse" if worse else "nothing got worse"


def _what(change: Change) -> str:
    return f"{change.name} ({change.arm})" if change.arm else change.name


def _limit(change: Change) -> str:
    return "" if change.limit is None else change.limit.text()


def _about(found: Comparison) -> str:
    return (
        f"{found.compared} gated measurements compared: a change counts where the two 95 % intervals do not touch and "
        "more than a quarter of the room to the limit is gone, or the status changed; measurements without a limit "
        "have no better side and are left out"
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
    console.print()
    matrix_text(found.matrix, console)


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
    return "\n\n".join([*parts, _about(found), "#### Which to ship", matrix_markdown(found.matrix)])


def _sorted(found: Comparison) -> list[Change]:
    return sorted(found.changes, key=lambda change: ("worse", "other", "better").index(change.direction))
