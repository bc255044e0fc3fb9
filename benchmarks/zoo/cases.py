"""Adapters of the zoo x schemes x orders, through qcheck's own stages, with what the judges say.

``python -m benchmarks.zoo.cases PIPELINE ... --pictures DIR`` makes what is missing or was measured by other metrics,
``zoo/PIPELINE/cases/ADAPTER-GUIDANCE.json.gz``, kinds of adapters taking turns; ``--dry-run`` says which and why, and
measures nothing. Traces and losses stay in the cache, so that new metrics cost seconds an adapter. ``--jobs`` processes
share the adapters; with ``--device cuda`` torch simulates the artifacts, where ONNX Runtime has no CUDA provider.
"""

import argparse
import dataclasses
import functools
import inspect
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from benchmarks.zoo import stored, style, utility
from benchmarks.zoo.pipelines import PIPELINES, Pipeline
from qcheck.api.keywords import Request
from qcheck.api.request import check_spec
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent
from qcheck.device import arithmetic
from qcheck.judge.looks import until_decided
from qcheck.measure import effect
from qcheck.result.verdict import Outcome
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Subject, forwards
from qcheck.sampling.store import Rows, Trace
from qcheck.spec import limits, probe
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.scheme import Scheme
from qcheck.tasks import check
from qcheck.tasks import session as sessions
from qcheck.tasks.decide import SHARES, decide
from qcheck.tasks.session import Session

_ROUGH = Path(__file__).parent / "schemes"  # so rough that cases break
SCHEMES = ("int8", "fp8", "int4-g128", *(str(_ROUGH / f"{name}.toml") for name in ("int4-tensor", "int4-tensor-all")))
ORDERS: tuple[Order, ...] = ("merge-quantize", "quantize-merge")
PROBES = 16
LOOKS = (PROBES, 32, 64)  # a case that the limits of today leave open is looked at further
SHOWN, STEPS, SEED = 64, 10, 90_000  # samples for the style judge: prompts and seeds that no probe has together
TARGET = "jetson-thor-t5000"  # runs them all
_OTHER_SEED, _LESS = 50_000, 0.95
_BATCH = 64


@functools.cache
def reading_code() -> str:
    """The digest of the code that measures, and of the judges."""
    return digest_of(cache.code("qcheck.tasks.check"), *sorted(Path(__file__).parent.glob("*.py")))


def stale(path: Path) -> str | None:
    """Why an adapter's file has to be made; None where today's code made it."""
    if not path.exists():
        return "it has no cases yet"
    code = stored.read(path)["code"]
    return None if code == reading_code() else f"its cases are by code {code}, and the code is {reading_code()} now"


@dataclasses.dataclass(frozen=True)
class Judges:
    """What both judges need beside the arms: the exam of the adapter's style, and the classifier."""

    name: str
    exam: utility.Exam
    classifier: style.Classifier

    def losses(self, session: Session, arm: Subject) -> np.ndarray:
        """Losses [rounds, n] of an arm on the exam."""
        code = (cache.code("qcheck.model.arms", "qcheck.runtime.runner"), inspect.getsource(utility.losses))
        key = digest_of(*code, arm.content, self.exam.digest)

        def make(folder: Path) -> None:
            with arm.open() as runner:
                np.save(folder / "losses.npy", utility.losses(session.arms, arm.side, runner, self.exam))

        folder = session.store.obtain("losses", key, f"{arm.name}, exam of {self.name}", make)
        found: np.ndarray = np.load(folder / "losses.npy")
        return found

    def logits(self, session: Session, arm: Subject) -> np.ndarray:
        """What the classifier sees [SHOWN, styles] in samples of an arm: prompts of the probes, seeds of its own."""
        finals = _finals(session, arm, shown(session.spec.probes))
        with torch.no_grad():
            return style.seen(
                self.classifier, session.sampler.setup.family.decode(torch.from_numpy(np.stack(list(finals))))
            )


def shown(probes: ProbeSet) -> ProbeSet:
    """The samples that the style judge looks at."""
    return probe.repeated(probes, SHOWN).model_copy(update={"steps": min(STEPS, probes.steps), "seed": SEED})


