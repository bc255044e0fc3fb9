"""Runner x probes -> stored outputs. f1 walks freely; every other arm is asked at f1's states, then walks freely too.

Outputs are guided (the two branches of classifier-free guidance run in one batch and are combined before storing).
Every probe of every arm is one file in the cache: memory does not grow with probes or steps, more probes cost only
their own forwards, and what an interrupted run finished is there for the next.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from qcheck import cache, files, solvers
from qcheck.backend.base import MismatchError, Runner, call
from qcheck.cache import Cache
from qcheck.files import digest
from qcheck.model.arms import Side
from qcheck.model.family import Family
from qcheck.probe import Probe
from qcheck.walk import Way

Advance = Callable[[int], None]
_FILE = "probe.safetensors"


@dataclass(frozen=True)
class Inputs:
    """What some probes start from: latents [b, C, h, w] of unit variance, their generators, and conditions.

    Conditions are [b, 1 or 2, ...] by name: the negative branch first where guidance has one.
    """

    latents: torch.Tensor
    generators: tuple[torch.Generator, ...]
    conditions: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Setup:
    """What all arms share: the solver, the steps at which arms are compared, and how a probe starts in each arm.

    ``solver`` makes a new one, set to its steps; solvers keep state, so no two runs share one.
    """

    family: Family
    solver: Callable[[], Any]
    guidance: float
    strata: tuple[int, ...]
    batch: int
    inputs: Callable[[Side, Sequence[Probe]], Inputs]

    @cached_property
    def calls(self) -> int:
        """Denoiser calls of one probe; some solvers take more of them than steps."""
        return len(self.all_timesteps())

    def all_timesteps(self) -> tuple[float, ...]:
        """The solver's timestep at every call."""
        return tuple(float(t) for t in self.solver().timesteps)

    def timesteps(self) -> tuple[float, ...]:
        """The solver's timestep at each stratum."""
        every = self.all_timesteps()
        return tuple(every[index] for index in self.strata)

    @cached_property
    def weights(self) -> np.ndarray:
        """Squared solver coefficient of every stratum, [T]."""
        found: np.ndarray = solvers.coefficients(self.solver)[list(self.strata)] ** 2
        return found

    @cached_property
    def digest(self) -> str:
        """The digest of the solver and the strata."""
        solver = self.solver()
        made = f"{type(solver).__name__} {sorted(solver.config.items())!r}"
        return digest(made, repr((self.all_timesteps(), self.guidance, self.strata)))


@dataclass(frozen=True)
class Subject:
    """An arm to trace: its side, the digest of all that its outputs depend on, and how to get a runner for it.

    ``runner`` is called only when something has to be computed.
    """

    name: str
    side: Side
    content: str
    runner: Callable[[], Runner]


Arrays = Sequence[np.ndarray] | np.ndarray  # one of each probe


class Rows(Sequence[np.ndarray]):
    """One tensor of each probe's file, read when it is asked for."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self._paths, self._name = paths, name

    def __len__(self) -> int:
        """Probes."""
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | Rows":
        """The array of one probe, or some of the probes."""
        if isinstance(index, slice):
            return Rows(self._paths[index], self._name)
        with safe_open(self._paths[index], "np") as stream:
            found: np.ndarray = stream.get_tensor(self._name)
        return found


@dataclass(frozen=True)
class Trace:
    """One arm's stored outputs, a file a probe."""

    name: str
    paths: tuple[Path, ...]

    def outputs(self) -> Rows:
        """Guided outputs [T, C, h, w] of each probe at the strata."""
        return Rows(self.paths, "outputs")

    def finals(self) -> Rows:
        """Final latents [C, h, w] of each probe's own free run."""
        return Rows(self.paths, "final")

    def states(self) -> Rows:
        """Latents [T, C, h, w] of each probe before the strata's steps; the reference has them."""
        return Rows(self.paths, "states")

    def way(self, name: str) -> Rows:
        """Scalars of each probe's own free run: ``turns``, ``lengths``, ``chord``, ``moments`` (see ``walk.Way``).

        Other arms than the reference also have ``apart`` [T]: |x - x_f1| / |x_f1| before the strata's steps.
        """
        return Rows(self.paths, name)

    def matched(self) -> list[str]:
        """For each probe the digest of everything that its outputs depend on but the arm's own weights."""
        found = []
        for path in self.paths:
            with safe_open(path, "np") as stream:
                found.append(stream.metadata()["matched"])
        return found


