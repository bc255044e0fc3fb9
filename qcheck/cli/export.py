"""``qcheck export``."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.api import functions
from qcheck.cli import options
from qcheck.cli.groups import Adapters, Artifact, Machine, Output, grouped
from qcheck.cli.output import session
from qcheck.core.errors import UserError
from qcheck.core.size import megabytes
from qcheck.report.text import build_line
from qcheck.result.exported import Exported

_FAILED = ("refused", "crashed", "fell back")


@grouped
def export(
    base: options.Base,
    adapters: Adapters,
    artifact: Artifact,
    output: Output,
    machine: Machine,
    probes: options.Probes = None,
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
) -> None:
    """Write base + LoRA for a device, without judging it: ONNX of every component, engines, and a build script.

    The folder loads in optimum's ORTDiffusionPipeline. `build.sh` in it builds the engines on the device. Example:

    `qcheck export ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb -o board`
    """
    out = output.folder(f"{Path(adapters.lora[0]).stem}-{Path(artifact.scheme).stem}")
    pixel_sizes = [_size(text) for text in sizes or []]
    with session(not machine.no_cache, output.silent, output.log) as progress:
        exported = functions.export(
            base,
            [*adapters.lora],
            out=out,
            size=pixel_sizes,
            overwrite=output.overwrite,
            cache=not machine.no_cache,
            progress=progress,
            probes=probes,
            trigger=trigger,
            steps=steps,
            guidance=guidance,
            **adapters.keywords(),
            **artifact.keywords(),
            **machine.keywords(),
        )
    if output.as_json:
        typer.echo(exported.to_json(), nl=False)
    elif output.quiet:
        typer.echo(out)
    else:
        _render(exported, out, Console())
    if any(part.build.status in _FAILED for part in exported.parts):
        raise typer.Exit(1)


def _size(text: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        UserError: the text is not WIDTHxHEIGHT.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"--size {text!r} is no size", "Give WIDTHxHEIGHT in pixels, such as 512x768.")
    return int(match[1]), int(match[2])


def _render(exported: Exported, out: Path, console: Console) -> None:
    console.print()
    table = Table(box=box.ROUNDED)
    for title in ("component", "computes in", "file", "build"):
        table.add_column(title, overflow="fold")
    for part in exported.parts:
        quantized = f"\n{len(exported.denoiser.layers)} layers quantized" if part is exported.parts[0] else ""
        table.add_row(part.name, part.compute, f"{megabytes(part.bytes)}{quantized}", Text(build_line(part.build)))
    console.print(table)
    console.print(Text(f"estimate for {exported.target}: {exported.estimate.text()}"))
    for warning in exported.warnings:
        console.print(Text.assemble(("warning ", "yellow"), warning))
    console.print("[yellow]not judged[/]: qcheck check says whether the adapter survives this")
    if any(part.build.proxy and part.build.status == "built" for part in exported.parts):
        console.print("engines here are for a proxy: copy the folder to the device and run build.sh there")
    console.print(f"pipeline {escape(str(out))}", highlight=False, soft_wrap=True)
