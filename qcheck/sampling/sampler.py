"""Sampling and evaluation of probes with a runner, to stored outputs.

The reference f1 is sampled normally. Every other arm is evaluated at the latents f1 visited, then sampled from the same
noise. Outputs are guided: the two branches of classifier-free guidance run in one batch and are combined before they
are stored. Every probe of every arm is one file in the cache: memory does not grow with probes or steps, more probes
cost only their own forwards, and a repeated run reuses the probes that an interrupted one finished.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.progress import Advance
from qcheck.model.arms import Arms
from qcheck.runtime.runner import Runner, call
from qcheck.sampling import setup as setups
from qcheck.sampling import solvers
from qcheck.sampling.setup import Conditions, Inputs, Setup, Subject, combined, fed
from qcheck.sampling.store import Arrays, Trace
from qcheck.sampling.trajectory import Trajectory
from qcheck.spec import probe
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe, ProbeSet

_FILE = "probe.safetensors"
_KIND = "trace"
_TIMED = 3  # calls after the warm-up: one alone is as slow as what else the machine does at that moment
_LONGEST = 5.0  # seconds of them after which no other is timed
Tensors = dict[str, np.ndarray]
AtStratum = Callable[[int, torch.Tensor, torch.Tensor], None]


def _ignore(*_: object) -> None:
    """A callback that does nothing."""


def _guided(
    setup: Setup, runner: Runner, solver: Any, x: torch.Tensor, timestep: Any, conditions: Conditions
) -> torch.Tensor:
    """Guided output [b, C, h, w] for latents of that shape."""
    inputs, branches = fed(setup.family, solver, x, timestep, conditions)
    raw = setup.family.read(call(runner, inputs, setup.family.latent), (branches * len(x), *x.shape[1:]))
    return combined(torch.from_numpy(raw), branches, setup.guidance, setup.family.tile)


def _sample(
    setup: Setup, runner: Runner, start: Inputs, advance: Advance, at_stratum: AtStratum = _ignore
) -> Iterator[Tensors]:
    """Final latents ``final`` [C, h, w] and the scalars of ``Trajectory`` of each free run of a batch.

    ``at_stratum`` gets the stratum's index, the latents and the guided output of the whole batch at every stratum.
    """
    solver, trajectory = setup.solver(), Trajectory()
    x = start.latents * getattr(solver, "init_noise_sigma", 1.0)  # flow-matching solvers start from unit noise
    for index, timestep in enumerate(solver.timesteps):
        guided = _guided(setup, runner, solver, x, timestep, start.conditions)
        trajectory.add(x, guided)
        if index in setup.strata:
            at_stratum(setup.strata.index(index), x, guided)
        x = solvers.step(solver, guided, timestep, x, list(start.generators))
        advance(len(x))
    results = trajectory.scalars(x) | {"final": x}
    for row in range(len(x)):
        yield {name: values[row].numpy() for name, values in results.items()}


def evaluate(
    setup: Setup,
    runner: Runner,
    conditions: Conditions,
    states: np.ndarray,
    advance: Advance,
    enter: Callable[[int], None] = _ignore,
) -> np.ndarray:
    """Guided outputs [b, T, C, h, w] at ``states`` of that shape; ``enter`` gets each stratum's index first."""
    solver, outputs = setup.solver(), np.empty_like(states)
    for place, (before, index) in enumerate(pairwise((0, *setup.strata))):
        enter(place)
        x = torch.from_numpy(states[:, place].copy())
        guided = _guided(setup, runner, solvers.walk(solver, before, index), x, solver.timesteps[index], conditions)
        outputs[:, place] = guided.numpy()
        advance(len(x))
    return outputs


