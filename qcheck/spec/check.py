"""A job: everything a check was asked to do, resolved to values before anything heavy starts."""

from dataclasses import dataclass
from pathlib import Path

from qcheck.spec.limits import Limits
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import PromptSet, Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target

Argument = str | float | int | bool | list[str] | list[float] | None


@dataclass(frozen=True)
class Use:
    """An adapter's file and how strongly it is applied."""

    source: str
    weight: float


@dataclass(frozen=True)
class Job:
    """Inputs of ``pipeline.check``.

    ``adapters`` are judged together; those in ``common`` belong to both arms. ``references``, where there are any, are
    what ``adapters`` were calibrated from, one of each: at full precision they are what the artifacts are held to.
    ``explicit`` says that the user named the schemes; ``artifacts`` are files of others that are judged beside them.
    ``cache`` None keeps nothing beyond the run.
    ``ranges`` is a file of them; ``calibrating`` are prompts to find them on instead of the recipe's, ``pictures`` one
    of each prompt, whose latents under noise are met in place of the model's own.
    """

    base: str
    adapters: tuple[Use, ...]
    references: tuple[Use, ...]
    common: tuple[Use, ...]
    allow_unmatched: bool
    schemes: tuple[Scheme, ...]
    artifacts: tuple[Path, ...]
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
    ranges: Path | None = None
    calibrating: PromptSet | None = None
    pictures: tuple[Path, ...] = ()

    def arguments(self) -> dict[str, Argument]:
        """What was asked for, by the names of the options, resolved."""
        sampled = ("steps", "guidance", "seed", "width", "height")
        return {
            "base": self.base,
            "lora": [used.source for used in self.adapters],
            "weight": [used.weight for used in self.adapters],
            "reference_lora": [used.source for used in self.references],
            "with_lora": [f"{used.source}={used.weight:g}" for used in self.common],
            "allow_unmatched": self.allow_unmatched,
            "scheme": [named.name for named in self.schemes],
            "artifact": [str(path) for path in self.artifacts],
            "order": [*self.orders],
            "target": self.target.name,
            "probes": self.probes.name,
            "trigger": self.trigger,
            "recipe": self.recipe.name,
            "ranges": None if self.ranges is None else str(self.ranges),
            "limits": self.limits.name,
            "max_probes": self.limits.looks[-1],
            "build": self.build,
            "threads": self.threads,
            "batch": self.batch,
            **{name: getattr(self.probes, name) for name in sampled},
        }
