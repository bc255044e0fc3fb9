"""A check under way: the arms, what they share, where files go, and how long each stage took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qcheck import probe, trace
from qcheck.artifact import Exporter
from qcheck.backend.torch import TorchRunner
from qcheck.job import Job
from qcheck.measurement import Measurement
from qcheck.model import arms, base, lora
from qcheck.model.arms import SIDES, Arms, Side
from qcheck.probe import ProbeSet
from qcheck.progress import Progress
from qcheck.trace import Setup

Hidden = dict[Side, np.ndarray]
STRATA = 8


@dataclass
class Work:
    """What every stage of one check reads."""

    job: Job
    arms: Arms
    setup: Setup
    hidden: Hidden
    folder: Path
    progress: Progress
    exporter: Exporter
    seconds: dict[str, float] = field(default_factory=dict)
    controls: dict[str, tuple[np.ndarray, list[Measurement]]] = field(default_factory=dict)

    @contextmanager
    def timed(self, title: str, total: int) -> Iterator[trace.Advance]:
        """A progress stage whose duration is kept for the report."""
        start = time.monotonic()
        with self.progress.stage(title, total) as advance:
            yield advance
        self.seconds[title] = round(time.monotonic() - start, 2)

    def runner(self, side: Side) -> TorchRunner:
        """The full-precision denoiser of an arm."""
        return TorchRunner(self.arms.use(side).unet)

    @property
    def weights(self) -> np.ndarray:
        """Squared solver coefficient of every stratum, [T]."""
        found: np.ndarray = trace.coefficients(self.setup.scheduler, self.setup.steps)[list(self.setup.strata)] ** 2
        return found


def prepare(job: Job, folder: Path, progress: Progress) -> Work:
    """Load base and adapter, and draw the probes' noise and text embeddings for both arms.

    Raises:
        UserError: bad input.
    """
    adapter = lora.read(job.adapter, job.weight)
    base.locate(job.base)
    with progress.stage("load base and adapter", 1) as advance:
        both = arms.apply(base.load(job.base), adapter)
        advance(1)
    setup, hidden = matched(both, job, job.probes, STRATA)
    exporter = Exporter(both, setup.latents.shape, torch.Size(hidden["base"].shape[1:]))
    return Work(job, both, setup, hidden, folder, progress, exporter)


def matched(both: Arms, job: Job, chosen: ProbeSet, strata: int) -> tuple[Setup, Hidden]:
    """The shared set-up of a probe set, and each arm's own embeddings [n, 1 or 2, L, D]."""
    asked = probe.probes(chosen, job.weight)
    started = [arms.start(both.base.pipe, p) for p in asked]
    hidden: Hidden = {}
    for side in SIDES:
        pipe = both.use(side)
        hidden[side] = torch.stack([arms.embed(pipe, p) for p in asked]).numpy()
    setup = Setup(
        probes=asked,
        scheduler=both.base.pipe.scheduler,
        latents=torch.cat([latents for latents, _ in started]),
        generators=tuple(generator.get_state() for _, generator in started),
        strata=trace.choose_strata(len(trace.fresh(both.base.pipe.scheduler, chosen.steps).timesteps), strata),
        batch=job.batch,
    )
    return setup, hidden
