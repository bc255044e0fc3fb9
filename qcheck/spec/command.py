"""A request as the command line that asks for it again, every argument written out.

Values that ship with qcheck are named; the others are files beside the report, written by ``save``.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from qcheck.core.values import Value, named, names_in
from qcheck.demo import library
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.check import CheckSpec, Use
from qcheck.spec.limits import Limits
from qcheck.spec.probe import SAMPLING, ProbeSet
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target

INPUTS = "inputs"  # the folder beside a report
_SHELVES: Mapping[type[Value], Path] = {
    Scheme: scheme.FOLDER,
    Target: target.FOLDER,
    Recipe: recipe.FOLDER,
    Limits: limits.FOLDER,
    ProbeSet: probe.FOLDER,
}
Named = Scheme | Target | Recipe | Limits | ProbeSet


def text(value: Value) -> str:
    """A value as the TOML file that gives it again; its name is the file's."""
    return tomli_w.dumps(value.model_dump(exclude={"name"}, exclude_none=True))


def save(spec: CheckSpec, folder: Path) -> None:
    """Write the values of ``spec`` that do not ship with qcheck below ``folder``/inputs; nothing where all do."""
    values: tuple[Named, ...] = (*spec.schemes, spec.target, spec.recipe, spec.limits, spec.probes)
    for value in values:
        if not _ships(value, spec.trigger):
            path = folder / _place(value)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(value), "utf-8")


def words(spec: CheckSpec, folder: Path = Path()) -> list[str]:
    """The words after ``qcheck``; files that ``save`` wrote are named as seen from where ``folder`` is."""
    found = ["check", "demo" if spec.base == str(library.PIPELINE) else spec.base]
    for option, uses in (("--lora", spec.adapters), ("--reference-lora", spec.references)):
        for used in uses:
            found += [option, _adapter(used)]
    for used in spec.adapters:
        found += ["--weight", repr(used.weight)]
    found += [word for used in spec.common for word in ("--with-lora", f"{_adapter(used)}={used.weight!r}")]
    found += ["--allow-unmatched"] if spec.allow_unmatched else []
    found += [word for one in spec.schemes for word in ("--scheme", _name(one, folder))]
    found += [word for one in spec.artifacts for word in ("--artifact", one)]
    found += [word for one in spec.orders for word in ("--order", one)]
    found += ["--require", spec.require, "--target", _name(spec.target, folder)]
    found += ["--recipe", _name(spec.recipe, folder)]
    found += ["--ranges", spec.ranges] if spec.ranges else []
    found += ["--limits", _name(spec.limits, folder)]
    found += [] if spec.max_probes is None else ["--max-probes", str(spec.max_probes)]
    found += _probes(spec, folder)
    found += ["--trigger", spec.trigger] if spec.trigger else []
    found += ["--threads", str(spec.execution.threads), "--batch", str(spec.execution.batch)]
    return [*found, *([] if spec.execution.build else ["--no-build"])]


def line(spec: CheckSpec, folder: Path = Path()) -> str:
    """The same as one line for a shell."""
    return shlex.join(["qcheck", *words(spec, folder)])


def _adapter(used: Use) -> str:
    path = Path(used.source)
    return path.stem if path.parent == library.ADAPTERS else used.source


def _ships(value: Named, trigger: str | None = None) -> bool:
    """Whether the value is the one of its name that ships, or what options of the command line make of that."""
    folder = _SHELVES[type(value)]
    if value.name not in names_in(folder):
        return False
    known = named(type(value), folder, value.name)
    if isinstance(value, ProbeSet) and isinstance(known, ProbeSet):
        update = {name: getattr(value, name) for name in SAMPLING if getattr(value, name) is not None}
        asked = probe.triggered(known.model_copy(update=update), trigger)
        return probe.repeated(asked, len(value.prompts)) == value
    return known == value


def _place(value: Named) -> Path:
    return Path(INPUTS) / type(value).__name__.lower() / f"{value.name}.toml"


def _name(value: Named, folder: Path, trigger: str | None = None) -> str:
    return value.name if _ships(value, trigger) else str(folder / _place(value))


def _probes(spec: CheckSpec, folder: Path) -> list[str]:
    value = spec.probes
    found = ["--probes", _name(value, folder, spec.trigger)]
    for name in SAMPLING if _ships(value, spec.trigger) else ():
        given = getattr(value, name)
        found += [] if given is None else [f"--{name}", repr(given)]
    return found
