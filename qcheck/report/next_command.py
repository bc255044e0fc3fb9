"""The command to type after a report, complete: it runs as it stands."""

from pathlib import Path

from qcheck.judge.recommend import recommended
from qcheck.result.report import Case, Report
from qcheck.result.verdict import CURABLE
from qcheck.spec import command, order
from qcheck.spec.check import CheckSpec

BOARD = "board"  # the folder that the export command writes


def next_command(report: Report, folder: Path = Path()) -> str | None:
    """The next command, with ``folder`` as the path of the report's folder; None where there is nothing to run.

    A case that passes is exported. Without one, cases that do not pass are advised on. An adapter that is broken at
    full precision is inspected. A check whose builder crashed is repeated without the build.
    """
    words = _words(report, folder)
    return None if words is None else command.line(words)


def _words(report: Report, folder: Path) -> list[str] | None:
    own_cases = [case for case in report.cases if case.quantized_layers is not None]
    verdicts = {case.verdict for case in own_cases}
    place = recommended(own_cases)
    if place is not None:
        return [*command.export_words(_request(report, own_cases[place]), folder), "--out", BOARD]
    if verdicts == {"FAIL-ADAPTER"}:
        return ["inspect", report.spec.adapters[0].source, "--base", report.spec.base]
    if verdicts & set(CURABLE):
        return ["advise", str(folder)]
    if any(build.status == "crashed" for case in own_cases for build in case.builds):
        execution = report.spec.execution.model_copy(update={"build": False})
        return command.words(report.spec.changed(execution=execution), folder)
    return None


def _request(report: Report, case: Case) -> CheckSpec:
    (scheme,) = (candidate for candidate in report.spec.schemes if candidate.name == case.scheme)
    return report.spec.of_case(scheme, order.find(case.order))