def _finals(session: Session, arm: Subject, asked: ProbeSet) -> Rows:
    """Final latents of an arm's own runs on other probes."""
    sampler = Sampler.of(session.arms, asked, 1, session.spec.execution.batch, session.store)
    count = len(asked.prompts)
    with session.watch.stage(f"{arm.name}: samples", forwards(sampler.setup, 1, 0, count)) as advance:
        return sampler.reference(arm, advance).finals()


def yardsticks(session: Session, arm: Subject, finals: Rows) -> dict[str, np.ndarray]:
    """How far harmless changes move the final latents of a full-precision arm [n], as a share of their size.

    Twice the steps, guidance times 0.95, and another seed, which is no harmless change but another picture.
    """
    asked = probe.repeated(session.spec.probes, PROBES)
    changes = {
        "doubled": {"steps": 2 * asked.steps},
        "guidance": {"guidance": _LESS * asked.guidance},
        "seed": {"seed": asked.seed + _OTHER_SEED},
    }
    if asked.guidance <= 1:
        del changes["guidance"]
    others = {name: _finals(session, arm, asked.model_copy(update=change)) for name, change in changes.items()}
    return {name: arithmetic.relative(other, finals) for name, other in others.items()}


def ends(reference: Mapping[Side, Trace], quantized: Mapping[Side, Trace]) -> dict[str, np.ndarray]:
    """Inner products [n, 1] of final latents as ``Energies`` has them, and of q1 - f0 with f1 - f0."""
    traces = (reference["base"], reference["adapted"], quantized["base"], quantized["adapted"])
    f0, f1, q0, q1 = ([final[None] for final in trace.finals()] for trace in traces)
    beside_base = effect.energies(f0, f1, f0, q1)
    return dataclasses.asdict(effect.energies(f0, f1, q0, q1)) | {"kept_of_base": beside_base.kept}


def request(pipeline: Pipeline, adapter: Path, guidance: float | None = None, **other: Unpack[Request]) -> CheckSpec:
    """The check of one adapter of a pipeline: nothing built, and whatever ``other`` says."""
    chosen = limits.find("default").model_copy(update={"looks": LOOKS})
    usual = Request(
        scheme=SCHEMES,
        order=ORDERS,
        target=TARGET,
        limits=chosen,
        build=False,
        threads=1,
        batch=16,
        probes=pipeline.probes(),
        recipe=pipeline.recipe(),
        guidance=guidance,
        with_lora=list(pipeline.beside),
    )
    return check_spec(pipeline.source, adapter, **(usual | other))


def run(pipeline: Pipeline, made: dict[str, Any], guidance: float, pictures: Path, device: str) -> dict[str, Any]:
    """All cases of one adapter at one guidance; one that qcheck refuses to judge says why instead."""
    known: dict[str, Any] = {key: made[key] for key in ("kind", "half", "style") if key in made}
    known |= {"pipeline": pipeline.name, "adapter": made["name"], "guidance": guidance, "styles": pipeline.styles}
    known["code"] = reading_code()
    exam = utility.exam(pipeline, pictures, made["style"])
    judges = Judges(made["style"], exam, style.stored(pipeline))
    with (
        tempfile.TemporaryDirectory() as folder,
        sessions.opened(
            request(pipeline, pipeline.adapter(made["name"]), guidance, device=device, batch=_BATCH),
            Cache(cache.location()),
            Silent(),
        ) as session,
    ):
        reference = session.reference.take(PROBES)
        arms = {side: subject.full(session.arms, side) for side in SIDES}
        full = {side: judges.losses(session, arm) for side, arm in arms.items()}
        known |= {"loss_f0": float(full["base"].mean()), "loss_f1": float(full["adapted"].mean())}
        known |= {f"style_{arm.name}": judges.logits(session, arm) for arm in arms.values()}
        known["weights"] = session.sampler.setup.weights
        known["yardsticks"] = {
            arm.name: yardsticks(session, arm, reference[side].finals()) for side, arm in arms.items()
        }
        try:
            known["effect_size"] = check.require_effect(session, reference)
            known["weakened"] = {str(share): session.yardsticks.weakened(share) for share in SHARES}
            here = Path(folder)
            cases = [c for one in session.spec.schemes for c in cases_of(session, one, judges, full, here)]
        except UserError as error:
            return known | {"refused": str(error), "cases": []}
    return known | {"cases": cases}


