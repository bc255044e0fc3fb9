"""``qcheck export``."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.cli import options, output, resolve
from qcheck.cli.lazy import host
from qcheck.core import cache
from qcheck.core.errors import UserError
from qcheck.core.size import megabytes
from qcheck.demo import library
from qcheck.report.text import build_line
from qcheck.spec import limits, recipe, scheme, target
from qcheck.spec.check import Job

_FAILED = ("refused", "crashed", "fell back")


def export(
    base: options.Base,
    lora: options.Loras,
    chosen: Annotated[
        str,
        typer.Option(
            "--scheme", "-s", help="A scheme by name or TOML file.", autocompletion=options.named(scheme.FOLDER)
        ),
    ] = library.SCHEME,
    device: options.Device = options.TARGET,
    weight: options.Weights = None,
    reference: options.References = None,
    with_lora: options.Common = None,
    allow_unmatched: options.Unmatched = False,
    order: Annotated[
        str | None, typer.Option(help="When the adapter is merged, as for check.", autocompletion=options.orders)
    ] = None,
    ranges: options.Ranges = None,
    ranges_file: options.RangesFile = None,
    trigger: options.Trigger = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="WIDTHxHEIGHT in pixels that the engines take; repeatable, the first is tuned for. Default: the "
            "base's own.",
        ),
    ] = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log: options.Log = None,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
    batch: options.Batch = 8,
) -> None:
    """Write base + LoRA for a device, without judging it: ONNX of every component, engines, and a build script.

    The folder loads in optimum's ORTDiffusionPipeline. `build.sh` in it builds the engines on the device. Example:

    `qcheck export ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb -o board`
    """
    chosen_target = target.find(device)
    asked = [_size(text) for text in sizes or []]
    own = {"width": asked[0][0], "height": asked[0][1]} if asked else {}
    sampling = {"steps": steps, "guidance": guidance, **own}
    judged = resolve.judged(None, None, base == library.NAME, sampling, trigger)
    chosen_recipe = resolve.ranges(ranges, base == library.NAME)
    recipe.calibration(chosen_recipe, judged, trigger)
    job = Job(
        base=resolve.base(base),
        adapters=resolve.adapters(base, lora, weight or []),
        references=resolve.references(base, reference or [], lora, weight or []),
        common=resolve.common(base, with_lora or []),
        allow_unmatched=allow_unmatched,
        schemes=resolve.schemes([chosen], chosen_target),
        artifacts=(),
        explicit=True,
        orders=resolve.orders([order] if order else None),
        target=chosen_target,
        probes=judged,
        recipe=chosen_recipe,
        trigger=trigger,
        limits=limits.find("default"),
        out=out or output.default(f"{Path(lora[0]).stem}-{Path(chosen).stem}"),
        cache=None if no_cache else cache.location(),
        threads=threads,
        batch=batch,
        build=build,
        ranges=ranges_file,
    )
    with output.session(job, as_json or quiet, log, overwrite) as (folder, progress):
        found = host("qcheck.tasks.export").export(job, asked, folder, progress)
    if as_json:
        typer.echo(found.to_json(), nl=False)
    elif quiet:
        typer.echo(job.out)
    else:
        _render(found, job, Console())
    if any(part.build.status in _FAILED for part in found.parts):
        raise typer.Exit(1)


def _size(text: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        UserError: the text is not WIDTHxHEIGHT.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UserError(f"--size {text!r} is no size", "Give WIDTHxHEIGHT in pixels, such as 512x768.")
    return int(found[1]), int(found[2])


def _render(found: Any, job: Job, console: Console) -> None:
    console.print()
    table = Table(box=box.ROUNDED)
    for title in ("component", "computes in", "file", "build"):
        table.add_column(title, overflow="fold")
    for part in found.parts:
        quantized = f"\n{len(found.denoiser.layers)} layers quantized" if part is found.parts[0] else ""
        table.add_row(part.name, part.compute, f"{megabytes(part.bytes)}{quantized}", Text(build_line(part.build)))
    console.print(table)
    console.print(Text(f"estimate for {found.target}: {found.estimate.text()}"))
    for warning in found.warnings:
        console.print(Text.assemble(("warning ", "yellow"), warning))
    console.print("[yellow]not judged[/]: qcheck check says whether the adapter survives this")
    if any(part.build.proxy and part.build.status == "built" for part in found.parts):
        console.print("engines here are for a proxy: copy the folder to the device and run build.sh there")
    console.print(f"pipeline {escape(str(job.out))}", highlight=False, soft_wrap=True)