def require_matched(*traces: Trace) -> None:
    """Refuse traces that do not belong together; nothing is ever resized to fit.

    Raises:
        MismatchError: probes, noise, timesteps or states differ, or shapes or dtypes do.
    """
    first = traces[0]
    for trace in traces[1:]:
        if trace.matched() != first.matched():
            raise MismatchError(f"{trace.name} was traced on other probes or states than {first.name}")
        for ours, theirs in ((trace.outputs(), first.outputs()), (trace.finals(), first.finals())):
            for a, b in zip(ours, theirs, strict=True):
                if a.shape != b.shape or a.dtype != b.dtype:
                    raise MismatchError(f"{trace.name}: {a.dtype}{a.shape}, expected {b.dtype}{b.shape}")


def choose_strata(steps: int, count: int) -> tuple[int, ...]:
    """min(count, steps) step indices, evenly spread, always with the last two."""
    count = min(count, steps)
    spread = {round(index) for index in np.linspace(0, steps - 1, count)} | {steps - 1, max(steps - 2, 0)}
    inner = sorted(spread - {0, steps - 1, steps - 2})
    while len(spread) > count and inner:
        spread.remove(inner.pop())
    return tuple(sorted(spread))


Conditions = Mapping[str, np.ndarray]


def fed(
    family: Family, solver: Any, x: torch.Tensor, timestep: Any, conditions: Conditions
) -> tuple[dict[str, np.ndarray], int]:
    """What the denoiser is fed for latents [b, C, h, w] and conditions [b, n, ...], and how many branches n they are.

    Branches follow each other in the batch.
    """
    branches = next(iter(conditions.values())).shape[1]
    sample = torch.cat([solvers.scaled(solver, x, timestep)] * branches).numpy()
    rows = {name: value.swapaxes(0, 1).reshape(-1, *value.shape[2:]) for name, value in conditions.items()}
    return family.feed(sample, float(timestep), rows), branches


def _guided(
    setup: Setup, runner: Runner, solver: Any, x: torch.Tensor, timestep: Any, conditions: Conditions
) -> torch.Tensor:
    """Guided output [b, C, h, w] for latents of that shape."""
    given, branches = fed(setup.family, solver, x, timestep, conditions)
    raw = setup.family.read(call(runner, given, setup.family.latent), (branches * len(x), *x.shape[1:]))
    return combined(torch.from_numpy(raw), branches, setup.guidance)


def combined(outputs: torch.Tensor, branches: int, guidance: float) -> torch.Tensor:
    """Guided output [b, C, h, w] of ``branches`` that follow each other in the batch."""
    parts = outputs.chunk(branches)
    return parts[0] if branches == 1 else parts[0] + guidance * (parts[1] - parts[0])


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
    return cache.key("reference", setup.digest, subject.content, files.digest_value(probe))


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


def forwards(setup: Setup, free: int, forced: int, probes: int) -> int:
    """Denoiser calls, one per probe and step, of ``free`` walks and ``forced`` passes over ``probes``."""
    return probes * (free * setup.calls + forced * len(setup.strata))


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
    return digest(files.digest_value(probe), setup.digest, np.ascontiguousarray(states).tobytes())


def _batches(indices: Sequence[int], size: int) -> Iterator[slice]:
    """Runs of neighbouring indices, at most ``size`` long."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or end - start == size or indices[end] != indices[end - 1] + 1:
            yield slice(indices[start], indices[end - 1] + 1)
            start = end
