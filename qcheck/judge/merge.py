"""A board's own measurements in the report of the host."""

from qcheck.core.errors import UserError
from qcheck.judge import lapse
from qcheck.judge.next_step import next_step
from qcheck.result.report import Case, Report
from qcheck.result.verified import Verified


def merged(report: Report, verification: Verified) -> Report:
    """The report with what a board said of one of its cases, of the report's adapter where it judged several.

    Raises:
        UserError: the board verified another base, adapter, target or case.
    """
    ours = [one.digest for one in report.adapters if one.arms == "adapted"]
    own = [one for one in verification.every if one.asked.adapter_digests == ours]
    verified = (own or [verification])[0].model_copy(update={"others": []})
    asked = verified.asked
    for name, here, there in lapse.request(report, asked):
        raise UserError(
            f"the board verified another {name}: {there}, and the report has {here}",
            "Give the report of the check whose bundle was verified.",
        )
    key = (asked.scheme, asked.order)
    judged = next((case for case in report.cases if (case.scheme, case.order) == key), None)
    if judged is None:
        known = ", ".join(f"{case.scheme} {case.order}" for case in report.cases)
        raise UserError(
            f"the board verified {' '.join(key)}, and the report has {known}", "Give the report that has it."
        )
    if judged.artifact and judged.artifact[0].digest != asked.file_digest:
        raise UserError(
            f"the board verified another file of {' '.join(key)}: {asked.file_digest}, and the report has "
            f"{judged.artifact[0].digest}",
            "Give the report of the check whose bundle was verified: recipe, ranges and prompts make another file.",
        )
    cases = [_with(case, verified) if case is judged else case for case in report.cases]
    return report.model_copy(update={"cases": cases})


def _with(case: Case, verified: Verified) -> Case:
    deployed = case.artifact[0].path if case.artifact else None
    following = _NEXT.get(verified.verdict) or next_step(case.verdict, case.order, deployed, case.builds)
    return case.model_copy(update={"board": verified, "next": following})


_NEXT = {
    "FAIL": "Do not ship it: the board's own engine does not pass, for the reasons beside it. Try another scheme.",
    "INCONCLUSIVE": "The board's own engine is open: verify it again with more --bundle-probes.",
}
