"""Groups of options that commands share: a command takes a group as one value, and Typer takes its options.

A group is a frozen dataclass whose fields are annotated options; it also builds the API's keywords from them.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from qcheck.api.functions import default_out
from qcheck.api.keywords import Adapting, Bundling, Judging, Probing, Quantizing, Running, Sampling
from qcheck.api.request import CORES, TARGET, requirement
from qcheck.cli import options
from qcheck.core.errors import UserError
from qcheck.demo import library

G = TypeVar("G")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the options of its groups in place of the groups."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def ungrouped(**values: Any) -> None:
        group_values = {name: of(kind, values) for name, kind in groups.items()}
        grouped_names = {field.name for kind in groups.values() for field in dataclasses.fields(kind)}
        command(**group_values, **{name: value for name, value in values.items() if name not in grouped_names})

    vars(ungrouped)["__signature__"] = inspect.Signature(parameters)
    ungrouped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del ungrouped.__wrapped__
    return ungrouped


def of(kind: Callable[..., G], values: Mapping[str, Any]) -> G:
    """A group from the values of all options by their names."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _options(kind: Any) -> list[inspect.Parameter]:
    """The fields of a group as parameters."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]


@dataclass(frozen=True)
class Adapters:
    """The adapters and the board."""

    lora: options.Loras
    weight: options.Weights = None
    reference: options.References = None
    with_lora: options.Common = None
    allow_unmatched: options.Unmatched = False
    target: options.Board = TARGET

    def keywords(self) -> Adapting:
        """Keywords of the Python API."""
        return {
            "weight": self.weight,
            "reference_lora": self.reference,
            "with_lora": self.with_lora,
            "allow_unmatched": self.allow_unmatched,
            "target": self.target,
        }


@dataclass(frozen=True)
class Artifact:
    """One scheme in one order, and the ranges of the layers' inputs."""

    scheme: options.Scheme = library.SCHEME
    order: options.Order = None
    max_rank: options.MaxRank = None
    bound_with: options.BoundWith = None
    recipe: options.Recipe = None
    ranges: options.RangesFile = None

    def keywords(self) -> Quantizing:
        """Keywords of the Python API."""
        return {
            "scheme": self.scheme,
            "order": self.order,
            "max_rank": self.max_rank,
            "bound_with": self.bound_with,
            "recipe": self.recipe,
            "ranges": self.ranges,
        }


@dataclass(frozen=True)
class Artifacts:
    """Schemes and orders, files that others quantized, the ranges of the layers' inputs, and the verdict's limits."""

    schemes: options.Schemes = None
    artifacts: options.Artifacts = None
    orders: options.Orders = None
    max_rank: options.MaxRank = None
    bound_with: options.BoundWith = None
    recipe: options.Recipe = None
    ranges: options.RangesFile = None
    limits: options.Limits = "default"
    style_pictures: options.StylePictures = None
    judges: options.Judges = None

    def keywords(self) -> Quantizing:
        """Keywords of the Python API."""
        return {
            "scheme": self.schemes,
            "order": self.orders,
            "max_rank": self.max_rank,
            "bound_with": self.bound_with,
            "recipe": self.recipe,
            "ranges": self.ranges,
        }

    def judging(self, require: str | None = None) -> Judging:
        """Keywords of the Python API."""
        return {
            "artifact": self.artifacts,
            "limits": self.limits,
            "style_pictures": self.style_pictures,
            "judge": self.judges,
            "require": requirement(require),
        }


@dataclass(frozen=True)
class Runs:
    """How the pipeline is sampled."""

    trigger: options.Trigger = None
    steps: options.Steps = None
    guidance: options.Guidance = None
    seed: options.Seed = None
    width: options.Width = None
    height: options.Height = None

    def sampling(self) -> Sampling:
        """Keywords of the Python API."""
        return {
            "trigger": self.trigger,
            "steps": self.steps,
            "guidance": self.guidance,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
        }


@dataclass(frozen=True)
class Probes(Runs):
    """The probes to judge on, and how they are sampled."""

    probes: options.Probes = None
    prompts: options.Prompts = None
    max_probes: options.Most = None

    def keywords(self) -> Probing:
        """Keywords of the Python API."""
        return {"prompts": self.prompts, "max_probes": self.max_probes}


@dataclass(frozen=True)
class Machine:
    """The machine and how it is used."""

    build: options.Build = True
    device: options.Device = "auto"
    precision: options.Precision = "float32"
    threads: options.Threads = CORES
    batch: options.Batch = 8
    no_cache: options.NoCache = False

    def keywords(self) -> Running:
        """Keywords of the Python API."""
        return {
            "build": self.build,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "batch": self.batch,
        }


@dataclass(frozen=True)
class Bundle:
    """The bundle for the board, if there is to be one."""

    bundle: options.BundleFolder = None
    bundle_probes: options.BundleProbes = None
    base_arm: options.BaseArm = False
    twin: options.Twin = True
    pack: options.Pack = False

    def content(self) -> Bundling:
        """Keywords of the Python API.

        Raises:
            UserError: an option of a bundle without a bundle.
        """
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.bundle is None and changed:
            names = ", ".join("--no-twin" if name == "twin" else f"--{name.replace('_', '-')}" for name in changed)
            raise UserError(f"{names} is given, and no bundle", "Add --bundle DIR, or leave it out.")
        return {
            "bundle_probes": self.bundle_probes,
            "base_arm": self.base_arm,
            "twin": self.twin,
            "pack": self.pack,
        }


@dataclass(frozen=True)
class Output:
    """Where results go and what is printed."""

    out: options.Out = None
    overwrite: options.Overwrite = False
    as_json: options.Json = False
    quiet: options.Quiet = False
    log: options.Log = None

    def folder(self, name: str) -> Path:
        """The folder of ``--out``; by default one that is named after ``name`` and the time."""
        return self.out or default_out(name)

    @property
    def silent(self) -> bool:
        """Whether no progress is shown."""
        return self.as_json or self.quiet
