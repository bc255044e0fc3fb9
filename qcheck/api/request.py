"""A request of values from what a user names. Every mistake in it is reported before anything heavy starts.

Every argument takes a name, a path or the value itself. The command line and the Python API both come through here.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

from pydantic import ValidationError

from qcheck.api.keywords import (
    Files,
    Floats,
    Made,
    Named,
    Orders,
    Request,
    Require,
    Schemes,
)
from qcheck.core.errors import UserError, install, unknown
from qcheck.core.values import Value
from qcheck.demo import library
from qcheck.spec import judge as judges
from qcheck.spec import limits as limits_files
from qcheck.spec import order as orders_of
from qcheck.spec import probe
from qcheck.spec import recipe as recipes
from qcheck.spec import sampling as samplings
from qcheck.spec import scheme as schemes_files
from qcheck.spec import target as targets
from qcheck.spec.check import CheckSpec, Execution
from qcheck.spec.limits import Limits
from qcheck.spec.order import MERGES, ORDERS, Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import MERGES as RANGE_MERGES
from qcheck.spec.recipe import METHODS, Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target
from qcheck.spec.use import Use

TARGET = "jetson-agx-orin-64gb"
ALL = "all"
CORES = os.cpu_count() or 1  # processor threads of this machine
V = TypeVar("V", bound=Value)


def check_spec(
    base: Named,
    lora: Files,
    *,
    weight: Floats = None,
    reference_lora: Files = None,
    with_lora: Files = None,
    allow_unmatched: bool = False,
    scheme: Schemes = None,
    artifact: Files = None,
    order: Orders = None,
    max_rank: int | None = None,
    bound_with: Files = None,
    target: Named | Target = TARGET,
    recipe: Named | Recipe | None = None,
    ranges: Named | None = None,
    limits: Named | Limits = "default",
    probes: Named | ProbeSet | None = None,
    prompts: Named | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    trigger: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | str | None = None,
    width: int | None = None,
    height: int | None = None,
    max_probes: int | None = None,
    style_pictures: Named | None = None,
    judge: str | Sequence[str] | None = None,
    require: Require | None = None,
    build: bool = True,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    batch: int = 8,
) -> CheckSpec:
    """The request of a check as a value. Keywords are those of ``Request``.

    Raises:
        UserError: something is not known, does not fit together, or cannot run on the target.
    """
    demo = str(base) == library.NAME
    limits_value, board = _value(limits, limits_files.find), _value(target, targets.find)
    named_schemes, artifacts = many(scheme), tuple(str(Path(path).absolute()) for path in many(artifact))
    numbers = {"steps": steps, "guidance": guidance, "width": width, "height": height}
    sampling = {name: value for name, value in numbers.items() if value is not None}
    sampling |= {} if seed is None else probe.seeding(seed)
    all_schemes = named_schemes == [ALL]
    named_orders = _orders(many(order) or ([*MERGES] if all_schemes else []))
    _require_binding(named_orders, max_rank, many(bound_with))
    with plainly():
        source = place(library.PIPELINE if demo else base)
        probe_set = probe.triggered(probes_of(probes, prompts, source, sampling), trigger)
        return CheckSpec(
            base=source,
            adapters=_uses(demo, many(lora), many(weight)),
            references=_references(demo, many(reference_lora), many(lora), many(weight)),
            common=_weighted("--with-lora", demo, many(with_lora)),
            allow_unmatched=allow_unmatched,
            schemes=() if artifacts and not named_schemes else _schemes(named_schemes, board),
            artifacts=artifacts,
            orders=named_orders,
            max_rank=max_rank,
            bound_with=_weighted("--bound-with", demo, many(bound_with)),
            target=board,
            probes=probe.repeated(probe_set, limits_value.looks[-1]),
            trigger=trigger,
            recipe=_value(recipe or (library.RECIPE if demo else "general"), recipes.find),
            ranges=None if ranges is None else place(ranges),
            limits=limits_value,
            max_probes=max_probes,
            style_pictures=None if style_pictures is None else place(style_pictures),
            judges=judges.find_all(many(judge)),
            require=requirement(require) or ("all" if artifacts or (named_schemes and not all_schemes) else "any"),
            execution=Execution(device=device, precision=precision, threads=threads or CORES, batch=batch, build=build),
        )


@contextmanager
def plainly() -> Iterator[None]:
    """Turn the error of a value that a field of the request does not take into the user's mistake.

    Raises:
        UserError: that mistake.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} {first['input']!r}: {first['msg']}", f"Give another {where}.") from error