def cases_of(
    session: Session, scheme: Scheme, judges: Judges, full: Mapping[Side, np.ndarray], folder: Path
) -> Iterator[dict[str, Any]]:
    """The cases of one scheme: samples, controls, inner products, verdict by the limits of today, and both judges."""
    asked = session.spec.bounds.computing(scheme.compute)
    base = check.quantize_base(session, scheme)
    loss_q0 = judges.losses(session, base.q0)
    for order in session.spec.orders:
        made = check.make(session, order, base, folder)
        losses = judges.losses(session, made.q1)

        def judged(count: int, made: check.Quantization = made) -> tuple[Outcome, check.Look]:
            seen = check.look(made, count)
            return decide(asked, base.instrument, seen.samples, seen.energies, made.builds).outcome, seen

        _, outcome, seen = until_decided(LOOKS, judged)
        yield {
            "scheme": scheme.name,
            "order": order,
            "compute": scheme.compute,
            "ran_as": "artifact" if session.runs_files else "simulation",
            "verdict": outcome,
            "controls": [vars(one) for one in base.instrument.controls],
            "samples": [vars(sample) for sample in seen.samples],
            "energies": dataclasses.asdict(seen.energies),
            "ends": ends(seen.reference, seen.quantized),
            "floor": base.floor,
            "utility": dataclasses.asdict(utility.utility(full["base"], full["adapted"], losses)),
            "loss_q0": float(loss_q0.mean()),
            "loss_q1": float(losses.mean()),
            "style_q1": judges.logits(session, made.q1),
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


def in_turn(adapters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The adapters with kinds taking turns, so that an unfinished run has some of each."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for made in adapters:
        kinds.setdefault(made["kind"], []).append(made)
    rounds = itertools.zip_longest(*kinds.values())
    return [made for one in rounds for made in one if made is not None]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made of one adapter at one guidance."""

    pipeline: Pipeline
    made: dict[str, Any]
    guidance: float
    asked: argparse.Namespace

    def run(self) -> None:
        """Make its cases, if they are missing."""
        torch.set_num_threads(1)
        path, start = self.pipeline.cases(self.made["name"], self.guidance), time.monotonic()
        title, why = f"{self.pipeline.name} {self.made['name']} at guidance {self.guidance:g}", stale(path)
        if why is not None:
            print(f"{title}: {why}", flush=True)
        if why is None or self.asked.dry_run or (self.asked.missing and path.exists()):
            return
        measured = plain(run(self.pipeline, self.made, self.guidance, self.asked.pictures, self.asked.device))
        stored.write(measured, path)
        verdicts = [f"{one['scheme']} {one['order']} {one['verdict']}" for one in measured["cases"]]
        spent = time.monotonic() - start
        print(f"{title}: {spent:.0f} s; {measured.get('refused') or ', '.join(verdicts)}", flush=True)


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of what is made an adapter and guidance."""
    parser = argparse.ArgumentParser(description=description and description.splitlines()[0])
    parser.add_argument("pipelines", nargs="+", choices=tuple(PIPELINES))
    parser.add_argument("--adapter", action="append", help="default: all of training.json")
    parser.add_argument("--guidance", type=float, action="append", help="default: the pipeline's own")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    return parser


def share(kind: type[Job], asked: argparse.Namespace) -> None:
    """Run a job an adapter and guidance in so many processes as are asked for, pipelines and kinds taking turns."""
    lines = []
    for pipeline in (PIPELINES[name] for name in asked.pipelines):
        known = [made for made in pipeline.records() if not asked.adapter or made["name"] in asked.adapter]
        pairs = itertools.product(in_turn(known), asked.guidance or pipeline.guidances)
        lines.append([kind(pipeline, made, guidance, asked) for made, guidance in pairs])
    every = [job for one in itertools.zip_longest(*lines) for job in one if job is not None]
    if asked.jobs == 1:
        for job in every:
            job.run()
        return
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        for ended in [pool.submit(job.run) for job in every]:
            ended.result()


def main() -> None:
    """Make what is missing."""
    parser = options(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured and why, and stop")
    parser.add_argument("--missing", action="store_true", help="leave cases alone that other code has measured")
    share(Job, parser.parse_args())


if __name__ == "__main__":
    main()
