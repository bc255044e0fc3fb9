"""``qcheck pictures``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import pictures as functions
from qcheck.api.functions import default_out
from qcheck.cli import options, output, terminal
from qcheck.result.pictures import exit_code
from qcheck.spec import picture_limits


def pictures(
    f0: Annotated[Path, typer.Argument(help="Folder of the base's pictures at full precision.", metavar="F0")],
    f1: Annotated[Path, typer.Argument(help="The same prompts and seeds with the LoRA.", metavar="F1")],
    q1: Annotated[Path, typer.Argument(help="The same with the LoRA, quantized: what you ship.", metavar="Q1")],
    q0: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures of the quantized base: what it does without the LoRA."),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            metavar="name|metadata",
            help="How partners are known: by file name without its ending, or by the prompt and seed that A1111, Forge "
            "or ComfyUI wrote into the file.",
        ),
    ] = "name",
    limits: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Limits, a name or a .toml file.", autocompletion=options.named(picture_limits.FOLDER)
        ),
    ] = "default",
    judges: options.Judges = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Default: qcheck-out/pictures-TIME.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge pictures that something else made: ComfyUI, Forge, Nunchaku, GGUF, or the board.

    A network that knows textures tells how much of what the LoRA does to the style is left, with the intervals, words,
    files and exit codes of `qcheck check`: PASS (0), NEEDS-QAT (1), INCONCLUSIVE (3) where the pictures are too few to
    say. It is a black box: no layer is blamed. Make 16 pictures or more of each, all at one size; fewer than 8 never
    decide:

    `qcheck pictures base/ lora/ lora-q4/ --match metadata`
    """
    place = out or default_out("pictures")
    with output.session(False, as_json or quiet) as progress:
        report = functions.pictures(
            f0,
            f1,
            q1,
            q0=q0,
            match=match,
            limits=limits,
            judge=judges,
            out=place,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        from qcheck.report import pictures as rendered  # needs the host extra

        show = rendered.brief if quiet else lambda one, console: rendered.render(one, place, console)
        show(report, terminal.console())
    raise typer.Exit(exit_code(report))
