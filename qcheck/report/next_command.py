"""The command to type after a report, complete: it runs as it stands."""

from pathlib import Path

from qcheck.judge.recommend import recommended
from qcheck.result.report import Case, Report
from qcheck.result.verdict import CURABLE
from qcheck.spec import command, order
from qcheck.spec.check import CheckSpec

BOARD = "board"  # the folder that an export is told to write


def next_command(report: Report, folder: Path = Path()) -> str | None:
    """What to run next, as typed where ``folder`` is the report's; None where there is nothing to run.

    What passes is exported; what does not pass is advised on; an adapter that is broken at full precision is looked at;
    a check whose builder crashed is repeated without the build.
    """
    words = _words(report, folder)
    return None if words is None else command.line(words)


def _words(report: Report, folder: Path) -> list[str] | None:
    ours = [case for case in report.cases if case.quantized_layers is not None]
    verdicts = {case.verdict for case in ours}
    place = recommended(ours)
    if place is not None:
        return [*command.export_words(_request(report, ours[place]), folder), "--out", BOARD]
    if verdicts == {"FAIL-ADAPTER"}:
        return ["inspect", report.spec.adapters[0].source, "--base", report.spec.base]
    if verdicts & set(CURABLE):
        return ["advise", str(folder)]
    if any(made.status == "crashed" for case in ours for made in case.builds):
        unbuilt = report.spec.execution.model_copy(update={"build": False})
        return command.words(report.spec.changed(execution=unbuilt), folder)
    return None


def _request(report: Report, case: Case) -> CheckSpec:
    (scheme,) = (one for one in report.spec.schemes if one.name == case.scheme)
    return report.spec.of_case(scheme, order.find(case.order))
