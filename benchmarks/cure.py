"""What QAT does to an adapter, on probes and pictures that it never saw: S, R, G, U and the verdict, before and after.

``python -m benchmarks.cure --pictures DIR NAME ...`` for adapters of the zoo, ``--lora FILE STYLE`` for others. U is
the share of the adapter's benefit on held-out pictures of its style that is left (``benchmarks/zoo/utility.py``).
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.zoo import cases, utility
from qcheck.calibration import inputs
from qcheck.core.progress import Silent
from qcheck.demo import library
from qcheck.training.objective import Settings
from qcheck.quantize import artifact
from qcheck.spec import order, scheme
from qcheck.spec.check import Job, Use
from qcheck.spec.order import Order
from qcheck.tasks import check, qat, work
from qcheck.tasks.work import Traces

SHOWN = ("effect_survival", "effect_to_error", "excess_error")


@dataclasses.dataclass(frozen=True)
class Row:
    """One artifact: means over the probes, the verdict by the limits of the day, and U with its standard error."""

    means: dict[str, float]
    verdict: str
    utility: utility.Utility

    def cells(self) -> list[str]:
        """S, R, G, U and the verdict."""
        survival, kept, excess = (self.means[name] for name in SHOWN)
        left = "void" if self.utility.void else f"{self.utility.value:.2f} ± {self.utility.error:.2f}"
        return [f"{survival:.2f}", f"{kept:.1f}", f"{excess:.1f}", left, self.verdict]


def measure(job: Job, exam: utility.Exam, folder: Path) -> Row:
    """One scheme in one order, through qcheck's own stages."""
    folder.mkdir(parents=True, exist_ok=True)
    started = work.prepare(job, folder, Silent())
    (chosen,), (order,) = job.schemes, job.orders
    reference = check.trace_reference(started, cases.PROBES)
    ranges = inputs.inputs(started, chosen)
    made = artifact.Making(started.shipped, started.exporter, started.store, chosen, job.recipe, ranges)
    q0 = started.quantized("q0", "base", artifact.write_base(made))
    q1 = started.quantized("q1", "adapted", artifact.write(made, order, folder / "artifacts").runs)
    floor, controls = check.run_controls(started, chosen)
    quantized: Traces = {
        "base": check.trace_artifact(started, q0, reference["adapted"]),
        "adapted": check.trace_artifact(started, q1, reference["adapted"]),
    }
    samples, energies = check.measure(started.setup, reference, quantized, floor, bool(job.references))
    limits = job.limits.computing(chosen.compute)
    verdict = check.decide(limits, started.setup.weights, controls, samples, energies, [])
    means = {s.name: float(np.mean(s.values)) for s in samples if s.name in SHOWN and s.arm == "adapted"}
    full = [
        utility.losses(started.arms, arm.side, arm.runner(), exam) for arm in map(started.full, ("base", "adapted"))
    ]
    found = utility.utility(*full, utility.losses(started.arms, q1.side, q1.runner(), exam))
    return Row(means, verdict.outcome, found)


def cure(adapter: Path, style: str, named: str, order: Order, pictures: Path) -> tuple[Row, Row, float]:
    """Before and after, and the seconds that QAT took."""
    exam = utility.exam(pictures, style, library.PIPELINE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = cases.job(adapter, folder)
        job = dataclasses.replace(job, schemes=(scheme.find(named),), orders=(order,), batch=8)
        before = measure(job, exam, folder / "before")
        new, start = folder / "new.safetensors", time.monotonic()
        qat.learn(job, Settings(), new, folder / "training", Silent())
        took = time.monotonic() - start
        again = dataclasses.replace(job, adapters=(Use(str(new), 1.0),), references=job.adapters)
        return before, measure(again, exam, folder / "after"), took


def main() -> None:
    """Print a table row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="adapters of the zoo")
    parser.add_argument("--lora", nargs=2, metavar=("FILE", "STYLE"), action="append", default=[])
    parser.add_argument("--scheme", action="append")
    parser.add_argument("--order", default="quantize-merge")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    styles = {made["name"]: made["style"] for made in json.loads((asked.zoo / "training.json").read_text())}
    chosen = [(asked.zoo / "adapters" / f"{name}.safetensors", styles[name]) for name in asked.names]
    chosen += [(Path(file), style) for file, style in asked.lora]
    print("| adapter | scheme, order | | S | R dB | G dB | U | verdict |\n|---|---|---|---|---|---|---|---|")
    for path, style in chosen:
        for named in asked.scheme or ["int4-g128"]:
            before, after, took = cure(path, style, named, order.find(asked.order), asked.pictures)
            print(f"| {path.stem} | {named} {asked.order} | before |", " | ".join(before.cells()), "|")
            print(f"| | | after {took:.0f} s |", " | ".join(after.cells()), "|", flush=True)


if __name__ == "__main__":
    main()
