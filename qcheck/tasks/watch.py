"""A checkpoint of a training run, judged from its weights: will it arrive, and has it grown out of the base?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcheck.core.errors import UserError
from qcheck.diagnose import change as changes
from qcheck.model import lora
from qcheck.quantize.sample import StoredWeights
from qcheck.result.inspection import Inspection, answer
from qcheck.result.watching import Checkpoint
from qcheck.spec.growth import Growth, State
from qcheck.spec.use import Use
from qcheck.tasks import inspect
from qcheck.tasks.inspect import Question
from qcheck.tasks.run_folder import CheckpointFile
from qcheck.tasks.shift import Shift

_LAYERS = 32  # that are decomposed for intruders, evenly spread over the network


@dataclass(frozen=True)
class Run:
    """A training run: its folder, the base, what is asked of checkpoints, and whether schemes and orders were named.

    A checkpoint has to arrive in all that were named, and in one of the others. ``shift`` runs it on probes.
    """

    folder: Path
    base: str
    asked: Question
    limits: Growth
    named: tuple[bool, bool]
    shift: Shift | None = None

    def place(self, saved: CheckpointFile) -> str:
        """The file of a checkpoint, relative to the folder."""
        return saved.path.relative_to(self.folder).as_posix()


def digest(saved: CheckpointFile) -> str:
    """The digest of a checkpoint's file.

    Raises:
        UserError: it cannot be read, or holds NaN or infinity.
    """
    return lora.read(Use(source=str(saved.path), weight=1.0)).digest


def look(run: Run, saved: CheckpointFile) -> Checkpoint:
    """What weights, and probes where the run has some, say of a checkpoint.

    Raises:
        UserError: a file that cannot be read or does not fit the base.
    """
    inspection = inspect.inspect(str(saved.path), run.base, run.asked)
    change = _change(inspection)
    counted, decomposed = (None, 0) if inspection.silent else _intruders(saved.path, run)
    state, reasons = _state(inspection, run.limits.beyond(change, counted), run.named)
    if counted is None and not inspection.silent:
        reasons = [*reasons, "intruder dimensions were not counted: its layers are too large"]
    return Checkpoint(
        number=saved.number,
        file=run.place(saved),
        digest=inspection.digest,
        state=state,
        reasons=reasons,
        rank=max((layer.rank for layer in inspection.layers), default=0),
        scale=max((layer.scale for layer in inspection.layers), default=math.nan),
        change=change,
        intruders=counted,
        decomposed=decomposed,
        gradient=None,
        kl=None if run.shift is None else 0.0 if inspection.silent else run.shift.of(saved.path),
        forecasts=inspection.forecasts,
    )


def logged(checkpoint: Checkpoint, saved: CheckpointFile, norms: Mapping[int, float]) -> Checkpoint:
    """A checkpoint with its gradient's norm where the ``norms`` by step have it by now: a log may come later."""
    norm = norms.get(saved.number) if saved.number is not None and saved.unit == "step" else None
    if norm is None or checkpoint.gradient is not None:
        return checkpoint
    return checkpoint.model_copy(update={"gradient": norm})


def unread(run: Run, saved: CheckpointFile, error: UserError) -> Checkpoint:
    """A checkpoint that cannot be read, with the reason."""
    return Checkpoint(
        number=saved.number,
        file=run.place(saved),
        digest="",
        state="unread",
        reasons=[f"{error.what}. {error.fix}"],
        rank=0,
        scale=math.nan,
        change=math.nan,
        intruders=None,
        decomposed=0,
        gradient=None,
        kl=None,
        forecasts=[],
    )


def _change(inspection: Inspection) -> float:
    """The root mean square of |D| / |W| over the layers that the base has; 0 where nothing changes."""
    relative = [layer.relative for layer in inspection.layers if layer.relative is not None]
    return math.sqrt(sum(one**2 for one in relative) / len(relative)) if relative else 0.0


def _state(inspection: Inspection, beyond: list[str], named: tuple[bool, bool]) -> tuple[State, list[str]]:
    if beyond:
        return "overcooked", beyond
    if not answer(inspection, *named):
        return "healthy", []
    if inspection.silent is not None:
        return "faint", [inspection.silent]
    lost = [one for one in inspection.forecasts if one.fate != "arrives"]
    return "faint", [f"{one.scheme} {one.order} {one.fate}: {one.reason}" for one in lost]


def _intruders(path: Path, run: Run) -> tuple[float | None, int]:
    """The mean of intruder dimensions over some layers, and how many; None where all are too large to decompose."""
    names, stored = inspect.stored_layers(run.base)
    weights = StoredWeights(names.denoiser, stored)
    weight = run.asked.weight
    factors = lora.contents_of(names, lora.read(Use(source=str(path), weight=weight))).factors
    here = [name for name in factors if name in weights]
    chosen = here[:: max(1, math.ceil(len(here) / _LAYERS))]
    counts = []
    for name in chosen:
        before = weights[name].whole()
        change = factors[name].shaped(before.shape).added(before, weight)
        counts.append(changes.intruders(before.flatten(1), (before + change).flatten(1)))
    known = [one for one in counts if one is not None]
    return (sum(known) / len(known) if known else None), len(known)
