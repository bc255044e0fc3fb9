"""Runner x probes -> stored outputs. f1 walks freely; every other arm is asked at f1's states, then walks freely too.

Outputs are guided (the two branches of classifier-free guidance run in one batch and are combined before storing).
Every probe of every arm is one file in the cache: memory does not grow with probes or steps, more probes cost only
their own forwards, and what an interrupted run finished is there for the next.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.progress import Advance
from qcheck.runtime.runner import Runner, call
from qcheck.sampling import solvers
from qcheck.sampling.setup import Conditions, Inputs, Setup, Subject, combined, fed
from qcheck.sampling.store import Arrays, Trace
from qcheck.sampling.trajectory import Way
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe

_FILE = "probe.safetensors"


def _guided(
    setup: Setup, runner: Runner, solver: Any, x: torch.Tensor, timestep: Any, conditions: Conditions
) -> torch.Tensor:
    """Guided output [b, C, h, w] for latents of that shape."""
    given, branches = fed(setup.family, solver, x, timestep, conditions)
    raw = setup.family.read(call(runner, given, setup.family.latent), (branches * len(x), *x.shape[1:]))
    return combined(torch.from_numpy(raw), branches, setup.guidance)


Seen = Callable[[int, torch.Tensor, torch.Tensor], None]


def _ignore(*_: object) -> None:
    """Nobody looks at the way."""


def _walk(
    setup: Setup, runner: Runner, start: Inputs, advance: Advance, seen: Seen = _ignore
) -> Iterator[dict[str, np.ndarray]]:
    """Final latents ``final`` [C, h, w] and the way's scalars (``walk.Way``) of each free run of a batch.

    ``seen`` gets place, latents and guided output of the whole batch at every stratum.
    """
    solver, way = setup.solver(), Way()
    x = start.latents * getattr(solver, "init_noise_sigma", 1.0)  # flow-matching solvers start from unit noise
    for index, timestep in enumerate(solver.timesteps):
        guided = _guided(setup, runner, solver, x, timestep, start.conditions)
        way.seen(x, guided)
        if index in setup.strata:
            seen(setup.strata.index(index), x, guided)
        x = solvers.step(solver, guided, timestep, x, list(start.generators))
        advance(len(x))
    kept = way.ended(x) | {"final": x}
    for row in range(len(x)):
        yield {name: values[row].numpy() for name, values in kept.items()}


def ask(
    setup: Setup,
    runner: Runner,
    conditions: Conditions,
    states: np.ndarray,
    advance: Advance,
    enter: Callable[[int], None] = _ignore,
) -> np.ndarray:
    """Guided outputs [b, T, C, h, w] at given states of that shape; ``enter`` is told each stratum before it runs."""
    solver, outputs = setup.solver(), np.empty_like(states)
    for place, index in enumerate(setup.strata):
        enter(place)
        x = torch.from_numpy(states[:, place].copy())
        guided = _guided(setup, runner, solvers.at(solver, index), x, solver.timesteps[index], conditions)
        outputs[:, place] = guided.numpy()
        advance(len(x))
    return outputs


def _reference_key(setup: Setup, subject: Subject, probe: Probe) -> str:
    return cache.key("reference", setup.digest, subject.content, digest_of_value(probe))


def known(setup: Setup, subject: Subject, probe: Probe, store: Cache) -> bool:
    """Whether the reference of that probe is there from an earlier run."""
    return store.find("trace", _reference_key(setup, subject, probe)) is not None


def seconds(setup: Setup, subject: Subject, asked: Probe) -> float:
    """Seconds of one denoiser call for one probe, all branches of guidance: the second call, the first warms up."""
    start, solver, runner = setup.inputs(subject.side, [asked]), setup.solver(), subject.runner()
    for _ in range(2):
        began = time.monotonic()
        _guided(setup, runner, solver, start.latents, solver.timesteps[0], start.conditions)
    return time.monotonic() - began


def reference(setup: Setup, subject: Subject, probes: Sequence[Probe], store: Cache, advance: Advance) -> Trace:
    """Trace f1: its free run, with states and outputs at the strata."""

    def compute(runner: Runner, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        start = setup.inputs(subject.side, probes[rows])
        shape = (len(start.latents), len(setup.strata), *start.latents.shape[1:])
        states, outputs = np.empty(shape, np.float32), np.empty(shape, np.float32)

        def keep(place: int, x: torch.Tensor, guided: torch.Tensor) -> None:
            states[:, place], outputs[:, place] = x.numpy(), guided.numpy()

        for row, walked in enumerate(_walk(setup, runner, start, advance, keep)):
            yield {"states": states[row], "outputs": outputs[row], **walked}

    keys = [_reference_key(setup, subject, probe) for probe in probes]
    return _trace(setup, subject, _Work(keys, probes, None, setup.calls), store, advance, compute)


def forced(
    setup: Setup, reached: Trace, subject: Subject, probes: Sequence[Probe], store: Cache, advance: Advance
) -> Trace:
    """Trace an arm at the states that the reference reached, without a free run of its own."""

    def compute(runner: Runner, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        conditions = setup.inputs(subject.side, probes[rows]).conditions
        for output in ask(setup, runner, conditions, np.stack(reached.states()[rows]), advance):
            yield {"outputs": output}

    keys = [cache.key("forced", subject.content, path.parent.name) for path in reached.paths]
    return _trace(setup, subject, _Work(keys, probes, reached, len(setup.strata)), store, advance, compute)


def arm(
    setup: Setup, reached: Trace, subject: Subject, probes: Sequence[Probe], store: Cache, advance: Advance
) -> Trace:
    """Trace any other arm: at the reference's states, then free from the same noise."""

    def compute(runner: Runner, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        start = setup.inputs(subject.side, probes[rows])
        states = np.stack(reached.states()[rows])
        outputs = ask(setup, runner, start.conditions, states, advance)
        apart = np.zeros(states.shape[:2])

        def measure(place: int, x: torch.Tensor, _: torch.Tensor) -> None:
            there = states[:, place].astype(np.float64)
            apart[:, place] = np.linalg.norm((x.numpy() - there).reshape(len(there), -1), axis=1)
            apart[:, place] /= np.linalg.norm(there.reshape(len(there), -1), axis=1)

        for row, walked in enumerate(_walk(setup, runner, start, advance, measure)):
            yield {"outputs": outputs[row], "apart": apart[row], **walked}

    keys = [cache.key("arm", subject.content, path.parent.name) for path in reached.paths]
    calls = len(setup.strata) + setup.calls
    return _trace(setup, subject, _Work(keys, probes, reached, calls), store, advance, compute)


def visit(
    setup: Setup,
    states: Arrays,
    runner: Runner,
    side: Side,
    probes: Sequence[Probe],
    advance: Advance,
    enter: Callable[[int], None] = _ignore,
) -> None:
    """Run an arm at states [T, C, h, w] of each probe for the sake of who watches its layers; nothing is kept."""
    for rows in _batches(range(len(probes)), setup.batch):
        conditions = setup.inputs(side, probes[rows]).conditions
        ask(setup, runner, conditions, np.stack(list(states[rows])), advance, enter)


def answers(
    setup: Setup, runner: Runner, side: Side, probes: Sequence[Probe], states: Arrays, advance: Advance
) -> np.ndarray:
    """Guided outputs [n, T, C, h, w] of a runner at given states [T, C, h, w] of each probe; nothing is stored."""
    found = []
    for rows in _batches(range(len(probes)), setup.batch):
        conditions = setup.inputs(side, probes[rows]).conditions
        found.append(ask(setup, runner, conditions, np.stack(list(states[rows])), advance))
    return np.concatenate(found)


def roam(setup: Setup, runner: Runner, side: Side, probes: Sequence[Probe], advance: Advance) -> np.ndarray:
    """States [n, T, C, h, w] that a runner reaches by itself at the strata; nothing is stored."""
    found = []
    for rows in _batches(range(len(probes)), setup.batch):
        start = setup.inputs(side, probes[rows])
        reached = np.empty((len(start.latents), len(setup.strata), *start.latents.shape[1:]), np.float32)

        def keep(place: int, x: torch.Tensor, _: torch.Tensor, reached: np.ndarray = reached) -> None:
            reached[:, place] = x.numpy()

        for _ in _walk(setup, runner, start, advance, keep):
            pass
        found.append(reached)
    return np.concatenate(found)


@dataclass(frozen=True)
class _Work:
    """Cache keys of the probes, the probes, whose states they are asked at (None: their own), calls for each."""

    keys: Sequence[str]
    probes: Sequence[Probe]
    reached: Trace | None
    calls: int


def _trace(
    setup: Setup,
    subject: Subject,
    work: _Work,
    store: Cache,
    advance: Advance,
    compute: Callable[[Runner, slice], Iterator[dict[str, np.ndarray]]],
) -> Trace:
    """Find the probes' files, computing those that are missing batch by batch."""
    found = [store.find("trace", key) for key in work.keys]
    missing = [index for index, folder in enumerate(found) if folder is None]
    advance(work.calls * (len(found) - len(missing)))
    runner = subject.runner() if missing else None
    for rows in _batches(missing, setup.batch):
        assert runner is not None  # noqa: S101  # there are rows only where something is missing
        for index, tensors in zip(range(rows.start, rows.stop), compute(runner, rows), strict=True):
            states = tensors["states"] if work.reached is None else work.reached.states()[index]
            matched = _matched(setup, work.probes[index], states)
            with store.put("trace", work.keys[index], f"{subject.name}, {work.probes[index].prompt}") as folder:
                whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
                save_file(whole, folder / _FILE, metadata={"matched": matched})
            found[index] = store.find("trace", work.keys[index])
    paths = tuple(folder / _FILE for folder in found if folder is not None)
    if len(paths) != len(work.keys):
        raise FileNotFoundError(f"{subject.name}: stored probes vanished while they were being used")
    return Trace(subject.name, paths)


def _matched(setup: Setup, probe: Probe, states: np.ndarray) -> str:
    return digest_of(digest_of_value(probe), setup.digest, np.ascontiguousarray(states).tobytes())


def _batches(indices: Sequence[int], size: int) -> Iterator[slice]:
    """Runs of neighbouring indices, at most ``size`` long."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or end - start == size or indices[end] != indices[end - 1] + 1:
            yield slice(indices[start], indices[end - 1] + 1)
            start = end
