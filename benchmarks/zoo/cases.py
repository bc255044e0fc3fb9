"""Adapters of the zoo x schemes x orders, through qcheck's own stages, with what the judges say: ``zoo/cases/*.json``.

Utility is there for every case; style, which tests verdicts, for those of the testing half.

``python -m benchmarks.zoo.cases --pictures DIR`` makes what is missing or was measured by other metrics, an adapter a
file, kinds taking turns. Traces and losses stay in the cache, so that new metrics cost seconds an adapter.
"""

import argparse
import dataclasses
import functools
import inspect
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo import style, utility
from qcheck.calibration import inputs
from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent
from qcheck.demo import library
from qcheck.quantize import artifact
from qcheck.result.verdict import Verdict
from qcheck.sampling import sampler
from qcheck.sampling.setup import Subject, forwards
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.check import Job, Use
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import check, work
from qcheck.tasks.work import Traces, Work

_ROUGH = Path(__file__).parent / "schemes"  # so rough that cases break
SCHEMES = ("int8", "fp8", "int4-g128", *(str(_ROUGH / f"{name}.toml") for name in ("int4-tensor", "int4-tensor-all")))
ORDERS: tuple[Order, ...] = ("merge-quantize", "quantize-merge")
PROBES = 16
SHOWN, STEPS, SEED = 64, 10, 90_000  # samples for the style judge: prompts and seeds that no probe has together
TARGET = "jetson-thor-t5000"  # runs them all


@functools.cache
def reading_code() -> str:
    """The digest of the code that measures, and of the judges."""
    return digest_of(cache.code("qcheck.tasks.check"), *sorted(Path(__file__).parent.glob("*.py")))


@dataclasses.dataclass(frozen=True)
class Judges:
    """What both judges need beside the arms: the exam of the adapter's style, and the classifier."""

    name: str
    exam: utility.Exam
    classifier: style.Classifier

    def losses(self, started: Work, subject: Subject) -> np.ndarray:
        """Losses [rounds, n] of an arm on the exam."""
        key = cache.key("losses", subject.content, self.exam.digest, inspect.getsource(utility.losses))

        def make(folder: Path) -> None:
            found = utility.losses(started.arms, subject.side, subject.runner(), self.exam)
            np.save(folder / "losses.npy", found)

        folder = started.store.obtain("losses", key, f"{subject.name}, exam of {self.name}", make)
        found: np.ndarray = np.load(folder / "losses.npy")
        return found

    def logits(self, started: Work, subject: Subject) -> np.ndarray:
        """What the classifier sees [SHOWN, styles] in samples of an arm: prompts of the probes, seeds of its own."""
        sampling = {"steps": STEPS, "seed": SEED}
        shown = probe.repeated(started.job.probes, SHOWN).model_copy(update=sampling)
        setup, probes = work.matched(started.arms, started.job, shown, strata=1)
        with started.timed(f"{subject.name}: samples", forwards(setup, 1, 0, SHOWN)) as advance:
            finals = sampler.reference(setup, subject, probes, started.store, advance).finals()
        family = started.arms.use("base")
        with torch.no_grad():
            return style.seen(self.classifier, family.decode(torch.from_numpy(np.stack(list(finals)))))


def job(adapter: Path, out: Path) -> Job:
    """The check of one adapter on the demo's pipeline, a single look, nothing built."""
    chosen = limits.find("default").model_copy(update={"looks": (PROBES,)})
    return Job(
        base=str(library.PIPELINE),
        adapters=(Use(str(adapter), 1.0),),
        references=(),
        common=(),
        allow_unmatched=False,
        schemes=tuple(map(scheme.find, SCHEMES)),
        artifacts=(),
        explicit=True,
        orders=ORDERS,
        target=target.find(TARGET),
        probes=probe.repeated(probe.find(library.PROBES), PROBES),
        recipe=recipe.find(library.RECIPE),
        trigger=None,
        limits=chosen,
        out=out,
        cache=cache.location(),
        threads=1,
        batch=16,
        build=False,
    )


