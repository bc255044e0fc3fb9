"""Whether advice ends in a measured PASS: every case of the zoo that needs QAT under a scheme that ships.

``python -m benchmarks.advice [NAME ...]`` takes the cases from ``zoo/cases``, checks each on up to 64 probes, and has
``qcheck advise`` try measures in order of cost until one passes. Interrupted, it goes on from the cache.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import qcheck
from benchmarks.judged import Case, read
from benchmarks.zoo import cases
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.core.values import names_in
from qcheck.result.advice import CaseAdvice, Tried
from qcheck.result.report import Report
from qcheck.spec import limits, scheme

LOOKS = (8, 16)


def chosen(zoo: Path, names: Sequence[str]) -> Iterator[Case]:
    """The stored cases under shipped schemes that need QAT by the limits of today."""
    known, bounds = names_in(scheme.FOLDER), limits.find("default")
    for case in read(zoo)[0]:
        wanted = not names or case.adapter["adapter"] in names
        if wanted and case.stored["scheme"] in known and case.replayed(bounds, LOOKS)[0] == "NEEDS-QAT":
            yield case


def advised(case: Case) -> tuple[Report, CaseAdvice | None]:
    """The check and what advice found; None where the check on all probes passes after all."""
    pipeline, stored = PIPELINES[case.adapter["pipeline"]], case.stored
    adapter, guidance = pipeline.adapter(case.adapter["adapter"]), case.adapter["guidance"]
    spec = cases.request(pipeline, adapter, guidance, scheme=stored["scheme"], order=stored["order"], limits="default")
    report = qcheck.check(spec)
    found = qcheck.advise(report, threads=1)
    return report, found.cases[0] if found.cases else None


def _row(tried: Tried) -> str:
    return f"{tried.title} {tried.verdict}"


def main() -> None:
    """Print a table row as soon as it is known, then the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="adapters of the zoo; default: all")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | verdict | tried, in order of cost | passes with | s |\n|---|---|---|---|---|")
    cured = total = 0
    for case in chosen(asked.zoo, asked.names):
        start = time.monotonic()
        report, found = advised(case)
        tried = [one for one in found.tried if one.verdict is not None] if found else []
        cure = found.tried[found.cure].title if found and found.cure is not None else "nothing"
        if found is not None and report.cases[0].verdict == "NEEDS-QAT":
            total += 1
            cured += found.cure is not None
        cells = (case.title, report.cases[0].verdict, ", ".join(map(_row, tried)), cure if found else "as it is")
        print(f"| {' | '.join(cells)} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"\nadvice ends in a measured PASS for {cured} of {total} cases that need QAT")


if __name__ == "__main__":
    main()
