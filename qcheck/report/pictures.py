"""The report of ``qcheck pictures`` as a folder, and for a terminal, a pull request and a CI system."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from rich.console import Console
from rich.text import Text

from qcheck.device import sums
from qcheck.diagnose.sheet import Sheet
from qcheck.report import contact, html
from qcheck.report import write as files
from qcheck.report.junit import KINDS
from qcheck.report.markdown import SIGNS, escape, judged_table
from qcheck.report.numbers import ARMS, decided, limit, number, rest, shown
from qcheck.report.text import COLOURS, measurements
from qcheck.report.wording import line
from qcheck.result.evidence import PICTURES
from qcheck.result.pictures import PicturesReport
from qcheck.result.report import REPORT
from qcheck.spec.arm import SIDES


def write(report: PicturesReport, sheet: Sheet, folder: Path) -> PicturesReport:
    """Write all files below ``folder``, their digests last; the report, which now names its pictures."""
    contact.draw([sheet], folder / "contact.png")
    (folder / PICTURES).mkdir()
    drawn = [files.draw(sheet, side, 0, folder) for side in SIDES]
    whole = report.model_copy(update={"shown": drawn})
    (folder / REPORT).write_text(whole.to_json(), "utf-8")
    (folder / "report.md").write_text(markdown(whole), "utf-8")
    (folder / "junit.xml").write_text(junit(whole), "utf-8")
    (folder / html.NAME).write_text(html.pictures_page(whole, folder), "utf-8")
    (folder / sums.NAME).write_bytes(sums.text(sums.of(folder)))
    return whole


def render(report: PicturesReport, folder: Path, console: Console) -> None:
    """Print the report; ``folder`` is where its files are."""
    console.print()
    console.print(measurements(report))
    console.print(Text(f"reported in report.json, without a limit: {rest(report)}\n"))
    console.print(Text(_setup(report)))
    brief(report, console)
    for reason in report.reasons:
        console.print(Text(f"  because {reason}"))
    if deciding := decided(report):
        console.print(Text(f"  {deciding}"))
    for warning in report.warnings:
        console.print(Text.assemble(("  warning ", "yellow"), warning))
    console.print(Text("  black box: no layer is blamed"))
    console.print(Text(f"limits: {report.limits.grounds}"))
    console.print(Text(f"not measured: {', '.join(one.name for one in report.not_measured)} (why: report.json)"))
    console.print(
        f"report   {folder / html.NAME}\ndata     {folder / REPORT}\npictures {folder / 'contact.png'}",
        highlight=False,
        soft_wrap=True,
    )


def brief(report: PicturesReport, console: Console) -> None:
    """Print the verdict and what to do."""
    console.print(Text.assemble((report.verdict, COLOURS[report.verdict]), f"  {report.next}"))


def _setup(report: PicturesReport) -> str:
    folders = ", ".join(f"{folder.role} {folder.path}" for folder in report.folders)
    return f"{len(report.pairs)} pictures of each at {report.width}x{report.height}, by {report.match}: {folders}"


def markdown(report: PicturesReport) -> str:
    """The report as Markdown (GitHub's dialect)."""
    parts = [
        f"### qcheck pictures: {SIGNS[report.verdict]} {report.verdict}",
        escape(_setup(report), 1000),
        "\n".join(
            [
                f"- **{report.verdict}**: {escape(report.next, 400)}",
                *(f"  - because {escape(reason, 400)}" for reason in report.reasons),
                *(f"  - warning: {escape(warning, 400)}" for warning in report.warnings),
            ]
        ),
        judged_table(report.measurements),
        f"Limits: {escape(report.limits.grounds)}. Black box: no layer is blamed.",
    ]
    return "\n\n".join(parts) + "\n"


def junit(report: PicturesReport) -> str:
    """One test case, in the dialect of a check's junit.xml."""
    kind = KINDS[report.verdict]
    counts = {"tests": "1", "failures": str(int(kind == "failure")), "errors": str(int(kind == "error"))}
    counts["time"] = f"{report.origin.seconds:.3f}"
    name = next(line(Path(folder.path).name) for folder in report.folders if folder.role == "q1")
    root = Element("testsuites", {"name": "qcheck", **counts})
    suite = SubElement(
        root, "testsuite", {"name": "qcheck pictures", **counts, "timestamp": line(report.origin.created)}
    )
    testcase = SubElement(suite, "testcase", {"name": name, "classname": "qcheck.pictures", "time": counts["time"]})
    if kind is not None:
        texts = "\n".join(line(text, 2000) for text in (*report.reasons, report.next))
        SubElement(testcase, kind, {"type": report.verdict, "message": line(report.next)}).text = texts
    lines = [
        f"{one.name} ({ARMS[one.arm]}) {number(one)}, limit {limit(one)}: {one.status}"
        for one in report.measurements
        if shown(one)
    ]
    SubElement(testcase, "system-out").text = "\n".join(line(text, 2000) for text in lines)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'
