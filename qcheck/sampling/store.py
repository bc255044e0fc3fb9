"""Stored outputs of an arm: one file a probe, read on access."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from safetensors import safe_open

from qcheck.runtime.runner import MismatchError

Arrays = Sequence[np.ndarray] | np.ndarray  # an array for each probe


class Rows(Sequence[np.ndarray]):
    """One tensor of each probe's file, read on access."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self._paths, self._name = paths, name

    def __len__(self) -> int:
        """The number of probes."""
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
            array: np.ndarray = stream.get_tensor(self._name)
        return array


class Distances(Sequence[np.ndarray]):
    """|x - x_f1| / |x_f1| [T] of each probe, of the states x of a free run and those that the reference visited."""

    def __init__(self, states: Rows, visited: Rows) -> None:
        self._states, self._visited = states, visited

    def __len__(self) -> int:
        """The number of probes."""
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "Distances": ...
    def __getitem__(self, index: "int | slice") -> "np.ndarray | Distances":
        """The distances of one probe, or of some of them."""
        if isinstance(index, slice):
            return Distances(self._states[index], self._visited[index])
        visited = self._visited[index].astype(np.float64)
        sizes, apart = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (visited, self._states[index] - visited))
        distances: np.ndarray = apart / sizes
        return distances


@dataclass(frozen=True)
class Trace:
    """One arm's stored outputs, one file a probe.

    The reference's files ``paths`` hold its free run too. Those of another arm hold its outputs at the states that the
    ``reference`` visited; its free runs know no reference, so arms of several adapters share them (``runs``).
    """

    name: str
    paths: tuple[Path, ...]
    runs: tuple[Path, ...] = ()
    reference: tuple[Path, ...] = ()

    @property
    def free(self) -> tuple[Path, ...]:
        """The files of the free runs."""
        return self.runs or self.paths

    def outputs(self) -> Rows:
        """Guided outputs [T, C, h, w] of each probe at the strata."""
        return Rows(self.paths, "outputs")

    def finals(self) -> Rows:
        """Final latents [C, h, w] of each probe's own free run."""
        return Rows(self.free, "final")

    def states(self) -> Rows:
        """Latents [T, C, h, w] of each probe's own free run before the strata's steps."""
        return Rows(self.free, "states")

    def scalars(self, name: str) -> Rows:
        """Scalars of each probe's own free run: ``turns``, ``lengths``, ``chord``, ``moments`` (see ``Trajectory``)."""
        return Rows(self.free, name)

    def apart(self) -> Distances:
        """|x - x_f1| / |x_f1| [T] of each probe before the strata's steps, of another arm than the reference."""
        return Distances(self.states(), Rows(self.reference, "states"))

    def matched(self) -> list[str]:
        """For each probe the digest of everything that its outputs depend on but the arm's own weights."""
        digests = []
        for path in self.paths:
            with safe_open(path, "np") as stream:
                digests.append(stream.metadata()["matched"])
        return digests


def require_matched(*traces: Trace) -> None:
    """Refuse traces that cannot be compared; no array is ever resized to fit.

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
