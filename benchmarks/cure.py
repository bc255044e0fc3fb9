"""What QAT does to an adapter, on probes and pictures that it never saw: S, R, G, U and the verdict, before and after.

``python -m benchmarks.cure --pictures DIR NAME ...`` for adapters of the zoo, ``--lora FILE STYLE`` for others. U is
the share of the adapter's benefit on held-out pictures of its style that is left (``benchmarks/zoo/utility.py``).
"""

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import qcheck
from benchmarks.zoo import cases, utility
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.progress import Silent
from qcheck.sampling import subject
from qcheck.sampling.setup import Subject
from qcheck.spec.arm import SIDES
from qcheck.spec.check import CheckSpec
from qcheck.tasks import qat
from qcheck.training.objective import Settings

DEMO = PIPELINES["demo"]
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


def measure(spec: CheckSpec, exam: utility.Exam) -> Row:
    """The first scheme of a request in its first order, as a check judges it."""
    with qcheck.Session(spec) as session:
        made = session.quantize(spec.schemes[0], spec.orders[0])
        case, arms = session.judge(made), made.session.arms

        def losses(arm: Subject) -> np.ndarray:
            with arm.open() as runner:
                return utility.losses(arms, arm.side, runner, exam)

        f0, f1 = (losses(subject.full(arms, side)) for side in SIDES)
        found = utility.utility(f0, f1, losses(made.q1))
    means = {name: math.nan if (value := case[name].value) is None else value for name in SHOWN}
    return Row(means, case.verdict, found)


def cure(adapter: Path, style: str, scheme: str, order: str, pictures: Path) -> tuple[Row, Row, float]:
    """Before and after, and the seconds that QAT took."""
    exam = utility.exam(DEMO, pictures, style)
    spec = cases.request(DEMO, adapter, scheme=scheme, order=order, batch=8)
    before = measure(spec, exam)
    with tempfile.TemporaryDirectory() as name:
        new, start = Path(name) / "new.safetensors", time.monotonic()
        qat.learn(spec, Settings(), new, Cache(cache.location()), Silent())
        took = time.monotonic() - start
        return before, measure(qat.calibrated(spec, new), exam), took


def main() -> None:
    """Print a table row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="adapters of the zoo")
    parser.add_argument("--lora", nargs=2, metavar=("FILE", "STYLE"), action="append", default=[])
    parser.add_argument("--scheme", action="append")
    parser.add_argument("--order", default="quantize-merge")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    styles = {made["name"]: made["style"] for made in DEMO.records()}
    chosen = [(DEMO.adapter(name), styles[name]) for name in asked.names]
    chosen += [(Path(file), style) for file, style in asked.lora]
    print("| adapter | scheme, order | | S | R dB | G dB | U | verdict |\n|---|---|---|---|---|---|---|---|")
    for path, style in chosen:
        for named in asked.scheme or ["int4-g128"]:
            before, after, took = cure(path, style, named, asked.order, asked.pictures)
            print(f"| {path.stem} | {named} {asked.order} | before |", " | ".join(before.cells()), "|")
            print(f"| | | after {took:.0f} s |", " | ".join(after.cells()), "|", flush=True)


if __name__ == "__main__":
    main()
