"""A user's script, which `make lint` checks with mypy's strict settings; it is not run.

The comments to ignore an error are checked too: without the error they would be errors themselves.
"""

import qcheck


def survival(lora: str) -> float | None:
    """The value of one scheme, or the lower bound of another."""
    report = qcheck.check("demo", lora=lora, scheme=["int8", "fp16"], build=False, device="cuda", guidance=3.0)
    low: float | None = report["int8"]["effect_survival"].low
    return report["int8", "unmerged"]["effect_survival"].value if report.passed else low


def judge() -> tuple[str, str, float | None]:
    """A session, a stored report, an inspection, and mistakes."""
    with qcheck.Session("demo", lora="flat") as session:
        why = session.judge(session.quantize("int8")).why()
    qcheck.check("demo", lora="flat", sceme="int8")  # type: ignore[call-arg]
    qcheck.check("demo", lora="flat", steps="four")  # type: ignore[arg-type]
    forecasts = qcheck.inspect("flat", "demo").forecasts
    return why, qcheck.load_report("out").spec.target.name, forecasts[0].survival