def run(made: dict[str, Any], zoo: Path, pictures: Path) -> dict[str, Any]:
    """All cases of one adapter; one that qcheck refuses to judge says why instead."""
    known = {key: made[key] for key in ("kind", "half", "style")}
    known = {"adapter": made["name"], **known, "code": reading_code(), "probes": PROBES}
    judges = Judges(made["style"], utility.exam(pictures, made["style"], library.PIPELINE), style.stored(zoo))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = job(zoo / "adapters" / f"{made['name']}.safetensors", folder)
        started = work.prepare(asked, folder, Silent())
        reference = check.trace_reference(started, PROBES)
        full = {side: judges.losses(started, started.full(side)) for side in reference}
        known |= {"loss_f0": float(full["base"].mean()), "loss_f1": float(full["adapted"].mean())}
        if made["half"] == "testing":
            known["style_f0"] = judges.logits(started, started.full("base"))
            known["style_f1"] = judges.logits(started, started.full("adapted"))
        try:
            known["effect_size"] = check.require_effect(started, reference)
            tested = made["half"] == "testing"
            cases = [case for chosen in asked.schemes for case in _cases(started, chosen, judges, full, tested)]
        except UserError as error:
            return known | {"refused": str(error), "cases": []}
    return known | {"cases": cases}


def _cases(
    started: Work, chosen: Scheme, judges: Judges, full: dict[Any, np.ndarray], tested: bool
) -> Iterator[dict[str, Any]]:
    """The cases of one scheme: samples, controls, verdict by the limits of today, utility, and style if ``tested``."""
    asked, reference = started.job.limits.computing(chosen.compute), started.references[PROBES]
    made = artifact.Making(
        started.arms, started.exporter, started.store, chosen, started.job.recipe, inputs.inputs(started, chosen)
    )
    q0 = started.quantized(f"q0 {chosen.name}", "base", artifact.write_base(made))
    floor, controls = check.run_controls(started, chosen)
    base, loss_q0 = check.trace_artifact(started, q0, reference["adapted"]), judges.losses(started, q0)
    for order in ORDERS:
        written = artifact.write(made, order, started.folder / "artifacts")
        q1 = started.quantized(f"q1 {chosen.name} {order}", "adapted", written.runs)
        quantized: Traces = {"base": base, "adapted": check.trace_artifact(started, q1, reference["adapted"])}
        samples, energies = check.measure(started.setup, reference, quantized, floor)
        verdict: Verdict = check.decide(asked, started.setup.weights, controls, samples, energies, [])
        losses = judges.losses(started, q1)
        yield {
            "scheme": chosen.name,
            "order": order,
            "compute": chosen.compute,
            "verdict": verdict.outcome,
            "controls": [found.model_dump() for found in controls],
            "samples": [vars(sample) for sample in samples],
            "utility": dataclasses.asdict(utility.utility(full["base"], full["adapted"], losses)),
            "loss_q0": float(loss_q0.mean()),
            "loss_q1": float(losses.mean()),
            **({"style_q1": judges.logits(started, q1)} if tested else {}),
        }


def plain(value: Any) -> Any:
    """What JSON can hold of a value, numbers to five digits."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, (float, np.floating)) else value


def write(found: dict[str, Any], path: Path) -> None:
    """One adapter's file, a case a line."""
    cases = ",\n".join(json.dumps(case) for case in found["cases"])
    head = json.dumps({key: value for key, value in found.items() if key != "cases"})
    path.write_text(f'{head[:-1]}, "cases": [\n{cases}\n]}}\n')


def in_turn(adapters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The adapters with kinds taking turns, so that an unfinished run has some of each."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for made in adapters:
        kinds.setdefault(made["kind"], []).append(made)
    rounds = itertools.zip_longest(*kinds.values())
    return [made for one in rounds for made in one if made is not None]


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="adapters; default: all of training.json")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    adapters = [
        m for m in json.loads((asked.zoo / "training.json").read_text()) if m["name"] in asked.names or not asked.names
    ]
    (asked.zoo / "cases").mkdir(exist_ok=True)
    for number, made in enumerate(in_turn(adapters), 1):
        path, start = asked.zoo / "cases" / f"{made['name']}.json", time.monotonic()
        if path.exists() and json.loads(path.read_text())["code"] == reading_code():
            continue
        found = plain(run(made, asked.zoo, asked.pictures))
        write(found, path)
        said = found.get("refused") or ", ".join(f"{c['scheme']} {c['order']} {c['verdict']}" for c in found["cases"])
        print(f"{number}/{len(adapters)} {made['name']}: {time.monotonic() - start:.0f} s; {said}", flush=True)


if __name__ == "__main__":
    main()