def asked(base: Named | CheckSpec, lora: Files, **request: Unpack[Request]) -> CheckSpec:
    """``base`` where it is a whole request, else the request that ``check_spec`` builds.

    Raises:
        UserError: as ``check_spec``, or keywords beside a request, which holds them all.
    """
    if not isinstance(base, CheckSpec):
        return check_spec(base, lora, **request)
    if lora is not None or request:
        names = ", ".join((["lora"] if lora is not None else []) + list(request))
        raise UserError(f"a request and {names} are given", "Give a base, or a request with other values in it.")
    return base


def made(base: Named | CheckSpec, request: Made) -> Made:
    """The keywords with the shipped default scheme, where neither they nor a whole request name one."""
    return request if isinstance(base, CheckSpec) or "scheme" in request else Made(**request, scheme=library.SCHEME)


def place(source: Named) -> str:
    """The absolute path of an existing file or folder; a hub id or any other path as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else str(source)


def many(value: Any) -> list[Any]:
    """One, several or none as a list."""
    if value is None:
        return []
    return [*value] if isinstance(value, list | tuple) else [value]


def _value(source: Named | V, find: Callable[[str], V]) -> V:
    """``source`` where it is a value, else the value with that name or file."""
    return source if isinstance(source, Value) else find(str(source))


def requirement(name: str | None) -> Require | None:
    """The requirement of that name.

    Raises:
        UserError: there is none.
    """
    if name is None:
        return None
    if name not in _REQUIRE:
        raise unknown("requirement", name, _REQUIRE)
    return _REQUIRE[name]


_REQUIRE: dict[str, Require] = {"all": "all", "any": "any"}


def _uses(demo: bool, sources: Sequence[Named], weights: Sequence[float]) -> tuple[Use, ...]:
    """The adapters with their weights.

    Raises:
        UserError: no adapter, or weights that are not one for each.
    """
    if not sources:
        raise UserError("no adapter is given", "Give a LoRA file: --lora FILE.")
    weights = weights or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise UserError(
            f"{len(sources)} adapters and {len(weights)} weights are given",
            "Give one --weight for each --lora, or none.",
        )
    base = library.NAME if demo else None
    paths = [place(library.resolve(base, str(source))[1]) for source in sources]
    return tuple(Use(source=source, weight=float(weight)) for source, weight in zip(paths, weights, strict=True))


def _references(
    demo: bool, sources: Sequence[Named], calibrated: Sequence[Named], weights: Sequence[float]
) -> tuple[Use, ...]:
    """The files that adapters were calibrated from, with the adapters' weights.

    Raises:
        UserError: some are given, but not one for each adapter.
    """
    if sources and len(sources) != len(calibrated):
        raise UserError(
            f"{len(calibrated)} adapters and {len(sources)} references are given",
            "Give one --reference-lora for each --lora, or none.",
        )
    return _uses(demo, sources, weights) if sources else ()


def _weighted(option: str, demo: bool, adapters: Iterable[Named]) -> tuple[Use, ...]:
    """Adapters of an option, from FILE or FILE=WEIGHT.

    Raises:
        UserError: the weight is no number.
    """
    uses: list[Use] = []
    for text in map(str, adapters):
        is_file = Path(text).exists() or "=" not in text
        source, _, weight = (text, "", "1") if is_file else text.rpartition("=")
        try:
            uses += _uses(demo, [source], [float(weight)])
        except ValueError as error:
            raise UserError(f"{option} {text!r}: {weight!r} is no number", "Give FILE or FILE=0.8.") from error
    return tuple(uses)


def probes_of(
    probes: Named | ProbeSet | None,
    prompts: Named | Sequence[str] | Mapping[str, Sequence[str]] | None,
    base: str,
    sampling: Mapping[str, int | float],
) -> ProbeSet:
    """The probe set to judge a base on; the values of ``sampling`` replace its own."""
    if probes and prompts:
        raise UserError(f"both --probes {probes} and --prompts {prompts} are given", "Give one of them.")
    demo = base == place(library.PIPELINE)
    probe_set = _value(probes or (library.PROBES if demo else "general"), probe.find)
    if isinstance(prompts, str | Path):
        probe_set = probe.from_text(Path(prompts), probe_set)
    elif prompts is not None:
        probe_set = probe.from_prompts(prompts, probe_set)
    own = samplings.of_base(Path(base)) if probe_set.of_base else None
    usual = own[0].model_dump() if own else {}
    chosen = {**usual, **sampling}
    of_base = {"of_base": own is not None and all(chosen[key] == value for key, value in usual.items())}
    return ProbeSet.model_validate(probe_set.model_dump() | chosen | of_base)


def _orders(names: Sequence[str]) -> tuple[Order, ...]:
    """The orders of those names; by default the first."""
    return tuple(dict.fromkeys(orders_of.find(name) for name in names or ORDERS[:1]))


def _require_binding(orders: Sequence[Order], max_rank: int | None, bound_with: Sequence[Named]) -> None:
    """Refuse what is said of a file's inputs for adapters where no order of the request has any."""
    given = {"--max-rank": max_rank, "--bound-with": bound_with[0] if bound_with else None}
    first = next((f"{option} {value}" for option, value in given.items() if value is not None), None)
    if first is not None and not any(orders_of.merge(order).binds for order in orders):
        raise UserError(f"{first}: no order of the request takes the adapter as inputs", "Add --order bound.")


