"""The numbers of each probe as a report keeps them, and back: what is judged again needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qcheck.core.errors import listed
from qcheck.measure.control import Control
from qcheck.measure.effect import Energies
from qcheck.measure.sample import Sample
from qcheck.result.basis import Basis, ControlRun, Values
from qcheck.spec.arm import Side
from qcheck.tasks.decide import Instrument

LEAST = 2  # probes of an interval


@dataclass(frozen=True)
class Record:
    """An instrument that keeps what it was asked for."""

    inner: Instrument
    weakened: dict[str, list[float]] = field(default_factory=dict)
    another_seed: dict[Side, float] = field(default_factory=dict)

    @property
    def instrument(self) -> Instrument:
        """The instrument to judge with."""
        return Instrument(self.inner.controls, self._weakened, self._another_seed)

    def _weakened(self, share: float) -> np.ndarray | None:
        survival = self.inner.weakened(share)
        if survival is not None:
            self.weakened[f"{share:g}"] = survival.tolist()
        return survival

    def _another_seed(self, side: Side) -> float | None:
        distance = self.inner.another_seed(side)
        if distance is not None:
            self.another_seed[side] = distance
        return distance


def of(
    samples: Sequence[Sample],
    energies: Energies,
    floor: np.ndarray,
    record: Record,
    reported: Sequence[Sample],
    scores: Mapping[Side, np.ndarray],
) -> Basis:
    """The basis of a verdict; ``reported`` samples and the classifier's ``scores`` [2, n] are those without a limit."""
    return Basis(
        samples=[as_values(sample) for sample in samples],
        reported=[as_values(sample) for sample in reported],
        classifier={side: values.tolist() for side, values in scores.items()},
        energies={name: values.tolist() for name, values in vars(energies).items()},
        floor=floor.tolist(),
        controls=[_run(control) for control in record.inner.controls],
        weakened=record.weakened,
        another_seed=record.another_seed,
    )


def of_broken(samples: Sequence[Sample]) -> Basis:
    """The basis of a verdict on a reference that is not finite."""
    return Basis(samples=[as_values(sample) for sample in samples])


def as_values(sample: Sample) -> Values:
    """A sample as a report keeps it."""
    rows = sample.values.reshape(len(sample.values), -1).tolist()
    return Values(name=sample.name, arm=sample.arm, places=list(sample.places), worst=sample.worst, rows=rows)


def _run(control: Control) -> ControlRun:
    return ControlRun(
        name=control.name,
        error=control.error.tolist(),
        places=list(control.places),
        timesteps=list(control.timesteps),
    )


def array(values: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    """Kept numbers as float64."""
    return np.array(values, np.float64)


def samples(values: Sequence[Values]) -> list[Sample]:
    """The samples again.

    Raises:
        ValueError: one has numbers of fewer probes than an interval needs.
    """
    _require_several({f"{one.name} ({one.arm})": one.rows for one in values})
    return [Sample(one.name, one.arm, array(one.rows), tuple(one.places), one.worst) for one in values]


def _require_several(rows: Mapping[str, Sequence[object]]) -> None:
    if short := [name for name, several in rows.items() if len(several) < LEAST]:
        raise ValueError(f"{listed(short)} of fewer than {LEAST} probes, of which no interval is made")


def energies(basis: Basis) -> Energies:
    """The energies again.

    Raises:
        ValueError: as ``samples``.
    """
    _require_several(basis.energies)
    return Energies(**{name: array(rows) for name, rows in basis.energies.items()})


def instrument(basis: Basis) -> Instrument:
    """An instrument that answers what was asked when the verdict was made, and does not know anything else."""
    controls = [Control(one.name, array(one.error), tuple(one.places), tuple(one.timesteps)) for one in basis.controls]
    weakened = {share: array(values) for share, values in basis.weakened.items()}
    return Instrument(controls, lambda share: weakened.get(f"{share:g}"), basis.another_seed.get)
