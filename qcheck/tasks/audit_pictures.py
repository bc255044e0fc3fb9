"""The audit of a report of pictures: its bytes, and its verdict from the numbers of each pair."""

from collections.abc import Iterator
from pathlib import Path

from qcheck.core.errors import UserError
from qcheck.report import seal
from qcheck.result.audit import AuditedCase, FolderAudit
from qcheck.result.measurement import Measurement
from qcheck.result.pictures import PicturesReport
from qcheck.result.verdict import Verdict
from qcheck.tasks import again, basis, picture_verdict

_STATED = "noop_control"  # a share of pairs whose pictures are equal: no number of one pair


def of_folder(folder: Path, report: PicturesReport) -> FolderAudit:
    """The audit of a report and the files around it. noop_control stays as it is stated."""
    known, changed, missing = seal.sweep(folder)
    return FolderAudit(
        folder=str(folder),
        files=len(known),
        changed=changed,
        missing=missing,
        added=[],
        differences=[],
        cases=[_again(report)],
    )


def _again(report: PicturesReport) -> AuditedCase:
    audited = AuditedCase(scheme="pictures", order=report.match, stated=report.verdict, evidence=None)
    try:
        samples = basis.samples(report.samples)
        names = {(one.name, one.arm) for one in samples}
        others = [
            Measurement(**one.model_dump(include=set(Measurement.model_fields)))
            for one in report.measurements
            if (one.name, one.arm) not in names and (one.name == _STATED or not one.measured)
        ]
        verdict = picture_verdict.decide(report.limits, others, samples, len(report.pairs))
        differences = [*_differences(report, verdict)]
    except (ArithmeticError, LookupError, TypeError, ValueError, UserError) as error:
        reason = f"the numbers of its pairs do not fit together: {str(error).splitlines()[0]}"
        return audited.model_copy(update={"differences": [reason]})
    update = {"evidence": verdict.outcome, "reasons": list(verdict.reasons), "differences": differences}
    return audited.model_copy(update=update)


def _differences(report: PicturesReport, verdict: Verdict) -> Iterator[str]:
    rows = {len(one.rows) for one in report.samples}
    if rows != {len(report.pairs)}:
        yield f"{len(report.pairs)} pairs are named, and numbers of {', '.join(map(str, sorted(rows)))} are kept"
    stated = {(one.name, one.arm): one for one in report.measurements}
    for one in verdict.measurements:
        yield from again.compared(stated.pop((one.name, one.arm)), one)
    for one in stated.values():
        yield f"{one.name} ({one.arm}) is {one.value:g} in the report, and no number of a pair gives it"
    if report.deciding != verdict.deciding and report.verdict == verdict.outcome:
        yield f"the verdict rests on {verdict.deciding}, and the report says {report.deciding}"
