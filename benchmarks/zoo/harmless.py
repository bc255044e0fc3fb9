"""The no-harm suite: changes that harm nobody, judged as if they were quantization. Every alarm is a false one.

``python -m benchmarks.zoo.harmless PIPELINE`` makes ``zoo/PIPELINE/harmless/ADAPTER-GUIDANCE.json``, resumable: a trial
is both arms under one change, on probes of its own, through qcheck's own sampling, measurements and verdict. Beside it
stand the PSNR and SSIM of the free runs' pictures, which many gates hold to fixed bars.

The controls that ask whether something was quantized, and how exactly a file was exported, have no part in it.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.zoo import cases
from benchmarks.zoo.pipelines import SCALARS
from qcheck.core.cache import Cache, location
from qcheck.core.progress import Silent
from qcheck.measure import picture
from qcheck.runtime.runner import Runner
from qcheck.sampling import subject
from qcheck.sampling.setup import Subject
from qcheck.spec import limits
from qcheck.spec.arm import SIDES, Side
from qcheck.tasks import check
from qcheck.tasks import session as sessions
from qcheck.tasks.controls import yardsticks
from qcheck.tasks.decide import decide
from qcheck.tasks.session import Session

PROBES, STEPS = 8, 10
_FLOOR = 1e-7  # relative power of float16's rounding, as the compute control finds it on these pipelines

Change = Callable[[Session, Side, int], AbstractContextManager[Runner]]


@dataclass(frozen=True)
class _Altered:
    """A runner whose inputs or output are changed at every call."""

    inner: Runner
    inputs: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda given: given
    output: Callable[[np.ndarray], np.ndarray] = lambda made: made
    name: str = "altered"

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.float32(self.output(self.inner(self.inputs(inputs))))


@contextmanager
def float_noise(session: Session, side: Side, seed: int) -> Iterator[Runner]:
    """Every output is off by 1e-5 of its size at random, as other kernels and thread counts make it."""
    rng = np.random.default_rng(seed)
    with subject.full(session.arms, side).open() as runner:
        yield _Altered(
            runner, output=lambda x: x * (1 + 1e-5 * rng.standard_normal(x.shape, np.float32)).astype(np.float32)
        )


@contextmanager
def one_ulp(session: Session, side: Side, seed: int) -> Iterator[Runner]:
    """One number of the latents is the next one that bfloat16 can hold, at every call."""
    rng, name = np.random.default_rng(seed), session.arms.base.family.latent

    def moved(given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        latents = given[name].copy()
        latents.reshape(len(latents), -1)[:, rng.integers(latents[0].size)] *= 1 + 2.0**-7
        return {**given, name: latents}

    with subject.full(session.arms, side).open() as runner:
        yield _Altered(runner, inputs=moved)


@contextmanager
def attention_kernel(session: Session, side: Side, seed: int) -> Iterator[Runner]:
    """Attention by another kernel of torch."""
    del seed
    with sdpa_kernel(SDPBackend.MATH), subject.full(session.arms, side).open() as runner:
        yield runner


def _rounded(dtype: torch.dtype) -> Change:
    @contextmanager
    def change(session: Session, side: Side, seed: int) -> Iterator[Runner]:
        del seed
        with session.arms.running(side) as family:
            module = copy.deepcopy(family.module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(parameter.to(dtype).to(parameter.dtype))
        yield subject.runner(session.arms, module)

    return change


CHANGES: dict[str, Change] = {
    "float noise": float_noise,
    "one ulp of bfloat16": one_ulp,
    "another attention kernel": attention_kernel,
    "weights in float16": _rounded(torch.float16),
    "weights in bfloat16": _rounded(torch.bfloat16),
}


def trial(session: Session, name: str, seed: int) -> dict[str, Any]:
    """One change of both arms: what the verdict says, and PSNR (dB) and SSIM of the pictures."""
    reference, sampler = session.reference.take(PROBES), session.sampler.take(PROBES)
    asked = session.spec.bounds.computing("float16")
    asked = asked.model_copy(
        update={"gates": [g for g in asked.gates if g.role != "control" or g.name == "weakened_survival"]}
    )
    traces = {}
    for side in SIDES:
        arm = subject.full(session.arms, side)
        changed = Subject(
            f"{arm.name}, {name}",
            side,
            f"{arm.content} {name} {seed} {STEPS}",
            lambda side=side: CHANGES[name](session, side, seed),  # type: ignore[misc]
        )
        traces[side] = sampler.arm(changed, reference["adapted"], lambda _: None)
    floor = np.full(len(sampler.setup.strata), _FLOOR)
    samples, energies = check.measure(sampler.setup, reference, traces, floor)
    verdict = decide(asked, yardsticks(session), samples, energies, [])
    full, quantized = (session.decoder.pictures(t["adapted"], PROBES) for t in (reference, traces))
    return {
        "change": name,
        "seed": seed,
        "outcome": verdict.outcome,
        "reasons": list(verdict.reasons[:2]),
        "warnings": len(verdict.warnings),
        "psnr": float(picture.psnr("adapted", quantized, full).values.mean()),
        "ssim": float(picture.ssim("adapted", quantized, full).values.mean()),
    }


class Trials(cases.Job):
    """The trials of one adapter at one guidance."""

    def run(self) -> None:
        """Make them, if they are missing."""
        torch.set_num_threads(1)
        name, start = f"{self.made['name']}-{self.guidance:g}.json", time.monotonic()
        path = SCALARS / self.pipeline.name / "harmless" / name
        if path.exists():
            return
        made = cases.plain(list(self.trials()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(one) for one in made) + "\n]\n")
        alarms = [one for one in made if one["outcome"] not in {"PASS", "INCONCLUSIVE"}]
        spent = time.monotonic() - start
        print(f"{path.stem}: {len(made)} trials, {len(alarms)} alarms, {spent:.0f} s", flush=True)

    def trials(self) -> Iterator[dict[str, Any]]:
        """All of them: every round has other prompts' seeds and another noise."""
        for number in range(self.asked.rounds):
            probes = self.pipeline.probes().model_copy(update={"steps": STEPS, "seed": 700_000 + 1000 * number})
            spec = cases.request(
                self.pipeline,
                self.pipeline.adapter(self.made["name"]),
                self.guidance,
                probes=probes,
                limits=limits.find("default").model_copy(update={"looks": (PROBES,)}),
                device=self.asked.device,
            )
            with sessions.opened(spec, Cache(location()), Silent()) as session:
                yield from (trial(session, name, number) for name in CHANGES)


def main() -> None:
    """Make what is missing."""
    parser = cases.options(__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    cases.share(Trials, parser.parse_args())


if __name__ == "__main__":
    main()
