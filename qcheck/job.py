"""A job: everything a check was asked to do, resolved to values before anything heavy starts."""

from dataclasses import dataclass
from pathlib import Path

from qcheck.limits import Limits
from qcheck.probe import ProbeSet
from qcheck.recipe import Recipe
from qcheck.scheme import Order, Scheme
from qcheck.target import Target

Argument = str | float | int | bool | list[str] | None


@dataclass(frozen=True)
class Job:
    """Inputs of ``pipeline.check``. ``explicit`` says that the user named the schemes."""

    base: str
    adapter: str
    weight: float
    schemes: tuple[Scheme, ...]
    explicit: bool
    orders: tuple[Order, ...]
    target: Target
    probes: ProbeSet
    recipe: Recipe
    trigger: str | None
    limits: Limits
    out: Path
    threads: int
    batch: int
    build: bool
    arguments: dict[str, Argument]
