"""``qcheck check`` and ``qcheck demo``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qcheck.cli import config, options, output, resolve
from qcheck.cli.lazy import host
from qcheck.cli.log import LOGGER
from qcheck.cli.options import ALL
from qcheck.core import cache
from qcheck.demo import library
from qcheck.report import text
from qcheck.result.report import Report, exit_code
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.check import Job
from qcheck.spec.order import MERGES


def check(
    context: typer.Context,
    base: options.Base,
    lora: options.Loras,
    weight: options.Weights = None,
    reference: options.References = None,
    with_lora: options.Common = None,
    allow_unmatched: options.Unmatched = False,
    device: options.Device = options.TARGET,
    schemes: options.Schemes = None,
    artifacts: options.Artifacts = None,
    orders: options.Orders = None,
    ranges: options.Ranges = None,
    ranges_file: options.RangesFile = None,
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
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log: options.Log = None,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
    batch: options.Batch = 8,
    configured: options.Config = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Check one LoRA, or a stack of them, on one base for a device.

    Writes real ONNX artifacts, compiles them where TensorRT-RTX is installed, runs matched probes against the
    full-precision reference and ends in a verdict. An interrupted run goes on where it was. Example:

    `qcheck check ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb`
    """
    chosen_target, chosen_limits = target.find(device), limits.find(bounds)
    if most is not None:
        chosen_limits = chosen_limits.at_most(most)
    sampling = {"steps": steps, "guidance": guidance, "seed": seed, "width": width, "height": height}
    judged = resolve.judged(probes, prompts, base == library.NAME, sampling, trigger)
    judged = probe.repeated(judged, chosen_limits.looks[-1])
    chosen_recipe = resolve.ranges(ranges, base == library.NAME)
    recipe.calibration(chosen_recipe, judged, trigger)
    job = Job(
        base=resolve.base(base),
        adapters=resolve.adapters(base, lora, weight or []),
        references=resolve.references(base, reference or [], lora, weight or []),
        common=resolve.common(base, with_lora or []),
        allow_unmatched=allow_unmatched,
        schemes=() if artifacts and not schemes else resolve.schemes(schemes, chosen_target),
        artifacts=resolve.artifacts(artifacts),
        explicit=bool(artifacts or schemes) and schemes != [ALL],
        orders=resolve.orders(orders or ([*MERGES] if schemes == [ALL] else None)),
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
        ranges=ranges_file,
    )
    if print_config:
        config.show(config.settings(context, job), as_json)
    else:
        _run(job, as_json, quiet, log, overwrite)


def demo(
    context: typer.Context,
    lora: Annotated[
        str,
        typer.Argument(help="One of the shipped adapters.", metavar="ADAPTER", autocompletion=options.adapters),
    ] = "flat",
    device: options.Device = options.TARGET,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help=f"As for check, repeatable. Default: {library.SCHEME}.",
            autocompletion=options.named(scheme.FOLDER, ALL),
        ),
    ] = None,
    orders: options.Orders = None,
    most: options.Most = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log: options.Log = None,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
) -> None:
    """The same on the small trained pipeline and an adapter that ship with qcheck.

    `qcheck demo` shows one that passes, `qcheck demo faint --scheme int4-g128 --order quantize-merge` one that is lost.
    """
    check(
        context,
        library.NAME,
        [lora],
        device=device,
        schemes=schemes or [library.SCHEME],
        orders=orders,
        most=most,
        out=out,
        overwrite=overwrite,
        as_json=as_json,
        quiet=quiet,
        log=log,
        build=build,
        no_cache=no_cache,
        threads=threads,
    )


def _run(job: Job, as_json: bool, quiet: bool, log: Path | None, overwrite: bool) -> None:
    with output.session(job, as_json or quiet, log, overwrite) as (folder, progress):
        report: Report = host("qcheck.tasks.check").check(job, folder, progress)
        for case in report.cases:
            LOGGER.info("%s %s: %s", case.scheme, case.order, case.verdict)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif quiet:
        text.brief(report, Console())
    else:
        text.render(report, job.out, Console())
    raise typer.Exit(exit_code(report, job.explicit))
