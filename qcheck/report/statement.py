"""report.intoto.json: a report as an in-toto Statement v1, with the predicate "test result" v0.1.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md. It is computed from the report and the
digests of the folder's files alone, so that it can be computed again and compared. Whoever signs it signs every file:
it holds the digest of SHA256SUMS.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qcheck.device import sums
from qcheck.result.report import REPORT, Case, Report, exit_code

NAME = "report.intoto.json"
TYPE, PREDICATE = "https://in-toto.io/Statement/v1", "https://in-toto.io/attestation/test-result/v0.1"


def render(report: Report, digests: Mapping[str, str]) -> str:
    """The statement on ``report``, in a folder whose files have these SHA-256.

    A case that passes without a warning is among ``passedTests``, one with warnings among ``warnedTests``; every other
    verdict, an open one too, among ``failedTests``: what was not decided did not pass. ``result`` is that of the whole
    request. Subjects are the files for the board, or report.json where the scheme has none.
    """
    tests: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for case in report.cases:
        tests[_list(case)].append(f"{case.scheme} {case.order}")
    warned = any(case.outcome == "PASS" and case.warnings for case in report.cases)
    result = "FAILED" if exit_code(report) else "WARNED" if warned else "PASSED"
    subjects = {
        name: digest for case in report.cases for file in case.artifact[:1] for name, digest in file.sha256.items()
    }
    own = {REPORT: digests.get(REPORT, "")}
    listed = hashlib.sha256(sums.text(digests)).hexdigest()
    configuration = [_resource(REPORT, own[REPORT]) | {"annotations": _facts(report)}, _resource(sums.NAME, listed)]
    statement = {
        "_type": TYPE,
        "subject": [_resource(name, digest) for name, digest in (subjects or own).items()],
        "predicateType": PREDICATE,
        "predicate": {"result": result, "configuration": configuration, **tests},
    }
    return json.dumps(statement, indent=1, ensure_ascii=False) + "\n"


def _list(case: Case) -> str:
    if case.outcome != "PASS":
        return "failedTests"
    return "warnedTests" if case.warnings else "passedTests"


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def _facts(report: Report) -> dict[str, Any]:
    """What a policy may ask for: the digests are the report's own, of 16 digits."""
    return {
        "qcheck": report.provenance.qcheck,
        "target": report.target,
        "base": report.base.digest,
        "adapters": [adapter.digest for adapter in report.adapters],
        "probes": report.probes.digest,
        "limits": report.provenance.limits_digest,
        "created": report.provenance.created,
    }
