"""``qcheck check`` and ``qcheck demo``."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qcheck import cache, limits, probe, recipe, scheme, target
from qcheck.cli import options, output
from qcheck.cli.lazy import host
from qcheck.cli.options import ALL
from qcheck.cli.progress import Bars
from qcheck.demo import library
from qcheck.errors import UserError
from qcheck.job import Argument, Job, Use
from qcheck.probe import ProbeSet
from qcheck.progress import Silent
from qcheck.report import text
from qcheck.report.model import Report, exit_code
from qcheck.scheme import ORDERS, Scheme
from qcheck.target import Target


def check(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: options.Loras,
    weight: options.Weights = None,
    with_lora: options.Common = None,
    allow_unmatched: options.Unmatched = False,
    device: options.Device = options.TARGET,
    schemes: options.Schemes = None,
    orders: options.Orders = None,
    ranges: options.Ranges = None,
    bounds: options.Bounds = "default",
    probes: options.Probes = None,
    prompts: options.Prompts = None,
    trigger: options.Trigger = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = None,
    width: options.Width = None,
    height: options.Height = None,
    most: options.Most = None,
    out: options.Out = None,
    as_json: options.Json = False,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
    batch: options.Batch = 8,
) -> None:
    """Check one LoRA, or a stack of them, on one base for a device.

    Writes real ONNX artifacts, compiles them where TensorRT-RTX is installed, runs matched probes against the
    full-precision reference and ends in a verdict. An interrupted run goes on where it was. Example:

    `qcheck check ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb`
    """
    chosen_target, chosen_limits = target.find(device), limits.find(bounds)
    if most is not None:
        chosen_limits = chosen_limits.at_most(most)
    demo_base = base == library.NAME
    adapters, common = _adapters(base, lora, weight or []), _common(base, with_lora or [])
    sampling = {"steps": steps, "guidance": guidance, "seed": seed, "width": width, "height": height}
    judged = _judged(probes, prompts, demo_base, {k: v for k, v in sampling.items() if v is not None}, trigger)
    judged = probe.repeated(judged, chosen_limits.looks[-1])
    chosen_recipe = recipe.find(ranges or (library.RECIPE if demo_base else "general"))
    recipe.calibration(chosen_recipe, judged, trigger)
    used = _schemes(schemes, chosen_target)
    used_orders = _orders(orders or ([*ORDERS] if schemes == [ALL] else None))
    arguments: dict[str, Argument] = {
        "base": base,
        "lora": [*lora],
        "weight": [adapter.weight for adapter in adapters],
        "with_lora": [*(with_lora or [])],
        "allow_unmatched": allow_unmatched,
        "scheme": [named.name for named in used],
        "order": [str(name) for name in used_orders],
        "target": device,
        "probes": judged.name,
        "trigger": trigger,
        "recipe": chosen_recipe.name,
        "limits": bounds,
        "max_probes": chosen_limits.looks[-1],
        "build": build,
        "threads": threads,
        "batch": batch,
        **{key: getattr(judged, key) for key in sampling},
    }
    _run(
        Job(
            base=str(library.PIPELINE) if demo_base else base,
            adapters=adapters,
            common=common,
            allow_unmatched=allow_unmatched,
            schemes=used,
            explicit=bool(schemes) and schemes != [ALL],
            orders=used_orders,
            target=chosen_target,
            probes=judged,
            recipe=chosen_recipe,
            trigger=trigger,
            limits=chosen_limits,
            out=out or output.default(lora[0]),
            cache=None if no_cache else cache.location(),
            threads=threads,
            batch=batch,
            build=build,
            arguments=arguments,
        ),
        as_json,
    )


def demo(
    lora: Annotated[str, typer.Argument(help="One of the shipped adapters.", metavar="ADAPTER")] = "flat",
    device: options.Device = options.TARGET,
    schemes: Annotated[
        list[str] | None, typer.Option("--scheme", "-s", help=f"As for check, repeatable. Default: {library.SCHEME}.")
    ] = None,
    orders: options.Orders = None,
    most: options.Most = None,
    out: options.Out = None,
    as_json: options.Json = False,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
) -> None:
    """The same on the small trained pipeline and an adapter that ship with qcheck."""
    check(
        library.NAME,
        [lora],
        device=device,
        schemes=schemes or [library.SCHEME],
        orders=orders,
        most=most,
        out=out,
        as_json=as_json,
        build=build,
        no_cache=no_cache,
        threads=threads,
    )


def _adapters(base: str, sources: list[str], weights: list[float]) -> tuple[Use, ...]:
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


def _common(base: str, given: list[str]) -> tuple[Use, ...]:
    """Adapters of both arms, from FILE or FILE=WEIGHT.

    Raises:
        UserError: the weight is no number.
    """
    found = []
    for text_given in given:
        whole = Path(text_given).is_file()
        source, _, weight = (text_given, "", "") if whole else text_given.partition("=")
        try:
            found.append(Use(library.resolve(base, source)[1], float(weight or 1.0)))
        except ValueError as error:
            raise UserError(f"--with-lora {text_given!r}: {weight!r} is no number", "Give FILE or FILE=0.8.") from error
    return tuple(found)


def _judged(
    named: str | None, prompts: Path | None, demo_base: bool, sampling: dict[str, float | int], trigger: str | None
) -> ProbeSet:
    """The probe set to judge on."""
    if named and prompts:
        raise UserError(f"both --probes {named} and --prompts {prompts} are given", "Give one of them.")
    judged = probe.find(named or (library.PROBES if demo_base else "general"))
    judged = probe.from_text(prompts, judged) if prompts else judged
    return probe.triggered(judged.model_copy(update=sampling), trigger)


def _orders(named: list[str] | None) -> tuple[scheme.Order, ...]:
    return tuple(dict.fromkeys(scheme.order(name) for name in named or ORDERS[:1]))


def _schemes(named: list[str] | None, device: Target) -> tuple[Scheme, ...]:
    """The schemes to run.

    Raises:
        UserError: one of them is unknown or cannot run on the device.
    """
    runnable = _installed(device.runnable())
    found = _installed(device.deployable()) if not named else runnable if named == [ALL] else None
    if found is not None and not found:
        raise UserError(
            f"{device.name!r} can run no scheme that ships with qcheck", "Give a --scheme file of your own."
        )
    if found is not None:
        return tuple(found)
    assert named is not None  # noqa: S101  # the cases without names are above
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


def _run(job: Job, as_json: bool) -> None:
    errors = Console(stderr=True)
    try:
        with output.staged(job.out) as folder:
            report: Report = host("qcheck.pipeline").check(job, folder, Silent() if as_json else Bars(errors))
    except KeyboardInterrupt:
        kept = "What was finished is kept: the same command goes on from there." if job.cache else "Nothing was kept."
        errors.print(f"[bold]interrupted.[/] {kept}")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        text.render(report, job.out, Console())
    raise typer.Exit(exit_code(report, job.explicit))
