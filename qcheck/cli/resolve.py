"""From what was typed to the values of a job; every mistake in it is found before anything heavy starts."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from qcheck.cli.options import ALL
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.spec import order, probe, recipe, scheme
from qcheck.spec.check import Use
from qcheck.spec.order import ORDERS, Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target


def base(given: str) -> str:
    """The path or hub id of a base."""
    return str(library.PIPELINE) if given == library.NAME else given


def ranges(named: str | None, demo: bool) -> Recipe:
    """The calibration recipe."""
    return recipe.find(named or (library.RECIPE if demo else "general"))


def adapters(base: str, sources: list[str], weights: list[float]) -> tuple[Use, ...]:
    """The adapters with their weights.

    Raises:
        UserError: weights were given, but not one for each adapter.
    """
    weights = weights or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise UserError(
            f"{len(sources)} adapters and {len(weights)} weights are given",
            "Give one --weight for each --lora, or none.",
        )
    return tuple(Use(library.resolve(base, s)[1], w) for s, w in zip(sources, weights, strict=True))


def references(base: str, sources: list[str], calibrated: list[str], weights: list[float]) -> tuple[Use, ...]:
    """The files that adapters were calibrated from, with the weights of those.

    Raises:
        UserError: some are given, but not one for each adapter.
    """
    if sources and len(sources) != len(calibrated):
        raise UserError(
            f"{len(calibrated)} adapters and {len(sources)} references are given",
            "Give one --reference-lora for each --lora, or none.",
        )
    return adapters(base, sources, weights) if sources else ()


def common(base: str, given: list[str]) -> tuple[Use, ...]:
    """Adapters of both arms, from FILE or FILE=WEIGHT.

    Raises:
        UserError: the weight is no number.
    """
    found = []
    for text_given in given:
        whole = Path(text_given).exists()
        source, _, weight = (text_given, "", "") if whole else text_given.partition("=")
        try:
            found.append(Use(library.resolve(base, source)[1], float(weight or 1.0)))
        except ValueError as error:
            raise UserError(f"--with-lora {text_given!r}: {weight!r} is no number", "Give FILE or FILE=0.8.") from error
    return tuple(found)


def judged(
    named: str | None, prompts: Path | None, demo_base: bool, sampling: Mapping[str, float | None], trigger: str | None
) -> ProbeSet:
    """The probe set to judge on; of ``sampling`` what is not None replaces its own."""
    if named and prompts:
        raise UserError(f"both --probes {named} and --prompts {prompts} are given", "Give one of them.")
    found = probe.find(named or (library.PROBES if demo_base else "general"))
    found = probe.from_text(prompts, found) if prompts else found
    given = {key: value for key, value in sampling.items() if value is not None}
    return probe.triggered(found.model_copy(update=given), trigger)


def artifacts(given: list[Path] | None) -> tuple[Path, ...]:
    """Files of others, each once.

    Raises:
        UserError: one is named twice.
    """
    found = tuple(given or ())
    if len({path.absolute() for path in found}) != len(found):
        raise UserError(f"an artifact is named twice: {', '.join(map(str, found))}", "Name each once.")
    return found


def orders(named: list[str] | None) -> tuple[Order, ...]:
    """The orders of those names; by default the first."""
    return tuple(dict.fromkeys(order.find(name) for name in named or ORDERS[:1]))


def schemes(named: list[str] | None, device: Target) -> tuple[Scheme, ...]:
    """The schemes to run.

    Raises:
        UserError: one of them is unknown or cannot run on the device.
    """
    runnable = _installed(device.runnable())
    if not named or named == [ALL]:
        found = runnable if named else _installed(device.deployable())
        if not found:
            why = device.refuses(scheme.find(library.SCHEME))
            raise UserError(
                f"{device.name!r} can run no scheme that ships with qcheck: {why}", "Take another --target."
            )
        return tuple(found)
    if len({Path(name).stem for name in named}) != len(named):
        raise UserError(
            f"a scheme is named twice: {', '.join(named)}", "Name each once; files need names of their own."
        )
    chosen = tuple(map(scheme.find, named))
    for one in chosen:
        if reason := device.refuses(one):
            offered = ", ".join(s.name for s in runnable) or "none that ship with qcheck"
            raise UserError(
                f"scheme {one.name!r} cannot run on {device.name!r}: {reason}", f"Schemes it can run: {offered}."
            )
        if missing := _missing(one):
            raise UserError(
                f"scheme {one.name!r} needs {missing}, which is not installed here",
                f"pip install 'qcheck-edge[{'modelopt' if missing == 'modelopt' else 'host'}]'",
            )
    return chosen


def _missing(chosen: Scheme) -> str | None:
    """The first module that the scheme needs and that is not here."""
    return next((module for module in chosen.needs if importlib.util.find_spec(module) is None), None)


def _installed(schemes: list[Scheme]) -> list[Scheme]:
    return [found for found in schemes if not _missing(found)]