def _schemes(requested: Sequence[Named | Scheme], device: Target) -> tuple[Scheme, ...]:
    """The schemes to run.

    Raises:
        UserError: one of them is unknown or cannot run on the device.
    """
    runnable = _installed(device.runnable())
    if not requested or requested == [ALL]:
        defaults = runnable if requested else _installed(device.deployable())
        if not defaults:
            why = device.refuses(schemes_files.find(library.SCHEME))
            raise UserError(
                f"{device.name!r} can run no scheme that ships with qcheck: {why}", "Take another --target."
            )
        return tuple(defaults)
    schemes = tuple(_value(candidate, schemes_files.find) for candidate in requested)
    for candidate in schemes:
        if reason := device.refuses(candidate):
            names = ", ".join(s.name for s in runnable) or "none that ship with qcheck"
            raise UserError(
                f"scheme {candidate.name!r} cannot run on {device.name!r}: {reason}", f"Schemes it can run: {names}."
            )
        if missing := _missing(candidate):
            raise UserError(
                f"scheme {candidate.name!r} needs {missing}, which is not installed here",
                f"Install it, {install(missing)}",
            )
    return schemes


def _missing(scheme: Scheme) -> str | None:
    """The first module that the scheme needs and that is not here; the extra that brings it has its name."""
    return next((module for module in scheme.needs if importlib.util.find_spec(module) is None), None)


def _installed(schemes: Iterable[Scheme]) -> list[Scheme]:
    return [scheme for scheme in schemes if not _missing(scheme)]


def ranged(recipe: Recipe, method: str | None, merge: str | None) -> Recipe:
    """A recipe with another way to cut ranges and to merge those of timesteps.

    Raises:
        UserError: a method or a merge that is not known.
    """
    for what, name, known in (("range method", method, METHODS), ("merge of ranges", merge, RANGE_MERGES)):
        if name is not None and name not in known:
            raise unknown(what, name, known)
    update = {key: value for key, value in (("method", method), ("merge", merge)) if value is not None}
    return recipe.model_copy(update=update)
