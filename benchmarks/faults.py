"""The fault bench over many seeds: does every gate fire on its fault, and none on a healthy artifact?

``python -m benchmarks.faults --seeds 20`` prints which gate did not fire on its fault on how many seeds, and which
gates fired on healthy artifacts. Traces stay in ``--cache``: under other limits a second run takes a minute.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch

from qcheck.core.cache import Cache
from qcheck.result.verdict import Verdict
from qcheck.runtime.runner import MismatchError
from tests import faults
from tests.conftest import adapted_by


def judged(seed: int, store: Cache) -> dict[str, Verdict | None]:
    """The verdicts on both healthy artifacts and on every fault with the probes of one seed; None was refused."""
    asked = faults.CHOSEN.model_copy(update={"seed": seed})
    loud = faults.make(adapted_by("flat"), "int8", store, asked)
    faint = faults.make(adapted_by("faint"), "int4-g128", store, asked)
    found: dict[str, Verdict | None] = {"healthy flat": loud.verdict(), "healthy faint": faint.verdict()}
    for name, inject in faults.FAULTS.items():
        try:
            found[name] = inject(faint if name in faults.FAINT else loud)
        except MismatchError:
            found[name] = None
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path("build/faults"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    missed: Counter[str] = Counter()
    false: Counter[str] = Counter()
    outcomes: dict[str, Counter[str]] = {}
    for number in range(asked.seeds):
        found = judged(1000 + 100 * number, Cache(asked.cache))
        for name, arm, fault in faults.DIAGONAL:
            verdict = found[fault]
            status = verdict and next(m.status for m in verdict.measurements if (m.name, m.arm) == (name, arm))
            if status != "fail":
                missed[f"{name} ({arm}) on {fault}: {status}"] += 1
        for name, verdict in found.items():
            outcomes.setdefault(name, Counter())[verdict.outcome if verdict else "refused"] += 1
            if name.startswith("healthy") and verdict:
                false.update(f"{m.name} ({m.arm}) on {name}" for m in verdict.measurements if m.status == "fail")
        print(
            f"seed {number + 1} of {asked.seeds}: {sum(missed.values())} missed, {sum(false.values())} false",
            flush=True,
        )
    print(f"\n{len(faults.DIAGONAL)} gates with their faults, {asked.seeds} seeds")
    print("did not fire:", *(f"  {count} x {what}" for what, count in missed.most_common()), sep="\n")
    print("fired on healthy artifacts:", *(f"  {count} x {what}" for what, count in false.most_common()), sep="\n")
    print("verdicts:", *(f"  {name}: {dict(counts)}" for name, counts in outcomes.items()), sep="\n")


if __name__ == "__main__":
    main()
