"""A sweep as files: one page to look at, Markdown, JUnit, and tables for other programs.

summary.html    every case, filtered and sorted in place, linked to its page; no network
summary.md      the counts, what holds together, and what needs a person
summary.csv     every case; index.parquet too where pyarrow is installed
junit.xml       a test suite for each adapter
"""

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

from qcheck import __version__
from qcheck.core.places import Files
from qcheck.judge.fleet import Summary
from qcheck.judge.matrix import matrix
from qcheck.report import html
from qcheck.report.html import view
from qcheck.report.junit import KINDS
from qcheck.report.markdown import SIGNS, escape, table
from qcheck.report.matrix import compared
from qcheck.report.numbers import ARMS, bounds, limit, number
from qcheck.report.wording import line
from qcheck.result.fleet import Row
from qcheck.result.verdict import Outcome

PAGE, MARKDOWN, CSV, PARQUET, JUNIT = "summary.html", "summary.md", "summary.csv", "index.parquet", "junit.xml"
_SHOWN = 30  # rows of summary.md
_COLUMNS = (
    *("adapter", "weight", "base", "scheme", "order", "target", "verdict", "error", "stage", "measurement", "value"),
    *("low", "high", "survival", "doubt", "certain", "probes", "worst_layer", "bytes", "build", "seconds", "page"),
)


def write(summary: Summary, files: Files) -> list[str]:
    """Write every file of a sweep's summary; returns their names."""
    texts = {PAGE: page(summary), MARKDOWN: markdown(summary), JUNIT: junit(summary)}
    records = [record(row, summary) for row in summary.rows]
    content = io.StringIO()
    writer = csv.DictWriter(content, _COLUMNS)
    writer.writeheader()
    writer.writerows(records)
    texts[CSV] = content.getvalue()
    for name, text in texts.items():
        files.write(name, text.encode())
    if find_spec("pyarrow") is not None:
        files.write(PARQUET, _parquet(records))
        return [*texts, PARQUET]
    return [*texts]


def _parquet(records: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist([*records]), content)
    return content.getvalue()


def record(row: Row, summary: Summary) -> dict[str, Any]:
    """A row as the columns of a table; None where there is nothing."""
    deciding = row.deciding
    return {
        **row.model_dump(include=set(_COLUMNS)),
        "measurement": None if deciding is None else f"{deciding.name} ({deciding.arm})",
        "value": None if deciding is None else deciding.value,
        "low": None if deciding is None else deciding.low,
        "high": None if deciding is None else deciding.high,
        "certain": row.case in summary.certain,
    }


def decided(row: Row) -> str:
    """What decided a row, in a few words."""
    if row.error is not None:
        return row.error
    if row.stage == "forecast" or row.deciding is None:
        return row.reasons[0] if row.reasons else row.next
    deciding = row.deciding
    interval = f" ({within})" if (within := bounds(deciding)) else ""
    return f"{deciding.name} ({ARMS[deciding.arm]}) {number(deciding)}{interval}, limit {limit(deciding)}"


def _look(row: Row) -> tuple[str, str]:
    """The class and the sign of a row's verdict."""
    if row.verdict is None:
        return "bad", "!"
    kind, sign, *_ = view.KINDS[row.verdict]
    return kind, sign


def headline(summary: Summary) -> str:
    """The sweep in a sentence."""
    counts, adapters = summary.counts, len({(row.adapter, row.weight, row.base) for row in summary.rows})
    parts = [f"{counts[name]} {name}" for name in (*SIGNS, "error") if counts[name]]
    return f"{len(summary.rows)} cases of {adapters} adapters: {', '.join(parts)}"


def page(summary: Summary) -> str:
    """summary.html."""
    script = (Path(__file__).parent / "page.js").read_text("utf-8")
    style = (Path(html.__file__).parent / "style.css").read_text("utf-8")
    text: str = html.template(package=__name__).render(
        summary=summary,
        headline=headline(summary),
        version=__version__,
        rows=[(row, _look(row), decided(row)) for row in summary.rows],
        matrix=side_by_side(summary),
        choices={name: sorted({getattr(row, name) for row in summary.rows}) for name in _CHOICES},
        style=Markup(style),  # noqa: S704  # the package's own file
        script=Markup(script),  # noqa: S704  # the package's own file
        policy=f"'sha256-{html.digest(script)}'",
    )
    return text


_CHOICES = ("status", "scheme", "order", "target")


def markdown(summary: Summary) -> str:
    """summary.md: short enough for a comment."""
    rows = [
        (f"{SIGNS.get(row.verdict or 'INVALID', '❔')} {row.status}", *map(escape, _cells(row)))
        for row in summary.rows[:_SHOWN]
    ]
    more = len(summary.rows) - len(rows)
    parts = [
        f"## {escape(headline(summary), 400)}",
        summary.error_control(),
        _side_by_side(summary),
        table(("verdict", "adapter", "scheme, order", "target", "decided by"), rows),
        f"and {more} more in `{CSV}` and `{PAGE}`" if more else "",
        _layers(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.title, f"{row.scheme}, {row.order}", row.target, decided(row)


def side_by_side(summary: Summary) -> tuple[list[str], list[list[str]], str] | None:
    """Titles, lines and advice of the matrix of a sweep of few adapters or weights; None of others."""
    adapters = matrix(summary.rows)
    return None if adapters is None else (*compared(adapters), adapters.advice())


def _side_by_side(summary: Summary) -> str:
    if (parts := side_by_side(summary)) is None:
        return ""
    titles, lines, advice = parts
    cells = [[escape(text) for text in line] for line in lines]
    return f"{table([*map(escape, titles)], cells)}\n\n{escape(advice)} {SURE}"


SURE = "With survival; \\* the surest pass of its line."


def _layers(summary: Summary) -> str:
    if not summary.worst_layers:
        return ""
    named = ", ".join(f"{escape(layer)} ({count})" for layer, count in summary.worst_layers)
    return f"Layers that cost several cases most: {named}."


def junit(summary: Summary) -> str:
    """junit.xml: a suite for each adapter, a test case for each of its cases."""
    root = Element("testsuites", {"name": "qcheck sweep"})
    suites: dict[str, Element] = {}
    for row in summary.rows:
        suite = suites.get(row.title)
        if suite is None:
            suite = suites[row.title] = SubElement(root, "testsuite", {"name": line(row.title)})
        name = line(f"{row.scheme} {row.order} on {row.target}")
        case = SubElement(suite, "testcase", {"name": name, "classname": f"qcheck.{line(row.title)}"})
        case.set("time", f"{row.seconds:.3f}")
        kind = _kind(row.verdict)
        if kind is not None:
            SubElement(case, kind, {"type": row.status, "message": line(row.next or decided(row))}).text = line(
                decided(row), 2000
            )
    for element in (root, *suites.values()):
        cases = [*element.iter("testcase")]
        kinds = [child.tag for case in cases for child in case]
        element.set("tests", str(len(cases)))
        element.set("failures", str(kinds.count("failure")))
        element.set("errors", str(kinds.count("error")))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _kind(verdict: Outcome | None) -> str | None:
    return "error" if verdict is None else KINDS[verdict]
