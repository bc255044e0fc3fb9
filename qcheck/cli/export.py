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
from qcheck.api.keywords import Made
from qcheck.api.request import check_spec
from qcheck.cli import bundling, options, terminal
from qcheck.cli.groups import Adapters, Artifact, Bundle, Machine, Output, grouped
from qcheck.cli.output import session
from qcheck.core.errors import UserError
from qcheck.core.size import megabytes
from qcheck.report.text import build_line
from qcheck.result.exported import Exported
from qcheck.spec.check import CheckSpec

_FAILED = ("refused", "crashed", "fell back")


@grouped
def export(
    base: options.Base,
    adapters: Adapters,
    artifact: Artifact,
    bundle: Bundle,
    output: Output,
    machine: Machine,
    probes: options.Probes = None,
    prompts: options.Prompts = None,
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
    """Write base + LoRA for a device: ONNX of every component, engines, and a build script; nothing is judged.

    The folder loads in optimum's ORTDiffusionPipeline. `build.sh` in it builds the engines on the device. Example:

    `qcheck export ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb -o board`

    With `--bundle DIR` a bundle is written instead: it is judged here, and the board verifies it by itself.
    """
    pixel_sizes, content = [_size(text) for text in sizes or []], bundle.content()
    made: Made = {"probes": probes, "trigger": trigger, "steps": steps, "guidance": guidance}
    made = {**made, **adapters.keywords(), **artifact.keywords(), **machine.keywords()}
    if bundle.bundle is not None:
        if output.out is not None:
            both = f"--bundle {bundle.bundle} and --out {output.out}"
            raise UserError(f"{both}: a bundle takes the place of an export", "Give one of them.")
        spec = _bundled_spec(base, adapters, made, prompts, pixel_sizes)
        bundling.write(spec, bundle.bundle, content, output, keeps=not machine.no_cache)
        return
    if prompts is not None:
        raise UserError("--prompts is given, and an export runs no probes", "Leave it out, or add --bundle DIR.")
    out = output.folder(f"{Path(adapters.lora[0]).stem}-{Path(artifact.scheme).stem}")
    with session(not machine.no_cache, output.silent, output.log) as progress:
        exported = functions.export(
            base,
            [*adapters.lora],
            out=out,
            size=pixel_sizes,
            overwrite=output.overwrite,
            cache=not machine.no_cache,
            progress=progress,
            **made,
        )
    if output.as_json:
        typer.echo(exported.to_json(), nl=False)
    elif output.quiet:
        typer.echo(out)
    else:
        _render(exported, out, terminal.console())
    if any(part.build.status in _FAILED for part in exported.parts):
        raise typer.Exit(1)


def _bundled_spec(
    base: str, adapters: Adapters, made: Made, prompts: Path | None, sizes: list[tuple[int, int]]
) -> CheckSpec:
    """The request of a bundle.

    Raises:
        UserError: several sizes, or bad input.
    """
    if len(sizes) > 1:
        raise UserError(f"{len(sizes)} sizes are given, and a bundle's engines take one", "Give one --size.")
    if sizes:
        made = {**made, "width": sizes[0][0], "height": sizes[0][1]}
    return check_spec(base, [*adapters.lora], prompts=prompts, **made)


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
