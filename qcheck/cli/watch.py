"""``qcheck watch``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api.inspection import Inspecting
from qcheck.api.watching import Watch
from qcheck.cli import options, terminal
from qcheck.cli.progress import Bars
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent
from qcheck.report import checkpoint
from qcheck.result.watching import exit_code
from qcheck.spec import scheme


def watch(
    run: Annotated[
        Path, typer.Argument(help="The folder that a training script writes checkpoints to.", metavar="RUN_FOLDER")
    ],
    base: Annotated[str, typer.Option(help="The base that is trained on: a pipeline folder, or `demo`.")],
    weight: Annotated[float, typer.Option(help="How strongly the adapter will be applied.")] = 1.0,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help="Repeatable; it has to arrive in each. Default: all that weights alone forecast, in any of them.",
            autocompletion=options.named(scheme.FOLDER),
        ),
    ] = None,
    orders: options.Merges = None,
    ranges: options.Kept = "general",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="For watch.json and watch.html. Default: RUN_FOLDER/qcheck-watch."),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the folder.")] = 30.0,
    probes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also run base and adapter on that many probes, at full precision, for how far it moves the sampler.",
        ),
    ] = 0,
    once: Annotated[bool, typer.Option("--once", help="Look at the checkpoints that are there, and end.")] = False,
    stop: Annotated[
        bool,
        typer.Option("--stop", help="End, with exit code 3, at the first checkpoint that is overcooked or unread."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each checkpoint as a line of JSON.")] = False,
) -> None:
    """Say of each checkpoint of a training whether it would arrive on a board, and whether it is overcooked.

    From weights alone, or with `--probes` by running it too, for the names that diffusers' scripts, PEFT, kohya and
    ai-toolkit give checkpoints. Exit code 0 where the latest checkpoint is healthy, 3 where it is faint, overcooked or
    unread, 2 for bad input.

    `qcheck watch runs/style --base sdxl/ --scheme int8 --order merge-quantize`
    """
    bars = Silent() if as_json else Bars(terminal.console(stderr=True))
    console = terminal.console(highlight=False, soft_wrap=True)
    asked = Inspecting(weight=weight, scheme=schemes, order=orders, recipe=ranges)
    watching = Watch(run, base, out=out, progress=bars, probes=probes, **asked)
    while True:
        new = watching.look(settled=0.0) if once else watching.look()
        for one in new:
            if as_json:
                typer.echo(one.model_dump_json())
            else:
                console.print(checkpoint.line(one, watching.watching.unit))
        if once or (stop and any(one.state in ("overcooked", "unread") for one in new)):
            break
        time.sleep(every)
    if not watching.watching.checkpoints:
        raise UserError(
            f"no checkpoint in {str(run)!r}",
            "Give a folder with checkpoint-N/ as diffusers' scripts write it, or NAME-000010.safetensors or "
            "NAME_000000250.safetensors as kohya and ai-toolkit do.",
        )
    if not as_json:
        console.print(f"curves   {watching.out / checkpoint.PAGE}")
    raise typer.Exit(exit_code(watching.watching))
