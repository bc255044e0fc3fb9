"""``qcheck check`` and ``qcheck demo``."""

from typing import Annotated

import typer
from rich.console import Console

from qcheck import cache, limits, probe, recipe, target
from qcheck.cli import options, output, resolve
from qcheck.cli.lazy import host
from qcheck.cli.options import ALL
from qcheck.cli.progress import Bars
from qcheck.demo import library
from qcheck.job import Job
from qcheck.progress import Silent
from qcheck.report import text
from qcheck.report.model import Report, exit_code
from qcheck.scheme import MERGES


def check(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: options.Loras,
    weight: options.Weights = None,
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
    sampling = {"steps": steps, "guidance": guidance, "seed": seed, "width": width, "height": height}
    judged = resolve.judged(probes, prompts, base == library.NAME, sampling, trigger)
    judged = probe.repeated(judged, chosen_limits.looks[-1])
    chosen_recipe = resolve.ranges(ranges, base == library.NAME)
    recipe.calibration(chosen_recipe, judged, trigger)
    job = Job(
        base=resolve.base(base),
        adapters=resolve.adapters(base, lora, weight or []),
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
    _run(job, as_json)


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


def _run(job: Job, as_json: bool) -> None:
    bars = Silent() if as_json else Bars(Console(stderr=True))
    with output.interruptible(job.cache is not None), output.staged(job.out) as folder:
        report: Report = host("qcheck.pipeline").check(job, folder, bars)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        text.render(report, job.out, Console())
    raise typer.Exit(exit_code(report, job.explicit))
