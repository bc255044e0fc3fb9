"""A view of four arms made of arrays, so that measurements need no model."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from qcheck.measure.registry import Run, View
from qcheck.measure.sample import Sample


def run(outputs: np.ndarray, reference: np.ndarray | None = None, **rows: Iterable[np.ndarray]) -> Run:
    """An arm whose free run visits ``outputs`` [n, T, C, h, w] themselves; what ``rows`` names is given instead."""
    flat = outputs.reshape(*outputs.shape[:2], -1)
    norms = np.linalg.norm(flat, axis=-1)
    with np.errstate(all="ignore"):
        made: dict[str, Any] = {
            "outputs": outputs,
            "finals": list(outputs[:, -1]),
            "turns": 1 - (flat[:, 1:] * flat[:, :-1]).sum(-1) / (norms[:, 1:] * norms[:, :-1]),
            "lengths": np.linalg.norm(np.diff(flat, axis=1), axis=-1),
            "chord": np.linalg.norm(flat[:, -1:] - flat[:, :1], axis=-1),
            "moments": np.stack([outputs.mean((3, 4)), outputs.var((3, 4))], 2),
        }
        if reference is not None:
            far, near = ((x**2).sum((2, 3, 4)) for x in (outputs - reference, reference))
            made["apart"] = np.sqrt(far / near)
    return Run(**made | rows)


def view(
    f0: np.ndarray,
    f1: np.ndarray,
    q0: np.ndarray,
    q1: np.ndarray,
    floor: np.ndarray | None = None,
    timesteps: tuple[float, ...] | None = None,
    **more: Any,
) -> View:
    """Four arms of outputs [n, T, C, h, w], no floor unless given."""
    count = f0.shape[1]
    return View(
        run(f0),
        run(f1),
        run(q0, f0),
        run(q1, f1),
        np.zeros(count) if floor is None else floor,
        tuple(float(t) for t in range(count, 0, -1)) if timesteps is None else timesteps,
        tuple(range(count)),
        **more,
    )


def only(name: str, arms: Iterable[Iterable[np.ndarray]], floor: float = 0.0) -> View:
    """A view whose four arms, f0, f1, q0 and q1, have rows of that name alone; one stratum."""
    nothing: tuple[np.ndarray, ...] = ()
    empty = dict.fromkeys(("outputs", "finals", "turns", "lengths", "chord", "moments"), nothing)
    f0, f1, q0, q1 = (Run(**empty | {name: rows}) for rows in arms)
    return View(f0, f1, q0, q1, np.full(1, floor), (1.0,), (0,))


def by_key(samples: Iterable[Sample]) -> dict[tuple[str, str], Sample]:
    """Samples by name and arm."""
    return {(sample.name, sample.arm): sample for sample in samples}
