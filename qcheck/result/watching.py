"""What ``qcheck watch`` keeps of a training run: watch.json."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value
from qcheck.result.inspection import Forecast
from qcheck.result.measurement import NotMeasured
from qcheck.spec.growth import Growth, State

NAME = "watch.json"
SCHEMA: Literal["qcheck-watch/1"] = "qcheck-watch/1"
Unit = Literal["step", "epoch"]


class Checkpoint(Value):
    """One checkpoint: its state with the reasons, and the numbers; ``number`` is None for what training ended with.

    A file that cannot be read, or that holds NaN, is ``unread`` and has no numbers.

    ``change`` is the root mean square over layers of |D| / |W|, ``intruders`` the mean over the ``decomposed`` layers
    (None where there are none), ``gradient`` the norm that the run's log has at this step. ``scale`` is the largest
    alpha / rank. ``kl`` is how far the sampler is from the base's on the probes, nat a picture, None without probes.
    ``removed`` says that the trainer has taken the file away since.
    """

    number: int | None
    file: str
    digest: str
    state: State
    reasons: list[str]
    rank: int
    scale: Number
    change: Number
    intruders: Number | None
    decomposed: int
    gradient: Number | None
    kl: Number | None
    removed: bool = False
    forecasts: list[Forecast]


class Watching(Value):
    """A training run as far as it was watched, the latest checkpoint last."""

    schema_: Literal["qcheck-watch/1"] = Field(default=SCHEMA, alias="schema")
    qcheck: str
    run: str
    base: str
    weight: float
    schemes: list[str]
    orders: list[str]
    recipe: str
    probes: int
    limits: Growth
    unit: Unit
    checkpoints: list[Checkpoint]
    not_measured: list[NotMeasured]

    @property
    def latest(self) -> Checkpoint | None:
        """The last checkpoint that is still there; where all are removed, the last."""
        return next(
            (one for one in reversed(self.checkpoints) if not one.removed), next(reversed(self.checkpoints), None)
        )

    @property
    def state(self) -> State | None:
        """That of the latest checkpoint."""
        return self.latest.state if self.latest else None


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints in the order of training; what it ended with is the last."""
    return sorted(checkpoints, key=lambda one: math.inf if one.number is None else one.number)


def exit_code(watching: Watching) -> Literal[0, 3]:
    """0 where the latest checkpoint is healthy, else 3."""
    return 0 if watching.state == "healthy" else 3


def read(folder: Path) -> Watching | None:
    """What an earlier watch left in a folder; None where there is nothing.

    Raises:
        UserError: a file of that name that is something else.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return Watching.model_validate_json(files.read_bytes(path))
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{str(path)!r} is none that this version of qcheck watch wrote", "Remove it, or give another --out."
        ) from error
