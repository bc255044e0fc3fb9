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

from qcheck import files, probe, trace
from qcheck.artifact import Exporter, Quantized
from qcheck.backend.onnxruntime import COMPUTES, OnnxRunner
from qcheck.backend.torch import TorchRunner
from qcheck.cache import Cache
from qcheck.job import Job
from qcheck.measurement import Measurement
from qcheck.model import arms, base, lora
from qcheck.model.arms import SIDES, Arms, Side
from qcheck.model.profile import Needs, needs
from qcheck.model.quiet import quiet
from qcheck.probe import Probe, ProbeSet
from qcheck.progress import Progress
from qcheck.quantize.ranges import Seen
from qcheck.trace import Inputs, Setup, Subject, Trace

STRATA = 8
Traces = Mapping[Side, Trace]


@dataclass
class Work:
    """What every stage of one check reads. ``probes`` are all that may be needed; a look takes the first of them."""

    job: Job
    arms: Arms
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
    seen: dict[Side, Mapping[str, Seen]] = field(default_factory=dict)

    @functools.cached_property
    def needs(self) -> Needs:
        """What one call of each component costs, at the probes' size and guidance."""
        first = self.setup.inputs("base", self.probes[:1])
        rows = first.hidden.shape[1]
        return needs(self.arms.use("adapted"), first.latents.shape, first.hidden.shape[1:], rows)

    @contextmanager
    def timed(self, title: str, total: int) -> Iterator[trace.Advance]:
        """A progress stage whose duration is kept for the report."""
        start = time.monotonic()
        with self.progress.stage(title, total) as advance:
            yield advance
        self.seconds[title] = round(self.seconds.get(title, 0.0) + time.monotonic() - start, 2)

    def full(self, side: Side) -> Subject:
        """A full-precision arm in torch."""
        return Subject(
            f"f{int(side == 'adapted')}", side, self.arms.content(side), lambda: TorchRunner(self.arms.use(side).unet)
        )

    def stored(self, name: str, side: Side, path: Path, content: str) -> Subject:
        """An exported arm, run by ONNX Runtime."""
        return Subject(name, side, content, lambda: OnnxRunner(path, self.job.threads))

    def computing(self, side: Side, compute: str) -> Subject:
        """An unquantized arm in another compute type: its exported file, or torch where ONNX Runtime has no kernels."""
        name = f"f{int(side == 'adapted')} in {compute}"
        if compute in COMPUTES:
            path = self.exporter.full(side, compute)
            return self.stored(name, side, path, files.digest(*files.model_files(path)))
        return Subject(name, side, files.digest(self.arms.content(side), compute), lambda: self._cast(side, compute))

    def _cast(self, side: Side, compute: str) -> TorchRunner:
        dtype: torch.dtype = getattr(torch, compute)
        with quiet():
            owned = copy.deepcopy(self.arms.use(side).unet).to(dtype)
        return TorchRunner(owned, f"torch {compute}", dtype)

    def quantized(self, name: str, side: Side, made: Quantized) -> Subject:
        """A quantized arm: its file in ONNX Runtime, or bitsandbytes' layers in torch."""
        if made.path is not None:
            return self.stored(name, side, made.path, made.digest)
        return Subject(name, side, made.digest, lambda: self._loaded(made))

    def _loaded(self, made: Quantized) -> TorchRunner:
        from qcheck.quantize import bitsandbytes  # an extra that only its schemes need

        content = made.content()
        unet = self.arms.use("base").unet
        return TorchRunner(bitsandbytes.converted(unet, *content), bitsandbytes.NAME)


def prepare(job: Job, folder: Path, progress: Progress) -> Work:
    """Load the base and its adapters.

    Raises:
        UserError: bad input.
    """
    base.locate(job.base)
    common, adapters = ([lora.read(used) for used in chosen] for chosen in (job.common, job.adapters))
    with progress.stage("load base and adapter", 1) as advance:
        both = arms.apply(base.load(job.base), adapters, common, job.allow_unmatched)
        advance(1)
    store = Cache(job.cache or folder / "cache")
    setup, probes = matched(both, job, job.probes, STRATA)
    first = setup.inputs("base", probes[:1])
    exporter = Exporter(both, store, first.latents.shape, torch.Size(first.hidden.shape[1:]))
    return Work(job, both, setup, probes, folder, store, progress, exporter)


def matched(both: Arms, job: Job, chosen: ProbeSet, strata: int) -> tuple[Setup, tuple[Probe, ...]]:
    """The shared set-up of a probe set, and its probes."""

    @functools.lru_cache(maxsize=len(SIDES) * job.batch)
    def hidden(side: Side, asked: Probe) -> torch.Tensor:
        return arms.embed(both.use(side), asked)

    def inputs(side: Side, asked: Sequence[Probe]) -> Inputs:
        started = [arms.start(both.base.pipe, p) for p in asked]
        return Inputs(
            latents=torch.cat([latents for latents, _ in started]),
            generators=tuple(generator for _, generator in started),
            hidden=torch.stack([hidden(side, p) for p in asked]).numpy(),
        )

    scheduler = both.base.pipe.scheduler
    calls = len(trace.fresh(scheduler, chosen.steps).timesteps)
    setup = Setup(
        scheduler=scheduler,
        steps=chosen.steps,
        guidance=chosen.guidance,
        strata=trace.choose_strata(calls, strata),
        batch=job.batch,
        inputs=inputs,
    )
    return setup, probe.probes(chosen, tuple(used.weight for used in job.adapters))
