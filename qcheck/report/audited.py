"""An audit for a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.result.audit import Audit, AuditedCase, FolderAudit

_SHOWN = 8


def text(audit: Audit, console: Console) -> None:
    """Every folder, one after the other, and the answer."""
    for folder in audit.folders:
        _folder(folder, audit.limits, console)
    stated = [case for folder in audit.folders for case in folder.cases if not case.stands]
    own = stated or any(folder.differences for folder in audit.folders)
    answer = {
        0: ("sound: every verdict follows from the evidence, and no byte is changed", "bold green"),
        1: (
            "not sound: a verdict does not follow from the evidence"
            if own
            else f"sound by its own limits, and limits {audit.limits!r} give another verdict",
            "bold red",
        ),
        2: ("not sound: files are changed, missing or not signed", "bold red"),
    }
    words, style = answer[audit.code]
    console.print(Text(words, style=style))


def _folder(folder: FolderAudit, limits: str | None, console: Console) -> None:
    console.print(Text(folder.folder, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("scheme", "order", "the report says", "the evidence gives", *([f"by {limits}"] if limits else [])):
        table.add_column(title)
    for case in folder.cases:
        cells: list[str | Text] = [case.scheme, case.order, case.stated, _outcome(case.evidence, case)]
        table.add_row(*cells, *([_outcome(case.given, case)] if limits else []))
    if folder.cases:
        console.print(table)
    for case in folder.cases:
        _list(console, f"{case.scheme} {case.order}", _sentences(case))
    _list(console, "report", folder.differences)
    _list(console, "changed", folder.changed)
    _list(console, "missing", folder.missing)
    _list(console, "in no digest", folder.added)
    if folder.signed is not None:
        words = "signed by the key given" if folder.signed else "not signed by the key given"
        console.print(Text(f"signature: {words}"))
    if folder.unaudited:
        console.print(Text(f"{folder.unaudited} rows have no page, forecasts and errors: nothing vouches for them"))
    whole = folder.files - len(set(folder.changed) | set(folder.missing))
    console.print(Text(f"{max(0, whole)} of {folder.files} files are as they were written\n"))


def _outcome(outcome: str | None, case: AuditedCase) -> Text:
    return Text(outcome or "nothing", style="" if outcome == case.stated else "bold red")


def _sentences(case: AuditedCase) -> list[str]:
    sentences = [f"the verdict lapses: {one}" for one in case.lapsed]
    for outcome, words in ((case.evidence, "the evidence gives"), (case.given, "the limits given give")):
        if outcome not in (None, case.stated):
            sentences.append(f"the report says {case.stated}, {words} {outcome}")
            sentences += [f"because {reason}" for reason in case.reasons]
    return [*sentences, *case.differences]


def _list(console: Console, title: str, sentences: list[str]) -> None:
    for sentence in sentences[:_SHOWN]:
        console.print(Text(f"{title}: {sentence}"), soft_wrap=True)
    if len(sentences) > _SHOWN:
        console.print(Text(f"{title}: and {len(sentences) - _SHOWN} more"))
