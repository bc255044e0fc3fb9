"""A check under way: the arms, what they share, where files go, and how long each stage took."""

import copy
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qcheck.build.profile import Needs, needs
from qcheck.calibrate.histogram import Seen
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Advance, Progress
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.family import Conditions, Shape
from qcheck.model.lora import note
from qcheck.model.quiet import quiet
from qcheck.quantize.artifact import Exporter, Origin, Quantized
from qcheck.result.manifest import model_files
from qcheck.result.measurement import Measurement
from qcheck.runtime.ort_runner import COMPUTES, OnnxRunner
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling.setup import Inputs, Setup, Subject, choose_strata, fed
from qcheck.sampling.store import Trace
from qcheck.spec import probe
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import Job
from qcheck.spec.probe import Probe, ProbeSet

STRATA = 8
Traces = Mapping[Side, Trace]


@dataclass
class Work:
    """What every stage of one check reads. ``probes`` are all that may be needed; a look takes the first of them.

    ``shipped`` is what artifacts are made from: other than ``arms``, the reference, where adapters were calibrated.
    """

    job: Job
    arms: Arms
    shipped: Arms
    setup: Setup
    probes: tuple[Probe, ...]
    folder: Path
    store: Cache
    progress: Progress
    exporter: Exporter
    references: dict[int, Traces] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    controls: dict[str, tuple[np.ndarray, list[Measurement]]] = field(default_factory=dict)
    pictures: dict[tuple[Path, ...], np.ndarray] = field(default_factory=dict)
    seen: dict[Origin, Mapping[str, Seen]] = field(default_factory=dict)

    @functools.cached_property
    def needs(self) -> Needs:
        """What one call of each component costs, at the probes' size and guidance."""
        family = self.arms.use("adapted")
        rows = len(self.example[family.latent])
        return needs(family.component(self.example), family.others(self.shape), rows)

    @functools.cached_property
    def example(self) -> dict[str, np.ndarray]:
        """What the denoiser is fed for the first probe at its first step: a row for each branch of guidance."""
        return example(self.setup, self.probes[0])

    @functools.cached_property
    def shape(self) -> Shape:
        """Latents [1, C, h, w] of one picture."""
        return self.setup.family.shape(self.probes[0].width, self.probes[0].height)

    @contextmanager
    def timed(self, title: str, total: int) -> Iterator[Advance]:
        """A progress stage whose duration is kept for the report."""
        start = time.monotonic()
        with self.progress.stage(title, total) as advance:
            yield advance
        self.seconds[title] = round(self.seconds.get(title, 0.0) + time.monotonic() - start, 2)

    def full(self, side: Side) -> Subject:
        """A full-precision arm in torch."""
        return Subject(
            f"f{int(side == 'adapted')}", side, self.arms.content(side), lambda: TorchRunner(self.arms.entry(side))
        )

    def stored(self, name: str, side: Side, path: Path, content: str) -> Subject:
        """An exported arm, run by ONNX Runtime."""
        return Subject(name, side, content, lambda: OnnxRunner(path, self.job.threads, self.setup.family.fixed))

    def computing(self, side: Side, compute: str) -> Subject:
        """An unquantized arm in another compute type: its exported file, or torch where ONNX Runtime has no kernels."""
        name = f"f{int(side == 'adapted')} in {compute}"
        if compute in COMPUTES:
            path = self.exporter.full(side, compute)
            return self.stored(name, side, path, digest_of(*model_files(path)))
        return Subject(name, side, digest_of(self.arms.content(side), compute), lambda: self._cast(side, compute))

    def _cast(self, side: Side, compute: str) -> TorchRunner:
        dtype: torch.dtype = getattr(torch, compute)
        with quiet():
            owned = copy.deepcopy(self.arms.entry(side)).to(dtype)
        return TorchRunner(owned, f"torch {compute}", dtype, self.setup.family.kept)

    def quantized(self, name: str, side: Side, made: Quantized) -> Subject:
        """A quantized arm: its file in ONNX Runtime, or bitsandbytes' layers in torch."""
        if made.path is not None:
            return self.stored(name, side, made.path, made.digest)
        return Subject(name, side, made.digest, lambda: self._loaded(made))

    def _loaded(self, made: Quantized) -> TorchRunner:
        from qcheck.quantize import bnb  # an extra that only its schemes need

        content, family = made.content(), self.arms.use("base")
        return TorchRunner(family.entry(bnb.converted(family.module, *content)), bnb.NAME)


def prepare(job: Job, folder: Path, progress: Progress) -> Work:
    """Load the base and its adapters.

    Raises:
        UserError: bad input.
    """
    load.locate(job.base)
    chosen = (job.common, job.adapters, job.references)
    common, adapters, references = ([lora.read(used) for used in some] for some in chosen)
    note.require_references(adapters, references)
    with progress.stage("load base and adapter", 1) as advance:
        both = arms.apply(load.load(job.base), references or adapters, common, job.allow_unmatched)
        shipped = arms.alike(both, adapters) if references else both
        advance(1)
    store = Cache(job.cache or folder / "cache")
    setup, probes = matched(both, job, job.probes, STRATA)
    exporter = Exporter(both, store, example(setup, probes[0]))
    return Work(job, both, shipped, setup, probes, folder, store, progress, exporter)


def matched(both: Arms, job: Job, chosen: ProbeSet, strata: int) -> tuple[Setup, tuple[Probe, ...]]:
    """The shared set-up of a probe set, and its probes."""
    family = both.base.family
    if chosen.negative and family.branches == 1:
        raise UserError(
            f"probes {chosen.name!r} have a negative prompt, and a {type(family).__name__} pipeline has no use for one",
            "Leave `negative` out of the probe set.",
        )

    @functools.lru_cache(maxsize=len(SIDES) * job.batch)
    def conditions(side: Side, asked: Probe) -> Conditions:
        with quiet():
            return both.use(side).conditions(asked)

    def inputs(side: Side, asked: Sequence[Probe]) -> Inputs:
        started = [family.start(p) for p in asked]
        found = [conditions(side, p) for p in asked]
        return Inputs(
            latents=torch.cat([latents for latents, _ in started]),
            generators=tuple(generator for _, generator in started),
            conditions={name: torch.stack([c[name] for c in found]).numpy() for name in found[0]},
        )

    shape = family.shape(chosen.width, chosen.height)
    calls = len(family.solver(chosen.steps, shape).timesteps)
    setup = Setup(
        family=family,
        solver=lambda: family.solver(chosen.steps, shape),
        guidance=chosen.guidance,
        strata=choose_strata(calls, strata),
        batch=job.batch,
        inputs=inputs,
    )
    return setup, probe.probes(chosen, tuple(used.weight for used in job.adapters))


def example(setup: Setup, asked: Probe) -> dict[str, np.ndarray]:
    """What the denoiser is fed for one probe at its first step: a row for each branch of guidance."""
    first, solver = setup.inputs("base", [asked]), setup.solver()
    return fed(setup.family, solver, first.latents, solver.timesteps[0], first.conditions)[0]
