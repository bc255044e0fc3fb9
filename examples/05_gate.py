"""A gate: refuse an adapter that does not survive, and say what would be done about it."""

import sys

import qcheck

report = qcheck.check(
    "demo", lora="faint", scheme="int4-g128", order="quantize-merge", steps=6, max_probes=4, build=False
)
if not report.passed:
    advice = qcheck.advise(report, dry_run=True)
    for tried in advice.cases[0].tried[:3]:
        print(f"would try {tried.title}: {tried.why}")
print(f"exit code would be {0 if report.passed else 1}", file=sys.stderr)
