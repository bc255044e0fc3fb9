"""A job: everything a check was asked to do, resolved to values before anything heavy starts."""

from dataclasses import dataclass
from pathlib import Path

from qcheck.limits import Limits
from qcheck.probe import ProbeSet
from qcheck.recipe import Recipe
from qcheck.scheme import Order, Scheme
from qcheck.target import Target

Argument = str | float | int | bool | list[str] | list[float] | None


@dataclass(frozen=True)
class Use:
    """An adapter's file and how strongly it is applied."""

    source: str
    weight: float


@dataclass(frozen=True)
class Job:
    """Inputs of ``pipeline.check``.

    ``adapters`` are judged together; those in ``common`` belong to both arms. ``explicit`` says that the user named the
    schemes. ``cache`` None keeps nothing beyond the run.
    """

    base: str
    adapters: tuple[Use, ...]
    common: tuple[Use, ...]
    allow_unmatched: bool
    schemes: tuple[Scheme, ...]
    explicit: bool
    orders: tuple[Order, ...]
    target: Target
    probes: ProbeSet
    recipe: Recipe
    trigger: str | None
    limits: Limits
    out: Path
    cache: Path | None
    threads: int
    batch: int
    build: bool
    arguments: dict[str, Argument]
