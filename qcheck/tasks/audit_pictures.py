"""The audit of a report of pictures: its bytes, and its verdict from the numbers of each pair."""

from collections.abc import Iterator
from pathlib import Path

from qcheck.core.errors import UserError
from qcheck.core.values import names_in
from qcheck.report import seal, statement
from qcheck.result.audit import AuditedCase, FolderAudit
from qcheck.result.measurement import Measurement
from qcheck.result.pictures import PicturesReport
from qcheck.result.report import REPORT
from qcheck.result.verdict import Verdict
from qcheck.spec import picture_limits
from qcheck.spec.picture_limits import PictureLimits
from qcheck.tasks import again, basis, picture_verdict

_STATED = "noop_control"  # a share of pairs whose pictures are equal: no number of one pair


def of_folder(folder: Path, report: PicturesReport, limits: PictureLimits | None = None) -> FolderAudit:
    """The audit of a report, by its own limits and by those given, and of the files around it.

    noop_control stays as it is stated.
    """
    files = seal.files(folder)
    unsealed = [name for name in files.missing if name != statement.NAME]  # a statement is of a check
    if REPORT in files.added:
        unsealed.append(REPORT)
    return FolderAudit(
        folder=str(folder),
        files=len(files.expected),
        changed=files.changed,
        missing=unsealed,
        added=[name for name in files.added if name != REPORT],
        differences=[*_limits(report)],
        cases=[_again(report, limits)],
    )


def _limits(report: PicturesReport) -> Iterator[str]:
    """That the limits are called as shipped ones are, and are others."""
    name = report.limits.name
    if name in names_in(picture_limits.FOLDER) and picture_limits.find(name) != report.limits:
        yield f"the limits are called {report.limits.name!r}, and are not those that this qcheck ships under that name"


def _again(report: PicturesReport, limits: PictureLimits | None) -> AuditedCase:
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
        last = verdict if limits is None else picture_verdict.decide(limits, others, samples, len(report.pairs))
    except (ArithmeticError, LookupError, TypeError, ValueError, UserError) as error:
        reason = f"the numbers of its pairs do not fit together: {str(error).splitlines()[0]}"
        return audited.model_copy(update={"differences": [reason]})
    update = {"evidence": verdict.outcome, "reasons": list(last.reasons), "differences": differences}
    return audited.model_copy(update=update | ({} if limits is None else {"given": last.outcome}))


def _differences(report: PicturesReport, verdict: Verdict) -> Iterator[str]:
    rows = {len(one.rows) for one in report.samples}
    if rows != {len(report.pairs)}:
        yield f"{len(report.pairs)} pairs are named, and numbers of {', '.join(map(str, sorted(rows)))} are kept"
    yield from again.repeated(report.measurements)
    stated = {(one.name, one.arm): one for one in report.measurements}
    for one in verdict.measurements:
        yield from again.compared(stated.pop((one.name, one.arm)), one)
    for one in stated.values():
        yield f"{one.name} ({one.arm}) is {one.value:g} in the report, and no number of a pair gives it"
    if report.deciding != verdict.deciding and report.verdict == verdict.outcome:
        yield f"the verdict rests on {verdict.deciding}, and the report says {report.deciding}"
