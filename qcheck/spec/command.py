"""The command line that repeats a request, with every argument written out.

Values that ship with qcheck are named. All other values are files beside the report, written by ``save``.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from qcheck.core.values import Value, named, names_in
from qcheck.demo import library
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec import order as orders
from qcheck.spec.check import CheckSpec
from qcheck.spec.limits import Limits
from qcheck.spec.probe import SAMPLING, ProbeSet
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target
from qcheck.spec.use import Use

INPUTS = "inputs"  # the folder beside a report
_SHELVES: Mapping[type[Value], Path] = {
    Scheme: scheme.FOLDER,
    Target: target.FOLDER,
    Recipe: recipe.FOLDER,
    Limits: limits.FOLDER,
    ProbeSet: probe.FOLDER,
}
Setting = str | int | float | bool
_FLAGS = frozenset({"allow-unmatched"})
_NUMBERS = frozenset({*SAMPLING, "weight", "max-probes", "max-rank"})
Named = Scheme | Target | Recipe | Limits | ProbeSet


def text(value: Value) -> str:
    """A value as the text of a TOML file. The name is left out: it is the file's."""
    return tomli_w.dumps(value.model_dump(exclude={"name"}, exclude_none=True))


def save(spec: CheckSpec, folder: Path) -> None:
    """Write each value of ``spec`` that does not ship with qcheck to a TOML file in ``folder``/inputs."""
    values: tuple[Named, ...] = (*spec.schemes, spec.target, spec.recipe, spec.limits, spec.probes)
    for value in values:
        if not _ships(value, spec.trigger):
            path = folder / _place(value)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(value), "utf-8")


def words(spec: CheckSpec, folder: Path = Path()) -> list[str]:
    """The arguments after ``qcheck``. Files that ``save`` wrote to ``folder`` are named by their path in it."""
    arguments = ["check", *_adapters(spec)]
    arguments += [word for value in spec.schemes for word in ("--scheme", _name(value, folder))]
    arguments += [word for path in spec.artifacts for word in ("--artifact", path)]
    arguments += [*(word for order in spec.orders for word in ("--order", order)), *_binding(spec)]
    arguments += ["--require", spec.require, *_ranges(spec, folder), "--limits", _name(spec.limits, folder)]
    arguments += [] if spec.style_pictures is None else ["--style-pictures", spec.style_pictures]
    arguments += [word for one in spec.judges for word in ("--judge", one.text())]
    arguments += [] if spec.max_probes is None else ["--max-probes", str(spec.max_probes)]
    return [*arguments, *_probes(spec, folder, SAMPLING), *_execution(spec)]


def export_words(spec: CheckSpec, folder: Path = Path()) -> list[str]:
    """The arguments after ``qcheck`` that export the request's first scheme in its first order."""
    arguments = ["export", *_adapters(spec), "--scheme", _name(spec.schemes[0], folder), "--order", spec.orders[0]]
    arguments += [*_binding(spec), *_ranges(spec, folder), *_probes(spec, folder, ("steps", "guidance"))]
    width, height = spec.probes.width, spec.probes.height
    arguments += [] if width is None or height is None else ["--size", f"{width}x{height}"]
    return [*arguments, *_execution(spec)]


def _binding(spec: CheckSpec) -> list[str]:
    """What is asked of a file's inputs for adapters, where an order has them."""
    if not any(orders.merge(order).binds for order in spec.orders):
        return []
    rank = [] if spec.max_rank is None else ["--max-rank", str(spec.max_rank)]
    return [*rank, *_weighted("--bound-with", spec.bound_with)]


def settings(spec: CheckSpec, folder: Path = Path()) -> dict[str, Setting | list[Setting]]:
    """The same as ``words``, as the table ``[check]`` of a qcheck.toml; how a machine runs it is left out."""
    command, machine = words(spec, folder), _execution(spec)
    several: dict[str, list[Setting]] = {"base": [command[1]]}
    rest = iter(command[2 : len(command) - len(machine)])
    for option in rest:
        name = option.removeprefix("--")
        several.setdefault(name, []).append(True if name in _FLAGS else _number(name, next(rest)))
    return {name: values if len(values) > 1 else values[0] for name, values in several.items()}


def _number(name: str, word: str) -> Setting:
    """The value of an option that takes numbers as one; ``--seed`` takes words too."""
    if name not in _NUMBERS:
        return word
    try:
        return float(word) if "." in word or "e" in word else int(word)
    except ValueError:
        return word


def line(arguments: Sequence[str]) -> str:
    """The command of the arguments after ``qcheck``, quoted as one line for a shell."""
    return shlex.join(["qcheck", *arguments])


def _adapters(spec: CheckSpec) -> list[str]:
    arguments = ["demo" if spec.base == str(library.PIPELINE) else spec.base]
    for option, uses in (("--lora", spec.adapters), ("--reference-lora", spec.references)):
        for use in uses:
            arguments += [option, _adapter(use)]
    for use in spec.adapters:
        arguments += ["--weight", repr(use.weight)]
    arguments += _weighted("--with-lora", spec.common)
    return [*arguments, *(["--allow-unmatched"] if spec.allow_unmatched else [])]


def _weighted(option: str, uses: Sequence[Use]) -> list[str]:
    return [word for use in uses for word in (option, f"{_adapter(use)}={use.weight!r}")]


def _ranges(spec: CheckSpec, folder: Path) -> list[str]:
    arguments = ["--target", _name(spec.target, folder), "--recipe", _name(spec.recipe, folder)]
    return [*arguments, *(["--ranges", spec.ranges] if spec.ranges else [])]


def _execution(spec: CheckSpec) -> list[str]:
    execution = spec.execution
    arguments = ["--device", execution.device, "--precision", execution.precision]
    arguments += ["--threads", str(execution.threads), "--batch", str(execution.batch)]
    return [*arguments, *([] if spec.execution.build else ["--no-build"])]


def _adapter(use: Use) -> str:
    path = Path(use.source)
    return path.stem if path.parent == library.ADAPTERS else use.source


def _ships(value: Named, trigger: str | None = None) -> bool:
    """Whether the value equals the shipped one of its name, given the sampling options of the command line."""
    folder = _SHELVES[type(value)]
    if value.name not in names_in(folder):
        return False
    shipped = named(type(value), folder, value.name)
    if isinstance(value, ProbeSet) and isinstance(shipped, ProbeSet):
        update = {name: getattr(value, name) for name in SAMPLING if getattr(value, name) is not None}
        update |= {"of_base": value.of_base, "drawn": value.drawn}
        sampled = probe.triggered(shipped.model_copy(update=update), trigger)
        return probe.repeated(sampled, len(value.prompts)) == value
    return shipped == value


def _place(value: Named) -> Path:
    return Path(INPUTS) / type(value).__name__.lower() / f"{value.name}.toml"


def _name(value: Named, folder: Path, trigger: str | None = None) -> str:
    return value.name if _ships(value, trigger) else str(folder / _place(value))


def _probes(spec: CheckSpec, folder: Path, options: Sequence[str]) -> list[str]:
    """The probe set's option and, for a shipped set, the sampling ``options``; another set's file holds them itself."""
    value, ships = spec.probes, _ships(spec.probes, spec.trigger)
    arguments = ["--probes", _name(value, folder, spec.trigger)]
    for name in options if ships else ():
        setting = value.seed_option if name == "seed" else getattr(value, name)
        arguments += [] if setting is None else [f"--{name}", str(setting)]
    return [*arguments, *(["--trigger", spec.trigger] if spec.trigger else [])]