@dataclass(frozen=True)
class Sampler:
    """Probes of one set-up, and the cache that stores the outputs of runners on them."""

    setup: Setup
    probes: tuple[Probe, ...]
    store: Cache

    @classmethod
    def of(cls, arms: Arms, probe_set: ProbeSet, strata: int, batch: int, store: Cache) -> "Sampler":
        """A sampler of a probe set for both ``arms``, which are compared at ``strata`` timesteps.

        Raises:
            UserError: as ``setup.make``.
        """
        probes = probe.probes(probe_set, tuple(adapter.weight for adapter in arms.adapters))
        return cls(setups.make(arms, probe_set, strata, batch), probes, store)

    def take(self, count: int) -> "Sampler":
        """The first ``count`` probes."""
        return replace(self, probes=self.probes[:count])

    def reference(self, subject: Subject, advance: Advance) -> Trace:
        """Sample f1 normally; the trace has its states and outputs at the strata."""
        setup, probes = self.setup, self.probes

        def compute(runner: Runner, rows: slice) -> Iterator[Tensors]:
            start = setup.inputs(subject.side, probes[rows])
            shape = (len(start.latents), len(setup.strata), *start.latents.shape[1:])
            states, outputs = np.empty(shape, np.float32), np.empty(shape, np.float32)

            def keep(place: int, x: torch.Tensor, guided: torch.Tensor) -> None:
                states[:, place], outputs[:, place] = x.numpy(), guided.numpy()

            for row, sampled in enumerate(_sample(setup, runner, start, advance, keep)):
                yield {"states": states[row], "outputs": outputs[row], **sampled}

        keys = [self._run_key("reference", subject, probe) for probe in probes]
        return self._trace(subject, _Plan(keys, None, setup.calls), advance, compute)

    def forced(self, subject: Subject, reference: Trace, advance: Advance) -> Trace:
        """Evaluate an arm at the states that the reference visited, without a free run of its own."""
        setup, probes = self.setup, self.probes

        def compute(runner: Runner, rows: slice) -> Iterator[Tensors]:
            conditions = setup.inputs(subject.side, probes[rows]).conditions
            for output in evaluate(setup, runner, conditions, np.stack(reference.states()[rows]), advance):
                yield {"outputs": output}

        keys = [cache.key(__name__, "forced", subject.content, path.parent.name) for path in reference.paths]
        return self._trace(subject, _Plan(keys, reference, len(setup.strata)), advance, compute)

    def arm(self, subject: Subject, reference: Trace, advance: Advance) -> Trace:
        """Evaluate any other arm at the reference's states, then sample it from the same noise."""
        with _opened_once(subject) as once:
            forced, free = self.forced(once, reference, advance), self._free(once, advance)
        return Trace(subject.name, forced.paths, free.paths, reference.paths)

    def _free(self, subject: Subject, advance: Advance) -> Trace:
        """Sample an arm from the probes' noise; nothing of it depends on another arm."""
        setup, probes = self.setup, self.probes

        def compute(runner: Runner, rows: slice) -> Iterator[Tensors]:
            start = setup.inputs(subject.side, probes[rows])
            states = np.empty((len(start.latents), len(setup.strata), *start.latents.shape[1:]), np.float32)

            def keep(place: int, x: torch.Tensor, _: torch.Tensor) -> None:
                states[:, place] = x.numpy()

            for row, sampled in enumerate(_sample(setup, runner, start, advance, keep)):
                yield {"states": states[row], **sampled}

        keys = [self._run_key("free", subject, probe) for probe in probes]
        return self._trace(subject, _Plan(keys, None, setup.calls), advance, compute)

    def outputs(self, runner: Runner, side: Side, states: Arrays, advance: Advance = _ignore) -> np.ndarray:
        """Guided outputs [n, T, C, h, w] at ``states`` [T, C, h, w] of each probe; nothing is stored."""
        return np.concatenate(list(self._batched(runner, side, states, advance, _ignore)))

    def run(
        self,
        runner: Runner,
        side: Side,
        states: Arrays,
        advance: Advance,
        enter: Callable[[int], None] = _ignore,
    ) -> None:
        """Run an arm at ``states`` [T, C, h, w] of each probe, for hooks on its layers; outputs are discarded."""
        for _ in self._batched(runner, side, states, advance, enter):
            pass

    def _batched(
        self, runner: Runner, side: Side, states: Arrays, advance: Advance, enter: Callable[[int], None]
    ) -> Iterator[np.ndarray]:
        for rows in _batches(range(len(self.probes)), self.setup.batch):
            conditions = self.setup.inputs(side, self.probes[rows]).conditions
            yield evaluate(self.setup, runner, conditions, np.stack(list(states[rows])), advance, enter)

    def states(self, runner: Runner, side: Side) -> np.ndarray:
        """States [n, T, C, h, w] at the strata of a runner's own runs; nothing is stored."""
        batches = []
        for rows in _batches(range(len(self.probes)), self.setup.batch):
            start = self.setup.inputs(side, self.probes[rows])
            states = np.empty((len(start.latents), len(self.setup.strata), *start.latents.shape[1:]), np.float32)

            def keep(place: int, x: torch.Tensor, _: torch.Tensor, states: np.ndarray = states) -> None:
                states[:, place] = x.numpy()

            for _ in _sample(self.setup, runner, start, _ignore, keep):
                pass
            batches.append(states)
        return np.concatenate(batches)

    def known(self, subject: Subject) -> bool:
        """Whether the reference of the first probe is in the cache."""
        return self.store.find(_KIND, self._run_key("reference", subject, self.probes[0])) is not None

    def seconds(self, subject: Subject) -> float:
        """Seconds of one denoiser call of one probe, all branches of guidance: the least of a few, after a warm-up.

        Probes are called in batches, as they are in a run, or fewer of them where the warm-up, of one, is slow.
        """
        calls: list[float] = []
        with subject.open() as runner:
            warm_up = self._timed(runner, subject.side, 1)
            rows = max(1, min(self.setup.batch, len(self.probes), int(_LONGEST / max(warm_up, 1e-6))))
            while len(calls) < _TIMED and sum(calls) < _LONGEST:
                calls.append(self._timed(runner, subject.side, rows))
        return min(calls) / rows

    def _timed(self, runner: Runner, side: Side, rows: int) -> float:
        """Seconds of one call of a batch of the first probes."""
        start, solver = self.setup.inputs(side, self.probes[:rows]), self.setup.solver()
        began = time.monotonic()
        _guided(self.setup, runner, solver, start.latents, solver.timesteps[0], start.conditions)
        return time.monotonic() - began

    def _run_key(self, kind: str, subject: Subject, probe: Probe) -> str:
        return cache.key(__name__, kind, self.setup.digest, subject.content, digest_of_value(probe))

    def _trace(
        self,
        subject: Subject,
        plan: "_Plan",
        advance: Advance,
        compute: Callable[[Runner, slice], Iterator[Tensors]],
    ) -> Trace:
        """The probes' files. Missing ones are computed batch by batch, by one process even where several need them.

        A batch of which a part is missing, as after a kill, is computed as a whole again: the last bits of a probe
        depend on those beside it.
        """
        missing = self._missing(plan)
        advance(plan.calls * (len(plan.keys) - len(missing)))
        if missing:
            with self.store.locked(_KIND, *(plan.keys[index] for index in missing)):
                remaining = self._missing(plan)  # another process may have computed some while this one waited
                advance(plan.calls * (len(missing) - len(remaining)))
                if remaining:
                    with subject.open() as runner:
                        for rows in _batches(remaining, self.setup.batch):
                            self._store_batch(subject, plan, rows, compute(runner, rows))
        folders = [self.store.find(_KIND, key) for key in plan.keys]
        paths = tuple(folder / _FILE for folder in folders if folder is not None)
        if len(paths) != len(plan.keys):
            raise FileNotFoundError(f"{subject.name}: stored probes vanished while they were being used")
        return Trace(subject.name, paths)

    def _missing(self, plan: "_Plan") -> list[int]:
        """The probes that are not in the cache, or without one that was computed beside them."""
        found = functools.cache(lambda key: self.store.find(_KIND, key))  # the others of a batch ask for the same ones

        def whole(key: str) -> bool:
            if (folder := found(key)) is None:
                return False
            with safe_open(folder / _FILE, "np") as stream:
                beside = stream.metadata()["beside"].split()
            return all(found(other) is not None for other in beside)

        return [index for index, key in enumerate(plan.keys) if not whole(key)]

    def _store_batch(self, subject: Subject, plan: "_Plan", rows: slice, computed: Iterator[Tensors]) -> None:
        beside = " ".join(plan.keys[rows])
        for index, tensors in zip(range(rows.start, rows.stop), computed, strict=True):
            if self.store.find(_KIND, plan.keys[index]) is not None:
                continue
            states = tensors["states"] if plan.reference is None else plan.reference.states()[index]
            probe = self.probes[index]
            matched = digest_of(digest_of_value(probe), self.setup.digest, np.ascontiguousarray(states).tobytes())
            with self.store.put(_KIND, plan.keys[index], f"{subject.name}, {probe.prompt}") as folder:
                contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
                save_file(contiguous, folder / _FILE, metadata={"matched": matched, "beside": beside})


@contextmanager
def _opened_once(subject: Subject) -> Iterator[Subject]:
    """The subject with a runner that is opened at its first use, and lasts until the block ends."""
    with ExitStack() as stack:
        runner = functools.cache(lambda: stack.enter_context(subject.open()))
        yield replace(subject, open=lambda: nullcontext(runner()))


@dataclass(frozen=True)
class _Plan:
    """Cache keys of the probes, the trace whose states they are evaluated at (None: their own), and calls a probe."""

    keys: Sequence[str]
    reference: Trace | None
    calls: int


def _batches(indices: Sequence[int], size: int) -> Iterator[slice]:
    """Runs of neighbouring indices, at most ``size`` long."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or end - start == size or indices[end] != indices[end - 1] + 1:
            yield slice(indices[start], indices[end - 1] + 1)
            start = end
